//! What a replica is whatever role it plays: its acceptor, its clocks, its jitter, and what it wants to say.

use d3b::{ReplicaId, Slot};

use crate::acceptor::{Acceptor, Colours};
use crate::interface::{ConfirmedRead, Reply, Settings, Storage};
use crate::message::{Envelope, Message};
use crate::types::{Ballot, Configuration, Now, Ticks, Uncompared, mix};

/// When this replica last had reason to believe that somebody leads, or is about to. While it lasts, pre-votes are
/// refused. It has nothing to do with safety.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Lease {
    /// Whom it heard from; `None` if it only promised, or has just started.
    pub(crate) leader: Option<ReplicaId>,
    /// When.
    pub(crate) at: Ticks,
    /// Whether there was a sign since that it leads no more.
    pub(crate) over: bool,
}

/// A campaign waits at most so many times twice as long as the first one.
const PATIENCE_DOUBLINGS_MAX: u32 = 4;

/// For so many election timeouts without a leader, only a candidate that knows of all that is chosen will do.
const BETTER_CANDIDATE_TIMEOUTS: u64 = 4;

/// What steps leave for the next [`crate::Replica::ready`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Outbox {
    pub(crate) send_now: Vec<Envelope>,
    pub(crate) reads: Vec<ConfirmedRead>,
    pub(crate) replies: Vec<Reply>,
}

/// The part of a replica that outlives its roles.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Core<S> {
    pub(crate) settings: Settings,
    pub(crate) configuration: Configuration,
    pub(crate) acceptor: Acceptor<S>,
    /// The clocks, as of the last step.
    pub(crate) now: Now,
    /// The highest round seen in any ballot: a campaign starts above it. Lost at a crash without harm.
    pub(crate) round_seen: u64,
    pub(crate) lease: Lease,
    /// Campaigns that ended for want of promises since a leader was last heard or made.
    pub(crate) campaigns_failed: u32,
    /// The state machine has applied everything up to here.
    pub(crate) applied: Slot,
    /// Everything up to here was handed out to be applied.
    pub(crate) apply_handed: Slot,
    pub(crate) outbox: Outbox,
    /// State of the generator behind the jitter.
    random: u64,
    /// Messages dropped.
    pub(crate) dropped: Uncompared<u64>,
}

impl<S> Core<S> {
    pub(crate) fn new(settings: Settings, configuration: Configuration, acceptor: Acceptor<S>, now: Now) -> Core<S> {
        let random = mix(settings.seed, &[u64::from(settings.id.0)]);
        Core {
            settings,
            configuration,
            acceptor,
            now,
            round_seen: 0,
            lease: Lease { leader: None, at: now.ticks, over: false },
            campaigns_failed: 0,
            applied: Slot::ZERO,
            apply_handed: Slot::ZERO,
            outbox: Outbox::default(),
            random,
            dropped: Uncompared(0),
        }
    }

    pub(crate) fn id(&self) -> ReplicaId {
        self.settings.id
    }

    pub(crate) fn majority(&self) -> usize {
        self.configuration.majority()
    }

    /// Whether there is nobody to agree with.
    pub(crate) fn is_alone(&self) -> bool {
        self.configuration.voters().eq([self.settings.id])
    }

    /// The other members that vote, in order.
    pub(crate) fn voters(&self) -> Vec<ReplicaId> {
        self.configuration.voters().filter(|id| *id != self.settings.id).collect()
    }

    /// The other members, in order.
    pub(crate) fn peers(&self) -> Vec<ReplicaId> {
        self.configuration.members.keys().copied().filter(|id| *id != self.settings.id).collect()
    }

    pub(crate) fn envelope(&self, to: ReplicaId, message: Message) -> Envelope {
        let Configuration { cluster, epoch, .. } = self.configuration;
        Envelope { cluster, epoch, from: self.settings.id, to, message }
    }

    /// Says something that needs nothing to be durable.
    pub(crate) fn send(&mut self, to: ReplicaId, message: Message) {
        let envelope = self.envelope(to, message);
        self.outbox.send_now.push(envelope);
    }

    pub(crate) fn reply(&mut self, reply: Reply) {
        self.outbox.replies.push(reply);
    }

    pub(crate) fn colours(&self) -> Colours {
        Colours {
            id: self.settings.id,
            clock_ms: self.now.clock_ms,
            applied: self.applied,
            bytes_max: self.settings.message_bytes_max,
        }
    }

    /// Remembers a ballot that somebody uses.
    pub(crate) fn see(&mut self, ballot: Ballot) {
        self.round_seen = self.round_seen.max(ballot.round);
    }

    /// A span from `min` to `max`, by chance.
    pub(crate) fn jitter(&mut self, min: Ticks, max: Ticks) -> Ticks {
        let Some(width) = max.0.checked_sub(min.0).filter(|width| *width > 0) else { return min };
        self.random = mix(self.random, &[1]);
        Ticks(min.0.saturating_add(self.random % width.saturating_add(1).max(1)))
    }

    /// When to stop waiting for a leader, or for a campaign to succeed.
    pub(crate) fn election_deadline(&mut self) -> Ticks {
        let span = self.jitter(self.settings.election_timeout_min, self.settings.election_timeout_max);
        self.now.ticks.after(span)
    }

    /// How much longer than an election timeout a campaign waits for the others' disks. Nobody knows how slow they are;
    /// so each campaign that waited in vain makes the next one wait twice as long, within reason.
    pub(crate) fn patience(&self) -> Ticks {
        let doublings = self.campaigns_failed.min(PATIENCE_DOUBLINGS_MAX);
        Ticks(self.settings.election_timeout_max.0.saturating_mul(1 << doublings))
    }

    /// Whether a campaign of `asker` is welcome, as far as leaders go. A leader that asks has given up itself.
    pub(crate) fn is_quiet(&self, asker: ReplicaId) -> bool {
        let Lease { leader, at, over } = self.lease;
        over || leader == Some(asker) || self.now.ticks >= at.after(self.settings.election_timeout_min)
    }

    /// There is reason to believe that this replica leads, or that somebody will.
    pub(crate) fn expect_leader(&mut self, leader: Option<ReplicaId>) {
        self.lease = Lease { leader, at: self.now.ticks, over: false };
    }

    /// Whether there has been no leader for so long that any will do.
    pub(crate) fn is_patience_over(&self) -> bool {
        let span = self.settings.election_timeout_max.0.saturating_mul(BETTER_CANDIDATE_TIMEOUTS);
        self.now.ticks >= self.lease.at.after(Ticks(span))
    }
}

impl<S: Storage> Core<S> {
    /// Whether a ballot is so far ahead of all that is known here that it makes no sense; see [`Ballot::LEAP_MAX`].
    pub(crate) fn is_leap(&mut self, ballot: Ballot) -> bool {
        let known = self.round_seen.max(self.acceptor.promised().round);
        let furthest = known.saturating_add(Ballot::LEAP_MAX);
        let leaps = ballot.round > furthest;
        if leaps {
            self.round_seen = furthest.min(Ballot::ROUND_MAX);
        }
        leaps
    }
}
