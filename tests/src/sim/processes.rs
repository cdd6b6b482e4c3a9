//! Processes: how they start, on what the disk holds, and how they end.

use std::collections::BTreeSet;

use d3b::ReplicaId;
use d3b_paxos::Settings;
use d3b_paxos::types::Ticks;
use d3bd::driver::{Driver, Phase, Process, Repair, Start};

use super::machine::Machine;
use super::node::{Running, SimDriver};
use super::oracle::{Violation, demand};
use super::world::{Happening, World};

impl<M: Machine> World<'_, M> {
    /// Writes the founding configuration to every disk, as if the cluster had formed before.
    pub fn form(&mut self) {
        let founding = self.oracle.last_configuration().clone();
        for node in self.nodes.values_mut() {
            node.disk.log.form(founding.clone());
        }
    }

    /// Starts a process, unless one runs or the replica is lost.
    pub(super) fn start(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let seed = self.random.word();
        let incarnation = self.random.word();
        let (message_bytes_max, inflight_bytes_max) =
            (self.scenario.message_bytes_max, self.scenario.inflight_bytes_max);
        let (time, prepare, auto) = (self.time, self.prepare, self.scenario.auto_rebuild);
        let node = self.node(id);
        if node.process.is_some() || node.stopped {
            return Ok(());
        }
        if !self.install(id)? {
            self.note(1_300 + u64::from(id.0), |_| format!("{id} dies while it installs a snapshot"));
            let delay = self.random.between(1_000, 500_000);
            self.after(delay, Happening::Start { at: id });
            return Ok(());
        }
        let node = self.node(id);
        node.starts += 1;
        let start = node.starts;
        let lane_order = u64::from(id.0) << 32 | start;
        let machine = M::open(&mut node.image, node.execution, lane_order).map_err(Violation)?;
        let settings = Settings {
            id,
            disk: node.disk.id,
            heartbeat: Ticks(50),
            election_timeout_min: Ticks(300),
            election_timeout_max: Ticks(600),
            seed,
            inflight_bytes_max,
            message_bytes_max,
            clock_ahead_ms_max: 10_000,
        };
        let last = node.disk.log.last();
        let begin = Start {
            settings,
            execution: node.execution,
            joins: node.joins,
            repair: Repair { quarantined: node.quarantined.clone(), auto },
            replicas: node.greets.clone(),
            configuration: node.disk.log.configuration(),
            held: node.disk.log.held(),
            promised: node.disk.log.promised(),
            base: node.disk.log.base(),
            last,
            applied: machine.resume_after(),
        };
        let (pace, execution) = (node.pace, node.execution);
        let now = d3b_paxos::types::Now { ticks: Ticks(0), ..node.now(time) };
        let driver = Driver::new(begin, node.disk.log.clone(), now);
        self.oracle.runs(id, execution);
        let node = self.node(id);
        let mut driver: SimDriver = match driver {
            Ok(driver) => driver,
            Err(error) => return self.lose(id, &error.message),
        };
        let phase = driver.status().phase;
        let kept_away = matches!(phase, Phase::Quarantined { .. } | Phase::Outcast { .. });
        demand!(node.quarantined.is_none() || kept_away, "{id} is quarantined, and starts as a {}", phase.name());
        if let Some(prepare) = prepare {
            prepare(&mut driver);
        }
        node.process = Some(Running {
            driver,
            machine,
            identity: Process { replica: id, incarnation },
            started_at: time,
            pace,
            writing: None,
            adopted: node.disk.log.configuration(),
            taking: None,
            fetches_snapshot: false,
            wanted: BTreeSet::new(),
            told_wanting: None,
            look_up: true,
            cut: node.disk.log.base(),
            to_apply: None,
            tick_at: None,
            next_ticket: 0,
            unsettled: false,
            fetching: BTreeSet::new(),
            held: Vec::new(),
            paused: false,
            scrub_at: 0,
        });
        self.note(2 + u64::from(id.0), |_| format!("{id} starts"));
        let jitter = self.random.below(self.scenario.upkeep_us);
        self.after(jitter, Happening::Upkeep { at: id, start });
        self.settle(id)
    }

    /// A process ends at once. What the log was writing is on the disk or not; after a power cut the state machine may
    /// have lost what it had not synced.
    pub(super) fn crash(&mut self, id: ReplicaId, power_cut: bool) -> Result<(), Violation> {
        let written = self.random.percent(50);
        let mut random = self.random.fork();
        let node = self.node(id);
        let Some(process) = node.process.take() else { return Ok(()) };
        node.forced = false;
        process.machine.crash(&mut node.image, power_cut, &mut random);
        if let Some(batch) = process.writing.filter(|_| written) {
            let _ = node.disk.log.write(&batch);
            self.oracle.written(id, &batch)?;
        }
        self.note(100 + u64::from(id.0), |_| format!("{id} dies{}", if power_cut { " in a power cut" } else { "" }));
        self.connections_break(id);
        self.abandon_clients(id);
        Ok(())
    }

    /// Peers see the connections of a dead process reset, soon, unless nothing reaches them.
    fn connections_break(&mut self, id: ReplicaId) {
        for peer in self.ids().into_iter().filter(|peer| *peer != id) {
            if self.network.is_up((id, peer), self.time) && self.random.percent(70) {
                let delay = self.network.delay();
                self.after(delay, Happening::Reset { at: peer, peer: id });
            }
        }
    }

    /// A replica cannot read its log: it must not vote as if nothing had been there, and stays down.
    pub(super) fn lose(&mut self, id: ReplicaId, why: &str) -> Result<(), Violation> {
        let why = why.to_owned();
        demand!(self.node(id).damaged, "{id} cannot read a log that nothing has damaged: {why}");
        self.node(id).stopped = true;
        self.note(200 + u64::from(id.0), |_| format!("{id} stops for good: {why}"));
        self.crash(id, false)
    }

    pub(super) fn resume(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let node = self.node(id);
        let Some(process) = node.process.as_mut().filter(|process| process.paused) else { return Ok(()) };
        process.paused = false;
        let held = std::mem::take(&mut process.held);
        self.note(300 + u64::from(id.0), |_| format!("{id} goes on"));
        for event in held {
            self.event(id, event)?;
        }
        self.settle(id)
    }
}
