//! The thread that reads everything on this replica's disk over and over, slowly, to notice what the disk has changed: the
//! log, the databases, the blobs. What it finds is repaired where others have it whole.
//!
//! * A damaged blob is set aside and fetched again.
//! * A damaged database is not served any more. What a database says is told to the peers, who compare.
//! * A damaged record of the log below what is durable in the databases is not needed any more: the log is cut above
//!   it. Any other would be needed: it is left to be met when it is read, and the replica then stops.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use d3b::{BlobReference, DatabaseId, Digest, ReplicaId, Slot};
use d3b_engine::reader::Readers;
use d3b_engine::scrub::{Pace, Scrubbed};
use tokio::sync::watch;

use crate::driver::{DriverStatus, Event, Phase};
use crate::driving::Events;
use crate::log::{Checked, LogReader};
use crate::media::{BlobStore, FetchError, Fetcher};
use crate::run::Stop;

/// A round counts for at least so many bytes, so that a replica with little to read does not read it all the time.
const ROUND_BYTES_MIN: u64 = 480 << 20;
/// Anything that is opened counts for so many bytes at least.
const ITEM_BYTES_MIN: u64 = 64 << 10;
/// How much of the log is read at once.
const LOG_BYTES: u64 = 1 << 20;
/// While a database is read its write-ahead log grows: that goes on at so many times the speed, and is rested for after.
const HASTE: u64 = 16;
/// A pause is looked at so often, and shorter ones are not made.
const PAUSE: Duration = Duration::from_millis(50);
/// How many blobs that nobody could give are asked for again in the next round.
const MISSING_MAX: usize = 1_024;
/// How often each of them is.
const ATTEMPTS_MAX: u32 = 8;

/// A database that is not to be served any more, and why.
pub(crate) type Damage = (DatabaseId, String);

/// What the thread works with.
pub(crate) struct Scrubber {
    pub(crate) replica: ReplicaId,
    /// How much is read each second.
    pub(crate) bytes_per_second: u64,
    pub(crate) log: LogReader,
    pub(crate) readers: Readers,
    pub(crate) blobs: BlobStore,
    pub(crate) fetcher: Fetcher,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) events: Events,
    pub(crate) status: watch::Receiver<Arc<DriverStatus>>,
    /// Everything up to here is durable in the databases.
    pub(crate) durable: Arc<AtomicU64>,
    pub(crate) damages: Sender<Damage>,
    pub(crate) stop: Arc<Stop>,
}

/// Starts the thread; it ends when the process is asked to stop.
pub(crate) fn spawn(scrubber: Scrubber) -> io::Result<JoinHandle<()>> {
    let speed = Arc::new(Speed {
        bytes_per_second: scrubber.bytes_per_second.max(1),
        owed: Mutex::default(),
        stop: Arc::clone(&scrubber.stop),
    });
    let round = Round { scrubber, speed, missing: BTreeMap::new(), cut: Slot::ZERO };
    std::thread::Builder::new().name("d3bd-scrub".to_owned()).spawn(move || round.run())
}

/// What was read and not rested for.
#[derive(Debug, Default)]
struct Owed {
    bytes: u64,
    /// The part of it after the last pause.
    fresh: u64,
    /// Everything since the round began.
    round: u64,
}

/// How fast it may go.
#[derive(Debug)]
struct Speed {
    bytes_per_second: u64,
    owed: Mutex<Owed>,
    stop: Arc<Stop>,
}

impl Speed {
    fn time(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64)
    }

    fn owed(&self) -> std::sync::MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rests for everything that was read; false when the process is to stop.
    fn rest(&self) -> bool {
        let bytes = self.owed().bytes;
        let left = self.time(bytes);
        if left >= PAUSE {
            self.owed().bytes = 0;
            self.pause(left);
        }
        !self.stop.asked()
    }

    fn pause(&self, mut left: Duration) {
        while !left.is_zero() && !self.stop.asked() {
            let step = left.min(PAUSE);
            std::thread::sleep(step);
            left -= step;
        }
    }

    /// Waits until the next round may begin.
    fn end_round(&self) {
        let read = std::mem::take(&mut self.owed().round);
        self.owed().bytes += ROUND_BYTES_MIN.saturating_sub(read);
        self.rest();
    }
}

impl Pace for Speed {
    fn read(&self, bytes: u64) -> bool {
        let mut owed = self.owed();
        owed.bytes += bytes;
        owed.fresh += bytes;
        owed.round += bytes;
        let hasty = self.time(owed.fresh / HASTE);
        if hasty >= PAUSE {
            owed.bytes = owed.bytes.saturating_sub(owed.fresh / HASTE);
            owed.fresh = 0;
            drop(owed);
            self.pause(hasty);
        }
        !self.stop.asked()
    }
}

/// Goes round and round.
struct Round {
    scrubber: Scrubber,
    speed: Arc<Speed>,
    /// Blobs that were damaged and that nobody could give yet, with how often they were asked for.
    missing: BTreeMap<Digest, u32>,
    /// The log is to be cut below here, because of a record that is damaged.
    cut: Slot,
}

impl Round {
    fn run(mut self) {
        while !self.scrubber.stop.asked() {
            if self.takes_part() {
                self.log();
                self.databases();
                self.blobs();
            }
            self.speed.end_round();
        }
    }

    /// What a replica that takes no part holds may be replaced at any moment.
    fn takes_part(&self) -> bool {
        match self.scrubber.status.borrow().phase {
            Phase::Follower | Phase::Candidate | Phase::Leader => true,
            Phase::Forming { .. } | Phase::Outcast { .. } | Phase::Quarantined { .. } => false,
        }
    }

    fn log(&mut self) {
        let Scrubber { log, status, .. } = &self.scrubber;
        let mut next = status.borrow().base.max(self.cut);
        loop {
            let end = log.last();
            if next > end {
                return;
            }
            match log.check(next, end, LOG_BYTES) {
                Checked::Sound { last, bytes } => {
                    if last < next || !self.speed.read(bytes) || !self.speed.rest() {
                        return;
                    }
                    next = last.next();
                }
                Checked::Damaged { slot, problem } => {
                    // It may have been cut meanwhile.
                    let base = status.borrow().base;
                    if slot >= base {
                        return self.log_damaged(slot, &problem);
                    }
                    next = base;
                }
                Checked::Unread(problem) => {
                    return tracing::warn!(problem, "the log could not be looked through for damage");
                }
            }
        }
    }

    fn log_damaged(&mut self, slot: Slot, problem: &str) {
        let durable = Slot(self.scrubber.durable.load(Ordering::Acquire));
        // The record at the mark is where a log begins that continues a snapshot: it goes when the mark has moved on.
        if slot >= durable {
            tracing::error!(%slot, problem, "the log is damaged at an entry that is needed: this replica stops when it meets it");
            return;
        }
        tracing::error!(%slot, problem, "the log is damaged at an entry whose effect is safe: it is cut above it");
        self.cut = slot.next();
        self.scrubber.events.send(Event::CutDue(slot.next()));
    }

    fn databases(&self) {
        let ids = match self.scrubber.readers.ids() {
            Ok(ids) => ids,
            Err(rejection) => {
                return tracing::warn!(problem = rejection.detail, "the databases could not be listed");
            }
        };
        let pace: Arc<dyn Pace> = Arc::clone(&self.speed) as Arc<dyn Pace>;
        for id in ids {
            match self.scrubber.readers.scrub(id, &pace) {
                Scrubbed::Sound { slot, chain, digest } => {
                    let read = Event::ContentRead { database: id, slot, chain: chain.0, digest };
                    self.scrubber.events.send(read);
                }
                Scrubbed::Damaged(problem) => drop(self.scrubber.damages.send((id, problem))),
                Scrubbed::Unread(problem) => tracing::debug!(database = %id, problem, "a database was not read"),
            }
            if !self.speed.read(ITEM_BYTES_MIN) || !self.speed.rest() {
                return;
            }
        }
    }

    fn blobs(&mut self) {
        for (digest, attempts) in std::mem::take(&mut self.missing) {
            self.fetch(digest, None, attempts);
        }
        for first in 0..=u8::MAX {
            let digests = match self.scrubber.blobs.list(first) {
                Ok(digests) => digests,
                Err(error) => {
                    tracing::error!(%error, "the blobs could not be listed");
                    continue;
                }
            };
            for digest in digests {
                self.blob(digest);
                if !self.speed.read(ITEM_BYTES_MIN) || !self.speed.rest() {
                    return;
                }
            }
        }
    }

    fn blob(&mut self, digest: Digest) {
        let Round { scrubber: Scrubber { blobs, .. }, speed, .. } = self;
        match blobs.check(&digest, &mut |bytes| speed.read(bytes) && speed.rest()) {
            Ok(None | Some((_, true))) => {}
            Ok(Some((length, false))) => {
                blobs.set_aside(&digest);
                self.fetch(digest, Some(length), 0);
            }
            // It was collected meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(%digest, %error, "a file on this disk cannot be read");
                blobs.set_aside(&digest);
                self.fetch(digest, None, 0);
            }
        }
    }

    /// Gets a blob from a peer; what nobody can give now is asked for again in the next round.
    fn fetch(&mut self, digest: Digest, length: Option<u64>, attempts: u32) {
        let sources = self.sources();
        let Scrubber { fetcher, runtime, stop, .. } = &self.scrubber;
        let fetched = async {
            // The peers know better how long it is than a damaged file does, if one can be reached.
            let told = fetcher.length(digest, &sources).await;
            let size = told.or_else(|error| length.ok_or(error))?;
            fetcher.fetch(BlobReference { digest, size }, &sources).await
        };
        let stopped = async {
            while !stop.asked() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        let result: Result<(), FetchError> = runtime.block_on(async {
            tokio::select! {
                result = fetched => result,
                () = stopped => Err(FetchError::GivenUp),
            }
        });
        match result {
            Ok(()) => tracing::info!(%digest, "a damaged file was replaced by a peer's"),
            Err(error) => {
                tracing::warn!(%digest, %error, "a damaged file could not be fetched from a peer yet");
                if attempts < ATTEMPTS_MAX && self.missing.len() < MISSING_MAX {
                    self.missing.insert(digest, attempts + 1);
                }
            }
        }
    }

    /// The other members, those in reach first.
    fn sources(&self) -> Vec<ReplicaId> {
        self.scrubber.status.borrow().others(self.scrubber.replica)
    }
}
