//! Operations of SQL: all or nothing, and none of them feels another that shares its transaction.

use super::*;

fn shop() -> Lab {
    let mut lab = Lab::with_database("shop");
    let applied = lab.one(sql("shop", &["CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE)"]));
    results(&applied);
    lab
}

fn count(lab: &mut Lab) -> Value {
    lab.value("shop", "SELECT count(*) FROM t")
}

#[test]
fn a_statement_tells_what_it_did() {
    let mut lab = shop();
    let applied = lab.one(sql("shop", &["INSERT INTO t(x) VALUES(5), (6) RETURNING id, x"]));
    let result = results(&applied).pop().unwrap();
    assert_eq!(result.columns, ["id", "x"]);
    assert_eq!(result.types, ["INTEGER", ""]);
    assert_eq!(result.rows.len(), 2);
    assert_eq!((result.rows_affected, result.last_insert_rowid), (2, 2));
    assert_eq!(applied.slot, applied.executed_at);
    assert_eq!(applied.key.unwrap().as_str(), "key 3");
    assert!(applied.fingerprint.is_some());
    let read = results(&lab.one(sql("shop", &["SELECT x FROM t ORDER BY id"]))).pop().unwrap();
    assert_eq!(read.rows, [[Value::Integer(5)], [Value::Integer(6)]]);
    assert_eq!((read.rows_affected, read.last_insert_rowid), (0, 0));
}

#[test]
fn all_statements_take_effect_or_none() {
    let mut lab = shop();
    let applied = lab.one(sql("shop", &["INSERT INTO t(x) VALUES(1)", "INSERT INTO t(x) VALUES(1)"]));
    let rejection = refused(&applied);
    assert_eq!(rejection.code, Code::Constraint);
    assert_eq!(rejection.statement, Some(1));
    assert_eq!(rejection.sqlite_code, Some(rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE));
    assert_eq!(count(&mut lab), Value::Integer(0));
}

#[test]
fn an_unmet_expectation_undoes_the_batch() {
    let mut lab = shop();
    let mut statements =
        vec![statement("INSERT INTO t(x) VALUES(1)", vec![]), statement("DELETE FROM t WHERE x = 9", vec![])];
    statements[0].expect = Some(Expectation::RowsAffected(1));
    statements[1].expect = Some(Expectation::RowsAffected(1));
    let batch = |statements| Operation::Sql { db: name("shop"), statements, deferred_foreign_keys: false, media: None };
    let applied = lab.one(batch(statements.clone()));
    check_code(&applied, Code::ExpectationFailed);
    assert_eq!(refused(&applied).statement, Some(1));
    assert_eq!(count(&mut lab), Value::Integer(0));
    statements[1] = statement("SELECT * FROM t", vec![]);
    statements[1].expect = Some(Expectation::RowsReturned(1));
    results(&lab.one(batch(statements)));
    assert_eq!(count(&mut lab), Value::Integer(1));
}

#[test]
fn sql_cannot_ask_what_other_operations_did() {
    let mut lab = shop();
    lab.append(sql("shop", &["INSERT INTO t(x) VALUES(1), (2), (3)"]));
    lab.append(sql("shop", &["SELECT last_insert_rowid(), changes(), total_changes()"]));
    lab.append(sql("shop", &["INSERT INTO t(x) VALUES(4)", "SELECT last_insert_rowid(), changes(), total_changes()"]));
    let applied = lab.catch_up(10);
    assert_eq!(results(&applied[1])[0].rows, [[Value::Integer(0), Value::Integer(0), Value::Integer(0)]]);
    assert_eq!(results(&applied[2])[1].rows, [[Value::Integer(4), Value::Integer(1), Value::Integer(1)]]);
}

#[test]
fn deferred_foreign_keys_are_checked_at_the_end_of_each_operation() {
    let mut lab = Lab::with_database("shop");
    let schema = [
        "CREATE TABLE parent(id INTEGER PRIMARY KEY)",
        "CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TABLE strict_child(p REFERENCES parent)",
    ];
    lab.one(sql("shop", &schema));
    lab.append(sql("shop", &["INSERT INTO child VALUES(1, 7)"]));
    lab.append(sql("shop", &["INSERT INTO parent VALUES(7)"]));
    lab.append(sql("shop", &["INSERT INTO child VALUES(2, 8)", "INSERT INTO parent VALUES(8)"]));
    lab.append(sql("shop", &["INSERT INTO strict_child VALUES(9)", "INSERT INTO parent VALUES(9)"]));
    let Operation::Sql { db, statements, media, .. } =
        sql("shop", &["INSERT INTO strict_child VALUES(9)", "INSERT INTO parent VALUES(9)"])
    else {
        unreachable!()
    };
    lab.append(Operation::Sql { db, statements, deferred_foreign_keys: true, media });
    lab.append(sql("shop", &["INSERT INTO strict_child VALUES(10)"]));
    let applied = lab.catch_up(10);
    check_code(&applied[0], Code::Constraint);
    assert_eq!(refused(&applied[0]).sqlite_code, Some(rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY));
    results(&applied[1]);
    results(&applied[2]);
    check_code(&applied[3], Code::Constraint);
    results(&applied[4]);
    check_code(&applied[5], Code::Constraint);
    assert_eq!(lab.value("shop", "SELECT group_concat(id) FROM child"), Value::Text("2".to_owned()));
}

/// Entries of which some end the transaction that they share with others.
fn append_troublemakers(lab: &mut Lab) {
    lab.append(sql(
        "shop",
        &["CREATE TRIGGER bomb BEFORE INSERT ON t WHEN new.x = 'bomb' BEGIN SELECT RAISE(ROLLBACK, 'boom'); END"],
    ));
    for round in 0..4 {
        lab.append(sql("shop", &[&format!("INSERT INTO t(x) VALUES('a{round}')")]));
        lab.append(sql("shop", &["INSERT OR ROLLBACK INTO t(x) VALUES('a0')"]));
        lab.append(sql("shop", &["INSERT INTO t(x) VALUES('lost')", "INSERT INTO t(x) VALUES('bomb')"]));
        lab.append(sql("shop", &[&format!("INSERT INTO t(x) VALUES('b{round}') RETURNING id")]));
    }
}

#[test]
fn what_ends_the_transaction_fails_alone() {
    let mut lab = shop();
    append_troublemakers(&mut lab);
    let applied = lab.catch_up(100);
    for round in 0..4 {
        results(&applied[1 + 4 * round]);
        check_code(&applied[2 + 4 * round], Code::Constraint);
        check_code(&applied[3 + 4 * round], Code::Constraint);
        assert_eq!(refused(&applied[3 + 4 * round]).statement, Some(1));
        results(&applied[4 + 4 * round]);
    }
    assert_eq!(count(&mut lab), Value::Integer(8));
}

#[test]
fn batch_boundaries_change_nothing() {
    let mut lab = shop();
    append_troublemakers(&mut lab);
    lab.append(sql("shop", &["ANALYZE"]));
    lab.append(sql("shop", &["ANALYZE", "INSERT INTO t(x) VALUES('a0')"]));
    lab.append(sql("shop", &["CREATE VIRTUAL TABLE words USING fts5(text)"]));
    for text in ["the quick brown fox", "jumps over", "the lazy dog"] {
        lab.append(sql("shop", &[&format!("INSERT INTO words VALUES('{text}')")]));
        lab.append(sql("shop", &["SELECT count(*) FROM words WHERE words MATCH 'the'"]));
    }
    lab.append(sql("shop", &["ALTER TABLE t ADD COLUMN y DEFAULT 'new'", "SELECT * FROM t LIMIT 1"]));
    lab.append(sql("shop", &["SELECT * FROM t LIMIT 1"]));
    lab.append(sql("shop", &["SELECT no_such_column FROM t"]));
    let whole = lab.catch_up(1000);
    for batch in [1, 2, 3, 7] {
        let mut other = Lab::new();
        other.log = lab.log.clone();
        let applied = other.catch_up(batch);
        let skipped = applied.len() - whole.len();
        assert_eq!(applied[skipped..], whole[..], "batches of {batch}");
        assert_eq!(other.chains(), lab.chains(), "batches of {batch}");
    }
}

#[test]
fn a_full_sequence_is_an_outcome() {
    let mut lab = Lab::with_database("shop");
    lab.one(sql("shop", &["CREATE TABLE s(id INTEGER PRIMARY KEY AUTOINCREMENT, x)"]));
    results(&lab.one(sql("shop", &["INSERT INTO s(id, x) VALUES(9223372036854775806, 1)"])));
    lab.append(sql("shop", &["INSERT INTO s(x) VALUES(2)"]));
    lab.append(sql("shop", &["UPDATE s SET x = 3"]));
    lab.append(sql("shop", &["INSERT INTO s(x) VALUES(4)"]));
    lab.append(sql("shop", &["UPDATE s SET x = x + 1"]));
    let applied = lab.catch_up(10);
    assert!(matches!(applied[0].outcome, Some(Err(_))), "the greatest rowid is not given out: {:?}", applied[0]);
    results(&applied[1]);
    assert!(matches!(applied[2].outcome, Some(Err(_))));
    results(&applied[3]);
    assert_eq!(lab.value("shop", "SELECT x FROM s"), Value::Integer(4));
}

#[test]
fn endless_work_ends_at_the_step_limit_and_alone() {
    let mut lab = shop();
    let endless =
        "INSERT INTO t(x) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0";
    lab.append(sql("shop", &["INSERT INTO t(x) VALUES(1)"]));
    lab.append(sql("shop", &[endless]));
    lab.append(sql("shop", &["INSERT INTO t(x) VALUES(2)"]));
    let applied = lab.catch_up(10);
    assert!(matches!(applied[1].outcome, Some(Err(_))));
    results(&applied[2]);
    assert_eq!(count(&mut lab), Value::Integer(2));
}

#[test]
fn deep_json_is_an_outcome() {
    let mut lab = shop();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut operation = sql("shop", &["INSERT INTO t(x) VALUES(json(?))"]);
    if let Operation::Sql { statements, .. } = &mut operation {
        statements[0].arguments = Arguments::Positional(vec![Value::Text(deep)]);
    }
    check_code(&lab.one(operation), Code::SqlError);
    results(&lab.one(sql("shop", &["INSERT INTO t(x) VALUES(1)"])));
}

#[test]
fn a_result_over_the_bound_is_refused_and_undone() {
    let mut lab = shop();
    let big = "INSERT INTO t(x) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 80) \
               SELECT i || zeroblob(1000000) FROM n RETURNING x, zeroblob(1000000)";
    check_code(&lab.one(sql("shop", &[big])), Code::TooLarge);
    assert_eq!(count(&mut lab), Value::Integer(0));
}

#[test]
fn media_changes_with_the_sql_or_not_at_all() {
    let mut lab = shop();
    let blob = BlobReference { digest: Digest::of(b"meow"), size: 4 };
    let change = || MediaChange::Upload { file_id: file_id("cat"), blob, media_type: "image/jpeg".to_owned() };
    results(&lab.one(with_media(sql("shop", &["INSERT INTO t(x) VALUES('cat')"]), change())));
    check_code(&lab.one(with_media(sql("shop", &["INSERT INTO t(x) VALUES('cat')"]), change())), Code::Constraint);
    let gone = || MediaChange::Delete { file_id: file_id("dog") };
    let applied = lab.one(with_media(sql("shop", &["DELETE FROM t"]), gone()));
    check_code(&applied, Code::MediaNotFound);
    assert_eq!(count(&mut lab), Value::Integer(1));
    let mut found = Vec::new();
    lab.engine().referenced_blobs(&mut |digest| found.push(digest)).unwrap();
    assert_eq!(found, [blob.digest]);
    let cat = MediaChange::Delete { file_id: file_id("cat") };
    results(&lab.one(with_media(sql("shop", &["DELETE FROM t"]), cat)));
    lab.engine().referenced_blobs(&mut |digest| panic!("{digest} is referred to by nothing")).unwrap();
    let huge = BlobReference { digest: blob.digest, size: u64::MAX };
    let change = MediaChange::Upload { file_id: file_id("cat"), blob: huge, media_type: String::new() };
    check_code(&lab.one(with_media(sql("shop", &[]), change)), Code::TooLarge);
}

#[test]
fn media_is_in_the_fingerprint() {
    let blob = BlobReference { digest: Digest::of(b"meow"), size: 4 };
    let chains = [Some("cat"), Some("dog"), None].map(|id| {
        let mut lab = shop();
        let operation = sql("shop", &["INSERT INTO t(x) VALUES(1)"]);
        let change = |id| MediaChange::Upload { file_id: file_id(id), blob, media_type: String::new() };
        let applied = match id {
            Some(id) => lab.one(with_media(operation, change(id))),
            None => lab.one(operation),
        };
        applied.fingerprint.unwrap()
    });
    assert_ne!(chains[0], chains[1]);
    assert_ne!(chains[0], chains[2]);
}

#[test]
fn garbage_and_gaps() {
    let mut lab = shop();
    lab.append_bytes(Some(b"\x01garbage".to_vec()));
    lab.append_bytes(Some(Vec::new()));
    lab.append_bytes(None);
    let applied = lab.catch_up(10);
    check_code(&applied[0], Code::BadRequest);
    check_code(&applied[1], Code::BadRequest);
    assert_eq!(applied[2].outcome, None);
    let late = LogEntry { slot: Slot(99), time_ms: 1, seed: 1, execution: EXECUTION, command: None };
    let files = Files::default();
    assert!(matches!(lab.engine().apply(&[late], &files), Err(crate::Fatal::Gap { .. })));
    let slot = lab.engine().applied().next();
    let newer = LogEntry { slot, time_ms: 1, seed: 1, execution: EXECUTION + 1, command: Some(&[]) };
    assert!(matches!(lab.engine().apply(&[newer], &files), Err(crate::Fatal::Execution { .. })));
}

#[test]
fn users_texts_never_meet_statements_of_the_engine() {
    let mut lab = shop();
    for _ in 0..4 {
        let applied =
            lab.one(sql("shop", &["/*d3b*/SELECT slot, request, time_ms, answer FROM _d3b_requests WHERE key = ?"]));
        assert!(matches!(applied.outcome, Some(Err(_))), "{applied:?}");
        let applied = lab.one(sql("shop", &[" /*d3b*/DELETE FROM _d3b_state WHERE 0"]));
        assert!(matches!(applied.outcome, Some(Err(_))), "{applied:?}");
    }
}

#[test]
fn names_of_the_engine_are_out_of_reach() {
    let mut lab = shop();
    for text in [
        "ALTER TABLE t RENAME TO _d3b_t",
        "ALTER TABLE t RENAME TO _D3B_t",
        "CREATE TABLE _d3b_x(x)",
        "CREATE TABLE c AS SELECT 1 AS a, 2 AS a",
        "CREATE VIEW c AS SELECT 1 AS a, 2 AS a",
        "CREATE TABLE c AS SELECT * FROM (SELECT 1 AS a, 2 AS a, 3 AS a, 4 AS a, 5 AS a, 6 AS a)",
    ] {
        let applied = lab.one(sql("shop", &[text]));
        assert_eq!(refused(&applied).code, Code::StatementDenied, "{text}");
    }
    assert_eq!(lab.value("shop", "SELECT count(*) FROM sqlite_schema WHERE name = 'c'"), Value::Integer(0));
    results(&lab.one(sql("shop", &["CREATE TABLE c AS SELECT 1 AS a, 2 AS b", "ALTER TABLE c RENAME TO d3b_c"])));
}

#[test]
fn a_used_up_sequence_is_an_outcome() {
    let mut lab = Lab::with_database("shop");
    lab.one(sql("shop", &["CREATE TABLE s(id INTEGER PRIMARY KEY AUTOINCREMENT, x)", "INSERT INTO s(x) VALUES(1)"]));
    results(&lab.one(sql("shop", &["UPDATE sqlite_sequence SET seq = 9223372036854775807"])));
    lab.append(sql("shop", &["UPDATE s SET x = 2"]));
    lab.append(sql("shop", &["INSERT INTO s(x) VALUES(3)"]));
    lab.append(sql("shop", &["UPDATE s SET x = x + 1"]));
    let applied = lab.catch_up(10);
    assert_eq!(refused(&applied[1]).sqlite_code, Some(rusqlite::ffi::SQLITE_FULL));
    assert_eq!(lab.value("shop", "SELECT x FROM s"), Value::Integer(3));
}

#[test]
fn transaction_control_is_refused() {
    let mut lab = shop();
    for text in ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "RELEASE d3b_operation", "ROLLBACK TO d3b_operation"] {
        check_code(&lab.one(sql("shop", &["INSERT INTO t(x) VALUES(1)", text])), Code::StatementDenied);
    }
    assert_eq!(count(&mut lab), Value::Integer(0));
}

#[test]
fn the_log_of_a_database_that_is_not_open_is_emptied_ahead_of_a_checkpoint() {
    let mut lab = Lab::with_options(Options { connections_max: 1, ..Options::default() });
    for database in ["closed", "open"] {
        lab.append(create(database));
        lab.append(sql(database, &["CREATE TABLE t(x)", "INSERT INTO t VALUES(1)"]));
    }
    let applied = lab.catch_up(100);
    let log_bytes = |lab: &Lab, applied: &Applied| {
        let path = crate::database::path(&lab.databases(), applied.database.unwrap());
        std::fs::metadata(path.with_extension("sqlite3-wal")).unwrap().len()
    };
    assert!(log_bytes(&lab, &applied[1]) > 0);
    lab.engine().checkpoint_ahead()();
    assert_eq!(log_bytes(&lab, &applied[1]), 0);
    assert!(log_bytes(&lab, &applied[3]) > 0, "its writer goes on with it");
    lab.engine().checkpoint().unwrap();
    for database in ["closed", "open"] {
        assert_eq!(lab.value(database, "SELECT count(*) FROM t"), Value::Integer(1));
    }
}

#[test]
fn databases_that_are_not_used_take_no_files() {
    let mut lab = Lab::new();
    for database in ["busy", "idle"] {
        lab.append(create(database));
        lab.append(sql(database, &["CREATE TABLE t(x)", "INSERT INTO t VALUES(1)"]));
    }
    let applied = lab.catch_up(100);
    let open_files = |lab: &Lab, applied: &Applied| {
        let path = crate::database::path(&lab.databases(), applied.database.unwrap());
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let files =
            std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| entry.unwrap().path().read_link().ok());
        files.filter(|file| file.parent() == path.parent() && file.to_string_lossy().contains(&name)).count()
    };
    let (busy, idle) = (&applied[1], &applied[3]);
    lab.engine().close_unused();
    lab.engine().close_unused();
    assert!(open_files(&lab, idle) > 0, "what is not durable yet stays open");
    lab.engine().checkpoint().unwrap();
    lab.append(sql("busy", &["INSERT INTO t VALUES(2)"]));
    lab.catch_up(1);
    lab.engine().checkpoint().unwrap();
    lab.engine().close_unused();
    assert!(open_files(&lab, busy) > 0);
    assert_eq!(open_files(&lab, idle), 0);
    lab.append(sql("idle", &["INSERT INTO t VALUES(2)"]));
    lab.catch_up(1);
    for database in ["busy", "idle"] {
        assert_eq!(lab.value(database, "SELECT count(*) FROM t"), Value::Integer(2));
    }
}

#[test]
fn many_databases_with_few_connections() {
    let mut lab = Lab::with_options(Options { connections_max: 3, ..Options::default() });
    for database in 0..8 {
        lab.append(create(&format!("db{database}")));
    }
    for round in 0..3 {
        for database in 0..8 {
            let text = if round == 0 { "CREATE TABLE t(x)" } else { "INSERT INTO t VALUES(1)" };
            lab.append(sql(&format!("db{database}"), &[text]));
        }
    }
    for applied in lab.catch_up(100) {
        assert!(matches!(applied.outcome, Some(Ok(_))), "{applied:?}");
    }
    lab.engine().checkpoint().unwrap();
    for database in 0..8 {
        assert_eq!(lab.value(&format!("db{database}"), "SELECT count(*) FROM t"), Value::Integer(2));
    }
}
