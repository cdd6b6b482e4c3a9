//! The tables of `log.sqlite3`.
//!
//! `meta` holds the identity: format version, replica, disk; and configuration, promise, base and what the databases
//! brought along. These end with a checksum, for a promise that is read wrong is as bad as a record that is. `base` is
//! the first slot that counts, once the log was cut: rows below it are on their way out. `records` holds one row a slot:
//! the ballot at which it was accepted, the entry's bytes (a version byte, then postcard), and a checksum over all of
//! it and the disk id, so that a row of another slot or another disk is as wrong as a flipped bit.

use std::path::{Path, PathBuf};

use d3b::{DiskId, ReplicaId, Slot};
use d3b_paxos::PersistBatch;
use d3b_paxos::types::{Ballot, Configuration, Entry, Founding, Record};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};
use xxhash_rust::xxh3::Xxh3;

use super::extent::{ROW_BYTES, Size};
use super::{LogError, preallocate, sqlite};

/// The log's file in the data directory.
pub(super) const FILE: &str = "log.sqlite3";
/// What the file is called while it is made.
pub(super) const TEMPORARY: &str = "log.sqlite3.new";
/// The version of the directory's format.
const VERSION: u32 = 1;
/// The version of an entry's encoding.
const ENTRY_VERSION: u8 = 1;
/// The version of the encoding of a configuration that was changed.
const CONFIGURATION_VERSION: u8 = 2;

/// Who writes here.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) disk: DiskId,
    pub(super) configuration: Option<Adopted>,
    pub(super) promised: Ballot,
}

/// The configuration, and how this replica came to it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Adopted {
    pub(super) configuration: Configuration,
    /// Whether it was adopted when it was chosen, so that everything up to its slot was held here as it was chosen.
    pub(super) held: bool,
}

/// The connection that writes.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    connection: Connection,
    disk: DiskId,
}

impl Store {
    /// Opens the log, or makes it under another name and moves it into place, so that a log is there whole or not.
    pub(super) fn open(
        directory: &Path,
        replica: ReplicaId,
        fresh_disk: DiskId,
        fresh: bool,
    ) -> Result<Store, LogError> {
        if fresh {
            format(directory, replica, fresh_disk)?;
        }
        let path = directory.join(FILE);
        let connection =
            Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite("opening it"))?;
        check_version(directory, &connection)?;
        check_replica(directory, &connection, replica)?;
        set_up(&connection)?;
        let disk = read_identity(&connection)?.disk;
        Ok(Store { path, connection, disk })
    }

    /// What `meta` says.
    pub(super) fn identity(&self) -> Result<Identity, LogError> {
        read_identity(&self.connection)
    }

    /// The disk, as the directory was formatted.
    pub(super) fn disk(&self) -> DiskId {
        self.disk
    }

    /// Where the database is.
    pub(super) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Makes room for so many bytes of the WAL; whether the disk has plenty for that.
    pub(super) fn lay_out_wal(&self, bytes: u64) -> Result<bool, LogError> {
        let mut path = self.path.clone().into_os_string();
        path.push("-wal");
        preallocate::lay_out(Path::new(&path), bytes).map_err(|error| LogError::Io {
            path: path.into(),
            doing: "making room for its WAL",
            message: error.to_string(),
        })
    }

    /// The last slot that is held; 0 where there is none.
    pub(super) fn last(&self) -> Result<Slot, LogError> {
        last(&self.connection)
    }

    /// The first slot that is held, or will be.
    pub(super) fn base(&self) -> Result<Slot, LogError> {
        base(&self.connection, self.disk)
    }

    /// The last slot that databases may have applied although the log does not reach it yet, because they came with a
    /// snapshot.
    pub(super) fn ahead(&self) -> Result<Slot, LogError> {
        Ok(get_slot(&self.connection, self.disk, "ahead")?.unwrap_or(Slot::ZERO))
    }

    /// Says that nothing below a slot is held any more; when this returns, that is on disk. The rows go later.
    pub(super) fn set_base(&mut self, base: Slot) -> Result<(), LogError> {
        let base = seal(self.disk, "base", encode(&base));
        put(&self.connection, "base", &base).map_err(sqlite("cutting it"))
    }

    /// Removes some of the rows below a slot, so many at most, or so many bytes and one row more; answers about how many
    /// bytes they had, and `None` where there was nothing to remove, or no room on the disk to do it.
    pub(super) fn remove_below(&mut self, base: Slot, rows_max: u32, bytes_max: u64) -> Result<Option<u64>, LogError> {
        let cutting = || sqlite("cutting it");
        let mut bytes = 0;
        let mut upto = None;
        {
            let mut select = self
                .connection
                .prepare_cached("SELECT slot, length(entry) FROM records WHERE slot < ? ORDER BY slot LIMIT ?")
                .map_err(cutting())?;
            let mut rows = select.query(params![slot_to_sql(base), rows_max]).map_err(cutting())?;
            while bytes < bytes_max
                && let Some(row) = rows.next().map_err(cutting())?
            {
                upto = Some(row.get::<_, i64>(0).map_err(cutting())?);
                bytes += row.get::<_, u64>(1).map_err(cutting())?;
            }
        }
        let Some(upto) = upto else { return Ok(None) };
        // Rows that a power cut brings back are below the base all the same: they are not worth an fsync.
        let removed = self
            .connection
            .execute_batch("PRAGMA synchronous = NORMAL")
            .and_then(|()| self.connection.execute("DELETE FROM records WHERE slot <= ?", [upto]));
        self.connection.execute_batch("PRAGMA synchronous = FULL").map_err(cutting())?;
        match removed {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if matches!(error.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy)) => {
                Ok(None)
            }
            Err(error) => Err(cutting()(error)),
        }
    }

    /// Makes the log one that begins where a snapshot ends, in one transaction; doing it again changes nothing. False, and
    /// nothing is done, where the log begins further on already.
    pub(super) fn begin_at(&mut self, beginning: &Beginning) -> Result<bool, LogError> {
        let Beginning { record, configuration, ahead } = beginning;
        if self.base()? > record.slot {
            return Ok(false);
        }
        let adopted = read_identity(&self.connection)?.configuration;
        let newer = adopted.is_none_or(|adopted| configuration.epoch > adopted.configuration.epoch);
        let disk = self.disk;
        let transaction = self.connection.transaction().map_err(sqlite("beginning it anew"))?;
        let write = || -> rusqlite::Result<()> {
            let slot = slot_to_sql(record.slot);
            transaction.execute("DELETE FROM records WHERE slot < ?", [slot])?;
            // What stands there at a higher ballot has the same value, and this replica has said so.
            let found = transaction
                .query_row("SELECT round, replica FROM records WHERE slot = ?", [slot], ballot_of)
                .optional()?;
            if found.is_none_or(|found| found < record.ballot) {
                insert(&transaction, disk, record)?;
            }
            put(&transaction, "base", &seal(disk, "base", encode(&record.slot)))?;
            put(&transaction, "ahead", &seal(disk, "ahead", encode(ahead)))?;
            if newer {
                // One that came later was not held here; this replica was told of it.
                let held = configuration.slot <= record.slot;
                let adopted = Adopted { configuration: configuration.clone(), held };
                put(&transaction, "configuration", &seal(disk, "configuration", encode_configuration(&adopted)))?;
            }
            Ok(())
        };
        write().map_err(sqlite("beginning it anew"))?;
        transaction.commit().map_err(sqlite("beginning it anew"))?;
        Ok(true)
    }

    /// Writes a batch in one transaction; when this returns, it is on disk.
    pub(super) fn persist(&mut self, batch: &PersistBatch) -> Result<(), LogError> {
        let transaction = self.connection.transaction().map_err(sqlite("beginning a batch"))?;
        if let Some(promised) = batch.promised {
            let promised = seal(self.disk, "promised", encode(&promised));
            put(&transaction, "promised", &promised).map_err(sqlite("writing a promise"))?;
        }
        if let Some(configuration) = &batch.configuration {
            let adopted = Adopted { configuration: configuration.clone(), held: true };
            let configuration = seal(self.disk, "configuration", encode_configuration(&adopted));
            put(&transaction, "configuration", &configuration).map_err(sqlite("writing the configuration"))?;
        }
        for record in &batch.records {
            insert(&transaction, self.disk, record).map_err(sqlite("writing records"))?;
        }
        transaction.commit().map_err(sqlite("committing a batch"))
    }

    /// Moves what is left of the WAL into the database, so that the next batch begins the WAL anew; false where a
    /// reader or the other checkpointer was in the way.
    pub(super) fn finish_checkpoint(&self) -> Result<bool, LogError> {
        checkpoint(&self.connection)
    }

    /// Writes the configuration that this replica was told of; when this returns, it is on disk.
    pub(super) fn persist_configuration(&mut self, configuration: &Configuration) -> Result<(), LogError> {
        let known = read_identity(&self.connection)?.configuration;
        let same_cluster = known.filter(|known| known.configuration.cluster == configuration.cluster);
        if same_cluster.is_some_and(|known| known.configuration.epoch >= configuration.epoch) {
            // What the log itself has brought meanwhile is no older.
            return Ok(());
        }
        let adopted = Adopted { configuration: configuration.clone(), held: false };
        let configuration = seal(self.disk, "configuration", encode_configuration(&adopted));
        put(&self.connection, "configuration", &configuration).map_err(sqlite("writing the configuration"))
    }
}

/// Where a log begins that continues a snapshot.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// The record at the snapshot's slot: a log is never empty.
    pub record: Record,
    /// The configuration in effect at that slot.
    pub configuration: Configuration,
    /// The last slot that a database of the snapshot has applied.
    pub ahead: Slot,
}

fn insert(connection: &Connection, disk: DiskId, record: &Record) -> rusqlite::Result<()> {
    let entry = encode_entry(&record.entry);
    let checksum = checksum(disk, record.slot, record.ballot, &entry);
    connection
        .prepare_cached("INSERT OR REPLACE INTO records(slot, round, replica, entry, checksum) VALUES(?, ?, ?, ?, ?)")?
        .execute(params![
            slot_to_sql(record.slot),
            record.ballot.round.cast_signed(),
            record.ballot.replica.0,
            entry,
            checksum.cast_signed()
        ])
        .map(|_| ())
}

/// The ballot in the first two columns.
fn ballot_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Ballot> {
    Ok(Ballot { round: row.get::<_, i64>(0)?.cast_unsigned(), replica: ReplicaId(row.get(1)?) })
}

/// Moves as much of the WAL into the database as nobody is using; true if that was all of it. Where the disk has no room
/// for that, everything is safe in the WAL still.
pub(super) fn checkpoint(connection: &Connection) -> Result<bool, LogError> {
    let moved: rusqlite::Result<(bool, i64, i64)> =
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    match moved {
        Ok((busy, frames, moved)) => Ok(!busy && frames == moved),
        Err(error) if matches!(error.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy)) => {
            Ok(false)
        }
        Err(error) => Err(sqlite("moving its WAL into the database")(error)),
    }
}

/// Makes a log for a replica, durably.
fn format(directory: &Path, replica: ReplicaId, disk: DiskId) -> Result<(), LogError> {
    let failed = |doing| {
        let path = directory.to_owned();
        move |error: std::io::Error| LogError::Io { path, doing, message: error.to_string() }
    };
    let temporary = directory.join(TEMPORARY);
    for leftover in [&temporary, &directory.join(format!("{TEMPORARY}-journal"))] {
        if leftover.exists() {
            std::fs::remove_file(leftover).map_err(failed("removing a half-made log"))?;
        }
    }
    let connection = Connection::open(&temporary).map_err(sqlite("making it"))?;
    connection
        .execute_batch(
            "PRAGMA synchronous = FULL;
             CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
             CREATE TABLE records(slot INTEGER PRIMARY KEY, round INTEGER NOT NULL, replica INTEGER NOT NULL,
                                  entry BLOB NOT NULL, checksum INTEGER NOT NULL);",
        )
        .map_err(sqlite("making its tables"))?;
    for (key, value) in [
        ("format", VERSION.to_string().into_bytes()),
        ("replica", replica.to_string().into_bytes()),
        ("disk", disk.to_string().into_bytes()),
        ("promised", seal(disk, "promised", encode(&Ballot::ZERO))),
    ] {
        put(&connection, key, &value).map_err(sqlite("writing whose it is"))?;
    }
    connection.close().map_err(|(_, error)| sqlite("closing it")(error))?;
    std::fs::File::open(&temporary).and_then(|file| file.sync_all()).map_err(failed("syncing the log"))?;
    std::fs::rename(&temporary, directory.join(FILE)).map_err(failed("moving the log into place"))?;
    std::fs::File::open(directory).and_then(|file| file.sync_all()).map_err(failed("syncing it"))
}

/// WAL, an fsync for every commit, and checkpoints on another thread.
fn set_up(connection: &Connection) -> Result<(), LogError> {
    let mode: String = connection
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(sqlite("switching it to WAL"))?;
    if mode != "wal" {
        return Err(LogError::Sqlite { doing: "switching it to WAL", message: format!("the journal mode is {mode}") });
    }
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -4096;")
        .map_err(sqlite("setting it up"))?;
    connection.busy_timeout(std::time::Duration::from_secs(10)).map_err(sqlite("setting it up"))
}

fn check_version(directory: &Path, connection: &Connection) -> Result<(), LogError> {
    let found = get_text(connection, "format").map_err(sqlite("reading its version"))?;
    if found.as_deref() == Some(&VERSION.to_string()) {
        return Ok(());
    }
    let found = found.unwrap_or_else(|| "unknown".to_owned());
    Err(LogError::UnknownVersion { path: directory.to_owned(), found, known: VERSION })
}

fn check_replica(directory: &Path, connection: &Connection, wanted: ReplicaId) -> Result<(), LogError> {
    let found = get_text(connection, "replica").map_err(sqlite("reading whose it is"))?.unwrap_or_default();
    if found == wanted.to_string() {
        return Ok(());
    }
    Err(LogError::ForeignReplica { path: directory.to_owned(), found, wanted })
}

fn read_identity(connection: &Connection) -> Result<Identity, LogError> {
    let damaged = |key: &str| LogError::Damaged {
        place: format!("in its {key}"),
        problem: "it does not parse, or its checksum is wrong".to_owned(),
    };
    let disk = get_text(connection, "disk").map_err(sqlite("reading whose it is"))?;
    let disk: DiskId = disk.and_then(|text| text.parse().ok()).ok_or_else(|| damaged("disk id"))?;
    let promised = get(connection, "promised").map_err(sqlite("reading its promise"))?;
    let promised = promised.and_then(|bytes| decode(unseal(disk, "promised", &bytes)?));
    let promised = promised.ok_or_else(|| damaged("promise"))?;
    let configuration = match get(connection, "configuration").map_err(sqlite("reading its configuration"))? {
        Some(bytes) => {
            let found = unseal(disk, "configuration", &bytes).and_then(decode_configuration);
            Some(found.ok_or_else(|| damaged("configuration"))?)
        }
        None => None,
    };
    Ok(Identity { disk, configuration, promised })
}

/// The replica that a directory belongs to.
pub(super) fn whose(directory: &Path) -> Result<ReplicaId, LogError> {
    let (connection, _) = open_reader(directory)?;
    let found = get_text(&connection, "replica").map_err(sqlite("reading whose it is"))?.unwrap_or_default();
    found
        .parse()
        .map_err(|_| LogError::Damaged { place: "in its replica id".to_owned(), problem: format!("{found:?} is none") })
}

/// A connection for reading, and the disk id that its checksums were made with.
pub(super) fn open_reader(directory: &Path) -> Result<(Connection, DiskId), LogError> {
    let path = directory.join(FILE);
    if !path.exists() {
        return Err(LogError::Missing { path: directory.to_owned() });
    }
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(sqlite("opening it for reading"))?;
    connection.busy_timeout(std::time::Duration::from_secs(10)).map_err(sqlite("opening it for reading"))?;
    check_version(directory, &connection)?;
    let disk = read_identity(&connection)?.disk;
    Ok((connection, disk))
}

/// The first and the last slot of a log that need not be in use.
pub(super) fn ends_offline(directory: &Path) -> Result<(Slot, Slot), LogError> {
    let (connection, disk) = open_reader(directory)?;
    Ok((base(&connection, disk)?, last(&connection)?))
}

fn base(connection: &Connection, disk: DiskId) -> Result<Slot, LogError> {
    // What was never cut begins at the beginning: a record that is missing there was lost.
    Ok(get_slot(connection, disk, "base")?.unwrap_or(Slot(1)))
}

/// How large the records of some slots are, and when they were stamped, in order of slots: so many at most.
pub(super) fn sizes(connection: &Connection, from: Slot, upto: Slot, rows_max: u32) -> Result<Vec<Size>, LogError> {
    let reading = || sqlite("reading the sizes of records");
    // Of a large entry only the beginning is read, where its stamp is.
    let sql = "SELECT slot, length(entry), substr(entry, 1, 11) FROM records WHERE slot BETWEEN ? AND ? \
               ORDER BY slot LIMIT ?";
    let mut select = connection.prepare_cached(sql).map_err(reading())?;
    let rows = select.query_map(params![slot_to_sql(from), slot_to_sql(upto), rows_max], |row| {
        let head: Vec<u8> = row.get(2)?;
        let time_ms = head.split_first().and_then(|(_, stamp)| postcard::take_from_bytes(stamp).ok());
        Ok(Size {
            slot: slot_from_sql(row.get(0)?),
            time_ms: time_ms.map_or(0, |(time_ms, _)| time_ms),
            bytes: row.get::<_, u64>(1)? + ROW_BYTES,
        })
    });
    rows.map_err(reading())?.collect::<rusqlite::Result<_>>().map_err(reading())
}

/// Whose a log is that need not be in use.
pub(super) fn replica_offline(directory: &Path) -> Result<ReplicaId, LogError> {
    let (connection, _) = open_reader(directory)?;
    let found = get_text(&connection, "replica").map_err(sqlite("reading whose it is"))?;
    found.and_then(|text| text.parse().ok()).ok_or_else(|| LogError::Damaged {
        place: "in its replica".to_owned(),
        problem: "it does not parse".to_owned(),
    })
}

pub(super) fn last(connection: &Connection) -> Result<Slot, LogError> {
    let last: Option<i64> =
        connection.query_row("SELECT max(slot) FROM records", [], |row| row.get(0)).map_err(sqlite("reading it"))?;
    Ok(last.map_or(Slot::ZERO, slot_from_sql))
}

/// Records in order of slots and without gaps, whose checksums are right: as many as fit, and one at least if there is any.
pub(super) fn read(
    connection: &Connection,
    disk: DiskId,
    from: Slot,
    upto: Slot,
    bytes_max: usize,
) -> Result<Vec<Record>, LogError> {
    let reading = || sqlite("reading records");
    let mut select = connection
        .prepare_cached(
            "SELECT slot, round, replica, entry, checksum FROM records WHERE slot BETWEEN ? AND ? ORDER BY slot",
        )
        .map_err(reading())?;
    let mut rows = select.query(params![slot_to_sql(from), slot_to_sql(upto)]).map_err(reading())?;
    let mut records = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next().map_err(reading())? {
        let slot = slot_from_sql(row.get(0).map_err(reading())?);
        let round: i64 = row.get(1).map_err(reading())?;
        let ballot = Ballot { round: round.cast_unsigned(), replica: ReplicaId(row.get(2).map_err(reading())?) };
        let entry =
            row.get_ref(3).map_err(reading())?.as_blob().map_err(|error| sqlite("reading records")(error.into()))?;
        let found: i64 = row.get(4).map_err(reading())?;
        if let Some(last) = records.last().map(|record: &Record| record.slot)
            && slot != last.next()
        {
            return Err(missing(last.next()));
        }
        if checksum(disk, slot, ballot, entry) != found.cast_unsigned() {
            return Err(LogError::Damaged {
                place: format!("at slot {slot}"),
                problem: "the checksum is wrong".to_owned(),
            });
        }
        bytes += entry.len();
        if bytes > bytes_max && !records.is_empty() {
            break;
        }
        let entry = decode_entry(entry).ok_or_else(|| LogError::Damaged {
            place: format!("at slot {slot}"),
            problem: "the entry does not parse".to_owned(),
        })?;
        records.push(Record { slot, ballot, entry });
    }
    Ok(records)
}

/// A log has no gaps: a row that is not there was lost.
pub(super) fn missing(slot: Slot) -> LogError {
    LogError::Damaged { place: format!("at slot {slot}"), problem: "the record is missing".to_owned() }
}

/// Puts a checksum behind a value, over it, its key and the disk.
fn seal(disk: DiskId, key: &str, mut value: Vec<u8>) -> Vec<u8> {
    let checksum = seal_checksum(disk, key, &value);
    value.extend_from_slice(&checksum.to_le_bytes());
    value
}

/// The value before its checksum, if that is right.
fn unseal<'a>(disk: DiskId, key: &str, sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (value, checksum) = sealed.split_last_chunk()?;
    (u64::from_le_bytes(*checksum) == seal_checksum(disk, key, value)).then_some(value)
}

fn seal_checksum(disk: DiskId, key: &str, value: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&disk.0);
    hasher.update(key.as_bytes());
    hasher.update(value);
    hasher.digest()
}

pub(super) fn checksum(disk: DiskId, slot: Slot, ballot: Ballot, entry: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&disk.0);
    hasher.update(&slot.0.to_le_bytes());
    hasher.update(&ballot.round.to_le_bytes());
    hasher.update(&ballot.replica.0.to_le_bytes());
    hasher.update(entry);
    hasher.digest()
}

fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![ENTRY_VERSION]).expect("plain data can be written")
}

fn decode<T: for<'a> serde::Deserialize<'a>>(bytes: &[u8]) -> Option<T> {
    let (version, body) = bytes.split_first()?;
    if *version != ENTRY_VERSION {
        return None;
    }
    postcard::from_bytes(body).ok()
}

/// The configuration that formed a cluster is written as the first version of d3b did.
fn encode_configuration(adopted: &Adopted) -> Vec<u8> {
    match adopted.configuration.to_founding() {
        Some(founding) => encode(&founding),
        None => postcard::to_extend(adopted, vec![CONFIGURATION_VERSION]).expect("plain data can be written"),
    }
}

fn decode_configuration(bytes: &[u8]) -> Option<Adopted> {
    let (version, body) = bytes.split_first()?;
    if *version == CONFIGURATION_VERSION {
        return postcard::from_bytes(body).ok();
    }
    let founding: Founding = decode(bytes)?;
    Some(Adopted { configuration: founding.into(), held: false })
}

fn encode_entry(entry: &Entry) -> Vec<u8> {
    encode(entry)
}

fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    decode(bytes)
}

/// Slots stay far below the end of SQLite's integers.
pub(super) fn slot_to_sql(slot: Slot) -> i64 {
    i64::try_from(slot.0).unwrap_or(i64::MAX)
}

pub(super) fn slot_from_sql(slot: i64) -> Slot {
    Slot(u64::try_from(slot).unwrap_or(0))
}

fn put(connection: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    connection.prepare_cached("INSERT OR REPLACE INTO meta(key, value) VALUES(?, ?)")?.execute(params![key, value])?;
    Ok(())
}

fn get(connection: &Connection, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    let select = "SELECT CAST(value AS BLOB) FROM meta WHERE key = ?";
    connection.query_row(select, [key], |row| row.get(0)).optional()
}

/// A slot that is sealed in `meta`.
fn get_slot(connection: &Connection, disk: DiskId, key: &str) -> Result<Option<Slot>, LogError> {
    let Some(sealed) = get(connection, key).map_err(sqlite("reading where it begins"))? else { return Ok(None) };
    let slot = unseal(disk, key, &sealed).and_then(decode).ok_or_else(|| LogError::Damaged {
        place: format!("in its {key}"),
        problem: "it does not parse, or its checksum is wrong".to_owned(),
    })?;
    Ok(Some(slot))
}

fn get_text(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    Ok(get(connection, key)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}
