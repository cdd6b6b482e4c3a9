//! One open database: its connection, its transaction, and d3b's own tables in it.
//!
//! A database is written by the engine alone, through one connection. What d3b knows about it stands in the same file,
//! in tables that users never see, and is written in the same transaction as the effects that it tells of: after a
//! crash the file says by itself how far it came.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use d3b::{DatabaseId, Slot};
use rusqlite::functions::FunctionFlags;
use rusqlite::{CachedStatement, Connection, OptionalExtension, ffi, params};

use crate::fingerprint::{Fingerprint, Recorder};
use crate::guard::{self, Guard, Mode};
use crate::planted::{self, Planted};
use crate::requests;
use crate::statement::Admitted;

/// The layout of d3b's own tables in a database file.
pub const FORMAT: u32 = 1;

/// d3b's own tables, in every database file and in the catalogue.
///
/// * `_d3b_state`: one row. `slot` is the last slot that concerned the database, `created` the one that made it,
///   `fingerprint` the chain after `slot`.
/// * `_d3b_requests`: what came of each idempotency key; `code` is `ok` or the code of the refusal, `answer` is for
///   [`crate::requests::decode_answer`], `fingerprint` the chain after that slot.
/// * `_d3b_media`: the attached files, by the digests of their blobs.
pub const TABLES: &str = "
    CREATE TABLE _d3b_state(
        id INTEGER PRIMARY KEY CHECK(id = 1),
        format INTEGER NOT NULL,
        database TEXT NOT NULL,
        created INTEGER NOT NULL,
        slot INTEGER NOT NULL,
        fingerprint BLOB NOT NULL
    );
    CREATE TABLE _d3b_requests(
        slot INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        request BLOB NOT NULL,
        time_ms INTEGER NOT NULL,
        code TEXT NOT NULL,
        answer BLOB NOT NULL,
        fingerprint BLOB NOT NULL
    );
    CREATE TABLE _d3b_media(
        file_id TEXT PRIMARY KEY,
        sha256 BLOB NOT NULL,
        size INTEGER NOT NULL,
        type TEXT NOT NULL,
        slot INTEGER NOT NULL
    ) WITHOUT ROWID;
";

/// Every statement of d3b's own begins like this, and a user's statement that does is never put into the cache of
/// prepared statements: what was prepared with d3b's rights must not run with a user's text.
pub(crate) const OWN: &str = "/*d3b*/";

/// How many prepared statements a connection keeps.
const STATEMENTS_MAX: usize = 256;

/// What `_d3b_state` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// The slot that made the database.
    pub created: Slot,
    /// The last slot that concerned it.
    pub slot: Slot,
    /// The chain after that slot.
    pub fingerprint: Fingerprint,
}

/// Why a file cannot be served as the database that it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// SQLite's refusal.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The file is there and is not what its name says.
    #[error("{0}")]
    Foreign(String),
}

/// An open database.
///
/// Invariants: `state` is what `_d3b_state` will say once the open transaction, if there is one, is committed;
/// `committed` is what it says on disk; without a transaction they are equal.
pub(crate) struct Database {
    /// Its id.
    pub id: DatabaseId,
    /// Its only writing connection.
    connection: Connection,
    /// Says what statements may do.
    pub guard: Guard,
    /// Sees what they did.
    pub recorder: Recorder,
    /// Including the open transaction.
    pub state: State,
    /// Without the open transaction.
    committed: State,
    /// Whether a transaction was begun and neither committed nor rolled back.
    in_transaction: bool,
    /// Which users' statements are kept prepared.
    admitted: Admitted,
    /// Whether the operation under way ran a statement that may have changed the schema.
    pub touched_schema: bool,
    /// Whether it has virtual tables; `None` until asked.
    has_virtual: Option<bool>,
    /// How many tables, indexes, views and triggers are d3b's own.
    pub hidden: i64,
    /// What `sqlite3_total_changes64` was when the operation began.
    total_changes_base: Arc<AtomicI64>,
    /// No key expires before this log time, in milliseconds; `None` until looked up.
    pub keys_expire_at: Option<u64>,
}

/// Where the file of a database is.
pub(crate) fn path(directory: &Path, id: DatabaseId) -> PathBuf {
    directory.join(format!("{id}.sqlite3"))
}

/// Makes d3b's tables in a file that has none.
pub(crate) fn create_tables(
    connection: &Connection,
    id: DatabaseId,
    created: Slot,
    fingerprint: Fingerprint,
) -> rusqlite::Result<()> {
    connection.execute_batch(TABLES)?;
    connection
        .execute(
            "INSERT INTO _d3b_state(id, format, database, created, slot, fingerprint) VALUES(1, ?, ?, ?, ?, ?)",
            params![FORMAT, id.to_string(), created.0, created.0, fingerprint],
        )
        .map(|_| ())
}

/// Whether an object of a schema is one of [`TABLES`], exactly as they are made, or an index that comes with one.
pub(crate) fn is_own(name: &str, table: &str, sql: &str) -> bool {
    let tables = ["_d3b_state", "_d3b_requests", "_d3b_media"];
    if !tables.contains(&table) {
        return false;
    }
    if name != table {
        return name.strip_prefix("sqlite_autoindex_").is_some_and(|rest| rest.starts_with(table)) && sql.is_empty();
    }
    TABLES.split(';').any(|made| made.trim() == sql)
}

/// Makes the file of a database out of a backup that of a database of this log: it is made at a slot here, and what it
/// knows of keys was executed in another log.
pub(crate) fn adopt(
    connection: &Connection,
    id: DatabaseId,
    created: Slot,
    fingerprint: Fingerprint,
) -> rusqlite::Result<()> {
    connection.execute(
        "UPDATE _d3b_state SET database = ?1, created = ?2, slot = ?2, fingerprint = ?3",
        params![id.to_string(), created.0, fingerprint],
    )?;
    connection.execute("UPDATE _d3b_requests SET slot = slot - ?", [requests::EARLIER_LOG])?;
    connection.execute("UPDATE _d3b_media SET slot = ?", [created.0]).map(|_| ())
}

impl Database {
    /// Opens the file of a database that exists.
    pub fn open(path: &Path, id: DatabaseId) -> Result<Database, OpenError> {
        if !path.exists() {
            return Err(OpenError::Foreign("its file is missing".to_owned()));
        }
        let (connection, guard) = guard::open_writer(path, false)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        let state = read_state(&connection, id)?;
        let total_changes_base = Arc::new(AtomicI64::new(0));
        install_total_changes(&connection, &total_changes_base)?;
        let recorder = Recorder::attach(&connection);
        let mut database = Database {
            id,
            connection,
            guard,
            recorder,
            state,
            committed: state,
            in_transaction: false,
            admitted: Admitted::default(),
            touched_schema: false,
            has_virtual: None,
            hidden: 0,
            total_changes_base,
            keys_expire_at: None,
        };
        database.hidden = database.count_hidden()?;
        Ok(database)
    }

    /// Closes it without folding its write-ahead log into it, which would cost two syncs: whoever opens it next goes on with
    /// the log.
    pub fn close_quickly(self) {
        let setting = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        if let Err(error) = self.connection.set_db_config(setting, true) {
            tracing::debug!(database = %self.id, %error, "closing a database will take a moment");
        }
    }

    /// How many objects of the schema have a name of d3b's own.
    pub fn count_hidden(&self) -> rusqlite::Result<i64> {
        let sql = "/*d3b*/SELECT count(*) FROM sqlite_schema WHERE substr(name, 1, 5) = '_d3b_' COLLATE NOCASE";
        self.own(sql)?.query_row([], |row| row.get(0))
    }

    /// One of d3b's own statements, prepared at most once.
    pub fn own(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        debug_assert!(sql.starts_with(OWN), "{sql}");
        self.guard.set(Mode::Internal);
        self.connection.prepare_cached(sql)
    }

    /// Runs one of d3b's own statements that has neither arguments nor rows.
    pub fn run_own(&self, sql: &str) -> rusqlite::Result<()> {
        self.own(sql)?.execute([]).map(|_| ())
    }

    /// Begins a transaction where none is open.
    pub fn begin(&mut self) -> rusqlite::Result<()> {
        if !self.in_transaction {
            self.run_own("/*d3b*/BEGIN IMMEDIATE")?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Commits the open transaction, where there is one, with what `_d3b_state` has to say.
    pub fn commit(&mut self) -> rusqlite::Result<()> {
        if !self.in_transaction {
            return Ok(());
        }
        let keys_late = planted::breaks(Planted::KeysOutsideTransaction);
        if keys_late {
            self.guard.set(Mode::Internal);
            planted::set_keys_aside(&self.connection, self.committed.slot)?;
        }
        let slot_late = planted::breaks(Planted::AppliedSlotOutsideTransaction);
        if slot_late {
            self.run_own("/*d3b*/COMMIT")?;
        }
        self.own("/*d3b*/UPDATE _d3b_state SET slot = ?, fingerprint = ?")?
            .execute(params![self.state.slot.0, self.state.fingerprint])?;
        if !slot_late {
            self.run_own("/*d3b*/COMMIT")?;
        }
        if keys_late {
            planted::bring_keys_back(&self.connection)?;
        }
        self.in_transaction = false;
        self.committed = self.state;
        Ok(())
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Whether SQLite has ended the transaction by itself.
    pub fn has_ended(&self) -> bool {
        self.in_transaction && self.connection.is_autocommit()
    }

    /// Forgets what the ended transaction had done.
    pub fn forget_transaction(&mut self) -> rusqlite::Result<()> {
        self.in_transaction = false;
        self.state = self.committed;
        self.keys_expire_at = None;
        self.recorder.discard();
        self.reload_schema()
    }

    /// What SQL can ask about the connection is reset before each operation, or it would tell of other operations.
    pub fn reset_for_operation(&mut self) -> rusqlite::Result<()> {
        if planted::breaks(Planted::ConnectionStateKept) {
            return Ok(());
        }
        self.run_own("/*d3b*/DELETE FROM _d3b_state WHERE 0")?;
        // Safety: the handle is that of a live connection, which only this thread uses.
        let total = unsafe {
            let handle = self.connection.handle();
            ffi::sqlite3_set_last_insert_rowid(handle, 0);
            ffi::sqlite3_total_changes64(handle)
        };
        self.total_changes_base.store(total, Ordering::Relaxed);
        Ok(())
    }

    /// Whether deferred foreign keys are violated now.
    pub fn has_deferred_violations(&self) -> bool {
        let (mut current, mut highest) = (0, 0);
        // Safety: the handle is that of a live connection, and both integers outlive the call.
        let code = unsafe {
            let handle = self.connection.handle();
            ffi::sqlite3_db_status(handle, ffi::SQLITE_DBSTATUS_DEFERRED_FKS, &mut current, &mut highest, 0)
        };
        debug_assert_eq!(code, ffi::SQLITE_OK, "the verb is one that SQLite knows");
        current != 0 && !planted::breaks(Planted::DeferredKeysUnchecked)
    }

    /// What a user's statement needs, borrowed side by side.
    pub fn parts(&mut self) -> (&Connection, &Guard, &mut Admitted) {
        (&self.connection, &self.guard, &mut self.admitted)
    }

    /// Drops what depends on the schema. Statements that were prepared before would work still, but what they say of
    /// errors and columns would depend on when they were prepared, which differs between replicas.
    pub fn schema_changed(&mut self) {
        self.admitted.clear();
        self.has_virtual = None;
        self.connection.flush_prepared_statement_cache();
    }

    /// Reads the schema again, so that what is in memory is what a process that starts now would have there.
    ///
    /// SQLite keeps more of the past than it shows: the order of a hash table, in which ANALYZE and PRAGMA table_list go
    /// through the tables, depends on tables that are gone; statistics stay that a rollback or a later ANALYZE has taken
    /// away. Both decide in which order rows come, and so which rowids they get.
    pub fn reload_schema(&mut self) -> rusqlite::Result<()> {
        self.schema_changed();
        if planted::breaks(Planted::SchemaKeptInMemory) {
            return Ok(());
        }
        self.guard.set(Mode::Internal);
        self.connection.execute_batch("PRAGMA writable_schema=RESET")
    }

    /// Makes virtual tables write what they hold back. They would do so at the next savepoint or at COMMIT, that is
    /// at a place which depends on how the log was cut into batches.
    pub fn flush_virtual_tables(&mut self) -> rusqlite::Result<()> {
        if self.has_virtual_tables()? && !planted::breaks(Planted::EffectsHeldBack) {
            self.run_own("/*d3b*/SAVEPOINT d3b_flush")?;
            self.run_own("/*d3b*/RELEASE d3b_flush")?;
        }
        Ok(())
    }

    /// After an operation that used a virtual table: commits, and forgets what the table's module has in memory.
    /// Answers whether there was anything to do.
    ///
    /// Modules keep more than they write. FTS5 remembers its settings, and what was last bound to its statements, and
    /// both come out in rows that it writes later; its statements count steps from when they were prepared. FTS3 and
    /// FTS4 merge their segments at COMMIT. So every use of one begins as the first one of a process would, and its
    /// transaction ends with its operation.
    pub fn end_virtual_use(&mut self) -> rusqlite::Result<bool> {
        if !self.guard.take_used_virtual() || planted::breaks(Planted::ModulesKeptInMemory) {
            return Ok(false);
        }
        // Modules live as long as a transaction that they have taken part in.
        self.commit()?;
        self.reload_schema()?;
        Ok(true)
    }

    /// Whether the database has virtual tables. The authorizer learns which, and must know before a text is prepared.
    pub fn has_virtual_tables(&mut self) -> rusqlite::Result<bool> {
        if let Some(known) = self.has_virtual {
            return Ok(known);
        }
        let sql = "/*d3b*/SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage = 0";
        let names: Vec<String> = self.own(sql)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let known = !names.is_empty();
        self.guard.set_virtual_tables(names.into_iter());
        self.has_virtual = Some(known);
        Ok(known)
    }

    /// The whole schema but d3b's own tables, for the fingerprint.
    pub fn schema_text(&self) -> rusqlite::Result<String> {
        let sql = "/*d3b*/SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema ORDER BY rowid";
        let mut statement = self.own(sql)?;
        let mut rows = statement.query([])?;
        let mut text = self.versions()?;
        while let Some(row) = rows.next()? {
            if row.get_ref(2)?.as_bytes()?.starts_with(b"_d3b_") {
                continue;
            }
            for column in 0..4 {
                text.push_str(&String::from_utf8_lossy(row.get_ref(column)?.as_bytes()?));
                text.push('\0');
            }
        }
        Ok(text)
    }

    /// Folds every row of a table into the chain of the operation.
    pub fn fold_rows(&self, table: &str) -> rusqlite::Result<()> {
        if planted::breaks(Planted::CreatedRowsOutsideChain) {
            return Ok(());
        }
        self.guard.set(Mode::Internal);
        let mut statement =
            self.connection.prepare(&format!("SELECT * FROM main.\"{}\"", table.replace('"', "\"\"")))?;
        let width = statement.column_count();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let values = (0..width).map(|column| row.get_ref(column)).collect::<rusqlite::Result<Vec<_>>>()?;
            self.recorder.fold(table, &values);
        }
        Ok(())
    }

    /// A number that every change of the schema changes.
    pub fn schema_version(&self) -> rusqlite::Result<i64> {
        self.own("/*d3b*/PRAGMA main.schema_version")?.query_row([], |row| row.get(0))
    }

    /// The two numbers that users may set beside the schema.
    fn versions(&self) -> rusqlite::Result<String> {
        let user: i64 = self.own("/*d3b*/PRAGMA user_version")?.query_row([], |row| row.get(0))?;
        let application: i64 = self.own("/*d3b*/PRAGMA application_id")?.query_row([], |row| row.get(0))?;
        Ok(format!("{user}\0{application}\0"))
    }

    /// Folds the write-ahead log into the file as far as readers allow.
    pub fn checkpoint(&self) -> rusqlite::Result<()> {
        self.own("/*d3b*/PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |_| Ok(()))
    }

    /// Says whether foreign keys are checked at the end of the operation instead of at each statement.
    pub fn defer_foreign_keys(&mut self, defer: bool) -> rusqlite::Result<()> {
        // SQLite prepares every kept statement anew after this, in the midst of its first step.
        self.connection.flush_prepared_statement_cache();
        self.guard.set(Mode::Internal);
        self.connection.execute_batch(if defer {
            "PRAGMA defer_foreign_keys=ON"
        } else {
            "PRAGMA defer_foreign_keys=OFF"
        })
    }
}

/// SQLite's own error, where there is one; rusqlite keeps it in several places.
pub(crate) fn sqlite_error(error: &rusqlite::Error) -> Option<ffi::Error> {
    match error {
        rusqlite::Error::SqlInputError { error, .. } => Some(*error),
        other => other.sqlite_error().copied(),
    }
}

/// Reads `_d3b_state` and holds it against the id that the file's name gives.
pub(crate) fn read_state(connection: &Connection, id: DatabaseId) -> Result<State, OpenError> {
    let row = connection
        .query_row("SELECT format, database, created, slot, fingerprint FROM _d3b_state", [], |row| {
            let state = State { created: Slot(row.get(2)?), slot: Slot(row.get(3)?), fingerprint: row.get(4)? };
            Ok((row.get::<_, u32>(0)?, row.get::<_, String>(1)?, state))
        })
        .optional()?;
    match row {
        None => Err(OpenError::Foreign("its _d3b_state is empty".to_owned())),
        Some((FORMAT, database, state)) if database == id.to_string() => Ok(state),
        Some((FORMAT, database, _)) => Err(OpenError::Foreign(format!("its file is that of database {database}"))),
        Some((format, ..)) => Err(OpenError::Foreign(format!("its file has format {format}, this build has {FORMAT}"))),
    }
}

/// `total_changes()` counts from the beginning of the operation, not from that of the connection.
fn install_total_changes(connection: &Connection, base: &Arc<AtomicI64>) -> rusqlite::Result<()> {
    let base = Arc::clone(base);
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    connection.create_scalar_function("total_changes", 0, flags, move |context| {
        // Safety: the connection is only asked for a number, not closed and not kept.
        let total = unsafe { ffi::sqlite3_total_changes64(context.get_connection()?.handle()) };
        Ok(total - base.load(Ordering::Relaxed))
    })
}
