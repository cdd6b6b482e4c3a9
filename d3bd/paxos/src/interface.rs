//! What the core and its driver say to each other.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use d3b::{DiskId, ReplicaId, Slot};

use crate::message::Envelope;
use crate::types::{Ballot, Change, ChangeError, Configuration, PersistId, ProposalId, ReadId, Record, Ticks};

/// What a replica is told once, when its process starts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Who it is.
    pub id: ReplicaId,
    /// The disk that it runs on; it votes only if the configuration names this disk for it.
    pub disk: DiskId,
    /// A leader is heard from this often.
    pub heartbeat: Ticks,
    /// A follower that hears nothing waits at least this long before it campaigns, and at least this long a member
    /// that did hear from a leader refuses pre-votes.
    pub election_timeout_min: Ticks,
    /// A follower that hears nothing waits at most this long; a leader without a majority for this long steps down.
    pub election_timeout_max: Ticks,
    /// Seeds jitter, and names this process's reads on the wire: must be fresh in every process (OS randomness), or an
    /// answer to a read of the process before could be taken for one of this process's.
    pub seed: u64,
    /// Bytes of entries that are proposed and not yet both chosen and durable at the leader, and that are under way to
    /// one peer; more proposals are [`Reply::Overloaded`].
    pub inflight_bytes_max: usize,
    /// Bytes of entries in one Accept and of records in one chunk of a Promise; one that is larger travels alone.
    pub message_bytes_max: usize,
    /// Log time runs at most so many milliseconds ahead of what a majority's clocks have reached.
    pub clock_ahead_ms_max: u64,
}

/// What a replica finds on its disk when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Restored {
    /// The configuration that was adopted last.
    pub configuration: Configuration,
    /// Everything up to here is known to be chosen and was held at the ballot of the leader that said so: the slot of
    /// the configuration, where this replica adopted it as it was chosen; zero, where it was told of it when it joined.
    pub held: Slot,
    /// The highest ballot that was made durable; [`Ballot::ZERO`] if none.
    pub promised: Ballot,
    /// The first slot that the log holds; 1 until a log is cut.
    pub base: Slot,
    /// The last slot that the log holds a record for, by whatever ballot; [`Slot::ZERO`] if none.
    pub last: Slot,
    /// The last slot that the state machine has applied durably.
    pub applied: Slot,
}

/// Reads of durable records. The core itself keeps what is not durable yet.
pub trait Storage {
    /// The records of the slots `from..=upto`, in order of slots and without gaps, as many as fit into `bytes_max`
    /// bytes ([`crate::types::Entry::size`]), but at least one if there is any.
    ///
    /// # Errors
    /// The record is damaged or cannot be read; never "nothing was accepted here".
    fn read(&self, from: Slot, upto: Slot, bytes_max: usize) -> Result<Vec<Record>, StorageError>;
}

/// The log cannot be read, or contradicts itself: the replica must stop.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{message}")]
pub struct StorageError {
    /// What is wrong, with the slot.
    pub message: String,
}

/// Something that happened, for [`crate::Replica::step`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// A peer's message arrived.
    Message(Envelope),
    /// The state machine's command is to be put into the log.
    Propose(Proposal),
    /// A batch is on disk: promise and records, synced.
    Persisted(PersistId),
    /// The state machine has applied everything up to this slot.
    Applied(Slot),
    /// A read waits for an index that makes it linearizable.
    Read(ReadId),
    /// A peer's connection broke or was refused: its process may be dead. A hint, needed for nothing.
    ConnectionReset(ReplicaId),
    /// Hand the leadership to this member, or to the one that is best placed.
    Transfer(Option<ReplicaId>),
    /// The configuration is to be changed.
    Reconfigure {
        /// Ties the [`Reply`] to it.
        id: ProposalId,
        /// How.
        change: Change,
    },
    /// The log is about to be cut: nothing below this slot, which is applied durably, is to be read any more.
    Cut(Slot),
}

/// A command on its way into the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Proposal {
    /// Ties the [`Reply`] to it.
    pub id: ProposalId,
    /// Bytes that the core never looks into.
    pub command: Bytes,
    /// Randomness from outside, which becomes part of the entry's seed.
    pub seed: u64,
}

/// Answers to proposals, reads and transfers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reply {
    /// The command stands in the log at this slot. It is chosen if this slot is applied with this ballot's entry or a
    /// later re-proposal of it; after a change of leaders another command may take the slot.
    Proposed {
        /// Of the proposal.
        id: ProposalId,
        /// Where.
        slot: Slot,
        /// By which ballot.
        ballot: Ballot,
    },
    /// Nothing was done: this replica does not lead, or hands over.
    NotLeader {
        /// Of the proposal.
        id: ProposalId,
        /// Who leads, as far as known.
        leader: Option<ReplicaId>,
    },
    /// Nothing was done: too many bytes are under way, or the command is larger than [`crate::types::Entry::COMMAND_MAX`].
    Overloaded {
        /// Of the proposal.
        id: ProposalId,
    },
    /// The configuration cannot be changed so; nothing was done.
    Refused {
        /// Of the proposal.
        id: ProposalId,
        /// Why.
        error: ChangeError,
    },
    /// This replica needs what another one's log does not hold any more: a snapshot must take it there.
    Behind {
        /// The other one.
        peer: ReplicaId,
        /// The first slot that its log holds.
        base: Slot,
    },
    /// A member of the cluster knows of a newer configuration than this replica, which need not be in it any more.
    Superseded {
        /// The newer one.
        configuration: Box<Configuration>,
    },
    /// No leader confirmed the read; ask again under a fresh id.
    ReadFailed {
        /// Of the read.
        id: ReadId,
    },
    /// A transfer has ended, one way or the other.
    TransferEnded {
        /// Whether this replica does not lead (any more).
        handed_over: bool,
    },
}

/// A read that may be answered once everything up to `index` is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConfirmedRead {
    /// As asked.
    pub id: ReadId,
    /// Every write that was answered before the read was asked stands at or below this slot.
    pub index: Slot,
}

/// What must be written and synced in one piece. Records overwrite older ones of their slot; nothing is ever cut off.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PersistBatch {
    /// To be told back by [`Input::Persisted`].
    pub id: PersistId,
    /// The ballot that is promised, if it has risen.
    pub promised: Option<Ballot>,
    /// Accepted records, in order of slots.
    pub records: Vec<Record>,
    /// The configuration to adopt, if one was chosen: it and everything below it is held here at its leader's ballot.
    pub configuration: Option<Configuration>,
}

/// What the driver is to do. Every list is in order; the parts may be done side by side, but for what is said here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ready {
    /// Write and sync this; `None` while an earlier batch is outstanding.
    pub persist: Option<PersistBatch>,
    /// Messages that depend on nothing.
    pub send_now: Vec<Envelope>,
    /// Messages that may leave only when `persist` of this same value is durable; empty without one.
    pub send_after_persist: Vec<Envelope>,
    /// Apply these slots; they are chosen, and durable on this replica's own disk.
    pub apply: Option<RangeInclusive<Slot>>,
    /// Reads that are confirmed.
    pub reads: Vec<ConfirmedRead>,
    /// Answers.
    pub replies: Vec<Reply>,
}

/// What a replica is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Listens to a leader, or waits for one.
    Follower,
    /// Asks whether a campaign would be welcome.
    PreCandidate,
    /// Collects promises.
    Candidate,
    /// Leads.
    Leader,
}

/// A snapshot of a replica's state for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What it is doing.
    pub role: Role,
    /// Who leads, as far as known.
    pub leader: Option<ReplicaId>,
    /// The highest ballot that it has promised.
    pub promised: Ballot,
    /// The end of what it knows to be chosen and holds.
    pub commit: Slot,
    /// The end of what it has applied.
    pub applied: Slot,
    /// The end of its log; of a leader, the end of what it has proposed: behind it may lie what other leaders left over.
    pub last: Slot,
    /// The beginning of its log.
    pub base: Slot,
    /// Of a leader: whether its barrier is chosen, so that it serves reads.
    pub barrier_chosen: bool,
    /// Of a leader: its peers.
    pub peers: BTreeMap<ReplicaId, PeerStatus>,
    /// Of a leader: whether it is handing over.
    pub transferring: bool,
    /// Whether it votes at all; a learner does not yet, and a replica on a disk that the configuration does not name for
    /// it never does.
    pub votes: bool,
    /// Whether another configuration is on its way into the log, or to this replica's disk.
    pub changing: bool,
    /// Messages that were dropped since the start: of another cluster, epoch or receiver, or malformed.
    pub dropped: u64,
}

/// A peer as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStatus {
    /// It holds everything up to here durably.
    pub upto: Slot,
    /// What it last said to have applied.
    pub applied: Slot,
    /// Whether it was heard from within an election timeout.
    pub reachable: bool,
}
