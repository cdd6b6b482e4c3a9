//! Large files through small processes.

use std::fs::File;

use d3b::{Digest, Hasher};
use d3b_tests::cluster::d3bctl;
use d3b_tests::process::{forget_peak, peak_memory};
use d3b_tests::sample::Noise;
use d3b_tests::{Cluster, Http};
use serde_json::json;

const LARGE: u64 = 300 << 20;
/// How much more memory a replica may need for files of any size.
const GROWTH_MAX: u64 = 64 << 20;

/// Remembers what every replica needs now.
fn begin(cluster: &Cluster) -> Vec<u64> {
    let pids = cluster.ids().into_iter().map(|id| cluster.replica(id).pid());
    pids.map(|pid| {
        forget_peak(pid);
        peak_memory(pid)
    })
    .collect()
}

/// Demands that no replica has needed much more since.
#[track_caller]
fn check_growth(cluster: &Cluster, before: &[u64], what: &str) {
    for (id, before) in cluster.ids().into_iter().zip(before) {
        let growth = peak_memory(cluster.replica(id).pid()).saturating_sub(*before);
        println!("{what}: replica {id} needed {} MiB more than {} MiB", growth >> 20, before >> 20);
        assert!(growth < GROWTH_MAX, "{what}: replica {id} needed {} MiB more", growth >> 20);
    }
}

fn digest_of(path: &std::path::Path) -> Digest {
    let mut hasher = Hasher::new();
    let mut file = File::open(path).expect("the file");
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).expect("the file can be read") {
            0 => return hasher.finish(),
            length => hasher.update(&buffer[..length]),
        }
    }
}

#[test]
fn a_300_mb_media_file_and_a_300_mb_database_with_flat_memory() {
    let cluster = Cluster::start();
    let http = Http::new();
    cluster.create("films");
    cluster.replica(1).sql("films", "SELECT 1", json!([]));
    let film = Noise::new(300, LARGE);
    let digest = film.clone().digest();
    let before = begin(&cluster);

    let url = |id: u32| cluster.replica(id).url("/v1/db/films/media/film.mp4");
    http.put_reader(&url(1), LARGE, film).expect(201);
    check_growth(&cluster, &before, "storing media");
    for id in cluster.ids() {
        // One linearized query, then a plain GET, whether the bytes are there yet or not.
        let _ = cluster.replica(id).databases();
        let (status, body) = http.get_digest(&url(id));
        assert_eq!((status, body.length(), body.finish()), (200, LARGE, digest), "replica {id}");
    }
    check_growth(&cluster, &before, "fetching media");

    let path = cluster.directory().join("large.sqlite3");
    let connection = rusqlite::Connection::open(&path).expect("a database file");
    connection
        .execute_batch(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
             CREATE TABLE pages(id INTEGER PRIMARY KEY, body BLOB, note TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 78000)
             INSERT INTO pages SELECT i, randomblob(4000), 'page ' || i FROM n;
             CREATE INDEX pages_by_note ON pages(note);",
        )
        .expect("room for a large file");
    let sum = "SELECT count(*) || ' ' || sum(length(body)) || ' ' || max(note) FROM pages";
    let expected: String = connection.query_row(sum, [], |row| row.get(0)).expect("an answer");
    drop(connection);
    let size = std::fs::metadata(&path).expect("the file").len();
    assert!(size >= LARGE, "{size}");

    let before = begin(&cluster);
    let file = File::open(&path).expect("the file");
    http.put_reader(&cluster.replica(2).url("/v1/db/large/file?timeout=60s"), size, file).expect(201);
    check_growth(&cluster, &before, "uploading a database");
    for id in cluster.ids() {
        assert_eq!(cluster.replica(id).value("large", sum), expected, "replica {id}");
    }
    cluster.replica(1).sql("large", "UPDATE pages SET note = 'seen' WHERE id = 1", json!([]));
    check_growth(&cluster, &before, "using a large database");

    // The downloads of all replicas are the same, byte for byte.
    let downloads: Vec<(u64, Digest)> = cluster
        .ids()
        .into_iter()
        .map(|id| {
            let (status, body) = http.get_digest(&cluster.replica(id).url("/v1/db/large/file?timeout=60s"));
            assert_eq!(status, 200);
            (body.length(), body.finish())
        })
        .collect();
    assert!(downloads[0].0 >= LARGE && downloads[0].1 != digest_of(&path));
    check_growth(&cluster, &before, "downloading a database");
    cluster.assert_same_everywhere();
}

#[test]
fn a_200_mb_database_is_backed_up_and_restored_with_flat_memory() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let archive = place.path().join("all.d3b");
    let run = |cluster: &Cluster, words: &[&str]| {
        let mut command = d3bctl(cluster.directory());
        command.args(["-e", &cluster.endpoints().join(","), "--timeout", "600s"]).args(words).arg(&archive);
        let output = command.output().expect("d3bctl can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let cluster = Cluster::start();
    let path = place.path().join("large.sqlite3");
    let connection = rusqlite::Connection::open(&path).expect("a database file");
    connection
        .execute_batch(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
             CREATE TABLE pages(id INTEGER PRIMARY KEY, body BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
             INSERT INTO pages SELECT i, randomblob(4000) FROM n;",
        )
        .expect("room for a large file");
    drop(connection);
    let size = std::fs::metadata(&path).expect("the file").len();
    assert!(size >= 200_000_000, "{size}");
    let file = File::open(&path).expect("the file");
    Http::new().put_reader(&cluster.replica(1).url("/v1/db/large/file?timeout=60s"), size, file).expect(201);
    std::fs::remove_file(&path).expect("a file of ours");
    cluster.assert_same_everywhere();
    let before = begin(&cluster);
    run(&cluster, &["backup"]);
    check_growth(&cluster, &before, "backing up");
    drop(cluster);

    let fresh = Cluster::start();
    let before = begin(&fresh);
    run(&fresh, &["restore"]);
    for id in fresh.ids() {
        assert_eq!(fresh.replica(id).value("large", "SELECT count(*) FROM pages"), 50_000);
    }
    check_growth(&fresh, &before, "restoring");
    fresh.assert_same_everywhere();
}
