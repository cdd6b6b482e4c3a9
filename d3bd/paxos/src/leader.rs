//! The leader: phase two. It proposes what phase one found and then what its driver asks for, counts who holds it
//! durably, confirms reads, and notices when it has no majority any more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use d3b::{ReplicaId, Slot};

use crate::candidate::Mandate;
use crate::core::Core;
use crate::interface::{ConfirmedRead, PeerStatus, Proposal, Reply, Storage, StorageError};
use crate::message::Message;
use crate::peer::{Flow, Peer};
use crate::planted::Planted;
use crate::quorum::reached;
use crate::reads::{Asker, LeaderReads};
use crate::replica::{Replica, State};
use crate::types::{Ballot, Change, ChangeError, Entry, Payload, ProposalId, ReadId, Stamp, Ticks, mix};

/// A leadership on its way to another member.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Transfer {
    target: ReplicaId,
    /// Whether the target is to be told now.
    tell: bool,
    /// Whether it was told.
    told: bool,
    /// When proposals are taken again.
    deadline: Ticks,
}

/// The voters that are asked to confirm reads: those that answered the last heartbeat first, as many as make a majority
/// with the leader. Asking the others too would cost every round more and bring its end no nearer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Quick {
    /// The heartbeat.
    round: u64,
    voters: BTreeSet<ReplicaId>,
}

impl Quick {
    /// A voter has answered a round.
    fn answered(&mut self, voter: ReplicaId, round: u64, needed: usize) {
        if round >= self.round && self.voters.len() < needed {
            self.voters.insert(voter);
        }
    }
}

/// Leading.
///
/// Invariants: the acceptor's run is of `ballot`; its `upto` is the end of the leader's log; `barrier <= upto`,
/// unless a configuration ends it;
/// `chosen <= upto`; `window` has one size for each slot above the acceptor's commit up to `upto`, and `window_bytes` is
/// their sum.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Leader {
    ballot: Ballot,
    /// The no-op after everything that phase one found. Once it is chosen, everything that was ever answered is known
    /// to be chosen, and not before. Where phase one has found a configuration there is none: the slot after it, which
    /// this ballot does not reach.
    barrier: Slot,
    /// Everything up to here is chosen.
    chosen: Slot,
    /// The highest log time given so far.
    time_ms: u64,
    /// Rises with every heartbeat.
    round: u64,
    peers: BTreeMap<ReplicaId, Peer>,
    /// Sizes of the entries that are proposed and not yet chosen, or not durable here: until then they are in memory,
    /// however fast the others' disks are.
    window: VecDeque<usize>,
    /// Their sum.
    window_bytes: usize,
    /// When the next heartbeat is due.
    heartbeat_at: Ticks,
    /// Whether every peer is to hear from it in any case.
    urgent: bool,
    reads: LeaderReads,
    quick: Quick,
    transfer: Option<Transfer>,
}

impl Leader {
    pub(crate) fn ballot(&self) -> Ballot {
        self.ballot
    }

    pub(crate) fn barrier_chosen(&self) -> bool {
        self.chosen >= self.barrier
    }

    pub(crate) fn transferring(&self) -> bool {
        self.transfer.is_some()
    }

    pub(crate) fn next_deadline(&self) -> Ticks {
        self.transfer.as_ref().map_or(self.heartbeat_at, |transfer| transfer.deadline.min(self.heartbeat_at))
    }

    pub(crate) fn peer_status<S>(&self, core: &Core<S>) -> BTreeMap<ReplicaId, PeerStatus> {
        let status = |peer: &Peer| PeerStatus {
            upto: peer.upto,
            applied: peer.applied,
            reachable: core.now.ticks <= peer.heard_at.after(core.settings.election_timeout_max),
        };
        self.peers.iter().map(|(id, peer)| (*id, status(peer))).collect()
    }

    /// Gives up what waits for this leadership.
    pub(crate) fn leave<S: Storage>(self, core: &mut Core<S>) {
        let ballot = core.acceptor.promised();
        for asker in self.reads.into_askers() {
            match asker {
                Asker::Own(id) => core.reply(Reply::ReadFailed { id }),
                Asker::Peer(to, read) => core.send(to, Message::ReadIndexReply { ballot, read, index: None }),
            }
        }
        if self.transfer.is_some() {
            core.reply(Reply::TransferEnded { handed_over: true });
        }
    }

    // Proposing.

    /// Puts a command into the log, unless too much is under way.
    pub(crate) fn propose<S: Storage>(&mut self, core: &mut Core<S>, proposal: Proposal) {
        let Proposal { id, command, seed } = proposal;
        let draining =
            core.acceptor.is_changing() && !core.acceptor.mutation.breaks(Planted::ProposalsBehindConfiguration);
        if self.transfer.is_some() || draining {
            core.reply(Reply::NotLeader { id, leader: None });
            return;
        }
        let bytes = self.window_bytes.saturating_add(command.len());
        let too_much = self.window_bytes > 0 && bytes > core.settings.inflight_bytes_max;
        if too_much || command.len() > Entry::COMMAND_MAX {
            core.reply(Reply::Overloaded { id });
            if self.is_held_up(core) {
                self.begin_transfer(core, None);
            }
            return;
        }
        let slot = self.append_new(core, Payload::Command(command), seed);
        core.reply(Reply::Proposed { id, slot, ballot: self.ballot });
    }

    /// Puts a change of the configuration into the log; nothing follows it before it is chosen.
    fn reconfigure<S: Storage>(&mut self, core: &mut Core<S>, id: ProposalId, change: &Change) {
        if self.transfer.is_some() {
            core.reply(Reply::NotLeader { id, leader: None });
            return;
        }
        let slot = core.acceptor.upto().next();
        let next = if !self.barrier_chosen() || core.acceptor.is_changing() {
            Err(ChangeError::UnderWay)
        } else if *change == (Change::Remove { id: core.id() }) {
            Err(ChangeError::Leads(core.id()))
        } else {
            core.configuration.changed(change, slot)
        };
        match next {
            Ok(configuration) => {
                let slot = self.append_new(core, Payload::Configuration(Box::new(configuration)), 0);
                core.reply(Reply::Proposed { id, slot, ballot: self.ballot });
            }
            Err(error) => core.reply(Reply::Refused { id, error }),
        }
    }

    /// Whether most of what is under way waits for nothing but the own disk. The others would get on without this one,
    /// and hear from it that it leads, so that only it can see that another one should.
    fn is_held_up<S: Storage>(&self, core: &Core<S>) -> bool {
        // A leader may have heard of more that is chosen than a majority holds at its own ballot yet.
        let chosen = self.chosen.0.saturating_sub(core.acceptor.commit().0);
        let bytes: usize = self.window.iter().take(usize::try_from(chosen).unwrap_or(usize::MAX)).sum();
        bytes > core.settings.inflight_bytes_max / 2
    }

    fn append_new<S: Storage>(&mut self, core: &mut Core<S>, payload: Payload, seed: u64) -> Slot {
        let slot = core.acceptor.upto().next();
        self.time_ms = self.next_time(core);
        let words = [slot.0, self.ballot.round, u64::from(self.ballot.replica.0)];
        let stamp = Stamp { time_ms: self.time_ms, seed: mix(seed, &words), execution: core.configuration.execution };
        self.append(core, Entry { stamp, payload })
    }

    fn append<S: Storage>(&mut self, core: &mut Core<S>, entry: Entry) -> Slot {
        self.window.push_back(entry.size());
        self.window_bytes += entry.size();
        core.acceptor.append(entry)
    }

    /// Log time: the own clock, but never back, and never far ahead of what a majority's clocks have reached.
    fn next_time<S>(&self, core: &Core<S>) -> u64 {
        let own = core.now.clock_ms;
        let clocks = self.voters().map(|peer| peer.clock_ms).chain([own]);
        let majority = reached(clocks, core.majority()).unwrap_or(0);
        let bound = majority.saturating_add(core.settings.clock_ahead_ms_max);
        own.min(bound).max(self.time_ms.saturating_add(1))
    }

    // Answers of followers.

    /// The peers that count in majorities.
    fn voters(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values().filter(|peer| peer.votes)
    }

    fn peer_of(&mut self, from: ReplicaId, ballot: Ballot) -> Option<&mut Peer> {
        if ballot == self.ballot { self.peers.get_mut(&from) } else { None }
    }

    /// Counts what is chosen by now.
    fn advance<S: Storage>(&mut self, core: &mut Core<S>) {
        let own = if core.acceptor.mutation.breaks(Planted::CommitAcrossBallots) {
            core.acceptor.last()
        } else {
            core.acceptor.upto_durable()
        };
        let ends = self.voters().map(|peer| peer.upto).chain([own]);
        if let Some(chosen) = reached(ends, core.majority()) {
            self.raise_chosen(core, chosen);
        }
        let rounds = self.voters().map(|peer| peer.round).chain([self.round]);
        let needed = if core.acceptor.mutation.breaks(Planted::ReadWithoutRound) { 1 } else { core.majority() };
        if let Some(round) = reached(rounds, needed) {
            self.confirm_reads(core, round);
        }
        let barrier_chosen = self.barrier_chosen();
        if let Some(transfer) = &mut self.transfer
            && let Some(peer) = self.peers.get(&transfer.target)
            && barrier_chosen
            && peer.upto == core.acceptor.upto()
        {
            let ballot = self.ballot;
            if std::mem::take(&mut transfer.tell) {
                transfer.told = true;
                core.send(transfer.target, Message::TimeoutNow { ballot });
            }
        }
    }

    fn raise_chosen<S: Storage>(&mut self, core: &mut Core<S>, chosen: Slot) {
        self.chosen = self.chosen.max(chosen.min(core.acceptor.upto()));
        core.acceptor.hear_commit(self.chosen);
        let open = usize::try_from(core.acceptor.upto().0 - core.acceptor.commit().0).unwrap_or(usize::MAX);
        while self.window.len() > open {
            self.window_bytes -= self.window.pop_front().unwrap_or(0);
        }
    }

    fn confirm_reads<S: Storage>(&mut self, core: &mut Core<S>, round: u64) {
        let Some((index, askers)) = self.reads.confirm(round) else { return };
        for asker in askers {
            self.answer(core, asker, index);
        }
    }

    fn answer<S>(&self, core: &mut Core<S>, asker: Asker, index: Slot) {
        match asker {
            Asker::Own(id) => core.outbox.reads.push(ConfirmedRead { id, index }),
            Asker::Peer(to, read) => {
                core.send(to, Message::ReadIndexReply { ballot: self.ballot, read, index: Some(index) });
            }
        }
    }

    /// Whether a follower's question, asked when it had promised so much, confirms itself: it was asked after the reads
    /// that it is asked for, and together with this leader that follower is a majority, without which nothing can have
    /// been chosen at a higher ballot before.
    fn is_confirmed_by<S: Storage>(&self, core: &Core<S>, from: ReplicaId, promised: Ballot) -> bool {
        let two_suffice = core.majority() <= 2 || core.acceptor.mutation.breaks(Planted::QuestionConfirmsAlone);
        two_suffice
            && promised == self.ballot
            && self.barrier_chosen()
            && self.peers.get(&from).is_some_and(|peer| peer.votes)
    }

    /// A read of this replica's driver or a question of a follower.
    pub(crate) fn read(&mut self, asker: Asker) {
        self.reads.ask(asker);
    }

    // Time.

    /// Lets time pass; false if no majority has acknowledged the ballot for an election timeout.
    fn tick<S: Storage>(&mut self, core: &mut Core<S>) -> bool {
        let now = core.now.ticks;
        if self.transfer.take_if(|transfer| now >= transfer.deadline).is_some() {
            core.reply(Reply::TransferEnded { handed_over: false });
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now.after(core.settings.heartbeat);
            self.round += 1;
            self.urgent = true;
            self.quick = Quick { round: self.round, voters: BTreeSet::new() };
            if let Some(transfer) = &mut self.transfer {
                transfer.tell = true;
            }
        }
        let heard = self.voters().map(|peer| peer.heard_at).chain([now]);
        let heard = reached(heard, core.majority()).unwrap_or(now);
        now <= heard.after(core.settings.election_timeout_max)
    }

    fn begin_transfer<S: Storage>(&mut self, core: &mut Core<S>, target: Option<ReplicaId>) {
        let live = |peer: &Peer| core.now.ticks <= peer.heard_at.after(core.settings.election_timeout_min);
        let voters = || self.peers.iter().filter(|(_, peer)| peer.votes);
        let best = || voters().max_by_key(|(_, peer)| (live(peer), peer.upto)).map(|(id, _)| *id);
        let target = match target {
            Some(id) => Some(id).filter(|id| voters().any(|(voter, _)| voter == id)),
            None => best(),
        };
        let Some(target) = target.filter(|_| self.transfer.is_none()) else {
            core.reply(Reply::TransferEnded { handed_over: false });
            return;
        };
        let deadline = core.now.ticks.after(core.settings.election_timeout_max);
        self.transfer = Some(Transfer { target, tell: true, told: false, deadline });
        self.advance(core);
    }

    // Sending.

    /// Sends every peer what it may be sent: entries, the commit, the round.
    pub(crate) fn ready<S: Storage>(&mut self, core: &mut Core<S>) -> Result<(), StorageError> {
        let readable = self.barrier_chosen() || core.acceptor.mutation.breaks(Planted::ReadBeforeBarrier);
        let mut asks = false;
        if readable && self.reads.is_due() {
            self.round += 1;
            // The next heartbeat asks everybody, in case one of those few has just died.
            asks = self.quick.voters.len() >= core.majority() - 1;
            self.urgent |= !asks;
            self.reads.begin(self.round, self.chosen);
        }
        let urgent = std::mem::take(&mut self.urgent);
        let Leader { ballot, chosen: commit, round, .. } = *self;
        let (base, last) = (core.acceptor.base(), core.acceptor.upto());
        for (id, peer) in &mut self.peers {
            let mut sent = false;
            if peer.next < base {
                // The log was cut meanwhile.
                peer.is_behind(last);
            }
            while peer.next <= core.acceptor.upto() && peer.may_send(core.settings.inflight_bytes_max) {
                let start = peer.next;
                let records = core.acceptor.read(start, core.acceptor.upto(), core.settings.message_bytes_max)?;
                let Some(end) = records.last().map(|record| record.slot) else { break };
                let entries: Vec<Entry> = records.into_iter().map(|record| record.entry).collect();
                peer.sent(end, entries.iter().map(Entry::size).sum(), round);
                core.send(*id, Message::Accept { ballot, start, entries, commit, round });
                sent = true;
            }
            // An idle leader tells the commit at once; a busy one lets it travel with entries.
            let news = peer.flow == Flow::Streaming && peer.told < commit && peer.next > last;
            let asked = urgent || (asks && self.quick.voters.contains(id));
            if !sent && (asked || news) {
                core.send(*id, Message::Accept { ballot, start: peer.next, entries: Vec::new(), commit, round });
                sent = true;
            }
            if sent {
                peer.told = commit;
            }
        }
        // Where there is nobody to ask, or everything is confirmed already, nobody's answer will come.
        self.advance(core);
        Ok(())
    }
}

impl<S: Storage> Replica<S> {
    /// Begins to lead: proposes again, at the own ballot, all that phase one found, and then the barrier.
    pub(crate) fn lead(&mut self, mandate: Mandate) -> Result<(), StorageError> {
        let Mandate { ballot, adopted, promisers } = mandate;
        let core = &mut self.core;
        let now = core.now.ticks;
        core.acceptor.begin_run(ballot);
        let commit = core.acceptor.commit();
        let (mut before, time_ms) = core
            .acceptor
            .record(commit)?
            .map_or((Ballot::ZERO, 0), |record| (record.ballot, record.entry.stamp.time_ms));
        let mut leader = Leader {
            ballot,
            barrier: Slot::ZERO,
            chosen: commit,
            time_ms,
            round: 0,
            peers: BTreeMap::new(),
            window: VecDeque::new(),
            window_bytes: 0,
            heartbeat_at: now,
            urgent: false,
            reads: LeaderReads::default(),
            quick: Quick::default(),
            transfer: None,
        };
        for record in adopted.into_iter().filter(|record| record.slot > commit) {
            let time_ms = record.entry.stamp.time_ms;
            if time_ms <= leader.time_ms && record.ballot < before {
                // From here on it is the leftover of a leader that others have overtaken: see "Log time" in lib.rs.
                break;
            }
            (before, leader.time_ms) = (record.ballot, leader.time_ms.max(time_ms));
            leader.append(core, record.entry);
            if core.acceptor.is_changing() && !core.acceptor.mutation.breaks(Planted::ProposalsBehindConfiguration) {
                // Whoever proposed it had nothing chosen behind it by this configuration's majority, and nor may this
                // leader: the slots behind it are the next configuration's.
                break;
            }
        }
        let changing = core.acceptor.is_changing();
        let end = if changing { core.acceptor.upto() } else { core.acceptor.upto().next() };
        for id in core.peers() {
            let peer = match promisers.get(&id) {
                Some((commit, clock_ms, _)) => Peer::known(*commit, *clock_ms, now),
                None => Peer::unknown(end.next(), core.configuration.votes(id), now),
            };
            leader.peers.insert(id, peer);
        }
        // Behind a configuration nothing is proposed at this ballot, so the barrier is the next one's. This leader confirms
        // no reads: if the configuration was chosen before, its own majority may have answered what lies behind.
        leader.barrier = if changing { core.acceptor.upto().next() } else { leader.append_new(core, Payload::Noop, 0) };
        if core.acceptor.mutation.breaks(Planted::CommitAcrossBallots) {
            for (id, (_, _, last)) in &promisers {
                leader.peers.get_mut(id).expect("promisers are peers").upto = *last;
            }
        }
        // What a promiser knows to be chosen is chosen, whatever its ballot was: phase one has found that very value.
        let known = promisers.values().map(|(commit, _, _)| *commit).max().unwrap_or(commit);
        leader.raise_chosen(core, known);
        leader.tick(core);
        core.campaigns_failed = 0;
        self.become_state(State::Leader(leader));
        Ok(())
    }

    /// Lets time pass for a leader; true if it has lost its majority.
    pub(crate) fn tick_leader(&mut self) -> bool {
        let State::Leader(leader) = &mut self.state else { return false };
        let led = leader.tick(&mut self.core);
        leader.advance(&mut self.core);
        !led
    }

    /// Something became durable here: perhaps more is chosen.
    pub(crate) fn advance_leader(&mut self) {
        if let State::Leader(leader) = &mut self.state {
            leader.advance(&mut self.core);
        }
    }

    /// A follower has made entries durable, or acknowledges a heartbeat.
    pub(crate) fn on_accepted(&mut self, from: ReplicaId, message: &Message) {
        let Message::Accepted { ballot, upto, round, clock_ms, applied } = *message else { return };
        let State::Leader(leader) = &mut self.state else { return };
        let (now, last) = (self.core.now.ticks, self.core.acceptor.upto());
        let (own_round, needed) = (leader.round, self.core.majority() - 1);
        let Some(peer) = leader.peer_of(from, ballot) else { return };
        if upto > last || round > own_round {
            self.core.dropped.0 += 1;
            return;
        }
        peer.heard_at = now;
        peer.round = peer.round.max(round);
        peer.clock_ms = clock_ms;
        peer.applied = peer.applied.max(applied);
        peer.accepted(upto);
        if peer.votes {
            leader.quick.answered(from, round, needed);
        }
        leader.advance(&mut self.core);
    }

    /// A refusal: for good, if a higher ballot is promised; else of a hole, which acknowledges the ballot all the same.
    pub(crate) fn on_nack(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        promised: Ballot,
        want: Slot,
        round: u64,
    ) -> Result<(), StorageError> {
        match &mut self.state {
            State::Follower(_) | State::PreCandidate(_) => Ok(()),
            State::Candidate(candidate) => {
                if candidate.ballot() == ballot && promised > ballot {
                    self.start_pre_vote()
                } else {
                    Ok(())
                }
            }
            State::Leader(leader) => {
                if leader.ballot != ballot {
                    return Ok(());
                }
                let called = |transfer: &Transfer| transfer.told && transfer.target == promised.replica;
                if promised > ballot && leader.transfer.as_ref().is_some_and(called) {
                    // The campaign that this leader called for: its questions wait for a disk, its refusals do not.
                    self.core.expect_leader(None);
                    self.follow(None);
                    return Ok(());
                }
                if promised > ballot {
                    // Perhaps a candidate that failed has left a promise behind: campaign again, above it. Perhaps
                    // somebody else leads: then the pre-vote fails.
                    return self.start_pre_vote();
                }
                let (base, last) = (self.core.acceptor.base(), self.core.acceptor.upto());
                let (now, own_round) = (self.core.now.ticks, leader.round);
                let Some(peer) = leader.peer_of(from, ballot) else { return Ok(()) };
                if want > last.next() || round > own_round {
                    self.core.dropped.0 += 1;
                    return Ok(());
                }
                peer.heard_at = now;
                peer.round = peer.round.max(round);
                if want < base {
                    peer.is_behind(last);
                    self.core.send(from, Message::Behind { ballot, base });
                } else {
                    peer.wants(want, round);
                }
                leader.advance(&mut self.core);
                Ok(())
            }
        }
    }

    /// A follower's connection broke.
    pub(crate) fn on_peer_reset(&mut self, peer: ReplicaId) {
        if let State::Leader(leader) = &mut self.state
            && let Some(state) = leader.peers.get_mut(&peer)
        {
            state.reset();
            if leader.quick.voters.remove(&peer) && leader.reads.is_under_way() {
                // Reads may wait for its word alone.
                leader.urgent = true;
            }
        }
    }

    /// Asked for an index by a follower, which had promised so much when it asked, if it said so.
    pub(crate) fn on_read_index(&mut self, from: ReplicaId, read: ReadId, promised: Option<Ballot>) {
        match &mut self.state {
            State::Leader(leader) => {
                let asker = Asker::Peer(from, read);
                if promised.is_some_and(|promised| leader.is_confirmed_by(&self.core, from, promised)) {
                    leader.answer(&mut self.core, asker, leader.chosen);
                } else {
                    leader.read(asker);
                }
            }
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => {
                let ballot = self.core.acceptor.promised();
                self.core.send(from, Message::ReadIndexReply { ballot, read, index: None });
            }
        }
    }

    /// Changes the configuration, if this replica leads.
    pub(crate) fn on_reconfigure(&mut self, id: ProposalId, change: &Change) {
        let leader = self.leader();
        match &mut self.state {
            State::Leader(leader) => leader.reconfigure(&mut self.core, id, change),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => {
                self.core.reply(Reply::NotLeader { id, leader });
            }
        }
    }

    /// Hands the leadership over, if it is here.
    pub(crate) fn on_transfer(&mut self, target: Option<ReplicaId>) {
        match &mut self.state {
            State::Leader(leader) => leader.begin_transfer(&mut self.core, target),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => {
                self.core.reply(Reply::TransferEnded { handed_over: true });
            }
        }
    }
}
