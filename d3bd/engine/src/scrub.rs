//! Reading a database from end to end, to see whether its disk still gives back what was written.
//!
//! SQLite knows when the structure of a file is broken, and not when a row says something else than it did. So all rows
//! are digested as well: after the same slot the digest is the same on every replica.

use std::sync::Arc;

use d3b::{DatabaseId, Slot};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode};
use xxhash_rust::xxh3::Xxh3;

use crate::database;
use crate::databases::is_damage;
use crate::fingerprint::Fingerprint;
use crate::guard::{self, Mode};
use crate::reader::Readers;

/// How many steps of SQLite's virtual machine lie between two looks at whether to go on.
const STEPS_PER_CALL: i32 = 4_000;
/// How many complaints of SQLite are looked at.
const COMPLAINTS_MAX: usize = 100;
/// What SQLite complains of that is no damage: rows that a constraint of today would refuse.
const HARMLESS: [&str; 2] = ["CHECK constraint failed", "NULL value in "];
/// Rows are counted as at least so many bytes.
const ROW_BYTES_MIN: u64 = 16;

/// Who says how fast to read.
pub trait Pace: Send + Sync {
    /// So many bytes were read; false where reading is to end.
    fn read(&self, bytes: u64) -> bool;
}

/// What came of reading a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scrubbed {
    /// SQLite finds nothing wrong with it.
    Sound {
        /// The slot that its state is of.
        slot: Slot,
        /// Its chain after that slot, as it says.
        chain: Fingerprint,
        /// A digest over its schema and all its rows, but for what d3b keeps in it for itself.
        digest: [u8; 16],
    },
    /// Its file is damaged.
    Damaged(String),
    /// It cannot be read now, or reading was ended: it was dropped, say.
    Unread(String),
}

impl Readers {
    /// Reads a database from end to end, as of one moment, on a connection of its own: what others have in memory says
    /// nothing about the disk. As long as it lasts, the write-ahead log cannot begin anew.
    #[must_use]
    pub fn scrub(&self, id: DatabaseId, pace: &Arc<dyn Pace>) -> Scrubbed {
        let path = database::path(self.directory(), id);
        if !path.exists() {
            return Scrubbed::Unread("it was dropped".to_owned());
        }
        let read = || -> rusqlite::Result<Scrubbed> {
            let (mut connection, guard) = guard::open_reader(&path)?;
            guard.set(Mode::Internal);
            let goes_on = Arc::clone(pace);
            connection.progress_handler(STEPS_PER_CALL, Some(move || !goes_on.read(0)))?;
            connection.execute_batch("BEGIN")?;
            if let Some(problem) = complaint(&connection)? {
                return Ok(Scrubbed::Damaged(problem));
            }
            let sql = "SELECT slot, fingerprint FROM _d3b_state";
            let (slot, chain) = connection.query_row(sql, [], |row| Ok((Slot(row.get(0)?), row.get(1)?)))?;
            Ok(match digest(&connection, pace.as_ref())? {
                Some(digest) => Scrubbed::Sound { slot, chain, digest },
                None => Scrubbed::Unread("reading was ended".to_owned()),
            })
        };
        read().unwrap_or_else(|error| {
            let interrupted =
                database::sqlite_error(&error).is_some_and(|error| error.code == ErrorCode::OperationInterrupted);
            if is_damage(&error) && !interrupted {
                Scrubbed::Damaged(error.to_string())
            } else {
                Scrubbed::Unread(error.to_string())
            }
        })
    }
}

/// What SQLite finds wrong with the structure of a file.
fn complaint(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let mut check = connection.prepare(&format!("PRAGMA quick_check({COMPLAINTS_MAX})"))?;
    let mut rows = check.query([])?;
    while let Some(row) = rows.next()? {
        let text: String = row.get(0)?;
        if text != "ok" && !HARMLESS.iter().any(|harmless| text.starts_with(harmless)) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// A digest over the schema and all rows, table by table, each in the order of its keys; `None` where it was ended. The
/// keys of requests, and what the catalogue says of this replica alone, are left out.
fn digest(connection: &Connection, pace: &dyn Pace) -> rusqlite::Result<Option<[u8; 16]>> {
    let mut hasher = Xxh3::new();
    // Virtual tables have no rows of their own: they lie in tables beside them.
    let sql = "SELECT s.name, coalesce(s.sql, ''), t.wr FROM sqlite_schema AS s \
               JOIN pragma_table_list AS t ON t.schema = 'main' AND t.name = s.name \
               WHERE s.type = 'table' AND s.rootpage > 0 AND (substr(s.name, 1, 5) <> '_d3b_' OR s.name = '_d3b_media') \
               ORDER BY s.name";
    let table = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let tables: Vec<(String, String, bool)> =
        connection.prepare(sql)?.query_map([], table)?.collect::<rusqlite::Result<_>>()?;
    for (name, definition, without_rowid) in tables {
        fold_bytes(&mut hasher, b't', name.as_bytes());
        fold_bytes(&mut hasher, b'd', definition.as_bytes());
        let rowid = if without_rowid { None } else { rowid_name(connection, &name)? };
        let rowid = rowid.map_or_else(String::new, |rowid| format!("{rowid}, "));
        let quoted = name.replace('"', "\"\"");
        let mut select = connection.prepare(&format!("SELECT {rowid}* FROM main.\"{quoted}\" NOT INDEXED"))?;
        let width = select.column_count();
        let mut rows = select.raw_query();
        while let Some(row) = rows.next()? {
            let mut bytes = ROW_BYTES_MIN;
            for column in 0..width {
                bytes += fold(&mut hasher, row.get_ref(column)?);
            }
            if !pace.read(bytes) {
                return Ok(None);
            }
        }
    }
    Ok(Some(hasher.digest128().to_be_bytes()))
}

/// A name by which the rowid of a table can be asked for: columns may have taken some, or all.
fn rowid_name(connection: &Connection, table: &str) -> rusqlite::Result<Option<&'static str>> {
    let columns: Vec<String> = connection
        .prepare("SELECT lower(name) FROM pragma_table_xinfo(?)")?
        .query_map([table], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(["rowid", "oid", "_rowid_"].into_iter().find(|name| !columns.iter().any(|column| column == name)))
}

/// Folds a value with its type; tells how many bytes it has.
fn fold(hasher: &mut Xxh3, value: ValueRef<'_>) -> u64 {
    match value {
        ValueRef::Null => fold_bytes(hasher, b'n', &[]),
        ValueRef::Integer(integer) => fold_bytes(hasher, b'i', &integer.to_le_bytes()),
        ValueRef::Real(real) => fold_bytes(hasher, b'r', &real.to_bits().to_le_bytes()),
        ValueRef::Text(text) => fold_bytes(hasher, b's', text),
        ValueRef::Blob(blob) => fold_bytes(hasher, b'b', blob),
    }
}

fn fold_bytes(hasher: &mut Xxh3, kind: u8, bytes: &[u8]) -> u64 {
    hasher.update(&[kind]);
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
    bytes.len() as u64
}
