//! Uploaded files that somebody has bent: whatever is in them, no replica stops.

use super::generated::dice::Dice;
use super::*;

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
    let mut dice = Dice::new(5);
    let files = (0..150).map(|_| {
        let mut file = whole.clone();
        for _ in 0..=dice.below(3) {
            let page = dice.below(file.len() as u64 / 4096) * 4096;
            let within = [24, 200, 4096][dice.below(3) as usize];
            let at = (page + dice.below(within)) as usize;
            file[at] = dice.below(256) as u8;
        }
        file
    });
    assert!(upload_and_use(files) > 10, "not all of them are refused");
}
