//! The scenes that the model checker plays: what may happen in one, and how often.

use std::collections::BTreeSet;

use d3b::ReplicaId;
use d3b_paxos::Planted;
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::Change;

/// What may happen in a scene, and how often: the bounds that make it finite.
#[derive(Debug, Clone)]
pub struct Scene {
    /// How many replicas.
    pub replicas: u32,
    /// How many of them vote in the beginning; the others learn.
    pub founders: u32,
    /// How the configuration may be changed, one change after the other.
    pub changes: Vec<Change>,
    /// How many times a replica may be told of a configuration that another has adopted, and start again with that.
    pub tellings: u8,
    /// How many times some replica may campaign.
    pub campaigns: u8,
    /// Who may campaign because its timeout has passed.
    pub candidates: BTreeSet<ReplicaId>,
    /// How many values clients may propose.
    pub proposals: u8,
    /// How many reads clients may ask.
    pub reads: u8,
    /// How many times a replica may crash and start again, with everything applied that was, or nothing.
    pub crashes: u8,
    /// How many times a replica may come back on a fresh disk.
    pub wipes: u8,
    /// How many heartbeats leaders may send on their own.
    pub heartbeats: u8,
    /// How many times a leader may be told to hand over.
    pub transfers: u8,
    /// Whether pre-votes are messages that get lost and come late.
    pub pre_votes: bool,
    /// Whether promises come in chunks of one record, and Accepts with one entry each.
    pub chunks: bool,
    /// Whether leaders say nothing but entries, and nobody asks for what it has missed.
    pub quiet: bool,
    /// Whether those who are refused hear of it.
    pub refusals: bool,
    /// Whether writes reach the disk at once.
    pub prompt: bool,
    /// Whether messages may come again when they have changed all that they could.
    pub late: bool,
    /// A bug that was planted.
    pub planted: Option<Planted>,
}

impl Scene {
    /// Nothing happens, among so many replicas.
    pub fn of(replicas: u32) -> Scene {
        Scene {
            replicas,
            founders: replicas,
            changes: Vec::new(),
            tellings: 0,
            campaigns: 0,
            candidates: (1..=replicas).map(ReplicaId).collect(),
            proposals: 0,
            reads: 0,
            crashes: 0,
            wipes: 0,
            heartbeats: 0,
            transfers: 0,
            pre_votes: false,
            chunks: false,
            quiet: false,
            refusals: true,
            prompt: false,
            late: false,
            planted: None,
        }
    }

    /// Whether the network carries a message; what it does not carry is lost.
    pub fn carries(&self, envelope: &Envelope) -> bool {
        match &envelope.message {
            // The first round of a leader confirms no read.
            Message::Accept { entries, round, .. } => !self.quiet || !entries.is_empty() || *round > 1,
            Message::Nack { ballot, promised, .. } => {
                if promised > ballot {
                    self.refusals
                } else {
                    !self.quiet
                }
            }
            Message::PreVote { .. } | Message::PreVoteReply { .. } => self.pre_votes,
            Message::Prepare { .. }
            | Message::Promise { .. }
            | Message::PromiseMore { .. }
            | Message::Accepted { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexAt { .. }
            | Message::ReadIndexReply { .. }
            | Message::TimeoutNow { .. }
            | Message::Behind { .. }
            | Message::Superseded { .. } => true,
        }
    }
}
