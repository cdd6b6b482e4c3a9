//! The world around simulated replicas: time, the network, the disks, and what clients ask. One thread, one queue of
//! happenings, and no chance but the seed's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use d3b::{BlobReference, ClusterId, DiskId, ReplicaId, Slot};
use d3b_paxos::types::{Configuration, Member, Ticks};
use d3b_paxos::{Settings, Storage};
use d3bd::driver::{ApplyReport, Driver, Effect, Event, Process, Repair, Start};
use d3bd::entries::{blob_of, log_entry};
use d3bd::peer::PeerMessage;

use super::clients::{Client, History};
use super::disk::Written;
use super::machine::Machine;
use super::network::Network;
use super::node::{Node, Running, SimDriver};
use super::oracle::{Oracle, Violation, demand};
use super::queue::Queue;
use super::random::Random;
use super::scenario::{Fault, Scenario};
use super::story::{describe, fact};

/// No run needs so many events: one that does is a livelock.
const EVENTS_MAX: u64 = 20_000_000;
/// What waits for a stopped process, at most; the rest is lost.
const HELD_MAX: usize = 10_000;
/// What a handful of clients can have under way at one replica, at most.
const LOAD_MAX: usize = 2_000;
/// Effects that one turn of a driver may want carried out, at most.
const EFFECTS_MAX: usize = 100_000;

/// Something that happens at its time.
#[derive(Debug)]
pub enum Happening {
    /// A message arrives.
    Deliver { from: ReplicaId, to: ReplicaId, message: PeerMessage },
    /// A connection breaks, as one end sees it.
    Reset { at: ReplicaId, peer: ReplicaId },
    /// A driver's time has come.
    Tick { at: ReplicaId, start: u64 },
    /// A driver acts on the events that it has taken.
    Settle { at: ReplicaId, start: u64 },
    /// The log has written what it was given.
    Written { at: ReplicaId, start: u64 },
    /// The state machine goes on.
    Apply { at: ReplicaId, start: u64 },
    /// A blob has arrived, or has not.
    Fetched { at: ReplicaId, start: u64, from: ReplicaId, reference: BlobReference, offered: bool },
    /// The state machine is synced, the blobs are swept.
    Upkeep { at: ReplicaId, start: u64 },
    /// A client does its next thing.
    Client { index: usize, turn: u64 },
    /// A client has waited long enough.
    Patience { index: usize, turn: u64 },
    /// The next fault strikes.
    Fault,
    /// A process starts.
    Start { at: ReplicaId },
    /// A stopped process goes on.
    Resume { at: ReplicaId },
    /// Every link is up again.
    Heal,
    /// A disk is as it was.
    Mend { at: ReplicaId },
}

/// What a test does to every driver before it takes its first event: plants a bug, say.
pub type Prepare<'p> = dyn Fn(&mut SimDriver) + 'p;

/// The world.
pub struct World<'p, M: Machine> {
    pub(super) scenario: Scenario,
    pub(super) random: Random,
    pub(super) time: u64,
    queue: Queue,
    pub(super) nodes: BTreeMap<ReplicaId, Node<M>>,
    pub(super) network: Network,
    pub(super) oracle: Oracle,
    pub(super) clients: Vec<Client>,
    pub(super) history: History,
    /// Who waits for what: by replica, process and ticket.
    pub(super) waiting: BTreeMap<(ReplicaId, u64), usize>,
    /// How often each fault struck.
    pub(super) faults: BTreeMap<Fault, u32>,
    /// Whether faults strike and clients draw requests.
    pub(super) is_rough: bool,
    /// Whether blobs are damaged on their way.
    pub(super) flips_blobs: bool,
    /// Whether files are dropped that are still needed.
    pub(super) careless_sweep: bool,
    /// Whether the next leader that gets something chosen dies of it.
    pub(super) ambush: bool,
    pub(super) prepare: Option<&'p Prepare<'p>>,
    pub(super) events: u64,
    digest: u64,
    /// The story, if anybody wants to hear it.
    trace: Option<String>,
}

impl<'p, M: Machine> World<'p, M> {
    /// A world in which nothing has happened.
    #[must_use]
    pub fn new(scenario: Scenario, mut random: Random, prepare: Option<&'p Prepare<'p>>, tell: bool) -> World<'p, M> {
        let ids: Vec<ReplicaId> = (1..=scenario.replicas).map(ReplicaId).collect();
        let nodes = ids.iter().map(|id| (*id, Node::new(*id, disk_id(*id, 0)))).collect();
        let network = Network::new(&scenario, random.fork());
        let clients = (0..scenario.clients).map(|_| Client::new(random.fork())).collect();
        let oracle = Oracle::new(scenario.replicas);
        World {
            random,
            time: 0,
            queue: Queue::default(),
            nodes,
            network,
            oracle,
            clients,
            history: History::default(),
            waiting: BTreeMap::new(),
            faults: BTreeMap::new(),
            is_rough: true,
            flips_blobs: false,
            careless_sweep: false,
            ambush: false,
            prepare,
            events: 0,
            digest: 0,
            trace: tell.then(String::new),
            scenario,
        }
    }

    /// Every replica.
    #[must_use]
    pub fn ids(&self) -> Vec<ReplicaId> {
        self.nodes.keys().copied().collect()
    }

    /// A replica.
    pub(super) fn node(&mut self, id: ReplicaId) -> &mut Node<M> {
        self.nodes.get_mut(&id).expect("a replica of this world")
    }

    /// A digest of everything that has happened.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The story so far.
    pub fn take_story(&mut self) -> String {
        self.trace.replace(String::new()).unwrap_or_default()
    }

    /// Notes that something has happened: always in the digest, and as a line where the story is told.
    pub(super) fn note(&mut self, fact: u64, line: impl FnOnce(&World<'p, M>) -> String) {
        let mut mixed = Random::new(self.digest ^ fact ^ self.time.rotate_left(32));
        self.digest = mixed.word();
        if self.trace.is_some() {
            let line = line(self);
            let time = self.time;
            if let Some(trace) = &mut self.trace {
                let _ = writeln!(trace, "{:>4}.{:06}  {line}", time / 1_000_000, time % 1_000_000);
            }
        }
    }

    /// Something will happen after a while.
    pub(super) fn after(&mut self, delay: u64, happening: Happening) {
        self.at(self.time + delay, happening);
    }

    fn at(&mut self, time: u64, happening: Happening) {
        self.queue.push(time.max(self.time), happening);
    }

    /// Lets time pass until a moment, or until a condition holds.
    ///
    /// # Errors
    /// Something happened that must never be.
    pub fn run_until(&mut self, end: u64, mut done: impl FnMut(&mut World<'p, M>) -> bool) -> Result<bool, Violation> {
        while let Some((time, happening)) = self.queue.pop_until(end) {
            self.time = time;
            self.events += 1;
            demand!(self.events < EVENTS_MAX, "{EVENTS_MAX} events have happened: nothing comes to an end");
            self.happen(happening)?;
            if done(self) {
                return Ok(true);
            }
        }
        self.time = self.time.max(end);
        Ok(done(self))
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::Deliver { from, to, message } => self.event(to, Event::Peer { from, message }),
            Happening::Reset { at, peer } => self.event(at, Event::ConnectionReset(peer)),
            Happening::Tick { at, start } => self.tick(at, start),
            Happening::Settle { at, start } if self.is_process(at, start) => self.settle(at),
            Happening::Written { at, start } if self.is_process(at, start) => self.written(at),
            Happening::Apply { at, start } if self.is_process(at, start) => self.apply(at),
            Happening::Fetched { at, start, from, reference, offered } if self.is_process(at, start) => {
                self.fetched(at, from, reference, offered)
            }
            Happening::Upkeep { at, start } if self.is_process(at, start) => self.upkeep(at),
            Happening::Settle { .. }
            | Happening::Written { .. }
            | Happening::Apply { .. }
            | Happening::Fetched { .. }
            | Happening::Upkeep { .. } => Ok(()),
            Happening::Client { index, turn } => self.client_turn(index, turn),
            Happening::Patience { index, turn } => self.client_gives_up(index, turn),
            Happening::Fault => self.next_fault(),
            Happening::Start { at } => self.start(at),
            Happening::Resume { at } => self.resume(at),
            Happening::Heal => {
                self.network.heal();
                self.note(1, |_| "the network heals".to_owned());
                Ok(())
            }
            Happening::Mend { at } => {
                self.mend(at);
                Ok(())
            }
        }
    }

    /// A disk works again as it did; what hung comes to its end.
    pub(super) fn mend(&mut self, id: ReplicaId) {
        let usual = self.scenario.sync_us;
        let node = self.node(id);
        (node.slowness, node.full, node.fails_next_sync) = (1, false, false);
        let start = node.starts;
        if node.process.as_ref().is_some_and(|process| process.writing.is_some()) {
            self.after(usual, Happening::Written { at: id, start });
        }
    }

    fn is_process(&self, id: ReplicaId, start: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.starts == start && node.process.is_some())
    }

    // Processes.

    /// Writes the same configuration to every disk, as if the cluster had formed before.
    pub fn form(&mut self) {
        let member = |node: &Node<M>| (node.id, Member::voter(node.disk.id, address(node.id)));
        let members = self.nodes.values().map(member).collect();
        let configuration = Configuration::founding(ClusterId([7; 16]), members);
        for node in self.nodes.values_mut() {
            node.disk.log.form(configuration.clone());
        }
    }

    /// Starts a process, unless one runs or the replica is lost.
    pub(super) fn start(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let seed = self.random.word();
        let incarnation = self.random.word();
        let (message_bytes_max, inflight_bytes_max) =
            (self.scenario.message_bytes_max, self.scenario.inflight_bytes_max);
        let (time, prepare) = (self.time, self.prepare);
        let replicas = self.nodes.keys().map(|id| (*id, address(*id))).collect();
        let node = self.node(id);
        if node.process.is_some() || node.stopped {
            return Ok(());
        }
        node.starts += 1;
        let start = node.starts;
        let machine = M::open(&mut node.image, node.execution).map_err(Violation)?;
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
            joins: false,
            repair: Repair::default(),
            replicas,
            configuration: node.disk.log.configuration(),
            held: node.disk.log.held(),
            promised: node.disk.log.promised(),
            base: Slot(1),
            last,
            applied: machine.resume_after(),
        };
        let pace = node.pace;
        let now = d3b_paxos::types::Now { ticks: Ticks(0), ..node.now(time) };
        let driver = Driver::new(begin, node.disk.log.clone(), now);
        let mut driver: SimDriver = match driver {
            Ok(driver) => driver,
            Err(error) => return self.lose(id, &error.message),
        };
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
            to_apply: None,
            tick_at: None,
            next_ticket: 0,
            unsettled: false,
            fetching: BTreeSet::new(),
            held: Vec::new(),
            paused: false,
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

    fn resume(&mut self, id: ReplicaId) -> Result<(), Violation> {
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

    // The driver.

    /// Gives a replica's driver an event.
    pub(super) fn event(&mut self, id: ReplicaId, event: Event<Written>) -> Result<(), Violation> {
        let time = self.time;
        let waits = self.random.percent(self.scenario.burst_percent);
        let node = self.node(id);
        let now = node.now(time);
        let start = node.starts;
        let Some(process) = &mut node.process else { return Ok(()) };
        if process.paused {
            if process.held.len() < HELD_MAX {
                process.held.push(event);
            }
            return Ok(());
        }
        let fact = u64::from(id.0) << 8 | fact(&event);
        self.note(fact, |_| format!("{id} <- {}", describe(&event)));
        let process = self.node(id).process.as_mut().expect("the process that was just there");
        if let Err(error) = process.driver.handle(now, event) {
            return self.lose(id, &error.message);
        }
        if waits {
            if !std::mem::replace(&mut process.unsettled, true) {
                self.after(50, Happening::Settle { at: id, start });
            }
            return Ok(());
        }
        self.settle(id)
    }

    fn tick(&mut self, id: ReplicaId, start: u64) -> Result<(), Violation> {
        if !self.is_process(id, start) {
            return Ok(());
        }
        let time = self.time;
        let process = self.node(id).process.as_mut().expect("a process that was just there");
        if process.tick_at != Some(time) {
            return Ok(());
        }
        process.tick_at = None;
        if process.paused { Ok(()) } else { self.settle(id) }
    }

    /// Lets a driver act: time passes for it if that is due, and everything that it wants done is done.
    pub(super) fn settle(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let time = self.time;
        let node = self.node(id);
        let now = node.now(time);
        let Some(process) = node.process.as_mut().filter(|process| !process.paused) else { return Ok(()) };
        process.unsettled = false;
        if now.ticks >= process.driver.next_tick()
            && let Err(error) = process.driver.tick(now)
        {
            return self.lose(id, &error.message);
        }
        loop {
            let Some(process) = &mut self.node(id).process else { return Ok(()) };
            if let Err(error) = process.driver.pump() {
                return self.lose(id, &error.message);
            }
            let effects = process.driver.take_effects();
            let load = process.driver.load();
            let most = [load.writes, load.reads, load.proposals, load.offers].into_iter().max().unwrap_or(0);
            demand!(
                most < LOAD_MAX && load.batches <= 1,
                "{id} keeps more in its books than anybody waits for: {load:?}"
            );
            if effects.is_empty() {
                break;
            }
            demand!(effects.len() < EFFECTS_MAX, "{id} wants {} things done at once", effects.len());
            for effect in effects {
                self.carry_out(id, effect)?;
            }
        }
        self.schedule_tick(id);
        Ok(())
    }

    fn schedule_tick(&mut self, id: ReplicaId) {
        let time = self.time;
        let node = self.node(id);
        let start = node.starts;
        let Some(process) = &mut node.process else { return };
        let due = process.moment(process.driver.next_tick()).max(time + 1_000);
        if process.tick_at.is_none_or(|at| due < at || at < time) {
            process.tick_at = Some(due);
            self.at(due, Happening::Tick { at: id, start });
        }
    }

    fn carry_out(&mut self, id: ReplicaId, effect: Effect<Written>) -> Result<(), Violation> {
        match effect {
            Effect::Persist(batch) => {
                let usual = self.scenario.sync_us;
                let delay = self.random.around(usual);
                let node = self.node(id);
                let delay = delay * node.slowness;
                let start = node.starts;
                let Some(process) = &mut node.process else { return Ok(()) };
                demand!(process.writing.is_none(), "{id} writes two batches at once");
                process.writing = Some(batch);
                self.after(delay, Happening::Written { at: id, start });
                Ok(())
            }
            Effect::PersistConfiguration(configuration) => {
                self.note(400 + u64::from(id.0), |_| format!("{id} is formed"));
                let node = self.node(id);
                demand!(node.disk.log.configuration().is_none(), "{id} is formed twice");
                node.disk.log.form(configuration.clone());
                self.answer(id, Event::ConfigurationPersisted(configuration))
            }
            Effect::Send { to, message } => self.send(id, to, message),
            Effect::SendDependent { proof, messages } => {
                let _ = proof;
                messages.into_iter().try_for_each(|(to, message)| self.send(id, to, message))
            }
            Effect::Apply(range) => {
                let node = self.node(id);
                let Some(process) = &mut node.process else { return Ok(()) };
                demand!(process.to_apply.is_none(), "{id} is to apply {range:?} while it applies");
                process.to_apply = Some(*range.end());
                self.apply_later(id);
                Ok(())
            }
            Effect::FetchBlob { from, reference } => self.fetch(id, from, reference, true),
            Effect::Connect(_) => Ok(()),
            // Nothing here asks for a cut, for other members or for a snapshot yet, and nothing is quarantined.
            Effect::CutLog(_)
            | Effect::StartOver(_)
            | Effect::TakeSnapshot { .. }
            | Effect::FetchSnapshot { .. }
            | Effect::InstallSnapshot { .. }
            | Effect::PersistQuarantine(_)
            | Effect::MemberRequestDone { .. } => Err(Violation(format!("{id} wants what nobody asked for"))),
            Effect::WriteDone { ticket, result } => self.write_done(id, ticket, result),
            Effect::ReadDone { ticket, result } => self.read_done(id, ticket, result),
        }
    }

    /// Answers an effect at once, as part of the turn that it belongs to.
    pub(super) fn answer(&mut self, id: ReplicaId, event: Event<Written>) -> Result<(), Violation> {
        let time = self.time;
        let node = self.node(id);
        let now = node.now(time);
        let Some(process) = &mut node.process else { return Ok(()) };
        process.driver.handle(now, event).map_err(|error| Violation(error.message))
    }

    fn send(&mut self, from: ReplicaId, to: ReplicaId, message: PeerMessage) -> Result<(), Violation> {
        if let PeerMessage::Paxos(envelope) = &message {
            let node = &self.nodes[&from];
            demand!(!node.wiped || votes_nothing(envelope), "{from} has lost its disk and votes: {envelope:?}");
            self.oracle.sends(envelope, &node.disk.log, node.applied())?;
        }
        let mut arrivals = self.network.arrivals((from, to), self.time);
        let last = arrivals.pop();
        // A connection carries a frame once or not at all; the protocol could bear more, a refusal of a write could not.
        if matches!(message, PeerMessage::Forward { .. } | PeerMessage::ForwardReply { .. }) {
            arrivals.clear();
        }
        for arrival in arrivals {
            self.at(arrival, Happening::Deliver { from, to, message: message.clone() });
        }
        if let Some(arrival) = last {
            self.at(arrival, Happening::Deliver { from, to, message });
        }
        Ok(())
    }

    // The log.

    fn written(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let node = self.node(id);
        if node.fails_next_sync || node.full {
            // What a failed sync leaves is unknown; the process must not try again, and ends.
            let why = if node.full { "its disk is full" } else { "a sync failed" };
            node.fails_next_sync = false;
            self.note(500 + u64::from(id.0), |_| format!("{id} poisons itself: {why}"));
            self.crash(id, false)?;
            let delay = self.random.between(10_000, 1_000_000);
            self.after(delay, Happening::Start { at: id });
            return Ok(());
        }
        let Some(process) = &mut node.process else { return Ok(()) };
        let Some(batch) = process.writing.take() else { return Ok(()) };
        let proof = node.disk.log.write(&batch);
        let chosen = self.oracle.written(id, &batch)?;
        if let Some(ballot) = chosen.filter(|_| std::mem::take(&mut self.ambush)) {
            self.spring_ambush(ballot.replica)?;
        }
        self.event(id, Event::Durable(proof))
    }

    // The state machine.

    fn apply_later(&mut self, id: ReplicaId) {
        let delay = self.random.around(self.scenario.apply_us);
        let start = self.node(id).starts;
        self.after(delay, Happening::Apply { at: id, start });
    }

    fn apply(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let count = self.random.between(1, 20);
        let node = self.nodes.get_mut(&id).expect("a replica of this world");
        let Some(process) = node.process.as_mut().filter(|process| !process.paused) else {
            // It goes on where it was stopped.
            self.after(20_000, Happening::Apply { at: id, start: self.nodes[&id].starts });
            return Ok(());
        };
        let Some(end) = process.to_apply else { return Ok(()) };
        let next = process.machine.applied().next();
        let upto = end.min(Slot(next.0 + count - 1));
        let records = match node.disk.log.read(next, upto, usize::MAX) {
            Ok(records) => records,
            Err(error) => return self.lose(id, &error.message),
        };
        demand!(records.len() as u64 == upto.0 + 1 - next.0, "{id} is to apply {next} to {upto}, and lacks some of it");
        for record in &records {
            self.oracle.applies(id, record)?;
        }
        let entries: Vec<_> = records.iter().map(log_entry).collect();
        let progress = match process.machine.apply(&entries, &node.disk.blobs) {
            Ok(progress) => progress,
            Err(why) => return self.refuse_to_apply(id, &why),
        };
        let applied = process.machine.applied();
        let finished = applied >= end;
        if finished {
            process.to_apply = None;
        }
        let report = ApplyReport::new(process.identity, applied, progress.applied, finished);
        for (database, slot, chain) in &report.fingerprints {
            self.oracle.fingerprint(id, (*database, *slot), *chain)?;
        }
        let missing =
            records.iter().filter(|record| record.slot <= applied).filter_map(blob_of).map(|(_, reference)| reference);
        let missing: Vec<_> = missing.filter(|reference| !node.disk.blobs.holds(&reference.digest)).collect();
        for reference in missing {
            self.prefetch(id, reference)?;
        }
        self.event(id, Event::Applied(report))?;
        if !finished {
            self.apply_later(id);
        }
        Ok(())
    }

    /// An entry that this build cannot apply stops it; the next process is a newer build.
    fn refuse_to_apply(&mut self, id: ReplicaId, why: &str) -> Result<(), Violation> {
        let newest = self.nodes.values().map(|node| node.execution).max().unwrap_or(1);
        demand!(self.node(id).execution < newest, "{id} cannot apply what was chosen: {why}");
        let why = why.to_owned();
        self.note(600 + u64::from(id.0), |_| format!("{id} stops: {why}"));
        self.crash(id, false)?;
        self.node(id).execution = newest;
        let delay = self.random.between(10_000, 500_000);
        self.after(delay, Happening::Start { at: id });
        Ok(())
    }
}

/// The disk that a replica has after so many exchanges.
pub(super) fn disk_id(id: ReplicaId, exchange: u8) -> DiskId {
    let mut bytes = [exchange; 16];
    bytes[0] = u8::try_from(id.0).expect("ids are small");
    DiskId(bytes)
}

fn address(id: ReplicaId) -> String {
    format!("127.0.0.1:{}", 8_000 + id.0)
}

/// Whether a message is one that a replica without a memory may send.
fn votes_nothing(envelope: &d3b_paxos::message::Envelope) -> bool {
    use d3b_paxos::message::Message;
    match &envelope.message {
        Message::PreVote { .. }
        | Message::Prepare { .. }
        | Message::Promise { .. }
        | Message::Accepted { .. }
        | Message::PreVoteReply { granted: true, .. } => false,
        Message::PreVoteReply { granted: false, .. }
        | Message::PromiseMore { .. }
        | Message::Accept { .. }
        | Message::Nack { .. }
        | Message::ReadIndex { .. }
        | Message::ReadIndexReply { .. }
        | Message::TimeoutNow { .. }
        | Message::Behind { .. }
        | Message::Superseded { .. } => true,
    }
}
