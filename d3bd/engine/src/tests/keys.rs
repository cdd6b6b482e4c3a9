//! Exactly once.

use super::*;
use crate::requests::{KEY_AGE_MAX_MS, KEY_AHEAD_MAX_MS};

const INSERT: &[&str] = &["INSERT INTO t(x) VALUES(1) RETURNING id"];

fn shop() -> Lab {
    let mut lab = Lab::with_database("shop");
    results(&lab.one(sql("shop", &["CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE)"])));
    lab
}

/// A UUIDv7 of that moment.
fn uuid(time_ms: u64, last: u8) -> String {
    let hex = format!("{time_ms:012x}");
    format!("{}-{}-7000-8000-0000000000{last:02x}", &hex[..8], &hex[8..])
}

/// How many keys the database keeps that an operation concerned.
fn keys_kept(lab: &Lab, applied: &Applied) -> i64 {
    let path = crate::database::path(&lab.databases(), applied.database.unwrap());
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.query_row("SELECT count(*) FROM _d3b_requests", [], |row| row.get(0)).unwrap()
}

#[test]
fn a_repeated_request_gives_the_stored_answer() {
    let mut lab = shop();
    lab.append_keyed("k", sql("shop", INSERT));
    lab.append_keyed("k", sql("shop", INSERT));
    let applied = lab.catch_up(10);
    assert_eq!(applied[0].outcome, applied[1].outcome);
    assert_eq!(applied[1].executed_at, applied[0].slot);
    assert_ne!(applied[1].fingerprint, applied[0].fingerprint, "a repeat stands in the chain too");
    lab.restart();
    lab.catch_up(10);
    let again = lab.one_keyed("k", sql("shop", INSERT));
    assert_eq!(again.outcome, applied[0].outcome);
    assert_eq!(again.executed_at, applied[0].slot);
    assert_eq!(lab.value("shop", "SELECT count(*) FROM t"), Value::Integer(1));
}

#[test]
fn a_refusal_is_stored_as_well() {
    let mut lab = shop();
    results(&lab.one(sql("shop", INSERT)));
    let refused_once = lab.one_keyed("k", sql("shop", INSERT));
    check_code(&refused_once, Code::Constraint);
    results(&lab.one(sql("shop", &["DELETE FROM t"])));
    let again = lab.one_keyed("k", sql("shop", INSERT));
    assert_eq!(again.outcome, refused_once.outcome);
    assert_eq!(lab.value("shop", "SELECT count(*) FROM t"), Value::Integer(0));
}

#[test]
fn a_key_belongs_to_one_request() {
    let mut lab = shop();
    results(&lab.one_keyed("k", sql("shop", INSERT)));
    check_code(&lab.one_keyed("k", sql("shop", &["DELETE FROM t"])), Code::KeyReused);
    assert_eq!(lab.value("shop", "SELECT count(*) FROM t"), Value::Integer(1));
}

#[test]
fn keys_that_tell_their_age_are_refused_outside_of_their_time() {
    let mut lab = shop();
    let now = lab.clock_ms + 1;
    check_code(&lab.one_keyed(&uuid(now - KEY_AGE_MAX_MS - 10, 1), sql("shop", INSERT)), Code::KeyExpired);
    check_code(&lab.one_keyed(&uuid(now + KEY_AHEAD_MAX_MS + 10, 2), sql("shop", INSERT)), Code::KeyExpired);
    results(&lab.one_keyed(&uuid(now + KEY_AHEAD_MAX_MS, 3), sql("shop", INSERT)));
}

#[test]
fn a_key_dated_ahead_is_remembered_as_long_as_it_is_valid() {
    let mut lab = shop();
    let ahead = lab.clock_ms + KEY_AHEAD_MAX_MS;
    let key = uuid(ahead, 1);
    results(&lab.one_keyed(&key, sql("shop", INSERT)));
    lab.clock_ms = ahead + KEY_AGE_MAX_MS - 10;
    for _ in 0..3 {
        lab.one(sql("shop", &["SELECT 1"]));
    }
    let again = lab.one_keyed(&key, sql("shop", INSERT));
    assert_ne!(again.executed_at, again.slot);
    lab.clock_ms = ahead + KEY_AGE_MAX_MS + 10;
    check_code(&lab.one_keyed(&key, sql("shop", INSERT)), Code::KeyExpired);
}

#[test]
fn keys_are_forgotten_by_log_time() {
    let mut lab = shop();
    for _ in 0..40 {
        lab.append(sql("shop", &["SELECT 1"]));
    }
    results(&lab.one_keyed("k", sql("shop", INSERT)));
    lab.clock_ms += 2 * KEY_AGE_MAX_MS;
    let again = lab.one_keyed("k", sql("shop", &["DELETE FROM t"]));
    results(&again);
    assert_eq!(again.executed_at, again.slot, "the key's time was over");
    for _ in 0..10 {
        lab.one(sql("shop", &["SELECT 1"]));
    }
    assert_eq!(keys_kept(&lab, &again), 11);
}

#[test]
fn an_answer_that_is_too_long_is_not_kept_and_says_so() {
    let mut lab = shop();
    let long = &["INSERT INTO t(x) VALUES(1) RETURNING zeroblob(2000000)"];
    let first = lab.one_keyed("k", sql("shop", long));
    results(&first);
    let again = lab.one_keyed("k", sql("shop", long));
    check_code(&again, Code::TooLarge);
    assert_eq!(again.executed_at, first.slot);
    assert_eq!(lab.value("shop", "SELECT count(*) FROM t"), Value::Integer(1));
}

#[test]
fn a_database_that_replaces_another_inherits_its_keys() {
    let mut lab = shop();
    let file = database_file("CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    let blob = lab.blob(&file);
    lab.append_keyed("k", sql("shop", INSERT));
    lab.append(upload("shop", Some(blob), InsertMode::Replace));
    lab.append_keyed("k", sql("shop", INSERT));
    lab.append_keyed("k2", sql("shop", INSERT));
    let applied = lab.catch_up(10);
    assert_eq!(applied[2].outcome, applied[0].outcome);
    assert_eq!(applied[2].executed_at, applied[0].slot);
    assert_eq!(applied[3].executed_at, applied[3].slot);
    assert_eq!(lab.value("shop", "SELECT count(*) FROM t"), Value::Integer(1));
}

#[test]
fn a_database_that_does_not_exist_answers_the_same_again() {
    let mut lab = Lab::new();
    let first = lab.one_keyed("k", sql("nowhere", &["SELECT 1"]));
    check_code(&first, Code::DatabaseNotFound);
    assert_eq!(first.database, None);
    let again = lab.one_keyed("k", sql("nowhere", &["SELECT 1"]));
    assert_eq!((again.outcome, again.executed_at), (first.outcome, first.slot));
    lab.one(create("nowhere"));
    results(&lab.one_keyed("k", sql("nowhere", &["SELECT 1"])));
}

#[test]
fn what_was_a_repeat_is_never_told_as_expired() {
    let mut lab = shop();
    lab.engine().checkpoint().unwrap();
    let key = uuid(lab.clock_ms, 1);
    results(&lab.one_keyed(&key, sql("shop", INSERT)));
    lab.clock_ms += KEY_AGE_MAX_MS + KEY_AHEAD_MAX_MS / 2;
    let again = lab.one_keyed(&key, sql("shop", INSERT));
    assert_ne!(again.executed_at, again.slot);
    lab.clock_ms += KEY_AHEAD_MAX_MS;
    // This one removes the key, and stays when the process dies.
    lab.one(sql("shop", &["SELECT 1"]));
    lab.restart();
    let found = lab.catch_up(10).into_iter().find(|applied| applied.slot == again.slot).unwrap();
    assert_eq!(found.outcome, None, "whether it was executed before is not known any more");
}
