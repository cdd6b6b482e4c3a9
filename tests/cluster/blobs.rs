//! Files that replicas need of one another, and when they may be dropped.

use d3b::{Code, Digest};
use d3b_tests::sample::{Noise, SHOP, database_bytes, dump};
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Options, wait_until};
use serde_json::json;

#[test]
fn a_member_that_was_away_finds_the_files_of_the_databases_that_it_missed() {
    let mut cluster = Cluster::with(Options::default().flag("--blob-grace", "1s"));
    cluster.create("other");
    let away = cluster.follower();
    cluster.replica_mut(away).kill();
    let here = cluster.leader();
    let replica = cluster.replica(here);
    let image = database_bytes(SHOP);
    replica.put("/v1/db/shop/file", &image).expect(201);
    // A file that is younger than the database's is dropped once its grace period is over: the database's is not.
    let passing = b"a picture that goes again";
    replica.put("/v1/db/other/media/passing.jpg", passing).expect(201);
    for id in cluster.live() {
        cluster.replica(id).wait_for_blob(&Digest::of(passing));
    }
    replica.delete("/v1/db/other/media/passing.jpg").expect(200);
    for id in cluster.live() {
        let replica = cluster.replica(id);
        wait_until(&format!("replica {id} drops a deleted file"), PATIENCE, || {
            !replica.blob(&Digest::of(passing)).exists()
        });
        assert!(replica.blob(&Digest::of(&image)).exists(), "replica {id} has dropped what another one needs");
    }
    cluster.replica_mut(away).start_ready();
    cluster.replica(away).try_sql("shop", "SELECT count(*) FROM sqlite_schema", json!([])).expect(200);
    cluster.assert_same_everywhere();
    // Everyone has it now, so nobody will ask for its file.
    for id in cluster.ids() {
        let replica = cluster.replica(id);
        wait_until(&format!("replica {id} drops the file"), PATIENCE, || !replica.blob(&Digest::of(&image)).exists());
    }
}

#[test]
fn a_member_that_was_away_fetches_the_media_that_it_missed() {
    let mut cluster = Cluster::start();
    cluster.create("shop");
    let away = cluster.follower();
    cluster.replica_mut(away).kill();
    let bytes = Noise::new(3, 700_000).bytes();
    let here = cluster.leader();
    cluster.replica(here).put("/v1/db/shop/media/film.mp4", &bytes).expect(201);
    cluster.replica_mut(away).start_ready();
    cluster.replica(away).wait_for_blob(&Digest::of(&bytes));
    assert!(cluster.replica(away).get("/v1/db/shop/media/film.mp4").expect(200).body == bytes);
}

#[test]
fn a_file_that_too_few_hold_is_not_committed_and_not_kept() {
    let mut cluster = Cluster::with(Options::default().flag("--blob-grace", "1s"));
    cluster.create("shop");
    let alone = cluster.leader();
    let others: Vec<u32> = cluster.ids().into_iter().filter(|id| *id != alone).collect();
    for id in &others {
        cluster.replica_mut(*id).kill();
    }
    let bytes = b"nobody else has this";
    let answer = cluster.replica(alone).put("/v1/db/shop/media/film.mp4?timeout=2s", bytes);
    answer.expect_problem(Code::NoQuorum);
    let blob = cluster.replica(alone).blob(&Digest::of(bytes));
    // Alone it cannot know whether the file will be needed; in touch with the others it can.
    cluster.replica_mut(others[0]).start_ready();
    wait_until("the file is dropped", PATIENCE, || !blob.exists());
}

#[test]
fn a_raw_client_gets_back_the_database_that_it_uploaded() {
    let cluster = Cluster::start();
    let file = database_bytes(SHOP);
    cluster.replica(1).put("/v1/db/shop/file", &file).expect(201);
    let get = |name: &str| json!({"table": "schemas", "query": "", "args": [], "media_op": "get", "file_id": name});
    for id in cluster.ids() {
        let replica = cluster.replica(id);
        // One linearized query, then plain GETs.
        assert_eq!(replica.value("schemas", "SELECT fileid FROM tables"), "shop.sqlite3");
        assert_eq!(dump(&replica.post("/", &get("shop.sqlite3")).expect(200).body), dump(&file));
        replica.post("/", &get("other.sqlite3")).expect_problem(Code::MediaNotFound);
    }
}
