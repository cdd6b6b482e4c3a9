//! Disks that are full, fail, lie, are slow, tear what is written, and give back something else than was written.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use d3b::{Code, Digest};
use d3b_tests::faults::mounts::{Mount, own_mounts};
use d3b_tests::faults::needs::{self, are_met};
use d3b_tests::faults::preload::{Call, Fault, Faults, Rule};
use d3b_tests::faults::with_seeds;
use d3b_tests::recorder::{Keys, Recorder};
use d3b_tests::sample::Noise;
use d3b_tests::sim::random::Random;
use d3b_tests::wait::{PATIENCE, wait_for};
use d3b_tests::{Cluster, Options, wait_until};
use serde_json::json;

/// The files of the log.
const LOG: &str = "/log.sqlite3";
/// Those of databases, the catalogue among them.
const DATABASES: &str = "/databases/";
/// Media and uploaded files.
const BLOBS: &str = "/blobs/";

/// A cluster whose replicas can be made to fail; they are not started yet.
fn prepare() -> (Cluster, Vec<Faults>) {
    let mut cluster = Cluster::prepare(Options::default());
    let faults = cluster.ids().into_iter().map(|id| Faults::of(cluster.replica_mut(id))).collect();
    (cluster, faults)
}

fn start(cluster: &mut Cluster) {
    cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).start());
    cluster.wait_ready();
}

/// Lets clients work on a cluster whose replicas can be made to fail, and checks what they were told.
fn at_work(test: impl Fn(&mut Random, &mut Cluster, &[Faults], &Recorder)) {
    if !are_met(&[needs::PRELOAD]) {
        return;
    }
    with_seeds(|random| {
        let (mut cluster, faults) = prepare();
        start(&mut cluster);
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        test(random, &mut cluster, &faults, &recorder);
        recorder.wait_for_more(50);
        recorder.finish().verify(&cluster);
    });
}

fn faults_of(faults: &[Faults], id: u32) -> &Faults {
    &faults[id as usize - 1]
}

/// Waits until a replica ends by itself, as one does that must not go on, and says why.
#[track_caller]
fn wait_for_refusal(cluster: &mut Cluster, id: u32) {
    let replica = cluster.replica_mut(id);
    let status = replica.wait_for_end();
    assert!(status.code().is_some_and(|code| code != 0), "it stops by itself, and in order: {status}");
    let said = replica.said();
    assert!(said.contains("ERROR") && !said.contains("panicked"), "it says why: {said}");
}

#[test]
fn a_full_disk_stops_nobody_else_and_its_replica_comes_back() {
    if !are_met(&[needs::MOUNTS]) {
        return;
    }
    own_mounts();
    with_seeds(|random| {
        let mut cluster = Cluster::prepare(Options::default());
        let disks: Vec<Mount> =
            cluster.ids().into_iter().map(|id| Mount::tmpfs(&cluster.replica(id).data_dir, 64)).collect();
        start(&mut cluster);
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        for leads in [false, true] {
            recorder.wait_for_more(50);
            let victim = if leads { cluster.leader() } else { cluster.follower() };
            println!("the disk of replica {victim} is full (it leads: {leads})");
            let filling = disks[victim as usize - 1].fill();
            recorder.wait_for_more(100);
            // Whether it lives or has stopped itself: started anew on the full disk it works or says what is missing.
            cluster.replica_mut(victim).kill();
            cluster.replica_mut(victim).start();
            let ready = wait_for("it is ready, or has ended", PATIENCE, || {
                let ended = cluster.replica_mut(victim).has_ended();
                ended.map(|_| false).or_else(|| (cluster.replica(victim).leader().is_some()).then_some(true))
            });
            println!("on the full disk it {}", if ready { "works" } else { "does not start" });
            if !ready {
                let said = cluster.replica(victim).said().to_lowercase();
                let last: Vec<&str> = said.lines().rev().take(5).collect();
                assert!(last.iter().any(|line| line.contains("full") || line.contains("space")), "{last:?}");
            }
            std::fs::remove_file(filling).expect("a file of ours");
            // One that lives may still stop itself over what it met while the disk was full.
            cluster.revive(victim);
        }
        recorder.wait_for_more(50);
        recorder.finish().verify(&cluster);
        drop(disks);
    });
}

/// After a failed fsync the kernel may have dropped the pages, and the next fsync says that all is well.
#[test]
fn an_fsync_that_fails_once_and_then_succeeds_stops_the_replica() {
    at_work(|random, cluster, faults, recorder| {
        for path in [LOG, DATABASES] {
            recorder.wait_for_more(50);
            let victim = *random.pick(&cluster.ids());
            let rule = Rule { call: Call::Sync, path, skip: 0, count: 1, fault: Fault::Fail(libc::EIO) };
            faults_of(faults, victim).set(rule);
            wait_for_refusal(cluster, victim);
            assert_eq!(faults_of(faults, victim).hits(), 1, "it has tried again");
            recorder.wait_for_more(50);
            faults_of(faults, victim).clear();
            cluster.replica_mut(victim).start();
        }
        cluster.wait_ready();
    });
}

#[test]
fn a_file_whose_fsync_fails_is_not_acknowledged() {
    if !are_met(&[needs::PRELOAD]) {
        return;
    }
    let (mut cluster, faults) = prepare();
    start(&mut cluster);
    cluster.create("shop");
    // Where it comes in; and where the majority that must hold it fails.
    for failing in [vec![1], vec![2, 3]] {
        let rule = Rule { call: Call::Sync, path: BLOBS, skip: 0, count: 0, fault: Fault::Fail(libc::EIO) };
        failing.iter().for_each(|id| faults_of(&faults, *id).set(rule));
        let bytes = Noise::new(u64::from(failing[0]), 100_000).bytes();
        let answer = cluster.replica(1).put("/v1/db/shop/media/film.mp4?timeout=2s", &bytes);
        assert!(answer.status >= 500, "{} {}", answer.status, answer.text());
        assert!(failing.iter().all(|id| faults_of(&faults, *id).hits() > 0));
        faults.iter().for_each(Faults::clear);
        for id in cluster.ids() {
            if cluster.replica_mut(id).has_ended().is_some() {
                cluster.replica_mut(id).start_ready();
            }
            cluster
                .replica(id)
                .get("/v1/db/shop/media/film.mp4?level=linearizable")
                .expect_problem(Code::MediaNotFound);
        }
    }
    let bytes = Noise::new(9, 100_000).bytes();
    cluster.replica(1).put("/v1/db/shop/media/film.mp4", &bytes).expect(201);
    cluster.assert_same_everywhere();
}

/// A disk that takes its time for one replica, the leader first, and one whose syncs only say that they were done: as
/// long as no power is cut, a kill must lose nothing by that.
#[test]
fn slow_and_lying_syncs_keep_histories_linearizable() {
    at_work(|_, cluster, faults, recorder| {
        let slow = Rule { call: Call::Sync, path: LOG, skip: 0, count: 0, fault: Fault::Delay(400_000) };
        recorder.wait_for_more(50);
        let leader = cluster.leader();
        faults_of(faults, leader).set(slow);
        recorder.wait_for_more(50);
        faults_of(faults, leader).clear();
        let lie = Rule { call: Call::Sync, path: "/", skip: 0, count: 0, fault: Fault::Lie };
        faults.iter().for_each(|faults| faults.set(lie));
        for _ in 0..2 {
            recorder.wait_for_more(50);
            println!("kill all");
            cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).kill());
            start(cluster);
        }
    });
}

#[test]
fn a_write_that_a_kill_tears_is_recovered_from() {
    at_work(|random, cluster, faults, recorder| {
        for path in [LOG, DATABASES, BLOBS, LOG, DATABASES] {
            let victim = *random.pick(&cluster.ids());
            let skip = u32::try_from(random.below(20)).expect("a small number");
            faults_of(faults, victim).set(Rule { call: Call::Write, path, skip, count: 1, fault: Fault::TearAndKill });
            wait_until("a write is torn", PATIENCE, || cluster.replica_mut(victim).has_ended().is_some());
            faults_of(faults, victim).clear();
            recorder.wait_for_more(20);
            cluster.replica_mut(victim).start_ready();
        }
    });
}

/// Errors that only one replica meets, on each of its files: it may stop or go on, the others do go on.
#[test]
fn errors_of_one_disk_keep_histories_linearizable() {
    at_work(|random, cluster, faults, recorder| {
        let cases = [
            (Call::Write, LOG, Fault::Tear(libc::EIO)),
            (Call::Write, LOG, Fault::Fail(libc::ENOSPC)),
            (Call::Write, DATABASES, Fault::Tear(libc::ENOSPC)),
            (Call::Write, DATABASES, Fault::Fail(libc::EIO)),
            (Call::Write, BLOBS, Fault::Fail(libc::ENOSPC)),
            (Call::Rename, BLOBS, Fault::Fail(libc::EIO)),
            (Call::Open, BLOBS, Fault::Fail(libc::EMFILE)),
        ];
        for (call, path, fault) in cases {
            let victim = *random.pick(&cluster.ids());
            let skip = u32::try_from(random.below(10)).expect("a small number");
            faults_of(faults, victim).set(Rule { call, path, skip, count: 3, fault });
            faults_of(faults, victim).wait_for_hit();
            recorder.wait_for_more(30);
            faults_of(faults, victim).clear();
            cluster.revive(victim);
        }
    });
}

#[test]
fn a_replica_out_of_file_descriptors_keeps_histories_linearizable() {
    with_seeds(|random| {
        let mut cluster = Cluster::start();
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        for leads in [true, false] {
            recorder.wait_for_more(50);
            let victim = if leads { cluster.leader() } else { cluster.follower() };
            // All that it has by now may stay open; what closes cannot be opened again.
            println!("replica {victim} may open no more files (it leads: {leads})");
            cluster.replica(victim).process().limit_files(16);
            recorder.wait_for_more(100);
            if cluster.replica_mut(victim).has_ended().is_none() {
                cluster.replica(victim).process().limit_files(u64::MAX);
            }
            cluster.revive(victim);
        }
        recorder.wait_for_more(50);
        recorder.finish().verify(&cluster);
    });
}

/// Flips a bit of a file.
fn flip(path: &Path, at: u64, bit: u8) {
    let file = File::options().read(true).write(true).open(path).expect("a file of the replica");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("within the file");
    file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("within the file");
}

/// How much of a file there is without the zeros at its end, which is where a write-ahead log has room yet.
fn written(bytes: &[u8]) -> u64 {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// A replica's log, while the replica is down.
fn open_log(cluster: &Cluster, id: u32) -> rusqlite::Connection {
    rusqlite::Connection::open(cluster.replica(id).data_dir.join("log.sqlite3")).expect("the log")
}

/// The others go on without the record's owner; neither a peer nor a client is given what it has become.
#[test]
fn a_flipped_bit_in_a_log_record_is_never_given_to_anybody() {
    with_seeds(|random| {
        let mut cluster = Cluster::start();
        cluster.create("shop");
        cluster.replica(1).sql("shop", "CREATE TABLE t(n, filling)", json!([]));
        let behind = cluster.follower();
        cluster.replica_mut(behind).kill();
        let first = *random.pick(&cluster.live());
        for n in 0..20 {
            cluster.replica(first).sql("shop", "INSERT INTO t VALUES(?, zeroblob(100))", json!([n]));
        }
        let damaged = cluster.leader_among(&cluster.live());
        let slot = cluster.replica(damaged).cluster_info().commit - random.below(10);
        // Applied here long ago: only somebody who is behind asks for it.
        cluster.live().into_iter().for_each(|id| cluster.replica(id).ask_to_stop());
        cluster.live().into_iter().for_each(|id| {
            let _ = cluster.replica_mut(id).wait_for_end();
        });
        let connection = open_log(&cluster, damaged);
        let entry: Vec<u8> = connection
            .query_row("SELECT entry FROM records WHERE slot = ?", [slot], |row| row.get(0))
            .expect("the record");
        let (at, bit) = (random.below(entry.len() as u64) as usize, random.below(8));
        println!("replica {damaged}, slot {slot}: bit {bit} of byte {at} of {} is flipped", entry.len());
        let mut wrong = entry;
        wrong[at] ^= 1 << bit;
        let changed = connection.execute("UPDATE records SET entry = ? WHERE slot = ?", (wrong, slot));
        assert_eq!(changed.expect("the log can be written"), 1);
        connection.close().expect("it can be closed");

        for id in cluster.ids() {
            cluster.replica_mut(id).start();
        }
        // It may refuse to start, stop when the record is asked for, follow the others without ever needing it, or have
        // cut it away, when the search for damage found it and no database needed it any more.
        let healthy: Vec<u32> = cluster.ids().into_iter().filter(|id| *id != damaged).collect();
        wait_until("the others go on", PATIENCE, || {
            let _ = cluster.live().contains(&damaged) && cluster.replica_mut(damaged).has_ended().is_some();
            healthy.iter().all(|id| cluster.replica(*id).is_ready())
        });
        for id in &healthy {
            assert_eq!(cluster.replica(*id).value("shop", "SELECT count(*) || ' ' || sum(n) FROM t"), "20 190");
        }
        if cluster.live().contains(&damaged) {
            let url = cluster.replica(damaged).url(&format!("/v1/log/{slot}"));
            let told = cluster.http.try_send("GET", &url, &[], ureq::SendBody::none());
            assert!(
                told.is_err() || told.is_ok_and(|told| told.status == 410 || told.status >= 500),
                "slot {slot} is told as if it were fine"
            );
        }
    });
}

#[test]
fn flipped_bits_in_the_files_of_a_log_are_found_or_do_no_harm() {
    with_seeds(|random| {
        let mut cluster = Cluster::start();
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        for _ in 0..4 {
            recorder.wait_for_more(50);
            let victim = *random.pick(&cluster.ids());
            cluster.replica_mut(victim).kill();
            let log = cluster.replica(victim).data_dir.join("log.sqlite3");
            let saved = save(&log);
            // The database, and what was not moved into it yet.
            let (file, bytes) = random.pick(&saved);
            for _ in 0..4 {
                let (at, bit) = (random.below(written(bytes)), random.below(8) as u8);
                println!("replica {victim}: bit {bit} of byte {at} of {} in {}", written(bytes), file.display());
                flip(file, at, bit);
            }
            cluster.replica_mut(victim).start();
            let refused = wait_for("it refuses its log, or goes on with it", PATIENCE, || {
                let replica = cluster.replica_mut(victim);
                match replica.has_ended() {
                    Some(status) => {
                        assert!(status.code().is_some(), "replica {victim} stops in order: {status}");
                        Some(true)
                    }
                    None => replica.leader().map(|_| false),
                }
            });
            println!("replica {victim} {}", if refused { "refuses its log" } else { "goes on" });
            recorder.wait_for_more(50);
            if refused {
                // With its own log again, for others are damaged next.
                for beside in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(format!("{}{beside}", log.display()));
                }
                saved.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).expect("a file of the replica"));
                cluster.replica_mut(victim).start();
            } else if cluster.replica_mut(victim).has_ended().is_some() {
                // It has met the damage only now, and stays away.
                return;
            }
        }
        wait_until("all are ready, or have stopped", PATIENCE, || {
            cluster.live().into_iter().all(|id| {
                let ended = cluster.replica_mut(id).has_ended();
                assert!(ended.is_none_or(|status| status.code().is_some()), "replica {id} stops in order: {ended:?}");
                ended.is_some() || cluster.replica(id).leader().is_some()
            })
        });
        recorder.finish().verify(&cluster);
    });
}

/// The end of a write-ahead log that cannot be read looks like one that was never written. What the databases have
/// applied tells that it was: the replica must not vote as if it had accepted nothing there.
#[test]
fn a_log_that_has_lost_its_end_is_refused() {
    let mut cluster = Cluster::start();
    cluster.create("shop");
    cluster.replica(1).sql("shop", "CREATE TABLE t(n)", json!([]));
    for n in 0..20 {
        cluster.replica(1).sql("shop", "INSERT INTO t VALUES(?)", json!([n]));
    }
    let victim = cluster.follower();
    cluster.replica(victim).value("shop", "SELECT count(*) FROM t");
    cluster.replica_mut(victim).kill();
    let wal = cluster.replica(victim).data_dir.join("log.sqlite3-wal");
    let size = written(&std::fs::read(&wal).expect("what was not moved into the database"));
    flip(&wal, size / 2, 3);
    cluster.replica_mut(victim).start();
    let status = cluster.replica_mut(victim).wait_for_end();
    assert!(status.code().is_some_and(|code| code != 0), "it refuses, in order: {status}");
    assert!(cluster.replica(victim).said().contains("lost"), "{}", cluster.replica(victim).said());
    let healthy = cluster.live()[0];
    cluster.replica_mut(healthy).wait_ready();
    assert_eq!(cluster.replica(healthy).value("shop", "SELECT count(*) FROM t"), 20);
}

/// A file of SQLite's and those beside it.
fn save(database: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let beside = ["", "-wal"].map(|suffix| PathBuf::from(format!("{}{suffix}", database.display())));
    let read = beside.into_iter().filter_map(|path| Some((path.clone(), std::fs::read(&path).ok()?)));
    read.filter(|(_, bytes)| written(bytes) > 0).collect()
}

#[test]
fn a_flipped_bit_in_a_blob_is_never_served_as_if_it_were_fine() {
    with_seeds(|random| {
        let cluster = Cluster::start();
        cluster.create("shop");
        let noise = Noise::new(random.word(), 1_000_000);
        let (digest, bytes) = (noise.clone().digest(), noise.bytes());
        cluster.replica(1).put("/v1/db/shop/media/film.mp4", &bytes).expect(201);
        for id in cluster.ids() {
            cluster.replica(id).wait_for_blob(&digest);
        }
        let damaged = *random.pick(&cluster.ids());
        let (at, bit) = (random.below(1_000_000), random.below(8) as u8);
        println!("replica {damaged}: bit {bit} of byte {at} is flipped");
        flip(&cluster.replica(damaged).blob(&digest), at, bit);
        for id in cluster.ids() {
            let url = cluster.replica(id).url("/v1/db/shop/media/film.mp4?level=linearizable");
            // A broken connection or an error is as good as the right bytes; other bytes under 200 are not.
            if let Ok(answer) = cluster.http.try_send("GET", &url, &[], ureq::SendBody::none()) {
                assert!(
                    answer.status >= 500 || answer.body == bytes,
                    "replica {id} serves other bytes under {}",
                    answer.status
                );
            }
        }
        // A peer that fetches it from there does not take it for the right one.
        let other = cluster.ids().into_iter().find(|id| *id != damaged).expect("there are three");
        std::fs::remove_file(cluster.replica(other).blob(&digest)).expect("the blob's file");
        let answer = cluster.replica(other).get("/v1/db/shop/media/film.mp4?level=linearizable").expect(200);
        assert!(Digest::of(&answer.body) == digest, "replica {other} serves other bytes");
    });
}

/// What SQLite cannot read, nobody is told as rows; the other replicas and the other databases are as they were.
#[test]
fn a_damaged_database_file_is_not_served() {
    with_seeds(|random| {
        let mut cluster = Cluster::start();
        cluster.create("shop");
        cluster.create("other");
        for db in ["shop", "other"] {
            cluster.replica(1).sql(db, "CREATE TABLE t(n INTEGER PRIMARY KEY, filling TEXT)", json!([]));
            let fill = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 2000) \
                        INSERT INTO t SELECT i, hex(randomblob(50)) FROM c";
            cluster.replica(1).sql(db, fill, json!([]));
        }
        let sum = "SELECT count(*) || ' ' || sum(length(filling)) FROM t";
        let right = cluster.replica(1).value("shop", sum);
        let shop = cluster.replica(1).databases().into_iter().find(|info| info.name == "shop").expect("it is there");
        let damaged = *random.pick(&cluster.ids());
        cluster.replica(damaged).ask_to_stop();
        cluster.replica_mut(damaged).wait_for_end();
        let path = cluster.replica(damaged).data_dir.join("databases").join(format!("{}.sqlite3", shop.id));
        // Pages that are still in the write-ahead log would be read from there, over whatever is in the file.
        let database = rusqlite::Connection::open(&path).expect("the database");
        let truncated = database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        assert_eq!(truncated, Ok(0), "nobody else has it open");
        drop(database);
        let file = File::options().read(true).write(true).open(&path).expect("the database");
        let pages = file.metadata().expect("it is open").len() / 4096;
        assert!(pages > 20, "{pages} pages");
        for page in pages / 2..pages / 2 + 10 {
            file.write_all_at(&Noise::new(random.word(), 4096).bytes(), page * 4096).expect("within the file");
        }
        println!("replica {damaged}: ten of {pages} pages are noise");
        cluster.replica_mut(damaged).start_ready();
        for id in cluster.ids() {
            let answer = cluster.replica(id).try_sql("shop", sum, json!([]));
            if id == damaged {
                assert!(answer.status >= 500, "{} {}", answer.status, answer.text());
            } else {
                assert_eq!(answer.expect(200).json::<serde_json::Value>()["rows"][0][0], right);
            }
            assert_eq!(cluster.replica(id).value("other", sum), right, "the other database, on replica {id}");
        }
        // Writes reach it too; it must not take the others with it.
        let healthy = cluster.ids().into_iter().find(|id| *id != damaged).expect("there are three");
        cluster.replica(healthy).sql("shop", "UPDATE t SET filling = 'x'", json!([]));
        cluster.replica(healthy).sql("other", "UPDATE t SET filling = 'x'", json!([]));
        assert_eq!(cluster.replica(healthy).value("shop", sum), "2000 2000");
    });
}

#[test]
fn the_library_of_faults_is_loaded_and_does_what_it_is_told() {
    if !are_met(&[needs::PRELOAD]) {
        return;
    }
    let (mut cluster, faults) = prepare();
    start(&mut cluster);
    cluster.create("shop");
    let seen = |random: &mut Random| {
        let id = *random.pick(&[1, 2, 3]);
        let rule = Rule { call: Call::Sync, path: LOG, skip: 0, count: 0, fault: Fault::Delay(1) };
        faults_of(&faults, id).set(rule);
        cluster.replica(id).sql("shop", "CREATE TABLE IF NOT EXISTS t(n)", json!([]));
        faults_of(&faults, id).wait_for_hit();
    };
    seen(&mut Random::new(1));
    seen(&mut Random::new(2));
}
