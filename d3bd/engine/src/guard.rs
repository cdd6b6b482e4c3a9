//! What SQL may do: fixed settings of every connection, the authorizer, the step limit, and errors as types.
//!
//! Entries are applied on every replica, so a statement may neither see nor change what belongs to one replica alone:
//! other files, connection settings, the versions of libraries, physical pages. What is allowed is listed; everything
//! else is refused with a reason. Read-only connections refuse writes on top of that.

use std::collections::HashSet;
use std::ffi::CStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use d3b::{Code, Rejection};
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags, Statement, ffi};

use crate::text::{self, Kind, is_hidden, starts_with};
use crate::{clock, random};

/// The longest text, blob or row, in bytes. It is part of the execution version: what is too big is so everywhere.
pub const VALUE_BYTES_MAX: i32 = 256 * 1024 * 1024;

/// The longest statement, in bytes.
pub const SQL_BYTES_MAX: i32 = 4 * 1024 * 1024;

/// How many steps of SQLite's virtual machine one operation may take: some seconds.
pub const STEPS_MAX: u64 = if cfg!(test) { 20_000_000 } else { 500_000_000 };

/// How many steps lie between two looks at the limit.
const STEPS_PER_CALL: i32 = 1_000;

/// How large a write-ahead log grows before a commit folds it into its database, in pages.
const CHECKPOINT_PAGES: u32 = 8_192;

/// The kinds of virtual tables that hold what is in the database, and nothing of the replica.
pub(crate) const MODULES: [&CStr; 7] = [c"fts5", c"fts5vocab", c"fts4", c"fts3", c"fts4aux", c"rtree", c"rtree_i32"];

/// What the statements of the moment may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// d3b's own: everything.
    Internal,
    /// Users' writes that are replicated.
    Write,
    /// Users' reads.
    Read,
    /// Raw clients' changes of the catalogue: insert into `tables` and delete from it.
    CatalogueWrite,
}

/// Why the authorizer refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The cause, as a sentence.
    pub detail: String,
    /// What would help.
    pub hint: Option<String>,
}

/// Something with columns that a statement creates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// A table of that name.
    Table(String),
    /// A view of that name.
    View(String),
}

/// What the hooks of a connection and its user share.
#[derive(Debug, Default)]
struct Shared {
    /// A [`Mode`].
    mode: AtomicU8,
    /// Whether the text that is being prepared is of those with which SQLite keeps its statistics.
    keeps_statistics: AtomicBool,
    /// Whether the connection cannot write at all.
    read_only: AtomicBool,
    /// Whether the text that is being prepared is itself a PRAGMA.
    pragma: AtomicBool,
    /// Whether a statement of the operation runs; else one is being prepared.
    running: AtomicBool,
    /// Calls of the progress handler while statements of the operation ran.
    calls: AtomicU64,
    /// Calls of the progress handler since the preparation of the last text began.
    calls_of_preparation: AtomicU64,
    /// The first refusal since the last look.
    denial: Mutex<Option<Denial>>,
    /// What was prepared to be created since the last look.
    created: Mutex<Vec<Created>>,
    /// The names of the virtual tables of the database, in lower case.
    virtual_tables: Mutex<HashSet<String>>,
    /// Whether a text was prepared that uses one of them since the last look.
    used_virtual: AtomicBool,
}

/// The guard of one connection.
#[derive(Debug, Clone)]
pub struct Guard {
    shared: Arc<Shared>,
}

impl Guard {
    /// Puts the authorizer onto a connection. Until told otherwise it allows everything ([`Mode::Internal`]).
    ///
    /// # Errors
    /// SQLite refuses the hook.
    pub fn install(connection: &mut Connection) -> rusqlite::Result<Guard> {
        let guard = Guard { shared: Arc::default() };
        let shared = Arc::clone(&guard.shared);
        connection.authorizer(Some(move |context: AuthContext<'_>| shared.authorize(&context)))?;
        Ok(guard)
    }

    /// Puts the step limit onto a connection: statements of users that take too long are interrupted, at the same step
    /// everywhere. To prepare a text takes steps too; they have a limit of their own, because a process that keeps the
    /// statement prepared does not take them again.
    fn limit_steps(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let shared = Arc::clone(&self.shared);
        let calls_max = STEPS_MAX / u64::from(STEPS_PER_CALL.unsigned_abs());
        connection.progress_handler(
            STEPS_PER_CALL,
            Some(move || {
                let running = shared.running.load(Ordering::Relaxed);
                let calls = if running { &shared.calls } else { &shared.calls_of_preparation };
                shared.mode() != Mode::Internal && calls.fetch_add(1, Ordering::Relaxed) >= calls_max
            }),
        )
    }

    /// Says what the statements that follow may do.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Begins to count the steps of an operation.
    pub fn begin_operation(&self) {
        self.shared.calls.store(0, Ordering::Relaxed);
    }

    /// Says that a statement of the operation begins to run, or has ended.
    pub(crate) fn set_running(&self, running: bool) {
        self.shared.running.store(running, Ordering::Relaxed);
    }

    /// How often the step limit was looked at while statements of the operation ran.
    #[cfg(test)]
    pub(crate) fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// Why the authorizer refused since this was last asked, if it did.
    #[must_use]
    pub fn take_denial(&self) -> Option<Denial> {
        lock(&self.shared.denial).take()
    }

    /// Which tables and views a statement was about to create since this was last asked.
    #[must_use]
    pub fn take_created(&self) -> Vec<Created> {
        std::mem::take(&mut *lock(&self.shared.created))
    }

    /// Says which tables of the database are virtual ones.
    pub(crate) fn set_virtual_tables(&self, names: impl Iterator<Item = String>) {
        *lock(&self.shared.virtual_tables) = names.map(|name| name.to_ascii_lowercase()).collect();
    }

    /// Whether a text was prepared that uses a virtual table since this was last asked, itself or by a view or trigger.
    pub(crate) fn take_used_virtual(&self) -> bool {
        self.shared.used_virtual.swap(false, Ordering::Relaxed)
    }

    /// Tells the authorizer about the text that is prepared next, which it does not see itself.
    pub(crate) fn announce(&self, sql: &str) {
        let word = text::first_word(sql);
        let keeps_statistics = ["ANALYZE", "ALTER", "DROP"].iter().any(|known| word.eq_ignore_ascii_case(known));
        self.shared.keeps_statistics.store(keeps_statistics, Ordering::Relaxed);
        self.shared.pragma.store(word.eq_ignore_ascii_case("PRAGMA"), Ordering::Relaxed);
        self.shared.calls_of_preparation.store(0, Ordering::Relaxed);
        *lock(&self.shared.denial) = None;
        lock(&self.shared.created).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to one question of the authorizer.
enum Ruling {
    Allow,
    /// As if it were not there.
    Ignore,
    Deny(&'static str, Option<&'static str>),
}

const WRITE: &str = "this is a write, and only reads are possible here";
const HIDDEN: &str = "tables whose names begin with _d3b_ are d3b's own";
pub(crate) const TEMPORARY: &str = "temporary tables, views, triggers and indexes cannot be replicated";
const STATISTICS: &str = "the statistics tables are written by ANALYZE only";
const PHYSICAL: &str = "this shows how one replica stores its data, which a write must not depend on";
const BATCH: &str = "send the statements of a transaction as one batch: all of them take effect or none does";

impl Shared {
    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            mode if mode == Mode::Write as u8 => Mode::Write,
            mode if mode == Mode::Read as u8 => Mode::Read,
            mode if mode == Mode::CatalogueWrite as u8 => Mode::CatalogueWrite,
            _ => Mode::Internal,
        }
    }

    fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        let mode = self.mode();
        if mode == Mode::Internal {
            return Authorization::Allow;
        }
        self.note_virtual(&context.action);
        let temporary = context.database_name == Some("temp") && !is_harmless_in_temp(&context.action);
        let ruling = if temporary { temporary_ruling() } else { self.rule(mode, context.action) };
        match ruling {
            Ruling::Allow => Authorization::Allow,
            Ruling::Ignore => Authorization::Ignore,
            Ruling::Deny(detail, hint) => {
                let denial = Denial { detail: detail.to_owned(), hint: hint.map(str::to_owned) };
                lock(&self.denial).get_or_insert(denial);
                Authorization::Deny
            }
        }
    }

    /// Notes whether a virtual table is used.
    fn note_virtual(&self, action: &AuthAction<'_>) {
        use AuthAction as A;
        let used = match action {
            A::CreateVtable { .. } | A::DropVtable { .. } => true,
            A::Read { table_name, .. }
            | A::Insert { table_name }
            | A::Update { table_name, .. }
            | A::Delete { table_name }
            | A::AlterTable { table_name, .. } => {
                let names = lock(&self.virtual_tables);
                !names.is_empty() && names.contains(&table_name.to_ascii_lowercase())
            }
            _ => false,
        };
        if used {
            self.used_virtual.store(true, Ordering::Relaxed);
        }
    }

    fn rule(&self, mode: Mode, action: AuthAction<'_>) -> Ruling {
        use AuthAction as A;
        match action {
            A::Select | A::Recursive => Ruling::Allow,
            A::Read { table_name, .. } => read(mode, table_name),
            A::Function { function_name } => function(mode, function_name),
            A::Pragma { pragma_name, pragma_value } => self.pragma(mode, pragma_name, pragma_value),
            A::Insert { table_name } | A::Delete { table_name } => self.change(mode, table_name, true),
            A::Update { table_name, .. } => self.change(mode, table_name, false),
            A::CreateTable { table_name } => self.create(mode, Created::Table(table_name.to_owned())),
            A::CreateView { view_name } => self.create(mode, Created::View(view_name.to_owned())),
            A::CreateVtable { table_name, module_name } => virtual_table(mode, table_name, module_name),
            A::CreateIndex { index_name, table_name } | A::DropIndex { index_name, table_name } => {
                ddl(mode, &[index_name, table_name])
            }
            A::CreateTrigger { trigger_name, table_name } | A::DropTrigger { trigger_name, table_name } => {
                ddl(mode, &[trigger_name, table_name])
            }
            A::DropTable { table_name } if is_statistics(table_name) => Ruling::Deny(STATISTICS, None),
            A::DropTable { table_name }
            | A::DropVtable { table_name, .. }
            | A::DropView { view_name: table_name }
            | A::AlterTable { table_name, .. } => ddl(mode, &[table_name]),
            // A plain ANALYZE or REINDEX walks over every table; d3b's own are left out of it.
            A::Analyze { table_name } if is_hidden(table_name) && mode == Mode::Write => Ruling::Ignore,
            A::Reindex { index_name } if is_hidden(index_name) && mode == Mode::Write => Ruling::Ignore,
            A::Analyze { table_name } => ddl(mode, &[table_name]),
            A::Reindex { index_name } => ddl(mode, &[index_name]),
            A::CreateTempIndex { .. }
            | A::CreateTempTable { .. }
            | A::CreateTempTrigger { .. }
            | A::CreateTempView { .. }
            | A::DropTempIndex { .. }
            | A::DropTempTable { .. }
            | A::DropTempTrigger { .. }
            | A::DropTempView { .. } => temporary_ruling(),
            A::Transaction { .. } | A::Savepoint { .. } => {
                Ruling::Deny("there are no interactive transactions", Some(BATCH))
            }
            A::Attach { .. } | A::Detach { .. } => Ruling::Deny(
                "a statement can use one database only",
                Some("every database has its own name in the API"),
            ),
            _ => Ruling::Deny("this kind of statement is not known to d3b", None),
        }
    }

    /// Whether something may be created, which is remembered.
    fn create(&self, mode: Mode, created: Created) -> Ruling {
        let (Created::Table(name) | Created::View(name)) = &created;
        let ruling = ddl(mode, &[name]);
        if matches!(ruling, Ruling::Allow) {
            lock(&self.created).push(created);
        }
        ruling
    }

    /// Whether rows of a table may be inserted and deleted (`whole`) or updated.
    fn change(&self, mode: Mode, table: &str, whole: bool) -> Ruling {
        match mode {
            Mode::Internal => Ruling::Allow,
            Mode::Read => Ruling::Deny(WRITE, None),
            _ if is_hidden(table) => Ruling::Deny(HIDDEN, None),
            Mode::Write if is_statistics(table) && !self.keeps_statistics.load(Ordering::Relaxed) => {
                Ruling::Deny(STATISTICS, None)
            }
            Mode::Write if is_physical(table) => Ruling::Deny(PHYSICAL, None),
            Mode::Write => Ruling::Allow,
            Mode::CatalogueWrite if whole && table.eq_ignore_ascii_case("tables") => Ruling::Allow,
            Mode::CatalogueWrite => Ruling::Deny(
                "of the catalogue only rows of tables can be inserted and deleted, together with a file",
                None,
            ),
        }
    }

    fn pragma(&self, mode: Mode, name: &str, value: Option<&str>) -> Ruling {
        if value.is_some_and(is_hidden) {
            return Ruling::Deny(HIDDEN, None);
        }
        match name.to_ascii_lowercase().as_str() {
            "table_info" | "table_xinfo" | "table_list" | "index_list" | "index_info" | "index_xinfo"
            | "foreign_key_list" | "foreign_key_check" => Ruling::Allow,
            // They tell of one replica's file, and their work is not counted in steps.
            "integrity_check" | "quick_check" if mode == Mode::Read => Ruling::Allow,
            "user_version" | "application_id" if value.is_none() => Ruling::Allow,
            "user_version" | "application_id" => ddl(mode, &[]),
            "encoding" | "schema_version" | "foreign_keys" | "page_size" if value.is_none() => Ruling::Allow,
            "page_count" | "freelist_count" | "compile_options" | "function_list" | "module_list"
            | "collation_list" | "pragma_list"
                if value.is_none() && mode == Mode::Read =>
            {
                Ruling::Allow
            }
            // Full-text search asks for it in statements of its own, to know whether its caches are fresh.
            "data_version" if !self.pragma.load(Ordering::Relaxed) => Ruling::Allow,
            "defer_foreign_keys" | "foreign_keys" => Ruling::Deny(
                "this PRAGMA would outlive its statement",
                Some("ask for deferred foreign keys with the batch"),
            ),
            _ => Ruling::Deny("this PRAGMA changes or shows what belongs to one replica alone", None),
        }
    }
}

fn temporary_ruling() -> Ruling {
    Ruling::Deny(TEMPORARY, Some("use an ordinary table, or a common table expression"))
}

/// ALTER TABLE looks into the schema of the temporary objects, and would change it there too.
fn is_harmless_in_temp(action: &AuthAction<'_>) -> bool {
    matches!(
        action,
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Update { .. } | AuthAction::Function { .. }
    )
}

fn read(mode: Mode, table: &str) -> Ruling {
    if is_hidden(table) {
        return Ruling::Deny(HIDDEN, None);
    }
    let asks_for_connection = table.eq_ignore_ascii_case("pragma_data_version");
    if asks_for_connection || (mode != Mode::Read && is_physical(table)) {
        return Ruling::Deny(PHYSICAL, None);
    }
    Ruling::Allow
}

fn function(mode: Mode, name: &str) -> Ruling {
    match name.to_ascii_lowercase().as_str() {
        "load_extension" => Ruling::Deny("extensions cannot be loaded", None),
        "fts5_locale" | "fts3_tokenizer" | "sqlite_log" => Ruling::Deny("this function is not available", None),
        "sqlite_version"
        | "sqlite_source_id"
        | "fts5_source_id"
        | "sqlite_compileoption_get"
        | "sqlite_compileoption_used"
        | "sqlite_offset"
            if mode != Mode::Read =>
        {
            Ruling::Deny("this function tells of one replica, and a write must not depend on that", None)
        }
        _ => Ruling::Allow,
    }
}

/// Whether something may be created, altered or dropped under these names.
fn ddl(mode: Mode, names: &[&str]) -> Ruling {
    if names.iter().any(|name| is_hidden(name)) {
        return Ruling::Deny(HIDDEN, Some("choose another name"));
    }
    match mode {
        Mode::Internal | Mode::Write => Ruling::Allow,
        Mode::Read => Ruling::Deny(WRITE, None),
        Mode::CatalogueWrite => Ruling::Deny("the tables of the catalogue are fixed", None),
    }
}

fn virtual_table(mode: Mode, table: &str, module: &str) -> Ruling {
    if MODULES.iter().any(|known| module.as_bytes().eq_ignore_ascii_case(known.to_bytes())) {
        ddl(mode, &[table])
    } else {
        Ruling::Deny("virtual tables of this kind cannot be replicated", Some("fts5 and rtree can"))
    }
}

fn is_statistics(name: &str) -> bool {
    starts_with(name, "sqlite_stat")
}

/// Tables that show pages, statements or memory of a replica.
fn is_physical(name: &str) -> bool {
    ["dbstat", "sqlite_dbpage", "sqlite_stmt", "bytecode", "tables_used", "sqlite_memstat"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

/// What every connection has in common.
fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<(Connection, Guard)> {
    clock::register();
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let mut connection = Connection::open_with_flags_and_vfs(path, flags, clock::VFS)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    for (setting, value) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DML, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DDL, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true),
    ] {
        connection.set_db_config(setting, value)?;
    }
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, SQL_BYTES_MAX),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        connection.set_limit(limit, value)?;
    }
    random::install(&connection)?;
    let guard = Guard::install(&mut connection)?;
    connection.execute_batch("PRAGMA cell_size_check=ON")?;
    Ok((connection, guard))
}

/// Opens a database's only writing connection, in WAL mode.
///
/// # Errors
/// The file cannot be opened (or, with `create`, made), or is not a database.
pub fn open_writer(path: &Path, create: bool) -> rusqlite::Result<(Connection, Guard)> {
    let flag = if create { OpenFlags::SQLITE_OPEN_CREATE } else { OpenFlags::empty() };
    let (mut connection, guard) = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | flag)?;
    if create {
        // The default depends on the disk.
        connection.execute_batch("PRAGMA page_size=4096")?;
    }
    // After a power cut a database may lack the last slots; the log has them. So commits need no sync of their own.
    connection.execute_batch(&format!(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}; \
         PRAGMA journal_size_limit=67108864"
    ))?;
    guard.limit_steps(&mut connection)?;
    Ok((connection, guard))
}

/// Opens a connection that can only read.
///
/// # Errors
/// The file cannot be opened, or is not a database.
pub fn open_reader(path: &Path) -> rusqlite::Result<(Connection, Guard)> {
    let (connection, guard) = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.execute_batch("PRAGMA query_only=ON")?;
    guard.shared.read_only.store(true, Ordering::Relaxed);
    Ok((connection, guard))
}

/// Prepares a text that must hold exactly one statement, in the mode that is set. The outer error is this replica's
/// own trouble.
///
/// # Errors
/// The inner error refuses the text: it is empty, holds two statements, is wrong, or not allowed.
pub fn prepare_single<'c>(
    connection: &'c Connection,
    guard: &Guard,
    sql: &str,
) -> rusqlite::Result<Result<Statement<'c>, Rejection>> {
    if let Some(at) = sql.find('\0') {
        let rejection = Rejection::new(Code::BadRequest, "the statement holds a NUL character");
        return Ok(Err(Rejection { offset: u32::try_from(at).ok(), ..rejection }));
    }
    let word = text::first_word(sql);
    if word.eq_ignore_ascii_case("VACUUM") {
        let rejection = Rejection::new(Code::StatementDenied, "VACUUM renumbers rows, differently on each replica");
        return Ok(Err(rejection));
    }
    // What only handles rows uses the names that it says, and the authorizer hears of them.
    if Kind::of(sql) == Kind::Other && guard.shared.mode() != Mode::Internal && text::mentions_hidden(sql) {
        return Ok(Err(Rejection::new(Code::StatementDenied, HIDDEN).with_hint("choose another name")));
    }
    guard.announce(sql);
    match connection.prepare(sql) {
        Ok(statement) if word.is_empty() && is_empty(&statement) => {
            Ok(Err(Rejection::new(Code::BadRequest, "the text holds no statement")))
        }
        Ok(statement) => Ok(Ok(statement)),
        Err(rusqlite::Error::MultipleStatement) => {
            let rejection = Rejection::new(Code::BadRequest, "the text holds more than one statement");
            Ok(Err(rejection.with_hint("send several statements as a batch")))
        }
        Err(error) => rejection(error, guard).map(Err),
    }
}

/// White space and comments prepare to nothing.
fn is_empty(statement: &Statement<'_>) -> bool {
    statement.expanded_sql().is_none()
}

/// What an error of SQLite means: a refusal that is the same on every replica, or (the error itself) trouble of this
/// one.
///
/// # Errors
/// The error, where the replica or the database's file has failed.
pub fn rejection(error: rusqlite::Error, guard: &Guard) -> rusqlite::Result<Rejection> {
    let (cause, message, offset) = match &error {
        rusqlite::Error::SqliteFailure(cause, message) => (*cause, message.clone(), None),
        rusqlite::Error::SqlInputError { error: cause, msg, offset, .. } => {
            (*cause, Some(msg.clone()), u32::try_from(*offset).ok())
        }
        _ => return Err(error),
    };
    let denial = guard.take_denial();
    // Functions that are not allowed are told as ordinary errors.
    let denied =
        denial.is_some() && matches!(cause.code, ErrorCode::AuthorizationForStatementDenied | ErrorCode::Unknown);
    let code = match cause.code {
        _ if denied => Code::StatementDenied,
        // What is no integer cannot be an INTEGER PRIMARY KEY.
        ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch => Code::Constraint,
        ErrorCode::AuthorizationForStatementDenied => Code::StatementDenied,
        ErrorCode::ReadOnly if guard.shared.read_only.load(Ordering::Relaxed) => Code::StatementDenied,
        ErrorCode::TooBig | ErrorCode::OperationInterrupted => Code::TooLarge,
        ErrorCode::Unknown
        | ErrorCode::OperationAborted
        | ErrorCode::DatabaseLocked
        | ErrorCode::ParameterOutOfRange => Code::SqlError,
        ErrorCode::DiskFull if !clock::take_disk_full() => Code::SqlError,
        // A virtual table's content that does not fit together came in by a file or by SQL, and is the same everywhere.
        ErrorCode::DatabaseCorrupt if cause.extended_code == ffi::SQLITE_CORRUPT_VTAB => Code::SqlError,
        _ => return Err(error),
    };
    let (detail, hint) = match (denial, cause.code) {
        (Some(denial), _) if denied => (denial.detail, denial.hint),
        (_, ErrorCode::OperationInterrupted) => (
            format!("the operation took more than {} million steps", STEPS_MAX / 1_000_000),
            Some("divide it into smaller ones".to_owned()),
        ),
        (_, ErrorCode::DiskFull) => ("the table has used up its AUTOINCREMENT values".to_owned(), None),
        _ => (message.unwrap_or_else(|| cause.to_string()), None),
    };
    Ok(Rejection { code, detail, hint, sqlite_code: Some(cause.extended_code), offset, statement: None })
}

#[cfg(test)]
mod tests;
