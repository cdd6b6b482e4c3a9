//! What a process keeps in memory must not show: a replica that was restarted answers as one that was not.

use super::*;

/// Applies a log as it is told: all at once, in small batches, and with a restart after every entry.
#[track_caller]
fn check_same(lab: &mut Lab) {
    let expected = lab.catch_up(1_000);
    let chains = lab.chains();
    for (batch, restarts) in [(1, false), (2, false), (3, false), (1, true), (2, true)] {
        let mut other = Lab::new();
        other.log = lab.log.clone();
        other.files = Files(lab.files.0.clone());
        let mut applied = Vec::new();
        while applied.len() < other.log.len() {
            applied.extend(other.pull(batch).applied);
            if restarts {
                other.engine().checkpoint().unwrap();
                other.restart();
            }
        }
        let way = format!("batches of {batch}, restarts: {restarts}");
        for (found, expected) in applied[applied.len() - expected.len()..].iter().zip(&expected) {
            assert_eq!(found, expected, "{way}");
        }
        if !restarts {
            assert_eq!(other.chains(), chains, "{way}");
        }
    }
}

#[test]
fn the_order_of_the_schema_in_memory_does_not_show() {
    let mut lab = Lab::with_database("shop");
    for table in 0..40 {
        lab.append(sql("shop", &[&format!("CREATE TABLE t{table}(x)"), &format!("INSERT INTO t{table} VALUES(1)")]));
    }
    for table in (0..40).step_by(3) {
        lab.append(sql("shop", &[&format!("DROP TABLE t{table}")]));
    }
    lab.append(sql("shop", &["ANALYZE"]));
    lab.append(sql("shop", &["SELECT * FROM sqlite_stat1"]));
    lab.append(sql("shop", &["PRAGMA table_list"]));
    lab.append(sql("shop", &["CREATE TABLE copy AS SELECT * FROM sqlite_stat1"]));
    check_same(&mut lab);
}

#[test]
fn statistics_in_memory_are_those_on_disk() {
    let mut lab = Lab::with_database("shop");
    lab.append(sql(
        "shop",
        &[
            "CREATE TABLE a(x, y)",
            "CREATE INDEX ax ON a(x)",
            "CREATE TABLE b(x, y)",
            "CREATE INDEX bx ON b(x)",
            "CREATE TABLE c(n INTEGER PRIMARY KEY, x)",
            "INSERT INTO a WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5) SELECT i, -i FROM n",
            "INSERT INTO b WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000) SELECT i % 10, -i FROM n",
        ],
    ));
    lab.append(sql("shop", &["ANALYZE"]));
    lab.append(sql("shop", &["DELETE FROM a"]));
    // An empty table leaves no row among the statistics, and what was in memory is not reset by SQLite itself.
    lab.append(sql("shop", &["ANALYZE"]));
    lab.append(sql(
        "shop",
        &["INSERT INTO a WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300) SELECT i % 10, -i FROM n"],
    ));
    let join = "SELECT a.y, b.y FROM a JOIN b ON a.x = b.x";
    lab.append(sql("shop", &[&format!("EXPLAIN QUERY PLAN {join}")]));
    lab.append(sql("shop", &[&format!("INSERT INTO c(x) {join} LIMIT 100").replace("a.y, b.y", "a.y || b.y")]));
    lab.append(sql("shop", &["SELECT group_concat(x) FROM c"]));
    check_same(&mut lab);
}

#[test]
fn what_is_done_again_is_planned_with_the_statistics_of_its_time() {
    let mut lab = Lab::with_database("shop");
    lab.append(sql(
        "shop",
        &[
            "CREATE TABLE a(x, y)",
            "CREATE INDEX ax ON a(x)",
            "CREATE TABLE b(x, y)",
            "CREATE INDEX bx ON b(x)",
            "CREATE TABLE c(n INTEGER PRIMARY KEY, x UNIQUE)",
            "ANALYZE",
            "INSERT INTO a WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300) SELECT i % 10, -i FROM n",
            "INSERT INTO b WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3) SELECT i % 10, -i FROM n",
        ],
    ));
    lab.catch_up(10);
    let join = "SELECT a.y || ' ' || b.y FROM a JOIN b ON a.x = b.x LIMIT 100";
    lab.append(sql("shop", &[&format!("INSERT INTO c(x) {join}"), "SELECT group_concat(x) FROM c"]));
    lab.append(sql("shop", &["ANALYZE"]));
    lab.append(sql("shop", &["INSERT OR ROLLBACK INTO c(n, x) SELECT 1000, x FROM c LIMIT 1"]));
    lab.append(sql("shop", &["DELETE FROM c", &format!("INSERT INTO c(x) {join}"), "SELECT group_concat(x) FROM c"]));
    check_same(&mut lab);
}

#[test]
fn the_rows_of_a_table_that_a_query_made_are_in_the_chain() {
    let chains = ["1, 2", "1, 3", "2, 1", "1", "'1', 2"].map(|row| {
        let mut lab = Lab::with_database("shop");
        // What stands in the schema is the same for all of them.
        let applied =
            lab.one(sql("shop", &[&format!("CREATE TABLE \"a \"\" copy\" AS SELECT * FROM (VALUES({row}))")]));
        results(&applied);
        applied.fingerprint
    });
    for (index, chain) in chains.iter().enumerate() {
        assert!(!chains[..index].contains(chain), "{index}");
    }
}

#[test]
fn what_full_text_search_does_at_a_commit_is_done_after_each_operation() {
    let mut lab = Lab::with_database("shop");
    lab.append(sql("shop", &["CREATE TABLE t(x)", "INSERT INTO t VALUES(1)"]));
    lab.append(sql("shop", &["CREATE VIRTUAL TABLE f USING fts4(x)"]));
    lab.append(sql("shop", &["INSERT INTO f(f) VALUES('automerge=2')"]));
    for round in 0..40 {
        let many = "INSERT INTO f WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300) \
                    SELECT hex(randomblob(20)) || ' word' || i FROM n";
        lab.append(sql("shop", &[many]));
        if round % 7 == 3 {
            lab.append(sql("shop", &["INSERT OR ROLLBACK INTO t(rowid) VALUES(1)"]));
        }
        lab.append(sql("shop", &["SELECT level, idx, start_block, leaves_end_block, end_block FROM f_segdir"]));
    }
    check_same(&mut lab);
}

#[test]
fn what_full_text_search_holds_back_is_in_the_chain_of_its_operation() {
    let chains = ["one", "two"].map(|word| {
        let mut lab = Lab::with_database("shop");
        // Without content only the index tells the words apart, and that is written last.
        results(&lab.one(sql("shop", &["CREATE VIRTUAL TABLE f USING fts5(x, content='')"])));
        lab.append(sql("shop", &[&format!("INSERT INTO f(rowid, x) VALUES(1, '{word}')")]));
        lab.append(sql("shop", &["SELECT changes(), total_changes(), last_insert_rowid()"]));
        let applied = lab.catch_up(10);
        assert_eq!(results(&applied[1])[0].rows, [[Value::Integer(0), Value::Integer(0), Value::Integer(0)]]);
        applied[0].fingerprint
    });
    assert_ne!(chains[0], chains[1]);
}

/// What the module of a virtual table has in memory must not come out in what it writes later.
#[test]
fn what_full_text_search_remembers_does_not_show() {
    let mut lab = Lab::with_database("shop");
    lab.append(sql("shop", &["CREATE VIRTUAL TABLE f USING fts5(x)", "INSERT INTO f VALUES('one'), ('two')"]));
    lab.append(sql("shop", &["INSERT INTO f(f, rank) VALUES('crisismerge', 3)"]));
    // The first thing that is done here writes the number of the settings, which a new process has not read yet.
    lab.append(sql("shop", &["INSERT INTO f(f) VALUES('rebuild')"]));
    lab.append(sql("shop", &["SELECT id, hex(block) FROM f_data"]));
    check_same(&mut lab);
}

#[test]
fn what_was_bound_to_statements_of_full_text_search_does_not_show() {
    let mut lab = Lab::with_database("shop");
    lab.append(sql("shop", &["CREATE VIRTUAL TABLE f USING fts5(x, content='', contentless_delete=1)"]));
    lab.append(sql("shop", &["INSERT INTO f(rowid, x) VALUES(21, 'one')", "SELECT * FROM nowhere"]));
    // A row without a rowid is first written with what the statement held from the row before it.
    lab.append(sql("shop", &["INSERT INTO f(x) VALUES('two')"]));
    lab.append(sql("shop", &["INSERT INTO f(x) VALUES('three')"]));
    check_same(&mut lab);
}

#[test]
fn full_text_search_behind_views_and_triggers_is_seen() {
    let mut lab = Lab::with_database("shop");
    lab.append(sql(
        "shop",
        &["CREATE TABLE t(x)", "CREATE VIRTUAL TABLE f USING fts5(x, content='', contentless_delete=1)"],
    ));
    lab.append(sql("shop", &["CREATE TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO F(x) VALUES(new.x); END"]));
    lab.append(sql("shop", &["CREATE VIEW v AS SELECT rowid AS id FROM f"]));
    for round in 0..4 {
        lab.append(sql("shop", &[&format!("INSERT INTO t VALUES('one {round}')"), "SELECT count(*) FROM v"]));
        lab.append(sql("shop", &["INSERT INTO t VALUES('two')", "SELECT * FROM nowhere"]));
    }
    check_same(&mut lab);
}
