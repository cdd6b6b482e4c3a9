//! Uploaded files: whether they are databases that can be served.

use std::ffi::c_char;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use d3b::{Code, DatabaseId, Rejection};
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use crate::database::{self, OpenError};
use crate::{catalogue, clock, guard, statement, text};

/// What every SQLite database begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// How long its header is.
const HEADER_BYTES: usize = 100;

/// Whether a file is a whole and sound SQLite database that can be served. It is not changed, and nothing is left
/// beside it. What its last user had in a write-ahead log is not part of it.
///
/// # Errors
/// `not-a-database` says what is wrong with it; `internal` when it cannot be read.
pub fn check_upload(path: &Path) -> Result<(), Rejection> {
    check_header(path)?;
    clock::register();
    check_content(path, Own::None).map_err(Problem::into_rejection)
}

/// The same for the file of a database out of a backup, in which d3b's own tables are as they were.
///
/// # Errors
/// As [`check_upload`]; also if the file is not that of this database.
pub(crate) fn check_copy(path: &Path, id: DatabaseId) -> Result<(), Rejection> {
    check_header(path)?;
    clock::register();
    check_content(path, Own::Of(id)).map_err(Problem::into_rejection)
}

/// The same for a backup's catalogue, in which nothing stands but what every catalogue is made of.
///
/// # Errors
/// As [`check_upload`].
pub(crate) fn check_catalogue(path: &Path) -> Result<(), Rejection> {
    check_header(path)?;
    clock::register();
    let checked = check_content(path, Own::All);
    checked.map_err(Problem::into_rejection)
}

/// Which tables of d3b's own a file is to have.
#[derive(Clone, Copy)]
enum Own {
    None,
    /// Those of a database with this id.
    Of(DatabaseId),
    /// All are d3b's own: it is a catalogue.
    All,
}

fn refuse(detail: impl Into<String>) -> Rejection {
    Rejection::new(Code::NotADatabase, detail)
}

fn check_header(path: &Path) -> Result<(), Rejection> {
    let unread =
        |error: io::Error| Rejection::new(Code::Internal, format!("the uploaded file cannot be read: {error}"));
    let mut file = File::open(path).map_err(unread)?;
    let length = file.metadata().map_err(unread)?.len();
    let mut header = [0_u8; HEADER_BYTES];
    if let Err(error) = file.read_exact(&mut header) {
        return Err(if error.kind() == io::ErrorKind::UnexpectedEof {
            refuse(format!("the file has {length} bytes, and every SQLite database has more"))
        } else {
            unread(error)
        });
    }
    if !header.starts_with(MAGIC) {
        return Err(refuse("the file does not begin as a SQLite database does")
            .with_hint("a text dump can be loaded with SQL, an encrypted database not at all"));
    }
    if !(1..=2).contains(&header[18]) || !(1..=2).contains(&header[19]) {
        return Err(refuse("its header asks for a newer SQLite than this one, which could only read it"));
    }
    let page_size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size if size >= 512 && size.is_power_of_two() => u64::from(size),
        size => return Err(refuse(format!("its header gives a page size of {size}"))),
    };
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    // The number of pages counts where the same program wrote it that changed the file last.
    let pages = if number(24) == number(92) { u64::from(number(28)) } else { length / page_size };
    if length % page_size != 0 || pages * page_size > length {
        let detail =
            format!("the file is truncated: it has {length} bytes, where {pages} pages of {page_size} are due");
        return Err(refuse(detail).with_hint("copy a database that is in use with the .backup command of sqlite3"));
    }
    Ok(())
}

/// Why the content does not pass.
enum Problem {
    Refused(Rejection),
    Sqlite(rusqlite::Error),
}

impl Problem {
    fn into_rejection(self) -> Rejection {
        match self {
            Problem::Refused(rejection) => rejection,
            Problem::Sqlite(error) => told(&error),
        }
    }
}

impl From<rusqlite::Error> for Problem {
    fn from(error: rusqlite::Error) -> Problem {
        Problem::Sqlite(error)
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Problem {
        Problem::Refused(rejection)
    }
}

fn check_content(path: &Path, own: Own) -> Result<(), Problem> {
    let connection = open_immutable(path)?;
    keep_known_modules(&connection);
    check_schema(&connection, own)?;
    let id = match own {
        Own::None => None,
        Own::Of(id) => Some(id),
        Own::All => Some(DatabaseId::catalogue()),
    };
    if let Some(id) = id {
        database::read_state(&connection, id).map_err(|error| match error {
            OpenError::Sqlite(error) => Problem::Sqlite(error),
            OpenError::Foreign(problem) => refuse(problem).into(),
        })?;
    }
    check_virtual_tables(&connection)?;
    let first: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if first != "ok" {
        return Err(refuse(format!("the database is damaged: {first}")).into());
    }
    check_rowids(&connection)
}

/// Opened as immutable, SQLite takes no locks, and makes no files beside a database in WAL mode.
pub(crate) fn open_immutable(path: &Path) -> rusqlite::Result<Connection> {
    let mut uri = String::from("file:");
    for byte in std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()) {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags_and_vfs(uri, flags, clock::VFS)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, guard::VALUE_BYTES_MAX)?;
    connection.execute_batch("PRAGMA cell_size_check=ON")?;
    Ok(connection)
}

/// The schema is text of a stranger. What it says must be readable, and must leave d3b's own tables alone, which come
/// into the same file: a foreign key or trigger on them would be served by d3b's own statements.
fn check_schema(connection: &Connection, own: Own) -> Result<(), Problem> {
    let mut statement = connection.prepare("SELECT name, tbl_name, coalesce(sql, '') FROM sqlite_schema")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let mut texts = [""; 3];
        for (column, text) in texts.iter_mut().enumerate() {
            *text = std::str::from_utf8(row.get_ref(column)?.as_bytes().map_err(rusqlite::Error::from)?)
                .map_err(|_| refuse("its schema holds a name that is not UTF-8"))?;
        }
        let [name, table, sql] = texts;
        match own {
            Own::None => {}
            Own::Of(_) if database::is_own(name, table, sql) => continue,
            Own::Of(_) => {}
            Own::All if database::is_own(name, table, sql) || catalogue::is_own(sql) => continue,
            Own::All => return Err(refuse(format!("{name} does not belong into a catalogue")).into()),
        }
        if text::is_hidden(name) || text::is_hidden(table) || text::mentions_hidden(sql) {
            let hint =
                "names that begin with _d3b_ are d3b's own: download databases from d3b instead of copying its files";
            let detail = format!("{name} in its schema is, or refers to, a table whose name begins with _d3b_");
            return Err(refuse(detail).with_hint(hint).into());
        }
    }
    Ok(())
}

/// Makes all other kinds of virtual tables unknown to a connection.
fn keep_known_modules(connection: &Connection) {
    let mut names: Vec<*const c_char> = guard::MODULES.iter().map(|name| name.as_ptr()).collect();
    names.push(std::ptr::null());
    // Safety: the handle is that of a live connection, and the list of C strings ends with a null pointer.
    unsafe { ffi::sqlite3_drop_modules(connection.handle(), names.as_mut_ptr()) };
}

/// A virtual table that cannot be opened here could not be dropped either.
fn check_virtual_tables(connection: &Connection) -> Result<(), Problem> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage = 0";
    let tables: Vec<String> =
        connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for table in tables {
        let sql = format!("SELECT 1 FROM main.\"{}\" LIMIT 0", table.replace('"', "\"\""));
        if let Err(error) = connection.prepare(&sql) {
            return Err(refuse(format!("its virtual table {table} cannot be served: {error}")).into());
        }
    }
    Ok(())
}

/// After the greatest rowid the next one would be random.
fn check_rowids(connection: &Connection) -> Result<(), Problem> {
    let sql = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'shadow') AND wr = 0";
    let tables: Vec<String> =
        connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for table in tables {
        let columns: Vec<String> = connection
            .prepare("SELECT lower(name) FROM pragma_table_xinfo(?)")?
            .query_map([&table], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        // A column may have one of the rowid's names; a table with all three of them has none left for it.
        let Some(rowid) = ["rowid", "oid", "_rowid_"].into_iter().find(|name| !columns.iter().any(|it| it == name))
        else {
            continue;
        };
        let sql = format!("SELECT 1 FROM main.\"{}\" WHERE {rowid} = {}", table.replace('"', "\"\""), i64::MAX);
        if connection.prepare(&sql)?.exists([])? {
            let Rejection { detail, .. } = statement::greatest_rowid();
            return Err(refuse(format!("in table {table} {detail}")).into());
        }
    }
    Ok(())
}

/// What SQLite says of a file that it cannot read to its end.
fn told(error: &rusqlite::Error) -> Rejection {
    match crate::database::sqlite_error(error).map(|error| error.code) {
        Some(ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory | ErrorCode::CannotOpen | ErrorCode::DiskFull) => {
            Rejection::new(Code::Internal, format!("the uploaded file cannot be read: {error}"))
        }
        _ => refuse(format!("the database is damaged or cannot be served: {error}")),
    }
}
