//! The Paxos log as people read it.

use std::fmt::Write as _;

use d3b::api::{LogEntry, LogPage};
use d3b::{CatalogueChange, Code, DatabaseName, InsertMode, MediaChange, Operation, Problem, Slot, Statement};
use d3b_engine::command::{self, Command};
use d3b_engine::reader::Readers;
use d3b_paxos::types::{Configuration, Payload, Record};

use crate::driver::{self, DriverStatus};
use crate::log::{LogError, LogReader};
use crate::time::rfc3339;

/// How many records are read from the log at once.
const READ_BYTES: usize = 4 << 20;
/// How many records a filtered listing looks at before it gives back what it has.
const SCANNED_MAX: u64 = 100_000;
/// How many records are looked at together when the newest are sought.
const WINDOW: u64 = 16;
/// About how many bytes of SQL a page holds.
const PAGE_BYTES: usize = 8 << 20;

/// Entries in order of slots: from `from` up, or the newest `limit`.
///
/// # Errors
/// `slot-compacted` below the log's base; `internal` when the log cannot be read.
pub fn page(
    log: &LogReader,
    readers: &Readers,
    status: &DriverStatus,
    from: Option<Slot>,
    limit: u64,
    db: Option<&DatabaseName>,
) -> Result<LogPage, Problem> {
    let base = log.base();
    let mut page = LogPage { entries: Vec::new(), base: base.0, commit: status.commit.0 };
    if let Some(from) = from
        && from < base
    {
        return Err(compacted(from, base));
    }
    match from {
        None => newest(log, readers, status, limit, db, &mut page)?,
        Some(from) => {
            let mut next = from;
            let end = Slot(next.0.saturating_add(SCANNED_MAX)).min(log.last());
            let mut room = Room::new(limit);
            'page: while next <= end {
                let records = read(log, next, end)?;
                let Some(read_to) = records.last().map(|record| record.slot) else { break };
                for entry in describe_wanted(&records, readers, status, db) {
                    if !room.take(&entry) {
                        break 'page;
                    }
                    page.entries.push(entry);
                }
                next = read_to.next();
            }
        }
    }
    Ok(page)
}

/// How much a page may still hold: so many entries, and so many bytes, but one entry in any case. Whoever wants more
/// asks for the next page.
struct Room {
    entries: u64,
    bytes: usize,
    empty: bool,
}

impl Room {
    fn new(entries: u64) -> Room {
        Room { entries, bytes: PAGE_BYTES, empty: true }
    }

    fn take(&mut self, entry: &LogEntry) -> bool {
        let bytes = 512 + entry.sql.iter().map(|sql| sql.len() + 3).sum::<usize>();
        if self.entries == 0 || (bytes > self.bytes && !self.empty) {
            return false;
        }
        self.empty = false;
        self.entries -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

fn describe_wanted<'a>(
    records: &'a [Record],
    readers: &'a Readers,
    status: &'a DriverStatus,
    db: Option<&'a DatabaseName>,
) -> impl DoubleEndedIterator<Item = LogEntry> + 'a {
    let wanted = move |record: &&Record| db.is_none_or(|db| database_of(record).as_deref() == Some(db.as_str()));
    records.iter().filter(wanted).map(|record| describe(record, readers, status))
}

/// The newest entries, found by walking back in windows.
fn newest(
    log: &LogReader,
    readers: &Readers,
    status: &DriverStatus,
    limit: u64,
    db: Option<&DatabaseName>,
    page: &mut LogPage,
) -> Result<(), Problem> {
    let last = log.last();
    let oldest = Slot(last.0.saturating_sub(SCANNED_MAX)).max(log.base());
    let mut end = last;
    let mut room = Room::new(limit);
    let mut found: Vec<LogEntry> = Vec::new();
    'walk: while end >= oldest && end > Slot::ZERO && room.entries > 0 {
        let start = Slot((end.0 + 1).saturating_sub(WINDOW)).max(oldest);
        let mut window = Vec::new();
        let mut next = start;
        while next <= end {
            let records = match read(log, next, end) {
                // The log was cut meanwhile: what there is was found.
                Err(problem) if problem.code == Code::SlotCompacted => break 'walk,
                read => read?,
            };
            let Some(read_to) = records.last().map(|record| record.slot) else { break };
            window.extend(records);
            next = read_to.next();
        }
        for entry in describe_wanted(&window, readers, status, db).rev() {
            if !room.take(&entry) {
                break 'walk;
            }
            found.push(entry);
        }
        end = start.previous();
    }
    found.reverse();
    page.entries = found;
    Ok(())
}

/// The database that an entry names.
fn database_of(record: &Record) -> Option<String> {
    describe_record(record).db
}

fn read(log: &LogReader, from: Slot, upto: Slot) -> Result<Vec<Record>, Problem> {
    log.records(from, upto, READ_BYTES).map_err(|error| match error {
        LogError::Compacted { slot, base } => compacted(slot, base),
        error => Problem::new(Code::Internal, error.to_string()),
    })
}

/// One entry.
///
/// # Errors
/// `not-found` above the end, `slot-compacted` below the base.
pub fn entry(log: &LogReader, readers: &Readers, status: &DriverStatus, slot: Slot) -> Result<LogEntry, Problem> {
    if slot < log.base() {
        return Err(compacted(slot, log.base()));
    }
    match read(log, slot, slot)?.first() {
        Some(record) => Ok(describe(record, readers, status)),
        None => {
            let detail = format!("the log has no slot {slot} yet; its last one is {}", log.last());
            Err(Problem::new(Code::NotFound, detail))
        }
    }
}

fn compacted(slot: Slot, base: Slot) -> Problem {
    if slot == Slot::ZERO {
        return Problem::new(Code::BadRequest, "slots are counted from 1");
    }
    Problem::new(Code::SlotCompacted, format!("slot {slot} was cut; the log begins at slot {base}"))
}

/// A record in words, with what came of it as far as this replica has applied.
#[must_use]
pub fn describe(record: &Record, readers: &Readers, status: &DriverStatus) -> LogEntry {
    let mut entry = describe_record(record);
    entry.state = state(record.slot, status).to_owned();
    if record.slot <= status.applied
        && let Payload::Command(bytes) = &record.entry.payload
        && let Ok(command) = command::decode(bytes)
        && let Ok(Some((code, fingerprint))) = readers.outcome_at(&command.keyed.operation.database(), record.slot)
    {
        entry.outcome = Some(code);
        entry.fingerprint = Some(fingerprint.to_string());
    }
    entry
}

fn state(slot: Slot, status: &DriverStatus) -> &'static str {
    if slot <= status.applied {
        "applied"
    } else if slot <= status.commit {
        "chosen"
    } else {
        "accepted"
    }
}

/// A record in words, by itself.
#[must_use]
pub fn describe_record(record: &Record) -> LogEntry {
    let mut entry = LogEntry {
        slot: record.slot.0,
        ballot: record.ballot.to_string(),
        state: "accepted".to_owned(),
        kind: "noop".to_owned(),
        db: None,
        sql: Vec::new(),
        change: None,
        time: rfc3339(record.entry.stamp.time_ms),
        key: None,
        outcome: None,
        fingerprint: None,
    };
    match &record.entry.payload {
        Payload::Noop => {}
        Payload::Command(bytes) => match command::decode(bytes) {
            Ok(command) => describe_command(&command, &mut entry),
            Err(error) => {
                entry.kind = "sql".to_owned();
                entry.change = Some(format!("not readable: {error}"));
            }
        },
        Payload::Configuration(configuration) => {
            entry.kind = "configuration".to_owned();
            entry.change = Some(describe_configuration(configuration));
        }
    }
    entry
}

/// "epoch 3: replicas 1, 2, 4; learning 5; execution version 1".
fn describe_configuration(configuration: &Configuration) -> String {
    let join = |votes: bool| {
        let members = configuration.members.iter().filter(|(_, member)| member.votes == votes);
        members.map(|(id, _)| id.to_string()).collect::<Vec<_>>().join(", ")
    };
    let learners = join(false);
    let learning = if learners.is_empty() { String::new() } else { format!("; learning {learners}") };
    let Configuration { epoch, execution, .. } = configuration;
    format!("epoch {}: replicas {}{learning}; execution version {execution}", epoch.0, join(true))
}

fn describe_command(command: &Command, entry: &mut LogEntry) {
    entry.key = Some(command.keyed.key.as_str().to_owned());
    match &command.keyed.operation {
        Operation::Sql { db, statements, media, .. } => {
            entry.kind = "sql".to_owned();
            entry.db = Some(db.as_str().to_owned());
            entry.sql = texts(statements);
            entry.change = media.as_ref().map(media_words);
        }
        Operation::Catalogue(change) => {
            entry.kind = "catalogue".to_owned();
            let (db, words) = catalogue_words(change);
            entry.db = Some(db);
            entry.change = Some(words);
            if let CatalogueChange::RawUpload { statement, .. } | CatalogueChange::RawDelete { statement, .. } = change
            {
                entry.sql = vec![statement.sql.clone()];
            }
        }
    }
}

fn texts(statements: &[Statement]) -> Vec<String> {
    statements.iter().map(|statement| statement.sql.clone()).collect()
}

fn media_words(change: &MediaChange) -> String {
    match change {
        MediaChange::Upload { file_id, blob, .. } => {
            format!("upload media {}, {} bytes, sha256 {}", file_id, blob.size, blob.digest)
        }
        MediaChange::Delete { file_id } => format!("delete media {file_id}"),
    }
}

fn catalogue_words(change: &CatalogueChange) -> (String, String) {
    match change {
        CatalogueChange::Upload { name, blob, mode, .. } => {
            let mut words = match mode {
                InsertMode::Replace => "create or replace database".to_owned(),
                InsertMode::CreateOnly => "create database".to_owned(),
            };
            match blob {
                Some(blob) => {
                    let _ = write!(words, " from a file of {} bytes, sha256 {}", blob.size, blob.digest);
                }
                None => words.push_str(", empty"),
            }
            (name.to_string(), words)
        }
        CatalogueChange::Delete { name } => (name.to_string(), "drop database".to_owned()),
        CatalogueChange::RawUpload { file_id, blob, .. } => {
            let words = format!("create database from {file_id}, {} bytes, sha256 {}", blob.size, blob.digest);
            (DatabaseName::CATALOGUE.to_owned(), words)
        }
        CatalogueChange::Restore { manifest } => {
            let words = format!("restore a backup, manifest sha256 {}", manifest.digest);
            (DatabaseName::CATALOGUE.to_owned(), words)
        }
        CatalogueChange::RawDelete { file_id, .. } => {
            (DatabaseName::CATALOGUE.to_owned(), format!("drop the database of {file_id}"))
        }
    }
}

/// A difference between replicas, as the API tells it.
#[must_use]
pub fn divergence(divergence: &driver::Divergence) -> d3b::api::Divergence {
    d3b::api::Divergence {
        id: divergence.database.to_string(),
        slot: divergence.slot.0,
        here: d3b_engine::Fingerprint(divergence.here).to_string(),
        replica: divergence.replica.0,
        there: d3b_engine::Fingerprint(divergence.there).to_string(),
    }
}
