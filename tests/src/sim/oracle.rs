//! Sees what no replica can see, and says what must never be: two values chosen in a slot, a promise that falls, a
//! message that says more than the disk behind it, an entry applied that was not chosen, fingerprints that differ, a
//! read that misses what was acknowledged before it.

use std::collections::{BTreeMap, BTreeSet};

use d3b::{DatabaseId, ReplicaId, Slot};
use d3b_paxos::PersistBatch;
use d3b_paxos::message::Envelope;
use d3b_paxos::types::{Ballot, Change, Configuration, Entry, Payload, Record};

use super::disk::LogFile;
use super::machine::Content;
use crate::durability;

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Makes a violation of a text, unless a condition holds.
#[macro_export]
macro_rules! demand {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::sim::oracle::Violation(format!($($text)+)));
        }
    };
}
pub use demand;

/// What was accepted in one slot, and what thereby is chosen.
#[derive(Debug, Default)]
struct SlotView {
    /// By ballot: the value, and a bit for every acceptor that has it on disk.
    accepted: BTreeMap<Ballot, (Entry, BTreeSet<ReplicaId>)>,
    chosen: Option<Entry>,
}

/// The view from above.
#[derive(Debug)]
pub struct Oracle {
    /// Every configuration that was chosen, by its slot; the first one is the founding one's.
    configurations: BTreeMap<Slot, Configuration>,
    /// Those that somebody has proposed, and that may be chosen yet.
    proposed: Vec<Configuration>,
    slots: BTreeMap<Slot, SlotView>,
    promised: BTreeMap<ReplicaId, Ballot>,
    fingerprints: BTreeMap<(DatabaseId, Slot), ([u8; 16], ReplicaId)>,
    /// The same for what a database was found to hold.
    contents: BTreeMap<(DatabaseId, Slot), ([u8; 16], ReplicaId)>,
    /// The execution version that each replica's newest process has.
    builds: BTreeMap<ReplicaId, u32>,
    /// The highest slot whose outcome any client was told, or that any read has shown.
    told: Slot,
}

impl Oracle {
    /// Watches a cluster that these found.
    #[must_use]
    pub fn new(founding: Configuration) -> Oracle {
        Oracle {
            configurations: BTreeMap::from([(Slot::ZERO, founding)]),
            proposed: Vec::new(),
            slots: BTreeMap::new(),
            promised: BTreeMap::new(),
            fingerprints: BTreeMap::new(),
            contents: BTreeMap::new(),
            builds: BTreeMap::new(),
            told: Slot::ZERO,
        }
    }

    // Configurations.

    /// The configuration that was chosen last.
    ///
    /// # Panics
    /// Never: there is a founding one.
    #[must_use]
    pub fn last_configuration(&self) -> &Configuration {
        self.configurations.last_key_value().expect("there is a founding one").1
    }

    /// The one before it.
    #[must_use]
    pub fn configuration_before_last(&self) -> Option<&Configuration> {
        self.configurations.values().rev().nth(1)
    }

    /// Every configuration that there was.
    pub fn configurations(&self) -> impl Iterator<Item = &Configuration> {
        self.configurations.values()
    }

    /// It, and those that may follow on it.
    pub fn possible_configurations(&self) -> impl Iterator<Item = &Configuration> {
        let last = self.last_configuration();
        let later = self.proposed.iter().filter(|proposed| proposed.epoch > last.epoch);
        std::iter::once(last).chain(later)
    }

    /// Somebody puts an entry into the log.
    pub fn proposes(&mut self, entry: &Entry) {
        if let Payload::Configuration(configuration) = &entry.payload
            && !self.proposed.contains(configuration)
        {
            self.proposed.push((**configuration).clone());
        }
    }

    /// A replica takes a configuration for the one in effect.
    ///
    /// # Errors
    /// It was not chosen.
    pub fn adopts(&self, replica: ReplicaId, configuration: &Configuration) -> Result<(), Violation> {
        let chosen = self.configurations.get(&configuration.slot);
        let right = configuration.slot == Slot::ZERO || chosen == Some(configuration);
        demand!(right, "{replica} adopts a configuration that was not chosen: {configuration:?}");
        Ok(())
    }

    /// The configuration whose majority chooses in a slot.
    fn governing(&self, slot: Slot) -> &Configuration {
        self.configurations.range(..slot).next_back().map_or_else(|| self.last_configuration(), |(_, it)| it)
    }

    /// A configuration is chosen: it follows in one step on the one before, and nothing was chosen behind it yet.
    fn reconfigured(&mut self, slot: Slot, configuration: &Configuration) -> Result<(), Violation> {
        let next = Configuration { slot, ..configuration.clone() };
        let before = self.governing(slot);
        if next.epoch <= before.epoch {
            // What a rival has left behind, proposed again as an entry that means nothing: nobody may adopt it.
            return Ok(());
        }
        demand!(is_step(before, &next), "slot {slot} changes the configuration at once from {before:?} to {next:?}");
        if next.execution > before.execution {
            let has = |id: &ReplicaId| self.builds.get(id).is_some_and(|build| *build >= next.execution);
            let lacks: Vec<&ReplicaId> = next.members.keys().filter(|id| !has(id)).collect();
            demand!(lacks.is_empty(), "execution version {} begins, and {lacks:?} do not have it", next.execution);
        }
        let behind = self.slots.range(slot.next()..).find(|(_, view)| view.chosen.is_some());
        demand!(behind.is_none(), "something was chosen behind slot {slot} before the configuration that governs it");
        self.configurations.insert(slot, next);
        Ok(())
    }

    // Slots.

    /// A batch became durable on a voter's disk. Returns the ballot of what is thereby chosen, if anything is.
    ///
    /// # Errors
    /// A promise fell, a ballot has two values for a slot, or two values are chosen.
    pub fn written(&mut self, replica: ReplicaId, batch: &PersistBatch) -> Result<Option<Ballot>, Violation> {
        if let Some(promised) = batch.promised {
            let before = self.promised.insert(replica, promised).unwrap_or(Ballot::ZERO);
            demand!(promised >= before, "the durable promise of {replica} fell from {before} to {promised}");
        }
        let mut chosen = None;
        if let Some(configuration) = &batch.configuration {
            self.adopts(replica, configuration)?;
        }
        for record in &batch.records {
            self.proposes(&record.entry);
            if self.accepted(replica, record)? {
                chosen = Some(record.ballot);
            }
        }
        Ok(chosen)
    }

    /// Whether the record's value is chosen now and was not before.
    fn accepted(&mut self, replica: ReplicaId, record: &Record) -> Result<bool, Violation> {
        let Record { slot, ballot, entry } = record;
        let view = self.slots.entry(*slot).or_default();
        let (value, acceptors) = view.accepted.entry(*ballot).or_insert_with(|| (entry.clone(), BTreeSet::new()));
        demand!(value == entry, "ballot {ballot} has two values for slot {slot}");
        acceptors.insert(replica);
        // It is the configuration before the slot that says whose votes count.
        let governing = self.configurations.range(..*slot).next_back().map(|(_, it)| it);
        let counts = |governing: &Configuration| {
            acceptors.iter().filter(|id| governing.votes(**id)).count() >= governing.majority()
        };
        if !governing.is_some_and(counts) {
            return Ok(false);
        }
        let before = view.chosen.is_some();
        let chosen = view.chosen.get_or_insert_with(|| entry.clone());
        demand!(chosen == entry, "two values are chosen in slot {slot}");
        if let Payload::Configuration(configuration) = &entry.payload
            && !before
        {
            self.reconfigured(*slot, configuration)?;
        }
        Ok(!before)
    }

    /// A replica's disk was exchanged: it is nobody's memory any more.
    pub fn wiped(&mut self, replica: ReplicaId) {
        self.promised.remove(&replica);
    }

    /// What is chosen in a slot.
    #[must_use]
    pub fn chosen(&self, slot: Slot) -> Option<&Entry> {
        self.slots.get(&slot)?.chosen.as_ref()
    }

    /// A replica applies a record.
    ///
    /// # Errors
    /// It is not what was chosen.
    pub fn applies(&self, replica: ReplicaId, record: &Record) -> Result<(), Violation> {
        let Record { slot, entry, .. } = record;
        demand!(self.chosen(*slot) == Some(entry), "{replica} applies at slot {slot} what is not chosen");
        Ok(())
    }

    /// A message leaves a replica.
    ///
    /// # Errors
    /// It says more than is true of the sender's disk.
    pub fn sends(&self, envelope: &Envelope, log: &LogFile, applied: Slot) -> Result<(), Violation> {
        let chosen = |slot| self.chosen(slot);
        let said = durability::check(&envelope.message, log, applied, chosen);
        said.map_err(|error| Violation(format!("of a message of {}: {error}", envelope.from)))
    }

    /// A database has this chain after this slot on a replica.
    ///
    /// # Errors
    /// Another replica has another one.
    pub fn fingerprint(
        &mut self,
        replica: ReplicaId,
        key: (DatabaseId, Slot),
        chain: [u8; 16],
    ) -> Result<(), Violation> {
        let (known, by) = *self.fingerprints.entry(key).or_insert((chain, replica));
        demand!(known == chain, "replicas {by} and {replica} differ after slot {} in database {}", key.1, key.0);
        Ok(())
    }

    /// A database holds this after this slot on a replica.
    ///
    /// # Errors
    /// It holds something else on another replica.
    pub fn content(&mut self, replica: ReplicaId, content: &Content) -> Result<(), Violation> {
        let Content { database, slot, digest, .. } = content;
        let (known, by) = *self.contents.entry((*database, *slot)).or_insert((*digest, replica));
        demand!(known == *digest, "{by} and {replica} hold something else after slot {slot} in database {database}");
        Ok(())
    }

    /// A process of a replica has this execution version.
    pub fn runs(&mut self, replica: ReplicaId, execution: u32) {
        self.builds.insert(replica, execution);
    }

    /// A client was told what came of a slot.
    pub fn tells(&mut self, slot: Slot) {
        self.told = self.told.max(slot);
    }

    /// What a read that begins now must see.
    #[must_use]
    pub fn told(&self) -> Slot {
        self.told
    }

    /// Log time rises from each chosen slot to the next.
    ///
    /// # Errors
    /// It does not.
    pub fn check_log_time(&self) -> Result<(), Violation> {
        let mut before: Option<(Slot, u64)> = None;
        for (slot, view) in &self.slots {
            let Some(entry) = &view.chosen else { continue };
            let time = entry.stamp.time_ms;
            if let Some((previous, earlier)) = before {
                let rises = previous.next() != *slot || time > earlier;
                demand!(rises, "slot {slot} is dated {time}, and slot {previous} before it {earlier}");
            }
            before = Some((*slot, time));
        }
        Ok(())
    }

    /// How many slots are chosen.
    #[must_use]
    pub fn chosen_count(&self) -> usize {
        self.slots.values().filter(|view| view.chosen.is_some()).count()
    }
}

/// Whether one configuration follows on another by one change: so that their majorities have somebody in common.
fn is_step(before: &Configuration, after: &Configuration) -> bool {
    let members = &before.members;
    let added = after.members.iter().filter(|(id, _)| !members.contains_key(id)).map(|(id, member)| Change::Add {
        id: *id,
        disk: member.disk,
        peer: member.peer.clone(),
        replaces: member.replaces,
    });
    let removed = members.keys().filter(|id| !after.members.contains_key(id)).map(|id| Change::Remove { id: *id });
    let promoted = members.iter().filter(|(id, member)| !member.votes && after.votes(**id));
    let promoted = promoted.map(|(id, _)| Change::Promote { id: *id });
    let risen = (before.execution != after.execution).then_some(Change::Execution { version: after.execution });
    let changes: Vec<Change> = added.chain(removed).chain(promoted).chain(risen).collect();
    let follows = |change: &Change| {
        let next = before.changed(change, after.slot);
        next.is_ok_and(|next| Configuration { cluster: after.cluster, ..next } == *after)
    };
    matches!(&changes[..], [change] if follows(change))
}
