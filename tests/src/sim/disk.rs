//! The disk of a simulated replica: the log, the identity, the blobs. What is here is durable; what is being written is
//! not here yet.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use d3b::{BlobReference, Digest, DiskId, Slot};
use d3b_engine::Blobs;
use d3b_paxos::types::{Ballot, Configuration, PersistId, Record};
use d3b_paxos::{PersistBatch, Storage, StorageError};
use d3bd::log::Proof;

use crate::durability;

/// The simulated disk's word that a batch is durable.
#[derive(Debug)]
pub struct Written(PersistId);

impl Proof for Written {
    fn id(&self) -> PersistId {
        self.0
    }
}

/// A record as it lies on the disk.
#[derive(Debug, Clone)]
struct Stored {
    record: Record,
    /// Its checksum no longer fits.
    damaged: bool,
}

#[derive(Debug)]
struct Contents {
    promised: Ballot,
    /// The configuration, and whether it was adopted when it was chosen.
    configuration: Option<(Configuration, bool)>,
    records: BTreeMap<Slot, Stored>,
    /// The first slot that it holds.
    base: Slot,
}

/// The log's file. Clones are views of the same file.
#[derive(Debug, Clone)]
pub struct LogFile {
    contents: Rc<RefCell<Contents>>,
}

impl LogFile {
    fn blank() -> LogFile {
        let contents =
            Contents { promised: Ballot::ZERO, configuration: None, records: BTreeMap::new(), base: Slot(1) };
        LogFile { contents: Rc::new(RefCell::new(contents)) }
    }

    /// The highest ballot that was made durable.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.contents.borrow().promised
    }

    /// The configuration that was adopted last.
    #[must_use]
    pub fn configuration(&self) -> Option<Configuration> {
        self.contents.borrow().configuration.as_ref().map(|(configuration, _)| configuration.clone())
    }

    /// Everything up to here was held as it was chosen.
    #[must_use]
    pub fn held(&self) -> Slot {
        let contents = self.contents.borrow();
        let held = contents.configuration.as_ref().filter(|(_, held)| *held);
        held.map_or(Slot::ZERO, |(configuration, _)| configuration.slot)
    }

    /// Writes a configuration that its replica was told of.
    pub fn form(&self, configuration: Configuration) {
        self.contents.borrow_mut().configuration = Some((configuration, false));
    }

    /// The first slot that it holds.
    #[must_use]
    pub fn base(&self) -> Slot {
        self.contents.borrow().base
    }

    /// Drops what lies below a slot.
    pub fn cut(&self, base: Slot) {
        let mut contents = self.contents.borrow_mut();
        contents.base = contents.base.max(base);
        let base = contents.base;
        contents.records = contents.records.split_off(&base);
    }

    /// Begins it anew behind a snapshot, by the rules of the shipped log; false if it begins later already. A careless one
    /// takes every configuration for one that was held.
    #[must_use]
    pub fn begin_at(&self, record: &Record, configuration: &Configuration, careless: bool) -> bool {
        if self.base() > record.slot {
            return false;
        }
        self.cut(record.slot);
        let mut contents = self.contents.borrow_mut();
        let fresh = Stored { record: record.clone(), damaged: false };
        let stored = contents.records.entry(record.slot).or_insert_with(|| fresh.clone());
        if stored.record.ballot < record.ballot {
            *stored = fresh;
        }
        let newer = contents.configuration.as_ref().is_none_or(|(known, _)| known.epoch < configuration.epoch);
        if newer {
            let held = configuration.slot <= record.slot || careless;
            contents.configuration = Some((configuration.clone(), held));
        }
        true
    }

    /// The last slot that it holds.
    #[must_use]
    pub fn last(&self) -> Slot {
        self.contents.borrow().records.last_key_value().map_or(Slot::ZERO, |(slot, _)| *slot)
    }

    /// Makes a batch durable, all of it at once, as a transaction does.
    pub fn write(&self, batch: &PersistBatch) -> Written {
        let mut contents = self.contents.borrow_mut();
        if let Some(promised) = batch.promised {
            contents.promised = promised;
        }
        if let Some(configuration) = &batch.configuration {
            contents.configuration = Some((configuration.clone(), true));
        }
        for record in &batch.records {
            contents.records.insert(record.slot, Stored { record: record.clone(), damaged: false });
        }
        Written(batch.id)
    }

    /// Flips a bit of a record; false where there is none.
    pub fn damage(&self, slot: Slot) -> bool {
        match self.contents.borrow_mut().records.get_mut(&slot) {
            Some(stored) => {
                stored.damaged = true;
                true
            }
            None => false,
        }
    }

    /// The blobs and whatever else the records from a slot on name.
    pub fn visit(&self, from: Slot, mut visit: impl FnMut(&Record)) {
        self.contents.borrow().records.range(from..).for_each(|(_, stored)| visit(&stored.record));
    }
}

impl durability::Disk for LogFile {
    fn promised(&self) -> Ballot {
        self.promised()
    }

    fn holds(&self, slot: Slot, condition: impl FnOnce(&Record) -> bool) -> bool {
        // What was cut was chosen, and applied durably.
        let contents = self.contents.borrow();
        slot < contents.base || contents.records.get(&slot).is_some_and(|stored| condition(&stored.record))
    }
}

impl Storage for LogFile {
    fn read(&self, from: Slot, upto: Slot, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        let mut records = Vec::new();
        let mut bytes = 0;
        if from > upto {
            return Ok(records);
        }
        if from < self.base() {
            return Err(StorageError {
                message: format!("slot {from} lies before the log's beginning, {}", self.base()),
            });
        }
        for (slot, stored) in self.contents.borrow().records.range(from..=upto) {
            if stored.damaged {
                return Err(StorageError { message: format!("the record of slot {slot} is damaged") });
            }
            bytes += stored.record.entry.size();
            if bytes > bytes_max && !records.is_empty() {
                break;
            }
            records.push(stored.record.clone());
        }
        if from <= self.last() && records.first().is_none_or(|record| record.slot != from) {
            return Err(StorageError { message: format!("the log has no record for slot {from}") });
        }
        Ok(records)
    }
}

/// The blobs on a disk.
#[derive(Debug, Clone, Default)]
pub struct BlobFiles {
    /// When each one's grace period last began, in the run's microseconds.
    renewed_at: BTreeMap<Digest, u64>,
}

impl BlobFiles {
    /// Puts a blob there, or begins its grace period anew.
    pub fn put(&mut self, reference: BlobReference, now: u64) {
        self.renewed_at.insert(reference.digest, now);
    }

    /// Begins a blob's grace period anew; false where it is not there.
    pub fn renew(&mut self, digest: &Digest, now: u64) -> bool {
        self.renewed_at.get_mut(digest).map(|renewed_at| *renewed_at = now).is_some()
    }

    /// Whether it is there.
    #[must_use]
    pub fn holds(&self, digest: &Digest) -> bool {
        self.renewed_at.contains_key(digest)
    }

    /// Drops what nothing refers to and was not renewed within the grace period.
    pub fn collect(&mut self, referenced: impl Fn(&Digest) -> bool, grace: u64, now: u64) {
        self.renewed_at.retain(|digest, renewed_at| referenced(digest) || *renewed_at + grace > now);
    }
}

impl Blobs for BlobFiles {
    fn path(&self, _digest: &Digest) -> Option<PathBuf> {
        None
    }
}

/// Everything of a replica that survives its process, but for the state machine's files.
#[derive(Debug)]
pub struct Disk {
    /// Made when it was formatted.
    pub id: DiskId,
    /// The Paxos log.
    pub log: LogFile,
    /// The blobs.
    pub blobs: BlobFiles,
}

impl Disk {
    /// A disk that was just formatted.
    #[must_use]
    pub fn blank(id: DiskId) -> Disk {
        Disk { id, log: LogFile::blank(), blobs: BlobFiles::default() }
    }
}
