//! The disk of a replica in a scene: what is here is durable.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use d3b::Slot;
use d3b_paxos::types::{Ballot, Configuration, Record};
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
    /// The configuration that was adopted last, and whether that was as it was chosen.
    configuration: Configuration,
    held: bool,
    /// Where the log begins.
    base: Slot,
    records: BTreeMap<Slot, Record>,
}

impl Disk {
    /// A disk on which nothing was written yet but a configuration, as its replica was told of it.
    pub fn blank(configuration: Configuration) -> Disk {
        let (promised, base, records) = (Ballot::ZERO, Slot(1), BTreeMap::new());
        let contents = Contents { promised, configuration, held: false, base, records };
        Disk { contents: Rc::new(RefCell::new(contents)) }
    }

    /// Makes a batch durable, all of it at once.
    pub fn write(&self, batch: &PersistBatch) {
        let mut contents = self.contents.borrow_mut();
        if let Some(promised) = batch.promised {
            contents.promised = promised;
        }
        if let Some(configuration) = &batch.configuration {
            (contents.configuration, contents.held) = (configuration.clone(), true);
        }
        contents.records.extend(batch.records.iter().map(|record| (record.slot, record.clone())));
    }

    /// Forgets what lies below a slot.
    pub fn cut(&self, base: Slot) {
        let mut contents = self.contents.borrow_mut();
        contents.base = contents.base.max(base);
        contents.records = contents.records.split_off(&base);
    }

    /// Takes over what a snapshot brings: the record of its slot, where the log begins then, and its configuration.
    pub fn install(&self, record: Record, configuration: Configuration) {
        self.cut(record.slot);
        let mut contents = self.contents.borrow_mut();
        if contents.configuration.epoch < configuration.epoch {
            contents.held = configuration.slot <= record.slot;
            contents.configuration = configuration;
        }
        if contents.records.get(&record.slot).is_none_or(|held| held.ballot < record.ballot) {
            contents.records.insert(record.slot, record);
        }
    }

    /// The configuration that was adopted last.
    pub fn configuration(&self) -> Configuration {
        self.contents.borrow().configuration.clone()
    }

    /// Everything up to here was held as it was chosen when the configuration was adopted.
    pub fn held(&self) -> Slot {
        let contents = self.contents.borrow();
        if contents.held { contents.configuration.slot } else { Slot::ZERO }
    }

    /// The first slot that it holds.
    pub fn base(&self) -> Slot {
        self.contents.borrow().base
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
