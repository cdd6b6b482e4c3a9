//! Sees what no replica can see, and says what must never be: two values chosen in a slot, a promise that falls, a
//! message that says more than the disk behind it, an entry applied that was not chosen, fingerprints that differ, a
//! read that misses what was acknowledged before it.

use std::collections::BTreeMap;

use d3b::{DatabaseId, ReplicaId, Slot};
use d3b_paxos::PersistBatch;
use d3b_paxos::message::Envelope;
use d3b_paxos::types::{Ballot, Entry, Record};

use super::disk::LogFile;
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
    accepted: BTreeMap<Ballot, (Entry, u16)>,
    chosen: Option<Entry>,
}

/// The view from above.
#[derive(Debug)]
pub struct Oracle {
    majority: u32,
    slots: BTreeMap<Slot, SlotView>,
    promised: BTreeMap<ReplicaId, Ballot>,
    fingerprints: BTreeMap<(DatabaseId, Slot), ([u8; 16], ReplicaId)>,
    /// The highest slot whose outcome any client was told, or that any read has shown.
    told: Slot,
}

impl Oracle {
    /// Watches so many voters.
    #[must_use]
    pub fn new(replicas: u32) -> Oracle {
        Oracle {
            majority: replicas / 2 + 1,
            slots: BTreeMap::new(),
            promised: BTreeMap::new(),
            fingerprints: BTreeMap::new(),
            told: Slot::ZERO,
        }
    }

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
        for record in &batch.records {
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
        let (value, acceptors) = view.accepted.entry(*ballot).or_insert_with(|| (entry.clone(), 0));
        demand!(value == entry, "ballot {ballot} has two values for slot {slot}");
        *acceptors |= 1 << replica.0;
        if acceptors.count_ones() < self.majority {
            return Ok(false);
        }
        let before = view.chosen.is_some();
        let chosen = view.chosen.get_or_insert_with(|| entry.clone());
        demand!(chosen == entry, "two values are chosen in slot {slot}");
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
