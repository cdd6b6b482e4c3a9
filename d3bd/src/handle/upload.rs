//! Files on their way into the blob store.

use bytes::{Bytes, BytesMut};
use d3b::{BlobReference, Code, Problem};
use tokio::sync::OwnedSemaphorePermit;

use super::{blocking, io_problem};
use crate::media::BlobWriter;

/// Bytes of an upload that are hashed and written in one go.
const UPLOAD_PIECE: usize = 1 << 20;

/// A file that is being taken in. Dropped before [`BlobUpload::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct BlobUpload {
    state: UploadState,
    piece: BytesMut,
    /// How many are taken in at once is bounded, for each takes memory.
    _place: OwnedSemaphorePermit,
}

/// While one piece is hashed and written on a thread that may block, the next one is received.
#[derive(Debug)]
enum UploadState {
    Idle(Box<BlobWriter>),
    Writing(tokio::task::JoinHandle<std::io::Result<Box<BlobWriter>>>),
    Failed,
}

impl BlobUpload {
    pub(super) fn new(writer: BlobWriter, place: OwnedSemaphorePermit) -> BlobUpload {
        BlobUpload { state: UploadState::Idle(Box::new(writer)), piece: BytesMut::new(), _place: place }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `too-large` past the bound that was given, `disk-full`, `not-ready` when this disk fails.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Problem> {
        self.piece.extend_from_slice(&bytes);
        if self.piece.len() >= UPLOAD_PIECE { self.flush().await } else { Ok(()) }
    }

    async fn writer(&mut self) -> Result<Box<BlobWriter>, Problem> {
        match std::mem::replace(&mut self.state, UploadState::Failed) {
            UploadState::Idle(writer) => Ok(writer),
            UploadState::Writing(task) => match task.await {
                Ok(writer) => writer.map_err(io_problem),
                Err(panic) => Err(Problem::new(Code::Internal, panic.to_string())),
            },
            UploadState::Failed => Err(Problem::new(Code::Internal, "the upload has failed before")),
        }
    }

    async fn flush(&mut self) -> Result<(), Problem> {
        let mut writer = self.writer().await?;
        let piece = self.piece.split().freeze();
        self.state = UploadState::Writing(tokio::task::spawn_blocking(move || {
            writer.write(&piece)?;
            Ok(writer)
        }));
        Ok(())
    }

    /// Makes the file durable and gives it its name, the digest. From here on it is kept for a grace period, and as
    /// long as anything refers to it.
    ///
    /// # Errors
    /// `disk-full`, `not-ready` when this disk fails.
    pub async fn finish(mut self) -> Result<BlobReference, Problem> {
        self.flush().await?;
        let writer = self.writer().await?;
        blocking(move || writer.finish()).await?.map_err(io_problem)
    }
}
