//! The fingerprints of this replica's databases, compared with those that its peers tell: chains over what every entry
//! did, or digests of what a database holds.
//!
//! Two sums can only be compared after the same slot, and three replicas under load hardly ever speak of the same one:
//! when a message comes, its newest slot is long past here, or yet to come. So beside the newest sum of a database its
//! marks are kept and told: the first slot that concerns it in each block of 16, 64, 256 slots and so on. Every replica
//! has the same marks, and whatever the load, one of those blocks takes a few seconds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use d3b::{DatabaseId, ReplicaId, Slot};

/// How many of the newest sums of a database are kept.
const NEWEST_MAX: usize = 64;
/// The blocks whose marks are kept: 2 to the power of each many slots.
const BLOCKS: [u32; 10] = [4, 6, 8, 10, 12, 14, 16, 18, 20, 22];
/// How many marks are kept for each size of blocks.
const MARKS_MAX: usize = 4;
/// How many databases one message tells of because they changed last, and as many because it is their turn.
const TURN_MAX: usize = 128;
/// How many sums one message tells.
const TOLD_MAX: usize = 512;

/// A database and a slot after which its sum was taken.
pub(super) type Place = (DatabaseId, Slot);
/// The sum of a database after a slot.
pub(super) type Told = (DatabaseId, Slot, [u8; 16]);

/// Two replicas hold different data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// The database.
    pub database: DatabaseId,
    /// The slot after which the fingerprints differ.
    pub slot: Slot,
    /// This replica's.
    pub here: [u8; 16],
    /// Who told the other one.
    pub replica: ReplicaId,
    /// The other one.
    pub there: [u8; 16],
}

/// What the voters say of a place where they differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A majority agrees on something else than this replica holds.
    Minority {
        /// Who agrees.
        majority: Vec<ReplicaId>,
        /// On what.
        there: [u8; 16],
        /// What this replica holds.
        here: [u8; 16],
    },
    /// No majority agrees, nor will when those who were silent have spoken: nobody knows who is right.
    Split,
}

/// The sums of one database here.
#[derive(Debug)]
struct History {
    newest: VecDeque<(Slot, [u8; 16])>,
    marks: [VecDeque<(Slot, [u8; 16])>; BLOCKS.len()],
}

impl History {
    fn new() -> History {
        History { newest: VecDeque::new(), marks: [const { VecDeque::new() }; BLOCKS.len()] }
    }

    fn last(&self) -> Option<Slot> {
        self.newest.back().map(|(slot, _)| *slot)
    }

    fn record(&mut self, slot: Slot, sum: [u8; 16]) {
        let before = self.last().unwrap_or(Slot::ZERO);
        push(&mut self.newest, (slot, sum), NEWEST_MAX);
        for (block, marks) in BLOCKS.iter().zip(&mut self.marks) {
            if slot.0 >> block != before.0 >> block {
                push(marks, (slot, sum), MARKS_MAX);
            }
        }
    }

    fn find(&self, slot: Slot) -> Option<[u8; 16]> {
        let lists = std::iter::once(&self.newest).chain(&self.marks);
        lists.into_iter().find_map(|list| {
            let index = list.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
            Some(list[index].1)
        })
    }

    /// The last mark of each size of blocks, once each, without the newest slot.
    fn marks(&self) -> BTreeMap<Slot, [u8; 16]> {
        let marks = self.marks.iter().filter_map(|marks| marks.back().copied());
        marks.filter(|(slot, _)| Some(*slot) != self.last()).collect()
    }
}

fn push<T>(list: &mut VecDeque<T>, item: T, max: usize) {
    list.push_back(item);
    if list.len() > max {
        list.pop_front();
    }
}

/// What one peer told, as far as it is remembered: what was heard first is forgotten first.
#[derive(Debug, Default)]
struct Heard {
    sums: BTreeMap<Place, [u8; 16]>,
    order: VecDeque<Place>,
}

impl Heard {
    fn hear(&mut self, place: Place, sum: [u8; 16], max: usize) {
        if self.sums.insert(place, sum).is_none() {
            self.order.push_back(place);
            if self.order.len() > max
                && let Some(oldest) = self.order.pop_front()
            {
                self.sums.remove(&oldest);
            }
        }
    }
}

/// What is known of fingerprints, here and elsewhere.
#[derive(Debug)]
pub(super) struct Fingerprints {
    /// How many databases' histories are kept; those that changed longest ago are forgotten first.
    databases_max: usize,
    /// How many sums of each peer are.
    heard_max: usize,
    histories: BTreeMap<DatabaseId, History>,
    /// The databases by their newest slot.
    by_slot: BTreeSet<(Slot, DatabaseId)>,
    heard: BTreeMap<ReplicaId, Heard>,
    divergences: BTreeMap<(DatabaseId, ReplicaId), Divergence>,
    /// The databases of which a peer last told what was found here.
    agreed: BTreeMap<ReplicaId, BTreeSet<DatabaseId>>,
    /// Databases that no majority agrees on, so that each is told once.
    split: BTreeSet<DatabaseId>,
    /// The database whose turn to be told it was last.
    turn: Option<DatabaseId>,
}

impl Fingerprints {
    /// Nothing is known yet.
    pub(super) fn new(databases_max: usize, heard_max: usize) -> Fingerprints {
        Fingerprints {
            databases_max,
            heard_max,
            histories: BTreeMap::new(),
            by_slot: BTreeSet::new(),
            heard: BTreeMap::new(),
            divergences: BTreeMap::new(),
            agreed: BTreeMap::new(),
            split: BTreeSet::new(),
            turn: None,
        }
    }

    /// This replica's database has this sum after this slot.
    pub(super) fn record(&mut self, database: DatabaseId, slot: Slot, sum: [u8; 16]) {
        let history = self.histories.entry(database).or_insert_with(History::new);
        if let Some(last) = history.last() {
            if slot <= last {
                return;
            }
            self.by_slot.remove(&(last, database));
        }
        history.record(slot, sum);
        self.by_slot.insert((slot, database));
        while self.by_slot.len() > self.databases_max {
            if let Some((_, oldest)) = self.by_slot.pop_first() {
                self.histories.remove(&oldest);
            }
        }
    }

    /// The same, where the sum after a slot may come out differently the next time: what is on a disk may change.
    pub(super) fn record_again(&mut self, database: DatabaseId, slot: Slot, sum: [u8; 16]) {
        if self.histories.get(&database).and_then(History::last) == Some(slot) {
            self.histories.remove(&database);
            self.by_slot.remove(&(slot, database));
        }
        self.record(database, slot, sum);
    }

    /// What to tell the peers: the databases that changed last, those whose turn it is, and the marks of the former.
    pub(super) fn tell(&mut self) -> Vec<Told> {
        let latest: Vec<DatabaseId> = self.by_slot.iter().rev().take(TURN_MAX).map(|(_, database)| *database).collect();
        let known: BTreeSet<DatabaseId> = latest.iter().copied().collect();
        let after = self.turn.take();
        let later = self.histories.keys().filter(|database| after.is_none_or(|after| **database > after));
        let due: Vec<DatabaseId> = later.take(TURN_MAX).copied().collect();
        // At the end of the round the next one begins.
        self.turn = if due.len() < TURN_MAX { None } else { due.last().copied() };
        let newest = latest.iter().chain(due.iter().filter(|database| !known.contains(database)));
        let newest = newest.filter_map(|database| {
            let (slot, sum) = self.histories.get(database)?.newest.back()?;
            Some((*database, *slot, *sum))
        });
        let marks = latest.iter().filter_map(|database| Some((*database, self.histories.get(database)?.marks())));
        let marks = marks.flat_map(|(database, marks)| marks.into_iter().map(move |(slot, sum)| (database, slot, sum)));
        newest.chain(marks).take(TOLD_MAX).collect()
    }

    /// Remembers what a member told, and compares it; returns what was not known to differ before.
    pub(super) fn hear(&mut self, replica: ReplicaId, told: &[Told]) -> Vec<Divergence> {
        let mut found = Vec::new();
        let heard = self.heard.entry(replica).or_default();
        let agreed = self.agreed.entry(replica).or_default();
        for &(database, slot, there) in told.iter().take(TOLD_MAX) {
            heard.hear((database, slot), there, self.heard_max);
            let Some(here) = self.histories.get(&database).and_then(|history| history.find(slot)) else { continue };
            let known = self.divergences.get(&(database, replica)).map(|divergence| divergence.slot);
            if here == there {
                if known.is_some_and(|known| known > slot) {
                    continue;
                }
                // Dropped databases may be among those that are counted already.
                if agreed.len() < self.databases_max {
                    agreed.insert(database);
                }
                // A replica that was rebuilt is like the others again.
                if known.is_some() {
                    self.divergences.remove(&(database, replica));
                    self.split.remove(&database);
                }
                continue;
            }
            agreed.remove(&database);
            if known.is_none() {
                let divergence = Divergence { database, slot, here, replica, there };
                self.divergences.insert((database, replica), divergence.clone());
                found.push(divergence);
            }
        }
        found
    }

    /// What the voters, as far as they were heard, say of a place; `None` where there is nothing to decide, or not yet.
    /// That no majority agrees is said once of each database.
    pub(super) fn judge(&mut self, place: Place, me: ReplicaId, voters: &[ReplicaId]) -> Option<Verdict> {
        let here = self.histories.get(&place.0)?.find(place.1)?;
        let mut camps: BTreeMap<[u8; 16], Vec<ReplicaId>> = BTreeMap::new();
        for voter in voters {
            let sum =
                if *voter == me { Some(here) } else { self.heard.get(voter).and_then(|h| h.sums.get(&place)).copied() };
            if let Some(sum) = sum {
                camps.entry(sum).or_default().push(*voter);
            }
        }
        let majority = voters.len() / 2 + 1;
        let silent = voters.len() - camps.values().map(Vec::len).sum::<usize>();
        let largest = camps.values().map(Vec::len).max().unwrap_or(0);
        if let Some((there, camp)) = camps.iter().find(|(sum, camp)| **sum != here && camp.len() >= majority) {
            return Some(Verdict::Minority { majority: camp.clone(), there: *there, here });
        }
        (camps.len() > 1 && largest + silent < majority && self.split.insert(place.0)).then_some(Verdict::Split)
    }

    /// Of how many databases a peer last told what was found here.
    pub(super) fn agreed(&self, replica: ReplicaId) -> usize {
        self.agreed.get(&replica).map_or(0, BTreeSet::len)
    }

    /// Everything that is known to differ.
    pub(super) fn divergences(&self) -> impl Iterator<Item = &Divergence> {
        self.divergences.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATABASES_MAX: usize = 1_000;
    const ME: ReplicaId = ReplicaId(1);

    fn database(name: &str) -> DatabaseId {
        DatabaseId::derive(&d3b::DatabaseName::new(name).unwrap(), "")
    }

    fn voters(count: u32) -> Vec<ReplicaId> {
        (1..=count).map(ReplicaId).collect()
    }

    #[test]
    fn a_difference_at_the_same_slot_is_told_once() {
        let shop = database("shop");
        let mut fingerprints = Fingerprints::new(DATABASES_MAX, DATABASES_MAX);
        fingerprints.record(shop, Slot(3), [3; 16]);
        fingerprints.record(shop, Slot(5), [5; 16]);
        assert!(fingerprints.hear(ReplicaId(2), &[(shop, Slot(3), [3; 16])]).is_empty());
        assert!(fingerprints.hear(ReplicaId(2), &[(shop, Slot(4), [9; 16])]).is_empty(), "unknown here");
        assert_eq!((fingerprints.agreed(ReplicaId(2)), fingerprints.agreed(ReplicaId(3))), (1, 0));
        assert_eq!(fingerprints.hear(ReplicaId(2), &[(shop, Slot(5), [9; 16])]).len(), 1);
        assert!(fingerprints.hear(ReplicaId(2), &[(shop, Slot(5), [9; 16])]).is_empty());
        assert_eq!(fingerprints.divergences().count(), 1);
        fingerprints.hear(ReplicaId(2), &[(shop, Slot(3), [3; 16])]);
        assert_eq!(fingerprints.agreed(ReplicaId(2)), 0, "that they agreed before says nothing");
        fingerprints.record(shop, Slot(7), [7; 16]);
        fingerprints.hear(ReplicaId(2), &[(shop, Slot(7), [7; 16])]);
        assert_eq!(fingerprints.agreed(ReplicaId(2)), 1);
        assert_eq!(fingerprints.divergences().count(), 0, "it was rebuilt");
    }

    /// Replica 1 holds `[1; 16]`; what the others hold is told, `0` for nothing.
    #[track_caller]
    fn check(others: &[u8], expected: Option<&str>) {
        let shop = database("shop");
        let mut fingerprints = Fingerprints::new(DATABASES_MAX, DATABASES_MAX);
        fingerprints.record(shop, Slot(5), [1; 16]);
        for (id, sum) in (2..).map(ReplicaId).zip(others).filter(|(_, sum)| **sum != 0) {
            fingerprints.hear(id, &[(shop, Slot(5), [*sum; 16])]);
        }
        let count = u32::try_from(others.len() + 1).unwrap();
        let verdict = fingerprints.judge((shop, Slot(5)), ME, &voters(count));
        let word = verdict.map(|verdict| match verdict {
            Verdict::Minority { .. } => "minority",
            Verdict::Split => "split",
        });
        assert_eq!(word, expected, "{others:?}");
    }

    #[test]
    fn only_a_majority_of_voters_that_agrees_decides() {
        check(&[2, 2], Some("minority"));
        check(&[1, 2], None);
        check(&[2, 0], None);
        check(&[2, 3], Some("split"));
        check(&[2], Some("split"));
        check(&[1, 2, 2], Some("split"));
        check(&[1, 2, 0], None);
        check(&[2, 2, 2, 1], Some("minority"));
        check(&[2, 2, 1, 1], None);
        check(&[2, 2, 1, 0], None);
    }

    #[test]
    fn a_replica_that_does_not_vote_is_judged_by_those_that_do() {
        let shop = database("shop");
        let mut fingerprints = Fingerprints::new(DATABASES_MAX, DATABASES_MAX);
        fingerprints.record(shop, Slot(5), [1; 16]);
        for id in [2, 3] {
            fingerprints.hear(ReplicaId(id), &[(shop, Slot(5), [2; 16])]);
        }
        let others = [ReplicaId(2), ReplicaId(3), ReplicaId(4)];
        assert!(matches!(fingerprints.judge((shop, Slot(5)), ME, &others), Some(Verdict::Minority { .. })));
    }

    /// Whatever the load, and however far apart they speak, replicas find a slot that all have told in a few seconds.
    #[test]
    fn under_any_load_there_is_a_slot_that_all_tell() {
        for rate in [1, 40, 700, 9_000, 60_000] {
            let shop = database("shop");
            let mut fingerprints = Fingerprints::new(DATABASES_MAX, DATABASES_MAX);
            let mut others =
                [Fingerprints::new(DATABASES_MAX, DATABASES_MAX), Fingerprints::new(DATABASES_MAX, DATABASES_MAX)];
            let mut found = None;
            for slot in 1..=rate * 8 {
                let sum = if slot > rate * 2 { [2; 16] } else { [1; 16] };
                fingerprints.record(shop, Slot(slot), [1; 16]);
                for (index, other) in others.iter_mut().enumerate() {
                    other.record(shop, Slot(slot), sum);
                    // They speak once a second, each at another moment.
                    if slot % rate == rate * index as u64 / 2 {
                        let told = other.tell();
                        fingerprints.hear(ReplicaId(2 + u32::try_from(index).unwrap()), &told);
                        let verdicts =
                            told.iter().find_map(|told| fingerprints.judge((told.0, told.1), ME, &voters(3)));
                        found = found.or(verdicts.map(|_| slot));
                    }
                }
            }
            let found = found.unwrap_or_else(|| panic!("at {rate} a second it is found"));
            assert!(found <= rate * 8 && found > rate * 2, "{found} at {rate}");
        }
    }

    #[test]
    fn memory_is_bounded_by_forgetting_the_oldest_and_everybody_has_a_turn() {
        let mut fingerprints = Fingerprints::new(DATABASES_MAX, DATABASES_MAX);
        for n in 0..DATABASES_MAX as u64 + 10 {
            fingerprints.record(database(&format!("db{n}")), Slot(n + 1), [0; 16]);
        }
        assert_eq!(fingerprints.histories.len(), DATABASES_MAX);
        let told: BTreeSet<DatabaseId> =
            (0..10).flat_map(|_| fingerprints.tell()).map(|(database, ..)| database).collect();
        assert_eq!(told.len(), DATABASES_MAX);
        assert!(fingerprints.tell().len() <= TOLD_MAX);
        for n in 0..DATABASES_MAX as u64 + 10 {
            fingerprints.hear(ReplicaId(2), &[(database("any"), Slot(n), [0; 16])]);
        }
        let heard = &fingerprints.heard[&ReplicaId(2)];
        assert_eq!((heard.sums.len(), heard.order.len()), (DATABASES_MAX, DATABASES_MAX));
    }
}
