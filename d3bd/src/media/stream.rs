//! Files as streams, read on threads that may block, one piece ahead of the socket.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

/// How much is read at once: large enough that the system calls do not show, small enough to stay in the caches.
const PIECE: usize = 256 << 10;
/// How many pieces may wait for the socket.
const AHEAD: usize = 2;

/// The bytes of a file from `offset` on, `length` of them. A file that ends early ends the stream with an error.
/// Memory: three pieces of 256 KiB, whatever the length.
pub fn file_stream(file: File, offset: u64, length: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut at = offset;
        let end = offset.saturating_add(length);
        while at < end {
            let piece = read_piece(&file, at, end);
            let length = piece.as_ref().map_or(0, Bytes::len) as u64;
            // Nobody listens any more, or the file failed: either way it ends here.
            if sender.blocking_send(piece).is_err() || length == 0 {
                return;
            }
            at += length;
        }
    });
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    })
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
}
