//! How long a start takes: makes a data directory with a long log and a large database, and measures the time from the
//! start of a replica on it until it is ready, after a clean stop and after a kill.
//!
//! `cargo run --release -p d3bd --example restart -- DIRECTORY [RECORDS] [MEBIBYTES]`, where `d3bd` was built before in the
//! same profile. What is in the directory is used, if there is something.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use d3b::{
    Arguments, CatalogueChange, ClusterId, DatabaseName, Digest, DiskId, FileId, IdempotencyKey, InsertMode,
    KeyedOperation, Operation, ReplicaId, Slot, Statement,
};
use d3b_engine::command::{self, Origin};
use d3b_engine::{EXECUTION, Engine, Options};
use d3b_paxos::PersistBatch;
use d3b_paxos::types::{Ballot, Configuration, Entry, Member, Payload, PersistId, Record, Stamp};
use d3bd::entries::log_entry;
use d3bd::media::BlobStore;

const LISTEN: &str = "127.0.0.1:18055";
const PEER: &str = "127.0.0.1:18124";
const DISK: DiskId = DiskId([3; 16]);
/// How many records share a batch, and a call of the engine.
const BATCH: u64 = 1_000;
/// So many entries are not durable in the databases: a kill between two checkpoints leaves as many at most.
const NOT_DURABLE: u64 = 10_000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().expect("the directory is named"));
    let number = |text: Option<String>, default| text.map_or(default, |text| text.parse().expect("it is a number"));
    let records = number(arguments.next(), 1_000_000);
    let mebibytes = number(arguments.next(), 1_024);
    if !directory.join("log.sqlite3").exists() {
        let began = Instant::now();
        make(&directory, records, mebibytes);
        println!("made {records} records and a database of {mebibytes} MiB in {:.1?}", began.elapsed());
    }
    for what in ["as it was made", "after a kill", "after a kill", "after a clean stop", "after a clean stop"] {
        let (child, took) = start(&directory);
        println!("ready in {took:.3?}, {what}");
        stop(child, if what == "after a kill" { "TERM" } else { "KILL" });
    }
}

fn operation(slot: u64, mebibytes: u64) -> Operation {
    let name = |text: &str| DatabaseName::new(text).expect("it is a name");
    let sql = |db: &str, text: &str| Operation::Sql {
        db: name(db),
        statements: vec![Statement { sql: text.to_owned(), arguments: Arguments::default(), expect: None }],
        deferred_foreign_keys: false,
        media: None,
    };
    let create = |text: &str| {
        Operation::Catalogue(CatalogueChange::Upload {
            name: name(text),
            owner: String::new(),
            file_id: FileId::new(text).expect("it is a file id"),
            blob: None,
            mode: InsertMode::CreateOnly,
        })
    };
    match slot {
        1 => create("large"),
        2 => create("small"),
        3 => sql("large", "CREATE TABLE t(x)"),
        4 => sql("small", "CREATE TABLE t(x)"),
        slot if slot <= 4 + mebibytes => sql("large", "INSERT INTO t VALUES(zeroblob(1048576))"),
        _ => sql("small", "INSERT INTO t VALUES(random())"),
    }
}

fn record(slot: u64, mebibytes: u64, now_ms: u64) -> Record {
    let keyed = KeyedOperation {
        key: IdempotencyKey::new(format!("key {slot}")).expect("it is a key"),
        request: Digest::of(&slot.to_le_bytes()),
        operation: operation(slot, mebibytes),
    };
    let origin = Origin { replica: ReplicaId(1), incarnation: 1, sequence: slot };
    let payload = Payload::Command(Bytes::from(command::encode(&command::Command { origin, keyed })));
    // An hour of writes.
    let stamp = Stamp { time_ms: now_ms - 3_600_000 + slot, seed: slot, execution: EXECUTION };
    Record { slot: Slot(slot), ballot: Ballot { round: 1, replica: ReplicaId(1) }, entry: Entry { stamp, payload } }
}

fn make(directory: &Path, records: u64, mebibytes: u64) {
    let (tell, durable) = std::sync::mpsc::channel();
    let on_durable = Box::new(move |result| drop(tell.send(result)));
    let opened = d3bd::log::open(directory, ReplicaId(1), DISK, on_durable).expect("the log opens");
    let members = BTreeMap::from([(ReplicaId(1), Member::voter(DISK, PEER.to_owned()))]);
    let configuration = Configuration::founding(ClusterId([9; 16]), members);
    opened.log.persist_configuration(configuration, |result| drop(result.expect("the log is written")));
    let mut engine = Engine::open(&directory.join("databases"), Options::default()).expect("the engine opens");
    let blobs = BlobStore::open(&directory.join("blobs")).expect("the blob store opens");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("the clock is right").as_millis() as u64;
    let mut next = 1;
    while next <= records {
        let end = (next + BATCH - 1).min(records);
        let batch: Vec<Record> = (next..=end).map(|slot| record(slot, mebibytes, now)).collect();
        let promised = Some(Ballot { round: 1, replica: ReplicaId(1) });
        let persist = PersistBatch { id: PersistId(next), promised, records: batch.clone(), configuration: None };
        opened.log.persist(persist);
        durable.recv().expect("the writer lives").expect("the log is written");
        let entries: Vec<_> = batch.iter().map(log_entry).collect();
        assert_eq!(engine.apply(&entries, &blobs).expect("the engine applies").applied.len(), entries.len());
        if end % NOT_DURABLE < BATCH && end + NOT_DURABLE <= records {
            engine.checkpoint().expect("the databases are synced");
        }
        next = end + 1;
    }
    opened.log.close();
}

fn start(directory: &Path) -> (Child, Duration) {
    let example = std::env::current_exe().expect("this program has a path");
    let program = example.parent().and_then(Path::parent).expect("examples lie beside programs").join("d3bd");
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(["--id", "1", "--listen", LISTEN, "--peer-listen", PEER, "--log-level", "warn", "--data-dir"])
        .arg(directory)
        .stdout(Stdio::null())
        .spawn()
        .expect("d3bd starts");
    let url = format!("http://{LISTEN}/readyz");
    while ureq::get(&url).call().is_err() {
        assert!(began.elapsed() < Duration::from_secs(300), "it is not ready after five minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    // Another one may have answered.
    assert!(child.try_wait().is_ok_and(|ended| ended.is_none()), "the replica has ended");
    (child, began.elapsed())
}

fn stop(mut child: Child, signal: &str) {
    let status = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "the signal is sent");
    child.wait().expect("it ends");
}
