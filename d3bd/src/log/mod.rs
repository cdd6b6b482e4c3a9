//! The durable Paxos log of a replica, and whose directory it is.
//!
//! `DATA/log.sqlite3` is a SQLite database in WAL mode with `synchronous=FULL`: storage whose crash behaviour is
//! tested better than ours could be, and that anyone can look into. One thread writes it, one transaction for each
//! batch that the core hands out; what arrives meanwhile is the core's next batch. Another thread moves the WAL into
//! the database, off the commit path, so that it begins anew and is written where it has been written before.
//!
//! What was written is proved by a [`Durable`], which only this module makes, and which sending a message that depends
//! on the write requires.

mod check;
mod directory;
mod extent;
mod preallocate;
mod reader;
mod recovery;
mod store;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d3b::{DiskId, ReplicaId, Slot};
use d3b_paxos::types::{Ballot, Configuration, PersistId};

pub use check::Checked;
pub use reader::LogReader;
pub use recovery::Survivor;
pub use store::Beginning;
pub use writer::Log;

use directory::Directory;
use reader::Cache;
use store::Store;

/// Proof that a batch, and everything before it, is on disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Durable {
    id: PersistId,
}

/// Proof that a batch is durable. Only what wrote it can make one: the log makes [`Durable`], a simulated disk its own.
pub trait Proof: std::fmt::Debug {
    /// Which batch.
    fn id(&self) -> PersistId;
}

impl Proof for Durable {
    fn id(&self) -> PersistId {
        self.id
    }
}

/// Called on the writer's thread after each batch, in order; after an error it is not called again.
pub type OnDurable = Box<dyn Fn(Result<Durable, LogError>) + Send>;

/// A log that was opened, and what it says of this replica.
#[derive(Debug)]
pub struct Opened {
    /// For writing.
    pub log: Log,
    /// For reading.
    pub reader: LogReader,
    /// Made when the directory was formatted.
    pub disk: DiskId,
    /// The cluster's members; `None` before it is formed.
    pub configuration: Option<Configuration>,
    /// Everything up to here is known to be chosen, and to be held as it was chosen.
    pub held: Slot,
    /// The highest ballot that was promised.
    pub promised: Ballot,
    /// The first slot that the log holds, or will hold.
    pub base: Slot,
    /// The last slot that it holds; 0 where it is empty.
    pub last: Slot,
    /// The last slot that databases may have applied although the log does not reach it yet: they came with a snapshot.
    pub ahead: Slot,
}

/// Why the log cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// Another process has it.
    #[error("the data directory {} is in use by {holder} (hint: one directory serves one replica; stop that process first)", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// "process 17", or "another process".
        holder: String,
    },
    /// It is another replica's.
    #[error("the data directory {} belongs to replica {found}, and this is replica {wanted} (hint: check --id and --data-dir)", path.display())]
    ForeignReplica {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who came.
        wanted: ReplicaId,
    },
    /// It was written by another version of d3b.
    #[error("the data directory {} has format version {found}, and this build knows version {known} (hint: use the version of d3bd that wrote it, or a newer one)", path.display())]
    UnknownVersion {
        /// The data directory.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The only one that this build reads.
        known: u32,
    },
    /// It holds something that d3bd did not make.
    #[error("the data directory {} is not empty and holds no d3b log, but {entry:?} (hint: name an empty or new directory)", path.display())]
    NotOurs {
        /// The data directory.
        path: PathBuf,
        /// Something in it.
        entry: String,
    },
    /// There is no log to read.
    #[error("there is no d3b log in {} (hint: name the directory that a replica was started with)", path.display())]
    Missing {
        /// The data directory.
        path: PathBuf,
    },
    /// What is on disk is not what was written.
    #[error("the log is damaged {place}: {problem} (hint: this replica must not vote with it; replace the replica)")]
    Damaged {
        /// Where: "at slot 7".
        place: String,
        /// How it shows.
        problem: String,
    },
    /// SQLite could not read or write it.
    #[error("the log failed while {doing}: {message}")]
    Sqlite {
        /// What was tried.
        doing: &'static str,
        /// SQLite's words.
        message: String,
    },
    /// The file system refused.
    #[error("the data directory {} failed while {doing}: {message}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's words.
        message: String,
    },
    /// It was there once.
    #[error("slot {slot} is not held any more: the log begins at slot {base}")]
    Compacted {
        /// What was asked for.
        slot: Slot,
        /// The first slot that is held.
        base: Slot,
    },
    /// An earlier write failed; nothing is written any more.
    #[error("the log was closed after a failed write")]
    Poisoned,
}

/// Opens the log in a data directory, which is formatted for this replica if it is empty.
///
/// # Errors
/// It is locked, another's, of another version, foreign, damaged, or unreadable; nothing in it was changed then.
pub fn open(
    directory: &Path,
    replica: ReplicaId,
    fresh_disk: DiskId,
    on_durable: OnDurable,
) -> Result<Opened, LogError> {
    lock(directory, replica, fresh_disk)?.start(on_durable)
}

/// Like [`open`], but without beginning to use it: a snapshot may have to be installed first.
///
/// # Errors
/// Those of [`open`].
pub fn lock(directory: &Path, replica: ReplicaId, fresh_disk: DiskId) -> Result<Locked, LogError> {
    let held = Directory::open(directory)?;
    let store = Store::open(directory, replica, fresh_disk, held.is_fresh())?;
    Ok(Locked { path: directory.to_owned(), held, store })
}

/// A log that is this process's own, and that nobody uses yet.
#[derive(Debug)]
pub struct Locked {
    path: PathBuf,
    held: Directory,
    store: Store,
}

impl Locked {
    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.path
    }

    /// Makes the log one that begins where a snapshot ends, in one transaction; doing it again changes nothing. What this
    /// replica has accepted behind that, and what it has promised, stays. False, and nothing is done, where the log
    /// begins further on already.
    ///
    /// # Errors
    /// It could not be written.
    pub fn begin_at(&mut self, beginning: &Beginning) -> Result<bool, LogError> {
        self.store.begin_at(beginning)
    }

    /// Begins to use it.
    ///
    /// # Errors
    /// It is damaged or cannot be read.
    pub fn start(self, on_durable: OnDurable) -> Result<Opened, LogError> {
        let Locked { path, held, store } = self;
        let identity = store.identity()?;
        let (base, last, ahead) = (store.base()?, store.last()?, store.ahead()?);
        if last < base && base > Slot(1) {
            // A log that was cut keeps the record that it begins with.
            return Err(store::missing(base));
        }
        let cache = Arc::new(Cache::new(base, last));
        let reader = LogReader::new(&path, Arc::clone(&cache))?;
        let log = Log::start(store, held, cache, on_durable)?;
        let held = identity.configuration.as_ref().filter(|adopted| adopted.held);
        let held = held.map_or(Slot::ZERO, |adopted| adopted.configuration.slot);
        Ok(Opened {
            log,
            reader,
            disk: identity.disk,
            configuration: identity.configuration.map(|adopted| adopted.configuration),
            held,
            promised: identity.promised,
            base,
            last,
            ahead,
        })
    }
}

/// Whose the log of a directory is; `None` where there is none.
///
/// # Errors
/// It is of another version, or cannot be read.
pub fn replica_of(directory: &Path) -> Result<Option<ReplicaId>, LogError> {
    if directory.join(store::FILE).exists() { store::replica_offline(directory).map(Some) } else { Ok(None) }
}

/// Opens the log of a data directory for reading only, whether or not its replica runs.
///
/// # Errors
/// There is none, it is of another version, or it cannot be read.
pub fn open_offline(directory: &Path) -> Result<LogReader, LogError> {
    let (base, last) = store::ends_offline(directory)?;
    LogReader::new(directory, Arc::new(Cache::new(base, last)))
}

/// A SQLite error while doing something.
fn sqlite(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> LogError {
    move |error| LogError::Sqlite { doing, message: error.to_string() }
}

#[cfg(test)]
mod tests;
