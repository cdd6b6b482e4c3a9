//! The follower: listens to a leader, and campaigns when it hears none. Learners' work too is done here, for a follower
//! applies what its leader tells it to be chosen.

use d3b::{ReplicaId, Slot};

use crate::acceptor::Offer;
use crate::core::Core;
use crate::interface::{ConfirmedRead, Reply, Settings, Storage, StorageError};
use crate::message::Message;
use crate::reads::FollowerReads;
use crate::replica::{Replica, State};
use crate::types::{Ballot, ReadId, Ticks};

/// Listening.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Follower {
    /// Whose Accepts it takes; `None` while there is none.
    pub(crate) leader: Option<ReplicaId>,
    /// When it stops waiting for one.
    pub(crate) deadline: Ticks,
    /// How far the candidate that it promised has come in hearing what is accepted here.
    told_from: Slot,
    pub(crate) reads: FollowerReads,
}

impl Follower {
    pub(crate) fn new<S>(core: &mut Core<S>, leader: Option<ReplicaId>) -> Follower {
        let deadline = core.election_deadline();
        Follower { leader, deadline, told_from: Slot::ZERO, reads: FollowerReads::default() }
    }

    /// Gives up the reads that wait for the leader that was.
    pub(crate) fn leave<S>(self, core: &mut Core<S>) {
        for id in self.reads.into_ids() {
            core.reply(Reply::ReadFailed { id });
        }
    }

    pub(crate) fn read<S>(&mut self, core: &mut Core<S>, id: ReadId) {
        match self.leader {
            Some(_) => self.reads.ask(id),
            None => core.reply(Reply::ReadFailed { id }),
        }
    }

    /// Sends the next question, if it is time.
    pub(crate) fn ready<S: Storage>(&mut self, core: &mut Core<S>) {
        let Some(leader) = self.leader else { return };
        if let Some(read) = self.reads.begin(core.settings.seed, core.now.ticks) {
            let ballot = core.acceptor.promised();
            core.send(leader, Message::ReadIndexAt { ballot, read });
        }
    }

    pub(crate) fn on_read_index_reply<S>(
        &mut self,
        core: &mut Core<S>,
        from: ReplicaId,
        read: ReadId,
        index: Option<Slot>,
    ) {
        if self.leader != Some(from) {
            return;
        }
        let Some(ids) = self.reads.end(read) else { return };
        match index {
            Some(index) => core.outbox.reads.extend(ids.into_iter().map(|id| ConfirmedRead { id, index })),
            None => {
                // It does not lead; until somebody says that he does, asking again would only go in circles.
                self.leader = None;
                for id in ids {
                    core.reply(Reply::ReadFailed { id });
                }
            }
        }
    }

    /// The leader's log does not hold any more what this replica asked for.
    pub(crate) fn on_behind<S: Storage>(&self, core: &mut Core<S>, from: ReplicaId, ballot: Ballot, base: Slot) {
        if self.leader == Some(from) && core.acceptor.run() == ballot && base > core.acceptor.upto().next() {
            core.reply(Reply::Behind { peer: from, base });
        }
    }

    fn expire_reads<S>(&mut self, core: &mut Core<S>) {
        for id in self.reads.expire(core.now.ticks, core.settings.election_timeout_max) {
            core.reply(Reply::ReadFailed { id });
        }
    }

    pub(crate) fn next_deadline<S>(&self, core: &Core<S>) -> Ticks {
        let reads = self.reads.deadline(core.settings.election_timeout_max);
        reads.map_or(self.deadline, |reads| reads.min(self.deadline))
    }
}

impl<S: Storage> Replica<S> {
    /// Lets time pass for a follower; true if it has waited long enough for a leader.
    pub(crate) fn tick_follower(&mut self) -> bool {
        let State::Follower(follower) = &mut self.state else { return false };
        follower.expire_reads(&mut self.core);
        if self.core.now.ticks < follower.deadline {
            return false;
        }
        if self.core.acceptor.is_promising() {
            // Nobody has heard of the promise yet; whom it was given to can only make use of it then.
            follower.deadline = self.core.election_deadline();
            return false;
        }
        true
    }

    /// Becomes a follower, of nobody yet or of a leader.
    pub(crate) fn follow(&mut self, leader: Option<ReplicaId>) {
        let follower = Follower::new(&mut self.core, leader);
        self.become_state(State::Follower(follower));
    }

    /// An Accept: taken unless a higher ballot is promised.
    pub(crate) fn on_accept(&mut self, from: ReplicaId, offer: Offer) {
        let promised = self.core.acceptor.promised();
        let ballot = offer.ballot;
        if self.core.acceptor.refuses(ballot) {
            let (want, round) = (self.core.acceptor.upto().next(), offer.round);
            self.core.send(from, Message::Nack { ballot, promised, want, round });
            return;
        }
        self.hear_leader(from, ballot);
        let Settings { inflight_bytes_max, message_bytes_max, .. } = self.core.settings;
        if let Err(want) = self.core.acceptor.accept(offer, inflight_bytes_max.saturating_add(message_bytes_max)) {
            let (promised, round) = (self.core.acceptor.promised(), self.core.acceptor.round());
            self.core.send(from, Message::Nack { ballot, promised, want, round });
        }
    }

    /// Whatever it was doing, it now follows the leader of this ballot.
    fn hear_leader(&mut self, leader: ReplicaId, ballot: Ballot) {
        self.core.expect_leader(Some(leader));
        self.core.campaigns_failed = 0;
        let same_ballot = self.core.acceptor.run() == ballot;
        let deadline = self.core.election_deadline();
        match &mut self.state {
            State::Follower(follower) if follower.leader == Some(leader) && same_ballot => follower.deadline = deadline,
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Leader(_) => {
                self.follow(Some(leader));
            }
        }
    }

    /// A Prepare: promised unless a higher ballot is.
    pub(crate) fn on_prepare(&mut self, from: ReplicaId, ballot: Ballot, start: Slot) {
        let promised = self.core.acceptor.promised();
        if ballot < promised {
            let (want, round) = (self.core.acceptor.upto().next(), 0);
            self.core.send(from, Message::Nack { ballot, promised, want, round });
            return;
        }
        if ballot > promised {
            self.core.acceptor.promise(ballot);
            // Only a promise that rises counts as a sign of life, or a deaf candidate that repeats itself would keep
            // everybody quiet.
            self.core.expect_leader(None);
            self.follow(None);
        }
        self.core.acceptor.owe_promise(from, ballot, start);
    }

    /// A further chunk of a promise; of no other ballot than the one that is promised.
    pub(crate) fn on_promise_more(&mut self, from: ReplicaId, ballot: Ballot, start: Slot) {
        if ballot != self.core.acceptor.promised() {
            return;
        }
        self.core.acceptor.owe_promise(from, ballot, start);
        let deadline = self.core.election_deadline();
        if let State::Follower(follower) = &mut self.state
            && follower.leader.is_none()
            && start > follower.told_from
        {
            // It has heard the chunks so far: its campaign goes on, however long the log is.
            follower.told_from = start;
            follower.deadline = deadline;
            self.core.expect_leader(None);
        }
    }

    /// The leader hands over.
    pub(crate) fn on_timeout_now(&mut self, from: ReplicaId, ballot: Ballot) -> Result<(), StorageError> {
        let follows = matches!(&self.state, State::Follower(follower) if follower.leader == Some(from));
        if follows && ballot == self.core.acceptor.promised() { self.start_campaign() } else { Ok(()) }
    }

    /// A peer's process may have died: if it is the leader's, the timeout is due, but for some jitter.
    pub(crate) fn on_connection_reset(&mut self, peer: ReplicaId) {
        if self.core.lease.leader == Some(peer) {
            self.core.lease.over = true;
        }
        let jitter = self.core.jitter(Ticks(0), self.core.settings.heartbeat);
        let soon = self.core.now.ticks.after(jitter);
        if let State::Follower(follower) = &mut self.state
            && follower.leader == Some(peer)
        {
            follower.deadline = follower.deadline.min(soon);
        }
    }
}
