//! Takes snapshots beside everything else, one at a time: the applier begins them, a thread of their own copies.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use d3b::{BlobReference, Slot};
use d3b_engine::SnapshotSource;
use d3b_paxos::types::{Configuration, Record};

use crate::media::BlobStore;
use crate::run::Stop;
use crate::snapshot::{self, Manifest, Offer, Reservation};

/// Copying leaves the disk to others for the rest of the time: so many bytes are copied in a second.
const BYTES_PER_SECOND: u64 = 256 << 20;
/// What is offered is offered again for so long: whoever takes it over has not much of the log to fetch behind it.
const FRESH_MAX: Duration = Duration::from_secs(600);

/// What a snapshot begins with, from the applier.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) source: SnapshotSource,
    /// The log's record at its slot.
    pub(crate) record: Record,
    /// Keeps the log behind that slot.
    pub(crate) reserved: Reservation,
}

/// How the applier answers.
pub(crate) type Answer = SyncSender<Begun>;

/// Takes snapshots; clones share the books.
#[derive(Debug, Clone)]
pub(crate) struct Taker {
    asks: SyncSender<Answer>,
    blobs: BlobStore,
    offer: Offer,
    /// When the one that is offered was taken.
    taken: Arc<Mutex<Option<Instant>>>,
    busy: Arc<AtomicBool>,
    stop: Arc<Stop>,
}

/// Ends a take, however it ends.
struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Taker {
    /// A taker, and what the applier is to listen to.
    pub(crate) fn new(blobs: BlobStore, offer: Offer, stop: Arc<Stop>) -> (Taker, Receiver<Answer>) {
        let (asks, asked) = sync_channel(1);
        (Taker { asks, blobs, offer, taken: Arc::default(), busy: Arc::default(), stop }, asked)
    }

    /// Takes a snapshot, or finds one that is fresh enough, and calls back from another thread with the blob of its
    /// manifest and its slot. False, without calling back, while another one is being taken.
    ///
    /// The configuration must be the one that this replica has adopted: if it is newer than what is applied, taking fails,
    /// and whoever asked will ask again.
    pub(crate) fn take(
        &self,
        configuration: Configuration,
        done: impl FnOnce(Result<(BlobReference, Slot), String>) + Send + 'static,
    ) -> bool {
        if self.busy.swap(true, Ordering::AcqRel) {
            return false;
        }
        let (taker, busy) = (self.clone(), Busy(Arc::clone(&self.busy)));
        let work = move || {
            let result = taker.run(configuration);
            if let Err(error) = &result {
                tracing::warn!(error, "a snapshot was asked for, and cannot be taken");
            }
            drop(busy);
            done(result);
        };
        // Without a thread nobody is called back: whoever asked will ask again.
        std::thread::Builder::new().name("d3bd-snapshot".to_owned()).spawn(work).is_ok()
    }

    fn run(&self, configuration: Configuration) -> Result<(BlobReference, Slot), String> {
        let earlier = self.offer.current();
        let taken = *self.taken.lock().expect("no panic while held");
        if let (Some((reference, manifest)), Some(taken)) = (&earlier, taken)
            && taken.elapsed() < FRESH_MAX
            && manifest.configuration.epoch == configuration.epoch
        {
            return Ok((*reference, manifest.slot));
        }
        let (answer, answered) = sync_channel(1);
        self.asks.try_send(answer).map_err(|error| error.to_string())?;
        let Begun { source, record, reserved } =
            answered.recv().map_err(|_| "there is nothing to take yet, or the replica stops".to_owned())?;
        let began = Instant::now();
        let taken = self.copy(&source, record, configuration, earlier.as_ref().map(|(_, manifest)| &**manifest))?;
        let (reference, slot) = (taken.reference, taken.manifest.slot);
        let bytes: u64 = taken.manifest.databases.iter().map(|database| database.file.size).sum();
        self.offer.publish(taken, Instant::now()).map_err(|error| error.to_string())?;
        drop(reserved);
        *self.taken.lock().expect("no panic while held") = Some(Instant::now());
        tracing::info!(%slot, bytes, took = ?began.elapsed(), "took a snapshot for a replica that is behind");
        Ok((reference, slot))
    }

    fn copy(
        &self,
        source: &SnapshotSource,
        record: Record,
        configuration: Configuration,
        earlier: Option<&Manifest>,
    ) -> Result<snapshot::Taken, String> {
        let began = Instant::now();
        let mut copied = 0;
        let mut pace = |bytes: u64| {
            if self.stop.asked() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            copied += bytes;
            let due = Duration::from_millis(copied.saturating_mul(1_000) / BYTES_PER_SECOND);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            Ok(())
        };
        snapshot::take(source, record, configuration, &self.blobs, earlier, &mut pace)
            .map_err(|error| crate::applier::describe(&error))
    }
}
