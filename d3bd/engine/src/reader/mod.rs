//! Reads beside the engine: from snapshots, on any thread, as many as there are connections for.
//!
//! A read never waits for a write, and never makes one wait. It sees a database as it was after some slot; which slot
//! that must be at least is the caller's business, who waits until [`Readers::applied`] says so.

mod check;
mod export;
mod known;
mod pool;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use d3b::api::{DatabaseInfo, MediaInfo, MediaList, Schema, SchemaObject};
use d3b::{
    Code, DatabaseId, DatabaseName, Digest, FileId, IdempotencyKey, Outcome, Rejection, RowSink, Slot, Statement,
    ValueRef,
};
use rusqlite::{OptionalExtension, StatementStatus, params};

pub use check::check_upload;
pub(crate) use check::{check_catalogue, check_copy, open_immutable};

use crate::apply::Refusal;
use crate::fingerprint::Fingerprint;
use crate::guard::Mode;
use crate::{arguments, requests, text};
use known::Habit;
use pool::{Lease, Pool, Pooled};

/// How long reads that have no deadline of their own wait for a connection.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// What a read may do on the spot: so many thousands of steps of SQLite's virtual machine, and so many bytes of values. It
/// takes a fraction of a millisecond, as long as the pages are in memory.
const QUICK_STEPS: u32 = 6;
const QUICK_BYTES: u64 = 64 << 10;

/// How many media files one page of a list holds at most.
const MEDIA_PAGE_MAX: u32 = 1_000;

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It can be answered from a snapshot.
    Read,
    /// It must go through the log.
    Write,
}

/// What came of an idempotency key.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRequest {
    /// The key.
    pub key: IdempotencyKey,
    /// The slot of its execution.
    pub slot: Slot,
    /// Log time of its execution, in milliseconds since 1970.
    pub time_ms: u64,
    /// The digest of the request.
    pub request: Digest,
    /// What came of it.
    pub outcome: Outcome,
}

/// Where reads are served from. Clones share their connections; all calls may block.
#[derive(Clone)]
pub struct Readers {
    pool: Arc<Pool>,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").field("applied", &self.applied()).finish_non_exhaustive()
    }
}

impl Readers {
    /// Readers of the databases in a directory, which an engine keeps.
    #[must_use]
    pub fn new(directory: &Path) -> Readers {
        Readers { pool: Arc::new(Pool::new(directory)) }
    }

    /// Every database shows the effects of all entries up to here.
    #[must_use]
    pub fn applied(&self) -> Slot {
        self.pool.applied()
    }

    /// Where the files of the databases are.
    pub(crate) fn directory(&self) -> &Path {
        self.pool.directory()
    }

    /// The engine has committed everything up to this slot.
    pub(crate) fn publish(&self, slot: Slot) {
        self.pool.publish(slot);
    }

    /// Closes connections that were idle for some time.
    pub(crate) fn close_stale(&self) {
        self.pool.close_stale();
    }

    /// The catalogue has changed, up to a slot that is yet to be published.
    pub(crate) fn forget_names(&self) {
        self.pool.known.forget_names();
    }

    /// The engine does not serve this database any more.
    pub(crate) fn fence(&self, id: DatabaseId, problem: &str) {
        self.pool.fence(id, problem);
    }

    /// Why the engine does not serve this database, if so.
    pub(crate) fn fenced(&self, id: DatabaseId) -> Option<String> {
        self.pool.fenced(id)
    }

    /// The engine has removed this database.
    pub(crate) fn forget(&self, id: DatabaseId) {
        self.pool.forget(id);
    }

    /// The database that a name means now.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub fn resolve(&self, name: &DatabaseName) -> Result<Option<DatabaseId>, Rejection> {
        if name.is_catalogue() {
            return Ok(Some(DatabaseId::catalogue()));
        }
        let generation = match self.pool.known.id_of(name) {
            Ok(id) => return Ok(Some(id)),
            Err(generation) => generation,
        };
        let found = self.on_catalogue(|catalogue| {
            catalogue
                .own("/*d3b*/SELECT id FROM _d3b_history WHERE name = ? AND until_slot IS NULL")?
                .query_row([name.as_str()], |row| row.get::<_, String>(0))
                .optional()
        })?;
        let id = found
            .map(|id| id.parse().map_err(|error: d3b::InvalidId| Rejection::new(Code::Internal, error.to_string())))
            .transpose()?;
        if let Some(id) = id {
            self.pool.known.remember(name, id, generation);
        }
        Ok(id)
    }

    /// Whether a statement reads or writes, without running it.
    ///
    /// # Errors
    /// Why it could be neither: it is in error or not allowed, or the database does not exist.
    pub fn classify(&self, db: &DatabaseName, sql: &str) -> Result<Kind, Rejection> {
        let id = self.resolve(db)?.ok_or_else(|| not_found(db))?;
        if let Some(habit) = self.pool.known.habit(id, sql) {
            return Ok(habit.kind);
        }
        let kind = self.with_id(id, deadline(), |pooled| classify(pooled, sql))?;
        self.pool.known.set_habit(id, sql, Habit::new(kind));
        Ok(kind)
    }

    /// The same, if it can be told on the spot: where a connection would have to be opened or waited for it cannot.
    #[must_use]
    pub fn classify_now(&self, db: &DatabaseName, sql: &str) -> Option<Result<Kind, Rejection>> {
        let id = self.id_now(db)?;
        if let Some(habit) = self.pool.known.habit(id, sql) {
            return Some(Ok(habit.kind));
        }
        let classified = self.with_idle(id, |pooled| classify(pooled, sql))?;
        if let Ok(kind) = classified {
            self.pool.known.set_habit(id, sql, Habit::new(kind));
        }
        Some(classified)
    }

    fn id_now(&self, db: &DatabaseName) -> Option<DatabaseId> {
        if db.is_catalogue() { Some(DatabaseId::catalogue()) } else { self.pool.known.id_of(db).ok() }
    }

    /// Runs one read and hands its rows out as they come. The answer is a slot: all effects on this database up to
    /// there were visible.
    ///
    /// # Errors
    /// Why the statement cannot be run; `request-timeout` at the deadline; `too-large` when the result exceeds
    /// `result_bytes_max` or the sink wants no more.
    pub fn query(
        &self,
        db: &DatabaseName,
        statement: &Statement,
        deadline: Instant,
        result_bytes_max: Option<u64>,
        sink: &mut dyn RowSink,
    ) -> Result<Slot, Rejection> {
        let applied = self.applied();
        self.with(db, deadline, |pooled| {
            pooled.until(deadline)?;
            query(pooled, statement, applied, result_bytes_max, sink)
        })
    }

    /// The same on the spot, if it is quick: it does not wait for anything but the disk, and gives up soon. Then the sink
    /// may have rows already, which are to be thrown away.
    #[must_use]
    pub fn query_now(
        &self,
        db: &DatabaseName,
        statement: &Statement,
        sink: &mut dyn RowSink,
    ) -> Option<Result<Slot, Rejection>> {
        let id = self.id_now(db)?;
        if self.pool.known.is_slow(id, &statement.sql) {
            return None;
        }
        let applied = self.applied();
        let answer = self.with_idle(id, |pooled| {
            pooled.for_steps(QUICK_STEPS)?;
            query(pooled, statement, applied, Some(QUICK_BYTES), sink)
        })?;
        if let Err(Rejection { code: Code::RequestTimeout | Code::TooLarge, .. }) = answer {
            self.pool.known.set_habit(id, &statement.sql, Habit::slow());
            return None;
        }
        Some(answer)
    }

    /// All databases, in order of their names.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub fn databases(&self) -> Result<Vec<DatabaseInfo>, Rejection> {
        let rows = self.on_catalogue(|catalogue| {
            catalogue
                .own(
                    "/*d3b*/SELECT t.name, h.id, t.owner, t.created FROM tables AS t \
                     JOIN _d3b_history AS h ON h.name = t.name AND h.until_slot IS NULL ORDER BY t.name",
                )?
                .query_map([], entry_of)?
                .collect::<rusqlite::Result<Vec<DatabaseInfo>>>()
        })?;
        let mut databases = Vec::with_capacity(rows.len());
        for info in rows {
            let Ok(id) = info.id.parse() else { continue };
            match self.with_id(id, deadline(), |pooled| complete(pooled, info.clone())) {
                Ok(info) => databases.push(info),
                // It is listed with what the catalogue knows.
                Err(rejection) if rejection.code == Code::DatabaseFenced => databases.push(info),
                // It was dropped just now.
                Err(rejection) if rejection.code == Code::DatabaseNotFound => {}
                Err(rejection) => return Err(rejection),
            }
        }
        Ok(databases)
    }

    /// Every database that there is to read, the catalogue among them.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub fn ids(&self) -> Result<Vec<DatabaseId>, Rejection> {
        let live = self.on_catalogue(|catalogue| {
            catalogue
                .own("/*d3b*/SELECT id FROM _d3b_history WHERE until_slot IS NULL ORDER BY id")?
                .query_map([], |row| row.get::<_, String>(0))?
                .collect::<rusqlite::Result<Vec<String>>>()
        })?;
        let ids = live.iter().filter_map(|id| id.parse().ok());
        Ok(std::iter::once(DatabaseId::catalogue()).chain(ids).collect())
    }

    /// The databases that are not served because their files are damaged, and how that shows.
    #[must_use]
    pub fn damaged(&self) -> BTreeMap<DatabaseId, String> {
        self.pool.all_fenced()
    }

    /// One database.
    ///
    /// # Errors
    /// `db-not-found`, or it cannot be read.
    pub fn database(&self, db: &DatabaseName) -> Result<DatabaseInfo, Rejection> {
        let id = self.resolve(db)?.ok_or_else(|| not_found(db))?;
        let info = self.on_catalogue(|catalogue| {
            catalogue
                .own("/*d3b*/SELECT name, id, owner, created FROM tables WHERE name = ?")?
                .query_row([db.as_str()], entry_of)
                .optional()
        })?;
        let info = match info {
            Some(info) => info,
            None if db.is_catalogue() => empty_info(db.as_str(), id),
            None => return Err(not_found(db)),
        };
        self.with_id(id, deadline(), |pooled| complete(pooled, info))
    }

    /// What a database consists of, without d3b's own tables.
    ///
    /// # Errors
    /// `db-not-found`, or it cannot be read.
    pub fn schema(&self, db: &DatabaseName) -> Result<Schema, Rejection> {
        self.with(db, deadline(), |pooled| {
            let sql = "/*d3b*/SELECT type, name, tbl_name, sql FROM sqlite_schema \
                       WHERE substr(tbl_name, 1, 5) <> '_d3b_' ORDER BY rowid";
            let object = |row: &rusqlite::Row<'_>| {
                Ok(SchemaObject { r#type: row.get(0)?, name: row.get(1)?, table: row.get(2)?, sql: row.get(3)? })
            };
            let objects = pooled.own(sql)?.query_map([], object)?.collect::<rusqlite::Result<_>>()?;
            Ok(Schema { objects })
        })
    }

    /// One media file of a database.
    ///
    /// # Errors
    /// `db-not-found`, or it cannot be read.
    pub fn media(&self, db: &DatabaseName, file_id: &FileId) -> Result<Option<(MediaInfo, Digest)>, Rejection> {
        self.with(db, deadline(), |pooled| {
            let sql = "/*d3b*/SELECT file_id, sha256, size, type, slot FROM _d3b_media WHERE file_id = ?";
            Ok(pooled.own(sql)?.query_row([file_id.as_str()], media_of).optional()?)
        })
    }

    /// Media files of a database in the order of their ids, from the one after `after`.
    ///
    /// # Errors
    /// `db-not-found`, or it cannot be read.
    pub fn media_list(&self, db: &DatabaseName, after: Option<&str>, limit: u32) -> Result<MediaList, Rejection> {
        let limit = limit.clamp(1, MEDIA_PAGE_MAX);
        self.with(db, deadline(), |pooled| {
            let sql = "/*d3b*/SELECT file_id, sha256, size, type, slot FROM _d3b_media WHERE file_id > ? \
                       ORDER BY file_id LIMIT ?";
            let mut media: Vec<MediaInfo> = pooled
                .own(sql)?
                .query_map(params![after.unwrap_or_default(), limit + 1], |row| Ok(media_of(row)?.0))?
                .collect::<rusqlite::Result<_>>()?;
            let more = media.len() > limit as usize;
            media.truncate(limit as usize);
            let next = if more { media.last().map(|last| last.file_id.clone()) } else { None };
            Ok(MediaList { media, next })
        })
    }

    /// What came of a key that was used on a database: there, or with the catalogue where the database did not exist.
    ///
    /// # Errors
    /// A database cannot be read.
    pub fn request(&self, db: &DatabaseName, key: &IdempotencyKey) -> Result<Option<StoredRequest>, Rejection> {
        for id in [self.resolve(db)?, Some(DatabaseId::catalogue())].into_iter().flatten() {
            let found = self.with_id(id, deadline(), |pooled| {
                let sql = "/*d3b*/SELECT slot, time_ms, request, answer FROM _d3b_requests WHERE key = ?";
                let row = |row: &rusqlite::Row<'_>| {
                    Ok((
                        requests::slot_of(row.get(0)?),
                        row.get::<_, u64>(1)?,
                        row.get::<_, [u8; 32]>(2)?,
                        row.get::<_, Vec<u8>>(3)?,
                    ))
                };
                Ok(pooled.own(sql)?.query_row([key.as_str()], row).optional()?)
            })?;
            if let Some((slot, time_ms, request, answer)) = found {
                let outcome = requests::decode_answer(&answer, slot)
                    .map_err(|error| Rejection::new(Code::Internal, error.to_string()))?;
                return Ok(Some(StoredRequest { key: key.clone(), slot, time_ms, request: Digest(request), outcome }));
            }
        }
        Ok(None)
    }

    /// The code and the chain after a slot that concerned a database, as long as its key is kept.
    ///
    /// # Errors
    /// A database cannot be read.
    pub fn outcome_at(&self, db: &DatabaseName, slot: Slot) -> Result<Option<(String, Fingerprint)>, Rejection> {
        for id in [self.resolve(db)?, Some(DatabaseId::catalogue())].into_iter().flatten() {
            let found = self.with_id(id, deadline(), |pooled| {
                let sql = "/*d3b*/SELECT code, fingerprint FROM _d3b_requests WHERE slot = ?";
                Ok(pooled.own(sql)?.query_row([slot.0], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Writes a consistent copy of a database to a file: without d3b's own tables, with a rollback-mode header, and
    /// with nothing beside it. Rowids are kept.
    ///
    /// # Errors
    /// `db-not-found`; `request-timeout` at the deadline; `disk-full`; the copy cannot be written.
    pub fn export(&self, db: &DatabaseName, to: &Path, deadline: Instant) -> Result<(), Rejection> {
        self.with(db, deadline, |pooled| export::copy(pooled.connection(), to, deadline))
    }

    fn on_catalogue<T>(&self, read: impl FnOnce(&Pooled) -> rusqlite::Result<T>) -> Result<T, Rejection> {
        self.with_id(DatabaseId::catalogue(), deadline(), |pooled| Ok(read(pooled)?))
    }

    fn with<T>(
        &self,
        db: &DatabaseName,
        deadline: Instant,
        read: impl FnOnce(&mut Pooled) -> Result<T, Refusal>,
    ) -> Result<T, Rejection> {
        let id = self.resolve(db)?.ok_or_else(|| not_found(db))?;
        self.with_id(id, deadline, read)
    }

    /// Runs a read on a connection of its own.
    fn with_id<T>(
        &self,
        id: DatabaseId,
        deadline: Instant,
        read: impl FnOnce(&mut Pooled) -> Result<T, Refusal>,
    ) -> Result<T, Rejection> {
        on_lease(self.pool.take(id, deadline)?, read)
    }

    /// The same, if a connection is open and idle.
    fn with_idle<T>(
        &self,
        id: DatabaseId,
        read: impl FnOnce(&mut Pooled) -> Result<T, Refusal>,
    ) -> Option<Result<T, Rejection>> {
        self.pool.take_idle(id).map(|lease| on_lease(lease, read))
    }
}

fn on_lease<T>(mut lease: Lease<'_>, read: impl FnOnce(&mut Pooled) -> Result<T, Refusal>) -> Result<T, Rejection> {
    match read(lease.pooled()) {
        Ok(value) => {
            lease.give_back();
            Ok(value)
        }
        Err(Refusal::Rejected(rejection)) => {
            lease.give_back();
            Err(rejection)
        }
        // The connection goes with its trouble.
        Err(Refusal::Failed(error)) => Err(pool::failed(&error)),
    }
}

/// What a statement does.
fn classify(pooled: &mut Pooled, sql: &str) -> Result<Kind, Refusal> {
    let reads = |statement: &rusqlite::Statement<'_>| statement.readonly() || statement.is_explain() != 0;
    match pooled.prepare(sql, mode(sql), reads)? {
        Ok(true) => return Ok(Kind::Read),
        Ok(false) => return Ok(Kind::Write),
        Err(rejection) if rejection.code != Code::StatementDenied => return Err(rejection.into()),
        Err(_) => {}
    }
    // What a read may not do, a write perhaps may; if not, its refusal says why.
    match pooled.prepare(sql, Mode::Write, |_| ())? {
        Ok(()) => Ok(Kind::Write),
        Err(rejection) => Err(rejection.into()),
    }
}

/// Runs a read in a snapshot.
fn query(
    pooled: &mut Pooled,
    statement: &Statement,
    applied: Slot,
    result_bytes_max: Option<u64>,
    sink: &mut dyn RowSink,
) -> Result<Slot, Refusal> {
    pooled.snapshot(|pooled| {
        let slot = state(pooled)?.0;
        run(pooled, statement, result_bytes_max, sink)?;
        Ok(slot.max(applied))
    })
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

fn not_found(db: &DatabaseName) -> Rejection {
    crate::catalogue::not_found(db)
}

/// Slot and chain of the snapshot.
fn state(pooled: &Pooled) -> rusqlite::Result<(Slot, Fingerprint)> {
    pooled
        .own("/*d3b*/SELECT slot, fingerprint FROM _d3b_state")?
        .query_row([], |row| Ok((Slot(row.get(0)?), row.get(1)?)))
}

fn empty_info(name: &str, id: DatabaseId) -> DatabaseInfo {
    DatabaseInfo {
        name: name.to_owned(),
        id: id.to_string(),
        owner: String::new(),
        size: 0,
        slot: 0,
        created: String::new(),
        fingerprint: String::new(),
        media: 0,
    }
}

/// What the catalogue knows of a database: name, id, owner, created.
fn entry_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<DatabaseInfo> {
    Ok(DatabaseInfo {
        name: row.get(0)?,
        id: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
        owner: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
        size: 0,
        slot: 0,
        created: row.get(3)?,
        fingerprint: String::new(),
        media: 0,
    })
}

/// Adds what the database itself knows.
fn complete(pooled: &mut Pooled, info: DatabaseInfo) -> Result<DatabaseInfo, Refusal> {
    pooled.snapshot(|pooled| {
        let (slot, fingerprint) = state(pooled)?;
        let number = |sql: &str| pooled.own(sql)?.query_row([], |row| row.get::<_, u64>(0));
        let pages = number("/*d3b*/PRAGMA page_count")?;
        let size = pages * number("/*d3b*/PRAGMA page_size")?;
        let media = number("/*d3b*/SELECT count(*) FROM _d3b_media")?;
        Ok(DatabaseInfo { size, slot: slot.0, fingerprint: fingerprint.to_string(), media, ..info })
    })
}

fn media_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<(MediaInfo, Digest)> {
    let digest = Digest(row.get(1)?);
    let info = MediaInfo {
        file_id: row.get(0)?,
        size: row.get(2)?,
        sha256: digest.to_string(),
        r#type: row.get(3)?,
        slot: row.get(4)?,
    };
    Ok((info, digest))
}

/// What a text may do on a connection that cannot write. The plan of a write is a read.
fn mode(sql: &str) -> Mode {
    if text::first_word(sql).eq_ignore_ascii_case("EXPLAIN") { Mode::Write } else { Mode::Read }
}

/// Runs a statement that only reads.
fn run(
    pooled: &mut Pooled,
    statement: &Statement,
    result_bytes_max: Option<u64>,
    sink: &mut dyn RowSink,
) -> Result<(), Refusal> {
    let (connection, guard, admitted) = pooled.parts();
    guard.set(mode(&statement.sql));
    let mut prepared = admitted.prepare(connection, guard, &statement.sql)?;
    arguments::bind(&mut prepared, &statement.arguments)?;
    prepared.reset_status(StatementStatus::VmStep);
    let mut rows = prepared.raw_query();
    let mut width = None;
    let mut bytes = 0_u64;
    loop {
        // SQLite may prepare the statement anew in the first step: only then its columns are sure.
        let stepped = match rows.next() {
            Ok(Some(row)) => {
                let width = match width {
                    Some(width) => width,
                    None => *width.insert(columns(row.as_ref(), sink)?),
                };
                let mut values = Vec::with_capacity(width);
                for column in 0..width {
                    values.push(value(row.get_ref(column)?));
                }
                bytes += values.iter().map(|value| value.size() as u64).sum::<u64>();
                if result_bytes_max.is_some_and(|bound| bytes > bound) {
                    return Err(too_large(result_bytes_max.unwrap_or_default()));
                }
                sink.row(&values).map_err(|closed| Rejection::new(Code::TooLarge, closed.to_string()))?;
                true
            }
            Ok(None) => false,
            Err(error) => return Err(pool::refused(error, guard)?.into()),
        };
        if !stepped {
            break;
        }
    }
    drop(rows);
    if width.is_none() {
        columns(&prepared, sink)?;
    }
    Ok(())
}

/// Tells the sink what the columns are, and gives their number.
fn columns(statement: &rusqlite::Statement<'_>, sink: &mut dyn RowSink) -> Result<usize, Refusal> {
    let (mut names, mut types) = (Vec::new(), Vec::new());
    for column in statement.columns() {
        names.push(column.name().to_owned());
        types.push(column.decl_type().unwrap_or_default().to_owned());
    }
    sink.columns(&names, &types).map_err(|closed| Rejection::new(Code::TooLarge, closed.to_string()))?;
    Ok(names.len())
}

fn value(value: rusqlite::types::ValueRef<'_>) -> ValueRef<'_> {
    match value {
        rusqlite::types::ValueRef::Null => ValueRef::Null,
        rusqlite::types::ValueRef::Integer(integer) => ValueRef::Integer(integer),
        rusqlite::types::ValueRef::Real(real) => ValueRef::Real(real),
        rusqlite::types::ValueRef::Text(bytes) => ValueRef::Text(String::from_utf8_lossy(bytes)),
        rusqlite::types::ValueRef::Blob(bytes) => ValueRef::Blob(bytes),
    }
}

fn too_large(bound: u64) -> Refusal {
    Rejection::new(Code::TooLarge, format!("the result is larger than {bound} bytes"))
        .with_hint("ask for fewer rows, or for a streamed format")
        .into()
}

#[cfg(test)]
mod tests;
