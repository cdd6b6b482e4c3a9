//! Replicas that are killed and paused.

use d3b::Code;
use d3b_tests::faults::with_seeds;
use d3b_tests::process::{forget_peak, peak_memory};
use d3b_tests::recorder::{Keys, Recorder};
use d3b_tests::sample::Noise;
use d3b_tests::sim::random::Random;
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Http, Options, wait_until};
use serde_json::json;

#[test]
fn concurrent_histories_without_any_fault_are_linearizable() {
    with_seeds(|random| {
        let cluster = Cluster::start();
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        recorder.wait_for_more(1_000);
        recorder.finish().verify(&cluster);
    });
}

#[test]
fn kills_of_any_replica_keep_histories_linearizable() {
    with_seeds(|random| {
        let mut cluster = Cluster::start();
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        for _ in 0..4 {
            recorder.wait_for_more(100);
            let victim = *random.pick(&cluster.ids());
            println!("kill {victim}");
            cluster.replica_mut(victim).kill();
            if random.percent(40) {
                // A majority, or all of them: nothing goes on meanwhile.
                let second = *random.pick(&cluster.live());
                println!("kill {second}");
                cluster.replica_mut(second).kill();
                cluster.replica_mut(second).start();
            } else {
                recorder.wait_for_more(50);
            }
            cluster.replica_mut(victim).start();
        }
        cluster.wait_ready();
        recorder.wait_for_more(100);
        recorder.finish().verify(&cluster);
    });
}

/// A leader that sleeps through an election, with requests in its hands, must not tell anything from before.
#[test]
fn pauses_longer_than_an_election_keep_histories_linearizable() {
    with_seeds(|random| {
        let cluster = Cluster::start();
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        for _ in 0..4 {
            recorder.wait_for_more(60);
            let paused = cluster.leader();
            println!("pause the leader, {paused}");
            cluster.replica(paused).pause();
            let others = cluster.others(paused);
            let next = cluster.leader_among(&others);
            recorder.wait_for_more(60);
            if random.percent(50) {
                // Both of its followers at once, so that it wakes to a group that sleeps.
                println!("pause {others:?}, resume {paused}");
                others.iter().for_each(|id| cluster.replica(*id).pause());
                cluster.replica(paused).resume();
                cluster.replica(paused).wait_no_quorum();
                others.iter().for_each(|id| cluster.replica(*id).resume());
            } else {
                println!("resume {paused} under {next}");
                cluster.replica(paused).resume();
            }
        }
        recorder.wait_for_more(100);
        recorder.finish().verify(&cluster);
    });
}

#[test]
fn a_file_survives_its_origin_that_dies_right_after_the_answer() {
    with_seeds(|random: &mut Random| {
        let mut cluster = Cluster::start();
        cluster.create("shop");
        for round in 0..3 {
            let origin = *random.pick(&cluster.ids());
            let noise = Noise::new(random.word(), 2_000_000);
            let path = format!("/v1/db/shop/media/film-{round}.mp4");
            cluster.replica(origin).put(&path, &noise.clone().bytes()).expect(201);
            println!("kill the origin, {origin}");
            cluster.replica_mut(origin).kill();
            for id in cluster.live() {
                let replica = cluster.replica(id);
                wait_until(&format!("replica {id} goes on"), PATIENCE, || {
                    replica.get(&format!("{path}?level=linearizable&timeout=2s")).status == 200
                });
                assert!(replica.get(&path).expect(200).body == noise.clone().bytes(), "replica {id} gives other bytes");
                replica.wait_for_blob(&noise.clone().digest());
            }
            cluster.replica_mut(origin).start_ready();
        }
        cluster.assert_same_everywhere();
    });
}

/// What the leader keeps for a peer that takes nothing, and for one that is gone, is bounded; so is what it remembers of
/// the log anyway, which the first writes fill.
#[test]
fn a_paused_or_dead_peer_costs_the_leader_no_memory() {
    const WRITE: usize = 1_000_000;
    const WRITES: u64 = 100;
    /// What may wait for a peer, what may be on its way to it, and some room for the allocator; less than what was written.
    const GROWTH_MAX: u64 = 190 << 20;
    let mut cluster = Cluster::start();
    cluster.create("shop");
    let leader = cluster.leader();
    cluster.replica(leader).sql("shop", "CREATE TABLE t(id INTEGER PRIMARY KEY, filling TEXT)", json!([]));
    cluster.replica(leader).sql("shop", "INSERT INTO t VALUES(1, '')", json!([]));
    let write = |cluster: &Cluster| {
        // The same row again and again: it is the log that grows.
        let body = json!({"sql": "UPDATE t SET filling = ?", "args": ["x".repeat(WRITE)]}).to_string();
        let url = cluster.replica(leader).url("/v1/db/shop/query?timeout=30s");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..WRITES / 4 {
                        Http::new().send("POST", &url, &[], body.as_bytes()).expect(200);
                    }
                });
            }
        });
    };
    write(&cluster);
    let pid = cluster.replica(leader).pid();
    forget_peak(pid);
    let before = peak_memory(pid);
    let check = |what: &str| {
        let growth = peak_memory(pid).saturating_sub(before);
        println!("{what}: {} MiB more than {} MiB", growth >> 20, before >> 20);
        assert!(growth < GROWTH_MAX, "{what}: the leader needs {} MiB more", growth >> 20);
    };
    let follower = cluster.follower();
    cluster.replica(follower).pause();
    write(&cluster);
    check("a peer is paused");
    cluster.replica_mut(follower).kill();
    write(&cluster);
    check("a peer is dead");
    cluster.replica_mut(follower).start_ready();
    assert_eq!(cluster.replica(follower).value("shop", "SELECT length(filling) FROM t"), WRITE);
    cluster.assert_same_everywhere();
    check("the peer is back");
}

/// Two fresh disks are a majority, but not of what was written: they must not make a cluster of their own over the third
/// one's data, whoever is started first.
#[test]
fn a_wiped_majority_does_not_begin_anew_over_live_data() {
    for survivor_first in [true, false] {
        let mut cluster = Cluster::start();
        cluster.create("shop");
        cluster.replica(1).sql("shop", "CREATE TABLE t(n)", json!([]));
        cluster.replica(1).sql("shop", "INSERT INTO t VALUES(42)", json!([]));
        for id in cluster.ids() {
            cluster.replica(id).value("shop", "SELECT n FROM t");
        }
        cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).kill());
        [2, 3]
            .iter()
            .for_each(|id| std::fs::remove_dir_all(&cluster.replica(*id).data_dir).expect("the data directory"));
        let order = if survivor_first { [1, 2, 3] } else { [2, 3, 1] };
        order.into_iter().for_each(|id| cluster.replica_mut(id).start());
        for id in [2, 3] {
            let url = cluster.replica(id).url("/v1/cluster");
            wait_until(&format!("replica {id} is told that it takes no part"), PATIENCE, || {
                let answer = cluster.http.try_send("GET", &url, &[], ureq::SendBody::none());
                answer.is_ok_and(|answer| answer.json::<serde_json::Value>()["state"] == "outcast")
            });
            cluster.replica(id).get("/readyz").expect_problem(Code::NotReady);
        }
        cluster.replica(1).wait_no_quorum();
        let write = json!({"sql": "INSERT INTO t VALUES(43)"});
        cluster.replica(1).post("/v1/db/shop/query?timeout=2s", &write).expect_problem(Code::NoQuorum);
        let stale = cluster.replica(1).post("/v1/db/shop/query?level=stale", &json!({"sql": "SELECT n FROM t"}));
        assert_eq!(stale.expect(200).json::<serde_json::Value>()["rows"], json!([[42]]));
    }
}

/// A data directory of another cluster behind an address of this one, as after a mix-up of disks or settings.
#[test]
fn a_replica_of_another_cluster_neither_takes_part_nor_loses_its_data() {
    let mut one = Cluster::start();
    let mut other = Cluster::with(Options::default());
    for (cluster, n) in [(&one, 1), (&other, 2)] {
        cluster.create("shop");
        cluster.replica(1).sql("shop", "CREATE TABLE t(n)", json!([]));
        cluster.replica(1).sql("shop", "INSERT INTO t VALUES(?)", json!([n]));
        cluster.ids().into_iter().for_each(|id| assert_eq!(cluster.replica(id).value("shop", "SELECT n FROM t"), n));
    }
    // Replicas 3 of both change places.
    one.replica_mut(3).kill();
    other.ids().into_iter().for_each(|id| other.replica_mut(id).kill());
    let (mine, foreign) = (one.replica(3).data_dir.clone(), other.replica(3).data_dir.clone());
    let aside = mine.with_extension("aside");
    let exchange = || {
        std::fs::rename(&mine, &aside).expect("a directory of the test's");
        std::fs::rename(&foreign, &mine).expect("a directory of the test's");
        std::fs::rename(&aside, &foreign).expect("a directory of the test's");
    };
    exchange();
    one.replica_mut(3).start();
    one.replica(3).wait_no_quorum();
    // The two of the one cluster go on; a third vote is not to be had from the foreign replica.
    one.replica(1).sql("shop", "INSERT INTO t VALUES(10)", json!([]));
    one.replica_mut(2).kill();
    one.replica(1).wait_no_quorum();
    one.replica(3).wait_no_quorum();
    let stale = one.replica(3).post("/v1/db/shop/query?level=stale", &json!({"sql": "SELECT n FROM t"}));
    assert_eq!(stale.expect(200).json::<serde_json::Value>()["rows"], json!([[2]]), "its data is its own cluster's");
    one.replica_mut(3).kill();
    exchange();
    [2, 3].iter().for_each(|id| one.replica_mut(*id).start());
    other.ids().into_iter().for_each(|id| other.replica_mut(id).start());
    one.wait_ready();
    other.wait_ready();
    assert_eq!(one.replica(3).value("shop", "SELECT sum(n) FROM t"), 11);
    assert_eq!(other.replica(3).value("shop", "SELECT sum(n) FROM t"), 2);
    one.assert_same_everywhere();
    other.assert_same_everywhere();
}
