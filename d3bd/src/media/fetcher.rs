//! Fetches blobs from peers: each one once however many ask, resumed where it was cut off, and never believed before
//! its digest is right.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use d3b::{BlobReference, Digest, Hasher, ReplicaId};
use futures_util::Stream;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::header::{HOST, RANGE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

use super::BlobStore;
use super::writeback::Writeback;

/// How many blobs are fetched at once.
const CONCURRENT_MAX: usize = 4;
/// A peer that sends nothing for so long has lost its turn.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How much is hashed and written at once.
const PIECE: usize = 1 << 20;

/// Why a blob could not be fetched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// Nobody was asked.
    #[error("there is no other replica to fetch it from")]
    NoSource,
    /// The peer does not have it.
    #[error("replica {0} does not have it")]
    Missing(ReplicaId),
    /// The connection failed, or the peer answered oddly.
    #[error("replica {replica}: {problem}")]
    Connection {
        /// The peer.
        replica: ReplicaId,
        /// What went wrong.
        problem: String,
    },
    /// The bytes are not the blob's; they were thrown away.
    #[error("what replica {0} sent has another digest")]
    Digest(ReplicaId),
    /// More came than was asked for; it was thrown away.
    #[error("replica {0} sent more than it was asked for")]
    TooMuch(ReplicaId),
    /// This replica's disk.
    #[error("it cannot be written here: {0}")]
    Disk(String),
    /// The fetch that this one waited for was given up.
    #[error("the fetch was given up")]
    GivenUp,
}

/// Opens an authenticated stream to a peer, on which it serves blobs.
pub type Connect = Arc<dyn Fn(ReplicaId) -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

type Verdict = Option<Result<(), FetchError>>;

/// Fetches blobs; clones share the books.
#[derive(Clone)]
pub struct Fetcher {
    store: BlobStore,
    connect: Connect,
    under_way: Arc<Mutex<HashMap<Digest, watch::Receiver<Verdict>>>>,
    places: Arc<Semaphore>,
}

impl Fetcher {
    /// A fetcher into a store.
    #[must_use]
    pub fn new(store: BlobStore, connect: Connect) -> Fetcher {
        Fetcher { store, connect, under_way: Arc::default(), places: Arc::new(Semaphore::new(CONCURRENT_MAX)) }
    }

    /// Makes sure that a blob is on this replica's disk, from the first of the sources that can give it.
    ///
    /// # Errors
    /// Why the last source could not.
    pub async fn fetch(&self, reference: BlobReference, sources: &[ReplicaId]) -> Result<(), FetchError> {
        let mut verdict = {
            let mut under_way = self.under_way.lock().expect("no panic while held");
            match under_way.get(&reference.digest) {
                Some(verdict) => verdict.clone(),
                None => {
                    let (tell, verdict) = watch::channel(None);
                    under_way.insert(reference.digest, verdict.clone());
                    // On a task of its own: whoever waits may give up, the others go on waiting.
                    tokio::spawn(self.clone().run(reference, sources.to_vec(), tell));
                    verdict
                }
            }
        };
        let result = verdict.wait_for(Option::is_some).await;
        result.map_or(Err(FetchError::GivenUp), |verdict| verdict.clone().unwrap_or(Err(FetchError::GivenUp)))
    }

    async fn run(self, reference: BlobReference, sources: Vec<ReplicaId>, tell: watch::Sender<Verdict>) {
        let result = self.fetch_from_any(reference, &sources).await;
        self.under_way.lock().expect("no panic while held").remove(&reference.digest);
        tell.send_replace(Some(result));
    }

    async fn fetch_from_any(&self, reference: BlobReference, sources: &[ReplicaId]) -> Result<(), FetchError> {
        let _place = self.places.acquire().await.map_err(|_| FetchError::GivenUp)?;
        if self.store.contains(&reference.digest) {
            return Ok(());
        }
        let mut result = Err(FetchError::NoSource);
        for source in sources {
            result = self.fetch_from(reference, *source).await;
            if let Err(FetchError::Digest(_)) = result {
                // What was thrown away may have begun with bytes of another source, which has broken off since.
                result = self.fetch_from(reference, *source).await;
            }
            if result.is_ok() {
                break;
            }
        }
        result
    }

    async fn fetch_from(&self, reference: BlobReference, source: ReplicaId) -> Result<(), FetchError> {
        let store = self.store.clone();
        let disk = |error: io::Error| FetchError::Disk(error.to_string());
        let mut partial = blocking(move || Partial::open(&store, &reference)).await.map_err(disk)?;
        let left = reference.size - partial.hasher.length();
        // Everything may be here already, and only its place not: nobody is asked for no bytes.
        if left > 0 {
            let body = self.request(reference.digest, partial.hasher.length(), left, source).await?;
            partial = self.receive(body, partial, reference.size, source).await?;
        }
        if partial.hasher.length() < reference.size {
            return Err(FetchError::Connection { replica: source, problem: "the connection was cut".to_owned() });
        }
        let store = self.store.clone();
        let right = blocking(move || partial.finish(&store, &reference.digest)).await.map_err(disk)?;
        if right { Ok(()) } else { Err(FetchError::Digest(source)) }
    }

    /// Writes what a peer sends behind what is there.
    async fn receive(
        &self,
        mut body: Incoming,
        mut partial: Partial,
        size: u64,
        source: ReplicaId,
    ) -> Result<Partial, FetchError> {
        let disk = |error: io::Error| FetchError::Disk(error.to_string());
        let mut piece = Vec::with_capacity(PIECE);
        loop {
            let frame = next_frame(&mut body, source).await;
            let more = matches!(frame, Ok(Some(_)));
            piece.extend_from_slice(frame.as_ref().ok().and_then(Option::as_ref).map_or(&[], |bytes| bytes));
            if partial.hasher.length() + piece.len() as u64 > size {
                blocking(move || std::fs::remove_file(partial.path)).await.map_err(disk)?;
                return Err(FetchError::TooMuch(source));
            }
            if piece.len() >= PIECE || !more {
                let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE));
                let store = self.store.clone();
                let write = move || {
                    let partial = partial.write(&full, &store)?;
                    if more { Ok(partial) } else { partial.settle() }
                };
                partial = blocking(write).await.map_err(disk)?;
            }
            // A failure comes after what came before it was written: the next attempt goes on from there.
            if frame?.is_none() {
                return Ok(partial);
            }
        }
    }

    /// How long a blob is, as the first peer says that has it.
    ///
    /// # Errors
    /// Why the last source could not say.
    pub async fn length(&self, digest: Digest, sources: &[ReplicaId]) -> Result<u64, FetchError> {
        let mut result = Err(FetchError::NoSource);
        for source in sources {
            let unknown = FetchError::Connection { replica: *source, problem: "it told no length".to_owned() };
            let body = self.request(digest, 0, 0, *source).await;
            result = body.and_then(|body| hyper::body::Body::size_hint(&body).exact().ok_or(unknown));
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Asks a peer for `length` bytes of a blob from `from` on.
    async fn request(&self, digest: Digest, from: u64, length: u64, source: ReplicaId) -> Result<Incoming, FetchError> {
        let failed = |problem: String| FetchError::Connection { replica: source, problem };
        let stream = (self.connect)(source).await.map_err(|error| failed(error.to_string()))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(|error| failed(error.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a stream for blobs ended");
            }
        });
        let mut request = Request::get(format!("/blobs/{digest}")).header(HOST, "peer");
        if length > 0 {
            request = request.header(RANGE, format!("bytes={from}-{}", from + length - 1));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(error.to_string()))?;
        let response = tokio::time::timeout(SILENCE_MAX, sender.send_request(request)).await;
        let response = response.map_err(|_| failed("no answer in time".to_owned()))?;
        let response = response.map_err(|error| failed(error.to_string()))?;
        match response.status() {
            StatusCode::OK if from == 0 => Ok(response.into_body()),
            StatusCode::PARTIAL_CONTENT => Ok(response.into_body()),
            StatusCode::NOT_FOUND => Err(FetchError::Missing(source)),
            status => Err(failed(format!("the answer was {status}"))),
        }
    }

    /// Streams a part of a blob from a peer without keeping it here.
    ///
    /// # Errors
    /// Why the last source could not give it.
    pub async fn open_remote(
        &self,
        digest: Digest,
        offset: u64,
        length: u64,
        sources: &[ReplicaId],
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, FetchError> {
        let mut result = Err(FetchError::NoSource);
        for source in sources {
            result = self.request(digest, offset, length, *source).await.map(|body| (body, *source));
            if result.is_ok() {
                break;
            }
        }
        let state = result?;
        Ok(futures_util::stream::unfold((state.0, state.1, length), |(mut body, source, left)| async move {
            if left == 0 {
                return None;
            }
            match next_frame(&mut body, source).await {
                Ok(Some(bytes)) => {
                    let left = left.saturating_sub(bytes.len() as u64);
                    Some((Ok(bytes), (body, source, left)))
                }
                Ok(None) => Some((Err(io::ErrorKind::UnexpectedEof.into()), (body, source, 0))),
                Err(error) => Some((Err(io::Error::other(error.to_string())), (body, source, 0))),
            }
        }))
    }
}

async fn next_frame(body: &mut Incoming, source: ReplicaId) -> Result<Option<Bytes>, FetchError> {
    let failed = |problem: String| FetchError::Connection { replica: source, problem };
    loop {
        let frame =
            tokio::time::timeout(SILENCE_MAX, body.frame()).await.map_err(|_| failed("it fell silent".to_owned()))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(failed(error.to_string())),
            // Trailers mean nothing here.
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic.to_string())))
}

/// What was fetched so far, here or by an earlier process.
struct Partial {
    file: File,
    path: PathBuf,
    writeback: Writeback,
    hasher: Hasher,
}

impl Partial {
    /// Opens what there is of a blob and hashes it; more than the whole is begun anew.
    fn open(store: &BlobStore, reference: &BlobReference) -> io::Result<Partial> {
        let path = store.partial_path(&reference.digest);
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let mut hasher = Hasher::new();
        if file.metadata()?.len() > reference.size {
            file.set_len(0)?;
        }
        let mut piece = vec![0; 256 << 10];
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
        }
        file.seek(io::SeekFrom::Start(hasher.length()))?;
        let writeback = Writeback::of(path.clone());
        Ok(Partial { file, path, writeback, hasher })
    }

    /// Takes the next bytes.
    fn write(mut self, bytes: &[u8], store: &BlobStore) -> io::Result<Partial> {
        let room = store.room().and_then(|room| room.for_file(bytes.len() as u64));
        let written = room.and_then(|()| self.file.write_all(bytes));
        match written.and_then(|()| self.writeback.written(bytes.len() as u64)) {
            Ok(()) => {
                self.hasher.update(bytes);
                Ok(self)
            }
            Err(error) => Err(thrown_away(&self.path, error)),
        }
    }

    /// Waits until nothing is on its way to the disk any more: another attempt may go on with it.
    fn settle(mut self) -> io::Result<Partial> {
        match self.writeback.settle() {
            Ok(()) => Ok(self),
            Err(error) => Err(thrown_away(&self.path, error)),
        }
    }

    /// Gives it its place, or throws it away; false where the digest is wrong.
    fn finish(self, store: &BlobStore, wanted: &Digest) -> io::Result<bool> {
        let Partial { file, path, hasher, .. } = self;
        store.adopt(&file, &path, &hasher.finish(), wanted).map_err(|error| thrown_away(&path, error))
    }
}

/// Throws away what this disk did not take. Half a file would only keep a full disk full; and whoever goes on with one
/// whose sync has failed would be told that everything is safe, for a failure is told once.
fn thrown_away(path: &Path, error: io::Error) -> io::Error {
    match std::fs::remove_file(path) {
        Err(removal) if removal.kind() != io::ErrorKind::NotFound => removal,
        Ok(()) | Err(_) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;
    use crate::rate::Rate;

    /// A peer that serves a store, and counts who connects.
    async fn peer(store: BlobStore) -> (Connect, Arc<AtomicUsize>) {
        peer_that(store, Arc::new(|_| None)).await
    }

    async fn peer_that(store: BlobStore, on_served: super::super::OnServed) -> (Connect, Arc<AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(super::super::serve(stream, store.clone(), Arc::clone(&on_served)));
            }
        });
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let connect: Connect = Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            TcpStream::connect(address).boxed()
        });
        (connect, connections)
    }

    fn store() -> (tempfile::TempDir, BlobStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        (directory, store)
    }

    fn put(store: &BlobStore, bytes: &[u8]) -> BlobReference {
        let mut writer = store.writer(u64::MAX).unwrap();
        writer.write(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn bytes() -> Vec<u8> {
        (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect()
    }

    const SOURCE: &[ReplicaId] = &[ReplicaId(2)];

    #[tokio::test]
    async fn a_blob_is_fetched_once_however_many_ask() {
        let ((_one, there), (_two, here)) = (store(), store());
        let reference = put(&there, &bytes());
        let (connect, connections) = peer(there).await;
        let fetcher = Fetcher::new(here.clone(), connect);
        let asked = (0..8).map(|_| fetcher.fetch(reference, SOURCE));
        assert!(futures_util::future::join_all(asked).await.iter().all(Result::is_ok));
        assert_eq!(connections.load(Ordering::Relaxed), 1);
        assert!(std::fs::read(here.path(&reference.digest).unwrap()).unwrap() == bytes());
    }

    #[tokio::test]
    async fn a_blob_whose_rate_is_bounded_comes_no_faster() {
        let ((_one, there), (_two, here)) = (store(), store());
        let reference = put(&there, &bytes());
        let rate = Arc::new(Rate::new(16 << 20));
        let (connect, _) = peer_that(there, Arc::new(move |_| Some(Arc::clone(&rate)))).await;
        let began = std::time::Instant::now();
        Fetcher::new(here.clone(), connect).fetch(reference, SOURCE).await.unwrap();
        // However slow this machine is, it takes no less.
        assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
        assert!(std::fs::read(here.path(&reference.digest).unwrap()).unwrap() == bytes());
    }

    #[tokio::test]
    async fn a_fetch_that_was_cut_off_is_resumed() {
        let ((_one, there), (_two, here)) = (store(), store());
        let reference = put(&there, &bytes());
        std::fs::write(here.partial_path(&reference.digest), &bytes()[..1_234_567]).unwrap();
        let (connect, _) = peer(there).await;
        Fetcher::new(here.clone(), connect).fetch(reference, SOURCE).await.unwrap();
        assert!(std::fs::read(here.path(&reference.digest).unwrap()).unwrap() == bytes());
    }

    #[tokio::test]
    async fn a_fetch_that_was_cut_off_at_its_very_end_is_finished() {
        let ((_one, there), (_two, here)) = (store(), store());
        let reference = put(&there, &bytes());
        std::fs::write(here.partial_path(&reference.digest), bytes()).unwrap();
        let (connect, connections) = peer(there).await;
        Fetcher::new(here.clone(), connect).fetch(reference, SOURCE).await.unwrap();
        assert!(here.contains(&reference.digest));
        assert_eq!(connections.load(Ordering::Relaxed), 0, "there was nothing left to ask for");
    }

    #[tokio::test]
    async fn bytes_with_another_digest_are_thrown_away_and_fetched_anew() {
        let ((_one, there), (_two, here)) = (store(), store());
        let reference = put(&there, &bytes());
        std::fs::write(here.partial_path(&reference.digest), b"rotten").unwrap();
        let (connect, _) = peer(there).await;
        let fetcher = Fetcher::new(here.clone(), connect);
        fetcher.fetch(reference, SOURCE).await.unwrap();
        assert!(std::fs::read(here.path(&reference.digest).unwrap()).unwrap() == bytes());
    }

    #[tokio::test]
    async fn a_peer_with_other_bytes_is_not_believed() {
        let ((_one, there), (_two, here)) = (store(), store());
        let reference = put(&there, &bytes());
        std::fs::write(there.path(&reference.digest).unwrap(), vec![7; 12_000_000]).unwrap();
        let (connect, _) = peer(there.clone()).await;
        let fetcher = Fetcher::new(here.clone(), connect);
        assert!(fetcher.fetch(reference, SOURCE).await.is_err());
        assert!(!here.contains(&reference.digest) && !there.contains(&reference.digest), "both know that it is wrong");
    }

    #[tokio::test]
    async fn a_peer_without_it_says_so() {
        let ((_one, there), (_two, here)) = (store(), store());
        let (connect, _) = peer(there).await;
        let reference = BlobReference { digest: Digest::of(b"nowhere"), size: 7 };
        let error = Fetcher::new(here, connect).fetch(reference, SOURCE).await.unwrap_err();
        assert!(matches!(error, FetchError::Missing(ReplicaId(2))));
    }

    #[tokio::test]
    async fn a_part_is_streamed_through() {
        let ((_one, there), (_two, here)) = (store(), store());
        let reference = put(&there, &bytes());
        let (connect, _) = peer(there).await;
        let fetcher = Fetcher::new(here.clone(), connect);
        let mut stream = std::pin::pin!(fetcher.open_remote(reference.digest, 1_000, 500_000, SOURCE).await.unwrap());
        let mut streamed = Vec::new();
        while let Some(piece) = stream.next().await {
            streamed.extend_from_slice(&piece.unwrap());
        }
        assert!(streamed == bytes()[1_000..501_000]);
        assert!(!here.contains(&reference.digest));
    }
}
