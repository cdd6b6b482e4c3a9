//! Reads of databases that are being written, downloads, and the check of uploads.

use std::fs;
use std::time::{Duration, Instant};

use d3b::{Arguments, InsertMode, MediaChange, SinkClosed, Value};

use super::*;
use crate::tests::{
    Lab, create, database_file, delete, file_id, made, name, results, sql, statement, upload, with_media,
};

/// A sink that keeps everything, or closes after some rows.
#[derive(Default)]
struct Kept {
    names: Vec<String>,
    types: Vec<String>,
    rows: Vec<Vec<Value>>,
    rows_max: Option<usize>,
}

impl RowSink for Kept {
    fn columns(&mut self, names: &[String], types: &[String]) -> Result<(), SinkClosed> {
        (self.names, self.types) = (names.to_vec(), types.to_vec());
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SinkClosed> {
        if self.rows_max.is_some_and(|bound| self.rows.len() >= bound) {
            return Err(SinkClosed);
        }
        self.rows.push(values.iter().map(ValueRef::to_owned).collect());
        Ok(())
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn shop() -> (Lab, Readers) {
    let mut lab = Lab::with_database("shop");
    results(&lab.one(sql("shop", &["CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT)"])));
    results(&lab.one(sql("shop", &["INSERT INTO t(x) VALUES('a'), ('b'), ('c')"])));
    let readers = lab.engine().readers();
    (lab, readers)
}

fn query(readers: &Readers, text: &str) -> Result<(Slot, Kept), Rejection> {
    let mut kept = Kept::default();
    let slot = readers.query(&name("shop"), &statement(text, vec![]), soon(), None, &mut kept)?;
    Ok((slot, kept))
}

#[test]
fn a_read_sees_what_was_applied() {
    let (mut lab, readers) = shop();
    let (slot, kept) = query(&readers, "SELECT id, x FROM t ORDER BY id").unwrap();
    assert_eq!(slot, Slot(3));
    assert_eq!(readers.applied(), Slot(3));
    assert_eq!(
        (kept.names, kept.types),
        (vec!["id".to_owned(), "x".to_owned()], vec!["INTEGER".to_owned(), "TEXT".to_owned()])
    );
    assert_eq!(kept.rows.len(), 3);
    results(&lab.one(sql("shop", &["ALTER TABLE t ADD COLUMN y", "DELETE FROM t WHERE id > 1"])));
    for _ in 0..3 {
        let (slot, kept) = query(&readers, "SELECT * FROM t").unwrap();
        assert_eq!(slot, Slot(4));
        assert_eq!(kept.names, ["id", "x", "y"]);
        assert_eq!(kept.rows, [[Value::Integer(1), Value::Text("a".to_owned()), Value::Null]]);
    }
    let (_, kept) = query(&readers, "SELECT x FROM t WHERE 0").unwrap();
    assert_eq!(kept.names, ["x"]);
}

#[test]
fn kept_statements_follow_the_schema() {
    let (mut lab, readers) = shop();
    for _ in 0..3 {
        assert_eq!(query(&readers, "SELECT * FROM t").unwrap().1.names.len(), 2);
    }
    results(&lab.one(sql("shop", &["ALTER TABLE t ADD COLUMN y"])));
    let kept = query(&readers, "SELECT * FROM t").unwrap().1;
    assert_eq!((kept.names.len(), kept.rows[0].len()), (3, 3));
}

#[test]
fn reads_are_told_from_writes() {
    let (_lab, readers) = shop();
    let classify = |text: &str| readers.classify(&name("shop"), text);
    for text in [
        "SELECT 1",
        "-- c\nSELECT * FROM t;",
        "PRAGMA table_info(t)",
        "EXPLAIN DELETE FROM t WHERE 0",
        "SELECT sqlite_version()",
    ] {
        assert_eq!(classify(text), Ok(Kind::Read), "{text}");
    }
    for text in [
        "INSERT INTO t(x) VALUES(1)",
        "WITH a AS (SELECT 1) DELETE FROM t",
        "UPDATE t SET x = 1 RETURNING x",
        "CREATE TABLE u(x)",
        "DROP TABLE t",
        "ANALYZE",
        "PRAGMA user_version = 5",
    ] {
        assert_eq!(classify(text), Ok(Kind::Write), "{text}");
    }
    for (text, code) in [
        ("BEGIN", Code::StatementDenied),
        ("ATTACH 'x' AS y", Code::StatementDenied),
        ("PRAGMA journal_mode = DELETE", Code::StatementDenied),
        ("DELETE FROM _d3b_state", Code::StatementDenied),
        ("SELEC", Code::SqlError),
        ("SELECT * FROM nowhere", Code::SqlError),
        ("", Code::BadRequest),
        ("SELECT 1; DELETE FROM t", Code::BadRequest),
    ] {
        assert_eq!(classify(text).map_err(|rejection| rejection.code), Err(code), "{text}");
    }
    assert!(!query(&readers, "EXPLAIN QUERY PLAN DELETE FROM t WHERE id = 1").unwrap().1.rows.is_empty());
    let rejection = classify("BEGIN").unwrap_err();
    assert!(rejection.hint.unwrap().contains("batch"));
    assert_eq!(readers.classify(&name("nowhere"), "SELECT 1").unwrap_err().code, Code::DatabaseNotFound);
}

#[test]
fn a_read_writes_nothing_and_ends_in_time() {
    let (_lab, readers) = shop();
    assert_eq!(query(&readers, "DELETE FROM t").err().unwrap().code, Code::StatementDenied);
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0";
    let mut kept = Kept::default();
    let started = Instant::now();
    let soon = started + Duration::from_millis(50);
    let result = readers.query(&name("shop"), &statement(endless, vec![]), soon, None, &mut kept);
    assert_eq!(result.unwrap_err().code, Code::RequestTimeout);
    assert_eq!(query(&readers, "SELECT count(*) FROM t").unwrap().1.rows, [[Value::Integer(3)]], "it recovers");
}

#[test]
fn results_are_bounded() {
    let (_lab, readers) = shop();
    let many =
        statement("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000) SELECT i FROM n", vec![]);
    let mut kept = Kept::default();
    let result = readers.query(&name("shop"), &many, soon(), Some(100), &mut kept);
    assert_eq!(result.unwrap_err().code, Code::TooLarge);
    let mut kept = Kept { rows_max: Some(10), ..Kept::default() };
    assert!(readers.query(&name("shop"), &many, soon(), None, &mut kept).is_err());
    assert_eq!(kept.rows.len(), 10);
    let mut kept = Kept::default();
    let arguments = Statement { arguments: Arguments::Positional(vec![]), ..statement("SELECT ?", vec![]) };
    let result = readers.query(&name("shop"), &arguments, soon(), None, &mut kept);
    assert_eq!(result.unwrap_err().code, Code::BadRequest);
}

#[test]
fn databases_are_listed_and_described() {
    let (mut lab, readers) = shop();
    let (id, _) = made(&lab.one(create("another")));
    let blob = lab.blob(b"meow");
    for id in ["cat", "dog", "eel"] {
        let change = MediaChange::Upload { file_id: file_id(id), blob, media_type: "image/jpeg".to_owned() };
        results(&lab.one(with_media(sql("shop", &[]), change)));
    }
    let databases = readers.databases().unwrap();
    assert_eq!(databases.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["another", "shop"]);
    assert_eq!(databases[0].id, id.to_string());
    let info = readers.database(&name("shop")).unwrap();
    assert_eq!(info, databases[1]);
    assert_eq!((info.owner.as_str(), info.slot, info.media), ("ann", 7, 3));
    assert_eq!((info.size % 4096, info.fingerprint.len(), info.created.as_str()), (0, 32, "2023-11-14T22:13:20.001Z"));
    assert_eq!(readers.database(&name("schemas")).unwrap().name, "schemas");
    assert_eq!(readers.database(&name("nowhere")).unwrap_err().code, Code::DatabaseNotFound);
    let schema = readers.schema(&name("shop")).unwrap();
    assert_eq!(schema.objects.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["t"]);
    let (media, digest) = readers.media(&name("shop"), &file_id("cat")).unwrap().unwrap();
    assert_eq!((media.size, media.slot, digest), (4, 5, blob.digest));
    assert_eq!(readers.media(&name("shop"), &file_id("cow")).unwrap(), None);
    let page = readers.media_list(&name("shop"), None, 2).unwrap();
    assert_eq!((page.media.len(), page.next.as_deref()), (2, Some("dog")));
    let page = readers.media_list(&name("shop"), Some("dog"), 2).unwrap();
    assert_eq!((page.media.len(), page.next.as_deref()), (1, None));
}

#[test]
fn requests_and_outcomes_are_found() {
    let (mut lab, readers) = shop();
    let applied = lab.one_keyed("k", sql("shop", &["DELETE FROM t WHERE id = 1"]));
    let lost = lab.one_keyed("l", sql("nowhere", &["DELETE FROM t"]));
    let key = |text| IdempotencyKey::new(text).unwrap();
    let stored = readers.request(&name("shop"), &key("k")).unwrap().unwrap();
    assert_eq!((stored.slot, Some(stored.outcome)), (applied.slot, applied.outcome));
    assert_eq!(stored.time_ms, lab.log[3].time_ms);
    let stored = readers.request(&name("nowhere"), &key("l")).unwrap().unwrap();
    assert_eq!((stored.slot, Some(stored.outcome)), (lost.slot, lost.outcome));
    assert_eq!(readers.request(&name("shop"), &key("never")).unwrap(), None);
    let (code, fingerprint) = readers.outcome_at(&name("shop"), applied.slot).unwrap().unwrap();
    assert_eq!((code.as_str(), Some(fingerprint)), ("ok", applied.fingerprint));
    assert_eq!(readers.outcome_at(&name("nowhere"), lost.slot).unwrap().unwrap().0, "db-not-found");
    assert_eq!(readers.outcome_at(&name("shop"), Slot(99)).unwrap(), None);
}

#[test]
fn a_dropped_database_is_gone_for_readers() {
    let (mut lab, readers) = shop();
    query(&readers, "SELECT 1").unwrap();
    made(&lab.one(delete("shop")));
    assert_eq!(query(&readers, "SELECT 1").err().unwrap().code, Code::DatabaseNotFound);
    lab.engine().checkpoint().unwrap();
    assert_eq!(query(&readers, "SELECT 1").err().unwrap().code, Code::DatabaseNotFound);
}

#[test]
fn an_export_is_an_ordinary_database() {
    let (mut lab, readers) = shop();
    results(&lab.one(sql("shop", &["DELETE FROM t WHERE id = 2"])));
    let to = lab.directory.path().join("export.sqlite3");
    fs::write(&to, b"").unwrap();
    readers.export(&name("shop"), &to, soon()).unwrap();
    assert_eq!(fs::read(&to).unwrap()[18..20], [1, 1], "a rollback-mode header");
    assert!(!lab.directory.path().join("export.sqlite3-wal").exists());
    check_upload(&to).unwrap();
    let connection = rusqlite::Connection::open(&to).unwrap();
    let rows: String = connection.query_row("SELECT group_concat(rowid || x) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, "1a,3c");
    drop(connection);
    let bytes = fs::read(&to).unwrap();
    assert!(!bytes.windows(5).any(|window| window == b"_d3b_"), "no trace of d3b's own tables");
    let blob = lab.blob(&bytes);
    made(&lab.one(upload("copy", Some(blob), InsertMode::CreateOnly)));
    let past = Instant::now();
    let big = lab.directory.path().join("late.sqlite3");
    assert!(readers.export(&name("nowhere"), &big, past).is_err());
}

#[test]
fn many_threads_read_while_the_engine_writes() {
    let (mut lab, readers) = shop();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut last = 0;
                while last < 60 {
                    let kept = query(&readers, "SELECT count(*), max(id) FROM t").unwrap().1;
                    let [Value::Integer(count), _] = kept.rows[0][..] else { panic!("{:?}", kept.rows) };
                    assert!(count >= last, "a later read sees at least as much");
                    assert_eq!(count % 3, 0, "an operation is seen whole or not at all");
                    last = count;
                }
            });
        }
        for _ in 0..20 {
            lab.append(sql("shop", &["INSERT INTO t(x) VALUES('d')", "INSERT INTO t(x) VALUES('e'), ('f')"]));
            lab.catch_up(10);
        }
    });
}

#[track_caller]
fn check_refused(bytes: &[u8], problem: &str) {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("an upload?.sqlite3");
    fs::write(&path, bytes).unwrap();
    let rejection = check_upload(&path).unwrap_err();
    assert_eq!(rejection.code, Code::NotADatabase);
    assert!(rejection.detail.contains(problem), "{}", rejection.detail);
    assert_eq!(fs::read(&path).unwrap(), bytes, "it is not changed");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn uploads_are_checked() {
    let whole = database_file("CREATE TABLE t(x); INSERT INTO t VALUES('one'), ('two'); CREATE INDEX i ON t(x);");
    let directory = tempfile::TempDir::new().unwrap();
    for bytes in [
        whole.clone(),
        database_file("PRAGMA journal_mode=WAL; CREATE TABLE t(x);"),
        database_file("PRAGMA page_size=65536; PRAGMA encoding='UTF-16'; CREATE TABLE t(rowid, oid, _rowid_);"),
        database_file("CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES('y');"),
        database_file("CREATE TABLE w(a PRIMARY KEY) WITHOUT ROWID; INSERT INTO w VALUES(9223372036854775807);"),
    ] {
        let path = directory.path().join("db");
        fs::write(&path, &bytes).unwrap();
        check_upload(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
    check_refused(b"", "0 bytes");
    check_refused(&whole[..50], "50 bytes");
    check_refused(&[b'x'; 4096], "does not begin");
    check_refused(&whole[..whole.len() - 4096], "truncated");
    check_refused(&whole[..whole.len() - 1], "truncated");
    let mut damaged = whole.clone();
    damaged[4096..8192].fill(0xa5);
    check_refused(&damaged, "damaged");
    let mut page_size = whole.clone();
    page_size[16] = 0x11;
    check_refused(&page_size, "page size");
    check_refused(&database_file("CREATE TABLE _d3b_state(x)"), "_d3b_state");
    check_refused(&database_file("CREATE VIEW _D3B_v AS SELECT 1"), "_D3B_v");
    check_refused(&database_file("CREATE TABLE t(x); INSERT INTO t(rowid) VALUES(9223372036854775807)"), "random");
    check_refused(
        &database_file("CREATE TABLE t(rowid, x); INSERT INTO t(_rowid_) VALUES(9223372036854775807)"),
        "random",
    );
}

/// A database file in which some bytes are replaced by as many others.
fn patched(schema: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = database_file(schema);
    let places: Vec<usize> = (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

#[test]
fn uploads_with_a_hostile_schema_are_refused() {
    for schema in [
        "CREATE VIEW v AS SELECT * FROM _d3b_requests",
        "CREATE TABLE t(x); CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM _d3b_state; END",
        "PRAGMA foreign_keys=OFF; CREATE TABLE t(k REFERENCES \"_D3B_requests\"(key)); INSERT INTO t VALUES('key 7')",
        "CREATE VIRTUAL TABLE f USING fts5(x, content=_d3b_media)",
        "PRAGMA encoding='UTF-16'; CREATE VIEW v AS SELECT * FROM _d3b_requests",
    ] {
        check_refused(&database_file(schema), "_d3b_");
    }
    // It shows the pages of one replica under a harmless name.
    check_refused(&database_file("CREATE VIRTUAL TABLE pages USING dbstat"), "pages");
    check_refused(&patched("CREATE VIRTUAL TABLE f USING rtree(a, b, c)", b"USING rtree", b"USING rtrex"), "rtrex");
    let mut newer = database_file("CREATE TABLE t(x)");
    newer[18] = 3;
    check_refused(&newer, "newer SQLite");
    let odd = [0xff, 0xfe, 0xff];
    check_refused(&patched("CREATE TABLE ordinary(zqz)", b"zqz", &odd), "UTF-8");
    check_refused(&patched("CREATE TABLE zqz(x)", b"zqz", &odd), "UTF-8");
    check_refused(&patched("CREATE TABLE t(x zqz)", b"zqz", &odd), "UTF-8");
}

#[test]
fn ordinary_schemas_are_taken() {
    let directory = tempfile::TempDir::new().unwrap();
    let many: String = (0..3_000).map(|i| format!("CREATE TABLE t{i}(x, y); CREATE INDEX i{i} ON t{i}(x);")).collect();
    for schema in [
        "CREATE VIEW early AS SELECT * FROM nowhere",
        "CREATE TABLE t(x DEFAULT \"text\", y CHECK(y <> \"none\"), z AS (x || y) STORED); INSERT INTO t(y) VALUES('z')",
        "CREATE VIRTUAL TABLE f USING fts4(x); CREATE VIRTUAL TABLE r USING rtree(a, b, c); INSERT INTO r VALUES(1, 2, 3)",
        "CREATE VIRTUAL TABLE f USING fts5(x); CREATE VIRTUAL TABLE w USING fts5vocab(f, row); INSERT INTO f VALUES('y')",
        "PRAGMA auto_vacuum=FULL; CREATE TABLE t(x); INSERT INTO t VALUES(zeroblob(100000)); DELETE FROM t",
        "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, x); INSERT INTO t VALUES(NULL, 1); ANALYZE",
        "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p DEFERRABLE INITIALLY DEFERRED); INSERT INTO c VALUES(NULL)",
        &format!("BEGIN; {many} COMMIT"),
    ] {
        let path = directory.path().join("db");
        fs::write(&path, database_file(schema)).unwrap();
        check_upload(&path).unwrap_or_else(|rejection| panic!("{:.100}: {}", schema, rejection.detail));
    }
}
