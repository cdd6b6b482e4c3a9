//! Crashes: between transactions, with some databases ahead of others, and while a database is being made.

use super::*;
use crate::clock;

/// A log that touches everything: databases made, written, replaced, dropped, made again; keys; refusals; media.
fn eventful(lab: &mut Lab) {
    let image = lab.blob(&database_file("CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE)"));
    for round in 0..3 {
        for database in ["a", "b"] {
            lab.append(upload(database, Some(image), InsertMode::Replace));
            lab.append_keyed(
                &format!("{round}{database}"),
                sql(database, &["INSERT INTO t(x) VALUES('one') RETURNING id"]),
            );
            lab.append(sql(database, &["INSERT INTO t(x) VALUES(datetime('now'))"]));
            lab.append(sql(database, &["INSERT OR ROLLBACK INTO t(x) VALUES('one')"]));
            lab.append(sql(database, &["INSERT INTO t(x) VALUES(random())"]));
            let blob = BlobReference { digest: Digest::of(&[round]), size: 1 };
            let change = MediaChange::Upload { file_id: file_id("f"), blob, media_type: String::new() };
            lab.append(with_media(sql(database, &[]), change));
            lab.append_bytes(None);
        }
        lab.append(upload("a", Some(image), InsertMode::Replace));
        lab.append_keyed(&format!("{round}a"), sql("a", &["INSERT INTO t(x) VALUES('one') RETURNING id"]));
        lab.append(sql("nowhere", &["SELECT 1"]));
        lab.append(delete("b"));
        lab.append(sql("b", &["SELECT 1"]));
        lab.append(create("c"));
        lab.append(sql("c", &["CREATE TABLE IF NOT EXISTS t(x)"]));
    }
}

/// The rows of every live database, and of the catalogue, with d3b's own tables but for the mark; and the schemas.
pub(super) fn content(lab: &Lab) -> Vec<String> {
    let mut all = Vec::new();
    for file in lab.file_names() {
        let connection = rusqlite::Connection::open(lab.databases().join(&file)).unwrap();
        let mut tables: Vec<String> = connection
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        tables.retain(|table| table != "_d3b_mark" && table != "_d3b_history");
        tables.push("sqlite_schema".to_owned());
        for table in tables {
            all.extend(rows_of(&connection, &table).into_iter().map(|row| format!("{file} {table} {row}")));
        }
    }
    all
}

/// The rows of a table with their rowids, sorted. Of the schema only what does not depend on pages. A virtual table
/// that cannot be read, because what it needs is gone, says so.
pub(super) fn rows_of(connection: &rusqlite::Connection, table: &str) -> Vec<String> {
    let columns = if table == "sqlite_schema" { "rowid, type, name, tbl_name, sql" } else { "rowid, *" };
    let name = table.replace('"', "\"\"");
    // Not every table has a rowid.
    let rows = read_rows(connection, &format!("SELECT {columns} FROM \"{name}\""))
        .or_else(|_| read_rows(connection, &format!("SELECT * FROM \"{name}\"")));
    rows.unwrap_or_else(|error| vec![error.to_string()])
}

/// The rows of a query, sorted.
pub(super) fn read_rows(connection: &rusqlite::Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(sql)?;
    let width = statement.column_count();
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let values: Vec<_> = (0..width).map(|column| row.get_ref(column).unwrap()).collect();
        all.push(format!("{values:?}"));
    }
    all.sort();
    Ok(all)
}

/// The lab whose state all others must come to.
fn reference() -> (Lab, Vec<Applied>) {
    let mut lab = Lab::in_memory(Options::default());
    eventful(&mut lab);
    let applied = lab.catch_up(1000);
    lab.engine().checkpoint().unwrap();
    (lab, applied)
}

fn same_log(reference: &Lab) -> Lab {
    let mut lab = Lab::in_memory(Options::default());
    lab.log = reference.log.clone();
    lab.files = Files(reference.files.0.clone());
    lab
}

/// Entries that were applied before answer as they did, or not at all.
#[track_caller]
fn check_answers(found: &[Applied], expected: &[Applied]) {
    for applied in found {
        let before = &expected[usize::try_from(applied.slot.0).unwrap() - 1];
        assert_eq!(applied.slot, before.slot);
        assert_eq!(applied.database, before.database, "slot {}", applied.slot);
        if applied.outcome.is_some() {
            assert_eq!(applied.outcome, before.outcome, "slot {}", applied.slot);
            assert_eq!(applied.executed_at, before.executed_at);
        }
    }
}

#[test]
fn a_restart_at_any_slot_changes_nothing() {
    let (reference, expected) = reference();
    for stop in 1..reference.log.len() {
        let mut lab = same_log(&reference);
        check_answers(&lab.pull(stop).applied, &expected);
        if stop % 3 == 0 {
            lab.engine().checkpoint().unwrap();
        }
        let durable = lab.engine().resume_after();
        lab.restart();
        assert_eq!(lab.engine().resume_after(), durable);
        check_answers(&lab.catch_up(5), &expected);
        lab.engine().checkpoint().unwrap();
        assert_eq!(content(&lab), content(&reference), "stopped after {stop}");
    }
}

#[test]
fn a_crash_at_any_write_changes_nothing() {
    let (reference, expected) = reference();
    let whole = content(&reference);
    for writes in 0.. {
        let mut lab = same_log(&reference);
        check_answers(&lab.pull(7).applied, &expected);
        clock::fail_writes_after(Some(writes));
        let result = lab.try_pull(12);
        lab.engine = None;
        clock::fail_writes_after(None);
        let crashed = result.is_err();
        check_answers(&result.map_or(Vec::new(), |progress| progress.applied), &expected);
        lab.restart();
        check_answers(&lab.catch_up(5), &expected);
        lab.engine().checkpoint().unwrap();
        assert_eq!(content(&lab), whole, "crashed at write {writes}");
        if !crashed {
            assert!(writes > 20, "the batch has writes: {writes}");
            break;
        }
    }
}

#[test]
fn databases_may_be_ahead_of_the_catalogue_and_behind_it() {
    let (reference, expected) = reference();
    let catalogue = format!("{}.sqlite3", DatabaseId::catalogue());
    for (early, late) in [(3, 20), (8, 18), (10, 40), (17, 45), (1, 50)] {
        for catalogue_is_ahead in [false, true] {
            let mut lab = same_log(&reference);
            lab.pull(early);
            let (old, new) = (lab.directory.path().join("old"), lab.directory.path().join("new"));
            copy_directory(&lab.databases(), &old);
            lab.pull(late - early);
            copy_directory(&lab.databases(), &new);
            // A power cut leaves each database at some slot of its own, and files that were synced stay.
            let (base, other) = if catalogue_is_ahead { (&old, &new) } else { (&new, &old) };
            let mixed = lab.directory.path().join("mixed");
            copy_directory(&new, &mixed);
            for entry in fs::read_dir(base).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), mixed.join(entry.file_name())).unwrap();
            }
            for suffix in ["", "-wal", "-shm"] {
                let file = format!("{catalogue}{suffix}");
                let _ = fs::remove_file(mixed.join(&file));
                if other.join(&file).exists() {
                    fs::copy(other.join(&file), mixed.join(&file)).unwrap();
                }
            }
            lab.restart_from(&mixed);
            assert_eq!(lab.engine().resume_after(), Slot::ZERO);
            check_answers(&lab.catch_up(7), &expected);
            lab.engine().checkpoint().unwrap();
            assert_eq!(content(&lab), content(&reference), "{early} {late} {catalogue_is_ahead}");
        }
    }
}

#[test]
fn a_half_made_database_is_made_again() {
    let mut lab = Lab::new();
    fs::write(lab.databases().join("abc.tmp"), b"half").unwrap();
    fs::write(lab.databases().join("abc.tmp-wal"), b"half").unwrap();
    lab.restart();
    assert_eq!(lab.file_names().len(), 1);
}

#[test]
fn the_mark_moves_with_checkpoints_only() {
    let mut lab = Lab::with_database("shop");
    assert_eq!(lab.engine().resume_after(), Slot::ZERO);
    assert_eq!(lab.engine().checkpoint().unwrap(), Slot(1));
    lab.one(sql("shop", &["CREATE TABLE t(x)"]));
    lab.append_bytes(None);
    lab.catch_up(10);
    assert_eq!(lab.engine().resume_after(), Slot(1));
    lab.restart();
    assert_eq!((lab.engine().resume_after(), lab.engine().applied()), (Slot(1), Slot(1)));
    lab.catch_up(10);
    assert_eq!(lab.engine().checkpoint().unwrap(), Slot(3));
    lab.restart();
    assert_eq!(lab.engine().resume_after(), Slot(3));
}

#[test]
fn a_damaged_database_is_fenced_and_the_others_go_on() {
    let mut lab = Lab::new();
    let (broken, _) = made(&lab.one(create("broken")));
    lab.one(create("whole"));
    lab.one(sql("broken", &["CREATE TABLE t(x)"]));
    lab.engine().checkpoint().unwrap();
    lab.engine = None;
    let path = crate::database::path(&lab.databases(), broken);
    let mut bytes = fs::read(&path).unwrap();
    for byte in &mut bytes[100..] {
        *byte = 0xa5;
    }
    fs::write(&path, bytes).unwrap();
    lab.restart();
    lab.append(sql("broken", &["INSERT INTO t VALUES(1)"]));
    lab.append(sql("whole", &["CREATE TABLE t(x)"]));
    lab.append(sql("broken", &["INSERT INTO t VALUES(2)"]));
    let applied = lab.catch_up(10);
    check_code(&applied[0], Code::DatabaseFenced);
    results(&applied[1]);
    check_code(&applied[2], Code::DatabaseFenced);
    lab.engine().checkpoint().unwrap();
    lab.restart();
    check_code(&lab.one(sql("broken", &["SELECT 1"])), Code::DatabaseFenced);
    lab.one(upload("broken", None, InsertMode::Replace));
    check_code(&lab.one(sql("broken", &["SELECT 1"])), Code::DatabaseFenced);
    lab.one(delete("broken"));
    lab.engine().checkpoint().unwrap();
    lab.one(create("broken"));
    results(&lab.one(sql("broken", &["SELECT 1"])));
    lab.engine().checkpoint().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_missing_file_fences_its_database() {
    let mut lab = Lab::new();
    let (gone, _) = made(&lab.one(create("gone")));
    lab.engine().checkpoint().unwrap();
    lab.engine = None;
    fs::remove_file(crate::database::path(&lab.databases(), gone)).unwrap();
    lab.restart();
    check_code(&lab.one(sql("gone", &["SELECT 1"])), Code::DatabaseFenced);
}

#[test]
fn what_an_earlier_process_applied_is_made_durable_before_the_mark_passes_it() {
    let mut lab = Lab::with_database("shop");
    let id = lab.one(sql("shop", &["CREATE TABLE t(x)"])).database.unwrap();
    lab.engine().checkpoint().unwrap();
    assert!(!lab.engine().awaits_sync(id));
    results(&lab.one(sql("shop", &["INSERT INTO t VALUES(1)"])));
    assert!(lab.engine().awaits_sync(id));
    // The process dies, the machine does not: the entry is in the database's log, and was never synced.
    lab.restart();
    lab.catch_up(10);
    assert!(lab.engine().awaits_sync(id), "the mark would pass an entry that a power cut can take away");
    lab.engine().checkpoint().unwrap();
    assert!(!lab.engine().awaits_sync(id));
}
