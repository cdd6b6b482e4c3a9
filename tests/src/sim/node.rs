//! One simulated replica: what survives its process, and the process.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use d3b::{Digest, DiskId, ReplicaId, Slot};
use d3b_paxos::PersistBatch;
use d3b_paxos::types::{Configuration, Now, Ticks};
use d3bd::driver::{Driver, Event, Process};

use super::disk::{Disk, LogFile, Written};
use super::machine::Machine;
use super::snapshots::{Offered, Snapshot, Staged, Taking};

/// The driver, on a simulated disk.
pub type SimDriver = Driver<LogFile, Written>;

/// The true time at which every run begins, in milliseconds since 1970.
pub const EPOCH_MS: u64 = 1_750_000_000_000;

/// A replica.
pub struct Node<M: Machine> {
    /// Which.
    pub id: ReplicaId,
    /// The log, the identity and the blobs.
    pub disk: Disk,
    /// The state machine's files, while no process has them open.
    pub image: M::Image,
    /// The process, while it lives.
    pub process: Option<Running<M>>,
    /// Whether it joins a cluster that is formed.
    pub joins: bool,
    /// Whom it was told to greet.
    pub greets: BTreeMap<ReplicaId, String>,
    /// The snapshot that it gives.
    pub offered: Option<Offered<M::Copy>>,
    /// What it has of the one that it fetches.
    pub staged: Option<Staged<M::Copy>>,
    /// The one that its next process begins with.
    pub install: Option<Rc<Snapshot<M::Copy>>>,
    /// The execution version that its next process has.
    pub execution: u32,
    /// How many processes it has had.
    pub starts: u64,
    /// Its wall clock minus the true time.
    pub clock_offset_ms: i64,
    /// A thousand of its seconds in true milliseconds; taken over at the start of a process.
    pub pace: u64,
    /// How many times slower than usual its disk is.
    pub slowness: u64,
    /// The next sync fails.
    pub fails_next_sync: bool,
    /// Its disk is full.
    pub full: bool,
    /// Its disk was exchanged: it has forgotten what it promised, and must never vote again.
    pub wiped: bool,
    /// A record of its log is damaged: it must stop when it reads it.
    pub damaged: bool,
    /// Its databases hold something that no entry has put there.
    pub rotten: bool,
    /// Why it is quarantined, as its disk says.
    pub quarantined: Option<String>,
    /// Whether it was quarantined, whatever its disk says, and not rebuilt since.
    pub condemned: bool,
    /// Whether an operator wants it rebuilt although nothing is wrong with it.
    pub forced: bool,
    /// It has stopped for good.
    pub stopped: bool,
}

/// A process.
pub struct Running<M: Machine> {
    /// The shipped driver, with the shipped core in it.
    pub driver: SimDriver,
    /// The state machine.
    pub machine: M,
    /// Who it is in commands.
    pub identity: Process,
    /// When it started.
    pub started_at: u64,
    /// The pace of its monotonic clock.
    pub pace: u64,
    /// What the log is writing.
    pub writing: Option<PersistBatch>,
    /// The newest configuration that is known to have been adopted.
    pub adopted: Option<Configuration>,
    /// The snapshot that is being taken.
    pub taking: Option<Taking<M::Taking>>,
    /// Whether one is being fetched.
    pub fetches_snapshot: bool,
    /// Files that an entry which was applied named, and that were not here then: they are asked for until they are.
    pub wanted: BTreeSet<Digest>,
    /// How many files the driver was told to be missing.
    pub told_wanting: Option<u64>,
    /// Whether all that its state refers to is to be looked up: what the process before it waited for is forgotten.
    pub look_up: bool,
    /// Where the log begins, or soon will.
    pub cut: Slot,
    /// What is to be applied.
    pub to_apply: Option<Slot>,
    /// When its next tick is scheduled.
    pub tick_at: Option<u64>,
    /// Names its clients' requests.
    pub next_ticket: u64,
    /// Whether it has taken events that it has not acted on yet.
    pub unsettled: bool,
    /// Blobs that are on their way here.
    pub fetching: BTreeSet<(ReplicaId, Digest)>,
    /// What came while it was stopped.
    pub held: Vec<Event<Written>>,
    /// Whether it is stopped.
    pub paused: bool,
    /// When its databases are read from end to end the next time.
    pub scrub_at: u64,
}

impl<M: Machine> Node<M> {
    /// A replica that was never started.
    #[must_use]
    pub fn new(id: ReplicaId, disk: DiskId) -> Node<M> {
        Node {
            id,
            disk: Disk::blank(disk),
            image: M::blank(),
            process: None,
            joins: false,
            greets: BTreeMap::new(),
            offered: None,
            staged: None,
            install: None,
            execution: 1,
            starts: 0,
            clock_offset_ms: 0,
            pace: 1_000,
            slowness: 1,
            fails_next_sync: false,
            full: false,
            wiped: false,
            damaged: false,
            rotten: false,
            quarantined: None,
            condemned: false,
            forced: false,
            stopped: false,
        }
    }

    /// Whether the group must do without it.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.wiped || self.damaged
    }

    /// Whether it must be rebuilt before it counts for anything.
    #[must_use]
    pub fn is_ill(&self) -> bool {
        self.rotten || self.condemned || self.forced
    }

    /// Whether it has taken over something of a snapshot of rotten data, and will hold it as soon as that is installed.
    #[must_use]
    pub fn catches_rot(&self) -> bool {
        let staged = self.staged.as_ref().map(|staged| &staged.snapshot);
        staged.into_iter().chain(&self.install).any(|snapshot| snapshot.rotten)
    }

    /// What its clocks show at a moment of the run.
    #[must_use]
    pub fn now(&self, time: u64) -> Now {
        let ticks = self.process.as_ref().map_or(0, |process| process.ticks(time));
        let clock_ms = (EPOCH_MS + time / 1_000).saturating_add_signed(self.clock_offset_ms);
        Now { ticks: Ticks(ticks), clock_ms }
    }

    /// How far its process has applied the log.
    #[must_use]
    pub fn applied(&self) -> Slot {
        self.process.as_ref().map_or(Slot::ZERO, |process| process.machine.applied())
    }

    /// Whether its process is there and goes on.
    #[must_use]
    pub fn is_awake(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.paused)
    }
}

impl<M: Machine> Running<M> {
    /// A configuration was adopted.
    pub fn learn(&mut self, configuration: &Configuration) {
        if self.adopted.as_ref().is_none_or(|known| known.epoch < configuration.epoch) {
            self.adopted = Some(configuration.clone());
        }
    }

    fn ticks(&self, time: u64) -> u64 {
        (time - self.started_at) * self.pace / 1_000_000
    }

    /// The moment of the run at which its monotonic clock shows so much.
    #[must_use]
    pub fn moment(&self, ticks: Ticks) -> u64 {
        self.started_at + ticks.0.saturating_mul(1_000_000).div_ceil(self.pace)
    }
}
