//! One replica: dispatches what happens to the role that it plays.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use d3b::{ReplicaId, Slot};

use crate::acceptor::{Acceptor, Offer, Persisted};
use crate::candidate::{Candidate, PreCandidate};
use crate::core::Core;
use crate::follower::Follower;
use crate::interface::{Input, Proposal, Ready, Reply, Restored, Role, Settings, Status, Storage, StorageError};
use crate::leader::Leader;
use crate::message::{Envelope, Message, Standing};
use crate::planted::Planted;
use crate::reads::Asker;
use crate::types::{Ballot, Configuration, Epoch, Now, PersistId, ReadId, Record, Ticks};

/// The role that a replica plays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum State {
    Follower(Follower),
    PreCandidate(PreCandidate),
    Candidate(Candidate),
    Leader(Leader),
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heed {
    Yes,
    No,
    /// Its sender is told of a newer configuration.
    Superseded,
}

/// One replica of the group. Pure: it reads `S`, and does nothing else but compute.
///
/// Equality and hash leave out names of batches and statistics, so that a model checker sees equal states as equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Replica<S> {
    pub(crate) core: Core<S>,
    pub(crate) state: State,
    /// What was found wrong with the log at the start.
    fault: Option<StorageError>,
}

impl<S: Storage> Replica<S> {
    /// A replica that has just started. The batches of the process before must be over: its [`Input::Persisted`] would
    /// be taken for this one's.
    #[must_use]
    pub fn new(settings: Settings, restored: Restored, storage: S, now: Now) -> Replica<S> {
        let lost = restored.applied > restored.last && restored.applied.next() > restored.base;
        let fault = lost.then(|| StorageError {
            message: format!(
                "slot {} was applied, but the log ends at slot {}: acknowledged entries are lost",
                restored.applied, restored.last
            ),
        });
        let acceptor = Acceptor::new(&restored, storage);
        let mut core = Core::new(settings, restored.configuration, acceptor, now);
        core.applied = restored.applied;
        core.apply_handed = restored.applied;
        let follower = Follower::new(&mut core, None);
        Replica { core, state: State::Follower(follower), fault }
    }

    /// Breaks a rule of the protocol from here on, to see that a test notices.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, planted: Planted) {
        self.core.acceptor.mutation.plant(planted);
    }

    /// Takes what happened.
    ///
    /// # Errors
    /// The log cannot be read: the replica must stop.
    pub fn step(&mut self, now: Now, input: Input) -> Result<(), StorageError> {
        self.core.now = now;
        self.check()?;
        match input {
            Input::Message(envelope) => self.on_message(envelope),
            Input::Propose(proposal) => {
                self.on_propose(proposal);
                Ok(())
            }
            Input::Persisted(id) => self.on_persisted(id),
            Input::Applied(slot) => {
                self.core.applied = self.core.applied.max(slot);
                Ok(())
            }
            Input::Read(id) => {
                self.on_read(id);
                Ok(())
            }
            Input::ConnectionReset(peer) => {
                self.on_connection_reset(peer);
                self.on_peer_reset(peer);
                Ok(())
            }
            Input::Transfer(target) => {
                self.on_transfer(target);
                Ok(())
            }
            Input::Reconfigure { id, change } => {
                self.on_reconfigure(id, &change);
                Ok(())
            }
            Input::Cut(base) => {
                self.core.acceptor.cut(base);
                Ok(())
            }
        }
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// The log cannot be read: the replica must stop.
    pub fn tick(&mut self, now: Now) -> Result<(), StorageError> {
        self.core.now = now;
        self.check()?;
        if !self.takes_part() {
            return Ok(());
        }
        match &self.state {
            State::Follower(_) => {
                if self.tick_follower() {
                    return self.start_pre_vote();
                }
            }
            State::PreCandidate(_) => {
                if self.tick_pre_candidate() {
                    return self.start_pre_vote();
                }
            }
            State::Candidate(_) => {
                if self.tick_candidate() {
                    return self.start_pre_vote();
                }
            }
            State::Leader(_) => {
                if self.tick_leader() {
                    self.follow(None);
                }
            }
        }
        Ok(())
    }

    /// When [`Replica::tick`] is due next, if nothing happens before; `None` if it never is.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Ticks> {
        if !self.takes_part() {
            return None;
        }
        Some(match &self.state {
            State::Follower(follower) => follower.next_deadline(&self.core),
            State::PreCandidate(pre) => pre.repeat_at.min(pre.deadline),
            State::Candidate(candidate) => candidate.repeat_at.min(candidate.deadline),
            State::Leader(leader) => leader.next_deadline(),
        })
    }

    /// What is to be done now. Call it after each burst of steps.
    ///
    /// # Errors
    /// The log cannot be read: the replica must stop.
    pub fn ready(&mut self) -> Result<Ready, StorageError> {
        self.check()?;
        if self.takes_part() {
            // Where there is nobody to wait for, nobody is waited for.
            if self.core.is_alone() && self.may_campaign() && matches!(self.state, State::Follower(_)) {
                self.start_campaign()?;
            }
            match &mut self.state {
                State::Follower(follower) => follower.ready(&mut self.core),
                State::PreCandidate(_) | State::Candidate(_) => {}
                State::Leader(leader) => leader.ready(&mut self.core)?,
            }
        }
        let mut ready = Ready::default();
        self.ready_to_persist(&mut ready)?;
        self.ready_to_apply(&mut ready);
        let outbox = std::mem::take(&mut self.core.outbox);
        ready.send_now.extend(outbox.send_now);
        ready.reads = outbox.reads;
        ready.replies = outbox.replies;
        Ok(ready)
    }

    /// The next batch, and everything whose truth hangs on it or on an earlier one.
    fn ready_to_persist(&mut self, ready: &mut Ready) -> Result<(), StorageError> {
        let core = &mut self.core;
        ready.persist = core.acceptor.begin_batch();
        let began = ready.persist.is_some();
        let answers = core.acceptor.answers(began, &core.colours())?;
        ready.send_now.extend(answers.now.into_iter().map(|(to, message)| core.envelope(to, message)));
        ready.send_after_persist.extend(answers.after.into_iter().map(|(to, message)| core.envelope(to, message)));
        if let State::Candidate(candidate) = &mut self.state
            && candidate.asks()
        {
            if core.acceptor.promised_durable() >= candidate.ballot() {
                ready.send_now.extend(candidate.questions(core));
            } else if began {
                ready.send_after_persist.extend(candidate.questions(core));
            }
        }
        if core.acceptor.mutation.breaks(Planted::SendBeforePersist) {
            ready.send_now.append(&mut ready.send_after_persist);
        }
        Ok(())
    }

    fn ready_to_apply(&mut self, ready: &mut Ready) {
        let upto = self.core.acceptor.applicable();
        if upto > self.core.apply_handed {
            ready.apply = Some(self.core.apply_handed.next()..=upto);
            self.core.apply_handed = upto;
        }
    }

    // Dispatch.

    fn on_message(&mut self, envelope: Envelope) -> Result<(), StorageError> {
        let leaps = |core: &mut Core<S>| envelope.message.lifts_to().is_some_and(|ballot| core.is_leap(ballot));
        match self.heed(&envelope) {
            Heed::Yes if !leaps(&mut self.core) => {}
            Heed::Yes | Heed::No => {
                self.core.dropped.0 += 1;
                return Ok(());
            }
            Heed::Superseded => {
                let configuration = Box::new(self.core.configuration.clone());
                self.core.send(envelope.from, Message::Superseded { configuration });
                return Ok(());
            }
        }
        let from = envelope.from;
        match envelope.message {
            Message::PreVote { round: _, commit, nonce } => self.on_pre_vote(from, commit, nonce),
            Message::PreVoteReply { nonce, granted, promised, commit: _ } => {
                self.core.see(promised);
                return self.on_pre_vote_reply(from, nonce, granted);
            }
            Message::Prepare { ballot, from: start } => self.on_prepare(from, ballot, start),
            message @ Message::Promise { .. } => return self.on_promise(from, message),
            Message::PromiseMore { ballot, from: start } => self.on_promise_more(from, ballot, start),
            Message::Accept { ballot, start, entries, commit, round } => {
                self.on_accept(from, Offer { ballot, start, entries, commit, round });
            }
            message @ Message::Accepted { .. } => self.on_accepted(from, &message),
            Message::Nack { ballot, promised, want, round } => {
                self.core.see(promised);
                return self.on_nack(from, ballot, promised, want, round);
            }
            Message::ReadIndex { read } => self.on_read_index(from, read, None),
            Message::ReadIndexAt { ballot, read } => self.on_read_index(from, read, Some(ballot)),
            Message::ReadIndexReply { ballot: _, read, index } => {
                if let State::Follower(follower) = &mut self.state {
                    follower.on_read_index_reply(&mut self.core, from, read, index);
                }
            }
            Message::TimeoutNow { ballot } => return self.on_timeout_now(from, ballot),
            Message::Behind { ballot, base } => {
                if let State::Follower(follower) = &self.state {
                    follower.on_behind(&mut self.core, from, ballot, base);
                }
            }
            Message::Superseded { configuration } => self.core.reply(Reply::Superseded { configuration }),
        }
        Ok(())
    }

    /// Whether a message is of this cluster, for this replica, such as its sender could send, and of a configuration that
    /// counts here.
    fn heed(&self, envelope: &Envelope) -> Heed {
        let Configuration { cluster, epoch, members, .. } = &self.core.configuration;
        let own_ballot = match &envelope.message {
            Message::Prepare { ballot, .. }
            | Message::PromiseMore { ballot, .. }
            | Message::Accept { ballot, .. }
            | Message::TimeoutNow { ballot }
            | Message::Behind { ballot, .. } => ballot.replica == envelope.from,
            Message::PreVote { .. }
            | Message::PreVoteReply { .. }
            | Message::Promise { .. }
            | Message::Accepted { .. }
            | Message::Nack { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexAt { .. }
            | Message::ReadIndexReply { .. }
            | Message::Superseded { .. } => true,
        };
        let makes_sense = envelope.cluster == *cluster
            && envelope.to == self.core.id()
            && envelope.from != self.core.id()
            && own_ballot
            && envelope.message.is_sane();
        if envelope.epoch.0 > epoch.0.saturating_add(Epoch::LEAP_MAX) {
            return Heed::No;
        }
        let known = members.contains_key(&envelope.from);
        let standing = (envelope.message.standing(), envelope.epoch.cmp(epoch));
        if !makes_sense || !self.takes_part() {
            // Whoever was removed may be the only one that can tell of it.
            let removed = makes_sense && !members.contains_key(&self.core.id());
            let tells = removed && standing == (Standing::Question, Ordering::Less);
            return if tells { Heed::Superseded } else { Heed::No };
        }
        let heeded = match standing {
            // An answer names what it answers, and whoever gives it need not have heard yet what this replica has.
            (Standing::Answer, order) => match &envelope.message {
                Message::Superseded { .. } => known && order == Ordering::Greater,
                _ => known,
            },
            (Standing::Question, Ordering::Less) => return Heed::Superseded,
            (Standing::Question, Ordering::Equal) => known && self.may_be_asked(&envelope.message),
            // This replica has yet to hear of that configuration, and its sender to be heard that told it. The leader of a
            // newer one hands over to nobody who has not.
            (Standing::Question, Ordering::Greater) => !matches!(envelope.message, Message::TimeoutNow { .. }),
        };
        if heeded { Heed::Yes } else { Heed::No }
    }

    /// Whether it is for this replica to answer: one that does not vote yet only listens.
    fn may_be_asked(&self, message: &Message) -> bool {
        let asks_for_vote = matches!(
            message,
            Message::PreVote { .. }
                | Message::Prepare { .. }
                | Message::PromiseMore { .. }
                | Message::TimeoutNow { .. }
        );
        !asks_for_vote || self.votes()
    }

    fn on_propose(&mut self, proposal: Proposal) {
        match &mut self.state {
            State::Leader(leader) => leader.propose(&mut self.core, proposal),
            State::Follower(Follower { leader, .. }) => {
                let leader = *leader;
                self.core.reply(Reply::NotLeader { id: proposal.id, leader });
            }
            State::PreCandidate(_) | State::Candidate(_) => {
                self.core.reply(Reply::NotLeader { id: proposal.id, leader: None });
            }
        }
    }

    fn on_read(&mut self, id: ReadId) {
        match &mut self.state {
            State::Leader(leader) => leader.read(Asker::Own(id)),
            State::Follower(follower) => follower.read(&mut self.core, id),
            State::PreCandidate(_) | State::Candidate(_) => self.core.reply(Reply::ReadFailed { id }),
        }
    }

    fn on_persisted(&mut self, id: PersistId) -> Result<(), StorageError> {
        let before = self.core.acceptor.promised_durable();
        let adopted = match self.core.acceptor.persisted(id) {
            Persisted::Nothing => return Ok(()),
            Persisted::Records => None,
            Persisted::Adopted(configuration) => Some(configuration),
        };
        self.begin_waiting(before);
        if let Some(configuration) = adopted {
            self.adopt(configuration)?;
        }
        self.lead_if_promised()?;
        self.advance_leader();
        Ok(())
    }

    /// A configuration that was chosen is durable here, and governs from now on. Ballots belong to one configuration: a
    /// leader takes a new one, which the new majority has to promise.
    fn adopt(&mut self, configuration: Configuration) -> Result<(), StorageError> {
        self.core.configuration = configuration;
        match &self.state {
            State::Leader(_) => self.start_campaign(),
            State::PreCandidate(_) | State::Candidate(_) => {
                self.follow(None);
                Ok(())
            }
            State::Follower(_) => Ok(()),
        }
    }

    /// Changes the role; what waited for the old one is told that it waits in vain.
    pub(crate) fn become_state(&mut self, state: State) {
        match std::mem::replace(&mut self.state, state) {
            State::Follower(follower) => follower.leave(&mut self.core),
            State::PreCandidate(_) | State::Candidate(_) => {}
            State::Leader(leader) => leader.leave(&mut self.core),
        }
    }

    fn check(&self) -> Result<(), StorageError> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Whether the configuration names this very disk for this replica. A replica that lost its disk has forgotten its
    /// promises, and must not vote as if it had made none.
    fn takes_part(&self) -> bool {
        let named = self.core.configuration.members.get(&self.core.settings.id).map(|member| member.disk);
        named == Some(self.core.settings.disk) || self.core.acceptor.mutation.breaks(Planted::WipedDiskVotes)
    }

    /// Whether it counts in majorities.
    pub(crate) fn votes(&self) -> bool {
        let named = self.core.configuration.votes(self.core.settings.id);
        self.takes_part() && (named || self.core.acceptor.mutation.breaks(Planted::WipedDiskVotes))
    }

    // What people and drivers may look at.

    /// Who leads, as far as known.
    #[must_use]
    pub fn leader(&self) -> Option<ReplicaId> {
        match &self.state {
            State::Follower(follower) => follower.leader,
            State::PreCandidate(_) | State::Candidate(_) => None,
            State::Leader(leader) => Some(leader.ballot().replica),
        }
    }

    /// The part that it takes.
    #[must_use]
    pub fn role(&self) -> Role {
        match &self.state {
            State::Follower(_) => Role::Follower,
            State::PreCandidate(_) => Role::PreCandidate,
            State::Candidate(_) => Role::Candidate,
            State::Leader(_) => Role::Leader,
        }
    }

    /// The highest ballot that it has promised, be it durable yet or not.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.core.acceptor.promised()
    }

    /// How many messages were dropped since the start: of another cluster, epoch or receiver, or such as make no sense.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.core.dropped.0
    }

    /// Who votes.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.core.configuration
    }

    /// The settings that it runs with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.core.settings
    }

    /// The batch that was handed out and is not reported durable yet.
    #[must_use]
    pub fn outstanding(&self) -> Option<PersistId> {
        self.core.acceptor.outstanding()
    }

    /// The end of what its leader says to be chosen, or takes it to have; `None` while it has no leader that knows.
    #[must_use]
    pub fn told(&self) -> Option<Slot> {
        match &self.state {
            State::Follower(follower) => follower.leader.map(|_| self.core.acceptor.told()),
            State::PreCandidate(_) | State::Candidate(_) => None,
            State::Leader(leader) => leader.barrier_chosen().then(|| self.core.acceptor.heard()),
        }
    }

    /// The end of what it holds durably at the ballot of its leader.
    #[must_use]
    pub fn held(&self) -> Slot {
        self.core.acceptor.upto_durable()
    }

    /// A snapshot of its state for people.
    #[must_use]
    pub fn status(&self) -> Status {
        let acceptor = &self.core.acceptor;
        let (mut barrier_chosen, mut transferring, mut peers) = (false, false, BTreeMap::new());
        let (role, last) = match &self.state {
            State::Follower(_) => (Role::Follower, acceptor.last()),
            State::PreCandidate(_) => (Role::PreCandidate, acceptor.last()),
            State::Candidate(_) => (Role::Candidate, acceptor.last()),
            State::Leader(leader) => {
                (barrier_chosen, transferring) = (leader.barrier_chosen(), leader.transferring());
                peers = leader.peer_status(&self.core);
                (Role::Leader, acceptor.upto())
            }
        };
        Status {
            role,
            leader: self.leader(),
            promised: acceptor.promised(),
            commit: acceptor.commit(),
            applied: self.core.applied,
            last,
            base: acceptor.base(),
            barrier_chosen,
            peers,
            transferring,
            votes: self.votes(),
            changing: acceptor.is_changing(),
            dropped: self.core.dropped.0,
        }
    }

    /// The record of a slot, be it durable already or not; `None` outside the log.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn record(&self, slot: Slot) -> Result<Option<Record>, StorageError> {
        self.core.acceptor.record(slot)
    }

    /// The storage that it reads from.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.core.acceptor.storage
    }

    /// The storage that it reads from, for a test that plays the disk.
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.core.acceptor.storage
    }
}
