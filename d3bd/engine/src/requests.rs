//! Exactly once: what came of every idempotency key, kept in the database that it was used on.
//!
//! Key, request and answer commit with the effect. Keys are kept by log time, so that every replica forgets the same
//! ones at the same slot. A key that tells its own age (a UUIDv7) is refused once its row may be gone; that is why rows
//! outlive such keys by as much as a key may be dated ahead.

use d3b::{Code, Digest, IdempotencyKey, KeyedOperation, Outcome, Rejection, Slot};
use rusqlite::types::ToSqlOutput;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::database::Database;
use crate::fingerprint::Fingerprint;
use crate::planted::{self, Planted};

/// How old a UUIDv7 key may be, in milliseconds of log time.
pub const KEY_AGE_MAX_MS: u64 = 24 * 3600 * 1000;

/// How far ahead of log time a UUIDv7 key may be dated, in milliseconds.
pub const KEY_AHEAD_MAX_MS: u64 = 5 * 60 * 1000;

/// How long a key and its answer are kept after the execution, in milliseconds of log time.
const KEPT_MS: u64 = KEY_AGE_MAX_MS + KEY_AHEAD_MAX_MS;

/// The longest encoded answer that is kept, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// How many expired keys one operation removes at most: more than the one that it adds, and few.
const EXPIRED_PER_OPERATION: u32 = 8;

/// A key that came with a backup was executed at a slot of another log. It stands this much lower in `_d3b_requests`, once
/// for every time that it was restored: below all slots of this log, and in the order of its own.
pub(crate) const EARLIER_LOG: i64 = 1 << 48;

/// The first byte of every stored answer.
const VERSION: u8 = 1;

/// The code of an operation that took effect, in `_d3b_requests` and in fingerprints.
pub const CODE_OK: &str = "ok";

/// What stands in `_d3b_requests.answer`, behind the version.
#[derive(Serialize, Deserialize)]
enum Stored {
    /// The answer.
    Outcome(Outcome),
    /// There was one, longer than is kept.
    Omitted {
        /// Its length in bytes.
        bytes: u64,
    },
}

/// A stored answer that this build cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a stored answer cannot be read: {problem}")]
pub struct StoredAnswerError {
    /// What is wrong with it.
    problem: String,
}

/// What is known of a key at an entry's log time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// The operation is to be executed.
    Fresh,
    /// It was executed at that slot, with that answer.
    Repeat {
        /// Where it was executed.
        slot: Slot,
        /// What came of it.
        outcome: Outcome,
    },
    /// It must not be executed, and the refusal is not stored.
    Refused(Rejection),
}

/// What an outcome is called in `_d3b_requests.code` and in fingerprints.
#[must_use]
pub fn code(outcome: &Outcome) -> &'static str {
    match outcome {
        Ok(_) => CODE_OK,
        Err(rejection) => rejection.code.name(),
    }
}

/// Reads what stands in `_d3b_requests.answer`. An answer that was too long to be kept is `too-large`, and says at
/// which slot its operation was executed.
///
/// # Errors
/// The bytes are of another version or damaged.
pub fn decode_answer(bytes: &[u8], slot: Slot) -> Result<Outcome, StoredAnswerError> {
    let problem = |problem: String| StoredAnswerError { problem };
    match bytes.split_first() {
        None => Err(problem("it is empty".to_owned())),
        Some((&VERSION, body)) => match postcard::from_bytes(body) {
            Ok(Stored::Outcome(outcome)) => Ok(outcome),
            Ok(Stored::Omitted { bytes }) => Ok(Err(omitted(bytes, slot))),
            Err(error) => Err(problem(error.to_string())),
        },
        Some((version, _)) => Err(problem(format!("it has version {version}, and only {VERSION} is known"))),
    }
}

/// The answer of a request whose real answer is not kept.
fn omitted(bytes: u64, slot: Slot) -> Rejection {
    Rejection::new(
        Code::TooLarge,
        format!(
            "the request was executed once, at slot {slot}; its answer of {bytes} bytes was too large to be kept \
             under its key"
        ),
    )
    .with_hint("do not send it again; read what it wrote")
}

/// The bytes that keep an outcome. Only answers can be long: refusals are a few sentences.
fn encode(outcome: &Outcome) -> Vec<u8> {
    let bytes = |stored: &Stored| {
        postcard::to_extend(stored, vec![VERSION]).expect("an outcome is made of what postcard can write")
    };
    let full = bytes(&Stored::Outcome(outcome.clone()));
    if full.len() <= ANSWER_BYTES_MAX { full } else { bytes(&Stored::Omitted { bytes: full.len() as u64 }) }
}

/// The slot that a number in `_d3b_requests.slot` stands for, be it one of this log or of an earlier one.
pub(crate) fn slot_of(stored: i64) -> Slot {
    let slot = if stored < 0 { stored.rem_euclid(EARLIER_LOG) } else { stored };
    Slot(slot.unsigned_abs())
}

/// What is known of a command's key.
pub(crate) fn look_up(database: &Database, keyed: &KeyedOperation, time_ms: u64) -> rusqlite::Result<Verdict> {
    let time_ms = planted::time_ms(Planted::KeysExpireByWallClock, time_ms);
    let found = find(database, &keyed.key)?.filter(|found| time_ms <= found.time_ms.saturating_add(KEPT_MS));
    if let Some(found) = found {
        if found.request != keyed.request {
            return Ok(Verdict::Refused(
                Rejection::new(
                    Code::KeyReused,
                    format!("the idempotency key was used at slot {} with another request", found.slot),
                )
                .with_hint("use a new key for a new request"),
            ));
        }
        return Ok(Verdict::Repeat { slot: found.slot, outcome: found.outcome });
    }
    Ok(match keyed.key.uuid_v7_time_ms() {
        Some(key_ms) if key_ms.saturating_add(KEY_AGE_MAX_MS) < time_ms => Verdict::Refused(
            Rejection::new(
                Code::KeyExpired,
                "the idempotency key is older than 24 hours, so whether it was used before is no longer known",
            )
            .with_hint("check whether the request took effect, then use a new key"),
        ),
        Some(key_ms) if key_ms > time_ms.saturating_add(KEY_AHEAD_MAX_MS) => Verdict::Refused(
            Rejection::new(Code::KeyExpired, "the idempotency key is dated more than 5 minutes ahead")
                .with_hint("set the clock of the client"),
        ),
        Some(_) | None => Verdict::Fresh,
    })
}

/// What an entry gave that the database had applied before this process began; `None` where that is no longer known.
pub(crate) fn recall(
    database: &Database,
    keyed: &KeyedOperation,
    at: Slot,
    time_ms: u64,
) -> rusqlite::Result<Option<(Slot, Outcome)>> {
    Ok(match look_up(database, keyed, time_ms)? {
        // A row from later than the entry is that of another use of the key.
        Verdict::Repeat { slot, outcome } if slot <= at => Some((slot, outcome)),
        // Its row may have been there then, and has been removed since by an entry after it.
        Verdict::Refused(rejection) if rejection.code == Code::KeyExpired && !may_have_been_kept(keyed, time_ms) => {
            Some((at, Err(rejection)))
        }
        Verdict::Repeat { .. } | Verdict::Refused(_) | Verdict::Fresh => None,
    })
}

/// Whether a key out of its time could have had a row at that log time, from an execution within its time.
fn may_have_been_kept(keyed: &KeyedOperation, time_ms: u64) -> bool {
    keyed.key.uuid_v7_time_ms().is_some_and(|key_ms| {
        key_ms <= time_ms && time_ms <= key_ms.saturating_add(KEY_AGE_MAX_MS).saturating_add(KEPT_MS)
    })
}

/// A row of `_d3b_requests`.
struct Found {
    slot: Slot,
    request: Digest,
    time_ms: u64,
    outcome: Outcome,
}

fn find(database: &Database, key: &IdempotencyKey) -> rusqlite::Result<Option<Found>> {
    let mut statement =
        database.own("/*d3b*/SELECT slot, request, time_ms, answer FROM _d3b_requests WHERE key = ?")?;
    statement
        .query_row([key.as_str()], |row| {
            let slot = slot_of(row.get(0)?);
            let answer = row.get_ref(3)?.as_blob()?;
            let outcome = decode_answer(answer, slot).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Blob, error.into())
            })?;
            Ok(Found { slot, request: Digest(row.get(1)?), time_ms: row.get(2)?, outcome })
        })
        .optional()
}

/// Keeps an outcome under its key, and removes a few keys whose time is over.
pub(crate) fn store(
    database: &mut Database,
    keyed: &KeyedOperation,
    slot: Slot,
    time_ms: u64,
    outcome: &Outcome,
    fingerprint: Fingerprint,
) -> rusqlite::Result<()> {
    expire(database, planted::time_ms(Planted::KeysExpireByWallClock, time_ms))?;
    if outcome.is_err() && planted::breaks(Planted::RefusalsNotKept) {
        return Ok(());
    }
    let sql = "/*d3b*/INSERT OR REPLACE INTO _d3b_requests(slot, key, request, time_ms, code, answer, fingerprint) \
               VALUES(?, ?, ?, ?, ?, ?, ?)";
    let answer = encode(outcome);
    database
        .own(sql)?
        .execute(params![slot.0, keyed.key.as_str(), keyed.request.0, time_ms, code(outcome), answer, fingerprint])
        .map(|_| ())
}

/// Removes a few of the oldest keys, if they are expired. Log time rises along the log, so the oldest have the lowest
/// slots.
fn expire(database: &mut Database, time_ms: u64) -> rusqlite::Result<()> {
    let expire_at = match database.keys_expire_at {
        Some(expire_at) => expire_at,
        None => {
            let oldest = database
                .own("/*d3b*/SELECT time_ms FROM _d3b_requests ORDER BY slot LIMIT 1")?
                .query_row([], |row| row.get::<_, u64>(0))
                .optional()?;
            let expire_at = oldest.unwrap_or(time_ms).saturating_add(KEPT_MS);
            database.keys_expire_at = Some(expire_at);
            expire_at
        }
    };
    if time_ms <= expire_at {
        return Ok(());
    }
    database.keys_expire_at = None;
    let sql = "/*d3b*/DELETE FROM _d3b_requests WHERE slot IN \
               (SELECT slot FROM _d3b_requests ORDER BY slot LIMIT ?) AND time_ms < ?";
    database.own(sql)?.execute(params![EXPIRED_PER_OPERATION, time_ms - KEPT_MS]).map(|_| ())
}

/// Copies the keys of a backup's catalogue into this log's. Those that this log knows stay as they are.
pub(crate) fn take_over(from: &rusqlite::Connection, to: &mut Database) -> rusqlite::Result<()> {
    to.keys_expire_at = None;
    let mut read =
        from.prepare("SELECT slot, key, request, time_ms, code, answer, fingerprint FROM _d3b_requests ORDER BY slot")?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        let slot: i64 = row.get(0)?;
        let sql = "/*d3b*/INSERT OR IGNORE INTO \
                   _d3b_requests(slot, key, request, time_ms, code, answer, fingerprint) VALUES(?, ?, ?, ?, ?, ?, ?)";
        let mut write = to.own(sql)?;
        write.raw_bind_parameter(1, slot.saturating_sub(EARLIER_LOG))?;
        for column in 1..7 {
            write.raw_bind_parameter(column + 1, ToSqlOutput::Borrowed(row.get_ref(column)?))?;
        }
        write.raw_execute()?;
    }
    Ok(())
}

/// Copies every key of one database into another that takes its place.
pub(crate) fn inherit(from: &Database, to: &rusqlite::Connection) -> rusqlite::Result<()> {
    if planted::breaks(Planted::KeysLostOnReplace) {
        return Ok(());
    }
    let mut read = from
        .own("/*d3b*/SELECT slot, key, request, time_ms, code, answer, fingerprint FROM _d3b_requests ORDER BY slot")?;
    let mut write = to.prepare(
        "INSERT INTO _d3b_requests(slot, key, request, time_ms, code, answer, fingerprint) VALUES(?, ?, ?, ?, ?, ?, ?)",
    )?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        for column in 0..7 {
            write.raw_bind_parameter(column + 1, ToSqlOutput::Borrowed(row.get_ref(column)?))?;
        }
        write.raw_execute()?;
    }
    Ok(())
}
