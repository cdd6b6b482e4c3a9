//! Logs that nobody has thought of: made from a seed, applied in many ways, and always with the same result.

use super::crash::content;
use super::*;

/// Makes operations from a seed.
struct Generator {
    state: u64,
}

impl Generator {
    /// A number below a bound.
    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % bound
    }

    fn one_of<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        texts[self.below(texts.len() as u64) as usize]
    }

    fn table(&mut self) -> &'static str {
        self.one_of(&["t0", "t1", "t2", "t3", "t4"])
    }

    fn value(&mut self) -> String {
        let number = self.below(12);
        match self.below(8) {
            0 => "NULL".to_owned(),
            1 => format!("'text {number}'"),
            2 => format!("{number}.5"),
            3 => "random() % 10".to_owned(),
            4 => "hex(randomblob(3))".to_owned(),
            5 => "datetime('now')".to_owned(),
            6 => "last_insert_rowid() + changes() + total_changes()".to_owned(),
            _ => number.to_string(),
        }
    }

    fn ddl(&mut self) -> String {
        let table = self.table();
        let number = self.below(4);
        match self.below(14) {
            0 | 1 => format!("CREATE TABLE IF NOT EXISTS {table}(id INTEGER PRIMARY KEY, x, y DEFAULT (random()), z)"),
            2 => format!("CREATE TABLE IF NOT EXISTS {table}(id INTEGER PRIMARY KEY AUTOINCREMENT, x UNIQUE, y, z)"),
            3 => format!("CREATE TABLE IF NOT EXISTS {table}(id, x, y, z, PRIMARY KEY(x, id)) WITHOUT ROWID"),
            4 => {
                let other = self.table();
                format!("CREATE TABLE {table} AS SELECT y AS id, x, id AS y, z FROM {other} ORDER BY random()")
            }
            5 => format!(
                "CREATE TABLE {table}(id INTEGER PRIMARY KEY, x, y AS (x || id), z REFERENCES t0 DEFERRABLE INITIALLY DEFERRED)"
            ),
            6 => format!("DROP TABLE {table}"),
            7 => format!("CREATE INDEX IF NOT EXISTS i{number} ON {table}(x, y)"),
            8 => format!("DROP INDEX i{number}"),
            9 => format!("ALTER TABLE {table} ADD COLUMN c{number} DEFAULT {number}"),
            10 => format!("ALTER TABLE {table} RENAME TO t{number}"),
            11 => format!(
                "CREATE TRIGGER IF NOT EXISTS g{number} AFTER INSERT ON {table} BEGIN UPDATE {table} SET z = random() WHERE id = new.id; END"
            ),
            12 => "CREATE VIRTUAL TABLE IF NOT EXISTS f USING fts5(x, y)".to_owned(),
            _ => "ANALYZE".to_owned(),
        }
    }

    fn data(&mut self) -> String {
        let (table, other) = (self.table(), self.table());
        let (a, b, c) = (self.value(), self.value(), self.value());
        match self.below(16) {
            0 | 1 => format!("INSERT INTO {table}(x, z) VALUES({a}, {b}), ({c}, {a}) RETURNING *"),
            2 => format!("INSERT INTO {table}(id, x) VALUES({a}, {b}) ON CONFLICT DO UPDATE SET x = x || 'again'"),
            3 => format!("INSERT OR ROLLBACK INTO {table}(id, x) VALUES({a}, {b})"),
            4 => format!("INSERT OR REPLACE INTO {table}(id, x, z) VALUES({a}, {b}, {c})"),
            5 => format!("INSERT OR FAIL INTO {table}(id, x) VALUES(random(), {a}), ({b}, {c}), (1, 1)"),
            6 => format!(
                "INSERT INTO {table}(x, z) SELECT p.x, q.id FROM {other} AS p JOIN {table} AS q ON p.x = q.x LIMIT 40"
            ),
            7 => format!("UPDATE {table} SET x = {a}, z = {b} WHERE id % 3 = {}", self.below(3)),
            8 => format!("UPDATE {table} SET x = (SELECT x FROM {other} ORDER BY random() LIMIT 1)"),
            9 => format!("DELETE FROM {table} WHERE x = {a} RETURNING *"),
            10 => format!("DELETE FROM {table}"),
            11 => format!("SELECT * FROM {table} AS p JOIN {other} AS q ON p.x = q.z LIMIT 50"),
            12 => format!("INSERT INTO f SELECT x, z FROM {table} LIMIT 20"),
            13 => {
                self.one_of(&["INSERT INTO f(f) VALUES('optimize')", "DELETE FROM f WHERE f MATCH 'text'"]).to_owned()
            }
            14 => "SELECT x, y FROM f WHERE f MATCH 'text OR again' ORDER BY rank".to_owned(),
            _ => self.one_of(&["SELECT * FROM sqlite_stat1", "PRAGMA table_list", "SELECT raise"]).to_owned(),
        }
    }

    fn operation(&mut self, database: &str) -> Operation {
        match self.below(120) {
            0 => return upload(database, None, InsertMode::Replace),
            1 => return delete(database),
            2..=5 => return create(database),
            6..=9 => {
                let blob = BlobReference { digest: Digest::of(&[self.below(9) as u8]), size: self.below(9) };
                let change = MediaChange::Upload { file_id: file_id("m"), blob, media_type: String::new() };
                return with_media(sql(database, &[]), change);
            }
            _ => {}
        }
        let count = 1 + self.below(3);
        let texts: Vec<String> =
            (0..count).map(|_| if self.below(4) == 0 { self.ddl() } else { self.data() }).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut operation = sql(database, &texts);
        if let Operation::Sql { deferred_foreign_keys, .. } = &mut operation {
            *deferred_foreign_keys = self.below(6) == 0;
        }
        operation
    }

    /// Fills the log of a lab.
    fn fill(&mut self, lab: &mut Lab, length: usize) {
        for database in ["a", "b"] {
            lab.append(create(database));
            let tables = ["t0", "t1", "t2"].map(|table| {
                sql(database, &[&format!("CREATE TABLE {table}(id INTEGER PRIMARY KEY, x, y DEFAULT (random()), z)")])
            });
            tables.into_iter().for_each(|table| lab.append(table));
        }
        while lab.log.len() < length {
            let database = self.one_of(&["a", "a", "a", "b"]);
            let operation = self.operation(database);
            match self.below(8) {
                0 => lab.append_bytes(None),
                // The same key comes again, mostly for another request.
                1 => lab.append_keyed(&format!("again {}", self.below(6)), operation),
                2 => {
                    lab.append_keyed("twice", sql(database, &["INSERT INTO t0(x) VALUES('twice') RETURNING id"]));
                    lab.append(operation);
                }
                _ => lab.append(operation),
            }
        }
    }
}

/// Applies the log of another lab in random batches, with restarts.
fn apply_otherwise(lab: &Lab, seed: u64, expected: &[Applied]) -> Lab {
    let mut generator = Generator { state: seed };
    let mut other = Lab::with_options(Options { connections_max: 1 + generator.below(3) as usize });
    other.log = lab.log.clone();
    let batch_max = 1 + generator.below(30);
    while (other.engine().applied().0 as usize) < other.log.len() {
        for applied in other.pull(1 + generator.below(batch_max) as usize).applied {
            let before = &expected[applied.slot.0 as usize - 1];
            if applied.outcome.is_some() {
                assert_eq!((&applied.outcome, applied.executed_at), (&before.outcome, before.executed_at));
            }
            if applied.fingerprint.is_some() {
                assert_eq!(applied.fingerprint, before.fingerprint, "slot {}", applied.slot);
            }
        }
        if generator.below(3) == 0 {
            other.engine().checkpoint().unwrap();
        }
        if generator.below(6) == 0 {
            other.restart();
        }
    }
    other.engine().checkpoint().unwrap();
    other
}

#[test]
fn generated_logs_give_one_state_however_they_are_applied() {
    let (mut done, mut refused) = (0, 0);
    for seed in 0..6 {
        let mut lab = Lab::new();
        Generator { state: seed * 77 + 1 }.fill(&mut lab, 150);
        let expected = lab.catch_up(1_000);
        lab.engine().checkpoint().unwrap();
        let whole = content(&lab);
        for way in 0..3 {
            println!("seed {seed}, way {way}");
            let other = apply_otherwise(&lab, seed * 1_000 + way, &expected);
            assert_eq!(content(&other), whole);
        }
        done += expected.iter().filter(|applied| matches!(applied.outcome, Some(Ok(_)))).count();
        refused += expected.iter().filter(|applied| matches!(applied.outcome, Some(Err(_)))).count();
    }
    assert!(done > 300 && refused > 300, "the logs do something: {done} done, {refused} refused");
}

/// What a damaged file of this schema is asked to do.
const USES: &[&str] = &[
    "INSERT INTO t(x, y) VALUES('new', 'y')",
    "UPDATE t SET y = y || 'z'",
    "DELETE FROM t WHERE id % 3 = 0",
    "INSERT INTO s(z) SELECT z FROM s",
    "INSERT INTO f VALUES('aa')",
    "DELETE FROM f WHERE rowid < 50",
    "SELECT * FROM f WHERE f MATCH 'a*'",
    "SELECT * FROM r WHERE b > 10",
    "DELETE FROM r WHERE a < 50",
    "DELETE FROM w WHERE a > 'x5'",
    "CREATE TABLE c AS SELECT * FROM t",
    "ANALYZE",
    "DROP TABLE f",
    "DROP TABLE t",
];

/// A file with a bit of everything.
fn rich_file() -> Vec<u8> {
    database_file(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE, y);
         INSERT INTO t WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300) SELECT i, 'x' || i, hex(i) FROM n;
         CREATE INDEX ty ON t(y);
         CREATE TABLE s(id INTEGER PRIMARY KEY AUTOINCREMENT, z); INSERT INTO s(z) VALUES(1);
         CREATE TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO s(z) VALUES(new.id); END;
         CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f SELECT y FROM t;
         CREATE VIRTUAL TABLE r USING rtree(a, b, c); INSERT INTO r SELECT id, id, id + 1 FROM t;
         CREATE TABLE w(a PRIMARY KEY, b) WITHOUT ROWID; INSERT INTO w SELECT x, y FROM t;
         ANALYZE;",
    )
}

/// Uploads files, good or bad, and uses each. A replica that stops panics here.
fn upload_and_use(files: impl Iterator<Item = Vec<u8>>) -> usize {
    let mut lab = Lab::new();
    for file in files {
        let blob = lab.blob(&file);
        if crate::check_upload(&lab.files.0[&blob.digest]).is_ok() {
            lab.append(upload("shop", Some(blob), InsertMode::Replace));
            USES.iter().for_each(|text| lab.append(sql("shop", &[text])));
        }
    }
    lab.catch_up(1_000);
    lab.log.len() / (1 + USES.len())
}

#[test]
fn no_uploaded_header_stops_a_replica() {
    let whole = rich_file();
    let files = (16..100).flat_map(|at| [0, 1, 3, 0x7f, 0xff].map(|byte| (at, byte))).map(|(at, byte)| {
        let mut file = whole.clone();
        file[at] = byte;
        file
    });
    assert!(upload_and_use(files) > 50, "not all of them are refused");
}

#[test]
fn no_damage_in_an_uploaded_file_stops_a_replica() {
    let whole = rich_file();
    let mut generator = Generator { state: 5 };
    let files = (0..150).map(|_| {
        let mut file = whole.clone();
        for _ in 0..=generator.below(3) {
            let page = generator.below(file.len() as u64 / 4096) * 4096;
            let within = [24, 200, 4096][generator.below(3) as usize];
            let at = (page + generator.below(within)) as usize;
            file[at] = generator.below(256) as u8;
        }
        file
    });
    assert!(upload_and_use(files) > 10, "not all of them are refused");
}
