//! The chain of effects that replicas compare.
//!
//! A hook sees every row that a database's tables lose and gain. An operation's effects, its result code and, after
//! DDL, the schema are folded into the chain that the database had before it; two replicas that applied the same
//! entries have the same chain, and one that differs has lost its way.
//!
//! What an operation did before it was rolled back is left out; its code is not. d3b's own tables are left out too:
//! keys and answers follow from what is folded in.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;

use d3b::Slot;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, ffi};
use xxhash_rust::xxh3::Xxh3;

use crate::planted::{self, Planted};

/// A database's chain of effects so far: xxh3-128, written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl ToSql for Fingerprint {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(&self.0)))
    }
}

impl FromSql for Fingerprint {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Fingerprint> {
        value.as_blob()?.try_into().map(Fingerprint).map_err(|_| FromSqlError::InvalidType)
    }
}

/// The signature of a preupdate hook: context, connection, operation, database, table, rowid before and after.
type Hook = unsafe extern "C" fn(
    *mut c_void,
    *mut ffi::sqlite3,
    c_int,
    *const c_char,
    *const c_char,
    ffi::sqlite3_int64,
    ffi::sqlite3_int64,
);

// Declared by hand: the bindings have them only with a feature that needs libclang. SQLite itself is built with
// SQLITE_ENABLE_PREUPDATE_HOOK (.cargo/config.toml); without it, linking fails.
unsafe extern "C" {
    fn sqlite3_preupdate_hook(db: *mut ffi::sqlite3, hook: Option<Hook>, context: *mut c_void) -> *mut c_void;
    fn sqlite3_preupdate_count(db: *mut ffi::sqlite3) -> c_int;
    fn sqlite3_preupdate_old(db: *mut ffi::sqlite3, column: c_int, value: *mut *mut ffi::sqlite3_value) -> c_int;
    fn sqlite3_preupdate_new(db: *mut ffi::sqlite3, column: c_int, value: *mut *mut ffi::sqlite3_value) -> c_int;
}

/// What the hook writes to.
struct Effects {
    /// Whether an operation is under way.
    active: Cell<bool>,
    /// How many rows were changed.
    rows: Cell<u64>,
    /// Over the changed rows.
    hasher: RefCell<Xxh3>,
    /// Whether a row got the greatest rowid.
    greatest_rowid: Cell<bool>,
    /// Whether a value could not be read.
    failed: Cell<bool>,
}

/// Sees the effects of one connection.
///
/// It is dropped with its connection, which must not run anything after that.
pub struct Recorder {
    /// The hook points at it, so it stays where it is.
    effects: Box<Effects>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("rows", &self.effects.rows.get()).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Puts the hook onto a connection, which must be the recorder's companion for the rest of its life. As long as the
    /// hook is there, `DELETE FROM t` without WHERE goes row by row.
    #[must_use]
    pub fn attach(connection: &Connection) -> Recorder {
        let effects = Box::new(Effects {
            active: Cell::new(false),
            rows: Cell::new(0),
            hasher: RefCell::new(Xxh3::new()),
            greatest_rowid: Cell::new(false),
            failed: Cell::new(false),
        });
        let context = std::ptr::from_ref::<Effects>(&effects).cast_mut().cast();
        // Safety: the context is boxed, and outlives every statement of the connection by the contract above.
        unsafe { sqlite3_preupdate_hook(connection.handle(), Some(preupdate), context) };
        Recorder { effects }
    }

    /// Begins an operation.
    pub fn begin(&self) {
        self.discard();
        self.effects.active.set(true);
    }

    /// Forgets the effects of an operation that was rolled back, and ends it.
    pub fn discard(&self) {
        self.effects.active.set(false);
        self.effects.greatest_rowid.set(false);
        self.effects.failed.set(false);
        if self.effects.rows.replace(0) > 0 {
            self.effects.hasher.borrow_mut().reset();
        }
    }

    /// Folds in a row that came to be without the hook.
    pub fn fold(&self, table: &str, values: &[ValueRef<'_>]) {
        self.effects.rows.set(self.effects.rows.get() + 1);
        let mut hasher = self.effects.hasher.borrow_mut();
        for part in [b"row of", table.as_bytes()] {
            fold_bytes(&mut hasher, part);
        }
        hasher.update(&(values.len() as u64).to_le_bytes());
        for value in values {
            match value {
                ValueRef::Null => hasher.update(&[0]),
                ValueRef::Integer(integer) => {
                    hasher.update(&[1]);
                    hasher.update(&integer.to_le_bytes());
                }
                ValueRef::Real(real) => {
                    hasher.update(&[2]);
                    hasher.update(&real.to_bits().to_le_bytes());
                }
                ValueRef::Text(bytes) => {
                    hasher.update(&[3]);
                    fold_bytes(&mut hasher, bytes);
                }
                ValueRef::Blob(bytes) => {
                    hasher.update(&[4]);
                    fold_bytes(&mut hasher, bytes);
                }
            }
        }
    }

    /// Whether the operation so far gave a row the greatest rowid (the one after it would be random).
    #[must_use]
    pub fn saw_greatest_rowid(&self) -> bool {
        self.effects.greatest_rowid.get() && !planted::breaks(Planted::GreatestRowidAllowed)
    }

    /// Whether a value could not be read, for want of memory: the chain would be wrong.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.effects.failed.get()
    }

    /// Ends an operation and gives the chain after it. `code` tells what came of it, `change` what it did beside rows,
    /// and `schema` what the schema is where it may have changed.
    #[must_use]
    pub fn finish(
        &self,
        previous: Fingerprint,
        slot: Slot,
        code: &str,
        change: &str,
        schema: Option<&str>,
    ) -> Fingerprint {
        let mut chain = Xxh3::new();
        chain.update(&previous.0);
        chain.update(&slot.0.to_le_bytes());
        chain.update(&self.effects.rows.get().to_le_bytes());
        if self.effects.rows.get() > 0 {
            chain.update(&self.effects.hasher.borrow().digest128().to_le_bytes());
        }
        for text in [Some(code), Some(change), schema] {
            let length = text.map_or(u64::MAX, |text| text.len() as u64);
            chain.update(&length.to_le_bytes());
            chain.update(text.unwrap_or_default().as_bytes());
        }
        self.discard();
        Fingerprint(chain.digest128().to_le_bytes())
    }
}

unsafe extern "C" fn preupdate(
    context: *mut c_void,
    db: *mut ffi::sqlite3,
    operation: c_int,
    _database: *const c_char,
    table: *const c_char,
    old_rowid: ffi::sqlite3_int64,
    new_rowid: ffi::sqlite3_int64,
) {
    // Safety: the context is the one of `attach`, and the table a C string for the time of the call.
    let (effects, table) = unsafe { (&*context.cast::<Effects>(), CStr::from_ptr(table)) };
    if !effects.active.get() || table.to_bytes().starts_with(b"_d3b_") {
        return;
    }
    if operation != ffi::SQLITE_DELETE && new_rowid == i64::MAX {
        effects.greatest_rowid.set(true);
    }
    effects.rows.set(effects.rows.get() + 1);
    let mut hasher = effects.hasher.borrow_mut();
    hasher.update(&operation.to_le_bytes());
    hasher.update(table.to_bytes_with_nul());
    hasher.update(&old_rowid.to_le_bytes());
    hasher.update(&new_rowid.to_le_bytes());
    // Safety: these may be called within the hook, with columns below the count; old values exist for updates and
    // deletions, new ones for updates and insertions.
    let complete = unsafe {
        let count = sqlite3_preupdate_count(db);
        hasher.update(&count.to_le_bytes());
        (operation == ffi::SQLITE_INSERT || fold_row(&mut hasher, db, count, sqlite3_preupdate_old))
            && (operation == ffi::SQLITE_DELETE || fold_row(&mut hasher, db, count, sqlite3_preupdate_new))
    };
    if !complete {
        effects.failed.set(true);
    }
}

/// How the values before or after a change are asked for.
type Get = unsafe extern "C" fn(*mut ffi::sqlite3, c_int, *mut *mut ffi::sqlite3_value) -> c_int;

/// Folds one side of a change in; `false` where memory ran out.
///
/// # Safety
/// Within the hook only, for an operation that has the values which `get` gives.
unsafe fn fold_row(hasher: &mut Xxh3, db: *mut ffi::sqlite3, count: c_int, get: Get) -> bool {
    for column in 0..count {
        let mut value = std::ptr::null_mut();
        // Safety: the caller's promise; a value is valid until the hook returns.
        unsafe {
            match get(db, column, &mut value) {
                ffi::SQLITE_OK if !value.is_null() && fold_value(hasher, value) => {}
                ffi::SQLITE_OK | ffi::SQLITE_NOMEM => return false,
                // A virtual column has no value of its own (SQLITE_RANGE); what else SQLite cannot give, it cannot give
                // anywhere.
                code => hasher.update(&[u8::MAX, code.to_le_bytes()[0]]),
            }
        }
    }
    true
}

/// `false` where memory ran out.
///
/// # Safety
/// The value is a valid, protected one.
unsafe fn fold_value(hasher: &mut Xxh3, value: *mut ffi::sqlite3_value) -> bool {
    // Safety: the caller's promise; text and blob are as long as SQLite says, and asked for before their length.
    unsafe {
        let kind = ffi::sqlite3_value_type(value);
        hasher.update(&[u8::try_from(kind).unwrap_or(u8::MAX)]);
        match kind {
            ffi::SQLITE_INTEGER => hasher.update(&ffi::sqlite3_value_int64(value).to_le_bytes()),
            ffi::SQLITE_FLOAT => hasher.update(&ffi::sqlite3_value_double(value).to_bits().to_le_bytes()),
            ffi::SQLITE_TEXT => {
                let start = ffi::sqlite3_value_text(value);
                // Only a text that could not be converted, for want of memory, has no address.
                if start.is_null() {
                    return false;
                }
                fold_bytes(hasher, bytes(start, value));
            }
            ffi::SQLITE_BLOB => fold_bytes(hasher, bytes(ffi::sqlite3_value_blob(value).cast(), value)),
            _ => {}
        }
    }
    true
}

/// # Safety
/// `start` is the text or blob of the value, which outlives the answer.
unsafe fn bytes<'v>(start: *const u8, value: *mut ffi::sqlite3_value) -> &'v [u8] {
    // Safety: the caller's promise.
    let length = usize::try_from(unsafe { ffi::sqlite3_value_bytes(value) }).unwrap_or(0);
    // An empty blob has no address.
    if start.is_null() || length == 0 {
        return &[];
    }
    // Safety: SQLite has told the length.
    unsafe { std::slice::from_raw_parts(start, length) }
}

fn fold_bytes(hasher: &mut Xxh3, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chain after some SQL on a database that another text has prepared.
    fn chain(schema: &str, sql: &str) -> Fingerprint {
        let connection = Connection::open_in_memory().unwrap();
        let recorder = Recorder::attach(&connection);
        connection.execute_batch(schema).unwrap();
        recorder.begin();
        connection.execute_batch(sql).unwrap();
        assert!(!recorder.has_failed());
        recorder.finish(Fingerprint::default(), Slot(1), "ok", "", None)
    }

    const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, 'a'), (2, 'b');";

    #[track_caller]
    fn check_differ(schema: &str, texts: &[&str]) {
        let mut seen = Vec::new();
        for text in texts {
            let found = chain(schema, text);
            assert_eq!(found, chain(schema, text), "{text}");
            assert!(!seen.contains(&found), "{text}");
            seen.push(found);
        }
    }

    #[test]
    fn every_effect_counts() {
        check_differ(
            SCHEMA,
            &[
                "",
                "INSERT INTO t VALUES(3, 'a')",
                "INSERT INTO t VALUES(3, x'61')",
                "INSERT INTO t VALUES(3, 1)",
                "INSERT INTO t VALUES(3, 1.0)",
                "INSERT INTO t VALUES(3, NULL)",
                "INSERT INTO t VALUES(4, 'a')",
                "UPDATE t SET x = 'c' WHERE id = 1",
                "UPDATE t SET id = 7 WHERE id = 1",
                "DELETE FROM t WHERE id = 1",
                "DELETE FROM t WHERE id = 2",
                "DELETE FROM t",
                "REPLACE INTO t VALUES(1, 'c')",
                "INSERT INTO t VALUES(3, ''), (4, 'a')",
                "INSERT INTO t VALUES(3, 'a'), (4, '')",
            ],
        );
    }

    #[test]
    fn tables_without_rowid_count_too() {
        check_differ(
            "CREATE TABLE w(a, b, c, PRIMARY KEY(b, a)) WITHOUT ROWID; INSERT INTO w VALUES(1, 2, 3), (4, 5, 6);",
            &[
                "",
                "INSERT INTO w VALUES(7, 8, 9)",
                "UPDATE w SET c = 4 WHERE a = 1",
                "UPDATE w SET c = 4 WHERE a = 4",
                "DELETE FROM w WHERE a = 1",
                "DELETE FROM w",
            ],
        );
    }

    #[test]
    fn generated_columns_do_no_harm() {
        check_differ(
            "CREATE TABLE g(a INTEGER PRIMARY KEY, v AS (a + 1), b, s AS (b || a) STORED); INSERT INTO g(b) VALUES(1), (2);
             ALTER TABLE g ADD COLUMN late DEFAULT 5;",
            &["", "INSERT INTO g(b) VALUES(3)", "UPDATE g SET b = 9 WHERE a = 1", "UPDATE g SET late = 6", "DELETE FROM g"],
        );
    }

    #[test]
    fn virtual_tables_count_by_their_shadows() {
        check_differ(
            "CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES('one');",
            &["", "INSERT INTO f VALUES('two')", "INSERT INTO f VALUES('three')", "DELETE FROM f"],
        );
    }

    #[test]
    fn what_was_discarded_leaves_no_trace() {
        let connection = Connection::open_in_memory().unwrap();
        let recorder = Recorder::attach(&connection);
        connection.execute_batch(SCHEMA).unwrap();
        recorder.begin();
        connection.execute_batch("INSERT INTO t VALUES(9223372036854775807, 'x')").unwrap();
        assert!(recorder.saw_greatest_rowid());
        recorder.discard();
        assert!(!recorder.saw_greatest_rowid());
        let empty = Recorder::attach(&Connection::open_in_memory().unwrap());
        let finish = |recorder: &Recorder, code| recorder.finish(Fingerprint::default(), Slot(1), code, "", None);
        assert_eq!(finish(&recorder, "constraint"), finish(&empty, "constraint"));
        assert_ne!(finish(&recorder, "constraint"), finish(&empty, "sql-error"));
    }

    #[test]
    fn the_chain_depends_on_all_that_is_folded_in() {
        let recorder = Recorder::attach(&Connection::open_in_memory().unwrap());
        let start = Fingerprint::default();
        let chains = [
            recorder.finish(start, Slot(1), "ok", "", None),
            recorder.finish(start, Slot(2), "ok", "", None),
            recorder.finish(Fingerprint([1; 16]), Slot(1), "ok", "", None),
            recorder.finish(start, Slot(1), "ok", "upload", None),
            recorder.finish(start, Slot(1), "ok", "", Some("")),
            recorder.finish(start, Slot(1), "ok", "", Some("CREATE TABLE t(x)")),
            recorder.finish(start, Slot(1), "o", "k", None),
        ];
        for (index, chain) in chains.iter().enumerate() {
            assert!(!chains[..index].contains(chain), "{index}");
        }
        assert_eq!(Fingerprint([0xab; 16]).to_string(), "ab".repeat(16));
    }
}
