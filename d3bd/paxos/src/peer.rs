//! One follower as its leader sees it: how far it is, and what is under way to it.

use std::collections::VecDeque;

use d3b::Slot;

use crate::types::Ticks;

/// How entries are sent to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Flow {
    /// Nobody knows where it stands: heartbeats only, until it answers one.
    Asking,
    /// It missed something: one message at a time from where it stands, until it accepts one. The round tells refusals
    /// of what was sent before from a refusal that shows that this message was lost too.
    Probing {
        /// The heartbeat round when the message was sent.
        round: u64,
    },
    /// It accepts what it is sent: as much as the bounds allow, without waiting.
    Streaming,
}

/// One follower.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// Whether it counts in majorities.
    pub(crate) votes: bool,
    pub(crate) flow: Flow,
    /// The highest end of a run at the leader's ballot that it has reported. It never falls: what was durable stays so,
    /// though after a restart the peer itself knows less.
    pub(crate) upto: Slot,
    /// The next slot to send.
    pub(crate) next: Slot,
    /// The last slot and the bytes of each message that is under way.
    in_flight: VecDeque<(Slot, usize)>,
    /// How many messages may be under way: one after a refusal, and one more for each that is accepted then. On a line
    /// that reorders, nearly everything that is under way is refused, and sent again, which is never more than was accepted
    /// since the refusal before.
    window: usize,
    /// The commit that it was told last.
    pub(crate) told: Slot,
    /// When it last acknowledged the ballot.
    pub(crate) heard_at: Ticks,
    /// The highest heartbeat round that it has acknowledged.
    pub(crate) round: u64,
    /// Its wall clock, as last reported.
    pub(crate) clock_ms: u64,
    /// What it last said to have applied; for people.
    pub(crate) applied: Slot,
}

impl Peer {
    /// A peer whose promise told its commit.
    pub(crate) fn known(commit: Slot, clock_ms: u64, now: Ticks) -> Peer {
        Peer { flow: Flow::Streaming, clock_ms, ..Peer::unknown(commit.next(), true, now) }
    }

    /// A peer that has not promised; `next` is the slot after the leader's log.
    pub(crate) fn unknown(next: Slot, votes: bool, now: Ticks) -> Peer {
        Peer {
            votes,
            flow: Flow::Asking,
            upto: Slot::ZERO,
            next,
            in_flight: VecDeque::new(),
            window: usize::MAX,
            told: Slot::ZERO,
            heard_at: now,
            round: 0,
            clock_ms: 0,
            applied: Slot::ZERO,
        }
    }

    /// Whether entries may be sent now.
    pub(crate) fn may_send(&self, bytes_max: usize) -> bool {
        match self.flow {
            Flow::Asking => false,
            // While it is probed the window is one message.
            Flow::Probing { .. } | Flow::Streaming => {
                let bytes = || self.in_flight.iter().map(|(_, bytes)| bytes).sum::<usize>();
                self.in_flight.is_empty() || (self.in_flight.len() < self.window && bytes() < bytes_max)
            }
        }
    }

    /// Entries up to `end` are on their way.
    pub(crate) fn sent(&mut self, end: Slot, bytes: usize, round: u64) {
        self.in_flight.push_back((end, bytes));
        self.next = end.next();
        if let Flow::Probing { .. } = self.flow {
            self.flow = Flow::Probing { round };
        }
    }

    /// It holds everything up to here.
    pub(crate) fn accepted(&mut self, upto: Slot) {
        self.upto = self.upto.max(upto);
        let before = self.in_flight.len();
        self.in_flight.retain(|(end, _)| *end > upto);
        let accepted = before - self.in_flight.len();
        self.window = self.window.saturating_add(accepted);
        self.next = self.next.max(upto.next());
        match self.flow {
            // A heartbeat is accepted only if nothing is missing before it.
            Flow::Asking => self.flow = Flow::Streaming,
            Flow::Probing { .. } if accepted > 0 || self.in_flight.is_empty() => self.flow = Flow::Streaming,
            Flow::Probing { .. } | Flow::Streaming => {}
        }
    }

    /// Its connection broke: what was under way is probably lost, and more would be too.
    pub(crate) fn reset(&mut self) {
        self.in_flight.clear();
        self.flow = Flow::Asking;
    }

    /// It needs what the leader's log does not hold any more. A heartbeat behind everything shows where it stands when a
    /// snapshot has brought it on.
    pub(crate) fn is_behind(&mut self, last: Slot) {
        self.in_flight.clear();
        self.next = last.next();
        self.flow = Flow::Asking;
    }

    /// It cannot take what it was sent, for want of the slot `want`. Told at a heartbeat round of the peer's.
    pub(crate) fn wants(&mut self, want: Slot, round: u64) {
        match self.flow {
            Flow::Probing { round: probed } if round <= probed && !self.in_flight.is_empty() => {}
            Flow::Asking | Flow::Probing { .. } | Flow::Streaming => {
                self.in_flight.clear();
                self.window = 1;
                self.next = want;
                self.flow = Flow::Probing { round };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_what_was_sent_before_the_probe_are_ignored() {
        let mut peer = Peer::known(Slot(0), 0, Ticks(0));
        for end in [5, 10, 15] {
            peer.sent(Slot(end), 100, 7);
        }
        peer.wants(Slot(1), 7);
        assert!(peer.may_send(1));
        peer.sent(Slot(5), 100, 7);
        peer.wants(Slot(1), 7);
        assert_eq!(peer.next, Slot(6), "the second refusal is of the same loss");
        assert!(!peer.may_send(1_000), "one message at a time");
        peer.wants(Slot(1), 8);
        assert_eq!(peer.next, Slot(1), "a later heartbeat found the probe missing");
        peer.sent(Slot(5), 100, 8);
        peer.accepted(Slot(5));
        assert_eq!(peer.flow, Flow::Streaming);
    }

    #[test]
    fn what_is_sent_after_a_refusal_grows_with_what_is_accepted() {
        let mut peer = Peer::known(Slot(0), 0, Ticks(0));
        let fill = |peer: &mut Peer| {
            let from = peer.next;
            while peer.may_send(usize::MAX) && peer.next < Slot(1_000) {
                let end = peer.next;
                peer.sent(end, 1, 7);
            }
            peer.next.0 - from.0
        };
        assert_eq!(fill(&mut peer), 999, "nothing was refused yet");
        peer.wants(Slot(1), 7);
        assert_eq!(fill(&mut peer), 1);
        for (accepted, sent) in [(1, 2), (2, 2), (3, 2), (7, 8)] {
            peer.accepted(Slot(accepted));
            assert_eq!(fill(&mut peer), sent);
        }
        // Refusals that come late cost a message each, and all of them together what was under way before the first.
        for _ in 0..10 {
            peer.wants(Slot(2), 7);
            assert_eq!(fill(&mut peer), 1);
            peer.accepted(Slot(7));
            assert_eq!(peer.next, Slot(8));
        }
    }

    #[test]
    fn a_peer_that_restarted_is_resent_what_it_had_acknowledged() {
        let mut peer = Peer::known(Slot(0), 0, Ticks(0));
        peer.sent(Slot(9), 10, 1);
        peer.accepted(Slot(9));
        peer.wants(Slot(4), 2);
        assert_eq!((peer.next, peer.upto), (Slot(4), Slot(9)));
    }

    #[test]
    fn nothing_is_sent_into_a_broken_connection() {
        let mut peer = Peer::known(Slot(0), 0, Ticks(0));
        peer.sent(Slot(9), 10, 1);
        peer.reset();
        assert!(!peer.may_send(1_000));
        assert_eq!(peer.next, Slot(10), "a heartbeat behind what was sent shows whether it arrived");
        peer.accepted(Slot(9));
        assert!(peer.may_send(1_000));
    }

    #[test]
    fn bytes_under_way_are_bounded() {
        let mut peer = Peer::known(Slot(0), 0, Ticks(0));
        assert!(peer.may_send(0), "something may always be under way");
        peer.sent(Slot(1), 60, 1);
        assert!(peer.may_send(100));
        peer.sent(Slot(2), 60, 1);
        assert!(!peer.may_send(100));
        peer.accepted(Slot(1));
        assert!(peer.may_send(100));
    }
}
