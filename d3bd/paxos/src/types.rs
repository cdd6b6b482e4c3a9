//! The words of the protocol as types: no bare integers.

use std::fmt;

use bytes::Bytes;
use d3b::{ReplicaId, Slot};
use serde::{Deserialize, Serialize};

pub use crate::configuration::{Change, ChangeError, Configuration, Founding, Member};

/// A numbered attempt to lead. Ordered by round, then replica, so that two replicas never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Rises with every campaign.
    pub round: u64,
    /// Who leads, or tries to.
    pub replica: ReplicaId,
}

impl Ballot {
    /// Below every ballot that a replica can use.
    pub const ZERO: Ballot = Ballot { round: 0, replica: ReplicaId(0) };
    /// Nobody campaigns so often; messages with higher rounds are dropped.
    pub const ROUND_MAX: u64 = 1 << 60;
    /// Nobody has missed so many campaigns; a message with a round that is further ahead of what its receiver knows is
    /// dropped, so that a single one cannot end the range of ballots. It counts as so many rounds and no more: should one
    /// replica have been lifted that far all the same, the others get there, step by step, by what it says to them.
    pub const LEAP_MAX: u64 = 1 << 32;
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round, self.replica)
    }
}

/// Counts configurations; 0 is the one that formed the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Nobody has missed so many changes; what is of a configuration further ahead is dropped.
    pub const LEAP_MAX: u64 = 1 << 20;
}

/// A moment or a span of the injected clock. How long a tick is, only the driver knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticks(pub u64);

impl Ticks {
    /// This moment plus a span.
    pub(crate) fn after(self, span: Ticks) -> Ticks {
        Ticks(self.0.saturating_add(span.0))
    }
}

/// The two clocks of a step: one that only rises, for timeouts, and one that people set, for log time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Now {
    /// Monotonic; timeouts are measured on it.
    pub ticks: Ticks,
    /// Wall clock in milliseconds since 1970; used only to stamp entries, never for safety.
    pub clock_ms: u64,
}

/// Names one batch of writes between [`crate::Ready`] and [`crate::Input::Persisted`]; rises by one each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PersistId(pub u64);

/// Names one read at the replica that asked; never used twice by one process, and a retry has a fresh one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReadId(pub u64);

/// Names one proposal at the leader's driver; never used twice by one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProposalId(pub u64);

/// What the leader gives an entry so that applying it needs no clock and no dice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Log time in milliseconds since 1970: rises along the log.
    pub time_ms: u64,
    /// Seeds the entry's randomness.
    pub seed: u64,
    /// The version of the SQL semantics that it is applied with.
    pub execution: u32,
}

/// What a slot holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Payload {
    /// Fills a gap, or is a new leader's barrier.
    Noop,
    /// A command of the state machine: bytes that the core never looks into.
    Command(Bytes),
    /// Who belongs to the cluster from the next slot on.
    Configuration(Box<Configuration>),
}

/// A value that can be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// Given by the leader that first proposed it; kept when a later leader proposes it again.
    pub stamp: Stamp,
    /// What it carries.
    pub payload: Payload,
}

impl Entry {
    /// No command is larger, in bytes: whoever holds it must be able to send it on in one message.
    pub const COMMAND_MAX: usize = 32 << 20;
    /// The end of the year 9999, where SQLite's dates end; no clock shows a later time.
    pub const TIME_MS_MAX: u64 = 253_402_300_799_999;

    /// Whether a leader of ours could have made it; anything else would stop those who have to store or apply it.
    pub(crate) fn is_sane(&self) -> bool {
        let payload = match &self.payload {
            Payload::Noop => true,
            Payload::Command(bytes) => bytes.len() <= Entry::COMMAND_MAX,
            Payload::Configuration(configuration) => configuration.is_sane(),
        };
        self.stamp.time_ms <= Entry::TIME_MS_MAX && payload
    }

    /// Bytes that it takes on the wire and on disk, roughly: for bounds.
    #[must_use]
    pub fn size(&self) -> usize {
        48 + match &self.payload {
            Payload::Noop => 0,
            Payload::Command(bytes) => bytes.len(),
            Payload::Configuration(configuration) => 64 + 64 * configuration.members.len(),
        }
    }
}

/// An accepted entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Where.
    pub slot: Slot,
    /// By which ballot.
    pub ballot: Ballot,
    /// What.
    pub entry: Entry,
}

/// Mixes words into one, so that neighbours give unrelated results (splitmix64, chained).
pub(crate) fn mix(seed: u64, words: &[u64]) -> u64 {
    let mixed = |mut state: u64| d3b::splitmix64(&mut state);
    words.iter().fold(mixed(seed), |state, word| mixed(state ^ *word))
}

/// A value that is no part of its owner's identity: names and statistics, by which two equal states may differ.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Uncompared<T>(pub(crate) T);

impl<T> PartialEq for Uncompared<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Uncompared<T> {}

impl<T> std::hash::Hash for Uncompared<T> {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}
