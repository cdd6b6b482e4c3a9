//! What the guard allows and refuses, on connections of its own.

use super::*;

fn writer(directory: &tempfile::TempDir) -> (Connection, Guard) {
    let (connection, guard) = open_writer(&directory.path().join("db"), true).unwrap();
    connection
        .execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, x); CREATE TABLE _d3b_state(x); CREATE TABLE tables(x)")
        .unwrap();
    (connection, guard)
}

fn run(connection: &Connection, guard: &Guard, mode: Mode, sql: &str) -> Result<(), Rejection> {
    guard.set(mode);
    guard.begin_operation();
    let mut statement = prepare_single(connection, guard, sql).unwrap()?;
    let mut rows = statement.raw_query();
    loop {
        match rows.next() {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(error) => return Err(rejection(error, guard).unwrap()),
        }
    }
}

#[track_caller]
fn check(mode: Mode, expected: Option<Code>, texts: &[&str]) {
    let directory = tempfile::TempDir::new().unwrap();
    let (connection, guard) = writer(&directory);
    connection.execute_batch("ANALYZE").unwrap();
    for text in texts {
        let result = run(&connection, &guard, mode, text);
        assert_eq!(result.as_ref().err().map(|rejection| rejection.code), expected, "{text}: {result:?}");
    }
}

#[test]
fn what_would_not_replicate_is_denied() {
    check(
        Mode::Write,
        Some(Code::StatementDenied),
        &[
            "ATTACH 'other' AS o",
            "DETACH main",
            "VACUUM",
            "vacuum into 'x'",
            "BEGIN",
            "COMMIT",
            "END",
            "ROLLBACK",
            "SAVEPOINT s",
            "CREATE TEMP TABLE u(x)",
            "CREATE TEMP VIEW v AS SELECT 1",
            "CREATE TEMPORARY TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END",
            "SELECT load_extension('x')",
            "SELECT fts5_locale('en', 'x')",
            "INSERT INTO t(x) SELECT sqlite_version()",
            "INSERT INTO t(x) VALUES(sqlite_source_id())",
            "PRAGMA journal_mode=DELETE",
            "PRAGMA foreign_keys=OFF",
            "PRAGMA defer_foreign_keys=ON",
            "PRAGMA writable_schema=ON",
            "PRAGMA data_version",
            "PRAGMA database_list",
            "PRAGMA wal_checkpoint",
            "PRAGMA optimize",
            "SELECT * FROM pragma_data_version",
            "SELECT * FROM pragma_database_list",
            "SELECT * FROM dbstat",
            "SELECT * FROM _d3b_state",
            "SELECT * FROM _D3B_state",
            "INSERT INTO _d3b_state VALUES(1)",
            "UPDATE _d3b_state SET x = 1",
            "DELETE FROM _d3b_state",
            "DROP TABLE _d3b_state",
            "ALTER TABLE _d3b_state ADD COLUMN y",
            "CREATE TABLE _d3b_other(x)",
            "CREATE INDEX _d3b_i ON t(x)",
            "CREATE INDEX i ON _d3b_state(x)",
            "CREATE TRIGGER g AFTER INSERT ON _d3b_state BEGIN SELECT 1; END",
            "CREATE VIRTUAL TABLE v USING dbstat",
            "EXPLAIN DELETE FROM _d3b_state",
            "CREATE TABLE temp.u(x)",
            "CREATE TABLE temp.u AS SELECT 1 AS a",
            "CREATE VIEW temp.v AS SELECT 1",
            "CREATE VIRTUAL TABLE temp.f USING fts5(x)",
            "ANALYZE temp",
            "PRAGMA temp.user_version = 5",
            "CREATE VIEW v AS SELECT * FROM _d3b_state",
            "CREATE VIEW v AS WITH a AS (SELECT * FROM \"_d3b_state\") SELECT * FROM a",
            "CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM _d3b_state; END",
            "CREATE TABLE c(k REFERENCES _d3b_state(x) ON DELETE CASCADE)",
            "ALTER TABLE t ADD COLUMN k REFERENCES _d3b_state(x)",
            "ALTER TABLE t RENAME TO _d3b_t",
            "CREATE VIRTUAL TABLE f USING fts5(x, content='_d3b_state')",
            "CREATE VIRTUAL TABLE f USING fts5vocab(_d3b_f, 'row')",
            "PRAGMA table_info(_d3b_state)",
            "SELECT * FROM pragma_table_xinfo('_d3b_state')",
            "SELECT * FROM pragma_index_list('_d3b' || '_state')",
            "WITH a AS (SELECT * FROM _d3b_state) SELECT * FROM a",
            "INSERT INTO sqlite_stat1 VALUES('t', NULL, '5')",
            ";DELETE FROM sqlite_stat1",
            "/**/; DELETE FROM sqlite_stat1",
        ],
    );
}

#[test]
fn ordinary_sql_is_allowed() {
    check(
        Mode::Write,
        None,
        &[
            "SELECT 1; -- and a comment",
            "/* first */ SELECT 1 /* unfinished",
            "VALUES(1), (2)",
            "INSERT INTO t(x) VALUES(random()), (hex(randomblob(3))), (datetime('now'))",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9) INSERT INTO t(x) SELECT i FROM n",
            "UPDATE t SET x = 1",
            "DELETE FROM t",
            "CREATE TABLE u AS SELECT * FROM t",
            "CREATE INDEX i ON t(x)",
            "CREATE VIEW v AS SELECT x FROM t",
            "CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM u; END",
            "INSERT INTO t(x) VALUES(1)",
            "ANALYZE",
            "ANALYZE t",
            "REINDEX",
            "ALTER TABLE t ADD COLUMN y",
            "ALTER TABLE t RENAME COLUMN y TO z",
            "ALTER TABLE u RENAME TO w",
            "ALTER TABLE w DROP COLUMN x",
            ";INSERT INTO t(x) VALUES('not _d3b_state')",
            "CREATE VIRTUAL TABLE f USING fts5(text)",
            "INSERT INTO f VALUES('hello')",
            "SELECT * FROM f WHERE f MATCH 'hello'",
            "INSERT INTO f(f) VALUES('optimize')",
            "DROP TABLE f",
            "CREATE VIRTUAL TABLE r USING rtree(id, a, b)",
            "INSERT INTO r VALUES(1, 2, 3)",
            "SELECT * FROM json_each('[1]')",
            "PRAGMA table_info(t)",
            "SELECT * FROM pragma_table_info('t')",
            "PRAGMA user_version",
            "PRAGMA user_version = 5",
            "PRAGMA foreign_key_check",
            "EXPLAIN SELECT * FROM t",
            "DROP TRIGGER g",
            "DROP VIEW v",
            "DROP TABLE w",
            "SELECT changes(), last_insert_rowid()",
        ],
    );
}

#[test]
fn statistics_are_written_by_analyze_only() {
    let directory = tempfile::TempDir::new().unwrap();
    let (connection, guard) = writer(&directory);
    connection.execute_batch("CREATE INDEX i ON t(x); INSERT INTO t VALUES(1, 2); ANALYZE").unwrap();
    for text in ["DELETE FROM sqlite_stat1", "UPDATE sqlite_stat1 SET stat = '9'", "DROP TABLE sqlite_stat1"] {
        assert!(run(&connection, &guard, Mode::Write, text).is_err(), "{text}");
    }
    run(&connection, &guard, Mode::Write, "DROP INDEX i").unwrap();
    run(&connection, &guard, Mode::Write, "SELECT * FROM sqlite_stat1").unwrap();
    let hidden = "SELECT count(*) FROM sqlite_stat1 WHERE tbl LIKE '\\_d3b%' ESCAPE '\\'";
    guard.set(Mode::Internal);
    connection.execute_batch("INSERT INTO _d3b_state VALUES(1); CREATE INDEX j ON _d3b_state(x)").unwrap();
    run(&connection, &guard, Mode::Write, "ANALYZE").unwrap();
    assert_eq!(connection.query_row(hidden, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

#[test]
fn reads_write_nothing() {
    check(Mode::Read, None, &["SELECT * FROM t", "PRAGMA page_count", "SELECT sqlite_version()", "EXPLAIN SELECT 1"]);
    let writes =
        ["INSERT INTO t(x) VALUES(1)", "CREATE TABLE u(x)", "ANALYZE", "DROP TABLE t", "PRAGMA user_version = 5"];
    check(Mode::Read, Some(Code::StatementDenied), &writes);
}

#[test]
fn raw_clients_change_rows_of_tables_only() {
    check(Mode::CatalogueWrite, None, &["INSERT INTO tables VALUES(1)", "DELETE FROM tables", "SELECT * FROM tables"]);
    let others = ["UPDATE tables SET x = 1", "INSERT INTO t(x) VALUES(1)", "CREATE TABLE u(x)", "DROP TABLE tables"];
    check(Mode::CatalogueWrite, Some(Code::StatementDenied), &others);
}

#[test]
fn texts_that_are_not_one_statement() {
    check(
        Mode::Write,
        Some(Code::BadRequest),
        &["", " ", ";", "-- nothing", "/* nothing */", "SELECT 1; SELECT 2", "SELECT 1\0"],
    );
    check(
        Mode::Write,
        Some(Code::SqlError),
        &["SELEC 1", "SELECT * FROM nowhere", "SELECT \"text\"", "SELECT 1; garbage"],
    );
}

#[test]
fn endless_statements_are_interrupted() {
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0";
    check(Mode::Write, Some(Code::TooLarge), &[endless]);
}
