//! The replicated state machine of d3b: deterministic SQL over many SQLite files.
//!
//! The engine is handed entries in the order of their slots and makes of them state and answers: the same entries give
//! the same rows and the same answers on every replica, whenever they are applied and however they are cut into
//! batches. It knows slots and commands; ballots, sockets and HTTP are not its business.
//!
//! * [`command`] is the encoding of what an entry carries.
//! * [`engine`] holds the one [`Engine`] of a replica: what is open, what is durable, what comes next.
//! * `apply` turns entries into outcomes; `statement` runs one statement of them with its `arguments`, and `text` looks
//!   at it before; [`requests`] makes each happen once; [`catalogue`] keeps the names; [`database`] is one open file,
//!   `databases` are those that are open; `install` brings an uploaded one into place; `media` keeps the rows that name
//!   attached files.
//! * [`clock`], [`random`] and [`guard`] take the replica's own time, dice and environment away from SQL.
//! * [`fingerprint`] folds every effect into a chain that replicas compare.
//! * [`planted`] are rules that tests can break, to see that other tests notice; in a daemon none can be.
//! * [`reader`] serves reads beside all that, from snapshots of one database each.
//! * [`snapshot`] copies everything, for a replica that is behind the log; [`restore`] is the list of what a backup
//!   brings into an empty cluster.

mod apply;
mod arguments;
pub mod catalogue;
pub mod clock;
pub mod command;
pub mod database;
mod databases;
pub mod engine;
pub mod fingerprint;
pub mod guard;
mod install;
mod media;
pub mod planted;
pub mod random;
pub mod reader;
pub mod requests;
pub mod restore;
pub mod scrub;
pub mod snapshot;
mod statement;
#[cfg(test)]
mod tests;
mod text;

use std::io;
use std::path::PathBuf;

use d3b::{BlobReference, DatabaseId, DatabaseName, Digest, IdempotencyKey, Outcome, Slot};

pub use command::{Command, DecodeError, Origin};
pub use engine::Engine;
pub use fingerprint::Fingerprint;
pub use media::media_of_file;
pub use reader::{Readers, check_upload};
pub use snapshot::{SnapshotError, SnapshotSource};

/// The version of the SQL semantics that this build applies entries with, and that leaders stamp on entries.
///
/// It stands for everything that decides an outcome: the bundled SQLite, its memory and step limits, and the rules of
/// this crate. An entry of another version is never applied with this one's.
pub const EXECUTION: u32 = 1;

/// The oldest version of the SQL semantics whose entries this build applies as they were meant.
pub const EXECUTION_FIRST: u32 = 1;

/// What an engine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How many databases are kept open for writing; the one that was idle longest is closed to make room.
    pub connections_max: usize,
    /// How many threads share the work with the one that calls the engine; 0 for none. They sleep where little is to be
    /// done, and where all of it is on one database.
    pub workers: usize,
    /// For tests, which see that it does not matter: what is done on different databases is begun in an order drawn from
    /// this seed, and shared with the other threads however little it is.
    pub lane_order: Option<u64>,
    /// The newest execution version that it applies. One above [`EXECUTION`] means the same: tests of upgrades have no
    /// other build to upgrade to.
    pub execution: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { connections_max: 64, workers: 0, lane_order: None, execution: EXECUTION }
    }
}

/// One slot of the log, as the engine needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEntry<'a> {
    /// Where it stands. Slots follow one another without gaps.
    pub slot: Slot,
    /// Log time in milliseconds since 1970: rises along the log, and is what SQL sees as the time.
    pub time_ms: u64,
    /// Where the randomness of its SQL comes from.
    pub seed: u64,
    /// The version of the SQL semantics that it must be applied with; see [`EXECUTION`].
    pub execution: u32,
    /// An encoded [`Command`]; `None` for an entry that does nothing.
    pub command: Option<&'a [u8]>,
}

/// What came of one entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The entry's slot.
    pub slot: Slot,
    /// The command's key; `None` for an entry that does nothing or cannot be decoded.
    pub key: Option<IdempotencyKey>,
    /// Who put the command into the log; `None` like `key`.
    pub origin: Option<Origin>,
    /// The name that the command gave for its database.
    pub db: Option<DatabaseName>,
    /// The database that the name meant at this slot; `None` where it meant none.
    pub database: Option<DatabaseId>,
    /// The answer; `None` for an entry that does nothing, and for one that this replica had applied before (after a
    /// restart) and whose answer is no longer kept.
    pub outcome: Option<Outcome>,
    /// The slot whose effect the answer tells: this one, or the earlier one of a repeated request.
    pub executed_at: Slot,
    /// The database's chain after this entry; `None` where no database was touched.
    pub fingerprint: Option<Fingerprint>,
}

/// How far a call of [`Engine::apply`] came.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// One for every entry that was applied, in order of slots. All of it is committed.
    pub applied: Vec<Applied>,
    /// The slot before which it stopped, for want of a blob: fetch that, then hand in the entries from there again.
    pub needs_blob: Option<(Slot, BlobReference)>,
}

/// Where the engine finds the files that commands name by digest.
pub trait Blobs: Send + Sync {
    /// The complete, durable file with that content; `None` where this replica does not have it yet.
    fn path(&self, digest: &Digest) -> Option<PathBuf>;
}

/// Why a replica must stop: it cannot apply an entry that others may well have applied, and never skips one.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// SQLite failed for a reason that lies in this replica: its disk, its memory, a damaged catalogue.
    #[error("slot {slot}: SQLite failed on database {database} with code {code}")]
    Sqlite {
        /// The entry that was being applied; the last applied one where it was none.
        slot: Slot,
        /// The database's id.
        database: DatabaseId,
        /// SQLite's extended result code; 0 where the error is rusqlite's own.
        code: i32,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// A file could not be written, moved or removed.
    #[error("slot {slot}: a file of the databases failed: {path}", path = path.display())]
    Io {
        /// The entry that was being applied; the last applied one where it was none.
        slot: Slot,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An entry is stamped with semantics that this build does not have.
    #[error("slot {slot} must be applied with execution version {execution}, and this build has {newest}")]
    Execution {
        /// The entry.
        slot: Slot,
        /// Its version.
        execution: u32,
        /// The newest version that there is here.
        newest: u32,
    },
    /// The entries do not follow on what was applied.
    #[error("slot {found} was handed in where slot {expected} was due")]
    Gap {
        /// The slot that was due.
        expected: Slot,
        /// The slot that came.
        found: Slot,
    },
    /// What the files of this replica say contradicts itself.
    #[error("slot {slot}: the state of database {database} is inconsistent: {problem}")]
    State {
        /// The last applied slot, or the entry that was being applied.
        slot: Slot,
        /// The database's id.
        database: DatabaseId,
        /// What does not fit.
        problem: String,
    },
}

/// The version of the bundled SQLite, for people.
#[must_use]
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}
