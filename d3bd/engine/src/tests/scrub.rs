//! Databases that are read from end to end, whole and damaged.

use std::sync::Arc;

use super::*;
use crate::database;
use crate::scrub::{Pace, Scrubbed};

/// As fast as can be, or not at all.
struct Reading(bool);

impl Pace for Reading {
    fn read(&self, _: u64) -> bool {
        self.0
    }
}

const SCHEMA: &[&str] = &[
    "CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE, y)",
    "CREATE TABLE w(a PRIMARY KEY, b) WITHOUT ROWID",
    "CREATE TABLE r(rowid, oid, _rowid_)",
    "CREATE TABLE g(a, b AS (a + 1), c AS (a * 2) STORED)",
    "CREATE VIRTUAL TABLE f USING fts5(x)",
];

const ROWS: &[&str] = &[
    "INSERT INTO t WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300) SELECT i, 'x' || i, hex(i) FROM n",
    "INSERT INTO w SELECT x, y FROM t",
    "INSERT INTO r VALUES(1, 2.5, 'precious')",
    "INSERT INTO g(a) VALUES(7)",
    "INSERT INTO f SELECT y FROM t",
    "DELETE FROM t WHERE id % 7 = 0",
    "UPDATE t SET y = random()",
];

fn lab() -> Lab {
    let mut lab = Lab::with_database("shop");
    SCHEMA.iter().chain(ROWS).for_each(|text| lab.append(sql("shop", &[text])));
    lab.catch_up(100);
    lab.engine().checkpoint().unwrap();
    lab
}

fn scrub(lab: &mut Lab, goes_on: bool) -> Vec<Scrubbed> {
    let pace: Arc<dyn Pace> = Arc::new(Reading(goes_on));
    let readers = lab.engine().readers();
    readers.ids().unwrap().into_iter().map(|id| readers.scrub(id, &pace)).collect()
}

fn shop_path(lab: &mut Lab) -> (DatabaseId, PathBuf) {
    let id = lab.engine().readers().ids().unwrap()[1];
    (id, database::path(&lab.databases(), id))
}

/// Changes the file while nobody has it open.
fn bend(lab: &mut Lab, change: impl FnOnce(&mut Vec<u8>)) {
    let (_, path) = shop_path(lab);
    lab.engine = None;
    // What is in the write-ahead log would hide the file.
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(connection);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    lab.restart();
}

#[test]
fn the_same_log_gives_the_same_digests_however_it_is_applied() {
    let mut one = lab();
    let expected = scrub(&mut one, true);
    assert_eq!(expected.len(), 2);
    assert!(expected.iter().all(|scrubbed| matches!(scrubbed, Scrubbed::Sound { .. })), "{expected:?}");
    for batch in [1, 3, 50] {
        let mut other = one.replica(batch);
        assert_eq!(scrub(&mut other, true), expected);
        other.restart();
        assert_eq!(scrub(&mut other, true), expected);
    }
    one.one(sql("shop", &["UPDATE r SET oid = 3"]));
    assert_ne!(scrub(&mut one, true)[1], expected[1]);
}

#[test]
fn a_row_that_says_something_else_shows_in_the_digest() {
    let mut lab = lab();
    let before = scrub(&mut lab, true);
    bend(&mut lab, |bytes| {
        let word = b"precious";
        let at = bytes.windows(word.len()).position(|window| window == word).expect("it is in the file");
        bytes[at] = b'P';
    });
    let after = scrub(&mut lab, true);
    assert!(matches!(after[1], Scrubbed::Sound { .. }), "SQLite does not see it: {:?}", after[1]);
    assert_ne!(after[1], before[1]);
    assert_eq!(after[0], before[0]);
}

#[test]
fn a_broken_structure_is_damage_and_its_database_is_served_no_more_for_good() {
    let mut lab = lab();
    bend(&mut lab, |bytes| bytes[4096 * 2..4096 * 3].fill(0xa5));
    let Scrubbed::Damaged(problem) = scrub(&mut lab, true).remove(1) else { panic!("it is broken") };
    let (id, _) = shop_path(&mut lab);
    lab.engine().set_damaged(id, problem).unwrap();
    for _ in 0..2 {
        let refused = lab.engine().readers().schema(&DatabaseName::new("shop").unwrap()).unwrap_err();
        assert_eq!(refused.code, Code::DatabaseFenced);
        lab.restart();
    }
    assert!(lab.engine().set_damaged(DatabaseId::catalogue(), "broken".to_owned()).is_err());
}

#[test]
fn reading_ends_when_it_is_to() {
    let mut lab = lab();
    assert!(matches!(scrub(&mut lab, false)[1], Scrubbed::Unread(_)));
}
