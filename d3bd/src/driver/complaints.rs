//! Messages of peers that make no sense: dropped, and told to the log with the peer's name.

use std::collections::BTreeMap;

use d3b::ReplicaId;
use d3b_paxos::message::Envelope;
use d3b_paxos::types::Ticks;
use d3b_paxos::{Input, Storage, StorageError};

use super::{Driver, Stage};
use crate::log::Proof;

/// How often the log says the same of a peer.
const INTERVAL: Ticks = Ticks(10_000);

/// When the log last said of each peer that its messages make no sense.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    told_at: BTreeMap<ReplicaId, Ticks>,
}

impl Complaints {
    /// Whether the log should hear of a peer now, who is not to fill it.
    fn is_due(&mut self, peer: ReplicaId, now: Ticks) -> bool {
        let recently = |at: &Ticks| now.0 < at.0 + INTERVAL.0;
        if self.told_at.get(&peer).is_some_and(recently) {
            return false;
        }
        self.told_at.insert(peer, now);
        true
    }
}

impl<S: Storage + Clone, D: Proof> Driver<S, D> {
    /// Hands a message to the core, unless its sender speaks for somebody else.
    pub(super) fn handle_paxos(&mut self, from: ReplicaId, envelope: Envelope) -> Result<(), StorageError> {
        let before = self.dropped();
        let speaks_for_itself = envelope.from == from;
        if speaks_for_itself {
            self.step(Input::Message(envelope))?;
        }
        if (!speaks_for_itself || self.dropped() > before) && self.complaints.is_due(from, self.now.ticks) {
            tracing::warn!(peer = %from, "a message of a peer makes no sense here and was dropped");
        }
        Ok(())
    }

    fn dropped(&self) -> u64 {
        match &self.stage {
            Stage::Running(replica) => replica.dropped(),
            Stage::Forming(_) | Stage::Adopting | Stage::Outcast(_) | Stage::Quarantined(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_does_not_fill_the_log_and_does_not_hide_another() {
        let mut complaints = Complaints::default();
        assert!(complaints.is_due(ReplicaId(2), Ticks(5)));
        assert!(!complaints.is_due(ReplicaId(2), Ticks(10_004)));
        assert!(complaints.is_due(ReplicaId(3), Ticks(10_004)));
        assert!(complaints.is_due(ReplicaId(2), Ticks(10_005)));
    }
}
