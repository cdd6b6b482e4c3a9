//! The candidate: asks whether a campaign would be welcome (pre-vote), then runs phase one.
//!
//! Pre-votes promise nothing, are never counted as promises, and leave no trace on any disk. Phase one collects, from a
//! majority, the promise and everything accepted above the candidate's commit.

use std::collections::{BTreeMap, BTreeSet};

use d3b::{ReplicaId, Slot};

use crate::core::Core;
use crate::interface::{Reply, Storage, StorageError};
use crate::message::{Envelope, Message};
use crate::planted::Planted;
use crate::replica::{Replica, State};
use crate::types::{Ballot, Record, Ticks, mix};

/// Asking around.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PreCandidate {
    /// Ties answers to this question.
    nonce: u64,
    /// Who would promise, besides itself.
    grants: BTreeSet<ReplicaId>,
    /// When to ask again, for messages get lost and members grow quiet.
    pub(crate) repeat_at: Ticks,
    /// When old grants count no more.
    pub(crate) deadline: Ticks,
}

/// How far one member's promise has come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Promised {
    /// The first slot of the chunk to come; `None` when all have.
    next: Option<Slot>,
    /// Its commit.
    commit: Slot,
    /// Its clock.
    clock_ms: u64,
    /// The end of what it has accepted, at whatever ballot.
    last: Slot,
}

/// Collecting promises.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Candidate {
    ballot: Ballot,
    /// The own commit plus one, when the campaign began.
    from: Slot,
    promises: BTreeMap<ReplicaId, Promised>,
    /// Of every slot from `from` up the record of the highest ballot that any promise told, without gaps, for no
    /// member's records have any.
    merged: Vec<Record>,
    /// Whether to send, to everybody whose promise is not complete, what makes it so.
    ask: bool,
    /// When to ask again.
    pub(crate) repeat_at: Ticks,
    /// When the campaign has failed; moves with every sign of progress.
    pub(crate) deadline: Ticks,
}

/// What phase one has found, for the leader to begin with.
#[derive(Debug)]
pub(crate) struct Mandate {
    pub(crate) ballot: Ballot,
    /// To be proposed again, in order of slots and without gaps; may begin below the own commit.
    pub(crate) adopted: Vec<Record>,
    /// The promisers: commit, clock, and end of records.
    pub(crate) promisers: BTreeMap<ReplicaId, (Slot, u64, Slot)>,
}

/// Takes, per slot, the record of the higher ballot.
fn merge(merged: &mut Vec<Record>, from: Slot, records: Vec<Record>, lowest: bool) {
    for record in records {
        let Some(index) = record.slot.0.checked_sub(from.0).and_then(|index| usize::try_from(index).ok()) else {
            continue;
        };
        // Chunks arrive in order and without gaps: a slot that is not there yet can only be the next one.
        if index == merged.len() {
            merged.push(record);
        } else if let Some(held) = merged.get_mut(index)
            && (record.ballot > held.ballot) != lowest
        {
            *held = record;
        }
    }
}

impl Candidate {
    pub(crate) fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// The questions that are due; they may leave only when the own ballot is durable.
    pub(crate) fn questions<S: Storage>(&mut self, core: &Core<S>) -> Vec<Envelope> {
        if !std::mem::take(&mut self.ask) {
            return Vec::new();
        }
        let mut envelopes = Vec::new();
        for id in core.voters() {
            let message = match self.promises.get(&id).map(|promised| promised.next) {
                None => Message::Prepare { ballot: self.ballot, from: self.from },
                Some(Some(next)) => Message::PromiseMore { ballot: self.ballot, from: next },
                Some(None) => continue,
            };
            envelopes.push(core.envelope(id, message));
        }
        envelopes
    }

    /// Whether questions wait for the own ballot to be durable.
    pub(crate) fn asks(&self) -> bool {
        self.ask
    }
}

impl<S: Storage> Replica<S> {
    // Pre-vote.

    /// Asks whether a campaign would be welcome; where there is nobody to ask, it is.
    pub(crate) fn start_pre_vote(&mut self) -> Result<(), StorageError> {
        if !self.may_campaign() {
            self.follow(None);
            return Ok(());
        }
        if self.core.is_alone() {
            return self.start_campaign();
        }
        let deadline = self.core.election_deadline();
        let round = self.next_round();
        let now = self.core.now.ticks;
        let nonce = mix(self.core.settings.seed, &[now.0, round]);
        let repeat_at = now.after(self.core.settings.heartbeat);
        self.become_state(State::PreCandidate(PreCandidate { nonce, grants: BTreeSet::new(), repeat_at, deadline }));
        self.ask_pre_votes(nonce);
        Ok(())
    }

    fn ask_pre_votes(&mut self, nonce: u64) {
        let (round, commit) = (self.next_round(), self.core.acceptor.commit());
        for id in self.core.voters() {
            self.core.send(id, Message::PreVote { round, commit, nonce });
        }
    }

    /// Lets time pass for a pre-candidate; true if it should start over.
    pub(crate) fn tick_pre_candidate(&mut self) -> bool {
        let State::PreCandidate(pre) = &mut self.state else { return false };
        let now = self.core.now.ticks;
        if now >= pre.deadline {
            return true;
        }
        if now >= pre.repeat_at {
            pre.repeat_at = now.after(self.core.settings.heartbeat);
            let nonce = pre.nonce;
            self.ask_pre_votes(nonce);
        }
        false
    }

    /// Answers a pre-vote, and changes nothing. A member that knows of more that is chosen refuses, so that the best
    /// candidate wins; as it may be alone in hearing none, it then asks for itself. It does not refuse for ever: the best
    /// candidate may be one that no majority hears, and phase one gives any other what it lacks.
    pub(crate) fn on_pre_vote(&mut self, from: ReplicaId, commit: Slot, nonce: u64) {
        // While a campaign is under way another one would only end it: with slow disks that could go on for ever.
        let busy = match &self.state {
            State::Leader(_) => true,
            State::Candidate(candidate) => self.core.now.ticks < candidate.deadline,
            State::Follower(_) | State::PreCandidate(_) => false,
        };
        let quiet = !busy && !self.core.acceptor.is_promising() && self.core.is_quiet(from);
        let own = self.core.acceptor.commit();
        let granted = quiet && (commit >= own || self.core.is_patience_over());
        let promised = self.core.acceptor.promised();
        self.core.send(from, Message::PreVoteReply { nonce, granted, promised, commit: own });
        if quiet && !granted {
            let soon = self.core.now.ticks.after(self.core.settings.heartbeat);
            if let State::Follower(follower) = &mut self.state {
                follower.deadline = follower.deadline.min(soon);
            }
        }
    }

    pub(crate) fn on_pre_vote_reply(&mut self, from: ReplicaId, nonce: u64, granted: bool) -> Result<(), StorageError> {
        let State::PreCandidate(pre) = &mut self.state else { return Ok(()) };
        if pre.nonce != nonce || !self.core.configuration.votes(from) {
            return Ok(());
        }
        if granted {
            pre.grants.insert(from);
        } else {
            pre.grants.remove(&from);
        }
        if pre.grants.len() + 1 >= self.core.majority() { self.start_campaign() } else { Ok(()) }
    }

    // Phase one.

    /// Above everything promised and seen. The own promise rises to it before anybody hears of it, durably, so that no
    /// ballot is used twice, restarts or not.
    fn next_round(&self) -> u64 {
        let promised = self.core.acceptor.promised();
        let fresh = self.core.acceptor.run() == Ballot::ZERO && promised.replica == self.core.id();
        if fresh && self.core.acceptor.mutation.breaks(Planted::BallotReusedAfterRestart) {
            return promised.round;
        }
        promised.round.max(self.core.round_seen) + 1
    }

    /// Whether this replica may lead. One that has a configuration to adopt may not yet: it would ask the members of the
    /// old one about slots that the new one governs.
    pub(crate) fn may_campaign(&self) -> bool {
        self.votes() && self.core.acceptor.adoptable().is_none()
    }

    pub(crate) fn start_campaign(&mut self) -> Result<(), StorageError> {
        let round = self.next_round();
        if round > Ballot::ROUND_MAX || !self.may_campaign() {
            self.follow(None);
            return Ok(());
        }
        let ballot = Ballot { round, replica: self.core.id() };
        self.core.acceptor.promise(ballot);
        let now = self.core.now.ticks;
        self.core.expect_leader(None);
        let candidate = Candidate {
            ballot,
            from: self.core.acceptor.commit().next(),
            promises: BTreeMap::new(),
            merged: Vec::new(),
            ask: true,
            repeat_at: now.after(self.core.settings.heartbeat),
            deadline: self.core.election_deadline(),
        };
        self.become_state(State::Candidate(candidate));
        self.lead_if_promised()
    }

    /// Lets time pass for a candidate; true if its campaign has failed. While the own ballot is on its way to the disk
    /// it has not begun: a slow disk must not make a replica campaign for ever.
    pub(crate) fn tick_candidate(&mut self) -> bool {
        let State::Candidate(candidate) = &mut self.state else { return false };
        let now = self.core.now.ticks;
        if now >= candidate.repeat_at {
            candidate.repeat_at = now.after(self.core.settings.heartbeat);
            candidate.ask = true;
        }
        if now < candidate.deadline {
            return false;
        }
        if self.core.acceptor.is_promising() {
            candidate.deadline = self.core.election_deadline();
            return false;
        }
        self.core.campaigns_failed = self.core.campaigns_failed.saturating_add(1);
        true
    }

    /// Something became durable. If it was the promise, the campaign that it was given to has its time now: the own
    /// one, which is to wait for the disks of others, or another's, which has yet to hear of the promise.
    pub(crate) fn begin_waiting(&mut self, durable_before: Ballot) {
        let promised = self.core.acceptor.promised();
        if durable_before >= promised || self.core.acceptor.is_promising() {
            return;
        }
        let deadline = self.core.election_deadline();
        match &mut self.state {
            State::Candidate(candidate) => {
                candidate.deadline = deadline.after(self.core.patience());
                self.core.expect_leader(None);
            }
            State::Follower(follower) if follower.leader.is_none() => {
                follower.deadline = deadline;
                self.core.expect_leader(None);
            }
            State::Follower(_) | State::PreCandidate(_) | State::Leader(_) => {}
        }
    }

    /// A chunk of a promise.
    pub(crate) fn on_promise(&mut self, from: ReplicaId, chunk: Message) -> Result<(), StorageError> {
        let Message::Promise { ballot, commit, log_start, from: start, records, next, clock_ms } = chunk else {
            return Ok(());
        };
        let deadline = self.core.election_deadline();
        let State::Candidate(candidate) = &mut self.state else { return Ok(()) };
        if candidate.ballot != ballot || !self.core.configuration.votes(from) {
            return Ok(());
        }
        if log_start > candidate.from {
            // What that member has forgotten is chosen and not held here: this replica must catch up before it leads.
            self.core.reply(Reply::Behind { peer: from, base: log_start });
            self.follow(None);
            return Ok(());
        }
        let expected = candidate.promises.get(&from).map_or(Some(candidate.from), |promised| promised.next);
        let end = start.previous().0 + records.len() as u64;
        let whole = next.map_or(end >= commit.0, |next| next.0 == end + 1 && next > start);
        if expected != Some(start) || !whole {
            return Ok(());
        }
        let lowest = self.core.acceptor.mutation.breaks(Planted::AnyValueInPhaseOne);
        merge(&mut candidate.merged, candidate.from, records, lowest);
        candidate.promises.insert(from, Promised { next, commit, clock_ms, last: Slot(end) });
        candidate.deadline = candidate.deadline.max(deadline);
        self.core.expect_leader(None);
        if let Some(next) = next {
            self.core.send(from, Message::PromiseMore { ballot, from: next });
        }
        self.lead_if_promised()
    }

    /// Leads once a majority has promised; the own promise counts when it is durable.
    pub(crate) fn lead_if_promised(&mut self) -> Result<(), StorageError> {
        let State::Candidate(candidate) = &self.state else { return Ok(()) };
        if self.core.acceptor.adoptable().is_some() {
            // What it heard meanwhile is that another configuration governs the slots that it asks about.
            self.follow(None);
            return Ok(());
        }
        let own = usize::from(self.core.acceptor.promised_durable() >= candidate.ballot);
        let complete = |promised: &&Promised| promised.next.is_none();
        if own == 0 || candidate.promises.values().filter(complete).count() + own < self.core.majority() {
            return Ok(());
        }
        let Candidate { ballot, from, promises, mut merged, .. } = candidate.clone();
        let lowest = self.core.acceptor.mutation.breaks(Planted::AnyValueInPhaseOne);
        merge(&mut merged, from, self.own_records(from)?, lowest);
        let promisers = promises
            .into_iter()
            .filter(|(_, promised)| promised.next.is_none())
            .map(|(id, promised)| (id, (promised.commit, promised.clock_ms, promised.last)))
            .collect();
        self.lead(Mandate { ballot, adopted: merged, promisers })
    }

    /// Everything that is accepted here from a slot up.
    fn own_records(&self, from: Slot) -> Result<Vec<Record>, StorageError> {
        let acceptor = &self.core.acceptor;
        let mut records: Vec<Record> = Vec::new();
        let mut slot = from;
        while slot <= acceptor.last() {
            records.extend(acceptor.read(slot, acceptor.last(), self.core.settings.message_bytes_max)?);
            slot = records.last().map_or(slot, |record| record.slot).next();
        }
        Ok(records)
    }
}
