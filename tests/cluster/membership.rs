//! The life of a cluster: replicas come and go, fall behind the log, lose their disks, and nobody stops the service.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use d3b::Code;
use d3b_tests::cluster::d3bctl;
use d3b_tests::load::Load;
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Options, wait_until};
use serde_json::json;

fn remove(cluster: &Cluster, asked: u32, id: u32) {
    cluster.replica(asked).delete(&format!("/v1/cluster/replicas/{id}?timeout=30s")).expect(200);
}

/// The command line of an operator.
fn operator(cluster: &Cluster, endpoint: u32) -> Command {
    let mut command = d3bctl(cluster.directory());
    command.args(["-e", &cluster.replica(endpoint).url(""), "--timeout", "60s", "--yes"]);
    command
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().expect("d3bctl was built");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// From 1 to 3 to 5 to 3 to 1 replicas, the leader among those that leave, while writers write.
#[test]
fn a_cluster_grows_to_five_and_shrinks_to_one_under_load() {
    let mut cluster = Cluster::with(Options { replicas: 1, ..Options::default() });
    let load = Load::start(&cluster, 4);
    for _ in 0..4 {
        let id = cluster.join();
        cluster.wait_until_votes(id, 1);
        load.wait_for_more(50);
    }
    cluster.wait_ready();
    for _ in 0..4 {
        // Twice the leader, twice another one.
        let leader = cluster.leader();
        let leaving = if cluster.live().len() % 2 == 1 { leader } else { cluster.others(leader)[0] };
        let asked = cluster.others(leaving)[0];
        remove(&cluster, asked, leaving);
        wait_until("whoever was removed knows it", PATIENCE, || {
            let answer = cluster.replica(leaving).get("/readyz");
            answer.status == 503
        });
        cluster.forget(leaving);
        // The writers began with the first replica only: they go on with whoever is left when it is there still.
        if cluster.live().contains(&1) {
            load.wait_for_more(50);
        }
    }
    assert_eq!(cluster.live().len(), 1);
    let record = load.finish();
    record.verify_everywhere(&cluster);
}

/// What is behind the log's beginning gets a snapshot, media too, and goes on; the leader's disk stays bounded meanwhile.
#[test]
fn a_replica_behind_a_cut_log_is_brought_on_by_a_snapshot() {
    let mut cluster = Cluster::with(Options::default().flag("--log-retain-bytes", "1MiB"));
    cluster.create("shop");
    let leader = cluster.leader();
    let away = cluster.follower();
    let first = cluster.replica(leader);
    first.sql("shop", "CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT)", json!([]));
    first.sql("shop", "INSERT INTO t(x) VALUES('before')", json!([]));
    cluster.replica_mut(away).kill();
    let first = cluster.replica(leader);
    first.put("/v1/db/shop/media/cat", b"meow").expect(201);
    let text = "x".repeat(100_000);
    for _ in 0..60 {
        first.sql("shop", "INSERT OR REPLACE INTO t(id, x) VALUES(7, ?)", json!([text]));
    }
    wait_until("the log is cut", PATIENCE, || first.get("/v1/log/2").status == 410);
    first.get("/v1/log/2").expect_problem(Code::SlotCompacted);
    cluster.replica_mut(away).start_ready();
    assert_eq!(cluster.replica(away).value("shop", "SELECT count(*) FROM t"), json!(2));
    assert_eq!(cluster.replica(away).get("/v1/db/shop/media/cat").expect(200).body, b"meow");
    assert!(cluster.replica(away).said().contains("installed a snapshot"));
    cluster.assert_same_everywhere();
    // It counts as before: with one of the others gone it is needed, and there.
    let other = cluster.others(away).into_iter().find(|id| *id != leader).expect("a third one");
    cluster.replica_mut(other).kill();
    cluster.replica(leader).sql("shop", "INSERT INTO t(x) VALUES('after')", json!([]));
}

/// How far a snapshot has come is told where people look: by d3bctl, whoever is asked, and to the supervisor. It comes no
/// faster than it may.
#[test]
fn a_snapshot_on_its_way_is_seen_and_bounded() {
    const RATE: u64 = 1 << 20;
    let options = Options::default().flag("--log-retain-bytes", "1MiB").flag("--snapshot-bytes-per-second", "1MiB");
    let mut cluster = Cluster::with(options);
    cluster.create("shop");
    let (leader, away) = (cluster.leader(), cluster.follower());
    cluster.replica(leader).sql("shop", "CREATE TABLE t(x)", json!([]));
    cluster.replica_mut(away).kill();
    let first = cluster.replica(leader);
    let text = "x".repeat(100_000);
    for _ in 0..36 {
        first.sql("shop", "INSERT INTO t VALUES(?)", json!([text]));
    }
    wait_until("the log is cut", PATIENCE, || first.get("/v1/log/2").status == 410);
    let socket = cluster.directory().join("notify");
    let supervisor = UnixDatagram::bind(&socket).expect("a socket");
    supervisor.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let began = Instant::now();
    cluster.replica_mut(away).set_environment("NOTIFY_SOCKET", socket.as_os_str());
    cluster.replica_mut(away).start();

    let expected = format!("replica {away} fetches a snapshot: ");
    let mut seen = String::new();
    wait_until("d3bctl shows how far it is", PATIENCE, || {
        let output = operator(&cluster, leader).args(["-o", "table", "cluster", "status"]).output();
        seen = String::from_utf8_lossy(&output.expect("d3bctl was built").stdout).into_owned();
        seen.lines().any(|line| line.starts_with(&expected) && line.ends_with(&format!(" MiB from replica {leader}")))
    });
    let mut told = [0; 4_096];
    loop {
        let length = supervisor.recv(&mut told).expect("the supervisor is told");
        if String::from_utf8_lossy(&told[..length]).contains("; fetches a snapshot: ") {
            break;
        }
    }
    cluster.replica_mut(away).wait_ready();
    // It was copied, looked through and sent, each at this rate; however slow this machine is, that takes no less.
    let least = Duration::from_secs(3 * 36 * 100_000 / RATE) - Duration::from_secs(1);
    assert!(began.elapsed() > least, "{:?} of {least:?}", began.elapsed());
    assert_eq!(cluster.replica(away).value("shop", "SELECT count(*) FROM t"), json!(36));
    let output = operator(&cluster, leader).args(["-o", "table", "cluster", "status"]).output();
    assert!(!String::from_utf8_lossy(&output.expect("d3bctl was built").stdout).contains("snapshot"));
    cluster.assert_same_everywhere();
}

/// Overwriting the same rows for ever takes a bounded amount of disk.
#[test]
fn endless_overwrites_take_bounded_room() {
    let cluster = Cluster::with(Options::default().flag("--log-retain-bytes", "1MiB"));
    cluster.create("shop");
    let leader = cluster.replica(cluster.leader());
    leader.sql("shop", "CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT)", json!([]));
    let text = "x".repeat(200_000);
    let mut sizes = Vec::new();
    for _ in 0..6 {
        for _ in 0..40 {
            leader.sql("shop", "INSERT OR REPLACE INTO t(id, x) VALUES(7, ?)", json!([text]));
        }
        // What is cut is cut in the background.
        let base = leader.get("/v1/log?limit=1").json::<d3b::api::LogPage>().base;
        wait_until("the log is cut", PATIENCE, || {
            leader.get("/v1/log?limit=1").json::<d3b::api::LogPage>().base > base.max(1)
        });
        sizes.push(leader.files().iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum::<u64>());
    }
    // 48 MB were written; the log alone would hold all of it.
    let largest = sizes.iter().max().expect("sizes");
    assert!(*largest < 40 << 20, "{sizes:?}");
}

#[test]
fn a_replica_that_lost_its_disk_comes_back_under_a_new_id() {
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster, 2);
    load.wait_for_more(50);
    let lost = cluster.follower();
    cluster.replica_mut(lost).kill();
    std::fs::remove_dir_all(&cluster.replica(lost).data_dir).expect("its disk");
    let asked = cluster.others(lost)[0];
    // The new one is started without being let in: it waits for the operator.
    let new = cluster.prepare_spare();
    let url = cluster.replica(new).url("");
    run(operator(&cluster, asked).args(["cluster", "replace", &lost.to_string(), &new.to_string(), &url]));
    let seen = cluster.replica(asked).cluster_info();
    assert_eq!(seen.replicas.iter().map(|replica| replica.id).filter(|id| *id == lost).count(), 0);
    cluster.forget(lost);
    cluster.wait_ready();
    load.wait_for_more(50);
    load.finish().verify_everywhere(&cluster);
    cluster.assert_same_everywhere();
}

#[test]
fn what_would_lose_the_quorum_is_refused_with_the_reason() {
    let mut cluster = Cluster::start();
    let dead = cluster.follower();
    cluster.replica_mut(dead).kill();
    let leader = cluster.leader_among(&cluster.live());
    let other = cluster.others(leader)[0];
    wait_until("the leader misses it", PATIENCE, || {
        let seen = cluster.replica(leader).cluster_info();
        seen.replicas.iter().any(|replica| replica.id == dead && !replica.reachable)
    });
    let problem =
        cluster.replica(leader).delete(&format!("/v1/cluster/replicas/{other}")).expect_problem(Code::Precondition);
    assert!(problem.detail.contains("would lose its quorum"), "{problem:?}");
    cluster.replica(leader).delete("/v1/cluster/replicas/77").expect(200);
    // The one that is gone may be removed, also by asking a follower; then two agree, and none may be removed.
    remove(&cluster, other, dead);
    assert_eq!(cluster.replica(other).cluster_info().replicas.len(), 2);
    cluster.create("shop");
}

#[test]
fn a_planned_transfer_moves_the_leadership() {
    let cluster = Cluster::start();
    let load = Load::start(&cluster, 2);
    load.wait_for_more(20);
    let target = cluster.follower();
    let asked = cluster.others(target)[0];
    run(operator(&cluster, asked).args(["cluster", "transfer", &target.to_string()]));
    assert_eq!(cluster.leader(), target);
    run(operator(&cluster, asked).args(["cluster", "verify"]));
    load.wait_for_more(20);
    load.finish().verify_everywhere(&cluster);
}
