//! Files as streams: what the page cache has is read where it is sent, everything else on threads that may block, one
//! piece ahead of the socket.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use d3b::{BlobReference, Hasher};
use futures_util::Stream;
use tokio::task::JoinHandle;

use super::BlobStore;
use super::buffers::{Buffer, Buffers};
use super::sound::Identity;

/// How much is read at once: large enough that the system calls do not show, small enough to stay in the caches.
const PIECE: usize = 256 << 10;
/// After so many pieces that nobody waited for, others on the same thread have their turn.
const TURN: u32 = 4;
/// Larger files are hashed each time. Where some of a file turns out not to be in the page cache, what was sent before is
/// hashed after all, while whoever reads it waits.
const BELIEVED_BYTES_MAX: u64 = 4 << 30;

/// The bytes of a file from `offset` on, `length` of them. A file that ends early ends the stream with an error.
/// Memory: a few pieces of 256 KiB, whatever the length. A thread is held while a piece is read, never while the socket
/// is waited for: there are only so many of them, and readers who take their time would soon hold them all.
pub fn file_stream(file: File, offset: u64, length: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    stream(Reading::new(file, offset, length, Trust::Full))
}

/// The same of a blob. A disk may give back something else than was written to it: whoever is sent all of the blob gets
/// its last piece only when the digest is right, and an error otherwise; the blob is then set aside, so that it is
/// missing here, and peers are asked for it. A part has no digest that it could be compared with.
///
/// A file that was hashed lately and found right, when it was received or read, is not hashed again as long as its
/// metadata is the same and all of it comes from the page cache, which has what was hashed then. So what the disk has
/// changed is noticed when it is read from the disk, and what somebody has written to the file at once; what memory itself
/// has changed, or came into the page cache past this process, when that finding is too old, or by the next scrub.
pub fn blob_stream(
    store: &BlobStore,
    file: File,
    blob: BlobReference,
    offset: u64,
    length: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let identity = Identity::of(&file).ok();
    let check = Check { store: store.clone(), blob, identity, hasher: Hasher::new() };
    let trust = if offset != 0 || length != blob.size {
        Trust::Part(check)
    } else if blob.size <= BELIEVED_BYTES_MAX
        && identity.is_some_and(|identity| store.sound().knows(&blob.digest, identity))
    {
        Trust::Cached(check)
    } else {
        Trust::Nothing(check)
    };
    stream(Reading::new(file, offset, length, trust))
}

fn stream(reading: Reading) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    futures_util::stream::unfold(reading, |mut reading| async move {
        let piece = reading.next().await?;
        Some((piece, reading))
    })
}

/// What is believed of a file's bytes without a look at them.
enum Trust {
    /// Everything: it is no blob.
    Full,
    /// Everything, for want of a digest; but whoever reads all of it is to look again at what was read from the disk.
    Part(Check),
    /// What the page cache has; everything is hashed from the first byte that it does not have.
    Cached(Check),
    /// Nothing; it goes along with the piece that is on its way.
    Nothing(Check),
}

/// A file that is being read.
struct Reading {
    file: Arc<File>,
    /// Where the next piece begins.
    at: u64,
    end: u64,
    /// The next piece, on its way while the socket takes the one before it.
    ahead: Option<JoinHandle<(io::Result<Bytes>, Option<Check>)>>,
    trust: Trust,
    buffers: Buffers,
    /// Pieces since others had their turn.
    turn: u32,
}

/// Compares a blob with its name while it is read.
struct Check {
    store: BlobStore,
    blob: BlobReference,
    /// The file as it was before it was read, if that could be told.
    identity: Option<Identity>,
    hasher: Hasher,
}

impl Check {
    /// Hashes what was given out unseen.
    fn catch_up(&mut self, file: &File, until: u64, buffers: &Buffers) -> io::Result<()> {
        while self.hasher.length() < until {
            let piece = read_piece(file, self.hasher.length(), until, buffers)?;
            self.hasher.update(&piece);
        }
        Ok(())
    }

    /// Takes in the next piece; the last one is held back if the whole is not what it should be.
    fn take_in(&mut self, piece: io::Result<Bytes>) -> io::Result<Bytes> {
        let damaged = match &piece {
            Ok(bytes) => {
                self.hasher.update(bytes);
                self.hasher.length() == self.blob.size && !self.is_sound()
            }
            Err(error) => error.kind() == io::ErrorKind::UnexpectedEof,
        };
        if !damaged {
            return piece;
        }
        self.store.set_aside(&self.blob.digest);
        Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not what was stored"))
    }

    /// Whether what was hashed is the blob; others may believe it then.
    fn is_sound(&mut self) -> bool {
        let sound = std::mem::take(&mut self.hasher).finish() == self.blob.digest;
        if let (true, Some(identity)) = (sound, self.identity) {
            self.store.sound().remember(self.blob.digest, identity);
        }
        sound
    }
}

impl Reading {
    fn new(file: File, offset: u64, length: u64, trust: Trust) -> Reading {
        let end = offset.saturating_add(length);
        Reading { file: Arc::new(file), at: offset, end, ahead: None, trust, buffers: Buffers::default(), turn: 0 }
    }

    /// The next piece, if the page cache has it.
    fn cached(&self) -> Option<Bytes> {
        let mut piece = self.buffers.take(piece_length(self.at, self.end));
        match read_cached(&self.file, piece.room(), self.at) {
            Ok(read) if read > 0 => Some(piece.filled(read)),
            // The end of a file that is too short, and all errors, are met again by whoever may wait.
            Ok(_) | Err(_) => None,
        }
    }

    fn begin(&mut self) {
        if self.ahead.is_none() && self.at < self.end {
            let (file, at, end, buffers) = (Arc::clone(&self.file), self.at, self.end, self.buffers.clone());
            let mut check = match std::mem::replace(&mut self.trust, Trust::Full) {
                Trust::Full => None,
                Trust::Part(check) => {
                    check.store.sound().forget(&check.blob.digest);
                    None
                }
                Trust::Cached(check) => {
                    check.store.sound().forget(&check.blob.digest);
                    Some(check)
                }
                Trust::Nothing(check) => Some(check),
            };
            self.ahead = Some(tokio::task::spawn_blocking(move || {
                let caught_up = check.as_mut().map_or(Ok(()), |check| check.catch_up(&file, at, &buffers));
                let piece = caught_up.and_then(|()| read_piece(&file, at, end, &buffers));
                let piece = match &mut check {
                    Some(check) => check.take_in(piece),
                    None => piece,
                };
                (piece, check)
            }));
        }
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.at >= self.end {
            return None;
        }
        if self.ahead.is_none() && !matches!(self.trust, Trust::Nothing(_)) {
            self.turn += 1;
            if self.turn >= TURN {
                self.turn = 0;
                tokio::task::yield_now().await;
            }
            if let Some(piece) = self.cached() {
                self.at += piece.len() as u64;
                return Some(Ok(piece));
            }
        }
        // From here on, what comes is read ahead.
        self.begin();
        let read = self.ahead.take()?.await;
        let (piece, check) = read.unwrap_or_else(|panic| (Err(io::Error::other(panic.to_string())), None));
        if let Some(check) = check {
            self.trust = Trust::Nothing(check);
        }
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

fn piece_length(at: u64, end: u64) -> usize {
    usize::try_from(end - at).unwrap_or(PIECE).min(PIECE)
}

fn read_piece(file: &File, at: u64, end: u64, buffers: &Buffers) -> io::Result<Bytes> {
    let mut piece: Buffer = buffers.take(piece_length(at, end));
    let read = file.read_at(piece.room(), at)?;
    if read == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it should be"));
    }
    Ok(piece.filled(read))
}

/// Reads what the page cache has, and never waits for a disk.
#[cfg(target_os = "linux")]
fn read_cached(file: &File, room: &mut [u8], at: u64) -> io::Result<usize> {
    let slices = &mut [io::IoSliceMut::new(room)];
    Ok(rustix::io::preadv2(file, slices, at, rustix::io::ReadWriteFlags::NOWAIT)?)
}

#[cfg(not(target_os = "linux"))]
fn read_cached(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
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

    fn stored(bytes: &[u8]) -> (tempfile::TempDir, BlobStore, BlobReference) {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let mut writer = store.writer(1 << 21).unwrap();
        writer.write(bytes).unwrap();
        let blob = writer.finish().unwrap();
        (directory, store, blob)
    }

    async fn read(store: &BlobStore, blob: BlobReference, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let file = store.open_file(&blob.digest)?;
        let mut stream = std::pin::pin!(blob_stream(store, file, blob, offset, length));
        let mut collected = Vec::new();
        while let Some(piece) = stream.next().await {
            collected.extend_from_slice(&piece?);
        }
        Ok(collected)
    }

    #[tokio::test]
    async fn a_blob_that_is_not_what_was_stored_is_not_given_out_whole_and_is_set_aside() {
        let bytes: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let (_directory, store, blob) = stored(&bytes);
        assert_eq!(read(&store, blob, 0, blob.size).await.unwrap(), bytes);
        assert_eq!(read(&store, blob, 5, 10).await.unwrap(), &bytes[5..15]);
        let path = store.path(&blob.digest).unwrap();
        let mut wrong = bytes.clone();
        wrong[300_000] ^= 1;
        std::fs::write(&path, &wrong).unwrap();
        let error = read(&store, blob, 0, blob.size).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(!store.contains(&blob.digest), "it is missing from now on");
        // One that has lost its end is as wrong.
        std::fs::write(&path, &bytes[..400_000]).unwrap();
        let error = read(&store, blob, 0, blob.size).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(!store.contains(&blob.digest));
    }

    /// Leaves only the first piece of a file in the page cache; false where the file system has no other place for it.
    fn evict_all_but_the_first_piece(file: &File) -> bool {
        use rustix::fs::{Advice, fadvise};
        file.sync_all().unwrap();
        fadvise(file, 0, None, Advice::DontNeed).unwrap();
        fadvise(file, 0, None, Advice::Random).unwrap();
        file.read_exact_at(&mut vec![0; PIECE], 0).unwrap();
        // To look brings what is looked at into the page cache.
        read_cached(file, &mut [0], 2 * PIECE as u64).is_err()
    }

    #[tokio::test]
    async fn what_comes_from_the_disk_is_hashed_also_where_the_file_was_found_sound() {
        let bytes: Vec<u8> = (0..4 * PIECE).map(|n| n.to_le_bytes()[1]).collect();
        let (_directory, store, blob) = stored(&bytes);
        let knows = |file: &File| store.sound().knows(&blob.digest, Identity::of(file).unwrap());
        let file = store.open_file(&blob.digest).unwrap();
        assert!(knows(&file), "it was hashed when it was received");
        assert!(read(&store, blob, 0, blob.size).await.unwrap() == bytes);
        if !evict_all_but_the_first_piece(&file) {
            return;
        }
        assert!(read(&store, blob, 3 * PIECE as u64, 5).await.unwrap() == bytes[3 * PIECE..][..5]);
        assert!(!knows(&file), "nobody knows what the disk has given for a part");
        assert!(read(&store, blob, 0, blob.size).await.unwrap() == bytes);
        assert!(knows(&file), "all of it was hashed");
        // What a disk changes, it changes behind the file's metadata.
        let changed = OpenOptions::new().write(true).open(store.path(&blob.digest).unwrap()).unwrap();
        changed.write_all_at(&[!bytes[7]], 7).unwrap();
        store.sound().remember(blob.digest, Identity::of(&file).unwrap());
        assert!(evict_all_but_the_first_piece(&file));
        let error = read(&store, blob, 0, blob.size).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "also when the first piece was sent unseen");
        assert!(!store.contains(&blob.digest) && !knows(&file));
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
            // Those whose pieces are hashed on threads that may block do not hold them either.
            let (_directory, store, blob) = stored(&vec![7; 8 * PIECE]);
            store.sound().forget(&blob.digest);
            let mut hashed = Vec::new();
            for _ in 0..8 {
                let file = store.open_file(&blob.digest).unwrap();
                let mut stream = Box::pin(blob_stream(&store, file, blob, 0, blob.size));
                assert_eq!(stream.next().await.unwrap().unwrap().len(), PIECE);
                hashed.push(stream);
            }
            let work = tokio::task::spawn_blocking(|| 7);
            let done = tokio::time::timeout(std::time::Duration::from_secs(10), work).await;
            assert_eq!(done.expect("the only thread is free").unwrap(), 7);
        });
    }
}
