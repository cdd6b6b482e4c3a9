//! Reading what is durable: the newest records from memory, older ones from the file.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use d3b::{DiskId, Slot};
use d3b_paxos::types::Record;
use d3b_paxos::{Storage, StorageError};
use rusqlite::Connection;

use super::extent::{Extent, Size};
use super::{Checked, LogError, check, store};

/// How many bytes of the newest records are kept in memory.
const CACHE_BYTES: usize = 64 << 20;

/// The newest durable records, shared by the writer and all readers.
#[derive(Debug)]
pub(super) struct Cache {
    newest: Mutex<Newest>,
}

/// A run of records without gaps that ends with the log.
#[derive(Debug)]
struct Newest {
    records: VecDeque<Record>,
    bytes: usize,
    /// The first slot that counts.
    base: Slot,
    /// The last slot that is durable.
    last: Slot,
    /// How large and how old everything is.
    extent: Extent,
}

impl Cache {
    pub(super) fn new(base: Slot, last: Slot) -> Cache {
        let extent = Extent::default();
        Cache { newest: Mutex::new(Newest { records: VecDeque::new(), bytes: 0, base, last, extent }) }
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().expect("no panic while held")
    }

    pub(super) fn ends(&self) -> (Slot, Slot) {
        let newest = self.newest();
        (newest.base, newest.last)
    }

    /// Everything below a slot is on its way out.
    pub(super) fn cut(&self, base: Slot) {
        let mut newest = self.newest();
        newest.base = newest.base.max(base);
        newest.extent.cut(base);
        while newest.records.front().is_some_and(|record| record.slot < base) {
            if let Some(record) = newest.records.pop_front() {
                newest.bytes -= record.entry.size();
            }
        }
    }

    /// Takes over what was found out about the records that were there at the start.
    pub(super) fn complete(&self, older: Extent) {
        let mut newest = self.newest();
        let base = newest.base;
        newest.extent.complete(older);
        newest.extent.cut(base);
    }

    /// Takes over what is durable now.
    pub(super) fn add(&self, records: Vec<Record>) {
        let mut newest = self.newest();
        for record in records {
            if record.slot > newest.last {
                newest.extent.add(Size::of(&record));
            }
            newest.add(record);
        }
    }

    /// The records from `from` up, if the first of them is here; `None` if they must be read from the file.
    fn read(&self, from: Slot, upto: Slot, bytes_max: usize) -> Option<Vec<Record>> {
        let newest = self.newest();
        if from > newest.last {
            return Some(Vec::new());
        }
        let first = newest.records.front()?.slot;
        let skipped = usize::try_from(from.0.checked_sub(first.0)?).ok()?;
        let mut bytes = 0;
        let mut read = Vec::new();
        for record in newest.records.iter().skip(skipped).take_while(|record| record.slot <= upto) {
            bytes += record.entry.size();
            if bytes > bytes_max && !read.is_empty() {
                break;
            }
            read.push(record.clone());
        }
        Some(read)
    }
}

impl Newest {
    fn add(&mut self, record: Record) {
        self.last = self.last.max(record.slot);
        let next = self.records.back().map(|last| last.slot.next());
        match next {
            // Accepted again, at a higher ballot: it takes the old one's place.
            Some(next) if record.slot < next => {
                let first = self.records.front().map_or(record.slot, |first| first.slot);
                let Some(index) = record.slot.0.checked_sub(first.0) else { return };
                if let Some(old) = usize::try_from(index).ok().and_then(|index| self.records.get_mut(index)) {
                    self.bytes = self.bytes - old.entry.size() + record.entry.size();
                    *old = record;
                }
                return;
            }
            Some(next) if record.slot > next => {
                self.records.clear();
                self.bytes = 0;
            }
            // What stands behind the first record of an empty cache is in the file only.
            None if record.slot < self.last => return,
            Some(_) | None => {}
        }
        self.bytes += record.entry.size();
        self.records.push_back(record);
        while self.bytes > CACHE_BYTES && self.records.len() > 1 {
            if let Some(oldest) = self.records.pop_front() {
                self.bytes -= oldest.entry.size();
            }
        }
    }
}

/// Reads durable records. Clones share the memory, and each has a connection of its own once it needs one.
pub struct LogReader {
    directory: PathBuf,
    cache: Arc<Cache>,
    file: Mutex<Option<(Connection, DiskId)>>,
}

impl LogReader {
    pub(super) fn new(directory: &Path, cache: Arc<Cache>) -> Result<LogReader, LogError> {
        let file = store::open_reader(directory)?;
        Ok(LogReader { directory: directory.to_owned(), cache, file: Mutex::new(Some(file)) })
    }

    /// The last slot that is durable; 0 where there is none.
    #[must_use]
    pub fn last(&self) -> Slot {
        self.cache.ends().1
    }

    /// The first slot that can be read.
    #[must_use]
    pub fn base(&self) -> Slot {
        self.cache.ends().0
    }

    /// Where the log is to begin so that it keeps no more than so many bytes, and nothing that was stamped before that
    /// log time, in milliseconds since 1970; both roughly. `None` where it need not be cut, or nothing is known yet.
    #[must_use]
    pub fn cut_due(&self, bytes_max: u64, oldest_ms: u64) -> Option<Slot> {
        self.cache.newest().extent.cut_due(bytes_max, oldest_ms)
    }

    /// The records of the slots `from..=upto`, as many as fit into `bytes_max`, but one if there is any.
    ///
    /// # Errors
    /// [`LogError::Compacted`] below the base; or it is damaged or cannot be read.
    pub fn records(&self, from: Slot, upto: Slot, bytes_max: usize) -> Result<Vec<Record>, LogError> {
        // Slots are counted from 1.
        let from = from.max(Slot(1));
        if from > upto {
            return Ok(Vec::new());
        }
        self.check_base(from)?;
        match self.cache.read(from, upto, bytes_max) {
            Some(records) => Ok(records),
            // What was cut off while it was being read is not damage.
            None => self.read_file(from, upto, bytes_max).map_err(|error| self.check_base(from).err().unwrap_or(error)),
        }
    }

    fn check_base(&self, slot: Slot) -> Result<(), LogError> {
        let base = self.base();
        if slot < base { Err(LogError::Compacted { slot, base }) } else { Ok(()) }
    }

    /// Reads durable records from the file, whatever is in memory, to see whether they are what was written.
    #[must_use]
    pub fn check(&self, from: Slot, upto: Slot, bytes_max: u64) -> Checked {
        let mut file = self.file.lock().expect("no panic while held");
        if file.is_none() {
            match store::open_reader(&self.directory) {
                Ok(open) => *file = Some(open),
                Err(error) => return Checked::Unread(error.to_string()),
            }
        }
        match &*file {
            Some((connection, disk)) => check::check(connection, *disk, from.max(Slot(1)), upto, bytes_max),
            None => Checked::Unread("it is not open".to_owned()),
        }
    }

    fn read_file(&self, from: Slot, upto: Slot, bytes_max: usize) -> Result<Vec<Record>, LogError> {
        let mut file = self.file.lock().expect("no panic while held");
        let (connection, disk) = match &mut *file {
            Some(open) => open,
            closed => closed.insert(store::open_reader(&self.directory)?),
        };
        let records = store::read(connection, *disk, from, upto, bytes_max)?;
        match records.first() {
            Some(first) if first.slot == from => Ok(records),
            None if from > self.last() => Ok(records),
            Some(_) | None => Err(store::missing(from)),
        }
    }
}

impl Clone for LogReader {
    fn clone(&self) -> LogReader {
        LogReader { directory: self.directory.clone(), cache: Arc::clone(&self.cache), file: Mutex::new(None) }
    }
}

impl fmt::Debug for LogReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogReader").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Storage for LogReader {
    fn read(&self, from: Slot, upto: Slot, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        self.records(from, upto, bytes_max).map_err(|error| StorageError { message: error.to_string() })
    }
}
