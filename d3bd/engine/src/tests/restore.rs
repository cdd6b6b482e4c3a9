//! Backups that are brought into an empty engine.

use super::crash::content;
use super::*;
use crate::restore::{RestoreManifest, RestoredDatabase};

/// A lab with two databases, keys and media, and one that was dropped.
fn old_cluster() -> Lab {
    let mut lab = Lab::in_memory(Options::default());
    // Two clusters never use the same key for different things.
    lab.keys = 1_000;
    let image = lab.blob(&database_file("CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE)"));
    for database in ["a", "b", "gone"] {
        lab.append(upload(database, Some(image), InsertMode::Replace));
        lab.append_keyed(database, sql(database, &["INSERT INTO t(x) VALUES('one') RETURNING id, x"]));
        lab.append(sql(database, &["INSERT INTO t(x) VALUES(random())"]));
    }
    let blob = BlobReference { digest: Digest::of(b"cat"), size: 3 };
    let change = MediaChange::Upload { file_id: file_id("cat"), blob, media_type: String::new() };
    lab.append(with_media(sql("a", &[]), change));
    lab.append(delete("gone"));
    lab.catch_up(100);
    lab
}

/// Takes a backup of a lab, and makes its files another lab's blobs.
fn back_up(from: &mut Lab, to: &mut Lab) -> BlobReference {
    let source = from.engine().begin_snapshot().unwrap();
    let directory = directory_in_memory();
    let path = |id: DatabaseId| directory.path().join(id.to_string());
    let mut pace = |_| Ok(());
    let (catalogue, listed) = source.copy_catalogue(&path(DatabaseId::catalogue()), &mut pace).unwrap();
    let catalogue = to.blob(&fs::read(path(catalogue.id)).unwrap());
    let mut databases = Vec::new();
    for one in listed {
        let copied = source.copy(&one, &path(one.id()), |_| false, &mut pace).unwrap();
        let file = to.blob(&fs::read(path(one.id())).unwrap());
        databases.push(RestoredDatabase { id: copied.id, name: copied.name, file });
    }
    let manifest = RestoreManifest { cluster: String::new(), slot: source.slot(), catalogue, databases, media: vec![] };
    to.blob(&manifest.encode())
}

fn restore(manifest: BlobReference) -> Operation {
    Operation::Catalogue(CatalogueChange::Restore { manifest })
}

fn count(lab: &mut Lab, database: &str) -> Value {
    lab.value(database, "SELECT count(*) FROM t")
}

#[test]
fn what_was_backed_up_is_there_and_keys_answer_as_before() {
    let mut old = old_cluster();
    let mut lab = Lab::in_memory(Options::default());
    let manifest = back_up(&mut old, &mut lab);
    made(&lab.one_keyed("the restore", restore(manifest)));
    let rows = |lab: &mut Lab, sql| lab.rows("schemas", sql);
    let shown = "SELECT name, owner, fileid, created FROM tables ORDER BY name";
    assert_eq!(rows(&mut lab, shown), rows(&mut old, shown));
    for database in ["a", "b"] {
        let all = "SELECT rowid, x FROM t";
        assert_eq!(lab.rows(database, all), old.rows(database, all));
        // The key answers with what it gave, and does nothing.
        let insert = sql(database, &["INSERT INTO t(x) VALUES('one') RETURNING id, x"]);
        let again = lab.one_keyed(database, insert.clone());
        let before = old.one_keyed(database, insert);
        assert_eq!((&again.outcome, again.executed_at), (&before.outcome, before.executed_at));
        assert_eq!(count(&mut lab, database), Value::Integer(2));
        // New keys find their places beside those of the other log.
        results(&lab.one(sql(database, &["INSERT INTO t(x) VALUES('new')"])));
    }
    check_code(&lab.one(sql("gone", &["SELECT 1"])), Code::DatabaseNotFound);
    let mut media = Vec::new();
    lab.engine().media(&mut |reference| media.push(reference.digest)).unwrap();
    assert_eq!(media, [Digest::of(b"cat")]);
    // The catalogue's keys came along, and so did the restore's own.
    assert_eq!(lab.one_keyed("the restore", restore(manifest)).executed_at, Slot(1));
    let other = lab.replica(1);
    assert_eq!(content(&other), content(&lab));
}

#[test]
fn a_backup_of_what_was_restored_can_be_restored() {
    let mut old = old_cluster();
    let mut middle = Lab::in_memory(Options::default());
    middle.keys = 2_000;
    let manifest = back_up(&mut old, &mut middle);
    middle.one(restore(manifest));
    results(&middle.one_keyed("later", sql("a", &["INSERT INTO t(x) VALUES('later')"])));
    let mut lab = Lab::in_memory(Options::default());
    let manifest = back_up(&mut middle, &mut lab);
    made(&lab.one(restore(manifest)));
    let insert = "INSERT INTO t(x) VALUES('one') RETURNING id, x";
    let again = lab.one_keyed("a", sql("a", &[insert]));
    assert_eq!(again.executed_at, old.one_keyed("a", sql("a", &[insert])).executed_at);
    assert_eq!(lab.one_keyed("later", sql("a", &["INSERT INTO t(x) VALUES('later')"])).executed_at, Slot(2));
    assert_eq!(count(&mut lab, "a"), Value::Integer(3));
}

#[test]
fn only_an_empty_catalogue_is_restored_into() {
    let mut old = old_cluster();
    let mut lab = Lab::in_memory(Options::default());
    let manifest = back_up(&mut old, &mut lab);
    made(&lab.one(create("live")));
    let files = std::mem::take(&mut lab.files);
    // It is refused before any file is asked for.
    check_code(&lab.one(restore(manifest)), Code::Exists);
    assert_eq!(lab.file_names().len(), 2);
    made(&lab.one(delete("live")));
    lab.files = files;
    made(&lab.one(restore(manifest)));
    check_code(&lab.one(restore(manifest)), Code::Exists);
    // Dropped and restored once more, by the side of files that are not gone yet.
    for database in ["a", "b"] {
        made(&lab.one(delete(database)));
    }
    made(&lab.one(restore(manifest)));
    lab.engine().checkpoint().unwrap();
    assert_eq!(count(&mut lab, "a"), Value::Integer(2));
    assert_eq!(lab.file_names().len(), 3);
}

#[test]
fn it_waits_for_one_file_after_the_other() {
    let mut old = old_cluster();
    let mut lab = Lab::in_memory(Options::default());
    let manifest = back_up(&mut old, &mut lab);
    let mut files = std::mem::take(&mut lab.files);
    lab.append(restore(manifest));
    let mut waits = Vec::new();
    while let Some((slot, blob)) = lab.pull(1).needs_blob {
        assert_eq!(slot, Slot(1));
        lab.files.0.insert(blob.digest, files.0.remove(&blob.digest).unwrap());
        waits.push(blob);
    }
    assert_eq!((waits[0], waits.len()), (manifest, 4));
    assert_eq!(count(&mut lab, "b"), Value::Integer(2));
}

#[test]
fn a_backup_with_a_bad_file_is_refused_and_leaves_nothing() {
    let mut old = old_cluster();
    let mut lab = Lab::in_memory(Options::default());
    let good = back_up(&mut old, &mut lab);
    let bytes = fs::read(&lab.files.0[&good.digest]).unwrap();
    let good = RestoreManifest::decode(&bytes).unwrap();
    let plain = lab.blob(&database_file("CREATE TABLE t(x)"));
    let cut = fs::read(&lab.files.0[&good.databases[1].file.digest]).unwrap();
    let cut = lab.blob(&cut[..cut.len() - 1000]);
    let trigger = {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("x");
        fs::copy(&lab.files.0[&good.databases[1].file.digest], &path).unwrap();
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TRIGGER g AFTER INSERT ON _d3b_media BEGIN DELETE FROM t; END").unwrap();
        connection.close().unwrap();
        lab.blob(&fs::read(&path).unwrap())
    };
    let of = |change: &dyn Fn(&mut RestoreManifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        manifest.encode()
    };
    let bad = [
        (of(&|it| it.databases[1].file = plain), Code::NotADatabase),
        (of(&|it| it.databases[1].file = cut), Code::NotADatabase),
        (of(&|it| it.databases[1].file = trigger), Code::NotADatabase),
        (of(&|it| it.databases[1].file = it.databases[0].file), Code::NotADatabase),
        (of(&|it| it.catalogue = plain), Code::NotADatabase),
        (of(&|it| it.databases[1].name = name("other")), Code::BadRequest),
        (of(&|it| drop(it.databases.pop())), Code::BadRequest),
        (of(&|it| it.databases.push(it.databases[0].clone())), Code::BadRequest),
        (b"\x01nonsense".to_vec(), Code::BadRequest),
        (Vec::new(), Code::BadRequest),
    ];
    for (number, (bytes, code)) in bad.into_iter().enumerate() {
        let manifest = lab.blob(&bytes);
        let applied = lab.one(restore(manifest));
        assert_eq!(refused(&applied).code, code, "{number}: {applied:?}");
        assert_eq!(lab.file_names().len(), 1, "{number}");
        assert_eq!(lab.value("schemas", "SELECT count(*) FROM tables"), Value::Integer(0), "{number}");
    }
    let good = lab.blob(&good.encode());
    made(&lab.one(restore(good)));
}

#[test]
fn a_crash_at_any_moment_is_made_good() {
    let mut old = old_cluster();
    let mut lab = Lab::in_memory(Options::default());
    let manifest = back_up(&mut old, &mut lab);
    lab.append(restore(manifest));
    lab.append(sql("a", &["INSERT INTO t(x) VALUES(random())"]));
    lab.append_keyed("b", sql("b", &["INSERT INTO t(x) VALUES('one') RETURNING id, x"]));
    let whole = lab.replica(3);
    // Some of the files in place, none of it told by the catalogue; and one of them further on.
    let installed: Vec<String> =
        whole.file_names().into_iter().filter(|name| !name.contains(&DatabaseId::catalogue().to_string())).collect();
    assert_eq!(installed.len(), 2);
    for keep in [vec![], vec![0], vec![1], vec![0, 1]] {
        let mut crashed = Lab::in_memory(Options::default());
        crashed.log = lab.log.clone();
        crashed.files = Files(lab.files.0.clone());
        crashed.engine = None;
        for index in &keep {
            let file: &String = &installed[*index];
            for suffix in ["", "-wal"] {
                let name = format!("{file}{suffix}");
                if whole.databases().join(&name).exists() {
                    fs::copy(whole.databases().join(&name), crashed.databases().join(&name)).unwrap();
                }
            }
        }
        crashed.restart();
        crashed.catch_up(3);
        assert_eq!(content(&crashed), content(&whole), "{keep:?}");
    }
}
