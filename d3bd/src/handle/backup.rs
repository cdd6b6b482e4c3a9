//! Backups in and out, as clients ask for them.

use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};
use d3b::archive::{Header, Member};
use d3b::{BlobReference, CatalogueChange, Code, DatabaseName, Digest, IdempotencyKey, Operation, Problem};
use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{Handle, Level, ReadOptions, WriteAnswer, WriteOptions, blocking, stopping};
use crate::backup::{self, About, Prepared, Restored, Unpacked, Wanted};
use crate::catch_up::{Copy, Order};
use crate::driver::WriteRequest;

/// Bytes of an archive that are sent in one go.
const PIECE: usize = 256 << 10;
/// How many pieces are ready at most before the client has taken them.
const PIECES_MAX: usize = 4;
/// How many files are offered to the group at once.
const OFFERS_MAX: usize = 8;

/// The places of those who take or restore a backup: one each, for it takes disk and time.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    taking: Arc<Semaphore>,
    restoring: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Places {
        Places { taking: Arc::new(Semaphore::new(1)), restoring: Arc::new(Semaphore::new(1)) }
    }
}

/// A backup on its way to a client.
pub struct BackupStream {
    prepared: Prepared,
    place: OwnedSemaphorePermit,
}

impl BackupStream {
    /// What is in it.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.prepared.header
    }

    /// Its bytes. An error ends them before their end.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        tokio::task::spawn_blocking(move || {
            let place = self.place;
            let pieces = Pieces { sender: sender.clone(), piece: BytesMut::with_capacity(PIECE) };
            if let Err(error) = self.prepared.stream(pieces) {
                tracing::warn!(%error, "a backup ended before its end");
                // Whoever took it may have gone.
                drop(sender.blocking_send(Err(error)));
            }
            drop(place);
        });
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        })
    }
}

/// Hands bytes over in pieces.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE)).freeze();
        self.sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() { Ok(()) } else { self.send() }
    }
}

/// The way of an archive's bytes to whoever unpacks it.
pub(crate) struct Intake {
    sender: Option<mpsc::Sender<Bytes>>,
    unpacked: tokio::task::JoinHandle<Result<Unpacked, Problem>>,
    _place: OwnedSemaphorePermit,
}

impl Intake {
    /// Takes the next bytes; false if no more of them are wanted.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> bool {
        match &self.sender {
            Some(sender) => sender.send(bytes).await.is_ok(),
            None => false,
        }
    }

    async fn finish(mut self) -> Result<(Unpacked, OwnedSemaphorePermit), Problem> {
        self.sender = None;
        let unpacked = self.unpacked.await.map_err(|panic| Problem::new(Code::Internal, panic.to_string()))??;
        Ok((unpacked, self._place))
    }
}

/// Bytes that come by a channel.
struct Incoming {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount);
    }
}

/// What was restored.
#[derive(Debug)]
pub struct RestoreAnswer {
    /// The operation's answer.
    pub write: WriteAnswer,
    /// The cluster that the backup was taken of.
    pub cluster: String,
    /// The slot of that cluster's log.
    pub slot: u64,
    /// Its log time, in milliseconds since 1970.
    pub time_ms: u64,
    /// How many databases.
    pub databases: usize,
    /// How many media files.
    pub media: usize,
}

impl Handle {
    /// Takes a backup: it holds everything that was acknowledged before it was asked for.
    ///
    /// # Errors
    /// `overloaded` while another one is under way here; why this replica cannot, or the group does not answer.
    pub async fn backup(&self, deadline: Instant) -> Result<BackupStream, Problem> {
        self.check_quarantine()?;
        self.read_index(deadline).await?;
        let place = Arc::clone(&self.parts().backups.taking).try_acquire_owned();
        let place = place.map_err(|_| Problem::new(Code::Overloaded, "this replica takes another backup already"))?;
        let (reply, begun) = oneshot::channel();
        self.parts()
            .orders
            .try_send(Order::Copy(Copy::Backup(reply)))
            .map_err(|_| Problem::new(Code::Overloaded, "too many copies are being taken"))?;
        let begun = begun.await.map_err(|_| stopping())?;
        let members = self.cluster();
        let about = About {
            cluster: members.cluster,
            members: members
                .replicas
                .into_iter()
                .map(|member| Member { id: member.id, peer: member.peer, role: member.role })
                .collect(),
        };
        // It is given up when whoever waits for it does.
        let (wanted, wanting) = oneshot::channel::<()>();
        let handle = self.clone();
        let runtime = tokio::runtime::Handle::current();
        let others = self.other_replicas();
        let prepared = blocking(move || {
            let parts = handle.parts();
            let world = backup::World {
                log: &parts.log,
                blobs: &parts.blobs,
                fetch: &|reference| {
                    runtime.block_on(parts.fetcher.fetch(reference, &others)).map_err(|error| error.to_string())
                },
                applied: &|| *parts.applied.borrow(),
                abandoned: &|| wanted.is_closed(),
            };
            backup::prepare(begun, about, &world)
        })
        .await?;
        drop(wanting);
        Ok(BackupStream { prepared: prepared?, place })
    }

    /// Begins to take in an archive, and a later one if there are two.
    ///
    /// # Errors
    /// `exists` where this cluster has a database already; `overloaded` while another one is taken in here.
    pub(crate) async fn begin_restore(
        &self,
        two: bool,
        key: Option<&IdempotencyKey>,
        deadline: Instant,
    ) -> Result<Intake, Problem> {
        let read = ReadOptions { level: Level::Linearizable, deadline, result_bytes_max: None };
        let databases = self.databases(read).await?.databases;
        if !databases.is_empty() {
            // A request with a key may be a repeated one, whose answer is not this.
            let repeated = match key {
                Some(key) => self.request_outcome(DatabaseName::catalogue(), key.clone(), read).await.is_ok(),
                None => false,
            };
            if !repeated {
                return Err(not_empty(databases.len()));
            }
        }
        let place = Arc::clone(&self.parts().backups.restoring).try_acquire_owned();
        let place = place.map_err(|_| Problem::new(Code::Overloaded, "this replica restores a backup already"))?;
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let blobs = self.parts().blobs.clone();
        let unpacked = tokio::task::spawn_blocking(move || {
            let mut from = Incoming { receiver, piece: Bytes::new() };
            let mut unpacked = Unpacked::first(&mut from, &blobs)?;
            if two {
                unpacked.later(&mut from)?;
            }
            match from.fill_buf() {
                Ok([]) => Ok(unpacked),
                Ok(_) | Err(_) => Err(Problem::new(Code::BadRequest, "something follows behind the archive")
                    .with_hint("log=true says that the archive of a later backup follows")),
            }
        });
        Ok(Intake { sender: Some(sender), unpacked, _place: place })
    }

    /// Restores what was taken in, if this cluster is still empty.
    ///
    /// # Errors
    /// The archive does not hold what is wanted; `exists`; or why the group cannot answer.
    pub(crate) async fn finish_restore(
        &self,
        intake: Intake,
        wanted: Wanted,
        options: impl FnOnce(&Digest) -> Result<WriteOptions, Problem>,
    ) -> Result<RestoreAnswer, Problem> {
        let (unpacked, _place) = intake.finish().await?;
        let blobs = self.parts().blobs.clone();
        // The same archive restored once more is the same request, although its files may have other bytes.
        let identity = serde_json::to_vec(&(&unpacked.header, format!("{wanted:?}")));
        let identity = Digest::of(&identity.map_err(|error| Problem::new(Code::Internal, error.to_string()))?);
        let restored = blocking(move || backup::replay(&unpacked, wanted, &blobs)).await??;
        let Restored { manifest, reference, time_ms, kept } = restored;
        let options = options(&identity)?;
        let files: Vec<BlobReference> = manifest.files().chain(manifest.media.iter().copied()).collect();
        // The second time only says that all of them are wanted still, for the first ones may have been held for long.
        for _ in 0..2 {
            self.hold_all(&files, options.deadline).await?;
        }
        let write = self.write(Operation::Catalogue(CatalogueChange::Restore { manifest: reference }), options).await?;
        drop(kept);
        Ok(RestoreAnswer {
            write,
            cluster: manifest.cluster,
            slot: manifest.slot.0,
            time_ms,
            databases: manifest.databases.len(),
            media: manifest.media.len(),
        })
    }

    /// Has a majority hold blobs, a few at a time.
    async fn hold_all(&self, files: &[BlobReference], deadline: Instant) -> Result<(), Problem> {
        let mut waiting = tokio::task::JoinSet::new();
        for file in files {
            if waiting.len() >= OFFERS_MAX {
                joined(waiting.join_next().await)?;
            }
            let (handle, file) = (self.clone(), *file);
            waiting.spawn(async move { handle.hold(file, deadline).await });
        }
        while let Some(one) = waiting.join_next().await {
            joined(Some(one))?;
        }
        Ok(())
    }

    /// Has a majority hold a blob, for their grace period.
    async fn hold(&self, blob: BlobReference, deadline: Instant) -> Result<(), Problem> {
        let ticket = self.ticket();
        let kept = self.keep_blob(&blob)?;
        let parts = self.parts();
        let answer = parts.waiting.expect_write(ticket, Some(kept));
        let deadline = self.ticks(deadline);
        let request = WriteRequest { ticket, command: Bytes::new(), blob: Some(blob), retry: false, deadline };
        if let Err(problem) = self.send(crate::driver::Event::Write(request)) {
            parts.waiting.forget_write(ticket);
            return Err(problem);
        }
        match answer.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(failure)) => Err(Problem::new(Code::NoQuorum, failure.to_string())),
            Err(_) => Err(stopping()),
        }
    }
}

/// What came of one of several tasks.
fn joined(one: Option<Result<Result<(), Problem>, tokio::task::JoinError>>) -> Result<(), Problem> {
    match one {
        Some(Ok(result)) => result,
        Some(Err(panic)) => Err(Problem::new(Code::Internal, panic.to_string())),
        None => Ok(()),
    }
}

fn not_empty(databases: usize) -> Problem {
    Problem::new(Code::Exists, format!("this cluster is not empty: it has {databases} databases"))
        .with_hint("a backup is restored into a new cluster; nothing was changed")
}
