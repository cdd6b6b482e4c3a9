//! Replicas that come to hold something else than the others: how that is noticed, what they may do from then on, and
//! how they are rebuilt.
//!
//! Rot is counted as a loss: as long as it lasts, a majority is left of voters whose data is whole. A snapshot of rotten
//! data that nobody knows to be rotten spreads the rot; where that would leave no such majority, whoever gives it dies.

use d3b::ReplicaId;
use d3bd::driver::{Event, Phase};
use d3bd::peer::{ForwardResult, PeerMessage};

use super::machine::Machine;
use super::oracle::{Violation, demand};
use super::world::{Happening, World};

/// Whether a replica that neither votes nor answers may say this.
pub(super) fn stays_away(message: &PeerMessage) -> bool {
    match message {
        PeerMessage::SnapshotRequest
        | PeerMessage::SnapshotRefused { .. }
        // Bytes that are those of their name are as good there as anywhere.
        | PeerMessage::BlobHeld { .. }
        | PeerMessage::BlobUnderWay { .. }
        | PeerMessage::BlobRefused { .. }
        | PeerMessage::ForwardReply { result: ForwardResult::NotLeader { .. }, .. }
        | PeerMessage::MemberReply { result: Err(_), .. } => true,
        PeerMessage::Paxos(_)
        | PeerMessage::Formation(_)
        | PeerMessage::Forward { .. }
        | PeerMessage::ForwardReply { .. }
        | PeerMessage::BlobOffer { .. }
        | PeerMessage::Gossip { .. }
        | PeerMessage::Contents { .. }
        | PeerMessage::About { .. }
        | PeerMessage::MemberRequest { .. }
        | PeerMessage::MemberReply { .. }
        | PeerMessage::SnapshotReady { .. } => false,
    }
}

impl<M: Machine> World<'_, M> {
    // What goes wrong.

    /// A replica's databases come to hold something else; false if they must not, or hold nothing.
    pub(super) fn rot(&mut self, victim: ReplicaId) -> Result<bool, Violation> {
        if !self.may_lose(victim) {
            return Ok(false);
        }
        let registers = self.scenario.registers;
        let mut random = self.random.fork();
        let node = self.node(victim);
        let Some(process) = &mut node.process else { return Ok(false) };
        node.rotten = process.machine.rot(registers, &mut random).map_err(Violation)?;
        Ok(node.rotten)
    }

    /// An operator has a replica rebuilt that nothing is wrong with; false if it takes no part.
    pub(super) fn rebuild_anyway(&mut self, victim: ReplicaId) -> Result<bool, Violation> {
        if !self.may_lose(victim) || !self.takes_part(victim) {
            return Ok(false);
        }
        self.node(victim).forced = true;
        self.event(victim, Event::Rebuild { force: true })?;
        Ok(true)
    }

    /// Whether a replica may take rotten data over from another one that nobody suspects.
    pub(super) fn may_catch_rot(&self, id: ReplicaId) -> bool {
        let mut lost = self.lost();
        lost.insert(id);
        self.is_rough && self.tolerates(&lost)
    }

    /// Whoever gives rotten data to more than may have it dies, and what it gave is gone.
    pub(super) fn stop_giver(&mut self, from: ReplicaId) -> Result<(), Violation> {
        self.crash(from, false)?;
        let rough = self.is_rough;
        let node = self.node(from);
        node.offered = None;
        node.stopped |= !rough;
        if rough {
            let delay = self.random.between(1_000_000, 3_000_000);
            self.after(delay, Happening::Start { at: from });
        }
        Ok(())
    }

    // What is done about it.

    /// Reads a replica's databases from end to end, when that is due.
    pub(super) fn scrub_if_due(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let (time, interval) = (self.time, self.scenario.scrub_us);
        let takes_part = self.takes_part(id);
        let node = self.node(id);
        let rotten = node.rotten;
        let Some(process) = node.process.as_mut().filter(|process| takes_part && process.scrub_at <= time) else {
            return Ok(());
        };
        process.scrub_at = time + interval;
        for content in process.machine.scrub() {
            if !rotten {
                self.oracle.content(id, &content)?;
            }
            let super::machine::Content { database, slot, chain, digest } = content;
            self.event(id, Event::ContentRead { database, slot, chain, digest })?;
        }
        Ok(())
    }

    /// A driver takes its replica out of everything: what it says from now on is watched.
    pub(super) fn quarantine(&mut self, id: ReplicaId, reason: String) -> Result<(), Violation> {
        let node = self.node(id);
        demand!(node.is_ill(), "{id} holds what was chosen, and is quarantined: {reason}");
        let (rotten, auto, careless) = (node.rotten, self.scenario.auto_rebuild, self.careless_quarantine);
        self.note(1_600 + u64::from(id.0), |_| format!("*** {id} is quarantined: {reason}"));
        if self.is_rough && self.random.below(8) == 0 {
            // It dies before that is on its disk: the next process has to find it once more.
            self.crash(id, false)?;
            let delay = self.random.between(1_000, 500_000);
            self.after(delay, Happening::Start { at: id });
            return Ok(());
        }
        let node = self.node(id);
        (node.condemned, node.forced) = (true, false);
        node.quarantined = Some(reason).filter(|_| !careless);
        self.quarantined += u32::from(rotten);
        if !auto && self.random.percent(60) {
            let delay = self.random.between(0, 3_000_000);
            self.after(delay, Happening::Rebuild { at: id });
        }
        Ok(())
    }

    /// The operator wants a quarantined replica to be rebuilt; of any other the driver must take no notice.
    pub(super) fn ask_to_rebuild(&mut self, id: ReplicaId) -> Result<(), Violation> {
        self.note(1_700 + u64::from(id.0), |_| format!("*** {id} is to be rebuilt"));
        self.event(id, Event::Rebuild { force: false })
    }

    fn takes_part(&self, id: ReplicaId) -> bool {
        let process = self.nodes[&id].process.as_ref().filter(|process| !process.paused);
        let phase = process.map(|process| process.driver.status().phase);
        matches!(phase, Some(Phase::Follower | Phase::Candidate | Phase::Leader))
    }

    // What is demanded.

    /// The members that run, and that hold something else or held it and are quarantined.
    pub(super) fn ill(&self) -> Vec<ReplicaId> {
        let members = &self.oracle.last_configuration().members;
        let ill = self.nodes.values().filter(|node| node.is_ill() && !node.stopped && !node.is_lost());
        ill.map(|node| node.id).filter(|id| members.contains_key(id)).collect()
    }

    /// Demands that whoever holds something else is quarantined, where a majority that does not is there to say so; and
    /// that those that are to be rebuilt are.
    pub(super) fn demand_repairs(&mut self, patience_us: u64) -> Result<(), Violation> {
        let undetected = |world: &World<'_, M>| -> Vec<ReplicaId> {
            world.ill().into_iter().filter(|id| !world.nodes[id].condemned).collect()
        };
        let end = self.time + patience_us;
        let found = self.run_until(end, |world| undetected(world).is_empty())?;
        demand!(found, "{:?} hold something else than the others, and nobody finds it", undetected(self));
        let asks = self.random.percent(70);
        if !asks && !self.scenario.auto_rebuild {
            return Ok(());
        }
        for id in self.ill() {
            if !self.scenario.auto_rebuild {
                self.ask_to_rebuild(id)?;
            }
        }
        let end = self.time + patience_us;
        let rebuilt = self.run_until(end, |world| {
            let told = world.oracle.told();
            let back = |id: &ReplicaId| world.takes_part(*id) && world.nodes[id].applied() >= told;
            world.ill().is_empty() && world.well().iter().all(back)
        })?;
        demand!(rebuilt, "{:?} are to be rebuilt, and are not: {}", self.ill(), self.complaints());
        Ok(())
    }

    /// Demands that the execution version rises when every member has it and all of them are there to say so.
    pub(super) fn demand_version(&mut self, patience_us: u64) -> Result<(), Violation> {
        let last = self.oracle.last_configuration();
        let well = self.well();
        let builds = last.members.keys().map(|id| self.nodes[id].execution);
        let lowest = builds.min().unwrap_or(0);
        if lowest <= last.execution || well.len() < last.members.len() {
            return Ok(());
        }
        let end = self.time + patience_us;
        let risen = self.run_until(end, |world| world.oracle.last_configuration().execution >= lowest)?;
        demand!(risen, "every member has execution version {lowest}, and it does not begin: {}", self.complaints());
        Ok(())
    }
}
