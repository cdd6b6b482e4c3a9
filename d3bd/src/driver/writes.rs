//! Writes on their way into the log: who waits for what, and what may be sent again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use d3b::{BlobReference, ReplicaId};
use d3b_paxos::types::Ticks;

use super::event::{Ticket, WriteFailure, WriteRequest};

/// How many writes may be under way at one replica; more are refused.
const WRITES_MAX: usize = 16_384;
/// How many bytes of commands may be under way at one replica.
const BYTES_MAX: usize = 128 << 20;
/// A keyed write that the leader has not acknowledged for so long is sent again.
const FORWARD_TIMEOUT: Ticks = Ticks(1_000);

/// Once another leader is there, a write that is never sent twice has so long to turn up, handed on by the old one.
const DOUBT_MAX: Ticks = Ticks(1_000);

/// Where a write stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A majority has yet to hold its blob.
    Offering,
    /// It waits to be handed to a leader; it is certain that no leader has it at this moment.
    Routing,
    /// A leader was handed it and may have proposed it.
    Sent {
        /// When.
        at: Ticks,
        /// Whether the leader said that it has proposed it.
        proposed: bool,
    },
}

/// A write of a client.
#[derive(Debug)]
struct Pending {
    command: Bytes,
    blob: Option<BlobReference>,
    retry: bool,
    deadline: Ticks,
    stage: Stage,
    /// Whether any leader may ever have proposed it: from then on, silence means "unknown".
    maybe_proposed: bool,
}

/// The writes of this replica's clients.
#[derive(Debug, Default)]
pub(super) struct Writes {
    pending: BTreeMap<Ticket, Pending>,
    by_deadline: BTreeSet<(Ticks, Ticket)>,
    routing: BTreeSet<Ticket>,
    bytes: usize,
}

impl Writes {
    /// Takes a write. It waits for its blob, if it has one, else for a leader.
    ///
    /// # Errors
    /// [`WriteFailure::Overloaded`] when too much is under way.
    pub(super) fn add(&mut self, request: WriteRequest) -> Result<(), WriteFailure> {
        if self.pending.len() >= WRITES_MAX || self.bytes + request.command.len() > BYTES_MAX {
            return Err(WriteFailure::Overloaded);
        }
        let WriteRequest { ticket, command, blob, retry, deadline } = request;
        let stage = if blob.is_some() { Stage::Offering } else { Stage::Routing };
        self.bytes += command.len();
        self.by_deadline.insert((deadline, ticket));
        if stage == Stage::Routing {
            self.routing.insert(ticket);
        }
        self.pending.insert(ticket, Pending { command, blob, retry, deadline, stage, maybe_proposed: false });
        Ok(())
    }

    /// A majority holds the blob: the writes that waited for it may be proposed.
    pub(super) fn blob_held(&mut self, held: &BlobReference) {
        for (ticket, pending) in &mut self.pending {
            if pending.stage == Stage::Offering && pending.blob.as_ref() == Some(held) {
                pending.stage = Stage::Routing;
                self.routing.insert(*ticket);
            }
        }
    }

    /// Whether any write still waits for this blob.
    pub(super) fn wants_blob(&self, reference: &BlobReference) -> bool {
        self.pending
            .values()
            .any(|pending| pending.stage == Stage::Offering && pending.blob.as_ref() == Some(reference))
    }

    /// The writes to hand to a leader now; from here on each may have been proposed.
    pub(super) fn take_routable(&mut self, now: Ticks) -> Vec<(Ticket, Bytes)> {
        let routable = std::mem::take(&mut self.routing);
        routable
            .into_iter()
            .filter_map(|ticket| {
                let pending = self.pending.get_mut(&ticket)?;
                pending.stage = Stage::Sent { at: now, proposed: false };
                pending.maybe_proposed = true;
                Some((ticket, pending.command.clone()))
            })
            .collect()
    }

    /// Whether any write waits for a leader.
    pub(super) fn has_routable(&self) -> bool {
        !self.routing.is_empty()
    }

    /// The leader has proposed it.
    pub(super) fn proposed(&mut self, ticket: Ticket) {
        if let Some(Pending { stage: Stage::Sent { proposed, .. }, .. }) = self.pending.get_mut(&ticket) {
            *proposed = true;
        }
    }

    /// The replica that it was handed to did not propose it, and will not. `sent_before` says whether an earlier
    /// hand-over may still have an effect, which only writes that may be sent again can have had.
    pub(super) fn not_proposed(&mut self, ticket: Ticket) {
        let Some(pending) = self.pending.get_mut(&ticket) else { return };
        if let Stage::Sent { proposed: false, .. } = pending.stage {
            pending.stage = Stage::Routing;
            // A write that is never sent twice was handed over this once only, and in vain.
            pending.maybe_proposed = pending.retry;
            self.routing.insert(ticket);
        }
    }

    /// The leader's queue is full. A write that was certainly never proposed ends here; any other waits its turn.
    pub(super) fn overloaded(&mut self, ticket: Ticket) -> Option<WriteFailure> {
        let pending = self.pending.get(&ticket)?;
        if pending.retry {
            return None;
        }
        self.remove(ticket);
        Some(WriteFailure::Overloaded)
    }

    /// Another leader, or another ballot of the same one: what the old one was handed may be lost. Keyed writes are
    /// handed over again; the others are over soon, with an unknown outcome if they do not turn up.
    pub(super) fn leader_changed(&mut self, now: Ticks) {
        for (ticket, pending) in &mut self.pending {
            if !matches!(pending.stage, Stage::Sent { .. }) {
                continue;
            }
            if pending.retry {
                pending.stage = Stage::Routing;
                self.routing.insert(*ticket);
            } else {
                self.by_deadline.remove(&(pending.deadline, *ticket));
                pending.deadline = pending.deadline.min(Ticks(now.0 + DOUBT_MAX.0));
                self.by_deadline.insert((pending.deadline, *ticket));
            }
        }
    }

    /// Keyed writes whose hand-over was never acknowledged are handed over again.
    pub(super) fn retry_unacknowledged(&mut self, now: Ticks) {
        for (ticket, pending) in &mut self.pending {
            let Stage::Sent { at, proposed: false } = pending.stage else { continue };
            if pending.retry && now.0 >= at.0 + FORWARD_TIMEOUT.0 {
                pending.stage = Stage::Routing;
                self.routing.insert(*ticket);
            }
        }
    }

    /// The write is over; false if it was not known (any more).
    pub(super) fn remove(&mut self, ticket: Ticket) -> bool {
        let Some(pending) = self.pending.remove(&ticket) else { return false };
        self.bytes -= pending.command.len();
        self.by_deadline.remove(&(pending.deadline, ticket));
        self.routing.remove(&ticket);
        true
    }

    /// The writes whose time is up, and what that means for each.
    pub(super) fn take_expired(&mut self, now: Ticks) -> Vec<(Ticket, WriteFailure)> {
        let mut expired = Vec::new();
        while let Some(&(deadline, ticket)) = self.by_deadline.first() {
            if deadline > now {
                break;
            }
            let pending = self.pending.get(&ticket).expect("a deadline belongs to a pending write");
            let failure = if pending.maybe_proposed {
                WriteFailure::OutcomeUnknown
            } else if pending.stage == Stage::Offering {
                WriteFailure::BlobNotHeld
            } else {
                super::event::Unavailable::NoQuorum.into()
            };
            self.remove(ticket);
            expired.push((ticket, failure));
        }
        expired
    }

    /// When the next write's time is up.
    pub(super) fn next_deadline(&self) -> Option<Ticks> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }
}

/// Where a proposal of this replica's core came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A client of this replica.
    Client(Ticket),
    /// A peer forwarded it under this number of its own.
    Peer(ReplicaId, u64),
}

#[cfg(test)]
mod tests {
    use super::super::event::Unavailable;
    use super::*;

    fn request(ticket: u64, retry: bool, deadline: u64) -> WriteRequest {
        WriteRequest {
            ticket: Ticket(ticket),
            command: Bytes::from_static(b"command"),
            blob: None,
            retry,
            deadline: Ticks(deadline),
        }
    }

    fn tickets(routable: &[(Ticket, Bytes)]) -> Vec<u64> {
        routable.iter().map(|(ticket, _)| ticket.0).collect()
    }

    #[test]
    fn a_write_that_never_left_is_no_quorum_and_one_that_left_is_unknown() {
        let mut writes = Writes::default();
        writes.add(request(1, false, 10)).unwrap();
        assert_eq!(writes.take_expired(Ticks(10)), [(Ticket(1), Unavailable::NoQuorum.into())]);
        writes.add(request(2, false, 10)).unwrap();
        writes.take_routable(Ticks(1));
        assert_eq!(writes.take_expired(Ticks(10)), [(Ticket(2), WriteFailure::OutcomeUnknown)]);
    }

    #[test]
    fn only_keyed_writes_are_sent_again_when_the_leader_changes() {
        let mut writes = Writes::default();
        writes.add(request(1, false, 10)).unwrap();
        writes.add(request(2, true, 10)).unwrap();
        assert_eq!(tickets(&writes.take_routable(Ticks(0))), [1, 2]);
        writes.proposed(Ticket(1));
        writes.proposed(Ticket(2));
        writes.leader_changed(Ticks(1));
        assert_eq!(tickets(&writes.take_routable(Ticks(1))), [2]);
    }

    #[test]
    fn a_write_without_a_key_is_not_waited_for_long_under_another_leader() {
        let mut writes = Writes::default();
        writes.add(request(1, false, 60_000)).unwrap();
        writes.take_routable(Ticks(0));
        writes.leader_changed(Ticks(100));
        assert!(writes.take_expired(Ticks(1_099)).is_empty());
        assert_eq!(writes.take_expired(Ticks(1_100)), [(Ticket(1), WriteFailure::OutcomeUnknown)]);
        assert_eq!(writes.next_deadline(), None);
    }

    #[test]
    fn a_refused_write_without_a_key_was_certainly_not_proposed() {
        let mut writes = Writes::default();
        writes.add(request(1, false, 10)).unwrap();
        writes.take_routable(Ticks(0));
        writes.not_proposed(Ticket(1));
        assert_eq!(writes.take_expired(Ticks(10)), [(Ticket(1), Unavailable::NoQuorum.into())]);
    }

    #[test]
    fn an_unacknowledged_keyed_write_is_sent_again_after_a_while() {
        let mut writes = Writes::default();
        writes.add(request(1, true, 5_000)).unwrap();
        writes.take_routable(Ticks(0));
        writes.retry_unacknowledged(Ticks(999));
        assert!(!writes.has_routable());
        writes.retry_unacknowledged(Ticks(1_000));
        assert!(writes.has_routable());
    }

    #[test]
    fn the_number_of_writes_is_bounded() {
        let mut writes = Writes::default();
        for ticket in 0..WRITES_MAX as u64 {
            writes.add(request(ticket, true, 10)).unwrap();
        }
        assert_eq!(writes.add(request(u64::MAX, true, 10)), Err(WriteFailure::Overloaded));
        assert!(writes.remove(Ticket(0)));
        assert!(writes.add(request(u64::MAX, true, 10)).is_ok());
    }
}
