//! The disk of a replica in a model: what is here is durable.

use std::collections::BTreeMap;

use d3b::Slot;
use d3b_paxos::types::{Ballot, Configuration, Record};
use d3b_paxos::{Storage, StorageError};
use d3b_tests::durability;

/// A disk: what was persisted, readable by the core.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Disk {
    pub records: BTreeMap<Slot, Record>,
    pub promised: Option<Ballot>,
    /// The configuration that was adopted last, and whether it was as it was chosen; the founding one, if none was.
    pub configuration: Option<(Configuration, bool)>,
}

impl durability::Disk for Disk {
    fn promised(&self) -> Ballot {
        self.promised.unwrap_or(Ballot::ZERO)
    }

    fn holds(&self, slot: Slot, condition: impl FnOnce(&Record) -> bool) -> bool {
        self.records.get(&slot).is_some_and(condition)
    }
}

impl Storage for Disk {
    fn read(&self, from: Slot, upto: Slot, _bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        Ok(if from > upto {
            Vec::new()
        } else {
            self.records.range(from..=upto).map(|(_, record)| record.clone()).collect()
        })
    }
}
