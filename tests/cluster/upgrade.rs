//! A new version of d3b in an old cluster: on its disks, and one replica after the other.

use std::fs::File;
use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(debug_assertions)]
use d3b::api::LogPage;
use d3b_tests::build::fixture;
use d3b_tests::faults::needs::{self, are_met};
use d3b_tests::faults::preload::Faults;
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Options, Response, wait_until};
use serde_json::{Value, json};

/// A moment after the first version had written its fixture: its keys have not expired. Milliseconds since 1970.
const THEN: i64 = 1_795_526_400_000;

/// Writes a row of the fixture's ledger under a key, with the bytes that the fixture was made with.
fn repeat(cluster: &Cluster, id: u32, key: &str, amount: u32) -> Response {
    let sql = "INSERT INTO entries(amount) VALUES(?) RETURNING id, luck";
    let body = format!(r#"{{"sql":"{sql}","args":[{amount}]}}"#);
    let url = cluster.replica(id).url("/v1/db/ledger/query");
    let headers = [("idempotency-key", key), ("content-type", "application/json")];
    cluster.http.send("POST", &url, &headers, body.as_bytes())
}

/// The fingerprints of the fixture's databases, as a replica tells them.
fn fingerprints(cluster: &Cluster, id: u32) -> Vec<(String, String)> {
    let databases = cluster.replica(id).databases().into_iter();
    databases.map(|database| (database.name, database.fingerprint)).collect()
}

/// See `fixtures/version-1/README.md`.
#[test]
fn what_the_first_version_wrote_is_gone_on_with() {
    if !are_met(&[needs::PRELOAD]) {
        return;
    }
    // The addresses are written in the fixture: one test at a time may have them, whoever runs it.
    let lock = File::create(std::env::temp_dir().join("d3b-test-version-1.lock")).expect("a file to lock");
    lock.lock().expect("the lock is free in the end");
    let peers = (1..=3_u8).map(|id| ([127, 83, 17, id], 8124).into()).collect();
    let mut cluster = Cluster::prepare(Options { peers, ..Options::default() });
    let data = File::open(fixture("version-1/data.tar.zst")).expect("the fixture");
    let data = zstd::Decoder::new(data).expect("it is compressed");
    tar::Archive::new(data).unpack(cluster.directory()).expect("it can be unpacked");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis();
    let behind = THEN - i64::try_from(now).expect("not so far ahead");
    for id in cluster.ids() {
        let replica = cluster.replica_mut(id);
        Faults::of(replica).set_clock(behind);
        replica.start();
    }
    cluster.wait_ready();

    let written = [("ledger", "44b3e5f8882a2e4a06a79502e969f3c8"), ("shop", "86aedac3d6f185fd9705a0d40c230302")];
    for id in cluster.ids() {
        assert_eq!(fingerprints(&cluster, id), written.map(|(name, sum)| (name.to_owned(), sum.to_owned())));
        let replica = cluster.replica(id);
        let rows = replica.sql("ledger", "SELECT count(*), sum(amount), max(luck) FROM entries", json!([]));
        assert_eq!((&rows[0][0], &rows[0][1]), (&json!(30), &json!(465)));
        let rows = replica.sql("shop", "SELECT name, price FROM items ORDER BY id", json!([]));
        assert_eq!(rows, json!([["apple", 2.0], ["pear", 0.75], ["fig", 1.25], ["raw.txt", null]]));
        assert_eq!(replica.value("shop", "SELECT count(*) FROM audit WHERE length(token) = 8"), 4);
        assert_eq!(replica.get("/v1/db/shop/media/cat.jpg").expect(200).body, b"a small picture of a cat");
        assert_eq!(replica.get("/v1/db/shop/media/raw.txt").expect(200).body, b"raw bytes");
        replica.get("/v1/log/1").expect(200);
    }
    // Keys have their answers of then, and do nothing.
    let answer: Value = repeat(&cluster, 2, "fixture-30", 30).expect(200).json();
    assert_eq!((&answer["slot"], &answer["rows"]), (&json!(35), &json!([[30, -4_699_748_144_800_161_446_i64]])));
    repeat(&cluster, 3, "fixture-30", 31).expect_problem(d3b::Code::KeyReused);
    assert_eq!(cluster.replica(1).value("ledger", "SELECT count(*) FROM entries"), 30);
    // It goes on: with writes, with media, with another member.
    let answer: Value = repeat(&cluster, 1, "a new key", 31).expect(200).json();
    assert_eq!(answer["rows"][0][0], 31);
    cluster.replica(3).put("/v1/db/shop/media/dog.jpg", b"a dog").expect(201);
    cluster.assert_same_everywhere();
    let new = cluster.join();
    cluster.wait_until_votes(new, 1);
    cluster.replica_mut(new).wait_ready();
    assert_eq!(cluster.replica(new).value("ledger", "SELECT count(*) FROM entries"), 31);
    assert_eq!(cluster.replica(new).get("/v1/db/shop/media/cat.jpg").expect(200).body, b"a small picture of a cat");
    cluster.assert_same_everywhere();
}

/// Says that a build has a version of the SQL semantics that there is not yet; only builds with assertions believe it.
#[cfg(debug_assertions)]
const EXECUTION: &str = "D3B_TEST_EXECUTION";

#[cfg(debug_assertions)]
fn restart(cluster: &mut Cluster, id: u32, execution: &str) {
    cluster.replica(id).ask_to_stop();
    assert!(cluster.replica_mut(id).wait_for_end().success());
    cluster.replica_mut(id).set_environment(EXECUTION, execution.as_ref());
    cluster.replica_mut(id).start_ready();
}

/// Writes a row, and returns its slot.
#[cfg(debug_assertions)]
fn write(cluster: &Cluster, id: u32) -> u64 {
    let body = json!({"sql": "INSERT INTO t DEFAULT VALUES", "args": []});
    cluster.replica(id).post("/v1/db/shop/query", &body).expect(200).slot()
}

#[cfg(debug_assertions)]
#[test]
fn the_execution_version_rises_when_every_replica_has_it_and_not_before() {
    let mut cluster = Cluster::start();
    cluster.create("shop");
    cluster.replica(1).sql("shop", "CREATE TABLE t(x INTEGER PRIMARY KEY)", json!([]));
    write(&cluster, 1);
    let mut before = 0;
    for id in cluster.ids() {
        before = write(&cluster, id);
        restart(&mut cluster, id, "2");
        write(&cluster, id);
    }
    wait_until("the version is raised everywhere", PATIENCE, || {
        cluster.ids().into_iter().all(|id| cluster.replica(id).cluster_info().execution == 2)
    });
    // It was not, as long as one replica could not follow.
    let page: LogPage = cluster.replica(1).get("/v1/log?from=1&limit=1000").expect(200).json();
    let raises: Vec<_> = page.entries.iter().filter(|entry| entry.kind == "configuration").collect();
    assert_eq!(raises.len(), 1, "{raises:?}");
    assert!(raises[0].slot > before, "{} {before}", raises[0].slot);
    assert!(raises[0].change.as_deref().is_some_and(|change| change.ends_with("execution version 2")), "{raises:?}");

    // A replica that goes back to the old version takes part until it is to apply what it does not understand.
    let old = cluster.follower();
    cluster.replica(old).ask_to_stop();
    assert!(cluster.replica_mut(old).wait_for_end().success());
    let other = cluster.others(old)[0];
    let slot = write(&cluster, other);
    cluster.replica_mut(old).set_environment(EXECUTION, "1".as_ref());
    cluster.replica_mut(old).start();
    assert!(!cluster.replica_mut(old).wait_for_end().success());
    let reason = format!("slot {slot} must be applied with execution version 2, and this build has 1");
    assert!(cluster.replica(old).said().contains(&reason), "{}", cluster.replica(old).said());
    // It has lost nothing by the attempt, and the others go on.
    write(&cluster, other);
    cluster.replica_mut(old).set_environment(EXECUTION, "2".as_ref());
    cluster.replica_mut(old).start_ready();
    assert_eq!(cluster.replica(old).value("shop", "SELECT count(*) FROM t"), 9);
    cluster.assert_same_everywhere();
}
