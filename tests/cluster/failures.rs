//! Replicas that are killed, one at a time or all at once.

use d3b::{Code, Digest};
use d3b_tests::load::Load;
use d3b_tests::sample::{SHOP, database_bytes};
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, wait_until};
use serde_json::json;

/// Lets a certain replica lead: the others are killed, so that it is the first to ask for votes when they are back.
fn make_lead(cluster: &mut Cluster, target: u32) {
    wait_until(&format!("replica {target} leads"), PATIENCE, || {
        let others: Vec<u32> = cluster.ids().into_iter().filter(|id| *id != target).collect();
        others.iter().for_each(|id| cluster.replica_mut(*id).kill());
        wait_until("it has no leader any more", PATIENCE, || cluster.replica(target).leader().is_none());
        others.iter().for_each(|id| cluster.replica_mut(*id).start());
        cluster.wait_ready();
        cluster.leader() == target
    });
}

#[test]
fn every_replica_answers_reads_and_writes_whichever_leads() {
    let mut cluster = Cluster::start();
    cluster.create("shop");
    cluster.replica(1).sql("shop", "CREATE TABLE seen(leader INTEGER, replica INTEGER)", json!([]));
    for (round, leader) in cluster.ids().into_iter().enumerate() {
        make_lead(&mut cluster, leader);
        for (step, id) in cluster.ids().into_iter().enumerate() {
            cluster.replica(id).sql("shop", "INSERT INTO seen VALUES(?, ?)", json!([leader, id]));
            // What was written through one replica is there on all others at once.
            for reader in cluster.ids() {
                let count = cluster.replica(reader).value("shop", "SELECT count(*) FROM seen");
                assert_eq!(count, round * 3 + step + 1, "leader {leader}, written by {id}, read by {reader}");
            }
        }
    }
    cluster.assert_same_everywhere();
}

#[test]
fn killing_the_leader_under_load_loses_and_doubles_nothing() {
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster, 8);
    for _ in 0..3 {
        load.wait_for_more(100);
        let leader = cluster.leader();
        cluster.replica_mut(leader).kill();
        load.wait_for_more(100);
        cluster.replica_mut(leader).start_ready();
    }
    load.wait_for_more(100);
    let record = load.finish();
    record.verify_everywhere(&cluster);
    cluster.assert_same_everywhere();
}

#[test]
fn all_killed_and_restarted_keep_everything() {
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster, 8);
    for _ in 0..2 {
        load.wait_for_more(200);
        cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).kill());
        cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).start());
        cluster.wait_ready();
    }
    load.wait_for_more(100);
    cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).kill());
    let record = load.finish();
    cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).start());
    cluster.wait_ready();
    record.verify_everywhere(&cluster);
    cluster.assert_same_everywhere();
}

#[test]
fn a_replica_that_was_down_catches_up() {
    let mut cluster = Cluster::start();
    let down = cluster.follower();
    let up = cluster.leader();
    let load = Load::start(&cluster, 4);
    load.wait_for_more(50);
    cluster.replica_mut(down).kill();
    load.wait_for_more(300);
    // A database and a media file that it has never heard of.
    cluster.replica(up).put("/v1/db/shop/file", &database_bytes(SHOP)).expect(201);
    let picture = b"a picture, taken while nobody was looking";
    cluster.replica(up).put("/v1/db/shop/media/cat.jpg", picture).expect(201);
    let record = load.finish();
    cluster.replica_mut(down).start_ready();
    let replica = cluster.replica(down);
    record.verify(replica);
    assert_eq!(replica.value("shop", "SELECT count(*) FROM users"), 3);
    assert_eq!(replica.get("/v1/db/shop/media/cat.jpg").expect(200).body, picture);
    replica.wait_for_blob(&Digest::of(picture));
    cluster.assert_same_everywhere();
}

#[test]
fn a_replica_left_alone_answers_no_quorum_and_stale_reads_work() {
    let mut cluster = Cluster::start();
    cluster.create("shop");
    cluster.replica(1).sql("shop", "CREATE TABLE t(n)", json!([]));
    cluster.replica(1).sql("shop", "INSERT INTO t VALUES(?)", json!([42]));
    let alone = cluster.leader();
    cluster.replica(alone).value("shop", "SELECT n FROM t");
    let others: Vec<u32> = cluster.ids().into_iter().filter(|id| *id != alone).collect();
    others.iter().for_each(|id| cluster.replica_mut(*id).kill());
    let replica = cluster.replica(alone);
    replica.wait_no_quorum();

    let write = json!({"sql": "INSERT INTO t VALUES(43)"});
    let refused = replica.post("/v1/db/shop/query?timeout=1s", &write);
    refused.expect_problem(Code::NoQuorum);
    assert!(refused.header("retry-after").is_some(), "a 503 says when to try again");
    let read = json!({"sql": "SELECT n FROM t"});
    replica.post("/v1/db/shop/query?timeout=1s", &read).expect_problem(Code::NoQuorum);
    replica.post("/?timeout=1s", &json!({"table": "shop", "query": "SELECT n FROM t", "args": []}));
    let stale = replica.post("/v1/db/shop/query?level=stale", &read).expect(200);
    assert_eq!(stale.json::<serde_json::Value>()["rows"], json!([[42]]));
    let slot = stale.slot();
    replica.post(&format!("/v1/db/shop/query?level=at-least&slot={slot}"), &read).expect(200);
    replica
        .post(&format!("/v1/db/shop/query?level=at-least&slot={}&timeout=500ms", slot + 100), &read)
        .expect_problem(Code::NotReady);
    replica.post("/v1/db/shop/query?level=stale&max_staleness=1ms", &read).expect_problem(Code::NotReady);

    others.iter().for_each(|id| cluster.replica_mut(*id).start());
    cluster.wait_ready();
    assert_eq!(
        cluster.replica(alone).sql("shop", "SELECT n FROM t", json!([])),
        json!([[42]]),
        "a refused write must not appear"
    );
}
