//! Starting and stopping: what a daemon refuses to start on, and how it ends.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use d3b::Code;
use d3b_tests::cluster::{d3bd, free_port};
use d3b_tests::load::Load;
use d3b_tests::process::Process;
use d3b_tests::raw::{connect, read_to_end};
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Options, wait_until};
use serde_json::json;

#[test]
fn sigterm_hands_over_drains_and_exits_zero() {
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster, 4);
    load.wait_for_more(50);
    let leader = cluster.leader();
    // A request that is under way when the signal comes: its head is there, half of its body is not.
    let mut upload = connect(cluster.replica(leader).address());
    let head = format!(
        "PUT /v1/db/load/media/slow HTTP/1.1\r\nHost: {}\r\nContent-Length: 8\r\n\r\nhalf",
        cluster.replica(leader).address()
    );
    upload.write_all(head.as_bytes()).expect("the replica reads");
    // A later request on another connection is answered, so the first one has been read.
    cluster.replica(leader).sql("load", "SELECT 1", json!([]));
    cluster.replica(leader).ask_to_stop();
    let others: Vec<u32> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    wait_until("another replica leads", PATIENCE, || {
        others.iter().all(|id| cluster.replica(*id).leader().is_some_and(|now| now != leader))
    });
    upload.write_all(b"full").expect("the replica still reads");
    let answer = read_to_end(&mut upload, Duration::from_secs(30));
    assert_eq!(answer.status(), Some(201), "{}", String::from_utf8_lossy(&answer.bytes));
    let status = cluster.replica_mut(leader).wait_for_end();
    assert_eq!(status.code(), Some(0), "{status}");
    load.wait_for_more(50);
    cluster.replica_mut(leader).start_ready();
    load.finish().verify_everywhere(&cluster);
    for id in cluster.ids() {
        assert_eq!(cluster.replica(id).get("/v1/db/load/media/slow?level=linearizable").expect(200).body, b"halffull");
    }
    // All together, in any order.
    cluster.ids().into_iter().for_each(|id| cluster.replica(id).ask_to_stop());
    for id in cluster.ids() {
        let status = cluster.replica_mut(id).wait_for_end();
        assert_eq!(status.code(), Some(0), "replica {id}: {status}");
    }
    cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).start());
    cluster.wait_ready();
    cluster.assert_same_everywhere();
}

/// Runs a daemon that must refuse to start, and gives what it says.
#[track_caller]
fn refusal(mut command: Command) -> String {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::spawn(&mut command);
    let status = process.wait_for_end(PATIENCE);
    let mut said = String::new();
    let output = process.child();
    std::io::Read::read_to_string(output.stderr.as_mut().expect("a pipe"), &mut said).expect("text");
    assert!(status.code().is_some_and(|code| code != 0), "it must refuse, with an exit code: {status}\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    said.to_lowercase()
}

/// A command like the one that starts a replica of its own, on other ports.
fn on_directory(cluster: &Cluster, id: u32, data_dir: &std::path::Path) -> Command {
    let peer = free_port();
    let mut command = d3bd(cluster.directory());
    command.args(["--id", &id.to_string(), "--listen", &format!("127.0.0.1:{}", free_port())]);
    command.args(["--peer-listen", &format!("127.0.0.1:{peer}"), "--replicas", &format!("{id}=127.0.0.1:{peer}")]);
    command.arg("--data-dir").arg(data_dir);
    command
}

#[test]
fn a_foreign_or_locked_or_unknown_data_directory_is_refused() {
    let mut cluster = Cluster::with(Options { replicas: 1, ..Options::default() });
    cluster.create("shop");
    let data_dir = cluster.replica(1).data_dir.clone();

    let said = refusal(on_directory(&cluster, 1, &data_dir));
    assert!(said.contains("lock") || said.contains("in use"), "{said}");
    assert!(said.contains(&cluster.replica(1).pid().to_string()), "it says who holds it: {said}");
    cluster.replica(1).value("shop", "SELECT 1");

    cluster.replica_mut(1).kill();
    let said = refusal(on_directory(&cluster, 2, &data_dir));
    assert!(said.contains("replica 1") && said.contains("replica 2"), "it names both: {said}");

    let foreign = cluster.directory().join("photos");
    std::fs::create_dir(&foreign).expect("a directory");
    std::fs::write(foreign.join("holiday.jpg"), b"sun").expect("a file");
    let said = refusal(on_directory(&cluster, 1, &foreign));
    assert!(said.contains("holiday.jpg"), "{said}");
    assert_eq!(std::fs::read_dir(&foreign).expect("a directory").count(), 1, "nothing was put there");

    let log = data_dir.join("log.sqlite3");
    let set_version = |version: &str| {
        let connection = rusqlite::Connection::open(&log).expect("the log");
        let changed = connection.execute("UPDATE meta SET value = CAST(? AS BLOB) WHERE key = 'format'", [version]);
        assert_eq!(changed.expect("the log can be written"), 1);
    };
    set_version("99");
    let said = refusal(on_directory(&cluster, 1, &data_dir));
    assert!(said.contains("version") && said.contains("99"), "{said}");
    set_version("1");

    // A log that is no database any more is refused too, not made anew.
    let saved = std::fs::read(&log).expect("the log");
    std::fs::write(&log, b"this is not a log").expect("a file");
    refusal(on_directory(&cluster, 1, &data_dir));
    std::fs::write(&log, saved).expect("a file");

    // And after all of that, it is as it was.
    cluster.replica_mut(1).start_ready();
    cluster.replica(1).value("shop", "SELECT 1");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let check = |flags: &[&str], expected: &str| {
        let mut command = d3bd(directory.path());
        command.arg("--data-dir").arg(directory.path().join("data")).args(flags);
        let said = refusal(command);
        assert!(said.contains(&expected.to_lowercase()), "{flags:?}: {said}");
    };
    check(&["--listen", "0.0.0.0:0"], "--insecure");
    check(&["--peer-listen", "0.0.0.0:8124"], "--cluster-key-file");
    check(&["--id", "0"], "from 1 up");
    check(&["--id", "4", "--replicas", "1=127.0.0.1:1"], "does not name it");
    check(&["--heartbeat", "1s"], "election timeout");
    check(&["--colour", "blue"], "--colour");
    assert!(!directory.path().join("data").exists(), "nothing was made");
}

/// The disk of replica 3 is exchanged: with one other replica it must not make a majority, whichever starts first.
#[test]
fn a_wiped_disk_never_votes_again() {
    let mut cluster = Cluster::start();
    cluster.create("shop");
    cluster.replica(1).sql("shop", "CREATE TABLE t(n)", json!([]));
    for id in cluster.ids() {
        cluster.replica(id).value("shop", "SELECT count(*) FROM t");
    }
    let wipe = |cluster: &mut Cluster| {
        cluster.replica_mut(3).kill();
        std::fs::remove_dir_all(&cluster.replica(3).data_dir).expect("the data directory");
    };

    // It comes back while the others run.
    wipe(&mut cluster);
    cluster.replica_mut(3).start();
    wait_until("replica 3 is told that it takes no part", PATIENCE, || {
        let answer = cluster.http.try_send("GET", &cluster.replica(3).url("/v1/cluster"), &[], ureq::SendBody::none());
        answer.is_ok_and(|answer| answer.json::<serde_json::Value>()["state"] == "outcast")
    });
    cluster.replica(3).get("/readyz").expect_problem(Code::NotReady);
    cluster.replica(1).sql("shop", "INSERT INTO t VALUES(1)", json!([]));
    cluster.replica_mut(1).kill();
    let alone = |cluster: &Cluster, id: u32| {
        cluster.replica(id).wait_no_quorum();
        // Longer than several elections take.
        let write = json!({"sql": "INSERT INTO t VALUES(2)"});
        cluster.replica(id).post("/v1/db/shop/query?timeout=3s", &write).expect_problem(Code::NoQuorum);
    };
    alone(&cluster, 2);

    // It comes back before the others, and then meets one of them only.
    cluster.replica_mut(2).kill();
    wipe(&mut cluster);
    cluster.replica_mut(3).start();
    cluster.replica_mut(1).start();
    alone(&cluster, 1);
    cluster.replica_mut(2).start();
    cluster.replica_mut(1).wait_ready();
    cluster.replica_mut(2).wait_ready();
    assert_eq!(cluster.replica(1).value("shop", "SELECT count(*) FROM t"), 1);
    cluster.replica(2).sql("shop", "INSERT INTO t VALUES(3)", json!([]));
    assert_eq!(cluster.replica(3).cluster_info().state, "outcast");
}

#[test]
fn one_replica_is_a_cluster() {
    let mut cluster = Cluster::with(Options { replicas: 1, ..Options::default() });
    cluster.create("shop");
    cluster.replica(1).sql("shop", "CREATE TABLE t(n)", json!([]));
    cluster.replica(1).sql("shop", "INSERT INTO t VALUES(1)", json!([]));
    cluster.replica_mut(1).kill();
    cluster.replica_mut(1).start_ready();
    assert_eq!(cluster.replica(1).value("shop", "SELECT n FROM t"), 1);
    cluster.replica(1).ask_to_stop();
    assert_eq!(cluster.replica_mut(1).wait_for_end().code(), Some(0));
}
