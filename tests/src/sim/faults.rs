//! What goes wrong, and how it ends.

use std::collections::BTreeSet;

use d3b::{ReplicaId, Slot};
use d3bd::driver::Event;

use super::disk::Disk;
use super::machine::Machine;
use super::oracle::Violation;
use super::scenario::Fault;
use super::workload::Register;
use super::world::{Happening, World, disk_id};

impl<M: Machine> World<'_, M> {
    /// The next fault strikes, and the one after it is planned.
    pub(super) fn next_fault(&mut self) -> Result<(), Violation> {
        if !self.is_rough {
            return Ok(());
        }
        let interval = self.scenario.fault_interval_us;
        let delay = self.random.around(interval);
        self.after(delay, Happening::Fault);
        let ids = self.ids();
        let victim = *self.random.pick(&ids);
        let register = Register::Row(self.random.below(self.scenario.registers));
        self.check_stale(victim, register)?;
        if self.scenario.faults.is_empty() {
            return Ok(());
        }
        let faults = self.scenario.faults.clone();
        let fault = *self.random.pick(&faults);
        if self.strike(fault, victim, &ids)? {
            *self.faults.entry(fault).or_default() += 1;
            self.note(1_000, |_| format!("*** {} ({victim})", fault.name()));
        }
        Ok(())
    }

    /// Whether one more replica may be lost for good.
    pub(super) fn may_lose(&self, victim: ReplicaId) -> bool {
        let mut lost = self.lost();
        let members = &self.oracle.last_configuration().members;
        self.is_formed() && members.contains_key(&victim) && lost.insert(victim) && self.tolerates(&lost)
    }

    /// Whether some founder is left that has not lost its disk: if all had, they would found another cluster.
    fn may_forget(&self, victim: ReplicaId) -> bool {
        let mut founders = self.nodes.values().filter(|node| !node.joins && node.id != victim);
        founders.any(|node| !node.wiped && node.disk.log.configuration().is_some())
    }

    /// Whether every voter that is not lost knows the cluster: one of which some know that it is formed, and others not,
    /// needs all of them once more.
    pub(super) fn is_formed(&self) -> bool {
        let mut voters = self.oracle.last_configuration().voters().map(|id| &self.nodes[&id]);
        voters.all(|node| node.disk.log.configuration().is_some() || node.is_lost())
    }

    /// Some replica that believes that it leads.
    fn leader(&self) -> Option<ReplicaId> {
        self.nodes.values().find(|node| node.is_awake() && leads(node)).map(|node| node.id)
    }

    /// The leader dies just when something of its has been chosen.
    pub(super) fn spring_ambush(&mut self, leader: ReplicaId) -> Result<(), Violation> {
        self.note(1_001, |_| format!("*** {leader} falls into an ambush"));
        let power_cut = self.random.percent(50);
        self.crash(leader, power_cut)?;
        let duration = self.random.between(10_000, 3_000_000);
        self.after(duration, Happening::Start { at: leader });
        Ok(())
    }

    /// Carries out a fault; false if it cannot strike there.
    fn strike(&mut self, fault: Fault, victim: ReplicaId, ids: &[ReplicaId]) -> Result<bool, Violation> {
        let duration = self.random.between(10_000, 3_000_000);
        let other = *self.random.pick(ids);
        match fault {
            Fault::Kill | Fault::PowerCut => {
                if self.node(victim).process.is_none() {
                    return Ok(false);
                }
                self.crash(victim, fault == Fault::PowerCut)?;
                self.after(duration, Happening::Start { at: victim });
            }
            Fault::Pause => {
                let Some(process) = &mut self.node(victim).process else { return Ok(false) };
                process.paused = true;
                self.after(duration, Happening::Resume { at: victim });
            }
            Fault::Partition => {
                let side: BTreeSet<ReplicaId> = ids.iter().copied().filter(|_| self.random.percent(50)).collect();
                self.network.cut(&side, ids);
                self.after(duration, Happening::Heal);
            }
            Fault::LoneLeader => {
                let Some(leader) = self.leader() else { return Ok(false) };
                let mut side: BTreeSet<ReplicaId> = ids.iter().copied().filter(|_| self.random.percent(20)).collect();
                side.insert(leader);
                self.network.cut(&side, ids);
                self.after(duration, Happening::Heal);
            }
            Fault::Ambush => self.ambush = true,
            Fault::OneWay => {
                self.network.kill((victim, other));
                self.after(duration, Happening::Heal);
            }
            Fault::Flap => {
                let period = self.random.between(10_000, 400_000);
                self.network.flap((victim, other), period);
                self.after(duration, Happening::Heal);
            }
            Fault::Loss => self.network.lose_until(self.time + duration),
            Fault::ClockJump => {
                let by: i64 = *self.random.pick(&[100, 5_000, 60_000, 7_200_000]);
                let backward = self.random.percent(50);
                self.node(victim).clock_offset_ms += if backward { -by } else { by };
            }
            Fault::ClockDrift => self.node(victim).pace = self.random.between(900, 1_100),
            Fault::Transfer => {
                let Some(leader) = self.leader() else { return Ok(false) };
                self.event(leader, Event::HandOver)?;
            }
            Fault::SlowDisk => {
                self.node(victim).slowness = *self.random.pick(&[10, 100, 1_000]);
                self.after(10 * duration, Happening::Mend { at: victim });
            }
            Fault::FailedSync => self.node(victim).fails_next_sync = true,
            Fault::FullDisk => {
                self.node(victim).full = true;
                self.after(duration, Happening::Mend { at: victim });
            }
            Fault::Wipe => {
                if !self.may_lose(victim) || !self.may_forget(victim) {
                    return Ok(false);
                }
                self.crash(victim, true)?;
                let node = self.node(victim);
                node.disk = Disk::blank(disk_id(victim, 1));
                node.image = M::blank();
                (node.offered, node.staged, node.install) = (None, None, None);
                node.wiped = true;
                self.oracle.wiped(victim);
                self.after(duration, Happening::Start { at: victim });
            }
            Fault::FlippedRecord => {
                if !self.may_lose(victim) {
                    return Ok(false);
                }
                let last = self.node(victim).disk.log.last();
                let slot = Slot(self.random.between(1, last.0.max(1)));
                let node = self.node(victim);
                if !node.disk.log.damage(slot) {
                    return Ok(false);
                }
                node.damaged = true;
            }
            Fault::FlippedBlob => self.flips_blobs = true,
            Fault::Reset => {
                self.after(0, Happening::Reset { at: victim, peer: other });
                self.after(1_000, Happening::Reset { at: other, peer: victim });
            }
            Fault::Upgrade => {
                if M::DATABASES || self.node(victim).process.is_none() {
                    return Ok(false);
                }
                self.crash(victim, false)?;
                self.node(victim).execution = 2;
                self.after(duration, Happening::Start { at: victim });
            }
            Fault::Rot => return self.rot(victim),
            Fault::ForcedRebuild => return self.rebuild_anyway(victim),
        }
        Ok(true)
    }
}

/// Whether a replica believes that it leads.
fn leads<M: Machine>(node: &super::node::Node<M>) -> bool {
    let status = node.process.as_ref().map(|process| process.driver.status());
    status.is_some_and(|status| status.phase == d3bd::driver::Phase::Leader)
}
