//! Backups: everything that was acknowledged is in them, and comes back in an empty cluster, or not at all.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use d3b::api::Restore;
use d3b::{Code, Digest};
use d3b_tests::cluster::d3bctl;
use d3b_tests::sample::{Noise, SHOP, database_bytes};
use d3b_tests::{Cluster, Options, Response};
use serde_json::{Value, json};

fn run(cluster: &Cluster, words: &[&str]) -> Output {
    run_at(cluster, &cluster.ids(), words)
}

fn run_at(cluster: &Cluster, ids: &[u32], words: &[&str]) -> Output {
    let endpoints: Vec<String> = ids.iter().map(|id| cluster.replica(*id).url("")).collect();
    let mut command = d3bctl(cluster.directory());
    command.args(["--endpoints", &endpoints.join(",")]).args(words);
    command.output().expect("d3bctl can be run")
}

#[track_caller]
fn check_exit(output: &Output, code: i32) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}{}", String::from_utf8_lossy(&output.stdout));
}

/// A place for archives. Clusters are started one after the other: there is only room for so many at a time, and a test
/// that held one while it waits for another would keep other tests from ending.
fn place() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn back_up(cluster: &Cluster, place: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = place.path().join(name);
    check_exit(&run(cluster, &["backup", &path.display().to_string()]), 0);
    path
}

fn restore(cluster: &Cluster, words: &[&str]) -> Restore {
    let output = run(cluster, &[&["-o", "json", "restore"], words].concat());
    check_exit(&output, 0);
    serde_json::from_slice(&output.stdout).expect("the answer is JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

fn insert(cluster: &Cluster, id: u32, db: &str, key: &str, value: i64) -> Response {
    let body = json!({"sql": "INSERT INTO t(x) VALUES(?) RETURNING x", "args": [value]});
    let url = cluster.replica(id).url(&format!("/v1/db/{db}/query"));
    let headers = [("idempotency-key", key), ("content-type", "application/json")];
    cluster.http.send("POST", &url, &headers, body.to_string().as_bytes())
}

fn count(cluster: &Cluster, db: &str) -> i64 {
    cluster.replica(1).value(db, "SELECT count(*) FROM t").as_i64().expect("a count")
}

/// A cluster with two databases, one of them with a table `t`, and media.
fn filled() -> (Cluster, Vec<u8>) {
    let cluster = Cluster::start();
    cluster.replica(1).put("/v1/db/shop/file", &database_bytes(SHOP)).expect(201);
    cluster.create("ledger");
    cluster.replica(1).sql("ledger", "CREATE TABLE t(x INTEGER PRIMARY KEY)", json!([]));
    let film = Noise::new(11, 2_000_000).bytes();
    cluster.replica(2).put("/v1/db/shop/media/film.mp4", &film).expect(201);
    (cluster, film)
}

#[test]
fn what_was_acknowledged_before_a_backup_began_is_in_it() {
    let place = place();
    let (cluster, film) = filled();
    let stop = AtomicBool::new(false);
    let acknowledged: Mutex<Vec<i64>> = Mutex::default();
    let (before, path) = std::thread::scope(|scope| {
        for writer in 0..3_i64 {
            let (cluster, stop, acknowledged) = (&cluster, &stop, &acknowledged);
            scope.spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let value = writer * 1_000_000 + number;
                    let id = u32::try_from(writer).expect("small") + 1;
                    insert(cluster, id, "ledger", &format!("key-{value}"), value).expect(200);
                    acknowledged.lock().expect("no panic").push(value);
                }
            });
        }
        d3b_tests::wait_until("writers are under way", d3b_tests::wait::PATIENCE, || {
            acknowledged.lock().expect("no panic").len() > 50
        });
        let before = acknowledged.lock().expect("no panic").clone();
        let path = back_up(&cluster, &place, "all.d3b");
        stop.store(true, Ordering::Relaxed);
        (before, path)
    });
    check_exit(&run(&cluster, &["backup", "--verify", text(&path)]), 0);
    let known = insert(&cluster, 2, "ledger", &format!("key-{}", before[7]), before[7]).expect(200).text();
    drop(cluster);

    let fresh = Cluster::start();
    let restored = restore(&fresh, &[text(&path)]);
    assert_eq!((restored.databases, restored.media), (2, 1));
    let rows = fresh.replica(3).sql("ledger", "SELECT x FROM t", json!([]));
    let rows: Vec<i64> = rows.as_array().expect("rows").iter().filter_map(|row| row[0].as_i64()).collect();
    let missing: Vec<_> = before.iter().filter(|value| !rows.contains(value)).collect();
    assert!(missing.is_empty(), "{missing:?} of {} are missing", before.len());
    for id in fresh.ids() {
        let _ = fresh.replica(id).databases();
        assert!(fresh.replica(id).get("/v1/db/shop/media/film.mp4").expect(200).body == film);
        fresh.replica(id).wait_for_blob(&Digest::of(&film));
    }
    // The key gives the answer of then, and does nothing.
    let there = fresh.replica(1).value("ledger", "SELECT count(*) FROM t");
    let again = insert(&fresh, 1, "ledger", &format!("key-{}", before[7]), before[7]).expect(200);
    assert_eq!(again.text(), known);
    assert_eq!(fresh.replica(1).value("ledger", "SELECT count(*) FROM t"), there);
    insert(&fresh, 2, "ledger", "a new key", -1).expect(200);
    fresh.assert_same_everywhere();
}

#[test]
fn nothing_is_restored_over_live_data() {
    let place = place();
    let (cluster, _) = filled();
    let path = back_up(&cluster, &place, "all.d3b");
    let output = run(&cluster, &["restore", text(&path)]);
    check_exit(&output, 6);
    assert!(String::from_utf8_lossy(&output.stderr).contains("not empty"));
    let url = cluster.replica(2).url("/v1/restore");
    cluster.http.send("POST", &url, &[], &b"never looked at"[..]).expect_problem(Code::Exists);
    assert_eq!(cluster.replica(1).databases().len(), 2);
    // Once the cluster has let go of everything, it is one that can be restored into; and an answer is given once.
    for db in ["shop", "ledger"] {
        cluster.replica(1).delete(&format!("/v1/db/{db}")).expect(200);
    }
    let first = restore(&cluster, &["--idempotency-key", "once", text(&path)]);
    assert_eq!(restore(&cluster, &["--idempotency-key", "once", text(&path)]), first);
    assert_eq!(count(&cluster, "ledger"), 0);
    cluster.assert_same_everywhere();
}

#[test]
fn damaged_archives_are_refused_and_leave_nothing() {
    let place = place();
    let (cluster, film) = filled();
    let path = back_up(&cluster, &place, "all.d3b");
    drop(cluster);
    let whole = std::fs::read(&path).expect("the archive");
    let fresh = Cluster::with(Options::default().flag("--blob-grace", "1s"));
    let bad = fresh.directory().join("bad.d3b");
    let check = |bytes: &[u8], code: i32| {
        std::fs::write(&bad, bytes).expect("a file can be written");
        check_exit(&run(&fresh, &["backup", "--verify", text(&bad)]), code);
        check_exit(&run(&fresh, &["restore", text(&bad)]), code);
        assert!(fresh.replica(1).databases().is_empty());
    };
    for end in [whole.len() - 1, whole.len() / 2, 100] {
        check(&whole[..end], 9);
    }
    for at in [whole.len() / 3, whole.len() / 2, whole.len() - 20] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        check(&bytes, 9);
    }
    for id in fresh.ids() {
        let files = fresh.replica(id).files();
        let left: Vec<_> = files.iter().filter(|path| path.to_string_lossy().contains("restore-")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!fresh.replica(id).blob(&Digest::of(&film)).exists());
    }
    std::fs::write(&bad, [whole.as_slice(), b"more"].concat()).expect("a file can be written");
    check_exit(&run(&fresh, &["backup", "--verify", text(&bad)]), 9);
    check_exit(&run(&fresh, &["restore", text(&bad)]), 1);
    check_exit(&run(&fresh, &["restore", text(&fresh.replica(1).data_dir.join("log.sqlite3"))]), 1);
    restore(&fresh, &[text(&path)]);
    assert_eq!(fresh.replica(2).databases().len(), 2);
}

#[test]
fn a_slot_between_two_backups_is_restored_with_the_later_ones_log() {
    let place = place();
    let (cluster, film) = filled();
    let first = back_up(&cluster, &place, "first.d3b");
    let mut slots = Vec::new();
    for value in 0..10_i64 {
        let answer: Value = insert(&cluster, 1, "ledger", &format!("key-{value}"), value).expect(200).json();
        slots.push(answer["slot"].as_u64().expect("a slot"));
    }
    cluster
        .replica(3)
        .put("/v1/db/late/file", &database_bytes("CREATE TABLE t(x); INSERT INTO t VALUES(1)"))
        .expect(201);
    let dropped = cluster.replica(2).delete("/v1/db/shop").expect(200).slot();
    let time = cluster.replica(1).get(&format!("/v1/log/{}", slots[4])).expect(200).json::<Value>();
    let time = time["time"].as_str().expect("a time").to_owned();
    let second = back_up(&cluster, &place, "second.d3b");
    drop(cluster);

    let slot = slots[6].to_string();
    let fresh = Cluster::start();
    // By itself the first one does not reach there.
    let output = run(&fresh, &["restore", text(&first), "--to-slot", &slot]);
    check_exit(&output, 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("reaches from slot"));
    let restored = restore(&fresh, &[text(&first), "--to-slot", &slot, "--log", text(&second)]);
    assert_eq!(restored.restored_slot, slots[6]);
    assert_eq!(count(&fresh, "ledger"), 7);
    // One linearized read brings the replica up to date that the file is then asked of.
    assert_eq!(fresh.replica(3).databases().len(), 2);
    assert!(fresh.replica(3).get("/v1/db/shop/media/film.mp4").expect(200).body == film);
    fresh.assert_same_everywhere();
    drop(fresh);

    let fresh = Cluster::start();
    let restored = restore(&fresh, &[text(&first), "--to-time", &time, "--log", text(&second)]);
    assert_eq!((restored.restored_slot, restored.restored_time), (slots[4], time));
    assert_eq!(count(&fresh, "ledger"), 5);
    drop(fresh);

    // Just before the mistake, with a database that was uploaded meanwhile.
    let fresh = Cluster::start();
    restore(&fresh, &[text(&first), "--to-slot", &(dropped - 1).to_string(), "--log", text(&second)]);
    let mut names: Vec<String> = fresh.replica(2).databases().into_iter().map(|info| info.name).collect();
    names.sort();
    assert_eq!(names, ["late", "ledger", "shop"]);
    assert_eq!(count(&fresh, "late"), 1);
}

/// Whoever takes a restore is killed in the midst of it, the leader: all of it is there, or nothing, and then it can be
/// tried again.
#[test]
fn a_restore_whose_leader_is_killed_is_whole_or_nothing() {
    let place = place();
    let (cluster, film) = filled();
    let large = Noise::new(12, 40_000_000).bytes();
    cluster.replica(1).put("/v1/db/shop/media/large", &large).expect(201);
    let path = back_up(&cluster, &place, "all.d3b");
    drop(cluster);

    let mut fresh = Cluster::start();
    let leader = fresh.leader();
    let others = fresh.others(leader);
    let endpoints: Vec<String> = std::iter::once(leader).chain(others).map(|id| fresh.replica(id).url("")).collect();
    let mut command = d3bctl(fresh.directory());
    command.args(["--endpoints", &endpoints.join(","), "restore", text(&path)]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("d3bctl can be run");
    d3b_tests::wait_until("the archive comes in", d3b_tests::wait::PATIENCE, || {
        let files = fresh.replica(leader).files();
        let unpacked = files.iter().any(|path| path.to_string_lossy().contains("restore-"));
        unpacked || child.try_wait().expect("a child of ours").is_some()
    });
    fresh.replica_mut(leader).kill();
    let first = child.wait_with_output().expect("d3bctl ends");
    let live = fresh.live();
    fresh.leader_among(&live);
    let there = fresh.replica(live[0]).databases().len();
    assert!(there == 0 || there == 2, "a part of it is there: {there}");
    assert!(!first.status.success() || there == 2, "what was said to be restored is not there");
    let again = run_at(&fresh, &live, &["restore", text(&path)]);
    check_exit(&again, if there == 0 { 0 } else { 6 });
    fresh.replica_mut(leader).start_ready();
    for id in fresh.ids() {
        assert_eq!(fresh.replica(id).databases().len(), 2);
        assert!(fresh.replica(id).get("/v1/db/shop/media/film.mp4").expect(200).body == film);
        assert!(fresh.replica(id).get("/v1/db/shop/media/large").expect(200).body == large);
    }
    insert(&fresh, 1, "ledger", "after it", 1).expect(200);
    fresh.assert_same_everywhere();
}

#[test]
fn a_replica_that_was_away_during_a_restore_comes_to_the_same() {
    let place = place();
    let (cluster, film) = filled();
    insert(&cluster, 1, "ledger", "before it", 1).expect(200);
    let path = back_up(&cluster, &place, "all.d3b");
    drop(cluster);
    let mut fresh = Cluster::start();
    let away = fresh.follower();
    fresh.replica_mut(away).kill();
    let live = fresh.live();
    check_exit(&run_at(&fresh, &live, &["restore", text(&path)]), 0);
    insert(&fresh, live[0], "ledger", "after it", 2).expect(200);
    fresh.replica_mut(away).start_ready();
    assert_eq!(fresh.replica(away).value("ledger", "SELECT count(*) FROM t"), 2);
    fresh.replica(away).wait_for_blob(&Digest::of(&film));
    fresh.assert_same_everywhere();
}
