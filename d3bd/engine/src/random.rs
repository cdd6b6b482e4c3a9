//! `random()` and `randomblob()` from an entry's seed, so that every replica rolls the same dice.
//!
//! The functions are not marked DETERMINISTIC (SQLite would fold calls into constants) nor DIRECTONLY: they hold in
//! defaults, triggers and ORDER BY.

use std::cell::Cell;
use std::marker::PhantomData;

use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, Error, ffi};

/// The longest result of `randomblob()`, in bytes; as long as any value may be.
const BLOB_BYTES_MAX: i64 = crate::guard::VALUE_BYTES_MAX as i64;

thread_local! {
    /// The state of the generator, while an entry is applied on this thread.
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// While it lives, randomness on this thread comes from an entry's seed.
#[derive(Debug)]
pub struct EntryRandom {
    previous: Option<u64>,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

/// Draws randomness on this thread from a seed until the answer is dropped; outside of that it is the system's.
#[must_use]
pub fn enter(seed: u64) -> EntryRandom {
    EntryRandom { previous: STATE.replace(Some(seed)), not_send: PhantomData }
}

impl Drop for EntryRandom {
    fn drop(&mut self) {
        STATE.set(self.previous);
    }
}

/// Replaces SQLite's own functions on a connection.
///
/// # Errors
/// SQLite refuses them, for want of memory.
pub fn install(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    connection.create_scalar_function("random", 0, flags, |_| next().map(u64::cast_signed))?;
    connection.create_scalar_function("randomblob", 1, flags, |context| {
        // As SQLite's own does it: whatever is below 1 or no number means one byte.
        let length = match context.get_raw(0) {
            rusqlite::types::ValueRef::Integer(length) => length,
            rusqlite::types::ValueRef::Real(length) => length as i64,
            rusqlite::types::ValueRef::Text(text) => leading_integer(text),
            rusqlite::types::ValueRef::Null | rusqlite::types::ValueRef::Blob(_) => 0,
        }
        .max(1);
        if length > BLOB_BYTES_MAX {
            return Err(Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_TOOBIG), None));
        }
        let length = usize::try_from(length).expect("it is between 1 and the bound");
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&next()?.to_le_bytes());
        }
        bytes.truncate(length);
        Ok(bytes)
    })
}

/// The integer that a text begins with, as CAST reads it.
fn leading_integer(text: &[u8]) -> i64 {
    let text = String::from_utf8_lossy(text);
    let text = text.trim_start();
    let end = text.char_indices().find(|(at, c)| !(c.is_ascii_digit() || (*at == 0 && matches!(c, '+' | '-'))));
    text[..end.map_or(text.len(), |(at, _)| at)].parse().unwrap_or(0)
}

/// The next 64 random bits.
fn next() -> rusqlite::Result<u64> {
    match STATE.get() {
        Some(mut state) => {
            let bits = d3b::splitmix64(&mut state);
            STATE.set(Some(state));
            Ok(bits)
        }
        None => system(),
    }
}

fn system() -> rusqlite::Result<u64> {
    let mut bytes = [0_u8; 8];
    // Safety: the buffer is as long as it is said to be.
    let length = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(length) == Ok(bytes.len()) {
        Ok(u64::from_le_bytes(bytes))
    } else {
        Err(Error::UserFunctionError(Box::new(std::io::Error::last_os_error())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAW: &str = "SELECT random() || ' ' || hex(randomblob(11)) || ' ' || random()";

    fn draw(connection: &Connection, sql: &str) -> String {
        connection.query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0)).map(|v| format!("{v:?}")).unwrap()
    }

    fn connection() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        install(&connection).unwrap();
        connection
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let (one, other) = (connection(), connection());
        let drawn = [7, 7, 8].map(|seed| {
            let _random = enter(seed);
            draw(&one, DRAW)
        });
        assert_eq!(drawn[0], drawn[1]);
        assert_ne!(drawn[0], drawn[2]);
        let _random = enter(7);
        assert_eq!(draw(&other, DRAW), drawn[0]);
        assert_ne!(draw(&other, DRAW), drawn[0], "the sequence goes on");
    }

    #[test]
    fn outside_of_entries_it_is_the_systems() {
        let connection = connection();
        assert_ne!(draw(&connection, DRAW), draw(&connection, DRAW));
    }

    #[test]
    fn it_holds_in_defaults_triggers_and_order_by() {
        let connection = connection();
        connection
            .execute_batch(
                "CREATE TABLE t(x, r DEFAULT (random()));
                 CREATE TABLE l(r);
                 CREATE TRIGGER a AFTER INSERT ON t BEGIN INSERT INTO l VALUES(random()); END;",
            )
            .unwrap();
        let run = || {
            let _random = enter(3);
            connection.execute_batch("DELETE FROM t; DELETE FROM l; INSERT INTO t(x) VALUES(1), (2), (3)").unwrap();
            let list = "SELECT group_concat(x || r) FROM (SELECT * FROM t ORDER BY random())";
            draw(&connection, list) + &draw(&connection, "SELECT group_concat(r) FROM l")
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn lengths_of_blobs() {
        let connection = connection();
        for (argument, expected) in
            [("0", 1), ("-5", 1), ("NULL", 1), ("'12abc'", 12), ("9", 9), ("3.9", 3), ("'x'", 1)]
        {
            let sql = format!("SELECT length(randomblob({argument}))");
            assert_eq!(draw(&connection, &sql), format!("Integer({expected})"), "{argument}");
        }
        assert!(connection.query_row("SELECT randomblob(9223372036854775807)", [], |_| Ok(())).is_err());
    }
}
