//! Snapshots that are taken while the log goes on, and what a fresh replica makes of them.

use super::crash::content;
use super::*;
use crate::SnapshotError;
use crate::database::Database;
use crate::snapshot::Copied;

/// A log of databases that are made, written, changed, replaced, dropped and made again, each a few steps long.
fn busy(lab: &mut Lab) {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE); \
                  CREATE TABLE fill(x); INSERT INTO fill VALUES(zeroblob(40000))";
    let image = lab.blob(&database_file(schema));
    for round in 0..3 {
        for database in ["a", "b", "c"] {
            lab.append(upload(database, Some(image), InsertMode::Replace));
            let insert = sql(database, &["INSERT INTO t(x) VALUES('one') RETURNING id"]);
            lab.append_keyed(&format!("{round}{database}"), insert);
            lab.append(sql(database, &[&format!("CREATE TABLE more{round}(x DEFAULT (random()))")]));
            lab.append(sql(database, &[&format!("INSERT INTO more{round} DEFAULT VALUES")]));
            lab.append(sql(database, &["INSERT OR ROLLBACK INTO t(x) VALUES('one')"]));
        }
        lab.append(upload("a", Some(image), InsertMode::Replace));
        let again = sql("a", &["INSERT INTO t(x) VALUES('one') RETURNING id"]);
        lab.append_keyed(&format!("{round}a"), again);
        lab.append(sql("a", &["INSERT INTO t(x) SELECT schema_version FROM pragma_schema_version"]));
        lab.append(delete("b"));
        lab.append(sql("b", &["SELECT 1"]));
        lab.append_bytes(None);
        lab.append(upload(&format!("d{round}"), Some(image), InsertMode::CreateOnly));
    }
}

fn lab_with(log: &Lab) -> Lab {
    let mut lab = Lab::in_memory(Options::default());
    lab.log = log.log.clone();
    lab.files = Files(log.files.0.clone());
    lab
}

/// What came of taking a snapshot.
struct Taken {
    slot: Slot,
    copies: Vec<Copied>,
    directory: TempDir,
    /// How often the world had a chance to go on.
    boundaries: usize,
}

/// Takes a snapshot of a lab; at every boundary between two steps, something happens to the lab.
fn take(lab: &mut Lab, at_boundary: &mut dyn FnMut(usize, &mut Lab)) -> Result<Taken, SnapshotError> {
    let source = lab.engine().begin_snapshot().unwrap();
    let directory = directory_in_memory();
    let mut boundaries = 0;
    let mut boundary = |lab: &mut Lab| {
        at_boundary(boundaries, lab);
        boundaries += 1;
    };
    boundary(lab);
    let to = |id: DatabaseId| crate::database::path(directory.path(), id);
    let mut pace = |_| {
        boundary(lab);
        Ok(())
    };
    let (catalogue, listed) = source.copy_catalogue(&to(DatabaseId::catalogue()), &mut pace)?;
    let mut copies = vec![catalogue];
    for one in listed {
        pace(0).unwrap();
        copies.push(source.copy(&one, &to(one.id()), |_| false, &mut pace)?);
    }
    let slot = source.slot();
    drop(source);
    Ok(Taken { slot, copies, directory, boundaries })
}

/// A fresh replica that begins with a snapshot, and has applied the log behind it.
fn take_over(taken: &Taken, log: &Lab) -> Lab {
    let mut fresh = lab_with(log);
    fresh.restart_from(taken.directory.path());
    assert_eq!(fresh.engine().resume_after(), taken.slot);
    for copied in &taken.copies {
        let database = Database::open(&crate::database::path(&fresh.databases(), copied.id), copied.id).unwrap();
        assert_eq!((database.state.slot, database.state.fingerprint), (copied.slot, copied.fingerprint));
    }
    fresh.catch_up(7);
    fresh.engine().checkpoint().unwrap();
    fresh
}

/// What SQL can ask about the files themselves.
fn schema_versions(lab: &Lab) -> Vec<i64> {
    let version = |file: &String| {
        let connection = rusqlite::Connection::open(lab.databases().join(file)).unwrap();
        connection.query_row("PRAGMA schema_version", [], |row| row.get(0)).unwrap()
    };
    lab.file_names().iter().map(version).collect()
}

#[track_caller]
fn check_same(found: &Lab, expected: &Lab, what: &str) {
    assert_eq!(content(found), content(expected), "{what}");
    assert_eq!(schema_versions(found), schema_versions(expected), "{what}");
}

fn reference() -> Lab {
    let mut lab = Lab::in_memory(Options::default());
    busy(&mut lab);
    lab.catch_up(1000);
    lab.engine().checkpoint().unwrap();
    lab
}

#[test]
fn whoever_takes_a_snapshot_over_comes_to_the_same_state() {
    let reference = reference();
    for begin in [6, 17, 39] {
        // At every boundary a little happens, and is made durable.
        for entries in [1, 3] {
            let mut lab = lab_with(&reference);
            lab.pull(begin);
            let taken = take(&mut lab, &mut |_, lab| {
                lab.pull(entries);
                lab.engine().checkpoint().unwrap();
            })
            .unwrap();
            assert!(taken.boundaries > 20, "{}", taken.boundaries);
            check_same(&take_over(&taken, &reference), &reference, &format!("from {begin}, {entries} at a time"));
            // The engine has waited with the files of dropped databases, and no longer does.
            lab.catch_up(1000);
            lab.engine().checkpoint().unwrap();
            check_same(&lab, &reference, "the source");
        }
    }
}

#[test]
fn all_may_happen_between_any_two_steps() {
    let reference = reference();
    for begin in [17, 39] {
        for at in 0.. {
            let mut lab = lab_with(&reference);
            lab.pull(begin);
            let taken = take(&mut lab, &mut |boundary, lab| {
                if boundary == at {
                    lab.catch_up(100);
                    lab.engine().checkpoint().unwrap();
                }
            })
            .unwrap();
            check_same(&take_over(&taken, &reference), &reference, &format!("from {begin}, at boundary {at}"));
            if at >= taken.boundaries {
                break;
            }
        }
    }
}

#[test]
fn a_copy_is_one_file_and_the_mark_in_it_that_of_the_snapshot() {
    let reference = reference();
    let mut lab = lab_with(&reference);
    lab.pull(20);
    let taken = take(&mut lab, &mut |_, lab| {
        lab.pull(5);
        lab.engine().checkpoint().unwrap();
    })
    .unwrap();
    assert_eq!(taken.slot, Slot(20));
    let names: Vec<String> = fs::read_dir(taken.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), taken.copies.len());
    assert!(names.iter().all(|name| name.ends_with(".sqlite3")), "{names:?}");
    for name in names {
        let header = fs::read(taken.directory.path().join(name)).unwrap();
        assert_eq!(header[18..20], [1, 1], "rollback mode");
    }
}

#[test]
fn what_is_known_is_not_copied_and_what_is_abandoned_stops_at_once() {
    let mut lab = Lab::with_database("shop");
    lab.one(sql("shop", &["CREATE TABLE t AS SELECT zeroblob(100000) AS x"]));
    let source = lab.engine().begin_snapshot().unwrap();
    let to = |name: &str| lab.directory.path().join(name);
    let (_, listed) = source.copy_catalogue(&to("catalogue"), &mut |_| Ok(())).unwrap();
    let copied = source.copy(&listed[0], &to("known"), |slot| slot == Slot(2), &mut |_| Ok(())).unwrap();
    assert_eq!((copied.written, copied.slot, to("known").exists()), (false, Slot(2), false));
    let mut steps = 0;
    let mut stop = |_| {
        steps += 1;
        if steps == 3 { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    };
    let abandoned = source.copy(&listed[0], &to("abandoned"), |_| false, &mut stop);
    assert!(matches!(abandoned, Err(SnapshotError::Abandoned(_))), "{abandoned:?}");
    assert_eq!(steps, 3);
}

#[test]
fn a_database_that_is_not_whole_is_not_handed_on() {
    // One that is known to be damaged, whether or not the pages are.
    let mut lab = Lab::new();
    let (gone, _) = made(&lab.one(create("gone")));
    lab.engine().checkpoint().unwrap();
    lab.engine = None;
    let path = crate::database::path(&lab.databases(), gone);
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    lab.restart();
    check_code(&lab.one(sql("gone", &["SELECT 1"])), Code::DatabaseFenced);
    fs::write(&path, whole).unwrap();
    let taken = take(&mut lab, &mut |_, _| ());
    assert!(matches!(taken, Err(SnapshotError::Damaged { database, .. }) if database == gone));
    // Once it is dropped, nothing is amiss any more.
    lab.one(delete("gone"));
    take(&mut lab, &mut |_, _| ()).unwrap();

    // One whose damage nobody has met yet.
    let mut lab = Lab::with_database("shop");
    let id = lab.one(sql("shop", &["CREATE TABLE t(x)"])).database.unwrap();
    lab.one(sql(
        "shop",
        &["WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000) \
                           INSERT INTO t SELECT i FROM n"],
    ));
    lab.engine().checkpoint().unwrap();
    lab.engine = None;
    let path = crate::database::path(&lab.databases(), id);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 4096;
    bytes[last..].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    lab.restart();
    let taken = take(&mut lab, &mut |_, _| ());
    assert!(matches!(taken, Err(SnapshotError::Damaged { database, .. }) if database == id));
}
