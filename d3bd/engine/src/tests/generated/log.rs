//! Whole logs: databases that come and go, batches of statements, applications at work, keys that come again, files.

use std::fs;

use d3b::{Arguments, CatalogueChange, Expectation, MediaChange, Operation, Statement};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::applications::{APPLICATIONS, Application, complete};
use super::schema::{Kind, Schema};
use super::{Dice, Generator};
use crate::tests::*;

/// The databases of generated statements, some oftener than others, and the one of an application.
const DATABASES: &[&str] = &["a", "a", "a", "b"];
const APPLICATION: &str = "app";

/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;

/// The log of a lab in the making, and what comes of each entry when it is applied alone.
pub(crate) struct Making<'l> {
    pub lab: &'l mut Lab,
    pub applied: Vec<Applied>,
    /// The operations by slot, where there is one; for messages and for plain SQLite.
    pub operations: Vec<Option<Operation>>,
    application: &'static Application,
    /// What was sent, to be sent again.
    sent: Vec<(String, Operation)>,
    keys: u64,
}

impl<'l> Making<'l> {
    /// Nothing is in the log yet.
    pub fn new(lab: &'l mut Lab, seed: u64) -> Making<'l> {
        let application = APPLICATIONS[seed as usize % APPLICATIONS.len()];
        Making { lab, applied: Vec::new(), operations: Vec::new(), application, sent: Vec::new(), keys: 0 }
    }

    /// The name of the application at work.
    pub fn application(&self) -> &'static str {
        self.application.name
    }

    fn push(&mut self, key: &str, operation: Operation) {
        self.lab.append_keyed(key, operation.clone());
        self.sent.push((key.to_owned(), operation.clone()));
        self.operations.push(Some(operation));
        self.applied.extend(self.lab.catch_up(1));
    }

    fn push_bytes(&mut self, bytes: Option<Vec<u8>>) {
        self.lab.append_bytes(bytes);
        self.operations.push(None);
        self.applied.extend(self.lab.catch_up(1));
    }

    fn new_key(&mut self) -> String {
        self.keys += 1;
        format!("key {}", self.keys)
    }

    /// What a database holds now.
    fn schema(&self, database: &str) -> Schema {
        let open = |file: &str| {
            Connection::open_with_flags(self.lab.databases().join(file), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
        };
        let catalogue = open(&format!("{}.sqlite3", DatabaseId::catalogue()));
        let id: Option<String> = catalogue
            .query_row("SELECT id FROM tables WHERE name = ?", [database], |row| row.get(0))
            .optional()
            .unwrap();
        id.map(|id| Schema::read(&open(&format!("{id}.sqlite3"))).unwrap()).unwrap_or_default()
    }
}

/// Statements in one batch.
fn batch(database: &str, statements: Vec<Statement>, deferred_foreign_keys: bool) -> Operation {
    Operation::Sql { db: name(database), statements, deferred_foreign_keys, media: None }
}

/// A UUIDv7 of that moment.
fn uuid(time_ms: u64, last: u64) -> String {
    let hex = format!("{time_ms:012x}");
    format!("{}-{}-7000-8000-0000000000{last:02x}", &hex[..8], &hex[8..])
}

impl Generator {
    /// Makes a log of that length, at least.
    pub fn make(&mut self, making: &mut Making<'_>, length: usize) {
        // Log time is somewhere between 2000 and 2095, so that no replica's clock is near it.
        making.lab.clock_ms = 946_684_800_000 + self.dice.below(95 * 365) * 24 * HOUR_MS;
        self.send(making, create(APPLICATION));
        self.migrate(making);
        for database in ["a", "b"] {
            self.furnish(making, database);
        }
        while making.lab.log.len() < length {
            self.step(making);
        }
    }

    /// Makes sure that there is a database and that a few tables are in it.
    fn furnish(&mut self, making: &mut Making<'_>, database: &str) {
        self.send(making, create(database));
        for step in 0..8 {
            let schema = making.schema(database);
            let sql = match step {
                0..=4 => self.create_table(&schema),
                _ => self.definition(&schema),
            };
            self.send(making, batch(database, vec![statement(&sql, vec![])], false));
        }
    }

    /// Sends the schema of the application.
    fn migrate(&mut self, making: &mut Making<'_>) {
        let texts: Vec<String> = making.application.schema.iter().map(|sql| complete(sql, self.pure)).collect();
        let statements = texts.iter().map(|sql| statement(sql, vec![])).collect();
        self.send(making, batch(APPLICATION, statements, false));
    }

    fn send(&mut self, making: &mut Making<'_>, operation: Operation) {
        let key = match self.dice.below(24) {
            0 => {
                // Within its time, mostly.
                let offset = [-30, -25, -23, -1, 0, 0, 0, 1][self.dice.below(8) as usize] * HOUR_MS as i64;
                uuid(making.lab.clock_ms.saturating_add_signed(offset / 12), self.dice.below(4))
            }
            1 => format!("again {}", self.dice.below(6)),
            _ => making.new_key(),
        };
        making.push(&key, operation);
    }

    /// One entry, or a few that belong together.
    fn step(&mut self, making: &mut Making<'_>) {
        let database = self.dice.one_of(DATABASES);
        if making.schema(database).tables.is_empty() && self.dice.one_in(2) {
            // It was dropped or is empty, and there is little to do in it.
            self.furnish(making, database);
        }
        match self.dice.below(100) {
            0 => self.send(making, upload(database, None, InsertMode::Replace)),
            1 => self.send(making, delete(database)),
            2..=4 => self.send(making, create(database)),
            5 | 6 => self.upload_file(making, database),
            7 => self.raw_change(making, database),
            8..=11 => self.media(making, database),
            12 => making.push_bytes(None),
            13 => making.push_bytes(Some(vec![1, self.dice.below(256) as u8, 7])),
            14..=19 => {
                if let Some((key, operation)) = self.dice.pick(&making.sent).cloned() {
                    making.push(&key, operation);
                }
            }
            20 | 21 => making.lab.clock_ms += self.dice.below(14) * HOUR_MS,
            22..=50 => {
                let statements = (making.application.request)(&mut self.dice);
                let operation = batch(APPLICATION, statements, self.dice.one_in(12));
                // A client that heard no answer sends again.
                let again = self.dice.one_in(8);
                self.send(making, operation);
                if again && let Some((key, operation)) = making.sent.last().cloned() {
                    making.push(&key, operation);
                }
            }
            51 if self.dice.one_in(6) => {
                self.send(making, upload(APPLICATION, None, InsertMode::Replace));
                self.migrate(making);
            }
            _ => {
                let operation = self.batch(making, database);
                self.send(making, operation);
            }
        }
    }

    /// A few statements for a database as it is now.
    fn batch(&mut self, making: &Making<'_>, database: &str) -> Operation {
        let schema = making.schema(database);
        let count = [1, 1, 1, 2, 2, 3][self.dice.below(6) as usize];
        let statements = (0..count).map(|_| self.statement(&schema)).collect();
        batch(database, statements, self.dice.one_in(6))
    }

    fn statement(&mut self, schema: &Schema) -> Statement {
        self.arguments.clear();
        let few_tables = schema.of(&[Kind::Table]).len() < 3;
        let defines = self.dice.one_in(if few_tables { 2 } else { 6 });
        self.binds = !defines;
        let sql = if defines { self.definition(schema) } else { self.data(schema) };
        self.arguments.truncate(sql.matches('?').count());
        let expect = match self.dice.below(24) {
            0 => Some(Expectation::RowsAffected(self.dice.below(3))),
            1 => Some(Expectation::RowsReturned(self.dice.below(2))),
            _ => None,
        };
        Statement { sql, arguments: Arguments::Positional(std::mem::take(&mut self.arguments)), expect }
    }

    fn upload_file(&mut self, making: &mut Making<'_>, database: &str) {
        let mode = if self.dice.one_in(2) { InsertMode::Replace } else { InsertMode::CreateOnly };
        let bytes = self.file();
        let blob = making.lab.blob(&bytes);
        self.send(making, upload(database, Some(blob), mode));
    }

    /// A database that some other program made, in settings of its own; rarely something else.
    fn file(&mut self) -> Vec<u8> {
        if self.dice.one_in(8) {
            return b"no database".to_vec();
        }
        let mut script =
            self.dice.one_of(&["", "", "PRAGMA page_size = 1024;", "PRAGMA auto_vacuum = FULL;"]).to_owned();
        script += "CREATE TABLE t0(a INTEGER PRIMARY KEY, b TEXT UNIQUE, c);
                   INSERT INTO t0 VALUES(1, 'one', 1.5), (7, 'seven', x'07'), (-3, NULL, 'three words here');
                   CREATE TABLE t1(a, b REFERENCES t0(b) ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
                   INSERT INTO t1 VALUES(1, 'one'), (2, NULL);";
        for part in [
            "CREATE TABLE t2(a PRIMARY KEY, b, c AS (a || b)) WITHOUT ROWID; INSERT INTO t2(a, b) VALUES('x', 1), ('y', 2);",
            "CREATE VIRTUAL TABLE f0 USING fts5(x, y); INSERT INTO f0 VALUES('one two', 'three'), ('two', 'words here');",
            "CREATE INDEX i0 ON t0(c, b); ANALYZE;",
            "CREATE TABLE t3(a INTEGER PRIMARY KEY AUTOINCREMENT, b); INSERT INTO t3 VALUES(9223372036854775806, 1);",
            "CREATE TRIGGER g0 AFTER INSERT ON t1 BEGIN UPDATE t0 SET c = new.a WHERE b = new.b; END;",
            "DELETE FROM t0 WHERE a = 7; PRAGMA user_version = 3;",
        ] {
            if self.dice.one_in(2) {
                script += part;
            }
        }
        database_file(&script)
    }

    fn raw_change(&mut self, making: &mut Making<'_>, database: &str) {
        let file = format!("raw-{}", self.dice.below(5));
        let change = if self.dice.one_in(3) {
            let sql = format!("DELETE FROM tables WHERE fileid = '{file}'");
            CatalogueChange::RawDelete { statement: statement(&sql, vec![]), file_id: file_id(&file) }
        } else {
            let bytes = self.file();
            let blob = making.lab.blob(&bytes);
            let or = self.dice.one_of(&["", "OR REPLACE "]);
            let sql = format!("INSERT {or}INTO tables(name, fileid) VALUES('{database}', '{file}')");
            CatalogueChange::RawUpload { statement: statement(&sql, vec![]), file_id: file_id(&file), blob }
        };
        self.send(making, Operation::Catalogue(change));
    }

    fn media(&mut self, making: &mut Making<'_>, database: &str) {
        let file_id = file_id(&format!("m{}", self.dice.below(4)));
        let change = if self.dice.one_in(3) {
            MediaChange::Delete { file_id }
        } else {
            let byte = self.dice.below(9) as u8;
            let blob = BlobReference { digest: Digest::of(&[byte]), size: self.dice.below(9) };
            MediaChange::Upload { file_id, blob, media_type: self.dice.one_of(&["", "image/png"]).to_owned() }
        };
        let operation = if self.dice.one_in(2) { sql(database, &[]) } else { self.batch(making, database) };
        self.send(making, with_media(operation, change));
    }
}

/// The files of a lab whose digests name them.
pub(crate) fn files_in(directory: &std::path::Path) -> Files {
    let mut files = Files::default();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "blob") {
            files.0.insert(Digest::of(&fs::read(&path).unwrap()), path);
        }
    }
    files
}

/// Choices that have nothing to do with those of the log.
pub(crate) fn other_dice(seed: u64, way: u64) -> Dice {
    Dice::new(seed.wrapping_mul(1_000).wrapping_add(way + 1))
}
