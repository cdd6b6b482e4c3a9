//! The course of a run, and what is demanded at its end.

use std::collections::BTreeMap;

use d3b::ReplicaId;
use d3bd::driver::Load;

use super::clients::{Fate, Stage};
use super::machine::{Audit, Machine};
use super::members::ASKED_US;
use super::oracle::{Violation, demand};
use super::workload::Register;
use super::world::{Happening, World};
use crate::linearizability::{self, Action};

/// How long a healed group may take for anything, in microseconds of simulated time.
/// One that was told of a snapshot by a message that was lost asks again after thirty seconds.
const PROGRESS_US: u64 = 100_000_000;
/// Longer than any client waits, also for a file that a peer says to be fetching, by the slowest clock.
const FORGOTTEN_US: u64 = 25_000_000;

impl<M: Machine> World<'_, M> {
    /// A whole life.
    pub(super) fn live(&mut self) -> Result<(), Violation> {
        let scenario = self.scenario.clone();
        self.note(0, |_| format!("{scenario:?}"));
        if !scenario.forms {
            self.form();
        }
        for id in self.ids() {
            let delay = self.random.below(50_000);
            self.after(delay, Happening::Start { at: id });
        }
        if M::DATABASES {
            self.set_up()?;
        }
        for index in 0..self.clients.len() {
            let delay = self.random.around(scenario.rest_us);
            if self.clients[index].script.is_none() {
                self.wake(index, delay);
            }
        }
        self.after(0, Happening::Fault);
        self.after(0, Happening::Operator);
        let end = self.time + scenario.safety_us;
        self.run_until(end, |_| false)?;
        self.recover()
    }

    /// Makes the tables before anything goes wrong.
    fn set_up(&mut self) -> Result<(), Violation> {
        let first = self.ids()[0];
        self.add_scripted(first, vec![(Register::SetUp(0), Action::Write(0)), (Register::SetUp(1), Action::Write(0))]);
        let end = self.time + PROGRESS_US;
        let index = self.clients.len() - 1;
        let done = self.run_until(end, |world| matches!(world.clients[index].stage, Stage::Done))?;
        demand!(done, "the tables were not made in time");
        Ok(())
    }

    /// Heals a majority, keeps a minority broken, and demands that the group goes on.
    fn recover(&mut self) -> Result<(), Violation> {
        self.is_rough = false;
        self.flips_blobs = false;
        self.ambush = false;
        self.network.become_fair();
        self.oracle.check_log_time()?;
        for node in self.nodes.values_mut() {
            // Pieces that nobody has decided on are lost, and whoever gave them gives no more.
            node.staged.take_if(|staged| staged.snapshot.rotten);
        }
        let well = self.choose_healthy()?;
        let all: Vec<ReplicaId> = self.ids().into_iter().filter(|id| !self.nodes[id].stopped).collect();
        self.note(2_000, |_| format!("*** all is well again with {well:?}"));
        let newest = self.nodes.values().map(|node| node.execution).max().unwrap_or(1);
        for id in all {
            self.mend(id);
            if self.node(id).execution < newest && well.contains(&id) {
                self.crash(id, false)?;
                self.node(id).execution = newest;
            }
            self.after(0, Happening::Start { at: id });
            self.after(0, Happening::Resume { at: id });
        }
        let healthy = self.come_to_rest()?;
        self.demand_answers(&healthy)?;
        self.demand_repairs(PROGRESS_US)?;
        self.demand_version(PROGRESS_US)?;
        // One that was rebuilt may now take the place of another, which is removed then.
        let voters = self.come_to_rest()?;
        let rebuilt: Vec<ReplicaId> = voters.iter().copied().filter(|id| !healthy.contains(id)).collect();
        self.demand_answers(&rebuilt)?;
        let healthy = voters;
        let end = self.time + PROGRESS_US;
        let done = self.run_until(end, |world| {
            let applied: Vec<_> = healthy.iter().map(|id| world.nodes[id].applied()).collect();
            let all_over = world.waiting.is_empty() && applied[0] >= world.oracle.told();
            all_over && applied.iter().all(|slot| *slot == applied[0])
        })?;
        demand!(done, "healed replicas do not come to the same slot");
        if self.random.percent(10) {
            self.check_books(&healthy)?;
        }
        self.check_end(&healthy)
    }

    /// Demands that each of these lets its clients write and read.
    fn demand_answers(&mut self, replicas: &[ReplicaId]) -> Result<(), Violation> {
        let files = (0..self.scenario.registers).map(|file| (Register::File(file), Action::Read));
        let rows = (0..self.scenario.registers).map(|row| (Register::Row(row), Action::Read));
        let looks: Vec<_> = files.chain(rows).chain([(Register::Database, Action::Read)]).collect();
        for id in replicas {
            let mut todo = vec![(Register::Row(0), Action::Write(0)), (Register::File(0), Action::Write(0))];
            todo.extend(looks.iter().copied());
            self.add_scripted(*id, todo);
        }
        let end = self.time + PROGRESS_US;
        let done = self.run_until(end, |world| {
            let scripted = world.clients.iter().filter(|client| client.script.is_some());
            scripted.into_iter().all(|client| matches!(client.stage, Stage::Done))
        })?;
        demand!(done, "{replicas:?}, which are well, do not answer: {}", self.complaints());
        Ok(())
    }

    /// Every deadline is over after a while: whoever still stands in a driver's books was forgotten there.
    fn check_books(&mut self, healthy: &[ReplicaId]) -> Result<(), Violation> {
        self.run_until(self.time + FORGOTTEN_US, |_| false)?;
        for id in healthy {
            let load = self.nodes[id].process.as_ref().map(|process| process.driver.load()).unwrap_or_default();
            let empty = load == Load { batches: load.batches, ..Load::default() };
            demand!(empty, "nobody waits any more, and replica {id} still has {load:?}");
        }
        Ok(())
    }

    /// Lets changes of the members come to their end; who votes then, of those that are well.
    fn come_to_rest(&mut self) -> Result<Vec<ReplicaId>, Violation> {
        let end = self.time + ASKED_US;
        self.run_until(end, |world| !world.operator.waits(world.time))?;
        let end = self.time + PROGRESS_US;
        let rests = self.run_until(end, |world| world.is_at_rest() && world.ignorant().is_empty())?;
        let (last, well) = (self.oracle.last_configuration(), self.well());
        let (members, voters) = (&last.members, last.voters().filter(|id| well.contains(id)).collect());
        demand!(
            rests,
            "a healed majority of {members:?} ({:?}) does not end what it has begun, or {:?} does not learn of it: {}",
            last.epoch,
            self.ignorant(),
            self.complaints()
        );
        self.note(2_001, |_| format!("*** these vote: {voters:?}"));
        Ok(voters)
    }

    /// Who is to be well again: all members that can be, or a majority of them; the others stay down, stopped or cut off.
    fn choose_healthy(&mut self) -> Result<Vec<ReplicaId>, Violation> {
        let mut missing = self.lost();
        let members: Vec<ReplicaId> = self.oracle.last_configuration().members.keys().copied().collect();
        while self.is_formed() && self.random.percent(50) {
            let able: Vec<ReplicaId> = members.iter().copied().filter(|id| !missing.contains(id)).collect();
            if able.is_empty() {
                break;
            }
            let broken = *self.random.pick(&able);
            missing.insert(broken);
            if !self.tolerates(&missing) {
                missing.remove(&broken);
                break;
            }
            match self.random.below(3) {
                0 => self.crash(broken, false)?,
                1 => self.network.isolate(broken),
                _ => {
                    if let Some(process) = &mut self.node(broken).process {
                        process.paused = true;
                    }
                }
            }
            self.node(broken).stopped = true;
        }
        Ok(members.into_iter().filter(|id| !missing.contains(id)).collect())
    }

    /// Who still waits for what, for a message.
    pub(super) fn complaints(&self) -> String {
        let mut lines = Vec::new();
        for client in self.clients.iter().filter(|client| client.script.is_some()) {
            if let Stage::Sending(request) | Stage::Waiting { request, .. } = &client.stage {
                let replica = client.script.as_ref().map(|(replica, _)| *replica);
                lines.push(format!("{replica:?} {:?} {:?} x{}", request.action, request.register, request.attempts));
            }
        }
        for node in self.nodes.values() {
            let status = node.process.as_ref().map(|process| process.driver.status());
            let told = status.map(|status| {
                let at = (status.commit, status.applied, status.last);
                format!("{} leader {:?} ballot {} {at:?}", status.phase.name(), status.leader, status.ballot)
            });
            lines.push(format!("replica {}: {}", node.id, told.unwrap_or_else(|| "down".to_owned())));
        }
        lines.join("; ")
    }

    fn check_end(&mut self, healthy: &[ReplicaId]) -> Result<(), Violation> {
        self.oracle.check_log_time()?;
        self.abandon_everything();
        let mut audits: BTreeMap<ReplicaId, Audit> = BTreeMap::new();
        for id in healthy {
            let Some(process) = &self.node(*id).process else { continue };
            audits.insert(*id, process.machine.audit().map_err(Violation)?);
        }
        let Some((first, audit)) = audits.first_key_value() else { return Ok(()) };
        for (id, other) in &audits {
            demand!(
                audit.contents == other.contents,
                "{first} and {id} differ:\n{}\n{}",
                audit.contents,
                other.contents
            );
        }
        self.check_exactly_once(audit)?;
        self.check_files(healthy, *first)?;
        for (register, operations) in &self.history.operations {
            if let Err(error) = linearizability::check(operations) {
                return Err(Violation(format!("{register:?}: {error}")));
            }
        }
        Ok(())
    }

    fn check_exactly_once(&self, audit: &Audit) -> Result<(), Violation> {
        for (token, fate) in &self.history.fates {
            let count = audit.tokens.get(token).copied().unwrap_or(0);
            let right = match fate {
                Fate::Acknowledged => count == 1,
                Fate::Refused => count == 0,
                Fate::Unknown => count <= 1,
            };
            demand!(right, "request {token}, {fate:?}, has taken effect {count} times");
        }
        for (token, count) in &audit.tokens {
            demand!(*count <= 1, "request {token} has taken effect {count} times");
        }
        Ok(())
    }

    /// Whatever file is there can be fetched from a member that is well.
    fn check_files(&self, healthy: &[ReplicaId], any: ReplicaId) -> Result<(), Violation> {
        let Some(process) = &self.nodes[&any].process else { return Ok(()) };
        for digest in process.machine.referenced().map_err(Violation)? {
            let held = healthy.iter().any(|id| self.nodes[id].disk.blobs.holds(&digest));
            demand!(held, "no replica that is well holds the file {digest}");
        }
        Ok(())
    }
}
