//! One entry on one database: the key, the operation within its savepoint, the outcome, the fingerprint.
//!
//! Operations of many requests share a transaction, and must not feel each other. So each has a savepoint of its own,
//! and deferred foreign keys are checked before it is released. Some errors end the whole transaction, whatever the
//! savepoints (`ON CONFLICT ROLLBACK`, `RAISE(ROLLBACK)`, the step limit, a full `sqlite_sequence`): then the caller
//! carries out the earlier operations again and records the refusal after them ([`Execution::Ended`]).

use crate::database::Database;
use crate::fingerprint::Fingerprint;
use crate::guard::{self, Mode};
use crate::planted::{self, Planted};
use crate::requests::{self, Verdict};
use crate::{catalogue, clock, media, random, statement};
use d3b::{
    Answer, BlobReference, Code, DatabaseId, DatabaseName, KeyedOperation, MediaChange, Operation, Outcome, Rejection,
    Slot, Statement, StatementResult,
};

/// The largest result of one operation, in bytes of values.
pub const RESULT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// An entry that carries a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// Where it stands.
    pub slot: Slot,
    /// Log time.
    pub time_ms: u64,
    /// Where its randomness comes from.
    pub seed: u64,
    /// What it carries.
    pub keyed: &'a KeyedOperation,
}

/// What came of an entry on its database.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Execution {
    /// It is in the open transaction.
    Done(Concluded),
    /// It cannot be applied before this blob is here; nothing was done.
    NeedsBlob(BlobReference),
    /// Its refusal has ended the open transaction: what was done in that must be done again, then
    /// [`conclude`]d with this.
    Ended(Rejection),
}

/// What is answered for an entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Concluded {
    /// The answer.
    pub outcome: Outcome,
    /// Where it was executed: here, or earlier.
    pub executed_at: Slot,
    /// The chain after this entry.
    pub fingerprint: Fingerprint,
}

/// Why an operation stops half way.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It is refused, the same way everywhere.
    Rejected(Rejection),
    /// This replica failed.
    Failed(rusqlite::Error),
}

impl Refusal {
    /// The same, about one statement of several.
    fn at(self, index: usize) -> Refusal {
        match self {
            Refusal::Rejected(rejection) => {
                Refusal::Rejected(Rejection { statement: u32::try_from(index).ok(), ..rejection })
            }
            Refusal::Failed(error) => Refusal::Failed(error),
        }
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Refusal {
        Refusal::Rejected(rejection)
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Refusal {
        Refusal::Failed(error)
    }
}

/// Ends an entry whose key decides; `None` where the operation is to be executed.
pub(crate) fn by_key(database: &mut Database, entry: Entry<'_>) -> rusqlite::Result<Option<Concluded>> {
    match requests::look_up(database, entry.keyed, entry.time_ms)? {
        Verdict::Fresh => Ok(None),
        Verdict::Repeat { slot, outcome } => {
            let fingerprint = advance(database, entry.slot, "repeat", "")?;
            Ok(Some(Concluded { outcome, executed_at: slot, fingerprint }))
        }
        // Nothing is stored: the key is another request's, or its time is over.
        Verdict::Refused(rejection) => {
            let fingerprint = advance(database, entry.slot, rejection.code.name(), "")?;
            Ok(Some(Concluded { outcome: Err(rejection), executed_at: entry.slot, fingerprint }))
        }
    }
}

/// Executes an operation of SQL on its database, in the open transaction.
pub(crate) fn execute(database: &mut Database, entry: Entry<'_>) -> rusqlite::Result<Execution> {
    if let Some(concluded) = by_key(database, entry)? {
        return Ok(Execution::Done(concluded));
    }
    let Operation::Sql { statements, deferred_foreign_keys, media, .. } = &entry.keyed.operation else {
        let rejection = Rejection::new(Code::Internal, "a change of the catalogue was sent to a database");
        return conclude(database, entry, Err(rejection), "").map(Execution::Done);
    };
    let mode = if database.id == DatabaseId::catalogue() { Mode::Read } else { Mode::Write };
    let work = Work { statements, media: media.as_ref(), mode };
    match atomically(database, entry, *deferred_foreign_keys, |database| work.run(database, entry.slot)) {
        Ok(results) => {
            let change = media.as_ref().map(media::describe).unwrap_or_default();
            conclude(database, entry, Ok(Answer::Results(results)), &change).map(Execution::Done)
        }
        Err(Refusal::Rejected(rejection)) if database.has_ended() => Ok(Execution::Ended(rejection)),
        Err(Refusal::Rejected(rejection)) => {
            conclude(database, entry, Err(with_catalogue_hint(rejection, mode)), "").map(Execution::Done)
        }
        Err(Refusal::Failed(error)) => Err(error),
    }
}

/// Refuses an operation whose name means no database; the catalogue keeps the answer.
pub(crate) fn without_database(
    catalogue: &mut Database,
    entry: Entry<'_>,
    name: &DatabaseName,
) -> rusqlite::Result<Execution> {
    let concluded = match by_key(catalogue, entry)? {
        Some(concluded) => concluded,
        None => conclude(catalogue, entry, Err(catalogue::not_found(name)), "")?,
    };
    Ok(Execution::Done(concluded))
}

/// Who writes to the catalogue should learn how that is done.
fn with_catalogue_hint(rejection: Rejection, mode: Mode) -> Rejection {
    match mode {
        Mode::Read if rejection.code == Code::StatementDenied => {
            rejection.with_hint("databases are created, replaced and dropped through the schema service")
        }
        Mode::Read | Mode::Write | Mode::Internal | Mode::CatalogueWrite => rejection,
    }
}

/// What an operation of SQL has to do.
struct Work<'a> {
    statements: &'a [Statement],
    media: Option<&'a MediaChange>,
    mode: Mode,
}

impl Work<'_> {
    fn run(&self, database: &mut Database, slot: Slot) -> Result<Vec<StatementResult>, Refusal> {
        if self.statements.is_empty() && self.media.is_none() {
            return Err(Rejection::new(Code::BadRequest, "the operation holds no statement").into());
        }
        let mut budget = RESULT_BYTES_MAX;
        let mut results = Vec::with_capacity(self.statements.len());
        for (index, statement) in self.statements.iter().enumerate() {
            let result = statement::run(database, statement, self.mode, &mut budget);
            results.push(result.map_err(|refusal| refusal.at(index))?);
        }
        if let Some(change) = self.media
            && let Some(rejection) = media::apply(database, change, slot)?
        {
            return Err(rejection.into());
        }
        Ok(results)
    }
}

/// Runs work under a savepoint with the entry's clock and randomness: all of it takes effect, or nothing.
///
/// After a refusal the database is as it was before, unless the transaction has ended ([`Database::has_ended`]).
pub(crate) fn atomically<T>(
    database: &mut Database,
    entry: Entry<'_>,
    deferred_foreign_keys: bool,
    work: impl FnOnce(&mut Database) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    database.reset_for_operation()?;
    database.touched_schema = false;
    database.run_own("/*d3b*/SAVEPOINT d3b_operation")?;
    if deferred_foreign_keys {
        database.defer_foreign_keys(true)?;
    }
    database.recorder.begin();
    database.guard.begin_operation();
    let result = {
        let _clock = clock::enter(planted::time_ms(Planted::ReplicasClockInSql, entry.time_ms));
        let _random = random::enter(planted::time_ms(Planted::ReplicasDiceInSql, entry.seed));
        work(database).and_then(|value| settle(database).map(|()| value))
    };
    let refusal = match result {
        Ok(value) => {
            if deferred_foreign_keys {
                database.defer_foreign_keys(false)?;
            }
            database.run_own("/*d3b*/RELEASE d3b_operation")?;
            return Ok(value);
        }
        Err(Refusal::Failed(error)) => return Err(Refusal::Failed(error)),
        Err(Refusal::Rejected(rejection)) => rejection,
    };
    database.recorder.discard();
    if !database.has_ended() {
        database.run_own("/*d3b*/ROLLBACK TO d3b_operation")?;
        database.run_own("/*d3b*/RELEASE d3b_operation")?;
    }
    if deferred_foreign_keys {
        database.defer_foreign_keys(false)?;
    }
    if database.touched_schema {
        database.touched_schema = false;
        database.reload_schema()?;
    }
    Err(refusal.into())
}

/// What an operation leaves open is brought to an end while it can still be refused for it.
fn settle(database: &mut Database) -> Result<(), Refusal> {
    if let Err(error) = database.flush_virtual_tables() {
        return Err(guard::rejection(error, &database.guard)?.into());
    }
    if database.recorder.saw_greatest_rowid() {
        return Err(statement::greatest_rowid().into());
    }
    if database.recorder.has_failed() {
        return Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOMEM), None).into());
    }
    if database.has_deferred_violations() {
        let rejection = Rejection::new(Code::Constraint, "FOREIGN KEY constraint failed")
            .with_hint("a deferred foreign key is still violated at the end of the operation");
        let sqlite_code = Some(rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY);
        return Err(Rejection { sqlite_code, ..rejection }.into());
    }
    Ok(())
}

/// Ends an entry that was executed: folds its effects and its code into the chain, and keeps the answer under its key.
/// `change` tells what it did beside the rows that SQL changed.
pub(crate) fn conclude(
    database: &mut Database,
    entry: Entry<'_>,
    outcome: Outcome,
    change: &str,
) -> rusqlite::Result<Concluded> {
    let fingerprint = advance(database, entry.slot, requests::code(&outcome), change)?;
    requests::store(database, entry.keyed, entry.slot, entry.time_ms, &outcome, fingerprint)?;
    Ok(Concluded { outcome, executed_at: entry.slot, fingerprint })
}

/// Moves the database's state to a slot.
fn advance(database: &mut Database, slot: Slot, code: &str, change: &str) -> rusqlite::Result<Fingerprint> {
    let mut schema = None;
    if std::mem::take(&mut database.touched_schema) {
        schema = Some(database.schema_text()?);
        database.reload_schema()?;
    }
    let previous = database.state.fingerprint;
    let fingerprint = database.recorder.finish(previous, slot, code, change, schema.as_deref());
    database.state.slot = slot;
    database.state.fingerprint = fingerprint;
    Ok(fingerprint)
}
