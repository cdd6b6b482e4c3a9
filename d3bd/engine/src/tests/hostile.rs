//! SQL that means harm: it must not stop a replica, reach d3b's own tables, or make replicas differ.

use super::*;

fn shop() -> Lab {
    let mut lab = Lab::with_database("shop");
    results(&lab.one(sql("shop", &["CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE)"])));
    lab
}

#[test]
fn views_that_cannot_be_looked_into_stop_nothing() {
    let mut lab = shop();
    results(&lab.one(sql("shop", &["CREATE VIEW early AS SELECT * FROM nowhere"])));
    results(&lab.one(sql("shop", &["CREATE VIEW strange AS SELECT no_such_function(x) FROM t"])));
    check_code(&lab.one(sql("shop", &["SELECT * FROM early"])), Code::SqlError);
    let doubled: Vec<String> = std::iter::once("CREATE VIEW v0 AS SELECT 1 AS a".to_owned())
        .chain((0..17).map(|i| format!("CREATE VIEW v{} AS SELECT a FROM v{i} UNION ALL SELECT a FROM v{i}", i + 1)))
        .collect();
    for text in &doubled {
        results(&lab.one(sql("shop", &[text])));
    }
    check_code(&lab.one(sql("shop", &["SELECT count(*) FROM v17"])), Code::SqlError);
    results(&lab.one(sql("shop", &["CREATE TABLE nowhere(x)", "SELECT * FROM early"])));
}

#[test]
fn temporary_triggers_are_refused_under_every_name() {
    let mut lab = shop();
    let trigger = "CREATE TRIGGER temp.g AFTER INSERT ON t BEGIN DELETE FROM t; END";
    check_code(&lab.one(sql("shop", &[trigger])), Code::StatementDenied);
    results(&lab.one(sql("shop", &["INSERT INTO t(x) VALUES(1)", "CREATE TABLE u(x)"])));
    assert_eq!(lab.value("shop", "SELECT count(*) FROM t"), Value::Integer(1));
}

#[test]
fn an_empty_statement_in_front_changes_nothing() {
    let mut lab = shop();
    results(&lab.one(sql("shop", &["INSERT INTO t(x) VALUES(1)", "CREATE INDEX i ON t(x)", "ANALYZE"])));
    check_code(&lab.one(sql("shop", &[";DELETE FROM sqlite_stat1"])), Code::StatementDenied);
    let inserted = results(&lab.one(sql("shop", &["; INSERT INTO t(x) VALUES(2)"])));
    assert_eq!((inserted[0].rows_affected, inserted[0].last_insert_rowid), (1, 2));
}

#[test]
fn answers_tell_nothing_of_one_replica() {
    let mut lab = shop();
    results(&lab.one(sql("shop", &["CREATE VIRTUAL TABLE f USING fts5(x)", "CREATE TABLE s(\"at 12:30000\")"])));
    for text in [
        // Programs of virtual tables hold addresses.
        "EXPLAIN SELECT * FROM f",
        "EXPLAIN INSERT INTO t(x) VALUES(1)",
        // From the fifth on, the names are random.
        "SELECT * FROM (SELECT 1 AS a, 2 AS a, 3 AS a, 4 AS a, 5 AS a, 6 AS a)",
        "SELECT fts5_source_id()",
        "PRAGMA integrity_check",
        "PRAGMA quick_check(t)",
        "SELECT * FROM pragma_integrity_check",
    ] {
        let applied = lab.one(sql("shop", &[text]));
        assert_eq!(refused(&applied).code, Code::StatementDenied, "{text}: {applied:?}");
    }
    for text in [
        "EXPLAIN QUERY PLAN SELECT * FROM f",
        "SELECT * FROM (SELECT 1 AS a, 2 AS a)",
        "SELECT 1 AS \"12:30000\"",
        "CREATE TABLE times(\"12:30\", \"12:31\")",
    ] {
        results(&lab.one(sql("shop", &[text])));
    }
}

#[test]
fn a_value_of_the_wrong_type_violates_a_constraint() {
    let mut lab = shop();
    for text in ["INSERT INTO t(id) VALUES('one')", "UPDATE t SET id = 'two'"] {
        results(&lab.one(sql("shop", &["INSERT OR IGNORE INTO t(id) VALUES(1)"])));
        check_code(&lab.one(sql("shop", &[text])), Code::Constraint);
    }
}

#[test]
fn steps_are_counted_alike_whatever_is_kept_prepared() {
    let mut lab = shop();
    // To name so many columns apart takes SQLite longer than to run the query.
    let wide = format!("SELECT count(*) FROM (SELECT {})", ["1 a"; 1_990].join(","));
    results(&lab.one(sql("shop", &["CREATE VIRTUAL TABLE f USING fts5(x)", "INSERT INTO t(x) VALUES(1), (2)"])));
    let fill =
        "INSERT INTO f WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 777) SELECT 'word ' || i FROM n";
    let counts = [false, false, false, true, false].map(|restart| {
        if restart {
            lab.engine().checkpoint().unwrap();
            lab.restart();
        }
        let mut counts = Vec::new();
        for texts in [&[wide.as_str()][..], &[fill], &["DELETE FROM f"]] {
            let id = lab.one(sql("shop", texts)).database.unwrap();
            counts.push(lab.engine().calls_counted(id));
        }
        counts
    });
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
}

#[test]
fn a_statement_that_is_kept_prepared_counts_from_the_beginning() {
    let mut lab = shop();
    let count =
        "SELECT count(*) FROM (WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 777) SELECT i FROM n)";
    let counts = [(); 8].map(|()| {
        let id = lab.one(sql("shop", &[count])).database.unwrap();
        lab.engine().calls_counted(id)
    });
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
}
