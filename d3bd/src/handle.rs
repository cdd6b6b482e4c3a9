//! What the HTTP routes and the schema service see of the daemon: requests in the vocabulary of the `d3b` crate, and
//! nothing of ballots, SQLite or sockets.

mod admin;
mod backup;
mod members;
mod operate;
mod reads;
mod upload;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use bytes::Bytes;
use d3b::api::{DatabaseInfo, DatabaseList, LogEntry, LogPage, MediaInfo, MediaList, RequestOutcome, Schema};
use d3b::operation::KeyedOperation;
use d3b::{
    Answer, BlobReference, CatalogueChange, Code, DatabaseName, Digest, FileId, IdempotencyKey, MediaChange, Operation,
    Problem, Rejection, ReplicaId, Slot,
};
use d3b_engine::command::{Command, Origin};
use d3b_engine::reader::Readers;
use d3b_paxos::types::Ticks;
use futures_util::Stream;
use tokio::sync::{Semaphore, watch};

use crate::disk::{RecentRoom, Room};
use crate::driver::{DriverStatus, Event, Ticket, Unavailable, WriteFailure, WriteRequest};
use crate::driving::Events;
use crate::log::LogReader;
use crate::media::{BlobStore, Fetcher, Kept};
use crate::peer::Peers;
use crate::turns::Refused;

pub(crate) use backup::Places;
pub use backup::{BackupStream, RestoreAnswer};
pub use upload::BlobUpload;
pub(crate) use waiting::Waiting;

/// How many reads may run in SQLite at once; later ones wait for their turn until their deadline.
const CONCURRENT_READS_MAX: usize = 64;
/// How many of them may be for streamed results: these wait for their clients, who must not keep all others waiting.
const CONCURRENT_STREAMS_MAX: usize = 32;
/// How many files may be taken in at once.
const UPLOADS_MAX: usize = 512;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Sees every write that was acknowledged anywhere before the read began.
    Linearizable,
    /// What this replica has, unless the leader has not been heard from for longer than the bound.
    Stale {
        /// The bound; `None` takes any age.
        max_staleness: Option<Duration>,
    },
    /// Sees everything up to a slot.
    AtLeast(Slot),
}

/// How to read.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions {
    /// How fresh.
    pub level: Level,
    /// When the client gives up.
    pub deadline: Instant,
    /// Bytes of values after which a result is `too-large`; `None` for streamed forms.
    pub result_bytes_max: Option<u64>,
}

/// How to write.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// The client's idempotency key.
    pub key: Option<IdempotencyKey>,
    /// Digest over route, database and body: tells a repeated request from another one.
    pub request: Digest,
    /// When the client gives up.
    pub deadline: Instant,
}

/// A write that has an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteAnswer {
    /// What it gave.
    pub answer: Answer,
    /// The slot that executed it.
    pub slot: Slot,
    /// The key that it was executed under: the client's, or one that this replica made.
    pub key: IdempotencyKey,
}

/// What became of a statement that may read or write.
#[derive(Debug)]
pub enum Executed<S> {
    /// It was a read; its rows are in the sink.
    Read {
        /// The sink that was given.
        sink: S,
        /// Everything up to here was visible.
        slot: Slot,
    },
    /// It was a write.
    Write(WriteAnswer),
}

/// The parts that a handle connects.
pub(crate) struct Parts {
    pub(crate) replica: ReplicaId,
    pub(crate) incarnation: u64,
    pub(crate) started: Instant,
    pub(crate) events: Events,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) status: watch::Receiver<Arc<DriverStatus>>,
    pub(crate) applied: watch::Receiver<Slot>,
    pub(crate) readers: Readers,
    pub(crate) log: LogReader,
    pub(crate) blobs: BlobStore,
    pub(crate) room: RecentRoom,
    pub(crate) fetcher: Fetcher,
    pub(crate) peers: Peers,
    pub(crate) http_address: String,
    pub(crate) execution: u32,
    /// The way to whoever copies everything.
    pub(crate) orders: SyncSender<crate::catch_up::Order>,
    pub(crate) backups: Places,
    /// The place of whoever has the log read.
    pub(crate) verifying: Arc<Semaphore>,
}

impl Parts {
    /// A key for a write that came without one. It has no date: this replica's clock may be wrong by hours, and the group,
    /// which goes by log time, would refuse what is dated ahead.
    fn fresh_key(&self, ticket: Ticket) -> IdempotencyKey {
        let key = format!("d3bd-{}-{:016x}-{:x}", self.replica, self.incarnation, ticket.0);
        IdempotencyKey::new(key).expect("digits and dashes are printable ASCII")
    }
}

struct Inner {
    parts: Parts,
    next_ticket: AtomicU64,
    reads: Semaphore,
    streams: Semaphore,
    uploads: Arc<Semaphore>,
}

/// A cheap, shared way to the daemon.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

impl Handle {
    /// Connects the parts.
    pub(crate) fn new(parts: Parts) -> Handle {
        // Every process counts from a number of its own: peers may still answer what the one before was told to ask.
        let next_ticket = AtomicU64::new(parts.incarnation >> 1);
        let (reads, streams) = (Semaphore::new(CONCURRENT_READS_MAX), Semaphore::new(CONCURRENT_STREAMS_MAX));
        let uploads = Arc::new(Semaphore::new(UPLOADS_MAX));
        Handle { inner: Arc::new(Inner { parts, next_ticket, reads, streams, uploads }) }
    }

    /// Which replica answers.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.parts().replica
    }

    fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.inner.next_ticket.fetch_add(1, Ordering::Relaxed))
    }

    /// A moment of this process as the driver counts it.
    fn ticks(&self, moment: Instant) -> Ticks {
        let since = moment.saturating_duration_since(self.parts().started);
        Ticks(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn send(&self, event: Event) -> Result<(), Problem> {
        self.parts().events.try_send(event).map_err(|refused| match refused {
            Refused::Full => Problem::new(Code::Overloaded, "the queue of requests is full"),
            Refused::Closed => stopping(),
        })
    }

    /// Replicates an operation and waits for its outcome. The bytes of its blob, if it has one, must be in this
    /// replica's store; a majority holds them before the operation is proposed.
    ///
    /// # Errors
    /// The replicated refusal, or why there is no outcome; `outcome-unknown` carries the key to ask with.
    pub async fn write(&self, operation: Operation, options: WriteOptions) -> Result<WriteAnswer, Problem> {
        self.check_quarantine()?;
        let db = operation.database();
        let retry = options.key.is_some();
        let (blob, need) = (operation.blob(), need(&operation));
        let ticket = self.ticket();
        let parts = self.parts();
        let key = options.key.unwrap_or_else(|| parts.fresh_key(ticket));
        let origin = Origin { replica: parts.replica, incarnation: parts.incarnation, sequence: ticket.0 };
        let keyed = KeyedOperation { key: key.clone(), request: options.request, operation };
        let command = Bytes::from(d3b_engine::command::encode(&Command { origin, keyed }));
        self.check_room(need, command.len())?;
        let kept = blob.map(|blob| self.keep_blob(&blob)).transpose()?;
        let answer = parts.waiting.expect_write(ticket, kept);
        let request = WriteRequest { ticket, command, blob, retry, deadline: self.ticks(options.deadline) };
        if let Err(problem) = self.send(Event::Write(request)) {
            parts.waiting.forget_write(ticket);
            return Err(problem);
        }
        match answer.await {
            Ok(Ok((slot, Ok(answer)))) => Ok(WriteAnswer { answer, slot, key }),
            Ok(Ok((_, Err(rejection)))) => Err(about(&db, rejection)),
            Ok(Err(failure)) => Err(write_failure(failure, &db, &key)),
            // The process is stopping with the write under way.
            Err(_) => Err(write_failure(WriteFailure::OutcomeUnknown, &db, &key)),
        }
    }

    /// A full disk is noticed before anything is proposed: the log could only stop this replica.
    fn check_room(&self, need: Need, command_bytes: usize) -> Result<(), Problem> {
        let parts = self.parts();
        let room = match need {
            Need::Deletion => parts.blobs.room().and_then(Room::for_deletion),
            Need::Command => parts.room.for_command(command_bytes as u64),
            Need::File(bytes) => parts.blobs.room().and_then(|room| room.for_file(bytes)),
        };
        room.map_err(io_problem)
    }

    /// Keeps a file that was taken in from being collected, however long its operation takes to come about.
    ///
    /// # Errors
    /// `not-ready` if that has happened already.
    pub(crate) fn keep_blob(&self, blob: &BlobReference) -> Result<Kept, Problem> {
        let blobs = &self.parts().blobs;
        let kept = blobs.keep(&blob.digest);
        if blobs.contains(&blob.digest) {
            Ok(kept)
        } else {
            Err(Problem::new(Code::NotReady, "the file was kept for its grace period, and no longer")
                .with_hint("send it again"))
        }
    }

    /// Lists the databases.
    ///
    /// # Errors
    /// Why the group cannot answer.
    pub async fn databases(&self, options: ReadOptions) -> Result<DatabaseList, Problem> {
        self.on_readers(options, |readers| Ok(DatabaseList { databases: readers.databases()? })).await
    }

    /// Tells of one database.
    ///
    /// # Errors
    /// `db-not-found`, or why the group cannot answer.
    pub async fn database(&self, db: DatabaseName, options: ReadOptions) -> Result<DatabaseInfo, Problem> {
        self.on_readers(options, move |readers| readers.database(&db).map_err(|rejection| about(&db, rejection))).await
    }

    /// Tells a database's schema.
    ///
    /// # Errors
    /// `db-not-found`, or why the group cannot answer.
    pub async fn schema(&self, db: DatabaseName, options: ReadOptions) -> Result<Schema, Problem> {
        self.on_readers(options, move |readers| readers.schema(&db).map_err(|rejection| about(&db, rejection))).await
    }

    /// Lists media files in order of their ids, from after `after` on.
    ///
    /// # Errors
    /// `db-not-found`, or why the group cannot answer.
    pub async fn media_list(
        &self,
        db: DatabaseName,
        after: Option<String>,
        limit: u32,
        options: ReadOptions,
    ) -> Result<MediaList, Problem> {
        self.on_readers(options, move |readers| {
            readers.media_list(&db, after.as_deref(), limit).map_err(|rejection| about(&db, rejection))
        })
        .await
    }

    /// Tells of one media file.
    ///
    /// # Errors
    /// `media-not-found`, `db-not-found`, or why the group cannot answer.
    pub async fn media_info(
        &self,
        db: DatabaseName,
        file_id: FileId,
        options: ReadOptions,
    ) -> Result<MediaFile, Problem> {
        self.on_readers(options, move |readers| {
            let row = readers.media(&db, &file_id).map_err(|rejection| about(&db, rejection))?;
            let Some((info, digest)) = row else {
                let detail = format!("the database {db} has no media file {:?}", file_id.as_str());
                return Err(Problem::new(Code::MediaNotFound, detail).with_db(db.as_str()));
            };
            Ok(MediaFile { info, digest })
        })
        .await
    }

    /// Tells what came of an idempotency key.
    ///
    /// # Errors
    /// `not-found` for a key that was not executed (yet) or is no longer kept.
    pub async fn request_outcome(
        &self,
        db: DatabaseName,
        key: IdempotencyKey,
        options: ReadOptions,
    ) -> Result<RequestOutcome, Problem> {
        self.on_readers(options, move |readers| {
            let stored = readers.request(&db, &key).map_err(|rejection| about(&db, rejection))?;
            let Some(stored) = stored else {
                return Err(Problem::new(Code::NotFound, "no request with this key was executed here")
                    .with_hint("it may be under way still, or its key was dropped after 24 hours")
                    .with_db(db.as_str()));
            };
            let (outcome, answer) = match stored.outcome {
                Ok(answer) => ("ok".to_owned(), crate::http::answer_json(&answer, stored.slot)),
                Err(rejection) => (rejection.code.to_string(), Problem::from(rejection).to_json()),
            };
            let time = crate::time::rfc3339(stored.time_ms);
            Ok(RequestOutcome { key: key.as_str().to_owned(), slot: stored.slot.0, time, outcome, answer })
        })
        .await
    }

    /// Begins to take in a file's bytes.
    ///
    /// # Errors
    /// `overloaded`, `disk-full` or `internal`.
    pub async fn begin_blob(&self, size_max: u64) -> Result<BlobUpload, Problem> {
        self.check_quarantine()?;
        let place = Arc::clone(&self.inner.uploads).try_acquire_owned();
        let place = place.map_err(|_| Problem::new(Code::Overloaded, "too many files are being taken in"))?;
        let blobs = self.parts().blobs.clone();
        let writer = blocking(move || blobs.writer(size_max)).await?.map_err(io_problem)?;
        Ok(BlobUpload::new(writer, place))
    }

    /// The path of a blob that is on this replica's disk.
    pub(crate) fn blob_path(&self, reference: &BlobReference) -> Option<std::path::PathBuf> {
        self.parts().blobs.path(&reference.digest)
    }

    /// Finds a media file for a plain GET: by this replica's own state, however old.
    ///
    /// # Errors
    /// `media-not-found` or `db-not-found`, as far as this replica knows.
    pub async fn open_media(&self, db: DatabaseName, file_id: FileId) -> Result<MediaFile, Problem> {
        let options = ReadOptions {
            level: Level::Stale { max_staleness: None },
            deadline: Instant::now() + Duration::from_secs(10),
            result_bytes_max: None,
        };
        self.media_info(db, file_id, options).await
    }

    /// The bytes of a media file, from the local disk, or streamed through from a peer that has them.
    ///
    /// # Errors
    /// `not-ready` when neither this replica nor any peer in reach has the bytes.
    pub async fn media_bytes(
        &self,
        media: &MediaFile,
        offset: u64,
        length: u64,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>, Problem> {
        use futures_util::future::Either;
        let parts = self.parts();
        let (blobs, digest) = (parts.blobs.clone(), media.digest);
        let local = blocking(move || blobs.open_file(&digest)).await?;
        let blob = BlobReference { digest, size: media.info.size };
        match local {
            Ok(file) => Ok(Either::Left(crate::media::blob_stream(&parts.blobs, file, blob, offset, length))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let remote = parts.fetcher.open_remote(media.digest, offset, length, &self.other_replicas()).await;
                remote.map(Either::Right).map_err(|error| {
                    Problem::new(Code::NotReady, format!("the file's bytes are on no replica in reach: {error}"))
                })
            }
            Err(error) => Err(io_problem(error)),
        }
    }

    fn other_replicas(&self) -> Vec<ReplicaId> {
        self.parts().status.borrow().others(self.replica())
    }

    /// A consistent copy of a database, without d3b's own tables.
    ///
    /// # Errors
    /// `db-not-found`, `disk-full`, or why the group cannot answer.
    pub async fn export(&self, db: DatabaseName, options: ReadOptions) -> Result<ExportedFile, Problem> {
        let blobs = self.parts().blobs.clone();
        self.on_readers(options, move |readers| {
            let size = readers.database(&db).map_err(|rejection| about(&db, rejection))?.size;
            blobs.room().and_then(|room| room.for_file(size)).map_err(io_problem)?;
            let directory = blobs.temporary_directory();
            let copy = tempfile::Builder::new().prefix("export-").tempfile_in(directory).map_err(io_problem)?;
            let slot = readers.applied();
            readers.export(&db, copy.path(), options.deadline).map_err(|rejection| about(&db, rejection))?;
            // Only the open file is kept: its name goes now, its space when the download ends.
            let file = std::fs::File::open(copy.path()).map_err(io_problem)?;
            let size = file.metadata().map_err(io_problem)?.len();
            Ok(ExportedFile { file, size, slot })
        })
        .await
    }

    /// Entries of the Paxos log in order: from `from` up, or the newest.
    ///
    /// # Errors
    /// `slot-compacted` below the log's base; `internal` when the log cannot be read.
    pub async fn log_page(&self, from: Option<u64>, limit: u64, db: Option<DatabaseName>) -> Result<LogPage, Problem> {
        let (log, readers, status) = self.log_parts();
        blocking(move || crate::inspect::page(&log, &readers, &status, from.map(Slot), limit, db.as_ref())).await?
    }

    /// One entry of the Paxos log.
    ///
    /// # Errors
    /// `not-found` above the end, `slot-compacted` below the base.
    pub async fn log_entry(&self, slot: u64) -> Result<LogEntry, Problem> {
        let (log, readers, status) = self.log_parts();
        blocking(move || crate::inspect::entry(&log, &readers, &status, Slot(slot))).await?
    }

    /// The driver's status is published a little after entries are applied. Whoever follows the log is woken by the
    /// latter, and is to see what came of them.
    fn log_parts(&self) -> (LogReader, Readers, DriverStatus) {
        let parts = self.parts();
        let mut status = DriverStatus::clone(&self.status());
        status.applied = status.applied.max(*parts.applied.borrow());
        status.commit = status.commit.max(status.applied);
        (parts.log.clone(), parts.readers.clone(), status)
    }

    /// Tells whenever this replica has applied more.
    #[must_use]
    pub fn applied_watch(&self) -> watch::Receiver<Slot> {
        self.parts().applied.clone()
    }
}

/// A media file that this replica knows of.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaFile {
    /// What the API tells of it.
    pub info: MediaInfo,
    /// The name of its bytes.
    pub digest: Digest,
}

/// A copy of a database, on its way to a client; it has no name any more and goes when it is closed.
#[derive(Debug)]
pub struct ExportedFile {
    /// The copy, at its beginning.
    pub file: std::fs::File,
    /// Bytes.
    pub size: u64,
    /// Everything up to here is in it.
    pub slot: Slot,
}

/// Runs work that may block on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| Problem::new(Code::Internal, panic.to_string()))
}

/// What an operation needs of the disk.
#[derive(Debug, Clone, Copy)]
enum Need {
    /// It makes room.
    Deletion,
    /// As much as its command takes.
    Command,
    /// A copy of a file of so many bytes.
    File(u64),
}

fn need(operation: &Operation) -> Need {
    match operation {
        Operation::Sql { media, .. } => match media {
            Some(MediaChange::Delete { .. }) => Need::Deletion,
            Some(MediaChange::Upload { .. }) | None => Need::Command,
        },
        Operation::Catalogue(change) => match change {
            CatalogueChange::Delete { .. } | CatalogueChange::RawDelete { .. } => Need::Deletion,
            CatalogueChange::Upload { blob, .. } => blob.map_or(Need::Command, |blob| Need::File(blob.size)),
            CatalogueChange::RawUpload { blob, .. } => Need::File(blob.size),
            // Who restores has looked for room for all of it.
            CatalogueChange::Restore { .. } => Need::Command,
        },
    }
}

fn about(db: &DatabaseName, rejection: Rejection) -> Problem {
    Problem::from(rejection).with_db(db.as_str())
}

fn stopping() -> Problem {
    Problem::new(Code::NotReady, "this replica is stopping").with_hint("ask another replica")
}

fn unavailable(unavailable: Unavailable) -> Problem {
    let detail = unavailable.to_string();
    match unavailable {
        Unavailable::NoQuorum => Problem::new(Code::NoQuorum, detail)
            .with_hint("see GET /v1/cluster for who is reachable; level=stale reads what this replica has"),
        Unavailable::Forming { .. } => {
            Problem::new(Code::NotReady, detail).with_hint("every replica that --replicas names must be started once")
        }
        Unavailable::Outcast { .. } => Problem::new(Code::NotReady, detail),
        Unavailable::Quarantined { .. } => Problem::new(Code::Quarantined, detail)
            .with_hint("ask another replica; d3bctl cluster rebuild repairs this one, see d3b-recovery(7)"),
        Unavailable::Overloaded => Problem::new(Code::Overloaded, detail),
    }
}

fn write_failure(failure: WriteFailure, db: &DatabaseName, key: &IdempotencyKey) -> Problem {
    let detail = failure.to_string();
    match failure {
        WriteFailure::Unavailable(reason) => unavailable(reason).with_db(db.as_str()),
        WriteFailure::Overloaded => Problem::new(Code::Overloaded, detail).with_db(db.as_str()),
        WriteFailure::BlobNotHeld => Problem::new(Code::NoQuorum, detail).with_db(db.as_str()),
        WriteFailure::OutcomeUnknown => {
            let mut problem = Problem::new(Code::OutcomeUnknown, detail)
                .with_hint(format!("GET /v1/db/{db}/requests/{} tells whether it took effect", key.as_str()))
                .with_db(db.as_str());
            problem.idempotency_key = Some(key.as_str().to_owned());
            problem
        }
    }
}

/// An I/O error of a file of ours, as a client sees it.
pub(crate) fn io_problem(error: std::io::Error) -> Problem {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Problem::new(Code::DiskFull, "this replica's disk is full").with_hint("free space, or ask another replica")
        }
        std::io::ErrorKind::FileTooLarge => Problem::new(Code::TooLarge, error.to_string()),
        _ => {
            // Nothing was proposed, and another replica may do better: the client is not told of a bug, the operator of
            // an error.
            tracing::error!(%error, "a file of this replica failed");
            Problem::new(Code::NotReady, format!("a file of this replica failed: {error}"))
                .with_hint("ask another replica")
        }
    }
}
