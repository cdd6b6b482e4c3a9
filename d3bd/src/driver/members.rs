//! Who belongs to the cluster: what people ask for, and what follows from it. The leader promotes a learner that has
//! caught up, removes whom a new voter replaces, and raises the execution version when every member has it.

use std::collections::BTreeMap;

use d3b::{DiskId, ReplicaId, Slot};
use d3b_paxos::formation::FormationMessage;
use d3b_paxos::types::{Change, Configuration, ProposalId, Ticks};
use d3b_paxos::{Input, Replica, Storage, StorageError};

use super::{Driver, Effect, GOSSIP_INTERVAL, Stage, Ticket};
use crate::log::Proof;
use crate::peer::{MemberFailure, MemberRequest, PeerMessage};

/// How many requests may wait for an answer of the leader.
const ASKED_MAX: usize = 64;
/// A learner that is so many slots behind, and still needs no file, catches up within a round trip or two.
const CLOSE: u64 = 256;
/// How often the leader looks for what is to be changed.
pub(super) const MEMBERS_INTERVAL: Ticks = Ticks(200);

/// What a member has said about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct About {
    /// The newest execution version that it can apply.
    pub(super) execution: u32,
    /// How many files it has yet to fetch; `None` while it does not know.
    pub(super) wanting: Option<u64>,
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Client(Ticket),
    Peer(ReplicaId, u64),
    /// The leader itself.
    Nobody,
}

/// The books of it.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Changes that the core has yet to answer for.
    proposed: BTreeMap<ProposalId, Asker>,
    /// What clients of this replica wait for, and until when.
    asked: BTreeMap<Ticket, Ticks>,
    pub(super) about: BTreeMap<ReplicaId, About>,
    /// How many files this replica has yet to fetch; `None` while it does not know.
    pub(super) wanting: Option<u64>,
    /// When to look next for what is to be changed.
    pub(super) look_at: Ticks,
    /// The configuration that the outside was told of last.
    told: Option<Configuration>,
}

impl Members {
    /// Whether a reply of the core is to one of these.
    pub(super) fn is_ours(&self, id: ProposalId) -> bool {
        self.proposed.contains_key(&id)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.proposed.len() + self.asked.len()
    }

    /// When somebody's time is up.
    pub(super) fn next_deadline(&self) -> Option<Ticks> {
        self.asked.values().min().copied()
    }
}

impl<S: Storage + Clone, D: Proof> Driver<S, D> {
    /// A client of this replica asks.
    pub(super) fn begin_member_request(
        &mut self,
        ticket: Ticket,
        request: MemberRequest,
        deadline: Ticks,
    ) -> Result<(), StorageError> {
        let leader = self.led_by.0.filter(|_| self.unavailable().is_none());
        match leader {
            None => self.end_member_request(Asker::Client(ticket), Err(MemberFailure::NoLeader)),
            Some(leader) if leader == self.me() => self.ask_core(Asker::Client(ticket), request)?,
            Some(_) if self.members.asked.len() >= ASKED_MAX => {
                self.end_member_request(Asker::Client(ticket), Err(MemberFailure::Overloaded));
            }
            Some(leader) => {
                self.members.asked.insert(ticket, deadline);
                let message = PeerMessage::MemberRequest { id: ticket.0, request };
                self.effects.push(Effect::Send { to: leader, message });
            }
        }
        Ok(())
    }

    /// A peer asks for a client of its own.
    pub(super) fn handle_member_request(
        &mut self,
        from: ReplicaId,
        id: u64,
        request: MemberRequest,
    ) -> Result<(), StorageError> {
        let asker = Asker::Peer(from, id);
        if self.led_by.0 != Some(self.me()) {
            self.end_member_request(asker, Err(MemberFailure::NoLeader));
            return Ok(());
        }
        if self.members.proposed.len() >= ASKED_MAX {
            self.end_member_request(asker, Err(MemberFailure::Overloaded));
            return Ok(());
        }
        self.ask_core(asker, request)
    }

    /// The leader has answered.
    pub(super) fn handle_member_reply(&mut self, id: u64, result: Result<Slot, MemberFailure>) {
        let ticket = Ticket(id);
        if self.members.asked.remove(&ticket).is_some() {
            self.effects.push(Effect::MemberRequestDone { ticket, result });
        }
    }

    /// Asks the core, where nothing speaks against it.
    fn ask_core(&mut self, asker: Asker, request: MemberRequest) -> Result<(), StorageError> {
        let change = match request {
            MemberRequest::Transfer(to) => {
                self.step(Input::Transfer(to))?;
                let commit = self.replica().map_or(Slot::ZERO, |replica| replica.status().commit);
                self.end_member_request(asker, Ok(commit));
                return Ok(());
            }
            MemberRequest::Change(change) => change,
        };
        if change == (Change::Remove { id: self.me() })
            && self.replica().is_some_and(|it| it.configuration().voters().count() > 1)
        {
            self.step(Input::Transfer(None))?;
            self.end_member_request(asker, Err(MemberFailure::HandingOver));
            return Ok(());
        }
        if let Err(failure) = self.check_change(&change) {
            self.end_member_request(asker, Err(failure));
            return Ok(());
        }
        self.next_proposal += 1;
        let id = ProposalId(self.next_proposal);
        self.members.proposed.insert(id, asker);
        self.step(Input::Reconfigure { id, change })
    }

    /// The core has answered for a change.
    pub(super) fn end_change(&mut self, id: ProposalId, result: Result<Slot, MemberFailure>) {
        if let Some(asker) = self.members.proposed.remove(&id) {
            self.end_member_request(asker, result);
        }
    }

    fn end_member_request(&mut self, asker: Asker, result: Result<Slot, MemberFailure>) {
        match asker {
            Asker::Client(ticket) => self.effects.push(Effect::MemberRequestDone { ticket, result }),
            Asker::Peer(to, id) => {
                let message = PeerMessage::MemberReply { id, result };
                self.effects.push(Effect::Send { to, message });
            }
            Asker::Nobody => {
                if let Err(failure) = result {
                    tracing::debug!(%failure, "a change of the configuration must wait");
                }
            }
        }
    }

    /// What the core cannot know: who is reachable, and what builds the members run.
    fn check_change(&self, change: &Change) -> Result<(), MemberFailure> {
        let Some(replica) = self.replica() else { return Err(MemberFailure::NoLeader) };
        let configuration = replica.configuration();
        let next = configuration.changed(change, Slot::ZERO).map_err(MemberFailure::Refused)?;
        let reachable = next.voters().filter(|id| *id == self.me() || self.is_reachable(*id)).count();
        let (voters, needed) = (next.voters().count(), next.majority());
        // Adding a learner asks nobody for a vote more than before.
        let votes_change = !matches!(change, Change::Add { .. } | Change::Execution { .. });
        if votes_change && reachable < needed {
            return Err(MemberFailure::Quorum { reachable, voters, needed });
        }
        let leaving = match change {
            Change::Remove { id } => Some(*id),
            Change::Add { replaces, .. } => *replaces,
            Change::Promote { .. } | Change::Execution { .. } => None,
        };
        // Whoever forms a cluster may be of the first version, which does not know of changes.
        if configuration.to_founding().is_some() {
            let mut staying = configuration.members.keys().filter(|id| **id != self.me() && Some(**id) != leaving);
            if let Some(id) = staying.find(|id| !self.members.about.contains_key(id)) {
                return Err(MemberFailure::Version(*id));
            }
        }
        Ok(())
    }

    /// The leader's own part: one step of what the configuration has begun.
    pub(super) fn look_after_members(&mut self) -> Result<(), StorageError> {
        let Some(replica) = self.replica() else { return Ok(()) };
        let status = replica.status();
        if status.role != d3b_paxos::Role::Leader || !status.barrier_chosen || status.changing {
            return Ok(());
        }
        match self.next_change(replica) {
            Some(change) => {
                tracing::info!(?change, "changes the configuration");
                self.ask_core(Asker::Nobody, MemberRequest::Change(change))
            }
            None => Ok(()),
        }
    }

    fn next_change(&self, replica: &Replica<S>) -> Option<Change> {
        let (configuration, status) = (replica.configuration(), replica.status());
        for (id, member) in &configuration.members {
            if member.votes {
                let replaced = member.replaces.filter(|old| configuration.members.contains_key(old));
                if let Some(replaced) = replaced.filter(|_| self.has_all_files(*id, configuration.slot)) {
                    return Some(Change::Remove { id: replaced });
                }
                continue;
            }
            let peer = status.peers.get(id)?;
            let has_files = self.members.about.get(id).is_some_and(|about| about.wanting == Some(0));
            let close = |slot: Slot| slot.0 + CLOSE >= status.commit.0;
            let applied = peer.applied.max(self.applied_by.get(id).copied().unwrap_or(Slot::ZERO));
            if peer.reachable && close(peer.upto) && close(applied) && has_files {
                return Some(Change::Promote { id: *id });
            }
        }
        let others = configuration.members.keys().filter(|id| **id != self.me());
        let mut executions = others.map(|id| self.members.about.get(id).map(|about| about.execution));
        #[cfg(feature = "planted-bugs")]
        if self.breaks(super::Planted::ExecutionOfMajority) {
            let newer = executions.clone().flatten().filter(|version| *version > configuration.execution).count();
            let risen = self.start.execution > configuration.execution && 2 * (newer + 1) > configuration.members.len();
            return risen.then_some(Change::Execution { version: self.start.execution });
        }
        let lowest = executions.try_fold(self.start.execution, |lowest, one| Some(lowest.min(one?)))?;
        (lowest > configuration.execution).then_some(Change::Execution { version: lowest })
    }

    /// Whether a member has said that it lacks no file, and that after it had applied so much. Files that came with the last
    /// entries before it voted may be nowhere but at whom it replaces.
    fn has_all_files(&self, id: ReplicaId, upto: Slot) -> bool {
        let (wanting, applied) = if id == self.me() {
            (self.members.wanting, self.applied)
        } else {
            let wanting = self.members.about.get(&id).and_then(|about| about.wanting);
            (wanting, self.applied_by.get(&id).copied().unwrap_or(Slot::ZERO))
        };
        wanting == Some(0) && applied >= upto
    }

    /// Tells the outside of a configuration that was adopted.
    pub(super) fn notice_configuration(&mut self) {
        let Some(replica) = self.replica() else { return };
        let configuration = replica.configuration();
        if self.members.told.as_ref() == Some(configuration) {
            return;
        }
        let configuration = configuration.clone();
        let me = self.me();
        if let Some(told) = self.members.told.replace(configuration.clone()) {
            let join = |configuration: &Configuration| {
                configuration.voters().map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
            };
            let (voters, before) = (join(&configuration), join(&told));
            tracing::info!(epoch = configuration.epoch.0, voters, before, "the configuration has changed");
        }
        for gone in self.heard_at.keys().copied().collect::<Vec<_>>() {
            if !configuration.members.contains_key(&gone) {
                self.heard_at.remove(&gone);
                self.applied_by.remove(&gone);
                self.members.about.remove(&gone);
            }
        }
        if !configuration.members.contains_key(&me) {
            // It may be the only one that knows: its core goes on telling those who ask.
            let reason = format!("replica {me} was removed from the cluster (epoch {})", configuration.epoch.0);
            tracing::error!(reason, "this replica takes no part any more");
            self.removed = Some(reason);
        }
        self.effects.push(Effect::Connect(configuration));
    }

    /// A member knows a newer configuration. It is adopted when the log brings it; if this replica is not in it, nobody
    /// will bring anything any more.
    pub(super) fn handle_superseded(&mut self, configuration: &Configuration) {
        let me = self.me();
        let named = configuration.members.get(&me).map(|member| member.disk);
        if named == Some(self.start.settings.disk) {
            self.effects.push(Effect::Connect(configuration.clone()));
            // Where there is a leader it brings what is missing. Where there is none, the others may wait for this
            // replica's vote in that configuration: it takes it over as one that joins does.
            let newer = self.replica().is_some_and(|replica| replica.configuration().epoch < configuration.epoch);
            if newer && self.led_by.0.is_none() {
                self.effects.push(Effect::StartOver(configuration.clone()));
            }
        } else {
            self.leave(format!("replica {me} was removed from the cluster (epoch {})", configuration.epoch.0));
        }
    }

    /// A replica tells what it can do. One that is no member any more may not know: nobody sends it anything, and one that
    /// only learned asks nobody for a vote.
    pub(super) fn handle_about(&mut self, from: ReplicaId, execution: u32, wanting: Option<u64>) {
        let Some(replica) = self.replica() else { return };
        let configuration = replica.configuration();
        if configuration.members.contains_key(&from) {
            self.members.about.insert(from, About { execution, wanting });
        } else if from < configuration.next_id {
            self.tell_configuration(from);
        }
    }

    /// Tells a replica the configuration in effect.
    pub(super) fn tell_configuration(&mut self, to: ReplicaId) {
        let Some(replica) = self.replica() else { return };
        let hello = FormationMessage::formed(self.start.settings.disk, replica.configuration());
        self.effects.push(Effect::Send { to, message: PeerMessage::Formation(hello) });
    }

    /// A member tells the configuration in effect.
    pub(super) fn hear_configuration(&mut self, from: ReplicaId, disk: DiskId, configuration: &Configuration) {
        let Some(replica) = self.replica() else { return };
        let known = replica.configuration();
        let is_peer = known.members.get(&from).is_some_and(|member| member.disk == disk);
        if is_peer && configuration.cluster == known.cluster && configuration.epoch > known.epoch {
            self.handle_superseded(configuration);
        }
    }

    fn leave(&mut self, reason: String) {
        tracing::error!(reason, "this replica takes no part any more");
        self.stage = Stage::Outcast(reason);
    }

    /// Tells a peer that has just been heard from; it need not wait for the next round.
    pub(super) fn tell_about_to(&mut self, to: ReplicaId) {
        if self.replica().is_some_and(|replica| replica.configuration().members.contains_key(&to)) {
            let message = PeerMessage::About { execution: self.start.execution, wanting: self.members.wanting };
            self.effects.push(Effect::Send { to, message });
        }
    }

    /// Tells the others what this replica's build can do, and what it lacks.
    pub(super) fn tell_about(&mut self) {
        let message = PeerMessage::About { execution: self.start.execution, wanting: self.members.wanting };
        self.send_to_members(|_| true, &message);
        // Who was added and has not heard of it may know nobody any more that is a member still.
        let Some(replica) = self.replica().filter(|replica| replica.leader() == Some(self.me())) else { return };
        let learners = replica.configuration().members.iter().filter(|(_, member)| !member.votes);
        let unheard = learners.map(|(id, _)| *id).filter(|id| !self.members.about.contains_key(id));
        for id in unheard.collect::<Vec<_>>() {
            self.tell_configuration(id);
        }
    }

    pub(super) fn expire_member_requests(&mut self) {
        let now = self.now.ticks;
        let expired: Vec<Ticket> =
            self.members.asked.iter().filter(|(_, deadline)| **deadline <= now).map(|(ticket, _)| *ticket).collect();
        for ticket in expired {
            self.members.asked.remove(&ticket);
            self.effects.push(Effect::MemberRequestDone { ticket, result: Err(MemberFailure::NoLeader) });
        }
    }

    pub(super) fn replica(&self) -> Option<&Replica<S>> {
        match &self.stage {
            Stage::Running(replica) => Some(replica),
            _ => None,
        }
    }

    /// Whether a member was heard from within the last few heartbeats.
    pub(super) fn is_reachable(&self, id: ReplicaId) -> bool {
        // A follower hears little of other followers but their gossip.
        let recently = self.now.ticks.0.saturating_sub(3 * GOSSIP_INTERVAL.0);
        self.heard_at.get(&id).is_some_and(|heard| heard.0 >= recently)
    }
}
