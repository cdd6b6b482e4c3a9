//! Writes on their way into the log: who waits for what, and what may be sent again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use d3b::{BlobReference, Digest, ReplicaId};
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
/// The word of a majority that it holds a blob counts for so long: holders keep a blob that no entry names for a grace
/// period only, and a write may have to wait longer than that for a leader.
const HELD_MAX: Ticks = Ticks(500);
/// A write waits for its blob at least so long after a peer said that it is fetching it.
const FETCH_PATIENCE: Ticks = Ticks(10_000);

/// Where a write stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A majority has yet to hold its blob.
    Offering,
    /// It waits to be handed to a leader; it is certain that no leader has it at this moment.
    Routing,
    /// A leader was handed it and may have proposed it.
    Sent {
        /// To whom.
        to: ReplicaId,
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
    /// When a majority was last known to hold the blob.
    held_at: Ticks,
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
    /// Every write in [`Stage::Routing`], but for those in `refused`.
    routing: BTreeSet<Ticket>,
    /// Writes that were refused just now; they wait a little before they are handed over again.
    refused: BTreeSet<Ticket>,
    /// Every write in [`Stage::Offering`], by its blob.
    offering: BTreeMap<Digest, BTreeSet<Ticket>>,
    bytes: usize,
}

/// What is to be done with the writes that wait for a leader.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Routable {
    /// To be handed to the leader; from here on each may have been proposed.
    pub(super) commands: Vec<(Ticket, Bytes)>,
    /// To be offered once more, because it was too long ago that a majority said to hold them.
    pub(super) blobs: Vec<BlobReference>,
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
        self.bytes += command.len();
        self.by_deadline.insert((deadline, ticket));
        let stage = match &blob {
            Some(reference) => {
                self.offering.entry(reference.digest).or_default().insert(ticket);
                Stage::Offering
            }
            None => {
                self.routing.insert(ticket);
                Stage::Routing
            }
        };
        let held_at = Ticks(0);
        self.pending.insert(ticket, Pending { command, blob, held_at, retry, deadline, stage, maybe_proposed: false });
        Ok(())
    }

    /// A majority holds the blob: the writes that waited for it may be proposed. Those that are over with this, because
    /// they have no command, are returned.
    pub(super) fn blob_held(&mut self, held: &BlobReference, now: Ticks) -> Vec<Ticket> {
        let mut over = Vec::new();
        for ticket in self.offering.remove(&held.digest).unwrap_or_default() {
            if let Some(pending) = self.pending.get_mut(&ticket) {
                if pending.command.is_empty() {
                    over.push(ticket);
                }
                pending.stage = Stage::Routing;
                pending.held_at = now;
                self.routing.insert(ticket);
            }
        }
        for ticket in &over {
            self.remove(*ticket);
        }
        over
    }

    /// A peer is fetching the blob: however large it is, the writes that wait for it have time as long as that goes on.
    pub(super) fn blob_under_way(&mut self, digest: &Digest, now: Ticks) {
        for ticket in self.offering.get(digest).into_iter().flatten() {
            if let Some(pending) = self.pending.get_mut(ticket) {
                self.by_deadline.remove(&(pending.deadline, *ticket));
                pending.deadline = pending.deadline.max(Ticks(now.0 + FETCH_PATIENCE.0));
                self.by_deadline.insert((pending.deadline, *ticket));
            }
        }
    }

    /// Whether any write still waits for this blob.
    pub(super) fn wants_blob(&self, reference: &BlobReference) -> bool {
        self.offering.contains_key(&reference.digest)
    }

    /// Takes what may be handed to a leader.
    pub(super) fn take_routable(&mut self, leader: ReplicaId, now: Ticks) -> Routable {
        let mut routable = Routable::default();
        for ticket in std::mem::take(&mut self.routing) {
            let Some(pending) = self.pending.get_mut(&ticket) else { continue };
            match pending.blob {
                Some(reference) if now.0 > pending.held_at.0 + HELD_MAX.0 => {
                    pending.stage = Stage::Offering;
                    self.offering.entry(reference.digest).or_default().insert(ticket);
                    if !routable.blobs.contains(&reference) {
                        routable.blobs.push(reference);
                    }
                }
                Some(_) | None => {
                    pending.stage = Stage::Sent { to: leader, at: now, proposed: false };
                    pending.maybe_proposed = true;
                    routable.commands.push((ticket, pending.command.clone()));
                }
            }
        }
        routable
    }

    /// How many writes are under way.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether any write waits for a leader.
    pub(super) fn has_routable(&self) -> bool {
        !self.routing.is_empty() || !self.refused.is_empty()
    }

    /// The replica that it was handed to has proposed it.
    pub(super) fn proposed(&mut self, ticket: Ticket, by: ReplicaId) {
        if let Some(Pending { stage: Stage::Sent { to, proposed, .. }, .. }) = self.pending.get_mut(&ticket)
            && *to == by
        {
            *proposed = true;
        }
    }

    /// The replica that it was handed to did not propose it, and will not. An answer of another one, to an earlier
    /// hand-over, says nothing about this one.
    pub(super) fn not_proposed(&mut self, ticket: Ticket, by: ReplicaId) {
        let Some(pending) = self.pending.get_mut(&ticket) else { return };
        if let Stage::Sent { to, proposed: false, .. } = pending.stage
            && to == by
        {
            pending.stage = Stage::Routing;
            // A write that is never sent twice was handed over this once only, and in vain.
            pending.maybe_proposed = pending.retry;
            self.refused.insert(ticket);
        }
    }

    /// What was refused may be handed over again.
    pub(super) fn retry_refused(&mut self) {
        self.routing.append(&mut self.refused);
    }

    /// The queue of the replica that it was handed to is full. A write that was certainly never proposed ends here; any
    /// other waits its turn.
    pub(super) fn overloaded(&mut self, ticket: Ticket, by: ReplicaId) -> Option<WriteFailure> {
        let pending = self.pending.get(&ticket)?;
        match pending.stage {
            Stage::Sent { to, proposed: false, .. } if to == by && !pending.retry => {
                self.remove(ticket);
                Some(WriteFailure::Overloaded)
            }
            Stage::Offering | Stage::Routing | Stage::Sent { .. } => None,
        }
    }

    /// Another leader, or another ballot of the same one: what the old one was handed may be lost. Keyed writes are
    /// handed over again; the others are over soon, with an unknown outcome if they do not turn up.
    pub(super) fn leader_changed(&mut self, now: Ticks) {
        self.retry_refused();
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
            let Stage::Sent { at, proposed: false, .. } = pending.stage else { continue };
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
        self.refused.remove(&ticket);
        if let (Stage::Offering, Some(reference)) = (pending.stage, pending.blob)
            && let Some(waiting) = self.offering.get_mut(&reference.digest)
        {
            waiting.remove(&ticket);
            if waiting.is_empty() {
                self.offering.remove(&reference.digest);
            }
        }
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

    /// Every write, and what it means for each that this replica has become unavailable.
    pub(super) fn take_all(&mut self, unavailable: &super::event::Unavailable) -> Vec<(Ticket, WriteFailure)> {
        let all = std::mem::take(self);
        let failure = |pending: &Pending| match pending.maybe_proposed {
            true => WriteFailure::OutcomeUnknown,
            false => unavailable.clone().into(),
        };
        all.pending.iter().map(|(ticket, pending)| (*ticket, failure(pending))).collect()
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

    const LEADER: ReplicaId = ReplicaId(1);

    fn tickets(routable: &Routable) -> Vec<u64> {
        routable.commands.iter().map(|(ticket, _)| ticket.0).collect()
    }

    #[test]
    fn a_write_that_never_left_is_no_quorum_and_one_that_left_is_unknown() {
        let mut writes = Writes::default();
        writes.add(request(1, false, 10)).unwrap();
        assert_eq!(writes.take_expired(Ticks(10)), [(Ticket(1), Unavailable::NoQuorum.into())]);
        writes.add(request(2, false, 10)).unwrap();
        writes.take_routable(LEADER, Ticks(1));
        assert_eq!(writes.take_expired(Ticks(10)), [(Ticket(2), WriteFailure::OutcomeUnknown)]);
    }

    #[test]
    fn only_keyed_writes_are_sent_again_when_the_leader_changes() {
        let mut writes = Writes::default();
        writes.add(request(1, false, 10)).unwrap();
        writes.add(request(2, true, 10)).unwrap();
        assert_eq!(tickets(&writes.take_routable(LEADER, Ticks(0))), [1, 2]);
        writes.proposed(Ticket(1), LEADER);
        writes.proposed(Ticket(2), LEADER);
        writes.leader_changed(Ticks(1));
        assert_eq!(tickets(&writes.take_routable(LEADER, Ticks(1))), [2]);
    }

    #[test]
    fn a_write_without_a_key_is_not_waited_for_long_under_another_leader() {
        let mut writes = Writes::default();
        writes.add(request(1, false, 60_000)).unwrap();
        writes.take_routable(LEADER, Ticks(0));
        writes.leader_changed(Ticks(100));
        assert!(writes.take_expired(Ticks(1_099)).is_empty());
        assert_eq!(writes.take_expired(Ticks(1_100)), [(Ticket(1), WriteFailure::OutcomeUnknown)]);
        assert_eq!(writes.next_deadline(), None);
    }

    #[test]
    fn a_refused_write_without_a_key_was_certainly_not_proposed() {
        let mut writes = Writes::default();
        writes.add(request(1, false, 10)).unwrap();
        writes.take_routable(LEADER, Ticks(0));
        writes.not_proposed(Ticket(1), LEADER);
        assert_eq!(writes.take_expired(Ticks(10)), [(Ticket(1), Unavailable::NoQuorum.into())]);
    }

    #[test]
    fn an_unacknowledged_keyed_write_is_sent_again_after_a_while() {
        let mut writes = Writes::default();
        writes.add(request(1, true, 5_000)).unwrap();
        writes.take_routable(LEADER, Ticks(0));
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

    fn with_blob(ticket: u64, deadline: u64) -> (WriteRequest, BlobReference) {
        let reference = BlobReference { digest: Digest::of(b"cat"), size: 3 };
        (WriteRequest { blob: Some(reference), ..request(ticket, true, deadline) }, reference)
    }

    #[test]
    fn a_blob_that_was_acknowledged_long_ago_is_offered_again_before_its_write_is_proposed() {
        let mut writes = Writes::default();
        let (write, reference) = with_blob(1, 60_000);
        writes.add(write).unwrap();
        assert_eq!(writes.take_routable(LEADER, Ticks(0)), Routable::default(), "nobody holds it");
        writes.blob_held(&reference, Ticks(1_000));
        // No leader for long: holders may have dropped it since.
        let routable = writes.take_routable(LEADER, Ticks(1_501));
        assert_eq!(routable, Routable { commands: Vec::new(), blobs: vec![reference] });
        assert!(writes.wants_blob(&reference) && !writes.has_routable());
        writes.blob_held(&reference, Ticks(1_600));
        assert_eq!(tickets(&writes.take_routable(LEADER, Ticks(1_700))), [1]);
        // The same when it is sent once more under another leader.
        writes.leader_changed(Ticks(5_000));
        assert!(tickets(&writes.take_routable(LEADER, Ticks(5_000))).is_empty());
        assert_eq!(writes.take_expired(Ticks(60_000)), [(Ticket(1), WriteFailure::OutcomeUnknown)]);
        assert!(!writes.wants_blob(&reference));
    }

    #[test]
    fn what_is_only_to_be_held_is_over_when_it_is_and_never_proposed() {
        let mut writes = Writes::default();
        let (write, reference) = with_blob(1, 10_000);
        writes.add(WriteRequest { command: Bytes::new(), ..write }).unwrap();
        assert_eq!(writes.blob_held(&reference, Ticks(1)), [Ticket(1)]);
        assert_eq!(writes.take_routable(LEADER, Ticks(1)), Routable::default());
        assert_eq!(writes.len(), 0);
        let (write, _) = with_blob(2, 10_000);
        writes.add(WriteRequest { command: Bytes::new(), ..write }).unwrap();
        assert_eq!(writes.take_expired(Ticks(10_000)), [(Ticket(2), WriteFailure::BlobNotHeld)]);
    }

    #[test]
    fn a_write_waits_for_its_blob_as_long_as_a_peer_is_fetching_it() {
        let mut writes = Writes::default();
        let (write, reference) = with_blob(1, 10_000);
        writes.add(write).unwrap();
        writes.blob_under_way(&reference.digest, Ticks(9_000));
        assert!(writes.take_expired(Ticks(18_999)).is_empty());
        assert_eq!(writes.take_expired(Ticks(19_000)), [(Ticket(1), WriteFailure::BlobNotHeld)]);
        writes.blob_under_way(&reference.digest, Ticks(19_000));
        assert_eq!(writes.next_deadline(), None);
    }

    #[test]
    fn the_answer_of_another_replica_says_nothing() {
        let mut writes = Writes::default();
        writes.add(request(1, false, 10)).unwrap();
        writes.take_routable(LEADER, Ticks(0));
        writes.not_proposed(Ticket(1), ReplicaId(2));
        assert_eq!(writes.overloaded(Ticket(1), ReplicaId(2)), None);
        assert!(!writes.has_routable(), "it may still be proposed by the one that has it");
        assert_eq!(writes.take_expired(Ticks(10)), [(Ticket(1), WriteFailure::OutcomeUnknown)]);
    }

    #[test]
    fn what_was_refused_waits_a_little() {
        let mut writes = Writes::default();
        writes.add(request(1, true, 100)).unwrap();
        writes.take_routable(LEADER, Ticks(0));
        writes.not_proposed(Ticket(1), LEADER);
        assert!(tickets(&writes.take_routable(LEADER, Ticks(1))).is_empty());
        writes.retry_refused();
        assert_eq!(tickets(&writes.take_routable(LEADER, Ticks(20))), [1]);
    }
}
