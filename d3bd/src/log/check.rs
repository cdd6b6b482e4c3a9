//! Whether the file still holds what was written: read from the disk, never from memory.

use d3b::{DiskId, ReplicaId, Slot};
use d3b_paxos::types::Ballot;
use rusqlite::{Connection, ErrorCode, params};

use super::store;

/// What came of reading a stretch of the log's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// Every record up to here is what was written; so many bytes were read. It ends early where `upto` is reached or
    /// there is no more.
    Sound {
        /// The last slot that was read; the one before the stretch where there was none.
        last: Slot,
        /// Bytes.
        bytes: u64,
    },
    /// A record is not what was written, or is missing.
    Damaged {
        /// The first such slot.
        slot: Slot,
        /// How it shows.
        problem: String,
    },
    /// The file cannot be read now.
    Unread(String),
}

/// Reads records from `from` up to `upto`, as many as fit.
pub(super) fn check(connection: &Connection, disk: DiskId, from: Slot, upto: Slot, bytes_max: u64) -> Checked {
    let (mut last, mut bytes) = (from.previous(), 0);
    match walk(connection, disk, upto, bytes_max, &mut last, &mut bytes) {
        Ok(None) => Checked::Sound { last, bytes },
        Ok(Some(problem)) => Checked::Damaged { slot: last.next(), problem },
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Checked::Damaged { slot: last.next(), problem: error.to_string() }
            }
            _ => Checked::Unread(error.to_string()),
        },
    }
}

/// What is wrong with the record after `last`, which moves on with each that is sound.
fn walk(
    connection: &Connection,
    disk: DiskId,
    upto: Slot,
    bytes_max: u64,
    last: &mut Slot,
    bytes: &mut u64,
) -> rusqlite::Result<Option<String>> {
    let mut select = connection.prepare_cached(
        "SELECT slot, round, replica, entry, checksum FROM records WHERE slot BETWEEN ? AND ? ORDER BY slot",
    )?;
    let mut rows = select.query(params![store::slot_to_sql(last.next()), store::slot_to_sql(upto)])?;
    while let Some(row) = rows.next()? {
        let slot = store::slot_from_sql(row.get(0)?);
        if slot != last.next() {
            return Ok(Some("the record is missing".to_owned()));
        }
        let round: i64 = row.get(1)?;
        let ballot = Ballot { round: round.cast_unsigned(), replica: ReplicaId(row.get(2)?) };
        let entry = row.get_ref(3)?.as_bytes().unwrap_or_default();
        let checksum: i64 = row.get(4)?;
        if store::checksum(disk, slot, ballot, entry) != checksum.cast_unsigned() {
            return Ok(Some("the checksum is wrong".to_owned()));
        }
        *last = slot;
        *bytes += entry.len() as u64;
        if *bytes >= bytes_max {
            return Ok(None);
        }
    }
    // A record that is gone from the end of a stretch that is there looks like no record.
    let end = store::last(connection).unwrap_or(Slot::ZERO).min(upto);
    Ok((*last < end).then(|| "the record is missing".to_owned()))
}
