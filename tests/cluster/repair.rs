//! Replicas that hold something else than the others, disks that change what was written, and clusters of which only one
//! replica is left.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use d3b::api::ClusterInfo;
use d3b::{Code, Digest};
use d3b_tests::build::programs;
use d3b_tests::cluster::{d3bctl, d3bd};
use d3b_tests::sample::Noise;
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Options, wait_until};
use serde_json::json;

/// Three replicas with a database whose rows can be counted up.
fn counting(options: Options) -> Cluster {
    let cluster = Cluster::with(options);
    cluster.create("shop");
    let replica = cluster.replica(1);
    replica.sql("shop", "CREATE TABLE counter(id INTEGER PRIMARY KEY, n INTEGER, word TEXT)", json!([]));
    replica.sql("shop", "INSERT INTO counter VALUES(1, 10, 'precious')", json!([]));
    cluster
}

/// Replicas that compare what they do, and never look at their disks by themselves.
fn trusting() -> Options {
    Options::default().flag("--scrub-bytes-per-second", "0")
}

/// Replicas that look for damage all the time.
fn watchful() -> Options {
    Options::default().flag("--scrub-bytes-per-second", "4GiB")
}

fn count_up(cluster: &Cluster, id: u32) {
    cluster.replica(id).sql("shop", "UPDATE counter SET n = n + 1", json!([]));
}

fn stop(cluster: &mut Cluster, id: u32) {
    cluster.replica(id).ask_to_stop();
    assert!(cluster.replica_mut(id).wait_for_end().success());
}

/// The file of the only database, while its replica is down; everything is in it, and nothing beside it.
fn shop_file(cluster: &Cluster, id: u32) -> PathBuf {
    let catalogue = format!("{}.sqlite3", d3b::DatabaseId::catalogue());
    let mut files = cluster.replica(id).files().into_iter().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        path.parent().is_some_and(|parent| parent.ends_with("databases"))
            && name.ends_with(".sqlite3")
            && name != catalogue
    });
    let file = files.next().expect("the database's file");
    let connection = rusqlite::Connection::open(&file).expect("a database");
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("nobody else has it open");
    file
}

fn replace(file: &PathBuf, old: &[u8], new: &[u8]) {
    let mut bytes = std::fs::read(file).expect("a file of the replica");
    let at = bytes.windows(old.len()).position(|window| window == old).expect("it is in the file");
    bytes[at..at + new.len()].copy_from_slice(new);
    std::fs::write(file, bytes).expect("the file can be written");
}

#[track_caller]
fn wait_quarantined(cluster: &Cluster, id: u32) {
    wait_until(&format!("replica {id} is quarantined"), PATIENCE, || {
        let url = cluster.replica(id).url("/v1/cluster");
        let answer = cluster.http.try_send("GET", &url, &[], ureq::SendBody::none());
        answer.is_ok_and(|answer| answer.status == 200 && answer.json::<ClusterInfo>().state == "quarantined")
    });
}

/// Waits until nobody sees a difference any more.
#[track_caller]
fn wait_healed(cluster: &Cluster) {
    wait_until("nothing differs any more", PATIENCE, || {
        cluster.ids().iter().all(|id| cluster.replica(*id).cluster_info().divergent.is_empty())
    });
}

/// Says what a quarantined replica must say, and nothing else.
#[track_caller]
fn check_quarantined(cluster: &Cluster, id: u32) {
    let replica = cluster.replica(id);
    assert!(replica.get("/readyz").expect_problem(Code::Quarantined).detail.contains("a majority"));
    replica.try_sql("shop", "SELECT n FROM counter", json!([])).expect_problem(Code::Quarantined);
    replica.try_sql("shop", "UPDATE counter SET n = 0", json!([])).expect_problem(Code::Quarantined);
    replica.get("/v1/db?level=stale").expect_problem(Code::Quarantined);
    replica.put("/v1/db/other/file", b"").expect_problem(Code::Quarantined);
    assert!(replica.get("/metrics").expect(200).text().contains("\nd3b_quarantined 1\n"));
    assert!(replica.said().contains("ERROR") && replica.said().contains("is quarantined"));
}

#[test]
fn a_replica_that_differs_from_the_majority_is_quarantined_and_stays_so() {
    let mut cluster = counting(trusting());
    let odd = cluster.follower();
    stop(&mut cluster, odd);
    let file = shop_file(&cluster, odd);
    let connection = rusqlite::Connection::open(&file).expect("a database");
    assert_eq!(connection.execute("UPDATE counter SET n = 11", []).expect("it can be written"), 1);
    drop(connection);
    cluster.replica_mut(odd).start_ready();
    let others: Vec<u32> = cluster.ids().into_iter().filter(|id| *id != odd).collect();
    count_up(&cluster, others[0]);
    wait_quarantined(&cluster, odd);
    check_quarantined(&cluster, odd);
    for id in &others {
        cluster.replica(*id).post("/v1/admin/rebuild", &json!({})).expect_problem(Code::Precondition);
    }
    // The others go on, whichever of them led, and a restart of the odd one changes nothing.
    count_up(&cluster, others[1]);
    cluster.replica_mut(odd).kill();
    cluster.replica_mut(odd).start();
    wait_quarantined(&cluster, odd);
    check_quarantined(&cluster, odd);
    for id in &others {
        assert_eq!(cluster.replica(*id).value("shop", "SELECT n FROM counter"), 12);
    }
    // It has no vote any more: without one of the others nobody decides.
    cluster.replica_mut(others[0]).kill();
    cluster.replica(others[1]).wait_no_quorum();
    // With the others' data it is one of them again.
    cluster.replica_mut(others[0]).start_ready();
    cluster.replica(odd).post("/v1/admin/rebuild", &json!({})).expect(202);
    cluster.replica_mut(odd).wait_ready();
    assert_eq!(cluster.replica(odd).value("shop", "SELECT n FROM counter"), 12);
    count_up(&cluster, odd);
    wait_healed(&cluster);
    cluster.assert_same_everywhere();
}

#[test]
fn a_replica_that_differs_is_rebuilt_by_itself_if_so_configured() {
    let mut cluster = counting(watchful().flag("--repair-auto", "true"));
    let odd = cluster.follower();
    stop(&mut cluster, odd);
    replace(&shop_file(&cluster, odd), b"precious", b"Precious");
    // It may be quarantined before it is ready.
    cluster.replica_mut(odd).start();
    wait_until("it is quarantined", PATIENCE, || cluster.replica(odd).said().contains("is quarantined"));
    cluster.replica_mut(odd).wait_ready();
    assert_eq!(cluster.replica(odd).value("shop", "SELECT word FROM counter"), "precious");
    wait_healed(&cluster);
    count_up(&cluster, odd);
    cluster.assert_same_everywhere();
}

#[test]
fn a_leader_that_differs_is_quarantined_and_another_one_leads() {
    let mut cluster = counting(trusting());
    let odd = cluster.leader();
    for id in cluster.ids() {
        stop(&mut cluster, id);
    }
    let connection = rusqlite::Connection::open(shop_file(&cluster, odd)).expect("a database");
    connection.execute("UPDATE counter SET n = 11", []).expect("it can be written");
    drop(connection);
    cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).start());
    cluster.wait_ready();
    count_up(&cluster, odd);
    wait_quarantined(&cluster, odd);
    let others: Vec<u32> = cluster.ids().into_iter().filter(|id| *id != odd).collect();
    cluster.leader_among(&others);
    count_up(&cluster, others[0]);
    assert_eq!(cluster.replica(others[1]).value("shop", "SELECT n FROM counter"), 12);
}

#[test]
fn where_no_majority_agrees_nobody_is_quarantined_and_all_say_so() {
    let mut cluster = counting(Options { replicas: 2, ..trusting() });
    stop(&mut cluster, 2);
    let connection = rusqlite::Connection::open(shop_file(&cluster, 2)).expect("a database");
    connection.execute("UPDATE counter SET n = 11", []).expect("it can be written");
    drop(connection);
    cluster.replica_mut(2).start_ready();
    count_up(&cluster, 1);
    for id in cluster.ids() {
        wait_until("it says so", PATIENCE, || cluster.replica(id).said().contains("no majority of them agrees"));
        assert!(cluster.replica(id).is_ready());
    }
}

/// SQLite sees nothing wrong with a row that says something else.
#[test]
fn a_row_that_the_disk_has_changed_is_found_without_being_asked_for() {
    let mut cluster = counting(watchful());
    let odd = cluster.follower();
    stop(&mut cluster, odd);
    replace(&shop_file(&cluster, odd), b"precious", b"Precious");
    // It may be quarantined before it is ready.
    cluster.replica_mut(odd).start();
    wait_quarantined(&cluster, odd);
    check_quarantined(&cluster, odd);
    let healthy = cluster.ids().into_iter().find(|id| *id != odd).expect("there are three");
    count_up(&cluster, healthy);
}

#[test]
fn a_database_whose_structure_is_broken_is_found_and_served_no_more() {
    let mut cluster = counting(watchful());
    let replica = cluster.replica(1);
    replica.sql("shop", "CREATE TABLE big(x)", json!([]));
    let rows = "INSERT INTO big WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000) SELECT 'filling ' || i FROM n";
    replica.sql("shop", rows, json!([]));
    let damaged = cluster.follower();
    stop(&mut cluster, damaged);
    let file = shop_file(&cluster, damaged);
    let mut bytes = std::fs::read(&file).expect("the database's file");
    // A page in the midst of the large table's rows.
    let row = b"filling 1000";
    let at = bytes.windows(row.len()).position(|window| window == row).expect("it is in the file") / 4096 * 4096;
    bytes[at..at + 64].fill(0xa5);
    std::fs::write(&file, bytes).expect("the file can be written");
    cluster.replica_mut(damaged).start_ready();
    let replica = cluster.replica(damaged);
    wait_until("the database is served no more", PATIENCE, || {
        let answer = replica.try_sql("shop", "SELECT n FROM counter", json!([]));
        answer.status == 503 && answer.problem().code == Code::DatabaseFenced
    });
    assert!(replica.said().contains("a database is damaged"));
    assert!(replica.is_ready(), "the replica has other databases, and its vote");
    let healthy = cluster.ids().into_iter().find(|id| *id != damaged).expect("there are three");
    count_up(&cluster, healthy);

    // An operator sees it, and has it repaired without having to force anything.
    let d3bctl = |words: &[&str]| {
        let mut command = d3bctl(cluster.directory());
        command.args(["-e", &cluster.endpoints().join(","), "-o", "table"]).args(words).output().expect("it was built")
    };
    let shown = d3bctl(&["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("a database is damaged: d3bctl cluster rebuild"), "{shown}");
    assert_eq!(replica.cluster_info().damaged.len(), 1);
    assert!(cluster.replica(healthy).cluster_info().damaged.is_empty());
    let done = d3bctl(&["cluster", "rebuild"]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains(&format!("replica {damaged} is being rebuilt")), "{said}");
    // It listens anew when it starts again.
    wait_until("a peer's databases are here", PATIENCE, || replica.said().contains("installed a snapshot"));
    wait_until("it is ready", PATIENCE, || replica.is_ready());
    assert_eq!(replica.value("shop", "SELECT n FROM counter"), 11);
    assert_eq!(replica.value("shop", "SELECT count(*) FROM big"), 2000);
    assert!(replica.cluster_info().damaged.is_empty());
    let again = d3bctl(&["cluster", "rebuild"]);
    assert_eq!(again.status.code(), Some(6), "{}", String::from_utf8_lossy(&again.stderr));
    cluster.assert_same_everywhere();
}

#[test]
fn a_file_that_the_disk_has_changed_is_replaced_by_a_peers() {
    let mut cluster = counting(watchful());
    let files: Vec<Vec<u8>> = (0..2).map(|seed| Noise::new(seed, 200_000).bytes()).collect();
    for (index, bytes) in files.iter().enumerate() {
        cluster.replica(1).put(&format!("/v1/db/shop/media/{index}"), bytes).expect(201);
    }
    let damaged = cluster.follower();
    let digests: Vec<Digest> = files.iter().map(|bytes| Digest::of(bytes)).collect();
    digests.iter().for_each(|digest| cluster.replica(damaged).wait_for_blob(digest));
    let places: Vec<PathBuf> = digests.iter().map(|digest| cluster.replica(damaged).blob(digest)).collect();
    stop(&mut cluster, damaged);
    let mut wrong = files[0].clone();
    wrong[123_456] ^= 4;
    std::fs::write(&places[0], wrong).expect("the blob's file");
    // And one that ends too soon.
    std::fs::write(&places[1], &files[1][..1_000]).expect("the blob's file");
    cluster.replica_mut(damaged).start();
    for (place, bytes) in places.iter().zip(&files) {
        let whole = || std::fs::read(place).is_ok_and(|found| found == *bytes);
        wait_until("it is whole again", PATIENCE, whole);
        assert!(place.with_extension("damaged").exists(), "what was left of it can be looked at");
    }
}

/// What is damaged below what the databases hold durably is not needed: the replica goes on, and says so.
#[test]
fn a_damaged_record_of_the_log_is_found_without_being_asked_for() {
    let mut cluster = counting(watchful());
    for _ in 0..5 {
        count_up(&cluster, 1);
    }
    let damaged = cluster.follower();
    stop(&mut cluster, damaged);
    let log = rusqlite::Connection::open(cluster.replica(damaged).data_dir.join("log.sqlite3")).expect("the log");
    let sql = "UPDATE records SET entry = zeroblob(length(entry)) WHERE slot = 4";
    assert_eq!(log.execute(sql, []).expect("the log can be written"), 1);
    log.close().expect("it can be closed");
    cluster.replica_mut(damaged).start_ready();
    wait_until("it says so", PATIENCE, || cluster.replica(damaged).said().contains("it is cut above it"));
    wait_until("the log begins above it", PATIENCE, || {
        let answer = cluster.replica(damaged).get("/v1/log/4");
        answer.status == 410 && answer.problem().code == Code::SlotCompacted
    });
    cluster.replica(damaged).get("/v1/log/5").expect(200);
    assert!(cluster.replica(damaged).is_ready());
    count_up(&cluster, damaged);
}

/// `d3bd recover` of a replica that does not run.
fn recover(cluster: &Cluster, id: u32, yes: bool) -> Output {
    let mut command: Command = d3bd(cluster.directory());
    command.arg("recover").arg("--data-dir").arg(&cluster.replica(id).data_dir);
    if yes {
        command.arg("--yes");
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("d3bd");
    // An answer that does not come from a terminal is none.
    let _ = child.stdin.take().expect("a pipe").write_all(b"yes\n");
    child.wait_with_output().expect("it ends")
}

#[test]
fn a_sole_survivor_becomes_a_cluster_of_its_own_with_all_that_it_has() {
    let _ = programs();
    let mut cluster = counting(Options::default());
    for _ in 0..20 {
        count_up(&cluster, 1);
    }
    let old = cluster.replica(1).cluster_info();
    cluster.assert_same_everywhere();
    let survivor = cluster.follower();
    let lost: Vec<u32> = cluster.ids().into_iter().filter(|id| *id != survivor).collect();
    let in_use = recover(&cluster, survivor, true);
    assert_eq!(in_use.status.code(), Some(1), "it runs");
    lost.iter().for_each(|id| cluster.replica_mut(*id).kill());
    cluster.replica(survivor).wait_no_quorum();
    cluster.replica_mut(survivor).kill();

    let unasked = recover(&cluster, survivor, false);
    assert_eq!(unasked.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unasked.stderr).contains("--yes"));
    assert!(String::from_utf8_lossy(&unasked.stdout).contains("What may be lost"));
    let done = recover(&cluster, survivor, true);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

    cluster.replica_mut(survivor).start_ready();
    let replica = cluster.replica(survivor);
    assert_eq!(replica.value("shop", "SELECT n FROM counter"), 30);
    count_up(&cluster, survivor);
    let alone = replica.cluster_info();
    assert_ne!(alone.cluster, old.cluster);
    assert_eq!((alone.leader, alone.replicas.len()), (Some(survivor), 1));

    // Those who were taken for lost go on with the old cluster, and the two do not mix.
    lost.iter().for_each(|id| cluster.replica_mut(*id).start());
    lost.iter().for_each(|id| cluster.replica_mut(*id).wait_ready());
    count_up(&cluster, lost[0]);
    count_up(&cluster, lost[1]);
    count_up(&cluster, lost[1]);
    assert_eq!(cluster.replica(lost[0]).value("shop", "SELECT n FROM counter"), 33);
    assert_eq!(cluster.replica(lost[0]).cluster_info().cluster, old.cluster);
    cluster.replica_mut(survivor).kill();
    cluster.replica_mut(survivor).start_ready();
    assert_eq!(cluster.replica(survivor).value("shop", "SELECT n FROM counter"), 31);
    assert_eq!(cluster.replica(survivor).cluster_info().cluster, alone.cluster);
    let strangers = cluster.replica(survivor).cluster_info().replicas.len();
    assert_eq!(strangers, 1);
}
