//! Files to upload, made by the tests themselves.

use std::io::Read;
use std::path::Path;

use d3b::{Digest, Hasher};
use rusqlite::Connection;

/// Makes a database file out of SQL, in rollback mode.
///
/// # Panics
/// When the SQL is wrong.
#[track_caller]
pub fn make_database(path: &Path, sql: &str) {
    let connection = Connection::open(path).expect("a database file");
    connection.execute_batch(sql).expect("SQL that is right");
    connection.close().expect("a database that can be closed");
}

/// The bytes of such a file.
///
/// # Panics
/// When the SQL is wrong.
#[must_use]
#[track_caller]
pub fn database_bytes(sql: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("sample.sqlite3");
    make_database(&path, sql);
    std::fs::read(&path).expect("the file that was just made")
}

/// A shop: tables, an index, a view, a trigger and some rows.
pub const SHOP: &str = "
    CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, joined TEXT DEFAULT CURRENT_TIMESTAMP);
    CREATE TABLE orders(id INTEGER PRIMARY KEY AUTOINCREMENT, user INTEGER NOT NULL REFERENCES users(id), total REAL);
    CREATE INDEX orders_by_user ON orders(user);
    CREATE VIEW spending AS SELECT name, sum(total) AS total FROM users JOIN orders ON user = users.id GROUP BY name;
    CREATE TRIGGER no_gifts BEFORE INSERT ON orders WHEN new.total <= 0 BEGIN SELECT raise(ABORT, 'no gifts'); END;
    INSERT INTO users(name) VALUES('Ann'), ('Bob'), ('Cy');
    INSERT INTO orders(user, total) VALUES(1, 9.5), (2, 20), (1, 0.5);";

/// Everything in a database file as text: its schema, and every row of every table.
///
/// # Panics
/// When it is not a database.
#[must_use]
#[track_caller]
pub fn dump(file: &[u8]) -> String {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("dump.sqlite3");
    std::fs::write(&path, file).expect("room for a copy");
    let connection = Connection::open(&path).expect("a database file");
    let texts = |sql: &str| -> Vec<String> {
        let mut statement = connection.prepare(sql).expect("SQL that is right");
        let rows = statement.query_map([], |row| row.get(0)).expect("a query");
        rows.collect::<Result<_, _>>().expect("texts")
    };
    let mut out = texts("SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema ORDER BY 1");
    for table in texts("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY 1") {
        let columns = texts(&format!("SELECT name FROM pragma_table_info('{table}') ORDER BY cid"));
        let quoted: Vec<String> = columns.iter().map(|column| format!("quote(\"{column}\")")).collect();
        let mut rows = texts(&format!("SELECT {} FROM \"{table}\"", quoted.join(" || ',' || ")));
        rows.sort();
        out.extend(rows.into_iter().map(|row| format!("{table}: {row}")));
    }
    out.join("\n")
}

/// Bytes that look random and are the same for the same seed: a file of any length that needs no memory.
#[derive(Debug, Clone)]
pub struct Noise {
    state: u64,
    left: u64,
}

impl Noise {
    /// So many bytes of noise.
    #[must_use]
    pub fn new(seed: u64, length: u64) -> Noise {
        Noise { state: seed | 1, left: length }
    }

    /// The digest of all of it.
    ///
    /// # Panics
    /// Never: reading noise does not fail.
    #[must_use]
    pub fn digest(mut self) -> Digest {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.read(&mut buffer).expect("noise can be read") {
                0 => return hasher.finish(),
                length => hasher.update(&buffer[..length]),
            }
        }
    }

    /// All of it at once.
    ///
    /// # Panics
    /// Never: reading noise does not fail.
    #[must_use]
    pub fn bytes(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).expect("noise can be read");
        bytes
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        for piece in buffer[..length].chunks_mut(8) {
            // xorshift64
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            piece.copy_from_slice(&self.state.to_le_bytes()[..piece.len()]);
        }
        self.left -= length as u64;
        Ok(length)
    }
}
