//! Snapshots between simulated replicas: taken beside the state machine, fetched in pieces, and installed by the next
//! process, each of which a crash may cut short.

use std::rc::Rc;

use d3b::{BlobReference, Digest, ReplicaId, Slot};
use d3b_paxos::Storage;
use d3b_paxos::types::{Configuration, Payload, Record};
use d3bd::driver::Event;

use super::machine::Machine;
use super::oracle::{Violation, demand};
use super::world::{Happening, World};

/// In so many pieces the files of a snapshot arrive.
const PIECES: u64 = 4;

/// A manifest and the files that it names.
#[derive(Debug)]
pub struct Snapshot<C> {
    /// Everything up to here is in the files.
    pub slot: Slot,
    /// The log's record there.
    pub record: Record,
    /// The configuration in effect there.
    pub configuration: Configuration,
    /// The files.
    pub files: C,
    /// Whether they hold something that no entry has put there.
    pub rotten: bool,
}

/// A snapshot that a replica gives to whoever asks, also after a restart.
#[derive(Debug)]
pub struct Offered<C> {
    reference: BlobReference,
    snapshot: Rc<Snapshot<C>>,
    /// When somebody last fetched something of it.
    used: u64,
}

/// What a replica has of a snapshot that it fetches.
#[derive(Debug)]
pub struct Staged<C> {
    digest: Digest,
    /// What it is.
    pub(super) snapshot: Rc<Snapshot<C>>,
    pieces: u64,
}

/// A snapshot that is being taken.
#[derive(Debug)]
pub struct Taking<T> {
    slot: Slot,
    record: Record,
    configuration: Configuration,
    source: T,
}

/// The configuration of a record that changes it.
pub fn configuration_of(record: &Record) -> Option<Configuration> {
    match &record.entry.payload {
        Payload::Configuration(configuration) => Some(Configuration { slot: record.slot, ..(**configuration).clone() }),
        Payload::Noop | Payload::Command(_) => None,
    }
}

impl<M: Machine> World<'_, M> {
    // Giving.

    /// A peer wants a snapshot: the one that is offered, or a new one.
    pub(super) fn take_snapshot(
        &mut self,
        id: ReplicaId,
        to: ReplicaId,
        known: Configuration,
    ) -> Result<(), Violation> {
        let node = self.node(id);
        let start = node.starts;
        demand!(!node.condemned, "{id} is quarantined, and is to give {to} what it holds");
        let Some(process) = &mut node.process else { return Ok(()) };
        process.learn(&known);
        let result = match &node.offered {
            Some(offered) => Ok((offered.snapshot.slot, offered.reference)),
            None if process.taking.is_some() => Err("another snapshot is being taken".to_owned()),
            None => {
                let (slot, source) = process.machine.begin_snapshot().map_err(Violation)?;
                let adopted = process.adopted.clone();
                let log = &node.disk.log;
                let record = match if slot < log.base() { Ok(Vec::new()) } else { log.read(slot, slot, 0) } {
                    Ok(records) => records.into_iter().next(),
                    Err(error) => return self.lose(id, &error.message),
                };
                if let (Some(configuration), Some(record)) = (adopted, record) {
                    process.taking = Some(Taking { slot, record, configuration, source });
                    let delay = self.random.around(self.scenario.snapshot_us);
                    self.after(delay, Happening::Taken { at: id, start, to });
                    return Ok(());
                }
                Err(format!("there is nothing to take at slot {slot} yet"))
            }
        };
        self.answer(id, Event::SnapshotTaken { to, result })
    }

    /// The copies are made.
    pub(super) fn taken(&mut self, id: ReplicaId, to: ReplicaId) -> Result<(), Violation> {
        let digest = Digest::of(&self.random.word().to_le_bytes());
        let time = self.time;
        let node = self.node(id);
        let Some(process) = &mut node.process else { return Ok(()) };
        let Some(Taking { slot, record, configuration, source }) = process.taking.take() else { return Ok(()) };
        let files = process.machine.copy(source).map_err(Violation)?;
        let reference = BlobReference { digest, size: PIECES };
        let result = if node.full {
            Err("the disk is full".to_owned())
        } else {
            let snapshot = Rc::new(Snapshot { slot, record, configuration, files, rotten: node.rotten });
            node.offered = Some(Offered { reference, snapshot, used: time });
            Ok((slot, reference))
        };
        self.note(1_100 + u64::from(id.0), |_| format!("{id} has taken a snapshot at {slot}"));
        self.event(id, Event::SnapshotTaken { to, result })
    }

    /// The lowest slot of what a replica gives or will give: its log must not begin later.
    pub(super) fn offered_slot(&self, id: ReplicaId) -> Option<Slot> {
        let node = &self.nodes[&id];
        let taking = node.process.as_ref().and_then(|process| process.taking.as_ref()).map(|taking| taking.slot);
        node.offered.as_ref().map(|offered| offered.snapshot.slot).into_iter().chain(taking).min()
    }

    /// Drops what nobody has fetched for long.
    pub(super) fn expire_offer(&mut self, id: ReplicaId) {
        let (time, kept) = (self.time, self.scenario.offer_us);
        let node = self.node(id);
        node.offered.take_if(|offered| offered.used + kept < time);
    }

    // Taking over.

    /// Begins to fetch a peer's snapshot, unless one is being fetched.
    pub(super) fn fetch_snapshot(&mut self, id: ReplicaId, from: ReplicaId, manifest: BlobReference) {
        let node = self.node(id);
        let start = node.starts;
        let Some(process) = &mut node.process else { return };
        if !std::mem::replace(&mut process.fetches_snapshot, true) {
            self.next_piece(id, start, from, manifest.digest);
        }
    }

    fn next_piece(&mut self, id: ReplicaId, start: u64, from: ReplicaId, manifest: Digest) {
        let delay = 2 * self.network.delay() + self.random.around(self.scenario.snapshot_us / PIECES);
        self.after(delay, Happening::Piece { at: id, start, from, manifest });
    }

    /// A piece of a snapshot has arrived, or has not.
    pub(super) fn piece(&mut self, id: ReplicaId, from: ReplicaId, manifest: Digest) -> Result<(), Violation> {
        let time = self.time;
        let up = self.network.is_up((id, from), time) && self.network.is_up((from, id), time);
        let giver = self.node(from);
        let awake = giver.is_awake();
        let offered = giver.offered.as_mut().filter(|offered| awake && up && offered.reference.digest == manifest);
        let taints = offered.as_ref().is_some_and(|offered| offered.snapshot.rotten);
        let snapshot = offered.map(|offered| {
            offered.used = time;
            Rc::clone(&offered.snapshot)
        });
        let snapshot = if taints && !self.may_catch_rot(id) {
            self.stop_giver(from)?;
            None
        } else {
            snapshot
        };
        let node = self.node(id);
        let (start, full) = (node.starts, node.full);
        let here = match snapshot.filter(|_| !full) {
            None => Err("the connection or the disk failed".to_owned()),
            Some(snapshot) => {
                // What is there of another one is of no use.
                let staged = node.staged.take().filter(|staged| staged.digest == manifest);
                let mut staged = staged.unwrap_or(Staged { digest: manifest, snapshot, pieces: 0 });
                staged.pieces = (staged.pieces + 1).min(PIECES);
                let (here, slot) = (staged.pieces, staged.snapshot.slot);
                node.staged = Some(staged);
                Ok((here, slot))
            }
        };
        match here {
            Ok((here, _)) if here < PIECES => {
                self.next_piece(id, start, from, manifest);
                self.event(id, Event::SnapshotProgress { manifest, here, of: PIECES })
            }
            Ok((_, slot)) => self.staged(id, manifest, Ok(slot)),
            Err(reason) => self.staged(id, manifest, Err(reason)),
        }
    }

    fn staged(&mut self, id: ReplicaId, manifest: Digest, result: Result<Slot, String>) -> Result<(), Violation> {
        if let Some(process) = &mut self.node(id).process {
            process.fetches_snapshot = false;
        }
        self.event(id, Event::SnapshotStaged { manifest, result })
    }

    /// Decides on a snapshot that is here: the next process begins with it.
    pub(super) fn decide(&mut self, id: ReplicaId, manifest: Digest) -> Result<(), Violation> {
        let node = self.node(id);
        let start = node.starts;
        match node.staged.take_if(|staged| staged.digest == manifest && staged.pieces == PIECES) {
            Some(staged) => {
                node.install = Some(staged.snapshot);
                self.after(0, Happening::Again { at: id, start });
                Ok(())
            }
            None => {
                let result = Err("it is not here".to_owned());
                self.answer(id, Event::SnapshotStaged { manifest, result })
            }
        }
    }

    /// A process ends because it wants to start again.
    pub(super) fn again(&mut self, id: ReplicaId) -> Result<(), Violation> {
        self.crash(id, false)?;
        let delay = self.random.between(1_000, 50_000);
        self.after(delay, Happening::Start { at: id });
        Ok(())
    }

    /// Puts a snapshot that was decided on in the place of what is there; false if the process dies over it.
    pub(super) fn install(&mut self, id: ReplicaId) -> Result<bool, Violation> {
        let careless = self.careless_manifest;
        let dies = if self.is_rough { self.random.below(8) } else { 8 };
        let Some(snapshot) = self.node(id).install.clone() else { return Ok(true) };
        let Snapshot { slot, record, configuration, files, rotten } = &*snapshot;
        self.note(1_200 + u64::from(id.0), |_| format!("{id} installs a snapshot at {slot}"));
        self.oracle.applies(id, record)?;
        self.oracle.adopts(id, configuration)?;
        let node = self.node(id);
        if dies == 0 {
            return Ok(false);
        }
        let promised = node.disk.log.promised();
        if node.disk.log.begin_at(record, configuration, careless) {
            demand!(node.disk.log.promised() >= promised, "a snapshot lowers the promise of {id}");
            (node.quarantined, node.offered) = (None, None);
            if dies == 1 {
                return Ok(false);
            }
            M::install(&mut node.image, *slot, files);
            (node.rotten, node.forced) = (*rotten, false);
            let rebuilt = std::mem::take(&mut node.condemned);
            self.rebuilt += u32::from(rebuilt);
            self.installed += 1;
        }
        self.node(id).install = None;
        Ok(dies != 2)
    }
}
