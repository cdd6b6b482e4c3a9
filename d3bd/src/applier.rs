//! The thread that applies chosen entries, fetches the files that they need, and keeps the blob store tidy.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use d3b::{BlobReference, Digest, ReplicaId, Slot};
use d3b_engine::{Applied, Engine, LogEntry, command};
use d3b_paxos::Storage;
use d3b_paxos::types::{Payload, Record};
use tokio::sync::watch;

use crate::driver::{ApplyReport, Event, Process};
use crate::entries::{blob_of, log_entry};
use crate::log::LogReader;
use crate::media::{BlobStore, Fetcher};
use crate::run::Stop;

/// How many bytes of entries are applied in one go.
const CHUNK_BYTES: usize = 4 << 20;
/// How many slots may be applied beyond what is durable before the databases are synced.
const CHECKPOINT_SLOTS: u64 = 10_000;
/// How long what was applied may stay unsynced.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(2);
/// How often the blob store is swept even if nothing was deleted.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// How long to wait before a blob that no peer could give is asked for again.
const FETCH_RETRY: Duration = Duration::from_millis(500);

/// What the thread owns.
pub(crate) struct Applier {
    pub(crate) engine: Engine,
    pub(crate) log: LogReader,
    pub(crate) blobs: BlobStore,
    pub(crate) fetcher: Fetcher,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) process: Process,
    pub(crate) others: Vec<ReplicaId>,
    pub(crate) grace: Duration,
    pub(crate) applied: watch::Sender<Slot>,
    pub(crate) events: SyncSender<Event>,
    pub(crate) stop: Arc<Stop>,
}

/// Starts the thread; it ends when the sender of ranges is dropped.
pub(crate) fn spawn(applier: Applier) -> std::io::Result<(SyncSender<RangeInclusive<Slot>>, JoinHandle<()>)> {
    let (ranges, inbox) = sync_channel(1);
    let thread = std::thread::Builder::new().name("d3bd-apply".to_owned()).spawn(move || applier.run(&inbox))?;
    Ok((ranges, thread))
}

/// When the databases were last synced and the blobs last swept.
struct Upkeep {
    checkpointed: Instant,
    durable: Slot,
    swept: Instant,
    /// The last slot that may have left blobs without a reference, and was not followed by a sweep.
    deleted_at: Option<Slot>,
}

impl Applier {
    fn run(mut self, inbox: &Receiver<RangeInclusive<Slot>>) {
        let durable = self.engine.resume_after();
        let mut upkeep = Upkeep { checkpointed: Instant::now(), durable, swept: Instant::now(), deleted_at: None };
        loop {
            match inbox.recv_timeout(CHECKPOINT_INTERVAL) {
                Ok(range) => {
                    if let Err(cause) = self.apply(range, &mut upkeep) {
                        return self.stop.fatal(cause);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if let Err(cause) = self.upkeep(&mut upkeep) {
                return self.stop.fatal(cause);
            }
        }
        // A clean stop leaves nothing to replay.
        if let Err(fatal) = self.engine.checkpoint() {
            self.stop.fatal(describe(&fatal));
        }
    }

    /// Applies a range that is chosen and on disk.
    fn apply(&mut self, range: RangeInclusive<Slot>, upkeep: &mut Upkeep) -> Result<(), String> {
        let mut next = self.engine.applied().next().max(*range.start());
        while next <= *range.end() {
            let records = self.log.read(next, *range.end(), CHUNK_BYTES).map_err(|error| error.to_string())?;
            if records.is_empty() {
                return Err(format!("slot {next} is chosen, and the log does not have it"));
            }
            next = self.apply_records(&records, *range.end(), upkeep)?;
            if self.stop.asked() {
                break;
            }
            if self.engine.applied().0 >= upkeep.durable.0 + CHECKPOINT_SLOTS {
                self.checkpoint(upkeep)?;
            }
        }
        Ok(())
    }

    /// Applies records, or the first of them; returns the slot after the last one that was.
    fn apply_records(&mut self, records: &[Record], end: Slot, upkeep: &mut Upkeep) -> Result<Slot, String> {
        let entries: Vec<LogEntry<'_>> = records.iter().map(log_entry).collect();
        let progress = self.engine.apply(&entries, &self.blobs).map_err(|fatal| describe(&fatal))?;
        let applied = self.engine.applied();
        if let Some(record) = records.iter().rev().find(|record| deletes(record, applied)) {
            upkeep.deleted_at = Some(record.slot);
        }
        self.applied.send_replace(applied);
        self.prefetch(records, applied);
        self.report(applied, progress.applied, applied >= end);
        if let Some((slot, reference)) = progress.needs_blob {
            self.fetch(slot, reference);
        }
        Ok(applied.next())
    }

    fn report(&self, applied: Slot, entries: Vec<Applied>, finished: bool) {
        let report = ApplyReport::new(self.process, applied, entries, finished);
        // The driver only goes away when the process ends.
        drop(self.events.send(Event::Applied(report)));
    }

    /// Gets a database's file that an entry cannot be applied without; tries until it is here or the process stops.
    fn fetch(&self, slot: Slot, reference: BlobReference) {
        while !self.stop.asked() {
            let result = self.runtime.block_on(async {
                let fetched = self.fetcher.fetch(reference, &self.others).await;
                if fetched.is_err() {
                    tokio::time::sleep(FETCH_RETRY).await;
                }
                fetched
            });
            match result {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%slot, digest = %reference.digest, %error, "a file that is needed cannot be fetched yet");
                }
            }
        }
    }

    /// Media is not needed to apply its entry: what is missing is fetched beside.
    fn prefetch(&self, records: &[Record], applied: Slot) {
        for record in records.iter().filter(|record| record.slot <= applied) {
            if let Some(reference) = blob_of(record)
                && !self.blobs.contains(&reference.digest)
            {
                self.prefetch_one(reference);
            }
        }
    }

    fn prefetch_one(&self, reference: BlobReference) {
        let (fetcher, others) = (self.fetcher.clone(), self.others.clone());
        self.runtime.spawn(async move {
            if let Err(error) = fetcher.fetch(reference, &others).await {
                tracing::warn!(digest = %reference.digest, %error, "a media file could not be fetched; it will be when it is asked for");
            }
        });
    }

    fn upkeep(&mut self, upkeep: &mut Upkeep) -> Result<(), String> {
        let dirty = self.engine.applied() > upkeep.durable;
        if dirty && upkeep.checkpointed.elapsed() >= CHECKPOINT_INTERVAL {
            self.checkpoint(upkeep)?;
        }
        // A deletion lets go of its blob only when it is durable; uploads that came to nothing are found by the clock.
        let deletion_is_durable = upkeep.deleted_at.is_some_and(|slot| slot <= upkeep.durable);
        if deletion_is_durable || upkeep.swept.elapsed() >= self.grace.min(SWEEP_INTERVAL) {
            self.sweep(upkeep)?;
        }
        Ok(())
    }

    fn checkpoint(&mut self, upkeep: &mut Upkeep) -> Result<(), String> {
        upkeep.durable = self.engine.checkpoint().map_err(|fatal| describe(&fatal))?;
        upkeep.checkpointed = Instant::now();
        Ok(())
    }

    /// Drops blobs that nothing refers to: no media row of a database, and no entry that may be applied (again).
    fn sweep(&self, upkeep: &mut Upkeep) -> Result<(), String> {
        upkeep.swept = Instant::now();
        upkeep.deleted_at = upkeep.deleted_at.filter(|slot| *slot > upkeep.durable);
        let mut referenced: HashSet<Digest> = HashSet::new();
        self.engine
            .referenced_blobs(&mut |digest| {
                referenced.insert(digest);
            })
            .map_err(|fatal| describe(&fatal))?;
        let mut next = upkeep.durable.next();
        loop {
            let records = self.log.read(next, Slot(u64::MAX), CHUNK_BYTES).map_err(|error| error.to_string())?;
            let Some(last) = records.last().map(|record| record.slot) else { break };
            referenced.extend(records.iter().filter_map(blob_of).map(|reference| reference.digest));
            next = last.next();
        }
        let collected = self.blobs.collect(&|digest| referenced.contains(digest), self.grace, SystemTime::now());
        match collected {
            Ok(collected) if collected.count > 0 => {
                tracing::info!(
                    files = collected.count,
                    bytes = collected.bytes,
                    "dropped files that nothing refers to"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the blob store could not be swept"),
        }
        Ok(())
    }
}

/// Whether an applied record may have left a blob without a reference.
fn deletes(record: &Record, applied: Slot) -> bool {
    if record.slot > applied {
        return false;
    }
    match &record.entry.payload {
        Payload::Noop => false,
        Payload::Command(bytes) => command::decode(bytes).is_ok_and(|command| match command.keyed.operation {
            d3b::Operation::Sql { media, .. } => media.is_some(),
            d3b::Operation::Catalogue(_) => true,
        }),
    }
}

/// An error with its causes, on one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
