//! The way of a snapshot from one replica's files into another's, and crashes on that way.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use d3b::{
    Arguments, BlobReference, CatalogueChange, ClusterId, DatabaseName, Digest, DiskId, FileId, IdempotencyKey,
    InsertMode, KeyedOperation, Operation, ReplicaId, Slot, Statement,
};
use d3b_engine::command::{self, Command, Origin};
use d3b_engine::{EXECUTION, Engine, Options};
use d3b_paxos::Storage as _;
use d3b_paxos::types::{Ballot, Configuration, Entry, Epoch, Member, Payload, PersistId, Record, Stamp};
use tempfile::TempDir;

use super::install::install_by_steps;
use super::*;
use crate::catch_up::Fetching;
use crate::driver::Event;
use crate::driving::Events;
use crate::entries::log_entry;
use crate::log::{self, Opened};
use crate::media::{BlobStore, Connect, Fetcher};

const DISK: DiskId = DiskId([3; 16]);

fn operations() -> Vec<Operation> {
    let name = |text: &str| DatabaseName::new(text).unwrap();
    let upload = |text: &str| {
        Operation::Catalogue(CatalogueChange::Upload {
            name: name(text),
            owner: String::new(),
            file_id: FileId::new(text).unwrap(),
            blob: None,
            mode: InsertMode::Replace,
        })
    };
    let sql = |db: &str, text: &str| Operation::Sql {
        db: name(db),
        statements: vec![Statement { sql: text.to_owned(), arguments: Arguments::default(), expect: None }],
        deferred_foreign_keys: false,
        media: None,
    };
    let mut all = vec![upload("a"), upload("b"), sql("a", "CREATE TABLE t(x)"), sql("b", "CREATE TABLE t(x)")];
    for round in 0..8 {
        all.push(sql("a", "INSERT INTO t VALUES(random())"));
        all.push(sql("b", "INSERT INTO t SELECT count(*) FROM t"));
        if round % 3 == 1 {
            all.extend([upload("a"), sql("a", "CREATE TABLE t(x)")]);
        }
    }
    all
}

/// The log that every replica holds.
fn records() -> Vec<Record> {
    let record = |(slot, operation): (u64, Operation)| {
        let keyed = KeyedOperation {
            key: IdempotencyKey::new(format!("key {slot}")).unwrap(),
            request: Digest::of(b""),
            operation,
        };
        let origin = Origin { replica: ReplicaId(1), incarnation: 1, sequence: slot };
        let payload = Payload::Command(Bytes::from(command::encode(&Command { origin, keyed })));
        let stamp = Stamp { time_ms: 1_700_000_000_000 + slot, seed: slot, execution: EXECUTION };
        Record { slot: Slot(slot), ballot: Ballot { round: 2, replica: ReplicaId(1) }, entry: Entry { stamp, payload } }
    };
    (1..).zip(operations()).map(record).collect()
}

fn configuration(epoch: u64) -> Configuration {
    let members = BTreeMap::from([(ReplicaId(1), Member::voter(DISK, "127.0.0.1:1".to_owned()))]);
    let founding = Configuration::founding(ClusterId([9; 16]), members);
    Configuration { epoch: Epoch(epoch), slot: Slot(epoch), ..founding }
}

/// A data directory whose log holds the first `last` records, and whose databases have applied `applied` of them.
fn replica(last: usize, applied: usize) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_log(directory.path());
    let records = records();
    let batch = d3b_paxos::PersistBatch {
        id: PersistId(1),
        promised: Some(Ballot { round: 7, replica: ReplicaId(2) }),
        records: records[..last].to_vec(),
        configuration: None,
    };
    opened.log.persist(batch);
    durable.recv().unwrap().unwrap();
    opened.log.close();
    let mut engine = open_engine(directory.path());
    apply(&mut engine, &records[..applied], &open_blobs(directory.path()));
    engine.checkpoint().unwrap();
    directory
}

type Durable = std::sync::mpsc::Receiver<Result<log::Durable, log::LogError>>;

fn open_log(data: &Path) -> (Opened, Durable) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let opened = log::open(data, ReplicaId(1), DISK, Box::new(move |result| drop(sender.send(result)))).unwrap();
    (opened, receiver)
}

fn open_engine(data: &Path) -> Engine {
    Engine::open(&data.join("databases"), Options::default()).unwrap()
}

fn open_blobs(data: &Path) -> BlobStore {
    BlobStore::open(&data.join("blobs")).unwrap()
}

fn apply(engine: &mut Engine, records: &[Record], blobs: &BlobStore) {
    let left: Vec<_> = records.iter().filter(|record| record.slot > engine.applied()).map(log_entry).collect();
    let progress = engine.apply(&left, blobs).unwrap();
    assert_eq!(progress.applied.len(), left.len());
}

/// Takes a snapshot of a replica, during which it applies the rest of the log.
fn take_of(data: &Path, earlier: Option<&Manifest>) -> Taken {
    let (blobs, records) = (open_blobs(data), records());
    let mut engine = open_engine(data);
    let source = engine.begin_snapshot().unwrap();
    let record = records[usize::try_from(source.slot().0).unwrap() - 1].clone();
    apply(&mut engine, &records, &blobs);
    let taken = take(&source, record, configuration(2), &blobs, earlier, &mut |_| Ok(())).unwrap();
    drop(source);
    engine.checkpoint().unwrap();
    taken
}

/// What a fetch would do.
fn fetch(from: &BlobStore, reference: &BlobReference, to: &BlobStore) {
    let mut writer = to.writer(reference.size).unwrap();
    writer.write(&std::fs::read(from.path(&reference.digest).unwrap()).unwrap()).unwrap();
    assert_eq!(writer.finish().unwrap(), *reference);
}

fn stage_all(from: &BlobStore, taken: &Taken, data: &Path) -> Staging {
    let blobs = open_blobs(data);
    fetch(from, &taken.reference, &blobs);
    let staging = Staging::begin(data, &taken.reference, &blobs).unwrap();
    for file in staging.missing() {
        fetch(from, &file, &blobs);
        staging.stage(&file.digest, &blobs).unwrap();
    }
    staging
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, to).unwrap();
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with("-wal") && !name.ends_with("-shm"));
    names.sort();
    names
}

/// Slots and chains of all databases, and their rows.
fn state(data: &Path) -> Vec<String> {
    let databases = data.join("databases");
    let mut all = Vec::new();
    for name in names(&databases) {
        let connection = rusqlite::Connection::open(databases.join(&name)).unwrap();
        let row = |sql: &str| -> String {
            connection.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| error.to_string())
        };
        all.push(format!(
            "{name} {} {}",
            row("SELECT slot || hex(fingerprint) FROM _d3b_state"),
            row("SELECT group_concat(x) FROM t")
        ));
    }
    all
}

/// A start after which everything is applied; what the log says about itself.
fn start(data: &Path) -> (Slot, Slot, Ballot, Option<Epoch>) {
    let records = records();
    let mut locked = log::lock(data, ReplicaId(1), DISK).unwrap();
    install(&mut locked).unwrap();
    let (sender, durable) = std::sync::mpsc::channel();
    let opened = locked.start(Box::new(move |result| drop(sender.send(result)))).unwrap();
    let mut engine = open_engine(data);
    assert!(engine.newest_slot().unwrap() <= opened.last.max(opened.ahead), "the log seems to have lost its end");
    // The core wants that.
    assert!(opened.base <= engine.resume_after().next() && engine.resume_after() <= opened.last);
    let held = opened.reader.read(opened.base, Slot(u64::MAX), usize::MAX).unwrap();
    assert_eq!(held.first().map(|record| record.slot), Some(opened.base));
    // A leader sends the rest of the log.
    let missing = records.iter().filter(|record| record.slot > opened.last).cloned().collect();
    let batch = d3b_paxos::PersistBatch { id: PersistId(1), promised: None, records: missing, configuration: None };
    opened.log.persist(batch);
    durable.recv().unwrap().unwrap();
    apply(&mut engine, &records, &open_blobs(data));
    engine.checkpoint().unwrap();
    let ends = (opened.base, opened.last, opened.promised, opened.configuration.map(|found| found.epoch));
    opened.log.close();
    ends
}

#[test]
fn a_crash_at_any_step_of_an_install_ends_in_the_same_state() {
    let source = replica(20, 14);
    let from = open_blobs(source.path());
    let taken = take_of(source.path(), None);
    let expected = state(source.path());
    // One that is fresh, one that is behind, one whose log reaches further, and one that is ahead in everything.
    for (last, applied) in [(0, 0), (9, 5), (20, 9), (20, 20)] {
        let decided = replica(last, applied);
        stage_all(&from, &taken, decided.path()).decide().unwrap();
        for crash in 0.. {
            let victim = tempfile::tempdir().unwrap();
            copy(decided.path(), victim.path());
            std::fs::write(victim.path().join("snapshot"), "what it offered before").unwrap();
            let mut steps = 0;
            let mut step = || {
                steps += 1;
                if steps > crash { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
            };
            let mut locked = log::lock(victim.path(), ReplicaId(1), DISK).unwrap();
            let result = install_by_steps(&mut locked, &mut step);
            drop(locked);
            let what = format!("{last} {applied}, crash at step {crash}");
            let ends = start(victim.path());
            let promised = Ballot { round: 7, replica: ReplicaId(2) };
            let last = Slot(last as u64).max(taken.manifest.slot);
            assert_eq!(ends, (taken.manifest.slot, last, promised, Some(Epoch(2))), "{what}");
            assert_eq!(state(victim.path()), expected, "{what}");
            let left = ["blobs", "databases", "incoming", "lock", "log.sqlite3"];
            assert_eq!(names(victim.path()), left, "{what}");
            // And another start finds nothing to do.
            let last = Slot(records().len() as u64);
            assert_eq!(start(victim.path()), (ends.0, last, ends.2, ends.3), "{what}");
            if result.is_ok() {
                assert!(crash > 6, "there are steps: {crash}");
                break;
            }
        }
    }
}

#[test]
fn a_snapshot_that_is_older_than_the_log_is_dropped() {
    let source = replica(20, 14);
    let taken = take_of(source.path(), None);
    let later = replica(20, 20);
    stage_all(&open_blobs(source.path()), &taken, later.path()).decide().unwrap();
    let (opened, _) = open_log(later.path());
    opened.log.cut(Slot(16));
    opened.log.close();
    assert_eq!(start(later.path()).0, Slot(16));
    assert_eq!(state(later.path()), state(source.path()));
    assert!(!later.path().join("install").exists());
}

#[test]
fn what_is_staged_is_not_fetched_again() {
    let source = replica(20, 14);
    let from = open_blobs(source.path());
    let taken = take_of(source.path(), None);
    let target = tempfile::tempdir().unwrap();
    let blobs = open_blobs(target.path());
    fetch(&from, &taken.reference, &blobs);
    assert!(Staging::resume(target.path()).unwrap().is_none());
    let staging = Staging::begin(target.path(), &taken.reference, &blobs).unwrap();
    let missing = staging.missing();
    assert_eq!(missing.len(), taken.manifest.databases.len());
    fetch(&from, &missing[0], &blobs);
    staging.stage(&missing[0].digest, &blobs).unwrap();
    assert!(!blobs.contains(&missing[0].digest), "it was moved");
    staging.stage(&missing[1].digest, &blobs).unwrap();
    // The process dies.
    let staging = Staging::resume(target.path()).unwrap().unwrap();
    assert_eq!((staging.manifest(), staging.missing()), (&taken.manifest, missing[1..].to_vec()));
    let incomplete = staging.decide().unwrap_err();
    assert!(matches!(incomplete, StagingError::Incomplete(count) if count == missing.len() - 1));
    // A newer snapshot, in which one database is the same.
    let newer = take_of(source.path(), Some(&taken.manifest));
    fetch(&from, &newer.reference, &blobs);
    let staging = Staging::begin(target.path(), &newer.reference, &blobs).unwrap();
    let unchanged = newer.manifest.databases.iter().filter(|database| database.file == missing[0]).count();
    assert_eq!(staging.missing().len(), newer.manifest.databases.len() - unchanged);
    assert_eq!(names(&target.path().join("incoming")), [newer.reference.digest.to_string()]);
    Staging::clear(target.path()).unwrap();
    assert!(Staging::resume(target.path()).unwrap().is_none());
}

/// A peer that serves a store.
async fn peer(store: BlobStore) -> Connect {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(crate::media::serve(stream, store.clone(), Arc::new(|_| None)));
        }
    });
    Arc::new(move |_| Box::pin(tokio::net::TcpStream::connect(address)))
}

#[tokio::test]
async fn a_snapshot_is_received_although_it_breaks_off() {
    let source = replica(20, 14);
    let from = open_blobs(source.path());
    let taken = take_of(source.path(), None);
    let target = replica(3, 2);
    let blobs = open_blobs(target.path());
    let events = Events::new(100);
    let told = events.clone();
    let fetching = Fetching {
        data_dir: target.path().to_owned(),
        blobs: blobs.clone(),
        fetcher: Fetcher::new(blobs.clone(), peer(from.clone()).await),
        events,
        staged: Arc::default(),
        busy: Arc::default(),
    };
    let result = || {
        told.take().into_iter().find_map(|event| match event {
            Event::SnapshotStaged { manifest, result } if manifest == taken.reference.digest => Some(result),
            _ => None,
        })
    };
    let last = taken.manifest.databases.last().unwrap().file.digest;
    let (place, aside) = (from.path(&last).unwrap(), source.path().join("aside"));
    std::fs::rename(&place, &aside).unwrap();
    fetching.clone().run(ReplicaId(2), taken.reference).await;
    assert!(matches!(result(), Some(Err(_))));
    assert_eq!(Staging::resume(target.path()).unwrap().unwrap().missing().len(), 1);
    assert!(fetching.decide(taken.reference.digest).is_err());
    std::fs::rename(&aside, &place).unwrap();
    fetching.clone().run(ReplicaId(2), taken.reference).await;
    assert_eq!(result(), Some(Ok(taken.manifest.slot)));
    fetching.decide(taken.reference.digest).unwrap();
    start(target.path());
    assert_eq!(state(target.path()), state(source.path()));
    // Nobody fetches what cannot be a manifest.
    let huge = BlobReference { size: u64::MAX, ..taken.reference };
    fetching.run(ReplicaId(2), huge).await;
    assert!(matches!(result(), Some(Err(reason)) if reason.contains("bytes")));
}

#[test]
fn a_file_of_the_wrong_size_is_not_staged() {
    let source = replica(20, 14);
    let from = open_blobs(source.path());
    let mut taken = take_of(source.path(), None);
    taken.manifest.databases[1].file.size += 1;
    let mut writer = from.writer(1 << 20).unwrap();
    writer.write(&taken.manifest.encode()).unwrap();
    let reference = writer.finish().unwrap();
    let staging = Staging::begin(source.path(), &reference, &from).unwrap();
    let error = staging.stage(&taken.manifest.databases[1].file.digest, &from).unwrap_err();
    assert!(matches!(error, StagingError::Size { .. }), "{error}");
}

#[test]
fn what_has_not_changed_is_not_copied_again() {
    let source = replica(20, 20);
    // Everything is applied after the first.
    drop(take_of(source.path(), None));
    let one = take_of(source.path(), None);
    let other = take_of(source.path(), Some(&one.manifest));
    assert_eq!(one.manifest.databases[1..], other.manifest.databases[1..]);
    // Without the earlier one everything is copied, and comes out the same.
    let third = take_of(source.path(), None);
    assert_eq!(third.manifest.databases[1..], other.manifest.databases[1..]);
}

#[test]
fn what_is_offered_is_not_collected_until_nobody_wants_it() {
    let source = replica(20, 14);
    let data = source.path();
    let blobs = open_blobs(data);
    let (now, hour) = (Instant::now(), Duration::from_secs(3600));
    let taken = take_of(data, None);
    let reference = taken.reference;
    let files: Vec<PathBuf> = taken.manifest.databases.iter().filter_map(|it| blobs.path(&it.file.digest)).collect();
    let first = taken.manifest.databases[0].file.digest;
    drop(taken);
    let offer = Offer::open(data, &blobs, now).unwrap();
    assert_eq!((offer.current(), offer.slot()), (None, None));
    let reserved = offer.reserve(Slot(14));
    assert_eq!(offer.slot(), Some(Slot(14)));
    offer.publish(take_of(data, None), now).unwrap();
    drop(reserved);
    let published = offer.current().unwrap().0;
    drop(offer);
    // Another process of the replica offers it still.
    let blobs = open_blobs(data);
    let offer = Offer::open(data, &blobs, now).unwrap();
    assert_eq!(offer.current().unwrap().0, published);
    let later = SystemTime::now() + hour;
    blobs.collect(&|_| false, Duration::from_secs(1), later).unwrap();
    let offered = offer.current().unwrap().1;
    assert!(offered.databases.iter().all(|database| blobs.contains(&database.file.digest)));
    assert!(!blobs.contains(&reference.digest) || reference == published);
    // Somebody fetches of it, then nobody does.
    offer.fetched(&offered.databases[0].file.digest, now + hour / 2);
    offer.fetched(&Digest::of(b"something else"), now + hour);
    offer.expire(now + hour).unwrap();
    assert!(offer.current().is_some());
    offer.expire(now + hour + hour / 2).unwrap();
    assert!(offer.current().is_none() && !data.join("snapshot").exists());
    blobs.collect(&|_| false, Duration::from_secs(1), later).unwrap();
    assert!(files.iter().all(|file| !file.exists()) && !blobs.contains(&first));
}

#[test]
fn an_offer_of_which_something_is_missing_is_none() {
    let source = replica(20, 14);
    let blobs = open_blobs(source.path());
    let offer = Offer::open(source.path(), &blobs, Instant::now()).unwrap();
    offer.publish(take_of(source.path(), None), Instant::now()).unwrap();
    let file = offer.current().unwrap().1.databases[1].file.digest;
    std::fs::remove_file(blobs.path(&file).unwrap()).unwrap();
    let offer = Offer::open(source.path(), &blobs, Instant::now()).unwrap();
    assert!(offer.current().is_none() && !source.path().join("snapshot").exists());
    std::fs::write(source.path().join("snapshot"), b"\xff\n\n junk 7").unwrap();
    // Bytes that are no text at all are damage that people should see.
    assert!(Offer::open(source.path(), &blobs, Instant::now()).is_err());
    std::fs::write(source.path().join("snapshot"), b"junk 7").unwrap();
    assert!(Offer::open(source.path(), &blobs, Instant::now()).unwrap().current().is_none());
}

#[test]
fn no_bytes_bring_a_reader_of_manifests_down() {
    let source = replica(20, 14);
    let manifest = take_of(source.path(), None).manifest;
    let bytes = manifest.encode();
    assert_eq!(Manifest::decode(&bytes).as_ref(), Ok(&manifest));
    for length in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..length]).is_err(), "cut off after {length}");
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            // Some are manifests still; none are taken for this one.
            assert_ne!(Manifest::decode(&damaged).as_ref(), Ok(&manifest));
        }
    }
    let longer = [&bytes[..], b"x"].concat();
    assert_eq!(Manifest::decode(&longer), Err(ManifestError::Malformed));
    assert_eq!(Manifest::decode(&[9, 1, 2]), Err(ManifestError::Version(9)));
    let check = |change: &dyn Fn(&mut Manifest)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        assert!(matches!(Manifest::decode(&changed.encode()), Err(ManifestError::Inconsistent(_))));
    };
    check(&|manifest| manifest.slot = Slot(3));
    check(&|manifest| manifest.configuration.slot = Slot(u64::MAX));
    check(&|manifest| manifest.databases.truncate(0));
    check(&|manifest| manifest.databases.push(manifest.databases[0].clone()));
    check(&|manifest| manifest.databases[1].slot = Slot(u64::MAX));
}
