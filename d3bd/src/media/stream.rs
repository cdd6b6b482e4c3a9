//! Files as streams, read on threads that may block, one piece ahead of the socket.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use tokio::task::JoinHandle;

/// How much is read at once: large enough that the system calls do not show, small enough to stay in the caches.
const PIECE: usize = 256 << 10;

/// The bytes of a file from `offset` on, `length` of them. A file that ends early ends the stream with an error.
/// Memory: two pieces of 256 KiB, whatever the length. A thread is held while a piece is read, never while the socket
/// is waited for: there are only so many of them, and readers who take their time would soon hold them all.
pub fn file_stream(file: File, offset: u64, length: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let reading = Reading { file: Arc::new(file), at: offset, end: offset.saturating_add(length), ahead: None };
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
    ahead: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Reading {
    fn begin(&mut self) {
        if self.ahead.is_none() && self.at < self.end {
            let (file, at, end) = (Arc::clone(&self.file), self.at, self.end);
            self.ahead = Some(tokio::task::spawn_blocking(move || read_piece(&file, at, end)));
        }
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.begin();
        let piece = self.ahead.take()?.await.unwrap_or_else(|panic| Err(io::Error::other(panic.to_string())));
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
