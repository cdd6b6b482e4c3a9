//! What goes into the driver and what comes out of it: plain values, so that the daemon and a simulator can both play
//! the world around it.

use std::ops::RangeInclusive;

use bytes::Bytes;
use d3b::{BlobReference, DatabaseId, Digest, Outcome, ReplicaId, Slot};
use d3b_engine::Applied;
use d3b_paxos::PersistBatch;
use d3b_paxos::types::{Configuration, Ticks};

use crate::log::Durable;
use crate::peer::{MemberFailure, MemberRequest, PeerMessage};

/// Names a client's request at the replica that took it; never used twice by one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Something happened. `D` proves that a batch is durable; the daemon's log gives the only one that it knows.
#[derive(Debug)]
pub enum Event<D = Durable> {
    /// A peer said something.
    Peer {
        /// Who.
        from: ReplicaId,
        /// What.
        message: PeerMessage,
    },
    /// A peer's connection ended or was refused: its process may be dead.
    ConnectionReset(ReplicaId),
    /// The log has written a batch.
    Durable(D),
    /// The log has written the configuration that formed the cluster.
    ConfigurationPersisted(Configuration),
    /// The engine has applied entries.
    Applied(ApplyReport),
    /// A blob that a peer offered is on this replica's disk now, or could not be fetched.
    BlobFetched {
        /// Who offered it.
        from: ReplicaId,
        /// The blob.
        reference: BlobReference,
        /// The cause of a failure.
        result: Result<(), String>,
    },
    /// A blob that a peer offers is being fetched already.
    BlobUnderWay {
        /// Who offered it.
        from: ReplicaId,
        /// The blob.
        reference: BlobReference,
    },
    /// A client wants to write.
    Write(WriteRequest),
    /// A client wants to read what is linearizable.
    Read(ReadRequest),
    /// The process is about to stop: hand over the leadership.
    HandOver,
    /// Somebody wants other members, or another leader; answered by [`Effect::MemberRequestDone`].
    MemberRequest {
        /// Names the request.
        ticket: Ticket,
        /// What is wanted.
        request: MemberRequest,
        /// When whoever asks gives up.
        deadline: Ticks,
    },
    /// So many files that this replica should hold are not here yet; `None` while nobody knows.
    Wanting(Option<u64>),
    /// A snapshot for a peer is there: its slot, and the blob that lists what is in it.
    SnapshotTaken {
        /// Who asked for it.
        to: ReplicaId,
        /// The cause of a failure.
        result: Result<(Slot, BlobReference), String>,
    },
    /// So many bytes of a snapshot are here, of so many.
    SnapshotProgress {
        /// Which.
        manifest: Digest,
        /// Bytes that are here.
        here: u64,
        /// Bytes in all.
        of: u64,
    },
    /// A snapshot is here, of this slot, and can be installed; or could not be fetched.
    SnapshotStaged {
        /// Which.
        manifest: Digest,
        /// The cause of a failure.
        result: Result<Slot, String>,
    },
    /// Somebody wants this replica to be rebuilt from a peer.
    Rebuild {
        /// Even if it is not quarantined.
        force: bool,
    },
    /// A database was read from end to end.
    ContentRead {
        /// The database.
        database: DatabaseId,
        /// The slot that its state was of.
        slot: Slot,
        /// Its chain after that slot: of what was not written since this process began, nothing else tells.
        chain: [u8; 16],
        /// A digest of all that it holds.
        digest: [u8; 16],
    },
    /// The log has become too large or too old: what is below this slot, which is applied durably, is to go.
    CutDue(Slot),
}

/// A write of a client of this replica.
#[derive(Debug)]
pub struct WriteRequest {
    /// Names it.
    pub ticket: Ticket,
    /// The encoded command: the bytes that every replica will store. Without any the write is over when a majority holds
    /// its blob, and nothing is proposed.
    pub command: Bytes,
    /// What a majority must hold before the command is proposed.
    pub blob: Option<BlobReference>,
    /// Whether it may be sent again when its fate is unclear. True for keys that the client chose, and safe because
    /// the engine executes a key once; requests without a key are never sent twice.
    pub retry: bool,
    /// When the client gives up.
    pub deadline: Ticks,
}

/// A read of a client of this replica.
#[derive(Debug)]
pub struct ReadRequest {
    /// Names it.
    pub ticket: Ticket,
    /// When the client gives up.
    pub deadline: Ticks,
}

/// What the engine did with a range of entries.
#[derive(Debug)]
pub struct ApplyReport {
    /// Everything up to here is applied and visible to readers.
    pub applied: Slot,
    /// Outcomes of the commands that this process took from its own clients.
    pub own: Vec<OwnOutcome>,
    /// Each database's chain after each entry that concerned it, in order of slots.
    pub fingerprints: Vec<(DatabaseId, Slot, [u8; 16])>,
    /// Whether this was the last part of the range that [`Effect::Apply`] named.
    pub finished: bool,
}

impl ApplyReport {
    /// What the engine did, as the driver of one process of a replica needs to know it: the outcomes of other processes'
    /// commands concern nobody here.
    #[must_use]
    pub fn new(process: Process, applied: Slot, entries: Vec<Applied>, finished: bool) -> ApplyReport {
        let mut report = ApplyReport { applied, own: Vec::new(), fingerprints: Vec::new(), finished };
        for entry in entries {
            if let (Some(database), Some(fingerprint)) = (entry.database, entry.fingerprint) {
                report.fingerprints.push((database, entry.slot, fingerprint.0));
            }
            let ours = |origin: &d3b_engine::Origin| {
                origin.replica == process.replica && origin.incarnation == process.incarnation
            };
            if let (Some(origin), Some(outcome)) = (entry.origin.filter(ours), entry.outcome) {
                report.own.push(OwnOutcome { ticket: Ticket(origin.sequence), slot: entry.executed_at, outcome });
            }
        }
        report
    }
}

/// One process of a replica: commands carry it, so that an outcome finds the client that waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// The replica.
    pub replica: ReplicaId,
    /// Random; another one after every start.
    pub incarnation: u64,
}

/// The outcome of a command of one of our clients.
#[derive(Debug)]
pub struct OwnOutcome {
    /// The client's request.
    pub ticket: Ticket,
    /// The slot that executed it.
    pub slot: Slot,
    /// What came of it.
    pub outcome: Outcome,
}

/// Something to be done. Effects are carried out in the order in which they are emitted.
#[derive(Debug)]
pub enum Effect<D = Durable> {
    /// Write a batch to the log; answered by [`Event::Durable`].
    Persist(PersistBatch),
    /// Write the configuration that forms the cluster; answered by [`Event::ConfigurationPersisted`].
    PersistConfiguration(Configuration),
    /// Send a message; it may be lost.
    Send {
        /// To whom.
        to: ReplicaId,
        /// What.
        message: PeerMessage,
    },
    /// Send messages that say that something is durable, with the proof.
    SendDependent {
        /// The log's word for it.
        proof: D,
        /// Receivers and messages.
        messages: Vec<(ReplicaId, PeerMessage)>,
    },
    /// Apply these slots, all of which are chosen and on this replica's disk; answered by [`Event::Applied`].
    Apply(RangeInclusive<Slot>),
    /// Fetch a blob from the peer that offered it; answered by [`Event::BlobFetched`], and by [`Event::BlobUnderWay`] if
    /// it is being fetched already.
    FetchBlob {
        /// Who offered it.
        from: ReplicaId,
        /// The blob.
        reference: BlobReference,
    },
    /// Write to disk that this replica is quarantined, and why: its next process must not vote either.
    PersistQuarantine(String),
    /// A configuration is adopted, or known to be coming: these are the replicas to be connected with.
    Connect(Configuration),
    /// Write down a newer configuration than the own one, which its members have adopted, and start again with it.
    StartOver(Configuration),
    /// Take a snapshot for a peer; answered by [`Event::SnapshotTaken`].
    TakeSnapshot {
        /// Who asked for it.
        to: ReplicaId,
        /// What is adopted here; the snapshot's slot must not lie before that of this configuration.
        configuration: Configuration,
    },
    /// Fetch a peer's snapshot; answered by [`Event::SnapshotProgress`] now and then, and by [`Event::SnapshotStaged`].
    FetchSnapshot {
        /// Whose.
        from: ReplicaId,
        /// The blob that lists what is in it.
        manifest: BlobReference,
    },
    /// Install a snapshot that is here, and start again.
    InstallSnapshot {
        /// Which.
        manifest: Digest,
    },
    /// A request for other members, or another leader, has ended.
    MemberRequestDone {
        /// Which.
        ticket: Ticket,
        /// The slot that the change stands in, if it is chosen; or why nothing was done.
        result: Result<Slot, MemberFailure>,
    },
    /// Drop what the log holds below this slot: the core will not ask for it any more.
    CutLog(Slot),
    /// A client's write has ended.
    WriteDone {
        /// Which.
        ticket: Ticket,
        /// Slot and outcome, or why there is none.
        result: Result<(Slot, Outcome), WriteFailure>,
    },
    /// A client's read may go ahead: everything up to the slot is applied here.
    ReadDone {
        /// Which.
        ticket: Ticket,
        /// The read index, or why there is none.
        result: Result<Slot, Unavailable>,
    },
}

/// Why a write has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteFailure {
    /// It was never proposed: nothing happened.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Too much is under way here or at the leader; it was never proposed.
    #[error("too many writes are under way")]
    Overloaded,
    /// It may have been proposed, and the client's time is up.
    #[error("the write was handed to the group, and its outcome did not come back in time")]
    OutcomeUnknown,
    /// Too few replicas hold its file; it was never proposed.
    #[error("no majority of replicas has confirmed to hold the file")]
    BlobNotHeld,
}

/// Why this replica cannot speak for the group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// No leader with a majority was found in time.
    #[error("no majority of replicas could be reached in time")]
    NoQuorum,
    /// The cluster is still being formed.
    #[error("the cluster is being formed: waiting for replica {}", join(.missing))]
    Forming {
        /// Who has not been met.
        missing: Vec<ReplicaId>,
    },
    /// This replica's disk is not a member's.
    #[error("{reason}")]
    Outcast {
        /// Why.
        reason: String,
    },
    /// This replica holds other data than the majority.
    #[error("this replica is quarantined: {reason}")]
    Quarantined {
        /// Why.
        reason: String,
    },
    /// Too many reads wait.
    #[error("too many reads are waiting")]
    Overloaded,
}

/// `1, 2 and 3` without the "and".
fn join(ids: &[ReplicaId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
