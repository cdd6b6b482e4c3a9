//! A disk in memory.

use std::collections::BTreeMap;

use d3b::Slot;
use d3b_paxos::types::{Ballot, Configuration, Record};
use d3b_paxos::{PersistBatch, Storage, StorageError};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Disk {
    pub promised: Ballot,
    /// The configuration that was adopted last, and whether it was as it was chosen.
    pub configuration: Option<(Configuration, bool)>,
    /// Where the log begins.
    pub base: Slot,
    pub records: BTreeMap<Slot, Record>,
}

impl Disk {
    pub fn fresh() -> Disk {
        Disk { promised: Ballot::ZERO, configuration: None, base: Slot(1), records: BTreeMap::new() }
    }

    pub fn write(&mut self, batch: &PersistBatch) {
        if let Some(promised) = batch.promised {
            self.promised = promised;
        }
        if let Some(configuration) = &batch.configuration {
            self.configuration = Some((configuration.clone(), true));
        }
        for record in &batch.records {
            self.records.insert(record.slot, record.clone());
        }
    }

    /// Forgets what lies below a slot.
    pub fn cut(&mut self, base: Slot) {
        self.base = self.base.max(base);
        self.records = self.records.split_off(&self.base);
    }

    /// Takes over what a snapshot brings: its record, where the log begins then, and its configuration.
    pub fn install(&mut self, record: Record, configuration: &Configuration) {
        self.cut(record.slot);
        let held = self.records.get(&record.slot).map(|held| held.ballot);
        if held.is_none_or(|held| held < record.ballot) {
            self.records.insert(record.slot, record);
        }
        if self.configuration.as_ref().is_none_or(|(own, _)| own.epoch < configuration.epoch) {
            // Whoever gave the snapshot may have been told of it, and be behind it still.
            self.configuration = Some((configuration.clone(), configuration.slot <= self.base));
        }
    }

    /// Everything up to here was held as it was chosen.
    pub fn held(&self) -> Slot {
        let held = self.configuration.as_ref().filter(|(_, held)| *held);
        held.map_or(Slot::ZERO, |(configuration, _)| configuration.slot)
    }

    pub fn last(&self) -> Slot {
        self.records.last_key_value().map_or(Slot::ZERO, |(slot, _)| *slot)
    }
}

impl Storage for Disk {
    fn read(&self, from: Slot, upto: Slot, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        if from > upto {
            return Ok(records);
        }
        for record in self.records.range(from..=upto).map(|(_, record)| record) {
            bytes += record.entry.size();
            if !records.is_empty() && bytes > bytes_max {
                break;
            }
            records.push(record.clone());
        }
        Ok(records)
    }
}
