//! The operator of a simulated cluster: asks for other members and other leaders, whatever else goes on.

use std::collections::BTreeSet;

use d3b::{ReplicaId, Slot};
use d3b_paxos::types::{Change, Configuration, Ticks};
use d3bd::driver::{Event, Phase, Ticket};
use d3bd::peer::{MemberFailure, MemberRequest};

use super::machine::Machine;
use super::node::Node;
use super::oracle::{Violation, demand};
use super::random::Random;
use super::world::{Happening, World, address, disk_id};

/// Longer than any message is on its way or held by a process that is stopped.
pub(super) const ASKED_US: u64 = 10_000_000;
/// No more replicas than that are ever made.
const NODES_MAX: usize = 14;
/// Nor are more asked to belong to a cluster.
const MEMBERS_MAX: usize = 8;

/// Something that was asked for: it may still happen, whatever the answer was.
#[derive(Debug)]
struct Asked {
    at: u64,
    of: ReplicaId,
    ticket: Ticket,
    change: Option<Change>,
    /// Whether it must be refused.
    wrong: bool,
}

/// The operator.
#[derive(Debug)]
pub struct Operator {
    random: Random,
    asked: Vec<Asked>,
    /// Names requests; clients' have lower numbers.
    ticket: u64,
}

impl Operator {
    /// One with chance of its own.
    #[must_use]
    pub fn new(random: Random) -> Operator {
        Operator { random, asked: Vec::new(), ticket: 1 << 60 }
    }

    /// Whether anything that was asked for may still happen.
    #[must_use]
    pub fn waits(&self, now: u64) -> bool {
        self.asked.iter().any(|asked| asked.at + ASKED_US > now)
    }

    /// Who may yet be removed because somebody asked for it.
    fn removals(&self, now: u64) -> BTreeSet<ReplicaId> {
        let fresh = self.asked.iter().filter(|asked| asked.at + ASKED_US > now);
        let removed = fresh.filter_map(|asked| match asked.change {
            Some(Change::Remove { id }) => Some(id),
            Some(Change::Add { .. } | Change::Promote { .. } | Change::Execution { .. }) | None => None,
        });
        removed.collect()
    }
}

impl<M: Machine> World<'_, M> {
    /// Those that the group must do without, for good or until they are rebuilt.
    pub(super) fn lost(&self) -> BTreeSet<ReplicaId> {
        let missing = |node: &&Node<M>| node.is_lost() || node.is_ill() || node.catches_rot() || node.stopped;
        self.nodes.values().filter(missing).map(|node| node.id).collect()
    }

    /// Whether a majority is left without these, whatever becomes of the changes that are under way.
    pub(super) fn tolerates(&self, without: &BTreeSet<ReplicaId>) -> bool {
        self.tolerates_removing(without, None)
    }

    fn tolerates_removing(&self, without: &BTreeSet<ReplicaId>, one: Option<ReplicaId>) -> bool {
        let mut leaving = self.operator.removals(self.time);
        leaving.extend(one);
        let survives = |configuration: &Configuration| {
            // A learner may be a voter soon, and whoever is well and leaves leaves the others with less.
            let replaced =
                |id: &ReplicaId| configuration.members.values().any(|it| it.votes && it.replaces == Some(*id));
            let leaves = |id: &ReplicaId| (leaving.contains(id) || replaced(id)) && !without.contains(id);
            let voters = configuration.voters().filter(|id| !leaves(id)).count();
            let missing = configuration.members.keys().filter(|id| without.contains(id)).count();
            voters > 0 && missing <= (voters - 1) / 2
        };
        let before = self.oracle.configuration_before_last().filter(|_| !self.is_adopted(without));
        self.oracle.possible_configurations().chain(before).all(survives)
    }

    /// Whether a majority that is left knows that the last configuration is in effect; else that of the one before must
    /// tell.
    fn is_adopted(&self, without: &BTreeSet<ReplicaId>) -> bool {
        let last = self.oracle.last_configuration();
        let knows = |id: &ReplicaId| {
            let adopted = self.nodes[id].disk.log.configuration();
            !without.contains(id) && adopted.is_some_and(|adopted| adopted.epoch >= last.epoch)
        };
        last.voters().filter(knows).count() >= last.majority()
    }

    /// The operator does something, and plans to do so again.
    pub(super) fn operate(&mut self) -> Result<(), Violation> {
        let Some(interval) = self.scenario.changes_us.filter(|_| self.is_rough) else { return Ok(()) };
        let delay = self.random.around(interval);
        self.after(delay, Happening::Operator);
        let time = self.time;
        self.operator.asked.retain(|asked| asked.at + ASKED_US > time);
        let last = self.oracle.last_configuration().clone();
        let members: Vec<ReplicaId> = last.members.keys().copied().collect();
        let gone = |id: &ReplicaId| self.nodes[id].is_lost() || self.nodes[id].condemned;
        let lost: Vec<ReplicaId> = members.iter().copied().filter(gone).collect();
        let random = &mut self.operator.random;
        let some = *random.pick(&members);
        match random.below(12) {
            0..3 => self.ask_to_add(&last, None),
            3..6 => {
                let replaced = lost.first().copied().unwrap_or(some);
                self.ask_to_add(&last, Some(replaced))
            }
            6..9 => {
                let id = lost.first().copied().unwrap_or(some);
                if !self.tolerates_removing(&self.lost(), Some(id)) {
                    return Ok(());
                }
                self.ask(Some(Change::Remove { id }), MemberRequest::Change(Change::Remove { id }), false)
            }
            9 => {
                // An id that a founder has or had is never free again.
                let id = ReplicaId(u32::try_from(random.between(1, u64::from(self.scenario.replicas))).expect("few"));
                let change = Change::Add { id, disk: disk_id(id, 9), peer: address(id), replaces: None };
                self.ask(None, MemberRequest::Change(change), true)
            }
            _ => {
                let to = random.percent(50).then_some(some);
                self.ask(None, MemberRequest::Transfer(to), false)
            }
        }
    }

    /// Asks for one more: a fresh one, or one that was made before and not let in.
    fn ask_to_add(&mut self, last: &Configuration, replaces: Option<ReplicaId>) -> Result<(), Violation> {
        if last.members.len() >= MEMBERS_MAX {
            return Ok(());
        }
        let waiting = self.nodes.values().find(|node| node.joins && node.id >= last.next_id && !node.is_lost());
        let id = match waiting.map(|node| node.id) {
            Some(id) => id,
            None if self.nodes.len() >= NODES_MAX => return Ok(()),
            None => {
                let newest = self.nodes.keys().next_back().map_or(0, |id| id.0);
                let id = ReplicaId(newest.max(last.next_id.0 - 1) + 1);
                let greets = last.members.iter().map(|(id, member)| (*id, member.peer.clone()));
                let execution = self.nodes.values().map(|node| node.execution).max().unwrap_or(1);
                let node = Node {
                    greets: greets.chain([(id, address(id))]).collect(),
                    joins: true,
                    execution,
                    ..Node::new(id, disk_id(id, 0))
                };
                self.nodes.insert(id, node);
                self.after(0, Happening::Start { at: id });
                id
            }
        };
        let change = Change::Add { id, disk: self.nodes[&id].disk.id, peer: address(id), replaces };
        self.ask(Some(change.clone()), MemberRequest::Change(change), false)
    }

    /// Asks any replica.
    fn ask(&mut self, change: Option<Change>, request: MemberRequest, wrong: bool) -> Result<(), Violation> {
        let ids = self.ids();
        let of = *self.operator.random.pick(&ids);
        let patience_ms = self.operator.random.between(100, 5_000);
        let time = self.time;
        let node = self.node(of);
        let now = node.now(time);
        if node.process.is_none() {
            return Ok(());
        }
        self.operator.ticket += 1;
        let ticket = Ticket(self.operator.ticket);
        let deadline = Ticks(now.ticks.0 + patience_ms);
        self.operator.asked.push(Asked { at: time, of, ticket, change, wrong });
        self.note(1_400 + u64::from(of.0), |_| format!("*** {of} is asked for {request:?}"));
        self.event(of, Event::MemberRequest { ticket, request, deadline })
    }

    /// A driver tells what came of a request.
    pub(super) fn member_request_done(
        &mut self,
        id: ReplicaId,
        ticket: Ticket,
        result: Result<Slot, MemberFailure>,
    ) -> Result<(), Violation> {
        self.note(1_500 + u64::from(id.0), |_| format!("{id} answers {ticket:?}: {result:?}"));
        let asked = self.operator.asked.iter().find(|asked| (asked.of, asked.ticket) == (id, ticket));
        let Some(asked) = asked else { return Ok(()) };
        demand!(!(asked.wrong && result.is_ok()), "{id} says that an id may be used again");
        self.answered_changes += u32::from(result.is_ok() && asked.change.is_some());
        Ok(())
    }

    /// The members that are well, or can be.
    pub(super) fn well(&self) -> Vec<ReplicaId> {
        let members = self.oracle.last_configuration().members.keys();
        let lost = self.lost();
        members.copied().filter(|id| !lost.contains(id)).collect()
    }

    /// Whether nothing is left of what the last configuration has begun, as far as those that are well can do it.
    pub(super) fn is_at_rest(&self) -> bool {
        let (last, well) = (self.oracle.last_configuration(), self.well());
        let member = |id: &ReplicaId| last.members.get(id);
        let unfinished = |id: &ReplicaId| {
            member(id).is_some_and(|it| !it.votes || it.replaces.is_some_and(|replaced| member(&replaced).is_some()))
        };
        // A change that somebody has proposed may be chosen when the next leader is made.
        let leads = |id: &ReplicaId| {
            let status = self.nodes[id].process.as_ref().map(|process| process.driver.status());
            status.is_some_and(|it| it.phase == Phase::Leader && it.epoch == last.epoch && it.commit == it.last)
        };
        self.nodes.keys().any(leads) && !well.iter().any(unfinished)
    }

    /// Replicas that were members, run, and take no part in spite of it or because of it: all of them know.
    pub(super) fn ignorant(&self) -> Vec<ReplicaId> {
        let last = self.oracle.last_configuration();
        let ignorant = |node: &&Node<M>| {
            let was_member = node.disk.log.configuration().is_some() && !last.members.contains_key(&node.id);
            let phase = node.process.as_ref().map(|process| process.driver.status().phase);
            // Where all that it knows of are gone too, cut off or quarantined, nobody tells it.
            let known = node.disk.log.configuration();
            let tells = |id: &ReplicaId| {
                let peer = &self.nodes[id];
                last.members.contains_key(id) && !peer.stopped && !peer.condemned && !peer.is_lost()
            };
            let is_told = known.is_some_and(|known| known.members.keys().any(tells));
            was_member && is_told && !node.stopped && !node.condemned && !matches!(phase, Some(Phase::Outcast { .. }))
        };
        self.nodes.values().filter(ignorant).map(|node| node.id).collect()
    }
}
