//! What replicas say to each other. Each message is answered, lost, doubled or late without harm.

use d3b::{ClusterId, ReplicaId, Slot};
use serde::{Deserialize, Serialize};

use crate::types::{Ballot, Configuration, Entry, Epoch, ReadId, Record};

/// A message with its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Envelope {
    /// The cluster: a message of another one is dropped.
    pub cluster: ClusterId,
    /// The sender's configuration.
    pub epoch: Epoch,
    /// The sender.
    pub from: ReplicaId,
    /// The receiver.
    pub to: ReplicaId,
    /// What it says.
    pub message: Message,
}

/// The messages of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// "Would you promise?" Without any durable effect; keeps a replica that was cut off from disturbing a leader.
    PreVote {
        /// The round that the sender would campaign with.
        round: u64,
        /// The sender's commit.
        commit: Slot,
        /// Ties answers to the question.
        nonce: u64,
    },
    /// The answer to [`Message::PreVote`]; never counted as a promise.
    PreVoteReply {
        /// Of the question.
        nonce: u64,
        /// Whether the sender would promise now.
        granted: bool,
        /// The highest ballot that the sender has promised, so that a candidate can start above it.
        promised: Ballot,
        /// The sender's commit.
        commit: Slot,
    },
    /// Phase one: asks for a promise over every slot from `from` up.
    Prepare {
        /// The ballot to promise.
        ballot: Ballot,
        /// The candidate's commit plus one.
        from: Slot,
    },
    /// A promise, with what its sender has accepted from `from` up, in chunks.
    Promise {
        /// The ballot promised.
        ballot: Ballot,
        /// The promiser's commit.
        commit: Slot,
        /// The first slot that the promiser's log still holds.
        log_start: Slot,
        /// The first slot that this chunk speaks for.
        from: Slot,
        /// Accepted records, in order of slots, all from `from` up.
        records: Vec<Record>,
        /// The first slot of the next chunk; `None` in the last one.
        next: Option<Slot>,
        /// The sender's wall clock, as in [`Message::Accepted`]: a new leader knows a majority's clocks at once.
        clock_ms: u64,
    },
    /// Asks for the next chunk of a promise.
    PromiseMore {
        /// The ballot promised.
        ballot: Ballot,
        /// [`Message::Promise`]'s `next`.
        from: Slot,
    },
    /// Phase two, and with no entries the heartbeat.
    Accept {
        /// The leader's ballot.
        ballot: Ballot,
        /// The slot of the first entry; in a heartbeat the slot after all that was sent to the receiver, so that one
        /// who missed something asks for it, however idle the leader is.
        start: Slot,
        /// In order of slots.
        entries: Vec<Entry>,
        /// The leader's commit.
        commit: Slot,
        /// Rises with every heartbeat of a ballot: acknowledgements confirm reads that were asked before it.
        round: u64,
    },
    /// Durable: every slot up to `upto` is accepted at `ballot`, or committed.
    Accepted {
        /// The leader's ballot.
        ballot: Ballot,
        /// The end of the run.
        upto: Slot,
        /// The highest heartbeat round that the sender has seen of this ballot.
        round: u64,
        /// The sender's wall clock: log time keeps within a bound of the majority's clocks.
        clock_ms: u64,
        /// The last slot that the sender has applied, for people to see.
        applied: Slot,
    },
    /// A refusal.
    Nack {
        /// The ballot of the message that is refused.
        ballot: Ballot,
        /// The sender's promise; above `ballot`, a refusal for good.
        promised: Ballot,
        /// Where the sender's run could be continued; it may lie below an earlier [`Message::Accepted`]. Means nothing
        /// in a refusal for good.
        want: Slot,
        /// As in [`Message::Accepted`]: a follower that asks for more still acknowledges the leader.
        round: u64,
    },
    /// Asks the leader for a read index, for every read of the sender that waits.
    ReadIndex {
        /// Names the question: made of the youngest read's id and the process's seed, so that an answer to a process
        /// before is never taken for one to this.
        read: ReadId,
    },
    /// The index for every read that the question was asked for.
    ReadIndexReply {
        /// The ballot that confirmed it; without an index, the sender's promise.
        ballot: Ballot,
        /// As asked.
        read: ReadId,
        /// Everything up to here is in what the read must see; `None` when the sender does not lead.
        index: Option<Slot>,
    },
    /// The leader hands over: campaign now, without a pre-vote.
    TimeoutNow {
        /// The ballot of the leader that hands over.
        ballot: Ballot,
    },
    /// What the receiver asked the leader for is not in its log any more.
    Behind {
        /// The leader's ballot.
        ballot: Ballot,
        /// The first slot that its log holds.
        base: Slot,
    },
    /// The receiver's configuration is an old one.
    Superseded {
        /// The sender's.
        configuration: Box<Configuration>,
    },
    /// As [`Message::ReadIndex`], and acknowledges the leader's ballot besides: where the two of them are a majority, the
    /// leader answers at once.
    ReadIndexAt {
        /// What the sender had promised when it asked.
        ballot: Ballot,
        /// As in [`Message::ReadIndex`].
        read: ReadId,
    },
}

/// How a message stands to the configurations of its sender and its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// What a leader or a candidate says, and what it is asked: whoever knows a newer configuration refuses it.
    Question,
    /// To a question of the receiver, which names its ballot, its nonce or its read: it counts whatever the sender knew.
    Answer,
}

impl Message {
    /// The ballot that it may lift its receiver to, as a promise or as one to campaign above.
    pub(crate) fn lifts_to(&self) -> Option<Ballot> {
        match self {
            Message::Prepare { ballot, .. } | Message::Accept { ballot, .. } => Some(*ballot),
            Message::PreVoteReply { promised, .. } | Message::Nack { promised, .. } => Some(*promised),
            // These are answers to a ballot of the receiver, or mean nothing at another one than it has promised.
            Message::PreVote { .. }
            | Message::Promise { .. }
            | Message::PromiseMore { .. }
            | Message::Accepted { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexAt { .. }
            | Message::ReadIndexReply { .. }
            | Message::TimeoutNow { .. }
            | Message::Behind { .. }
            | Message::Superseded { .. } => None,
        }
    }

    /// Whether it asks, or answers.
    pub(crate) fn standing(&self) -> Standing {
        match self {
            Message::PreVote { .. }
            | Message::Prepare { .. }
            | Message::PromiseMore { .. }
            | Message::Accept { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexAt { .. }
            | Message::TimeoutNow { .. }
            | Message::Behind { .. } => Standing::Question,
            Message::PreVoteReply { .. }
            | Message::Promise { .. }
            | Message::Accepted { .. }
            | Message::Nack { .. }
            | Message::ReadIndexReply { .. }
            | Message::Superseded { .. } => Standing::Answer,
        }
    }

    /// Whether every number in it is one that a replica of ours could have sent; anything else is dropped before it can
    /// overflow, or lift every ballot to the end of its range.
    pub(crate) fn is_sane(&self) -> bool {
        let ballot = |ballot: &Ballot| ballot.round <= Ballot::ROUND_MAX;
        let slot = |slot: &Slot| slot.0 <= SLOT_MAX;
        match self {
            Message::PreVote { round, commit, .. } => *round <= Ballot::ROUND_MAX && slot(commit),
            Message::PreVoteReply { promised, commit, .. } => ballot(promised) && slot(commit),
            Message::Prepare { ballot: of, from } | Message::PromiseMore { ballot: of, from } => {
                ballot(of) && slot(from) && *from > Slot::ZERO
            }
            Message::Promise { ballot: of, commit, log_start, from, records, next, .. } => {
                // Only slots within the range can be counted up from.
                let in_order = || {
                    let mut expected = records.iter().zip(from.0..);
                    expected
                        .all(|(record, slot)| record.slot.0 == slot && record.ballot <= *of && record.entry.is_sane())
                };
                ballot(of)
                    && slot(commit)
                    && slot(log_start)
                    && slot(from)
                    && next.as_ref().is_none_or(slot)
                    && in_order()
            }
            Message::Accept { ballot: of, start, entries, commit, .. } => {
                ballot(of) && slot(start) && *start > Slot::ZERO && slot(commit) && entries.iter().all(Entry::is_sane)
            }
            Message::Accepted { ballot: of, upto, applied, .. } => ballot(of) && slot(upto) && slot(applied),
            Message::Nack { ballot: of, promised, want, .. } => ballot(of) && ballot(promised) && slot(want),
            Message::ReadIndex { .. } => true,
            Message::ReadIndexReply { ballot: of, index, .. } => ballot(of) && index.as_ref().is_none_or(slot),
            Message::ReadIndexAt { ballot: of, .. } | Message::TimeoutNow { ballot: of } => ballot(of),
            Message::Behind { ballot: of, base } => ballot(of) && slot(base),
            Message::Superseded { configuration } => configuration.is_sane() && slot(&configuration.slot),
        }
    }
}

/// No log grows so long; slots above it are nonsense.
const SLOT_MAX: u64 = 1 << 60;
