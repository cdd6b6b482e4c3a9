//! The thread that applies chosen entries, fetches the files that they need, and keeps the blob store tidy.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use d3b::{BlobReference, Digest, Slot};
use d3b_engine::{Applied, Engine, LogEntry, command};
use d3b_paxos::Storage;
use d3b_paxos::types::{Payload, Record};
use tokio::sync::watch;

use crate::catch_up::{Order, Taker};
use crate::driver::{ApplyReport, DriverStatus, Event, Process};
use crate::driving::Events;
use crate::entries::{Needed, blobs_of, log_entry};
use crate::log::LogReader;
use crate::media::{BlobStore, Fetcher, Prefetcher, Sources};
use crate::run::{Clock, Stop};
use crate::scrub::Damage;
use crate::snapshot::Offer;
use crate::wanting::{SWEEP_PAUSE, Wanting};

/// How many bytes of entries are applied in one go.
const CHUNK_BYTES: usize = 4 << 20;
/// How many slots may be applied beyond what is durable before the databases are synced, and before everything waits for
/// that.
const CHECKPOINT_SLOTS: (u64, u64) = (10_000, 100_000);
/// How long what was applied may stay unsynced.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(2);
/// How soon it is looked whether what is done ahead of a checkpoint is done, where nothing else happens.
const AHEAD_LOOK: Duration = Duration::from_millis(20);
/// Databases that nothing was applied to for so long, and less than twice that, are closed.
const UNUSED_MAX: Duration = Duration::from_secs(60);
/// How often the blob store is swept even if nothing was deleted.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// How long to wait before a blob that no peer could give is asked for again.
const FETCH_RETRY: Duration = Duration::from_millis(500);
/// How often a wait for a blob looks whether the process is to stop.
const STOP_LOOK: Duration = Duration::from_millis(100);
/// How many bytes of the log are looked through for files in one go.
const SCAN_BYTES: usize = 32 << 20;

/// How much of the log is kept, roughly: whichever is reached first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retain {
    pub(crate) bytes: u64,
    pub(crate) age: Duration,
}

/// What the thread owns.
pub(crate) struct Applier {
    pub(crate) engine: Engine,
    pub(crate) log: LogReader,
    pub(crate) blobs: BlobStore,
    pub(crate) fetcher: Fetcher,
    pub(crate) prefetcher: Prefetcher,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) process: Process,
    /// The other members, those first that are heard from.
    pub(crate) sources: Sources,
    /// Peers that want snapshots.
    pub(crate) orders: Receiver<Order>,
    pub(crate) taker: Taker,
    /// Which files this replica should hold is to be looked up, and whether they are here.
    pub(crate) wanting: Wanting,
    pub(crate) grace: Duration,
    pub(crate) offer: Offer,
    pub(crate) retain: Retain,
    pub(crate) clock: Clock,
    pub(crate) applied: watch::Sender<Slot>,
    pub(crate) events: Events,
    pub(crate) status: watch::Receiver<Arc<DriverStatus>>,
    /// How far everything is durable, for others to see.
    pub(crate) durable: Arc<AtomicU64>,
    /// Databases that were found to be damaged beside the work of this thread.
    pub(crate) damages: Receiver<Damage>,
    pub(crate) stop: Arc<Stop>,
}

/// Starts the thread; it ends when the sender of ranges is dropped.
pub(crate) fn spawn(applier: Applier) -> std::io::Result<(SyncSender<RangeInclusive<Slot>>, JoinHandle<()>)> {
    let (ranges, inbox) = sync_channel(1);
    let watched = Watched { stop: Arc::clone(&applier.stop) };
    let run = move || {
        applier.run(&inbox);
        drop(watched);
    };
    let thread = std::thread::Builder::new().name("d3bd-apply".to_owned()).spawn(run)?;
    Ok((ranges, thread))
}

/// Stops the replica if the thread panics: else it would go on and never answer.
struct Watched {
    stop: Arc<Stop>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.stop.fatal("the thread that applies entries panicked".to_owned());
        }
    }
}

/// When the databases were last synced and the blobs last swept.
struct Upkeep {
    checkpointed: Instant,
    /// Whether something is or was done ahead of the next checkpoint.
    ahead: bool,
    durable: Slot,
    /// When unused databases were last closed.
    closed: Instant,
    swept: Instant,
    /// No sweep before this: one may look into thousands of databases, and entries wait meanwhile.
    sweep_after: Instant,
    images: Images,
    /// Where the log begins, or soon will.
    base: Slot,
    /// The last slot that may have left blobs without a reference, and was not followed by a sweep.
    deleted_at: Option<Slot>,
}

impl Applier {
    fn run(mut self, inbox: &Receiver<RangeInclusive<Slot>>) {
        let durable = self.engine.resume_after();
        self.durable.store(durable.0, Ordering::Release);
        let now = Instant::now();
        let (images, base) = (Images::default(), self.log.base());
        let mut upkeep = Upkeep {
            checkpointed: now,
            ahead: false,
            durable,
            closed: now,
            swept: now,
            sweep_after: now,
            images,
            base,
            deleted_at: None,
        };
        loop {
            let patience = if upkeep.ahead || self.wanting.looks() { AHEAD_LOOK } else { CHECKPOINT_INTERVAL };
            match inbox.recv_timeout(patience) {
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
            if self.engine.applied().0 >= upkeep.durable.0 + CHECKPOINT_SLOTS.1 {
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
        for record in records.iter().filter(|record| record.slot <= applied) {
            self.taker.applied(record);
        }
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
        self.events.send(Event::Applied(report));
    }

    /// Gets a database's file that an entry cannot be applied without; tries until it is here or the process stops.
    fn fetch(&self, slot: Slot, reference: BlobReference) {
        let fetched = async {
            while let Err(error) = self.fetcher.fetch(reference, &(self.sources)()).await {
                tracing::warn!(%slot, digest = %reference.digest, %error, "a file that is needed cannot be fetched yet");
                tokio::time::sleep(FETCH_RETRY).await;
            }
        };
        let stopped = async {
            while !self.stop.asked() {
                tokio::time::sleep(STOP_LOOK).await;
            }
        };
        // A large file may take long: a process that is to stop does not wait for it.
        self.runtime.block_on(async {
            tokio::select! {
                () = fetched => {}
                () = stopped => {}
            }
        });
    }

    /// Media is not needed to apply its entry: what is missing is fetched beside. A database's file is in place.
    fn prefetch(&self, records: &[Record], applied: Slot) {
        for record in records.iter().filter(|record| record.slot <= applied) {
            for (needed, reference) in blobs_of(record, &self.blobs) {
                if needed == Needed::Later && !self.blobs.contains(&reference.digest) {
                    self.prefetcher.want(reference);
                }
            }
        }
    }

    fn upkeep(&mut self, upkeep: &mut Upkeep) -> Result<(), String> {
        while let Ok((database, problem)) = self.damages.try_recv() {
            self.engine.set_damaged(database, problem).map_err(|fatal| describe(&fatal))?;
        }
        while let Ok(order) = self.orders.try_recv() {
            self.carry_out(order, upkeep)?;
        }
        self.look_for_files()?;
        self.checkpoint_by_and_by(upkeep)?;
        if upkeep.closed.elapsed() >= UNUSED_MAX {
            upkeep.closed = Instant::now();
            self.engine.close_unused();
        }
        if let Err(error) = self.offer.expire(Instant::now()) {
            tracing::warn!(%error, "a snapshot that nobody fetches cannot be dropped");
        }
        self.cut(upkeep);
        // A deletion lets go of its blob only when it is durable; uploads that came to nothing are found by the clock.
        let deletion_is_durable = upkeep.deleted_at.is_some_and(|slot| slot <= upkeep.durable);
        let due = deletion_is_durable || upkeep.swept.elapsed() >= self.grace.min(SWEEP_INTERVAL);
        let settled = self.status.borrow().is_settled(self.clock.now().ticks);
        if due && settled && Instant::now() >= upkeep.sweep_after {
            self.sweep(upkeep)?;
        }
        Ok(())
    }

    /// Whoever waits for an answer may have gone.
    fn carry_out(&mut self, order: Order, upkeep: &mut Upkeep) -> Result<(), String> {
        match order {
            Order::Copy(copy) => self.taker.take(copy, &mut self.engine)?,
            Order::Checkpoint(reply) => {
                self.checkpoint(upkeep)?;
                let _ = reply.send(upkeep.durable);
            }
            Order::Cut { upto, reply } => {
                self.checkpoint(upkeep)?;
                self.cut_at(upto, upkeep);
                let _ = reply.send(upkeep.base);
            }
        }
        Ok(())
    }

    /// Tells the driver how many files are missing here, where that is news.
    fn look_for_files(&mut self) -> Result<(), String> {
        let votes = self.status.borrow().votes_here(self.process.replica);
        let sources = (&self.engine, &self.blobs, &self.prefetcher);
        if let Some(files) = self.wanting.look(sources, votes).map_err(|fatal| describe(&fatal))? {
            // The driver only goes away when the process ends.
            self.events.send(Event::Wanting(files));
        }
        Ok(())
    }

    /// Asks for a cut of the log, if it holds too much that is durable in all databases.
    fn cut(&self, upkeep: &mut Upkeep) {
        let age_ms = u64::try_from(self.retain.age.as_millis()).unwrap_or(u64::MAX);
        let oldest_ms = self.clock.now().clock_ms.saturating_sub(age_ms);
        if let Some(due) = self.log.cut_due(self.retain.bytes, oldest_ms) {
            self.cut_at(due, upkeep);
        }
    }

    /// Asks for a cut of the log at a slot, or as near below it as everything is durable and nobody needs the log.
    fn cut_at(&self, upto: Slot, upkeep: &mut Upkeep) {
        // The record at the mark stays: the log that follows on a snapshot begins with it.
        let bound = self.offer.slot().map_or(upkeep.durable, |offered| offered.min(upkeep.durable));
        let base = upto.min(bound);
        if base > upkeep.base {
            upkeep.base = base;
            // The driver only goes away when the process ends.
            self.events.send(Event::CutDue(base));
        }
    }

    /// Most of a checkpoint's work is done beside this thread, for entries wait for what is done on it.
    fn checkpoint_by_and_by(&mut self, upkeep: &mut Upkeep) -> Result<(), String> {
        let undurable = self.engine.applied().0 - upkeep.durable.0;
        if undurable == 0 {
            return Ok(());
        }
        if upkeep.ahead && self.engine.is_ahead_over() {
            return self.checkpoint(upkeep);
        }
        let due = undurable >= CHECKPOINT_SLOTS.0 || upkeep.checkpointed.elapsed() >= CHECKPOINT_INTERVAL;
        if due && !upkeep.ahead {
            upkeep.ahead = true;
            self.runtime.spawn_blocking(self.engine.checkpoint_ahead());
        }
        Ok(())
    }

    fn checkpoint(&mut self, upkeep: &mut Upkeep) -> Result<(), String> {
        upkeep.durable = self.engine.checkpoint().map_err(|fatal| describe(&fatal))?;
        upkeep.ahead = false;
        self.durable.store(upkeep.durable.0, Ordering::Release);
        upkeep.checkpointed = Instant::now();
        Ok(())
    }

    /// Drops blobs that nothing refers to: no media row of a database, and no entry that may be applied (again), be it
    /// here or by a member that is behind. Such a one cannot make a database without its file, and nobody else has it.
    fn sweep(&mut self, upkeep: &mut Upkeep) -> Result<(), String> {
        let began = Instant::now();
        upkeep.sweep_after = began + CHECKPOINT_INTERVAL;
        // What was deleted lets go of its blob only when that is durable, however this sweep came about.
        if self.engine.applied() > upkeep.durable {
            self.checkpoint(upkeep)?;
        }
        // Whoever is behind the log's beginning is taken past it by a snapshot.
        let everywhere = self.applied_everywhere().max(upkeep.base.previous());
        // A backup that is being taken holds what the log names.
        let everywhere = self.offer.reserved().map_or(everywhere, |slot| everywhere.min(slot.previous()));
        if !upkeep.images.find(&self.log, &|record| images_of(record, &self.blobs), everywhere, upkeep.durable)? {
            return Ok(());
        }
        upkeep.swept = began;
        upkeep.deleted_at = upkeep.deleted_at.filter(|slot| *slot > upkeep.durable);
        let mut referenced: HashSet<Digest> = upkeep.images.by_slot.values().flatten().copied().collect();
        self.engine
            .referenced_blobs(&mut |digest| {
                referenced.insert(digest);
            })
            .map_err(|fatal| describe(&fatal))?;
        let mut next = upkeep.durable.next();
        loop {
            let records = self.log.read(next, Slot(u64::MAX), CHUNK_BYTES).map_err(|error| error.to_string())?;
            let Some(last) = records.last().map(|record| record.slot) else { break };
            let named = records.iter().flat_map(|record| blobs_of(record, &self.blobs));
            referenced.extend(named.map(|(_, reference)| reference.digest));
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
        upkeep.sweep_after = upkeep.sweep_after.max(began + began.elapsed() * SWEEP_PAUSE);
        Ok(())
    }

    /// Every other member has applied everything up to here, as far as they have said.
    fn applied_everywhere(&self) -> Slot {
        let status = Arc::clone(&self.status.borrow());
        let others = status.members.iter().filter(|member| member.id != self.process.replica);
        let others = others.map(|member| member.applied.unwrap_or(Slot::ZERO));
        others.min().unwrap_or(Slot(u64::MAX))
    }
}

/// The files of databases that a stretch of the log names: what a member that is behind that stretch will ask for.
#[derive(Debug, Default)]
struct Images {
    by_slot: BTreeMap<Slot, Vec<Digest>>,
    /// Everything above the first of these, up to the second, was looked through.
    after: Slot,
    upto: Slot,
}

impl Images {
    /// Looks through what is above `after`, up to `upto`, but for what is known from before; false while there is more
    /// to look through than one go allows.
    fn find(
        &mut self,
        log: &impl Storage,
        images_of: &dyn Fn(&Record) -> Vec<Digest>,
        after: Slot,
        upto: Slot,
    ) -> Result<bool, String> {
        if after >= upto {
            *self = Images { by_slot: BTreeMap::new(), after: upto, upto };
            return Ok(true);
        }
        if after < self.after || after > self.upto {
            // Something else than a continuation, such as a member that was last heard of from further on.
            *self = Images { by_slot: BTreeMap::new(), after, upto: after };
        }
        self.by_slot = self.by_slot.split_off(&after.next());
        self.after = after;
        self.scan(log, images_of, upto)
    }

    fn scan(
        &mut self,
        log: &impl Storage,
        images_of: &dyn Fn(&Record) -> Vec<Digest>,
        upto: Slot,
    ) -> Result<bool, String> {
        let mut left = SCAN_BYTES;
        while self.upto < upto {
            if left == 0 {
                return Ok(false);
            }
            let records = log.read(self.upto.next(), upto, CHUNK_BYTES).map_err(|error| error.to_string())?;
            let Some(last) = records.last().map(|record| record.slot) else { break };
            let bytes: usize = records.iter().map(|record| record.entry.size()).sum();
            left = left.saturating_sub(bytes);
            for record in &records {
                let images = images_of(record);
                if !images.is_empty() {
                    self.by_slot.insert(record.slot, images);
                }
            }
            self.upto = last;
        }
        Ok(true)
    }
}

/// The files without which a record cannot be applied.
fn images_of(record: &Record, blobs: &dyn d3b_engine::Blobs) -> Vec<Digest> {
    let needed = blobs_of(record, blobs).into_iter().filter(|(needed, _)| *needed == Needed::ToApply);
    needed.map(|(_, reference)| reference.digest).collect()
}

/// Whether an applied record may have left a blob without a reference.
fn deletes(record: &Record, applied: Slot) -> bool {
    if record.slot > applied {
        return false;
    }
    match &record.entry.payload {
        Payload::Noop | Payload::Configuration(_) => false,
        Payload::Command(bytes) => command::decode(bytes).is_ok_and(|command| match command.keyed.operation {
            d3b::Operation::Sql { media, .. } => media.is_some(),
            d3b::Operation::Catalogue(_) => true,
        }),
    }
}

/// An error with its causes, on one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use d3b::{CatalogueChange, DatabaseName, IdempotencyKey, InsertMode, KeyedOperation, Operation, ReplicaId};
    use d3b_engine::command::{Command, Origin};
    use d3b_paxos::StorageError;
    use d3b_paxos::types::{Ballot, Entry, Stamp};

    use super::*;

    /// A log in which every third slot uploads a database.
    struct Uploads;

    fn digest(slot: Slot) -> Digest {
        Digest::of(&slot.0.to_le_bytes())
    }

    impl Storage for Uploads {
        fn read(&self, from: Slot, upto: Slot, _: usize) -> Result<Vec<Record>, StorageError> {
            let record = |slot: Slot| Record {
                slot,
                ballot: Ballot::ZERO,
                entry: Entry { stamp: Stamp::default(), payload: payload(slot) },
            };
            Ok((from.0..=upto.0).take(4).map(|slot| record(Slot(slot))).collect())
        }
    }

    fn payload(slot: Slot) -> Payload {
        if !slot.0.is_multiple_of(3) {
            return Payload::Noop;
        }
        let change = CatalogueChange::Upload {
            name: DatabaseName::new("shop").unwrap(),
            owner: String::new(),
            file_id: d3b::FileId::new("shop.sqlite3").unwrap(),
            blob: Some(BlobReference { digest: digest(slot), size: 8 }),
            mode: InsertMode::Replace,
        };
        let keyed = KeyedOperation {
            key: IdempotencyKey::new(slot.to_string()).unwrap(),
            request: Digest::of(b""),
            operation: Operation::Catalogue(change),
        };
        let origin = Origin { replica: ReplicaId(1), incarnation: 1, sequence: 1 };
        Payload::Command(Bytes::from(command::encode(&Command { origin, keyed })))
    }

    #[track_caller]
    fn check(images: &mut Images, after: u64, upto: u64, expected: &[u64]) {
        let nothing = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(nothing.path()).unwrap();
        let images_of = |record: &Record| images_of(record, &blobs);
        assert!(images.find(&Uploads, &images_of, Slot(after), Slot(upto)).unwrap());
        assert_eq!(images.by_slot.keys().map(|slot| slot.0).collect::<Vec<_>>(), expected);
        assert!(images.by_slot.iter().all(|(slot, found)| *found == [digest(*slot)]));
    }

    #[test]
    fn what_a_member_that_is_behind_will_ask_for_is_known() {
        let mut images = Images::default();
        check(&mut images, 0, 10, &[3, 6, 9]);
        check(&mut images, 0, 12, &[3, 6, 9, 12]);
        check(&mut images, 6, 12, &[9, 12]);
        check(&mut images, 20, 12, &[]);
        check(&mut images, 15, 20, &[18]);
        check(&mut images, 7, 20, &[9, 12, 15, 18]);
        check(&mut images, u64::MAX, 20, &[]);
    }
}
