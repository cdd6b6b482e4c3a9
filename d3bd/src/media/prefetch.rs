//! Fetches beside everything else the files that this replica should hold and does not: few at a time, again and again
//! while they are not to be had, and never more of them in mind than there is room for. What is forgotten here is said to
//! be, so that it is looked up again, and streamed through from a peer when somebody asks for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use d3b::{BlobReference, Digest};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{FetchError, Fetcher, Sources};

/// How many are fetched at once; what is waited for, such as a file that is offered, must find a place too.
const CONCURRENT_MAX: usize = 2;
/// How many wait at most.
const WAITING_MAX: usize = 16_384;
/// How long to wait after a first failure, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How often one is tried before it is forgotten, and how often one that no replica in reach has: it may be deleted.
const ATTEMPTS_MAX: (u32, u32) = (60, 6);
/// How long one that was given up is not tried again.
const GIVEN_UP: Duration = Duration::from_secs(600);

/// The way to the task that fetches; it ends when this is dropped.
#[derive(Debug)]
pub struct Prefetcher {
    wanted: mpsc::Sender<BlobReference>,
    /// How many are wanted, and neither here nor forgotten.
    known: Arc<AtomicUsize>,
    /// Whether some were forgotten that may be missing still.
    forgotten: Arc<AtomicBool>,
}

impl Prefetcher {
    /// Starts the task.
    #[must_use]
    pub fn start(fetcher: Fetcher, sources: Sources, runtime: &tokio::runtime::Handle) -> Prefetcher {
        let (wanted, inbox) = mpsc::channel(1_024);
        let known = Arc::new(AtomicUsize::new(0));
        let forgotten = Arc::new(AtomicBool::new(false));
        let waiting = Waiting::new(fetcher, sources, Arc::clone(&known), Arc::clone(&forgotten));
        runtime.spawn(waiting.run(inbox));
        Prefetcher { wanted, known, forgotten }
    }

    /// How many files wait to be fetched, or are being fetched.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.known.load(Ordering::SeqCst) as u64
    }

    /// Whether files were forgotten since the last time that this was asked: all that are missing must be looked up.
    #[must_use]
    pub fn has_forgotten(&self) -> bool {
        self.forgotten.swap(false, Ordering::SeqCst)
    }

    /// Has a file fetched when there is time. Never blocks.
    pub fn want(&self, reference: BlobReference) {
        self.known.fetch_add(1, Ordering::SeqCst);
        if self.wanted.try_send(reference).is_err() {
            self.forgotten.store(true, Ordering::SeqCst);
            self.known.fetch_sub(1, Ordering::SeqCst);
            tracing::debug!(digest = %reference.digest, "a file is not fetched ahead: too many are waiting");
        }
    }
}

/// What is to be fetched, and when.
struct Waiting {
    fetcher: Fetcher,
    sources: Sources,
    due: BTreeMap<(Instant, Digest), (BlobReference, u32)>,
    /// What waits or is being fetched.
    known: BTreeSet<Digest>,
    /// How many those are, and those that are in the inbox, for others to see.
    count: Arc<AtomicUsize>,
    /// What was given up, and when; no more than wait at most.
    given_up: BTreeMap<Digest, Instant>,
    /// For others to see.
    forgotten: Arc<AtomicBool>,
}

type Ended = (BlobReference, u32, Result<(), FetchError>);

impl Waiting {
    fn new(fetcher: Fetcher, sources: Sources, count: Arc<AtomicUsize>, forgotten: Arc<AtomicBool>) -> Waiting {
        let (due, known, given_up) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Waiting { fetcher, sources, due, known, count, given_up, forgotten }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<BlobReference>) {
        let mut running: JoinSet<Ended> = JoinSet::new();
        loop {
            while running.len() < CONCURRENT_MAX
                && let Some(entry) = self.due.first_entry()
                && entry.key().0 <= Instant::now()
            {
                let (reference, attempt) = entry.remove();
                let (fetcher, sources) = (self.fetcher.clone(), (self.sources)());
                running.spawn(async move { (reference, attempt, fetcher.fetch(reference, &sources).await) });
            }
            let next = self.due.first_key_value().map(|((at, _), _)| *at);
            let next = next.filter(|_| running.len() < CONCURRENT_MAX);
            tokio::select! {
                wanted = inbox.recv() => match wanted {
                    Some(reference) => self.add(reference),
                    None => return,
                },
                Some(ended) = running.join_next() => {
                    if let Ok(ended) = ended {
                        self.ended(ended);
                    }
                }
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    fn add(&mut self, reference: BlobReference) {
        let (now, digest) = (Instant::now(), reference.digest);
        let is_given_up = self.given_up.get(&digest).is_some_and(|at| now < *at + GIVEN_UP);
        let is_full = self.known.len() >= WAITING_MAX;
        if !is_given_up && !is_full && self.known.insert(digest) {
            self.given_up.remove(&digest);
            self.due.insert((now, digest), (reference, 1));
            return;
        }
        if !self.known.contains(&digest) {
            self.forgotten.store(true, Ordering::SeqCst);
        }
        self.count.fetch_sub(1, Ordering::SeqCst);
    }

    fn forget(&mut self, digest: Digest) {
        if self.known.remove(&digest) {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn give_up(&mut self, digest: Digest) {
        let now = Instant::now();
        self.given_up.retain(|_, at| now < *at + GIVEN_UP);
        if self.given_up.len() < WAITING_MAX {
            self.given_up.insert(digest, now);
        }
        self.forgotten.store(true, Ordering::SeqCst);
        self.forget(digest);
    }

    fn ended(&mut self, (reference, attempt, result): Ended) {
        let Err(error) = result else {
            self.forget(reference.digest);
            return;
        };
        let attempts_max = if matches!(error, FetchError::Missing(_)) { ATTEMPTS_MAX.1 } else { ATTEMPTS_MAX.0 };
        if attempt >= attempts_max {
            self.give_up(reference.digest);
            tracing::warn!(
                digest = %reference.digest,
                %error,
                "a media file could not be fetched; it will be when it is asked for"
            );
            return;
        }
        let pause = PAUSE.0.saturating_mul(1 << attempt.min(10)).min(PAUSE.1);
        self.due.insert((Instant::now() + pause, reference.digest), (reference, attempt + 1));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::super::BlobStore;
    use d3b::ReplicaId;

    use super::*;

    fn waiting(directory: &tempfile::TempDir) -> Waiting {
        let store = BlobStore::open(directory.path()).unwrap();
        let connect: super::super::Connect =
            Arc::new(|_| async { Err(io::ErrorKind::ConnectionRefused.into()) }.boxed());
        let sources: Sources = Arc::new(|| vec![ReplicaId(2)]);
        Waiting::new(Fetcher::new(store, connect), sources, Arc::default(), Arc::default())
    }

    fn reference(n: u64) -> BlobReference {
        BlobReference { digest: Digest::of(&n.to_le_bytes()), size: 8 }
    }

    /// How often a file is tried when every attempt fails in the same way.
    #[track_caller]
    fn check_attempts(error: &FetchError, expected: u32) {
        let directory = tempfile::tempdir().unwrap();
        let mut waiting = waiting(&directory);
        waiting.add(reference(1));
        let mut attempts = 0;
        while let Some((_, (reference, attempt))) = waiting.due.pop_first() {
            attempts += 1;
            waiting.ended((reference, attempt, Err(error.clone())));
        }
        assert_eq!(attempts, expected);
        assert!(waiting.known.is_empty());
        assert!(waiting.forgotten.swap(false, Ordering::Relaxed), "it is told");
        waiting.add(reference(1));
        assert!(waiting.due.is_empty(), "not so soon again");
    }

    #[test]
    fn what_cannot_be_had_is_tried_again_and_forgotten_in_the_end() {
        check_attempts(&FetchError::NoSource, ATTEMPTS_MAX.0);
        check_attempts(&FetchError::Missing(ReplicaId(2)), ATTEMPTS_MAX.1);
    }

    #[test]
    fn memory_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let mut waiting = waiting(&directory);
        for n in 0..WAITING_MAX as u64 + 10 {
            waiting.add(reference(n));
            waiting.add(reference(n));
        }
        assert_eq!((waiting.known.len(), waiting.due.len()), (WAITING_MAX, WAITING_MAX));
        assert!(waiting.forgotten.load(Ordering::Relaxed), "it is told");
        for n in 0..WAITING_MAX as u64 + 10 {
            waiting.give_up(reference(n).digest);
        }
        assert_eq!(waiting.given_up.len(), WAITING_MAX);
    }
}
