//! The databases that are open for writing: few of the many that there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use d3b::{Code, DatabaseId, Digest, Rejection, Slot};
use rusqlite::ErrorCode;

use crate::database::{self, Database, OpenError};

/// How many databases are asked how far they have come; of the others a dead process may have left any number.
const ASKED_MAX: usize = 64;

/// The last slot that any database knows of, among those that were written last. A file that cannot be read is not asked:
/// that shows when it is used.
///
/// # Errors
/// The directory cannot be listed.
pub(crate) fn newest_slot(directory: &Path) -> io::Result<Slot> {
    let mut written = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let id = name.strip_suffix(".sqlite3-wal").and_then(|id| id.parse::<Digest>().ok()).map(DatabaseId);
        // What is not in a write-ahead log any more was synced, and is below the mark.
        if let Some(id) = id
            && let Ok(metadata) = entry.metadata()
            && metadata.len() > 0
        {
            written.push((metadata.modified()?, id));
        }
    }
    written.sort_unstable_by(|one, other| other.cmp(one));
    let slots = written.iter().take(ASKED_MAX).filter_map(|(_, id)| {
        let database = Database::open(&database::path(directory, *id), *id).ok()?;
        Some(database.state.slot)
    });
    Ok(slots.max().unwrap_or(Slot::ZERO))
}

/// Why a database cannot be worked with.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// Its file is damaged; the rest of the replica is not touched by that.
    Damaged(String),
    /// This replica failed.
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Unusable {
        if is_damage(&error) { Unusable::Damaged(error.to_string()) } else { Unusable::Failed(error) }
    }
}

impl From<OpenError> for Unusable {
    fn from(error: OpenError) -> Unusable {
        match error {
            OpenError::Sqlite(error) => error.into(),
            OpenError::Foreign(problem) => Unusable::Damaged(problem),
        }
    }
}

/// Whether an error says that a database's file is damaged.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    database::sqlite_error(error)
        .is_some_and(|error| matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// A database that was written and is not known to be durable.
#[derive(Debug)]
pub(crate) struct Dirty {
    /// Its id.
    pub id: DatabaseId,
    /// Its file.
    pub path: PathBuf,
    /// Whether it is open for writing.
    pub is_open: bool,
}

/// All databases but the catalogue.
pub(crate) struct Databases {
    /// Where their files are.
    directory: PathBuf,
    /// How many may be open.
    connections_max: usize,
    /// Those that are, and when each was last asked for.
    open: HashMap<DatabaseId, (u64, Database)>,
    /// Counts what was asked for.
    uses: u64,
    /// How much that was when unused ones were last closed.
    uses_before: u64,
    /// Written since the last checkpoint, open or not.
    dirty: BTreeSet<DatabaseId>,
    /// Not served here, and why.
    fenced: BTreeMap<DatabaseId, String>,
}

impl Databases {
    /// None is open yet.
    pub fn new(directory: &Path, connections_max: usize, fenced: Vec<(DatabaseId, String)>) -> Databases {
        Databases {
            directory: directory.to_owned(),
            connections_max: connections_max.max(1),
            open: HashMap::new(),
            uses: 0,
            uses_before: 0,
            dirty: BTreeSet::new(),
            fenced: fenced.into_iter().collect(),
        }
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How many may be open.
    pub fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// Takes a database out, if it is open.
    pub fn take(&mut self, id: DatabaseId) -> Option<Database> {
        self.open.remove(&id).map(|(_, database)| database)
    }

    /// Puts a database back that was taken out, or opened elsewhere.
    pub fn put(&mut self, database: Database) {
        self.uses += 1;
        self.open.insert(database.id, (self.uses, database));
    }

    /// Takes out those that were idle longest and have to be closed, so that so many can be put back.
    pub fn take_idle(&mut self, count: usize) -> Vec<Database> {
        let surplus = (self.open.len() + count).saturating_sub(self.connections_max);
        if surplus == 0 {
            return Vec::new();
        }
        let mut idle: Vec<(u64, DatabaseId)> = self.idle().collect();
        idle.sort_unstable();
        idle.into_iter().take(surplus).filter_map(|(_, id)| self.take(id)).collect()
    }

    /// Closes those that nobody has asked for since the last time, and that are durable.
    pub fn close_unused(&mut self) {
        let before = std::mem::replace(&mut self.uses_before, self.uses);
        let unused = self.idle().filter(|(used, id)| *used <= before && !self.dirty.contains(id));
        let unused: Vec<DatabaseId> = unused.map(|(_, id)| id).collect();
        unused.into_iter().for_each(|id| self.close(id));
    }

    /// Those without an open transaction, and when each was last asked for.
    fn idle(&self) -> impl Iterator<Item = (u64, DatabaseId)> {
        let idle = self.open.iter().filter(|(_, (_, database))| !database.in_transaction());
        idle.map(|(id, (used, _))| (*used, *id))
    }

    /// A database, opened if need be; the one that was idle longest is closed to make room.
    pub fn get(&mut self, id: DatabaseId) -> Result<&mut Database, Unusable> {
        self.uses += 1;
        let uses = self.uses;
        if !self.open.contains_key(&id) {
            self.take_idle(1).into_iter().for_each(Database::close_quickly);
            let database = Database::open(&database::path(&self.directory, id), id)?;
            self.open.insert(id, (uses, database));
        }
        let (used, database) = self.open.get_mut(&id).expect("it was open or has just been opened");
        *used = uses;
        Ok(database)
    }

    /// A database that is open already.
    #[cfg(test)]
    pub fn get_open(&mut self, id: DatabaseId) -> Option<&mut Database> {
        self.open.get_mut(&id).map(|(_, database)| database)
    }

    /// The databases that were written since they were last known to be durable.
    pub fn dirty(&self) -> Vec<Dirty> {
        let dirty = |id: &DatabaseId| Dirty {
            id: *id,
            path: database::path(&self.directory, *id),
            is_open: self.open.contains_key(id),
        };
        self.dirty.iter().map(dirty).collect()
    }

    /// Closes a database; an open transaction is rolled back.
    pub fn close(&mut self, id: DatabaseId) {
        self.open.remove(&id);
    }

    /// Notes that a database was written.
    pub fn set_dirty(&mut self, id: DatabaseId) {
        self.dirty.insert(id);
    }

    /// Whether a database was written and is not known to be durable.
    #[cfg(test)]
    pub fn is_dirty(&self, id: DatabaseId) -> bool {
        self.dirty.contains(&id)
    }

    /// Makes every database durable that was written since the last time, then folds their logs into them.
    pub fn sync(&mut self) -> Result<(), (DatabaseId, io::Error)> {
        let dirty = std::mem::take(&mut self.dirty);
        for id in dirty {
            sync_log(&database::path(&self.directory, id)).map_err(|error| (id, error))?;
            if let Some((_, database)) = self.open.get(&id)
                && let Err(error) = database.checkpoint()
            {
                // What is in the log is durable. A fault of the file itself shows when it is written or read.
                tracing::warn!(database = %id, %error, "a write-ahead log could not be folded into its database");
            }
        }
        Ok(())
    }

    /// Why a database is not served here, if so.
    pub fn fenced(&self, id: DatabaseId) -> Option<&str> {
        self.fenced.get(&id).map(String::as_str)
    }

    /// Every database that is not served here, and why.
    pub fn all_fenced(&self) -> &BTreeMap<DatabaseId, String> {
        &self.fenced
    }

    /// Stops serving a database.
    pub fn fence(&mut self, id: DatabaseId, problem: String) {
        self.close(id);
        self.dirty.remove(&id);
        self.fenced.entry(id).or_insert(problem);
    }

    /// Forgets a dropped database.
    pub fn forget(&mut self, id: DatabaseId) {
        self.close(id);
        self.dirty.remove(&id);
        self.fenced.remove(&id);
    }
}

/// What this replica answers for a database that it has fenced.
pub(crate) fn fenced_rejection(problem: &str) -> Rejection {
    Rejection::new(
        Code::DatabaseFenced,
        format!("this replica does not serve the database, whose file is damaged: {problem}"),
    )
    .with_hint("other replicas may have it whole")
}

/// Folds a database's write-ahead log into it, on a connection of its own. One that is in use, or that cannot be folded
/// because the file is damaged or gone, is left as it is: that shows when it is written or read.
///
/// The log of one that is not open is emptied too. Whoever opens it next reads the whole log, also what has been folded, and
/// knows no more that it was: the log would grow, and be read again with every use. That takes the place of a writer, though
/// not for long: everything is folded and synced before, and no reader is waited for, as the database may have been opened
/// meanwhile. The others' logs are left to their writers.
pub(crate) fn fold_beside(path: &Path, is_open: bool) -> rusqlite::Result<()> {
    let fold = || -> rusqlite::Result<()> {
        let connection = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        if !is_open {
            connection.busy_timeout(Duration::ZERO)?;
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        // The file may have been dropped meanwhile, and nothing is to be made of what is left of it.
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(())
    };
    match fold() {
        Err(error) if path.exists() && !is_damage(&error) && !is_busy(&error) => Err(error),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "a write-ahead log could not be folded ahead");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    database::sqlite_error(error)
        .is_some_and(|error| matches!(error.code, ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Makes what is committed to a database's write-ahead log durable. Without a log everything is in the file, where
/// SQLite has synced it before it removed or restarted the log.
pub(crate) fn sync_log(path: &Path) -> io::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    match File::open(PathBuf::from(log)) {
        Ok(file) => file.sync_data(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
