//! Databases of one run beside each other: in whatever order, on however many threads, with the same result.

use super::crash::content;
use super::generated::dice::Dice;
use super::*;

const DATABASES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Statements with whatever operations could feel of each other.
const TEXTS: &[&str] = &[
    "INSERT INTO t(x) VALUES(random())",
    "INSERT INTO t(x) VALUES(datetime('now'))",
    "INSERT INTO t(x) VALUES(total_changes()), (last_insert_rowid()) RETURNING id, x",
    "INSERT INTO t(x) VALUES('one')",
    "INSERT OR ROLLBACK INTO t(x) VALUES('one')",
    "INSERT INTO stops VALUES(1)",
    "UPDATE t SET x = hex(randomblob(4)) WHERE id % 3 = 1",
    "DELETE FROM t WHERE id % 7 = 2",
    "SELECT * FROM t ORDER BY random()",
    "INSERT INTO words VALUES('some words ' || random())",
    "SELECT count(*) FROM words WHERE words MATCH 'some'",
    "SELECT * FROM nowhere",
    "CREATE TABLE IF NOT EXISTS late(x DEFAULT (random()))",
    "INSERT INTO late DEFAULT VALUES",
];

/// A log over several databases, with changes of the catalogue in between.
fn busy(lab: &mut Lab, seed: u64) {
    let mut dice = Dice::new(seed);
    let image = lab.blob(&database_file(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE);
         CREATE TABLE stops(x);
         CREATE TRIGGER r BEFORE INSERT ON stops BEGIN SELECT RAISE(ROLLBACK, 'stop'); END;
         CREATE VIRTUAL TABLE words USING fts5(x);",
    ));
    for database in DATABASES {
        lab.append(upload(database, Some(image), InsertMode::CreateOnly));
    }
    for _ in 0..400 {
        let database = dice.one_of(&DATABASES);
        match dice.below(40) {
            0 => lab.append(upload(database, Some(image), InsertMode::Replace)),
            1 => lab.append(delete(database)),
            2 => lab.append(create(database)),
            3 => lab.append(sql("schemas", &["SELECT name FROM tables ORDER BY name"])),
            4 => lab.append_bytes(None),
            5 => lab.append_bytes(Some(vec![0xff])),
            6 => {
                lab.append_keyed(&format!("again {}", dice.below(4)), sql(database, &["INSERT INTO t DEFAULT VALUES"]))
            }
            _ => {
                let texts: Vec<&str> = (0..=dice.below(3)).map(|_| dice.one_of(TEXTS)).collect();
                lab.append(sql(database, &texts));
            }
        }
    }
}

/// All that a replica tells and holds.
fn all_of(lab: &mut Lab, batch: usize) -> (Vec<Applied>, Vec<(DatabaseId, Slot, Fingerprint)>, Vec<String>) {
    let applied = lab.catch_up(batch);
    let chains = lab.chains();
    lab.engine().checkpoint().unwrap();
    (applied, chains, content(lab))
}

#[test]
fn neither_order_nor_threads_show() {
    for seed in 0..4 {
        let mut lab = Lab::in_memory(Options::default());
        busy(&mut lab, seed);
        let expected = all_of(&mut lab, 1);
        let refused = expected.0.iter().filter(|applied| matches!(applied.outcome, Some(Err(_)))).count();
        assert!((50..350).contains(&refused), "{refused}");
        for (workers, lane_order, connections_max, batch) in [
            (0, None, 64, 1000),
            (0, Some(seed), 64, 1000),
            (0, Some(seed + 100), 2, 17),
            (1, None, 64, 1000),
            (3, Some(seed), 64, 1000),
            (3, Some(seed + 100), 4, 60),
        ] {
            let options = Options { workers, lane_order, connections_max, ..Options::default() };
            let mut other = Lab::in_memory(options);
            other.log = lab.log.clone();
            other.files = Files(lab.files.0.clone());
            let found = all_of(&mut other, batch);
            for (found, expected) in found.0.iter().zip(&expected.0) {
                assert_eq!(found, expected, "seed {seed}, {options:?}, {batch} at a time");
            }
            assert!(found == expected, "seed {seed}, {options:?}, {batch} at a time");
        }
    }
}

/// A lab that hands the smallest piece of work to other threads, with three databases that have a table.
fn beside_each_other() -> Lab {
    let mut lab = Lab::with_options(Options { workers: 3, lane_order: Some(1), ..Options::default() });
    for database in ["a", "b", "c"] {
        lab.append(create(database));
        lab.append(sql(database, &["CREATE TABLE t(x UNIQUE)"]));
    }
    lab.catch_up(100);
    lab
}

#[test]
fn a_transaction_that_ends_in_one_lane_ends_in_no_other() {
    let mut lab = beside_each_other();
    lab.append(sql(
        "b",
        &["CREATE TRIGGER r BEFORE INSERT ON t WHEN new.x = 2 BEGIN SELECT RAISE(ROLLBACK, 'no'); END"],
    ));
    for number in 0..5 {
        for database in ["a", "b", "c"] {
            lab.append(sql(database, &[&format!("INSERT INTO t VALUES({number})")]));
        }
    }
    let applied = lab.catch_up(100);
    let refusals: Vec<Slot> =
        applied.iter().filter(|applied| matches!(applied.outcome, Some(Err(_)))).map(|applied| applied.slot).collect();
    assert_eq!(refusals, [applied[8].slot]);
    assert_eq!(lab.value("a", "SELECT count(*) FROM t"), Value::Integer(5));
    assert_eq!(lab.value("b", "SELECT group_concat(x) FROM t"), Value::Text("0,1,3,4".to_owned()));
    assert_eq!(lab.value("c", "SELECT count(*) FROM t"), Value::Integer(5));
}

#[test]
fn damage_in_one_lane_fences_its_database_and_the_others_go_on() {
    let mut lab = beside_each_other();
    let id = lab.one(sql("b", &["SELECT 1"])).database.unwrap();
    lab.engine().checkpoint().unwrap();
    lab.engine = None;
    fs::write(crate::database::path(&lab.databases(), id), [0xa5; 8192]).unwrap();
    lab.restart();
    for database in ["a", "b", "c", "b", "a"] {
        lab.append(sql(database, &["INSERT INTO t VALUES(random())"]));
    }
    let applied = lab.catch_up(100);
    for (index, applied) in applied.iter().enumerate() {
        match index {
            1 | 3 => check_code(applied, Code::DatabaseFenced),
            _ => assert_eq!(results(applied)[0].rows_affected, 1),
        }
    }
    assert!(lab.chains().iter().all(|(database, ..)| *database != id));
    lab.engine().checkpoint().unwrap();
    lab.restart();
    check_code(&lab.one(sql("b", &["SELECT 1"])), Code::DatabaseFenced);
    results(&lab.one(sql("c", &["SELECT 1"])));
}

#[test]
fn a_database_that_replaces_another_finds_the_keys_of_the_same_run() {
    let mut lab = beside_each_other();
    lab.append_keyed("once", sql("a", &["INSERT INTO t VALUES(1)"]));
    lab.append(upload("a", None, InsertMode::Replace));
    lab.append_keyed("once", sql("a", &["INSERT INTO t VALUES(1)"]));
    let applied = lab.catch_up(100);
    assert_eq!(applied[2].executed_at, applied[0].slot);
    assert_eq!(applied[2].outcome, applied[0].outcome);
}

#[test]
fn large_answers_end_a_run_early() {
    let mut lab = beside_each_other();
    for _ in 0..10 {
        for database in ["a", "b", "c"] {
            lab.append(sql(database, &["SELECT zeroblob(30000000)", "DELETE FROM t"]));
        }
    }
    let pulls = std::iter::repeat_with(|| lab.pull(100).applied.len());
    let sizes: Vec<usize> = pulls.take_while(|some| *some > 0).collect();
    assert_eq!(sizes, [4, 4, 4, 4, 4, 4, 4, 2]);
}
