//! Files as streams, read on threads that may block, one piece ahead of the socket.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use d3b::{BlobReference, Hasher};
use futures_util::Stream;
use tokio::task::JoinHandle;

use super::BlobStore;

/// How much is read at once: large enough that the system calls do not show, small enough to stay in the caches.
const PIECE: usize = 256 << 10;

/// The bytes of a file from `offset` on, `length` of them. A file that ends early ends the stream with an error.
/// Memory: two pieces of 256 KiB, whatever the length. A thread is held while a piece is read, never while the socket
/// is waited for: there are only so many of them, and readers who take their time would soon hold them all.
pub fn file_stream(file: File, offset: u64, length: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    stream(file, offset, length, None)
}

/// The same of a blob. A disk may give back something else than was written to it: whoever is sent all of the blob gets
/// its last piece only when the digest is right, and an error otherwise; the blob is then set aside, so that it is
/// missing here, and peers are asked for it. A part has no digest that it could be compared with.
pub fn blob_stream(
    store: &BlobStore,
    file: File,
    blob: BlobReference,
    offset: u64,
    length: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let whole = offset == 0 && length == blob.size;
    stream(file, offset, length, whole.then(|| Check { store: store.clone(), blob, hasher: Hasher::new() }))
}

fn stream(
    file: File,
    offset: u64,
    length: u64,
    check: Option<Check>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let end = offset.saturating_add(length);
    let reading = Reading { file: Arc::new(file), at: offset, end, ahead: None, check };
    futures_util::stream::unfold(reading, |mut reading| async move {
        let piece = reading.next().await?;
        Some((piece, reading))
    })
}

/// A file that is being read.
struct Reading {
    file: Arc<File>,
    /// Where the next piece begins.
    at: u64,
    end: u64,
    /// The next piece, on its way while the socket takes the one before it.
    ahead: Option<JoinHandle<(io::Result<Bytes>, Option<Check>)>>,
    /// What the pieces are to make up; it goes along with the piece that is on its way.
    check: Option<Check>,
}

/// Compares a blob with its name while it is read.
struct Check {
    store: BlobStore,
    blob: BlobReference,
    hasher: Hasher,
}

impl Check {
    /// Takes in the next piece; the last one is held back if the whole is not what it should be.
    fn take_in(&mut self, piece: io::Result<Bytes>) -> io::Result<Bytes> {
        let damaged = match &piece {
            Ok(bytes) => {
                self.hasher.update(bytes);
                self.hasher.length() == self.blob.size && std::mem::take(&mut self.hasher).finish() != self.blob.digest
            }
            Err(error) => error.kind() == io::ErrorKind::UnexpectedEof,
        };
        if !damaged {
            return piece;
        }
        self.store.set_aside(&self.blob.digest);
        Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not what was stored"))
    }
}

impl Reading {
    fn begin(&mut self) {
        if self.ahead.is_none() && self.at < self.end {
            let (file, at, end) = (Arc::clone(&self.file), self.at, self.end);
            let mut check = self.check.take();
            self.ahead = Some(tokio::task::spawn_blocking(move || {
                let piece = read_piece(&file, at, end);
                let piece = match &mut check {
                    Some(check) => check.take_in(piece),
                    None => piece,
                };
                (piece, check)
            }));
        }
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.begin();
        let read = self.ahead.take()?.await;
        let (piece, check) = read.unwrap_or_else(|panic| (Err(io::Error::other(panic.to_string())), None));
        self.check = check;
        match &piece {
            Ok(bytes) => {
                self.at += bytes.len() as u64;
                self.begin();
            }
            Err(_) => self.at = self.end,
        }
        Some(piece)
    }
}

fn read_piece(file: &File, at: u64, end: u64) -> io::Result<Bytes> {
    let length = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
    let mut piece = vec![0; length];
    let read = file.read_at(&mut piece, at)?;
    if read == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it should be"));
    }
    piece.truncate(read);
    Ok(piece.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures_util::StreamExt as _;

    use super::*;

    async fn collect(bytes: &[u8], offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut stream = std::pin::pin!(file_stream(file, offset, length));
        let mut collected = Vec::new();
        while let Some(piece) = stream.next().await {
            let piece = piece?;
            assert!(piece.len() <= PIECE);
            collected.extend_from_slice(&piece);
        }
        Ok(collected)
    }

    #[tokio::test]
    async fn ranges_of_a_file() {
        let bytes: Vec<u8> = (0..700_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        assert_eq!(collect(&bytes, 0, 700_000).await.unwrap(), bytes);
        assert_eq!(collect(&bytes, 300_000, 262_144).await.unwrap(), &bytes[300_000..562_144]);
        assert!(collect(&bytes, 5, 0).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_file_that_ends_early_is_an_error() {
        let error = collect(b"abc", 0, 10).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_blob_that_is_not_what_was_stored_is_not_given_out_whole_and_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let bytes: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let mut writer = store.writer(1 << 20).unwrap();
        writer.write(&bytes).unwrap();
        let blob = writer.finish().unwrap();
        let read = async |offset: u64, length: u64| {
            let file = store.open_file(&blob.digest)?;
            let mut stream = std::pin::pin!(blob_stream(&store, file, blob, offset, length));
            let mut collected = Vec::new();
            while let Some(piece) = stream.next().await {
                collected.extend_from_slice(&piece?);
            }
            io::Result::Ok(collected)
        };
        assert_eq!(read(0, blob.size).await.unwrap(), bytes);
        assert_eq!(read(5, 10).await.unwrap(), &bytes[5..15]);
        let path = store.path(&blob.digest).unwrap();
        let mut wrong = bytes.clone();
        wrong[300_000] ^= 1;
        std::fs::write(&path, &wrong).unwrap();
        assert_eq!(read(0, blob.size).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(!store.contains(&blob.digest), "it is missing from now on");
        // One that has lost its end is as wrong.
        std::fs::write(&path, &bytes[..400_000]).unwrap();
        assert_eq!(read(0, blob.size).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(!store.contains(&blob.digest));
    }

    #[test]
    fn readers_who_take_their_time_hold_no_thread() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut waiting = Vec::new();
            for _ in 0..8 {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&vec![7; 8 * PIECE]).unwrap();
                let mut stream = Box::pin(file_stream(file, 0, 8 * PIECE as u64));
                assert_eq!(stream.next().await.unwrap().unwrap().len(), PIECE);
                waiting.push(stream);
            }
            let work = tokio::task::spawn_blocking(|| 7);
            let done = tokio::time::timeout(std::time::Duration::from_secs(10), work).await;
            assert_eq!(done.expect("the only thread is free").unwrap(), 7);
        });
    }
}
