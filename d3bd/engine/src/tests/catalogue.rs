//! Databases come and go.

use super::*;

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

#[test]
fn an_uploaded_database_is_served() {
    let mut lab = Lab::new();
    let blob = lab.blob(&database_file("CREATE TABLE t(x); INSERT INTO t VALUES('from afar')"));
    let (id, replaced) = made(&lab.one(upload("shop", Some(blob), InsertMode::CreateOnly)));
    assert!(!replaced);
    assert_eq!(lab.value("shop", "SELECT x FROM t"), text("from afar"));
    results(&lab.one(sql("shop", &["INSERT INTO t VALUES('more')"])));
    let rows = lab.rows("schemas", "SELECT id, owner, name, fileid, created FROM tables");
    let created = lab.log[0].time_ms;
    assert_eq!(rows[0][..4], [text(&id.to_string()), text("ann"), text("shop"), text("shop.sqlite3")]);
    let Value::Text(time) = &rows[0][4] else { panic!("{rows:?}") };
    assert!(time.ends_with('Z'), "{time} of {created}");
    let catalogue = DatabaseId::catalogue();
    let mut expected = vec![format!("{catalogue}.sqlite3"), format!("{id}.sqlite3")];
    expected.sort();
    assert_eq!(lab.file_names(), expected);
}

#[test]
fn an_empty_file_makes_an_empty_database() {
    let mut lab = Lab::new();
    let nothing = BlobReference { digest: Digest::of(b""), size: 0 };
    made(&lab.one(upload("shop", Some(nothing), InsertMode::Replace)));
    results(&lab.one(sql("shop", &["CREATE TABLE t(x)"])));
}

#[test]
fn an_entry_waits_for_its_blob() {
    let mut lab = Lab::new();
    let bytes = database_file("CREATE TABLE t(x)");
    let blob = lab.blob(&bytes);
    let files = std::mem::take(&mut lab.files);
    lab.append(create("other"));
    lab.append(upload("shop", Some(blob), InsertMode::Replace));
    lab.append(sql("shop", &["SELECT * FROM t"]));
    let progress = lab.pull(10);
    assert_eq!(progress.applied.len(), 1);
    assert_eq!(progress.needs_blob, Some((Slot(2), blob)));
    assert_eq!(lab.engine().applied(), Slot(1));
    assert_eq!(lab.pull(10).needs_blob, Some((Slot(2), blob)));
    lab.files = files;
    let applied = lab.catch_up(10);
    made(&applied[0]);
    results(&applied[1]);
}

#[test]
fn two_uploads_of_one_name() {
    let mut lab = Lab::new();
    lab.append(create("shop"));
    lab.append(create("shop"));
    lab.append(upload("shop", None, InsertMode::Replace));
    let applied = lab.catch_up(10);
    let (first, _) = made(&applied[0]);
    check_code(&applied[1], Code::Exists);
    let (second, replaced) = made(&applied[2]);
    assert!(replaced);
    assert_ne!(first, second);
    assert_eq!(lab.value("schemas", "SELECT count(*) FROM tables"), Value::Integer(1));
}

#[test]
fn the_file_of_a_dropped_database_goes_when_its_end_is_durable() {
    let mut lab = Lab::with_database("shop");
    results(&lab.one(sql("shop", &["CREATE TABLE t(x)"])));
    let (dropped, _) = made(&lab.one(delete("shop")));
    check_code(&lab.one(sql("shop", &["SELECT 1"])), Code::DatabaseNotFound);
    check_code(&lab.one(delete("shop")), Code::DatabaseNotFound);
    assert_eq!(lab.file_names().len(), 2);
    lab.engine().checkpoint().unwrap();
    assert_eq!(lab.file_names(), [format!("{}.sqlite3", DatabaseId::catalogue())]);
    let (made_again, _) = made(&lab.one(create("shop")));
    assert_ne!(dropped, made_again);
    results(&lab.one(sql("shop", &["CREATE TABLE t(x)"])));
    assert!(lab.engine().fingerprints().iter().all(|(id, ..)| *id != dropped));
}

#[test]
fn within_one_batch_a_name_means_what_it_meant_at_each_slot() {
    let mut lab = Lab::new();
    lab.append(sql("shop", &["SELECT 1"]));
    lab.append(create("shop"));
    lab.append(sql("shop", &["CREATE TABLE first(x)"]));
    lab.append(delete("shop"));
    lab.append(sql("shop", &["SELECT * FROM first"]));
    lab.append(create("shop"));
    lab.append(sql("shop", &["SELECT * FROM first"]));
    let applied = lab.catch_up(100);
    check_code(&applied[0], Code::DatabaseNotFound);
    results(&applied[2]);
    check_code(&applied[4], Code::DatabaseNotFound);
    check_code(&applied[6], Code::SqlError);
    let alone = lab.replica(1);
    assert_eq!(alone.file_names(), lab.file_names());
}

#[test]
fn a_file_that_is_no_database_is_refused_and_leaves_nothing() {
    let mut lab = Lab::new();
    let blob = lab.blob(b"this is not a database, and never was one");
    check_code(&lab.one(upload("shop", Some(blob), InsertMode::Replace)), Code::NotADatabase);
    assert_eq!(lab.file_names().len(), 1);
    assert_eq!(lab.value("schemas", "SELECT count(*) FROM tables"), Value::Integer(0));
    check_code(&lab.one(sql("shop", &["SELECT 1"])), Code::DatabaseNotFound);
    let hidden = lab.blob(&database_file("CREATE TABLE _d3b_state(x)"));
    check_code(&lab.one(upload("shop", Some(hidden), InsertMode::Replace)), Code::NotADatabase);
    assert_eq!(lab.file_names().len(), 1);
}

#[test]
fn the_catalogue_is_read_with_sql_and_not_written() {
    let mut lab = Lab::with_database("shop");
    assert_eq!(lab.value("schemas", "SELECT name FROM tables"), text("shop"));
    for write in ["DELETE FROM tables", "INSERT INTO users(name) VALUES('eve')", "CREATE TABLE t(x)"] {
        let rejection = refused(&lab.one(sql("schemas", &[write])));
        assert_eq!(rejection.code, Code::StatementDenied);
        assert!(rejection.hint.unwrap().contains("schema service"));
    }
    check_code(&lab.one(create("schemas")), Code::StatementDenied);
    check_code(&lab.one(delete("schemas")), Code::StatementDenied);
}

fn raw_upload(sql: &str, id: &str, blob: BlobReference) -> Operation {
    let statement = statement(sql, vec![]);
    Operation::Catalogue(CatalogueChange::RawUpload { statement, file_id: file_id(id), blob })
}

fn raw_delete(sql: &str, id: &str) -> Operation {
    Operation::Catalogue(CatalogueChange::RawDelete { statement: statement(sql, vec![]), file_id: file_id(id) })
}

#[test]
fn raw_clients_insert_into_tables_and_delete_from_them() {
    let mut lab = Lab::new();
    let blob = lab.blob(&database_file("CREATE TABLE t(x)"));
    let insert = "INSERT INTO tables (owner, name, fileid) VALUES ('ann', 'shop', 'f1')";
    let applied = lab.one(raw_upload(insert, "f1", blob));
    assert_eq!(results(&applied)[0].rows_affected, 1);
    results(&lab.one(sql("shop", &["SELECT * FROM t"])));
    check_code(&lab.one(raw_upload(insert, "f1", blob)), Code::Constraint);
    assert_ne!(lab.value("schemas", "SELECT id FROM tables"), Value::Null);
    let first = lab.value("schemas", "SELECT id FROM tables");
    results(&lab.one(raw_delete("DELETE FROM tables WHERE fileid = 'f1'", "f1")));
    check_code(&lab.one(sql("shop", &["SELECT * FROM t"])), Code::DatabaseNotFound);
    results(&lab.one(raw_upload(insert, "f1", blob)));
    assert_ne!(lab.value("schemas", "SELECT id FROM tables"), first, "the same file id makes another database");
    results(&lab.one(sql("shop", &["SELECT * FROM t"])));
}

#[test]
fn raw_changes_touch_exactly_the_row_that_they_name() {
    let mut lab = Lab::with_database("other");
    let blob = lab.blob(&database_file("CREATE TABLE t(x)"));
    for (text, code) in [
        ("INSERT INTO tables (name, fileid) VALUES ('a', 'f1'), ('b', 'f1')", Code::BadRequest),
        ("INSERT INTO tables (name, fileid) VALUES ('a', 'f2')", Code::BadRequest),
        ("INSERT INTO tables (name, fileid) SELECT 'a', 'f1' WHERE 0", Code::BadRequest),
        ("INSERT INTO tables (name, fileid) VALUES ('a/b', 'f1')", Code::BadRequest),
        ("INSERT INTO tables (name, fileid) VALUES (x'00', 'f1')", Code::BadRequest),
        ("INSERT INTO tables (name, fileid) VALUES ('schemas', 'f1')", Code::StatementDenied),
        ("INSERT OR REPLACE INTO tables (rowid, name, fileid) VALUES (1, 'a', 'f1')", Code::BadRequest),
        ("INSERT OR ROLLBACK INTO tables (name, fileid) VALUES ('other', 'f1')", Code::Constraint),
        ("INSERT INTO users (name) VALUES ('f1')", Code::StatementDenied),
        ("UPDATE tables SET fileid = 'f1'", Code::StatementDenied),
        ("SELECT 1", Code::BadRequest),
    ] {
        let applied = lab.one(raw_upload(text, "f1", blob));
        assert_eq!(refused(&applied).code, code, "{text}: {applied:?}");
    }
    for text in ["DELETE FROM tables WHERE 0", "DELETE FROM tables", "DELETE FROM tables WHERE fileid = 'f1'"] {
        check_code(&lab.one(raw_delete(text, "f1")), Code::BadRequest);
    }
    assert_eq!(lab.value("schemas", "SELECT group_concat(name) FROM tables"), text("other"));
    assert_eq!(lab.file_names().len(), 2);
    results(&lab.one(sql("other", &["SELECT 1"])));
}

#[test]
fn a_raw_client_replaces_with_or_replace() {
    let mut lab = Lab::with_database("shop");
    let blob = lab.blob(&database_file("CREATE TABLE t(x)"));
    let replace = "INSERT OR REPLACE INTO tables (name, fileid) VALUES ('shop', 'f1')";
    results(&lab.one(raw_upload(replace, "f1", blob)));
    results(&lab.one(sql("shop", &["SELECT * FROM t"])));
    lab.engine().checkpoint().unwrap();
    assert_eq!(lab.file_names().len(), 2);
}

#[test]
fn uploads_of_every_kind_are_served() {
    let kinds = [
        "PRAGMA page_size=512; PRAGMA encoding='UTF-16be'",
        "PRAGMA page_size=65536; PRAGMA auto_vacuum=FULL",
        "PRAGMA journal_mode=WAL; PRAGMA auto_vacuum=INCREMENTAL",
        "PRAGMA legacy_file_format=ON; PRAGMA encoding='UTF-16le'; PRAGMA user_version=7",
    ];
    for kind in kinds {
        let mut lab = Lab::new();
        let schema = "CREATE TABLE \"tää\"(\"ü\" TEXT DEFAULT 'é', n INTEGER PRIMARY KEY AUTOINCREMENT); \
                      INSERT INTO \"tää\" DEFAULT VALUES; CREATE VIEW early AS SELECT * FROM nowhere; \
                      CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES('ein Wort')";
        let blob = lab.blob(&database_file(&format!("{kind}; {schema}")));
        made(&lab.one(upload("shop", Some(blob), InsertMode::CreateOnly)));
        lab.append(sql("shop", &["INSERT INTO \"tää\"(\"ü\") VALUES('ñ' || random()), (zeroblob(70000)) RETURNING *"]));
        lab.append(sql("shop", &["INSERT INTO f SELECT \"ü\" FROM \"tää\" LIMIT 2", "SELECT x FROM f('Wort OR ñ*')"]));
        lab.append(sql("shop", &["DELETE FROM \"tää\" WHERE n = 3", "CREATE TABLE \"日本\" AS SELECT * FROM \"tää\""]));
        lab.append(sql("shop", &["SELECT * FROM \"日本\"", "PRAGMA user_version", "PRAGMA encoding"]));
        let applied = lab.catch_up(100);
        for applied in &applied {
            results(applied);
        }
        let other = lab.replica(1);
        assert_eq!(other.file_names(), lab.file_names());
        let mut other = other;
        assert_eq!(other.chains(), lab.chains(), "{kind}");
        lab.engine().checkpoint().unwrap();
        lab.restart();
        assert_eq!(lab.value("shop", "SELECT \"ü\" FROM \"tää\" WHERE n = 1"), text("é"), "{kind}");
    }
}
