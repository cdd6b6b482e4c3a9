//! What an operator may have done at once, and how it is looked after: durable databases, a short log, equal replicas.

use d3b::Code;
use d3b::api::{Compacted, Snapshotted, Verified};
use d3b_tests::cluster::d3bctl;
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Options, wait_until};
use serde_json::{Value, json};

/// Three replicas with a table of ten rows, written by keyless requests; the last slot.
fn filled() -> (Cluster, u64) {
    let cluster = Cluster::with(Options::default().flag("--scrub-bytes-per-second", "0"));
    cluster.create("shop");
    cluster.replica(1).sql("shop", "CREATE TABLE t(x INTEGER PRIMARY KEY)", json!([]));
    let mut last = 0;
    for x in 1..=10 {
        let body = json!({"sql": "INSERT INTO t VALUES(?)", "args": [x]});
        last = cluster.replica(1).post("/v1/db/shop/query", &body).expect(200).slot();
    }
    cluster.assert_same_everywhere();
    (cluster, last)
}

/// `d3bctl log verify`: its exit code, and a JSON object for each replica.
fn verify_logs(cluster: &Cluster) -> (i32, Vec<Value>) {
    let mut command = d3bctl(cluster.directory());
    command.args(["-e", &cluster.endpoints().join(","), "-o", "json", "log", "verify"]);
    let output = command.output().expect("d3bctl can be run");
    let logs = serde_json::from_slice(&output.stdout).expect("its output is JSON");
    (output.status.code().expect("it ends by itself"), logs)
}

#[test]
fn a_replica_makes_durable_and_cuts_its_log_when_told_to() {
    let (mut cluster, last) = filled();
    let asked = cluster.follower();
    let replica = cluster.replica(asked);
    let durable: Snapshotted = replica.post("/v1/admin/snapshot", &json!({})).expect(200).json();
    assert!(durable.replica == asked && durable.slot >= last, "{durable:?} {last}");
    replica.post("/v1/admin/compact?to_slot=many", &json!({})).expect_problem(Code::BadRequest);
    replica.get("/v1/admin/compact").expect_problem(Code::MethodNotAllowed);
    replica.get("/v1/log/4").expect(200);
    let cut: Compacted = replica.post("/v1/admin/compact?to_slot=5", &json!({})).expect(200).json();
    assert_eq!(cut, Compacted { replica: asked, base: 5 });
    replica.get("/v1/log/4").expect_problem(Code::SlotCompacted);
    replica.get("/v1/log/5").expect(200);
    // Without a slot nothing is left but where the log goes on.
    let cut: Compacted = replica.post("/v1/admin/compact", &json!({})).expect(200).json();
    assert!(cut.base >= last, "{cut:?} {last}");
    let again: Compacted = replica.post("/v1/admin/compact?to_slot=1", &json!({})).expect(200).json();
    assert!(again.base >= cut.base, "a log is never made longer: {again:?}");
    // The others' logs are their own affair, and the replica is one of them as before.
    cluster.replica(cluster.others(asked)[0]).get("/v1/log/4").expect(200);
    cluster.replica_mut(asked).kill();
    cluster.replica_mut(asked).start_ready();
    assert_eq!(cluster.replica(asked).value("shop", "SELECT count(*) FROM t"), 10);
    cluster.replica(asked).sql("shop", "INSERT INTO t VALUES(11)", json!([]));
    cluster.assert_same_everywhere();
}

#[test]
fn what_was_compared_is_told_and_a_damaged_log_is_found() {
    let (mut cluster, last) = filled();
    wait_until("everything was compared", PATIENCE, || {
        cluster.ids().into_iter().all(|id| {
            let verified: Verified = cluster.replica(id).post("/v1/admin/verify", &json!({})).expect(200).json();
            assert!(verified.divergent.is_empty() && verified.log.is_none(), "{verified:?}");
            // `shop` and the catalogue.
            verified.databases == 2
                && verified.compared.len() == 2
                && verified.compared.iter().all(|compared| compared.databases == 2)
        })
    });
    let (code, logs) = verify_logs(&cluster);
    assert_eq!(code, 0, "{logs:?}");
    for log in &logs {
        assert!(log["compared"].as_u64() >= Some(last) && log["damage"].is_null(), "{log}");
    }

    let damaged = cluster.follower();
    cluster.replica(damaged).ask_to_stop();
    assert!(cluster.replica_mut(damaged).wait_for_end().success());
    let (code, logs) = verify_logs(&cluster);
    assert_eq!(code, 10, "one cannot be asked: {logs:?}");
    let log = rusqlite::Connection::open(cluster.replica(damaged).data_dir.join("log.sqlite3")).expect("the log");
    let sql = "UPDATE records SET entry = zeroblob(length(entry)) WHERE slot = 6";
    assert_eq!(log.execute(sql, []).expect("the log can be written"), 1);
    log.close().expect("it can be closed");
    cluster.replica_mut(damaged).start_ready();
    let (code, logs) = verify_logs(&cluster);
    assert_eq!(code, 9, "{logs:?}");
    for log in &logs {
        let found = log["damage"].as_str().is_some_and(|damage| damage.starts_with("slot 6: "));
        assert_eq!(found, log["id"] == damaged, "{log}");
    }
}
