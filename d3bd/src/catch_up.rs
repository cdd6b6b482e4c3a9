//! Snapshots on their way: one that is taken for a peer, beside the thread that applies, and one that is fetched.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use d3b::{BlobReference, Digest, ReplicaId, Slot};
use d3b_engine::Engine;
use d3b_paxos::Storage as _;
use d3b_paxos::types::{Configuration, Payload, Record};

use crate::applier::describe;
use crate::driver::Event;
use crate::driving::Events;
use crate::log::LogReader;
use crate::media::{BlobStore, Fetcher};
use crate::rate::Rate;
use crate::run::Stop;
use crate::snapshot::{self, Manifest, Offer, Reservation, Staging};

/// After each piece that was copied, as much time passes as it took, but no more than this: clients come first.
pub(crate) const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Somebody wants something of the thread that applies: to copy everything, or to have it on the disk.
#[derive(Debug)]
pub(crate) enum Order {
    /// Everything that is applied is to be durable in the databases; the last such slot is told.
    Checkpoint(tokio::sync::oneshot::Sender<Slot>),
    /// The same, and the log is to begin at this slot, or as near below it as is safe; where it will begin is told.
    Cut { upto: Slot, reply: tokio::sync::oneshot::Sender<Slot> },
    /// Somebody wants a copy of everything.
    Copy(Copy),
}

/// Who wants to copy everything.
#[derive(Debug)]
pub(crate) enum Copy {
    /// A peer wants a snapshot.
    Snapshot {
        to: ReplicaId,
        /// What was adopted when it was asked for.
        configuration: Configuration,
    },
    /// A client wants a backup.
    Backup(tokio::sync::oneshot::Sender<Begun>),
}

/// A backup that was begun: everything up to its slot is in the files that it copies, and what the log has stays as long
/// as this lives.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) source: d3b_engine::SnapshotSource,
    pub(crate) _reservation: Reservation,
}

/// Takes snapshots for peers, one at a time.
pub(crate) struct Taker {
    pub(crate) log: LogReader,
    pub(crate) blobs: BlobStore,
    pub(crate) offer: Offer,
    pub(crate) events: Events,
    pub(crate) stop: Arc<Stop>,
    /// The newest configuration that is known to have been adopted; `None` before the cluster is formed.
    pub(crate) configuration: Option<Configuration>,
    pub(crate) busy: Arc<AtomicBool>,
    /// How fast it may go.
    pub(crate) rate: Arc<Rate>,
}

impl Taker {
    /// An entry was applied: it may have changed the configuration.
    pub(crate) fn applied(&mut self, record: &Record) {
        if let Payload::Configuration(configuration) = &record.entry.payload {
            self.learn(&Configuration { slot: record.slot, ..(**configuration).clone() });
        }
    }

    fn learn(&mut self, configuration: &Configuration) {
        if self.configuration.as_ref().is_none_or(|known| known.epoch < configuration.epoch) {
            self.configuration = Some(configuration.clone());
        }
    }

    /// Begins a snapshot, unless there is one already. The engine goes on at once.
    ///
    /// # Errors
    /// The replica must stop.
    pub(crate) fn take(&mut self, copy: Copy, engine: &mut Engine) -> Result<(), String> {
        let (to, configuration) = match copy {
            Copy::Snapshot { to, configuration } => (to, configuration),
            Copy::Backup(reply) => {
                // The files of the log's beginning are needed too, for who wants to go back to a slot in between.
                let reservation = self.offer.reserve(self.log.base());
                let source = engine.begin_snapshot().map_err(|fatal| describe(&fatal))?;
                // Whoever asked may have gone.
                drop(reply.send(Begun { source, _reservation: reservation }));
                return Ok(());
            }
        };
        self.learn(&configuration);
        if let Some((reference, manifest)) = self.offer.current() {
            self.answer(to, Ok((manifest.slot, reference)));
            return Ok(());
        }
        if self.busy.swap(true, Ordering::AcqRel) {
            self.answer(to, Err("another snapshot is being taken".to_owned()));
            return Ok(());
        }
        let source = engine.begin_snapshot().map_err(|fatal| describe(&fatal))?;
        let slot = source.slot();
        let reservation = self.offer.reserve(slot);
        // It may have come later than the snapshot's slot: then whoever takes the snapshot over is told of it, and no more.
        let configuration = self.configuration.clone();
        // A damaged record must not be passed over: whoever leads and cannot give what others lack keeps all from going on.
        let records = if slot < self.log.base() { Ok(Vec::new()) } else { self.log.read(slot, slot, 0) };
        let record = records.map_err(|error| error.to_string())?.into_iter().next();
        let (Some(configuration), Some(record)) = (configuration, record) else {
            self.busy.store(false, Ordering::Release);
            self.answer(to, Err(format!("there is nothing to take at slot {slot} yet")));
            return Ok(());
        };
        let (blobs, offer, events) = (self.blobs.clone(), self.offer.clone(), self.events.clone());
        let (stop, busy, rate) = (Arc::clone(&self.stop), Arc::clone(&self.busy), Arc::clone(&self.rate));
        let work = move || {
            let began = Instant::now();
            let result = take(&source, record, configuration, &blobs, &offer, &Speed { rate: &rate, stop: &stop });
            drop((source, reservation));
            busy.store(false, Ordering::Release);
            match &result {
                Ok((slot, _)) => tracing::info!(%slot, peer = %to, took = ?began.elapsed(), "took a snapshot"),
                Err(reason) => tracing::warn!(peer = %to, reason, "could not take a snapshot"),
            }
            // The driver only goes away when the process ends.
            events.send(Event::SnapshotTaken { to, result });
        };
        if let Err(error) = std::thread::Builder::new().name("d3bd-snapshot".to_owned()).spawn(work) {
            self.busy.store(false, Ordering::Release);
            self.answer(to, Err(format!("the system refused a thread: {error}")));
        }
        Ok(())
    }

    fn answer(&self, to: ReplicaId, result: Result<(Slot, BlobReference), String>) {
        self.events.send(Event::SnapshotTaken { to, result });
    }
}

/// How fast a snapshot is taken.
struct Speed<'a> {
    rate: &'a Rate,
    stop: &'a Stop,
}

impl Speed<'_> {
    /// Rests after so many bytes, which took so long.
    fn pause(&self, bytes: u64, took: Duration) -> io::Result<()> {
        let mut left = self.rate.wait(bytes, Instant::now()).max(took.min(PAUSE_MAX));
        loop {
            if self.stop.asked() {
                return Err(io::Error::other("the process stops"));
            }
            if left.is_zero() {
                return Ok(());
            }
            let step = left.min(PAUSE_MAX);
            std::thread::sleep(step);
            left -= step;
        }
    }
}

fn take(
    source: &d3b_engine::SnapshotSource,
    record: Record,
    configuration: Configuration,
    blobs: &BlobStore,
    offer: &Offer,
    speed: &Speed<'_>,
) -> Result<(Slot, BlobReference), String> {
    let earlier = offer.current().map(|(_, manifest)| manifest);
    let mut since = Instant::now();
    let mut pace = |bytes: u64| {
        speed.pause(bytes, since.elapsed())?;
        since = Instant::now();
        Ok(())
    };
    let taken = snapshot::take(source, record, configuration, blobs, earlier.as_deref(), &mut pace);
    let taken = taken.map_err(|error| crate::applier::describe(&error))?;
    let answer = (taken.manifest.slot, taken.reference);
    offer.publish(taken, Instant::now()).map_err(|error| error.to_string())?;
    Ok(answer)
}

/// Fetches snapshots, one at a time.
#[derive(Clone)]
pub(crate) struct Fetching {
    pub(crate) data_dir: PathBuf,
    pub(crate) blobs: BlobStore,
    pub(crate) fetcher: Fetcher,
    pub(crate) events: Events,
    /// What is here as a whole, and can be decided on.
    pub(crate) staged: Arc<Mutex<Option<(Digest, Staging)>>>,
    /// Whether one is being fetched.
    pub(crate) busy: Arc<AtomicBool>,
}

impl Fetching {
    /// Fetches a snapshot, file by file; what an attempt before has brought is not fetched again.
    pub(crate) async fn run(self, from: ReplicaId, manifest: BlobReference) {
        if self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let result = self.fetch(from, manifest).await;
        self.busy.store(false, Ordering::Release);
        let _ = self.events.try_send(Event::SnapshotStaged { manifest: manifest.digest, result });
    }

    async fn fetch(&self, from: ReplicaId, manifest: BlobReference) -> Result<Slot, String> {
        Manifest::check_size(&manifest).map_err(|error| error.to_string())?;
        let _kept = self.blobs.keep(&manifest.digest);
        self.fetcher.fetch(manifest, &[from]).await.map_err(|error| error.to_string())?;
        let (data_dir, blobs) = (self.data_dir.clone(), self.blobs.clone());
        let mut staging = blocking(move || Staging::begin(&data_dir, &manifest, &blobs)).await?;
        let of: u64 =
            staging.manifest().databases.iter().map(|database| database.file.size).fold(0, u64::saturating_add);
        let slot = staging.manifest().slot;
        // Better to know now than when the disk is nearly full.
        let wanted = staging.missing().iter().map(|file| file.size).fold(0, u64::saturating_add);
        self.blobs
            .room()
            .and_then(|room| room.for_file(wanted))
            .map_err(|error| format!("the snapshot's files have {wanted} bytes more than are here: {error}"))?;
        loop {
            let missing = staging.missing();
            let here = of.saturating_sub(missing.iter().map(|file| file.size).fold(0, u64::saturating_add));
            let _ = self.events.try_send(Event::SnapshotProgress { manifest: manifest.digest, here, of });
            let Some(file) = missing.first().copied() else { break };
            let _kept = self.blobs.keep(&file.digest);
            self.fetch_file(file, from, (manifest.digest, here, of)).await?;
            let blobs = self.blobs.clone();
            staging = blocking(move || staging.stage(&file.digest, &blobs).map(|()| staging)).await?;
        }
        *self.staged.lock().expect("no panic while held") = Some((manifest.digest, staging));
        Ok(slot)
    }

    /// A large file takes long: as long as it grows, so does the progress.
    async fn fetch_file(
        &self,
        file: BlobReference,
        from: ReplicaId,
        (manifest, here, of): (Digest, u64, u64),
    ) -> Result<(), String> {
        let sources = [from];
        let fetched = self.fetcher.fetch(file, &sources);
        tokio::pin!(fetched);
        let mut look = tokio::time::interval(Duration::from_secs(1));
        let mut known = 0;
        loop {
            tokio::select! {
                result = &mut fetched => return result.map_err(|error| error.to_string()),
                _ = look.tick() => {
                    let grown = self.blobs.partial_length(&file.digest);
                    if grown > known {
                        known = grown;
                        let here = here + grown;
                        let _ = self.events.try_send(Event::SnapshotProgress { manifest, here, of });
                    }
                }
            }
        }
    }

    /// Makes the next start begin with a snapshot that is here.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) fn decide(&self, manifest: Digest) -> Result<(), String> {
        let staged = self.staged.lock().expect("no panic while held").take();
        match staged {
            Some((digest, staging)) if digest == manifest => {
                staging.decide().map_err(|error| crate::applier::describe(&error))
            }
            Some(_) | None => Err("it is not here".to_owned()),
        }
    }
}

async fn blocking<T: Send + 'static, E: std::error::Error + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|panic| panic.to_string())?;
    done.map_err(|error| crate::applier::describe(&error))
}
