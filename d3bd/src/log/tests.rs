//! What the log keeps through ends of all kinds, and whom it turns away.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};

use bytes::Bytes;
use d3b::ClusterId;
use d3b_paxos::types::{Entry, Epoch, Member, Payload, Record, Stamp};
use d3b_paxos::{PersistBatch, Storage as _};

use super::*;

const DISK: DiskId = DiskId([3; 16]);

fn open_at(path: &Path) -> (Opened, Receiver<Result<Durable, LogError>>) {
    let (sender, receiver) = channel();
    let opened = open(path, ReplicaId(1), DISK, Box::new(move |result| drop(sender.send(result)))).unwrap();
    (opened, receiver)
}

fn fails(path: &Path, replica: u32) -> String {
    open(path, ReplicaId(replica), DISK, Box::new(|_| {})).map(drop).unwrap_err().to_string()
}

fn ballot(round: u64) -> Ballot {
    Ballot { round, replica: ReplicaId(1) }
}

fn record(slot: u64, round: u64, size: usize) -> Record {
    let payload = Payload::Command(Bytes::from(vec![slot.to_le_bytes()[0]; size]));
    let stamp = Stamp { time_ms: slot, seed: round, execution: 1 };
    Record { slot: Slot(slot), ballot: ballot(round), entry: Entry { stamp, payload } }
}

fn batch(id: u64, promised: Option<u64>, records: Vec<Record>) -> PersistBatch {
    PersistBatch { id: PersistId(id), promised: promised.map(ballot), records, configuration: None }
}

fn write(opened: &Opened, durable: &Receiver<Result<Durable, LogError>>, batch: PersistBatch) {
    let id = batch.id;
    opened.log.persist(batch);
    assert_eq!(durable.recv().unwrap().unwrap().id(), id);
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

#[test]
fn what_was_durable_is_there_after_a_clean_end() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    assert_eq!((opened.base, opened.last, opened.promised), (Slot(1), Slot(0), Ballot::ZERO));
    write(&opened, &durable, batch(1, Some(4), vec![record(1, 4, 10), record(2, 4, 10)]));
    write(&opened, &durable, batch(2, None, vec![record(2, 5, 20)]));
    let member = Member::voter(DISK, "127.0.0.1:1".to_owned());
    let members = BTreeMap::from([(ReplicaId(1), member)]);
    let configuration = Configuration::founding(ClusterId([9; 16]), members);
    opened.log.persist_configuration(configuration.clone(), |result| drop(result.unwrap()));
    opened.log.close();
    let (opened, _) = open_at(directory.path());
    assert_eq!((opened.last, opened.promised), (Slot(2), ballot(4)));
    assert_eq!(opened.configuration, Some(configuration));
    let read = opened.reader.read(Slot(1), Slot(9), usize::MAX).unwrap();
    assert_eq!(read, [record(1, 4, 10), record(2, 5, 20)]);
}

#[test]
fn what_was_durable_is_there_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    for slot in 1..=50 {
        write(&opened, &durable, batch(slot, None, vec![record(slot, 1, 1_000)]));
        if slot % 10 == 0 {
            // The files as a kill would leave them at this moment.
            let killed = copy(directory.path());
            let (again, _) = open_at(killed.path());
            assert_eq!(again.last, Slot(slot));
            let read = again.reader.read(Slot(slot), Slot(slot), 0).unwrap();
            assert_eq!(read, [record(slot, 1, 1_000)]);
        }
    }
}

#[test]
fn memory_and_file_tell_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    write(&opened, &durable, batch(1, None, (1..=20).map(|slot| record(slot, 1, 100)).collect()));
    write(&opened, &durable, batch(2, None, (15..=25).map(|slot| record(slot, 2, 50)).collect()));
    let offline = open_offline(directory.path()).unwrap();
    for (from, upto, bytes) in
        [(1, 25, usize::MAX), (10, 18, usize::MAX), (3, 25, 300), (25, 99, 1), (26, 99, 1), (5, 4, 1)]
    {
        let read = opened.reader.read(Slot(from), Slot(upto), bytes).unwrap();
        let slots: Vec<u64> = read.iter().map(|record| record.slot.0).collect();
        assert!(slots.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        let from_file = offline.read(Slot(from), Slot(upto), usize::MAX).unwrap();
        assert_eq!(read[..], from_file[..read.len()], "from {from}");
        assert_eq!(read.is_empty(), from_file.is_empty());
    }
}

#[test]
fn a_flipped_bit_is_damage_and_never_an_empty_slot() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    write(&opened, &durable, batch(1, None, vec![record(1, 1, 10), record(2, 1, 10)]));
    opened.log.close();
    let connection = rusqlite::Connection::open(directory.path().join(store::FILE)).unwrap();
    for change in [
        "UPDATE records SET entry = zeroblob(length(entry)) WHERE slot = 2",
        "UPDATE records SET round = round + 1 WHERE slot = 2",
        "UPDATE records SET entry = (SELECT entry FROM records WHERE slot = 1), checksum = (SELECT checksum FROM records WHERE slot = 1) WHERE slot = 2",
    ] {
        connection.execute(change, []).unwrap();
        let (opened, _) = open_at(directory.path());
        let error = opened.reader.read(Slot(1), Slot(2), usize::MAX).unwrap_err();
        assert!(error.message.contains("damaged at slot 2"), "{}", error.message);
        opened.log.close();
    }
}

#[test]
fn a_directory_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, _) = open_at(directory.path());
    assert!(fails(directory.path(), 1).contains(&format!("in use by process {}", std::process::id())));
    opened.log.close();
    let (_opened, _) = open_at(directory.path());
}

#[test]
fn a_directory_of_another_replica_version_or_program_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open_at(directory.path()).0.log.close();
    assert!(fails(directory.path(), 2).contains("belongs to replica 1, and this is replica 2"));
    let connection = rusqlite::Connection::open(directory.path().join(store::FILE)).unwrap();
    connection.execute("UPDATE meta SET value = '7' WHERE key = 'format'", []).unwrap();
    drop(connection);
    assert!(fails(directory.path(), 1).contains("format version 7, and this build knows version 1"));
    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("thesis.txt"), "years of work").unwrap();
    assert!(fails(foreign.path(), 1).contains("thesis.txt"));
    assert_eq!(std::fs::read_dir(foreign.path()).unwrap().count(), 1, "nothing was changed");
}

#[test]
fn a_start_that_was_cut_short_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(store::TEMPORARY), "half a database").unwrap();
    let (opened, _) = open_at(directory.path());
    assert_eq!(opened.disk, DISK);
}

#[test]
fn after_a_failed_write_nothing_is_written_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    let connection = rusqlite::Connection::open(directory.path().join(store::FILE)).unwrap();
    connection.execute_batch("DROP TABLE records").unwrap();
    opened.log.persist(batch(1, None, vec![record(1, 1, 1)]));
    assert!(durable.recv().unwrap().is_err());
    opened.log.persist(batch(2, Some(9), Vec::new()));
    assert!(durable.recv().is_err(), "the writer is gone");
}

#[test]
fn the_wal_stays_bounded_under_load() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    let wal = directory.path().join("log.sqlite3-wal");
    let mut largest = 0;
    for slot in 1..=600 {
        write(&opened, &durable, batch(slot, None, vec![record(slot, 1, 200_000)]));
        largest = largest.max(std::fs::metadata(&wal).unwrap().len());
    }
    assert!(largest < 600 * 200_000 / 2, "the WAL grew to {largest} bytes: it was never reused");
}

#[test]
fn small_batches_are_written_into_room_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    let length = |file: &str| std::fs::metadata(directory.path().join(file)).unwrap().len();
    let begun = length("log.sqlite3-wal");
    if begun == 0 {
        println!("skipped: room for the WAL: needs a disk with plenty of it");
        return;
    }
    // Each writes a page at least. Two thirds of the WAL are full when the bulk of it is moved into the database, and the
    // writer moves the rest then.
    let pages = begun / 4096;
    let write_some = |slots: std::ops::RangeInclusive<u64>| {
        slots.for_each(|slot| write(&opened, &durable, batch(slot, None, vec![record(slot, 1, 100)])));
    };
    write_some(1..=pages * 2 / 3);
    let began = std::time::Instant::now();
    while length("log.sqlite3") < pages / 3 * 100 {
        assert!(began.elapsed().as_secs() < 60, "nothing is moved into the database");
        std::thread::yield_now();
    }
    let last = pages * 4 / 3;
    write_some(pages * 2 / 3 + 1..=last);
    assert_eq!(length("log.sqlite3-wal"), begun);
    // A crash leaves frames of this round behind, some of an older one, and zeros.
    let copied = copy(directory.path());
    let (reopened, _) = open_at(copied.path());
    assert_eq!(reopened.last, Slot(last));
}

#[test]
fn a_record_that_is_missing_is_damage() {
    for (lost, from) in [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3)] {
        let directory = tempfile::tempdir().unwrap();
        let (opened, durable) = open_at(directory.path());
        write(&opened, &durable, batch(1, None, (1..=4).map(|slot| record(slot, 1, 10)).collect()));
        opened.log.close();
        let connection = rusqlite::Connection::open(directory.path().join(store::FILE)).unwrap();
        connection.execute("DELETE FROM records WHERE slot = ?", [lost]).unwrap();
        let (opened, _) = open_at(directory.path());
        let error = opened.reader.read(Slot(from), Slot(4), usize::MAX).unwrap_err().to_string();
        assert!(error.contains(&format!("damaged at slot {lost}: the record is missing")), "{error}");
        assert!(opened.reader.read(Slot(5), Slot(9), usize::MAX).unwrap().is_empty());
    }
}

#[test]
fn a_promise_that_is_read_wrong_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    write(&opened, &durable, batch(1, Some(4), Vec::new()));
    write(&opened, &durable, batch(2, Some(9), Vec::new()));
    opened.log.close();
    let connection = rusqlite::Connection::open(directory.path().join(store::FILE)).unwrap();
    let promised: Vec<u8> =
        connection.query_row("SELECT value FROM meta WHERE key = 'promised'", [], |row| row.get(0)).unwrap();
    let put = |value: &[u8]| connection.execute("UPDATE meta SET value = ? WHERE key = 'promised'", [value]).unwrap();
    for index in 0..promised.len() {
        let mut flipped = promised.clone();
        flipped[index] ^= 4;
        put(&flipped);
        assert!(fails(directory.path(), 1).contains("damaged in its promise"), "byte {index}");
    }
    put(&promised);
    assert_eq!(open_at(directory.path()).0.promised, ballot(9));
}

fn beginning(slot: u64, round: u64, ahead: u64, epoch: u64) -> Beginning {
    let members = BTreeMap::from([(ReplicaId(1), Member::voter(DISK, "127.0.0.1:1".to_owned()))]);
    let founding = Configuration::founding(ClusterId([9; 16]), members);
    let configuration = Configuration { epoch: Epoch(epoch), slot: Slot(epoch), ..founding };
    Beginning { record: record(slot, round, 10), configuration, ahead: Slot(ahead) }
}

fn begin_at(path: &Path, beginning: &Beginning) -> bool {
    lock(path, ReplicaId(1), DISK).unwrap().begin_at(beginning).unwrap()
}

/// The slots in the file, which need not all count.
fn rows(path: &Path) -> Vec<u64> {
    let connection = rusqlite::Connection::open(path.join(store::FILE)).unwrap();
    let mut select = connection.prepare("SELECT slot FROM records ORDER BY slot").unwrap();
    select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_cut_takes_away_what_is_below_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    write(&opened, &durable, batch(1, None, (1..=5_000).map(|slot| record(slot, 1, 10)).collect()));
    opened.log.cut(Slot(3_500));
    opened.log.cut(Slot(2_000));
    // Whatever is written meanwhile does not wait for it.
    for slot in 5_001..=5_100 {
        write(&opened, &durable, batch(slot, Some(slot), vec![record(slot, 1, 10)]));
    }
    assert_eq!((opened.reader.base(), opened.reader.last()), (Slot(3_500), Slot(5_100)));
    for slot in [1, 2_000, 3_499] {
        let error = opened.reader.records(Slot(slot), Slot(5_000), 0).unwrap_err();
        assert!(matches!(error, LogError::Compacted { base: Slot(3_500), .. }), "{error}");
    }
    assert_eq!(opened.reader.records(Slot(3_500), Slot(5_000), 0).unwrap(), [record(3_500, 1, 10)]);
    opened.log.close();
    // A start goes on where a cut was left, and whoever opens the log reads none of what is still there.
    let (opened, _) = open_at(directory.path());
    assert_eq!((opened.base, opened.last, opened.promised), (Slot(3_500), Slot(5_100), ballot(5_100)));
    assert!(opened.reader.read(Slot(3_499), Slot(3_600), 0).unwrap_err().message.contains("begins at slot 3500"));
    while rows(directory.path()).first() != Some(&3_500) {
        std::thread::yield_now();
    }
    opened.log.close();
    assert_eq!(rows(directory.path()), (3_500..=5_100).collect::<Vec<_>>());
    assert_eq!(open_offline(directory.path()).unwrap().base(), Slot(3_500));
}

#[test]
fn a_log_that_was_cut_and_has_lost_its_first_record_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    write(&opened, &durable, batch(1, None, (1..=10).map(|slot| record(slot, 1, 10)).collect()));
    opened.log.cut(Slot(10));
    opened.log.close();
    let connection = rusqlite::Connection::open(directory.path().join(store::FILE)).unwrap();
    connection.execute("DELETE FROM records WHERE slot = 10", []).unwrap();
    assert!(fails(directory.path(), 1).contains("damaged at slot 10: the record is missing"));
    connection.execute("UPDATE meta SET value = substr(value, 2) WHERE key = 'base'", []).unwrap();
    assert!(fails(directory.path(), 1).contains("damaged in its base"));
}

#[test]
fn a_snapshot_begins_the_log_anew_and_takes_back_no_promise() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    write(&opened, &durable, batch(1, Some(9), (1..=10).map(|slot| record(slot, 2, 10)).collect()));
    opened.log.close();
    // Doing it again changes nothing.
    for _ in 0..2 {
        assert!(begin_at(directory.path(), &beginning(6, 3, 8, 4)));
    }
    let (opened, _) = open_at(directory.path());
    assert_eq!((opened.base, opened.last, opened.promised), (Slot(6), Slot(10), ballot(9)));
    assert_eq!((opened.ahead, opened.held), (Slot(8), Slot(4)));
    assert_eq!(opened.configuration.as_ref().unwrap().epoch, Epoch(4));
    let read = opened.reader.read(Slot(6), Slot(7), usize::MAX).unwrap();
    assert_eq!(read, [record(6, 3, 10), record(7, 2, 10)]);
    opened.log.close();
    // An older configuration, and a record that stands at a higher ballot.
    assert!(begin_at(directory.path(), &beginning(7, 1, 8, 3)));
    let (opened, _) = open_at(directory.path());
    assert_eq!(opened.configuration.as_ref().unwrap().epoch, Epoch(4));
    assert_eq!(opened.reader.read(Slot(7), Slot(7), 0).unwrap(), [record(7, 2, 10)]);
    opened.log.close();
    // A log that begins further on has no use for it.
    assert!(!begin_at(directory.path(), &beginning(5, 9, 8, 9)));
    assert_eq!(open_at(directory.path()).0.base, Slot(7));
}

#[test]
fn a_snapshot_may_lie_beyond_the_end_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    write(&opened, &durable, batch(1, None, (1..=10).map(|slot| record(slot, 2, 10)).collect()));
    opened.log.close();
    assert!(begin_at(directory.path(), &beginning(90, 3, 95, 0)));
    let (opened, durable) = open_at(directory.path());
    assert_eq!((opened.base, opened.last, rows(directory.path())), (Slot(90), Slot(90), vec![90]));
    write(&opened, &durable, batch(1, None, vec![record(91, 3, 10)]));
    assert_eq!(opened.reader.read(Slot(90), Slot(99), usize::MAX).unwrap().len(), 2);
}

#[test]
fn what_is_due_to_be_cut_is_known_soon_after_a_start() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, durable) = open_at(directory.path());
    write(&opened, &durable, batch(1, None, (1..=3_000).map(|slot| record(slot, 1, 68)).collect()));
    opened.log.close();
    let (opened, durable) = open_at(directory.path());
    write(&opened, &durable, batch(1, None, (3_001..=4_500).map(|slot| record(slot, 1, 68)).collect()));
    // The survey is made beside everything else.
    while opened.reader.cut_due(0, 0).is_none() {
        std::thread::yield_now();
    }
    assert_eq!(opened.reader.cut_due(u64::MAX, 0), None);
    assert_eq!(opened.reader.cut_due(u64::MAX, 2_500), Some(Slot(2_001)), "stamps were read");
    let due = opened.reader.cut_due(350_000, 0).unwrap();
    assert!((Slot(1_001)..=Slot(3_001)).contains(&due), "{due}");
    opened.log.cut(Slot(2_001));
    write(&opened, &durable, batch(2, None, vec![record(4_501, 1, 68)]));
    assert_eq!(opened.reader.cut_due(u64::MAX, 2_000), None);
}
