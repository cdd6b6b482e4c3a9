//! Snapshots: page copies of all databases, for a replica that is behind the log.
//!
//! A snapshot is fuzzy, exactly as the files are that a crash leaves behind. Its slot is the durable mark at its
//! begin, every file in it is the copy of one database at that database's own slot, and writes go on meanwhile. Whoever
//! takes it over applies the log from the slot after the mark; each database skips what it has.
//!
//! Two things make that right. The catalogue is copied first: every database that its copy names exists then, and one
//! that is made later is made again from the log. And no file of a dropped database is removed as long as a
//! [`SnapshotSource`] lives: the copy of the catalogue may name it still.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d3b::{DatabaseId, DatabaseName, Slot};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use crate::catalogue;
use crate::clock;
use crate::database::{self, OpenError, State};
use crate::databases::{self, Unusable};
use crate::fingerprint::Fingerprint;
use crate::guard::{self, Mode};
use crate::planted::{self, Planted};
use crate::reader::Readers;

/// How many bytes are copied between two looks at the pace; tests have small databases, and want to look often.
const STEP_BYTES: u64 = if cfg!(test) { 8 << 10 } else { 1 << 20 };
/// What was written is synced this often: a long sync at the end would hold up those of the log.
const SYNC_BYTES: u64 = 8 * STEP_BYTES;

/// Asked between steps with the bytes that were copied since the last time. It may take its time, which is how a copy
/// is kept from filling the disk's queue; an error abandons the copy.
pub type Pace<'a> = &'a mut dyn FnMut(u64) -> io::Result<()>;

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// This replica does not have the database whole: another one must be asked.
    #[error("database {database} is not whole on this replica: {problem}")]
    Damaged {
        /// The database's id.
        database: DatabaseId,
        /// What is wrong with its file.
        problem: String,
    },
    /// SQLite failed on this replica.
    #[error("SQLite failed while database {database} was copied")]
    Sqlite {
        /// The database's id.
        database: DatabaseId,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// The copy cannot be written.
    #[error("the copy {} cannot be written", path.display())]
    Io {
        /// The copy.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The pace said so.
    #[error("the copy was abandoned")]
    Abandoned(#[source] io::Error),
}

/// Where the copies of one snapshot come from. It lives beside the engine, on any thread, and while it lives no file of
/// a database is removed.
#[derive(Debug)]
pub struct SnapshotSource {
    directory: PathBuf,
    slot: Slot,
    readers: Readers,
    /// The engine counts these.
    _pin: Arc<()>,
}

/// A database that belongs to a snapshot, because the copy of the catalogue names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    id: DatabaseId,
    name: DatabaseName,
}

impl Listed {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> DatabaseId {
        self.id
    }
}

/// One database of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Its id.
    pub id: DatabaseId,
    /// Its name.
    pub name: DatabaseName,
    /// The last slot that it has applied.
    pub slot: Slot,
    /// The chain after that slot.
    pub fingerprint: Fingerprint,
    /// Whether a copy was written; else the caller has it from before.
    pub written: bool,
}

impl SnapshotSource {
    pub(crate) fn new(directory: &Path, slot: Slot, readers: Readers, pin: Arc<()>) -> SnapshotSource {
        SnapshotSource { directory: directory.to_owned(), slot, readers, _pin: pin }
    }

    /// The snapshot's slot: everything up to it is in every copy.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Copies the catalogue, and tells which databases its copy names. In the copy the durable mark is the snapshot's
    /// slot, and nothing is fenced, for that is a replica's own trouble. Nothing may be at the path.
    ///
    /// # Errors
    /// See [`SnapshotError`]; what was written is left behind then.
    pub fn copy_catalogue(&self, to: &Path, pace: Pace<'_>) -> Result<(Copied, Vec<Listed>), SnapshotError> {
        let id = DatabaseId::catalogue();
        let mut listed = Vec::new();
        let finish = |copy: &Connection| {
            copy.execute_batch("BEGIN; DELETE FROM _d3b_fenced")?;
            if !planted::breaks(Planted::MarkOfSnapshotLeftAsItIs) {
                copy.execute("UPDATE _d3b_mark SET slot = ?", [self.slot.0])?;
            }
            listed = catalogue::not_dropped_by(copy, self.slot)?;
            copy.execute_batch("COMMIT")
        };
        let state = self.copy_file(id, to, pace, |_| false, finish)?.0;
        let name = DatabaseName::catalogue();
        let copied = Copied { id, name, slot: state.slot, fingerprint: state.fingerprint, written: true };
        let listed: Vec<Listed> = listed.into_iter().map(|(id, name)| Listed { id, name }).collect();
        // Better to know before gigabytes are copied.
        listed.iter().try_for_each(|one| self.check_served(one.id))?;
        Ok((copied, listed))
    }

    /// Copies a database, unless the caller knows its content at the slot that it has now. Nothing may be at the path.
    ///
    /// # Errors
    /// See [`SnapshotError`]; what was written is left behind then.
    pub fn copy(
        &self,
        listed: &Listed,
        to: &Path,
        known: impl FnOnce(Slot) -> bool,
        pace: Pace<'_>,
    ) -> Result<Copied, SnapshotError> {
        let (state, written) = self.copy_file(listed.id, to, pace, known, |_| Ok(()))?;
        // Whatever was amiss before the copy was made is known by now.
        self.check_served(listed.id)?;
        let Listed { id, name } = listed.clone();
        Ok(Copied { id, name, slot: state.slot, fingerprint: state.fingerprint, written })
    }

    fn check_served(&self, database: DatabaseId) -> Result<(), SnapshotError> {
        match self.readers.fenced(database) {
            None => Ok(()),
            Some(problem) => Err(SnapshotError::Damaged { database, problem }),
        }
    }

    fn copy_file(
        &self,
        id: DatabaseId,
        to: &Path,
        pace: Pace<'_>,
        known: impl FnOnce(Slot) -> bool,
        finish: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(State, bool), SnapshotError> {
        let failed = |error: OpenError| match error.into() {
            Unusable::Damaged(problem) => SnapshotError::Damaged { database: id, problem },
            Unusable::Failed(source) => SnapshotError::Sqlite { database: id, source },
        };
        let from = database::path(&self.directory, id);
        if !from.exists() {
            return Err(failed(OpenError::Foreign("its file is missing".to_owned())));
        }
        let (source, guard) = guard::open_reader(&from).map_err(|error| failed(error.into()))?;
        guard.set(Mode::Internal);
        // With a transaction of its own the source stands still, and the copy never has to begin again.
        source.execute_batch("BEGIN").map_err(|error| failed(error.into()))?;
        let state = database::read_state(&source, id).map_err(failed)?;
        if known(state.slot) {
            return Ok((state, false));
        }
        let copy = Copy { source: &source, to, pace };
        copy.write(finish).map_err(|trouble| match trouble {
            Trouble::Sqlite(error) => failed(error.into()),
            Trouble::Damaged(problem) => failed(OpenError::Foreign(problem)),
            Trouble::Io(source) => SnapshotError::Io { path: to.to_owned(), source },
            Trouble::Abandoned(cause) => SnapshotError::Abandoned(cause),
        })?;
        Ok((state, true))
    }
}

/// Why a file was not copied.
enum Trouble {
    Sqlite(rusqlite::Error),
    Damaged(String),
    Io(io::Error),
    Abandoned(io::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Trouble {
        Trouble::Sqlite(error)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Io(error)
    }
}

/// The copy of one file.
struct Copy<'a> {
    /// In a transaction.
    source: &'a Connection,
    to: &'a Path,
    pace: Pace<'a>,
}

impl Copy<'_> {
    /// Writes it durably, with a rollback-mode header and nothing beside it.
    fn write(mut self, finish: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<(), Trouble> {
        clock::register();
        // It is held open to the end: closing it would let go of SQLite's locks on the file.
        let file = File::options().read(true).write(true).create_new(true).open(self.to)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut target = Connection::open_with_flags_and_vfs(self.to, flags, clock::VFS)?;
        // Nobody reads it before it is whole, so it needs no journal, and it is synced here.
        target.execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-2048")?;
        self.pages(&mut target, &file)?;
        target.execute_batch("PRAGMA journal_mode=DELETE; PRAGMA journal_mode=MEMORY")?;
        if !planted::breaks(Planted::SchemaVersionOfCopyChanged) {
            // SQLite gives a copy a schema version of its own, and SQL can ask for it.
            let version: i64 = self.source.query_row("PRAGMA schema_version", [], |row| row.get(0))?;
            target.execute_batch(&format!("PRAGMA schema_version={version}"))?;
        }
        check(&target)?;
        finish(&target)?;
        target.close().map_err(|(_, error)| error)?;
        file.sync_all()?;
        let mut log = self.to.as_os_str().to_owned();
        log.push("-wal");
        if Path::new(&log).exists() {
            return Err(io::Error::other("the copy has a write-ahead log beside it").into());
        }
        Ok(())
    }

    fn pages(&mut self, target: &mut Connection, file: &File) -> Result<(), Trouble> {
        let page_size: u64 = self.source.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let pages = i32::try_from((STEP_BYTES / page_size.max(1)).max(1)).unwrap_or(1);
        let backup = Backup::new(self.source, target)?;
        let mut unsynced = 0;
        while !matches!(backup.step(pages)?, StepResult::Done) {
            let bytes = u64::try_from(pages).unwrap_or(1) * page_size;
            unsynced += bytes;
            if unsynced >= SYNC_BYTES {
                file.sync_data()?;
                unsynced = 0;
            }
            (self.pace)(bytes).map_err(Trouble::Abandoned)?;
        }
        Ok(())
    }
}

/// Whether the pages of a copy hang together: damage that nobody has met here yet is not to be handed on. What a check
/// says about rows (of constraints that a user may have broken, or modules) is the same on every replica.
fn check(copy: &Connection) -> Result<(), Trouble> {
    match copy.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0)) {
        Ok(found) if found.starts_with("*** in database") => Err(Trouble::Damaged(found.replace('\n', " "))),
        Ok(_) => Ok(()),
        Err(error) if databases::is_damage(&error) => Err(error.into()),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::Unknown) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
