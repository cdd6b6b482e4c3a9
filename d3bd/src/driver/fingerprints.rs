//! The fingerprints of this replica's databases, compared with those that its peers tell.

use std::collections::{BTreeMap, VecDeque};

use d3b::{DatabaseId, ReplicaId, Slot};

/// How many slots back a database's fingerprints are kept for comparison.
const HISTORY_MAX: usize = 256;
/// How many databases' histories are kept; those that changed longest ago are forgotten first.
const DATABASES_MAX: usize = 4_096;
/// How many fingerprints one message tells.
const TOLD_MAX: usize = 256;

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

/// What is known of fingerprints, here and elsewhere.
#[derive(Debug, Default)]
pub(super) struct Fingerprints {
    histories: BTreeMap<DatabaseId, VecDeque<(Slot, [u8; 16])>>,
    /// The databases by their newest slot.
    by_slot: BTreeMap<Slot, DatabaseId>,
    divergences: BTreeMap<(DatabaseId, ReplicaId), Divergence>,
}

impl Fingerprints {
    /// This replica's database has this chain after this slot.
    pub(super) fn record(&mut self, database: DatabaseId, slot: Slot, fingerprint: [u8; 16]) {
        let history = self.histories.entry(database).or_default();
        if let Some(&(last, _)) = history.back() {
            if slot <= last {
                return;
            }
            self.by_slot.remove(&last);
        }
        history.push_back((slot, fingerprint));
        if history.len() > HISTORY_MAX {
            history.pop_front();
        }
        self.by_slot.insert(slot, database);
        while self.by_slot.len() > DATABASES_MAX {
            if let Some((_, oldest)) = self.by_slot.pop_first() {
                self.histories.remove(&oldest);
            }
        }
    }

    /// The newest chains, for a peer to compare.
    pub(super) fn tell(&self) -> Vec<(DatabaseId, Slot, [u8; 16])> {
        self.by_slot
            .iter()
            .rev()
            .take(TOLD_MAX)
            .filter_map(|(slot, database)| {
                let (_, fingerprint) = self.histories.get(database)?.back()?;
                Some((*database, *slot, *fingerprint))
            })
            .collect()
    }

    /// Compares what a peer told; returns what was not known to differ before.
    pub(super) fn compare(&mut self, replica: ReplicaId, told: &[(DatabaseId, Slot, [u8; 16])]) -> Vec<Divergence> {
        let mut found = Vec::new();
        for &(database, slot, there) in told.iter().take(TOLD_MAX) {
            let Some(history) = self.histories.get(&database) else { continue };
            let Ok(index) = history.binary_search_by_key(&slot, |(slot, _)| *slot) else { continue };
            let here = history[index].1;
            if here != there && !self.divergences.contains_key(&(database, replica)) {
                let divergence = Divergence { database, slot, here, replica, there };
                self.divergences.insert((database, replica), divergence.clone());
                found.push(divergence);
            }
        }
        found
    }

    /// Everything that was found to differ since this process started.
    pub(super) fn divergences(&self) -> Vec<Divergence> {
        self.divergences.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(name: &str) -> DatabaseId {
        DatabaseId::derive(&d3b::DatabaseName::new(name).unwrap(), "")
    }

    #[test]
    fn a_difference_at_the_same_slot_is_told_once() {
        let shop = database("shop");
        let mut fingerprints = Fingerprints::default();
        fingerprints.record(shop, Slot(3), [3; 16]);
        fingerprints.record(shop, Slot(5), [5; 16]);
        assert!(fingerprints.compare(ReplicaId(2), &[(shop, Slot(3), [3; 16])]).is_empty());
        assert!(fingerprints.compare(ReplicaId(2), &[(shop, Slot(4), [9; 16])]).is_empty(), "unknown here");
        assert_eq!(fingerprints.compare(ReplicaId(2), &[(shop, Slot(5), [9; 16])]).len(), 1);
        assert!(fingerprints.compare(ReplicaId(2), &[(shop, Slot(5), [9; 16])]).is_empty());
        assert_eq!(fingerprints.divergences().len(), 1);
    }

    #[test]
    fn memory_is_bounded_by_forgetting_the_oldest() {
        let mut fingerprints = Fingerprints::default();
        for n in 0..DATABASES_MAX as u64 + 10 {
            fingerprints.record(database(&format!("db{n}")), Slot(n + 1), [0; 16]);
        }
        assert_eq!(fingerprints.histories.len(), DATABASES_MAX);
        assert_eq!(fingerprints.tell().len(), TOLD_MAX);
    }
}
