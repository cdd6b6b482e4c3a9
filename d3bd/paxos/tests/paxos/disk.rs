//! A disk in memory.

use std::collections::BTreeMap;

use d3b::Slot;
use d3b_paxos::types::{Ballot, Record};
use d3b_paxos::{PersistBatch, Storage, StorageError};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Disk {
    pub promised: Ballot,
    pub records: BTreeMap<Slot, Record>,
}

impl Disk {
    pub fn fresh() -> Disk {
        Disk { promised: Ballot::ZERO, records: BTreeMap::new() }
    }

    pub fn write(&mut self, batch: &PersistBatch) {
        if let Some(promised) = batch.promised {
            self.promised = promised;
        }
        for record in &batch.records {
            self.records.insert(record.slot, record.clone());
        }
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
