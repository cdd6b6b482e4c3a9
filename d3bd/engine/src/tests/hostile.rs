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
        .chain((0..20).map(|i| format!("CREATE VIEW v{} AS SELECT a FROM v{i} UNION ALL SELECT a FROM v{i}", i + 1)))
        .collect();
    for text in &doubled {
        results(&lab.one(sql("shop", &[text])));
    }
    check_code(&lab.one(sql("shop", &["SELECT count(*) FROM v20"])), Code::SqlError);
    results(&lab.one(sql("shop", &["CREATE TABLE nowhere(x)", "SELECT * FROM early"])));
}
