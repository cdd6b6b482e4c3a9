//! What replicas say to each other, beyond the protocol of consensus.

use std::borrow::Cow;

use bytes::Bytes;
use d3b::{DatabaseId, Digest, ReplicaId, Slot};
use d3b_paxos::formation::FormationMessage;
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{Change, ChangeError};
use serde::{Deserialize, Serialize};

/// One message. Any of them may be lost or late. [`PeerMessage::Forward`] and its reply come once at most, as connections
/// carry them: that a command was refused must stay true. All others may be doubled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Consensus.
    Paxos(Envelope),
    /// Forming the cluster.
    Formation(FormationMessage),
    /// A client's command, for the leader to propose.
    Forward {
        /// The sender's number for it.
        id: u64,
        /// The encoded command.
        command: Bytes,
    },
    /// What became of a forwarded command.
    ForwardReply {
        /// The receiver's number for it.
        id: u64,
        /// Whether it was proposed.
        result: ForwardResult,
    },
    /// "I hold this blob: take it over."
    BlobOffer {
        /// Its name.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
    },
    /// "I hold it too, durably."
    BlobHeld {
        /// Its name.
        digest: Digest,
    },
    /// "I could not take it over."
    BlobRefused {
        /// Its name.
        digest: Digest,
        /// Why, for the log.
        reason: String,
    },
    /// How far the sender is, and what its databases' fingerprints are.
    Gossip {
        /// What it has applied.
        applied: Slot,
        /// Database, slot, and the chain after that slot.
        fingerprints: Vec<(DatabaseId, Slot, [u8; 16])>,
    },
    /// "I am fetching this blob."
    BlobUnderWay {
        /// Its name.
        digest: Digest,
    },
    /// What the sender's build can do, and what it lacks. Replicas of the first version never say it.
    About {
        /// The newest execution version that it can apply.
        execution: u32,
        /// How many files it has yet to fetch; `None` while it does not know.
        wanting: Option<u64>,
    },
    /// Somebody at the sender's wants other members, or another leader.
    MemberRequest {
        /// The sender's number for it.
        id: u64,
        /// What is wanted.
        request: MemberRequest,
    },
    /// What became of it.
    MemberReply {
        /// The receiver's number for it.
        id: u64,
        /// The slot of the change, or why nothing was done.
        result: Result<Slot, MemberFailure>,
    },
    /// "I need what your log does not hold any more."
    SnapshotRequest,
    /// "Here is a snapshot: fetch this blob, which names the others."
    SnapshotReady {
        /// Everything up to here is in it.
        slot: Slot,
        /// The blob's name.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
    },
    /// "I cannot give one."
    SnapshotRefused {
        /// Why, for the log.
        reason: String,
    },
    /// What the sender's databases hold, each as of a slot.
    Contents {
        /// Database, slot, and a digest of all its rows after that slot.
        digests: Vec<(DatabaseId, Slot, [u8; 16])>,
    },
}

impl PeerMessage {
    /// The message in words of a version of the protocol, if it can be said in it.
    pub(super) fn in_words_of(&self, version: u8) -> Option<Cow<'_, PeerMessage>> {
        if self.version() <= version {
            return Some(Cow::Borrowed(self));
        }
        let PeerMessage::Paxos(envelope) = self else { return None };
        let Message::ReadIndexAt { read, .. } = envelope.message else { return None };
        let Envelope { cluster, epoch, from, to, .. } = *envelope;
        let envelope = Envelope { cluster, epoch, from, to, message: Message::ReadIndex { read } };
        Some(Cow::Owned(PeerMessage::Paxos(envelope)))
    }

    /// The first version of the protocol that can say it; whoever speaks an older one is not told.
    pub(super) fn version(&self) -> u8 {
        match self {
            PeerMessage::Formation(FormationMessage::Hello { .. })
            | PeerMessage::Forward { .. }
            | PeerMessage::ForwardReply { .. }
            | PeerMessage::BlobOffer { .. }
            | PeerMessage::BlobHeld { .. }
            | PeerMessage::BlobRefused { .. }
            | PeerMessage::Gossip { .. }
            | PeerMessage::BlobUnderWay { .. } => 1,
            PeerMessage::Paxos(envelope) => match envelope.message {
                Message::ReadIndexAt { .. } => 3,
                Message::Behind { .. } | Message::Superseded { .. } => 2,
                // No configuration is proposed before every member is known to be of the second version.
                Message::PreVote { .. }
                | Message::PreVoteReply { .. }
                | Message::Prepare { .. }
                | Message::Promise { .. }
                | Message::PromiseMore { .. }
                | Message::Accept { .. }
                | Message::Accepted { .. }
                | Message::Nack { .. }
                | Message::ReadIndex { .. }
                | Message::ReadIndexReply { .. }
                | Message::TimeoutNow { .. } => 1,
            },
            PeerMessage::Formation(FormationMessage::Formed { .. })
            | PeerMessage::About { .. }
            | PeerMessage::MemberRequest { .. }
            | PeerMessage::MemberReply { .. }
            | PeerMessage::SnapshotRequest
            | PeerMessage::SnapshotReady { .. }
            | PeerMessage::SnapshotRefused { .. }
            | PeerMessage::Contents { .. } => 2,
        }
    }
}

/// What somebody wants of the cluster's membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberRequest {
    /// Another configuration.
    Change(Change),
    /// Another leader: this one, or the one that is best placed.
    Transfer(Option<ReplicaId>),
}

/// Why a request was not carried out. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MemberFailure {
    /// Whoever was asked does not lead.
    #[error("there is no leader")]
    NoLeader,
    /// The leader is to be removed and hands over first; ask again.
    #[error("the leader hands over first")]
    HandingOver,
    /// Another change is under way, or the leader is too new; ask again.
    #[error("another change is under way")]
    UnderWay,
    /// The configuration cannot be changed so.
    #[error("{0}")]
    Refused(ChangeError),
    /// Too few voters would be left that can be reached.
    #[error("only {reachable} of the {voters} replicas that would vote then can be reached, and {needed} are needed")]
    Quorum {
        /// Voters that would be left and can be reached.
        reachable: usize,
        /// Voters that would be left.
        voters: usize,
        /// A majority of them.
        needed: usize,
    },
    /// A member has not said that its build knows of changes.
    #[error("replica {0} runs an older version, or has not been heard from")]
    Version(ReplicaId),
    /// Too many ask.
    #[error("too many changes are asked for")]
    Overloaded,
}

/// What became of a forwarded command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForwardResult {
    /// It has a slot, if the leader stays.
    Proposed {
        /// The slot.
        slot: Slot,
    },
    /// The receiver does not lead; it was not proposed.
    NotLeader {
        /// Who does, as far as the receiver knows.
        leader: Option<ReplicaId>,
    },
    /// The leader's queue is full; it was not proposed.
    Overloaded,
}

#[cfg(test)]
mod tests {
    use d3b::ClusterId;
    use d3b_paxos::types::{Ballot, Epoch, ReadId};

    use super::*;

    #[test]
    fn older_versions_are_told_what_they_know_and_no_more() {
        let paxos = |message| {
            let (cluster, epoch) = (ClusterId([7; 16]), Epoch(3));
            PeerMessage::Paxos(Envelope { cluster, epoch, from: ReplicaId(2), to: ReplicaId(1), message })
        };
        let (ballot, read) = (Ballot { round: 4, replica: ReplicaId(1) }, ReadId(9));
        let question = paxos(Message::ReadIndexAt { ballot, read });
        assert_eq!(question.in_words_of(3).as_deref(), Some(&question));
        for old in [1, 2] {
            assert_eq!(question.in_words_of(old).as_deref(), Some(&paxos(Message::ReadIndex { read })));
        }
        let behind = paxos(Message::Behind { ballot, base: Slot(5) });
        assert_eq!(behind.in_words_of(2).as_deref(), Some(&behind));
        assert_eq!(behind.in_words_of(1), None);
    }
}
