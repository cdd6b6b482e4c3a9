//! `d3bctl bench`: it loads, measures, verifies, and leaves nothing behind.

use d3b_tests::cluster::d3bctl;
use d3b_tests::wait::{PATIENCE, wait_until};
use d3b_tests::{Cluster, Options};
use serde_json::Value;

/// Runs it with JSON output; gives its exit code and its report.
#[track_caller]
fn bench(cluster: &Cluster, endpoints: &[String], arguments: &[&str]) -> (i32, Value) {
    let mut command = d3bctl(cluster.directory());
    command.args(["-o", "json", "-e", &endpoints.join(","), "bench", "--warm-up", "0", "--duration", "1s"]);
    let output = command.args(arguments).output().expect("d3bctl can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{arguments:?}: {error}: {}\n{errors}", String::from_utf8_lossy(&output.stdout))
    });
    (output.status.code().expect("it ends by itself"), report)
}

/// A load that must go well.
#[track_caller]
fn check(cluster: &Cluster, arguments: &[&str]) -> Value {
    let (code, report) = bench(cluster, &cluster.endpoints(), arguments);
    assert_eq!(code, 0, "{arguments:?}: {report:#}");
    assert!(report["done"].as_u64() > Some(0), "{report:#}");
    assert_eq!((&report["errors"], &report["verification"]["problems"]), (&0.into(), &Value::Array(vec![])));
    let replicas = report["verification"]["replicas"].as_array().expect("a list");
    assert_eq!(replicas.len(), 3);
    assert!(replicas.iter().all(|replica| replica["unasked"].is_null()), "{report:#}");
    report
}

#[test]
fn every_mix_of_a_load_is_measured_verified_and_taken_away() {
    let cluster = Cluster::with(Options::default());
    let report = check(&cluster, &["--work", "insert", "--clients", "8"]);
    let rows = report["verification"]["rows"].as_u64().expect("a number");
    assert!(rows >= report["done"].as_u64().expect("a number"), "{report:#}");
    assert!(report["longest_gap_ms"].as_f64() > Some(0.0) && !report["timeline"].as_array().unwrap().is_empty());
    assert!(report["generator"]["cpu_us_per_request"].as_f64() > Some(0.0));

    check(&cluster, &["--work", "keyed-insert=3,batch=1,update=2", "--batch", "7", "--databases", "3", "--rows", "50"]);
    let report = check(&cluster, &["--work", "read=2,stale-read=2", "--target", "leader", "--rows", "50"]);
    assert!(report["longest_gap_ms"].is_null(), "nothing was written");
    let report = check(&cluster, &["--work", "media-put,media-get", "--media-size", "3000", "--threads", "2"]);
    assert!(report["verification"]["files"].as_u64() > Some(0), "{report:#}");
    let report = check(&cluster, &["--rate", "50", "--clients", "4"]);
    assert!(report["open_loop"]["backlog_max"].is_number(), "{report:#}");

    assert!(cluster.replica(1).databases().is_empty(), "it leaves nothing behind");
    check(&cluster, &["--keep", "--clients", "1"]);
    assert_eq!(cluster.replica(1).databases().len(), 1);
    cluster.assert_same_everywhere();
}

#[test]
fn a_load_goes_on_when_the_leader_is_killed_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::with(Options::default());
    let leader = cluster.leader();
    let endpoints = cluster.endpoints();
    let mut command = d3bctl(cluster.directory());
    command.args(["-o", "json", "-e", &endpoints.join(","), "bench", "--warm-up", "0", "--duration", "8s"]);
    command.args(["--work", "keyed-insert=1,insert=1", "--clients", "6"]);
    command.stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("d3bctl can be run");
    wait_until("the load is under way", PATIENCE, || cluster.replica(leader).cluster_info().applied > 200);
    cluster.replica_mut(leader).kill();
    cluster.leader();
    cluster.replica_mut(leader).start();
    let stdout = child.stdout.take().expect("it was asked for");
    let report: Value = serde_json::from_reader(stdout).expect("a report");
    let status = child.wait().expect("a child of ours");
    assert_eq!(status.code(), Some(0), "{report:#}");
    assert!(report["reconnects"].as_u64() > Some(0), "{report:#}");
    // Keyed operations are never left in doubt while somebody can tell.
    assert_eq!(report["verification"]["problems"], Value::Array(vec![]), "{report:#}");
}
