//! The disk of a replica in a scene: what is here is durable.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use d3b::Slot;
use d3b_paxos::types::{Ballot, Record};
use d3b_paxos::{PersistBatch, Storage, StorageError};
use d3b_tests::durability;

/// A log in memory. Clones are views of the same one: the replica reads what the world has written.
#[derive(Debug, Clone)]
pub struct Disk {
    contents: Rc<RefCell<Contents>>,
}

#[derive(Debug)]
struct Contents {
    promised: Ballot,
    records: BTreeMap<Slot, Record>,
}

impl Disk {
    /// A disk on which nothing was written yet.
    pub fn blank() -> Disk {
        let contents = Contents { promised: Ballot::ZERO, records: BTreeMap::new() };
        Disk { contents: Rc::new(RefCell::new(contents)) }
    }

    /// Makes a batch durable, all of it at once.
    pub fn write(&self, batch: &PersistBatch) {
        let mut contents = self.contents.borrow_mut();
        if let Some(promised) = batch.promised {
            contents.promised = promised;
        }
        contents.records.extend(batch.records.iter().map(|record| (record.slot, record.clone())));
    }

    /// The promise.
    pub fn promised(&self) -> Ballot {
        self.contents.borrow().promised
    }

    /// The last slot that it holds.
    pub fn last(&self) -> Slot {
        self.contents.borrow().records.last_key_value().map_or(Slot::ZERO, |(slot, _)| *slot)
    }

    /// A slot's record.
    pub fn record(&self, slot: Slot) -> Option<Record> {
        self.contents.borrow().records.get(&slot).cloned()
    }
}

impl durability::Disk for Disk {
    fn promised(&self) -> Ballot {
        self.promised()
    }

    fn holds(&self, slot: Slot, condition: impl FnOnce(&Record) -> bool) -> bool {
        self.contents.borrow().records.get(&slot).is_some_and(condition)
    }
}

impl Storage for Disk {
    fn read(&self, from: Slot, upto: Slot, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        if from > upto {
            return Ok(records);
        }
        for record in self.contents.borrow().records.range(from..=upto).map(|(_, record)| record) {
            bytes += record.entry.size();
            if !records.is_empty() && bytes > bytes_max {
                break;
            }
            records.push(record.clone());
        }
        Ok(records)
    }
}
