//! The world around simulated replicas: time, the network, the disks, and what clients ask. One thread, one queue of
//! happenings, and no chance but the seed's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use d3b::{BlobReference, ClusterId, Digest, DiskId, ReplicaId, Slot};
use d3b_paxos::message::Message;
use d3b_paxos::types::{Configuration, Member};
use d3bd::driver::{Effect, Event};
use d3bd::peer::PeerMessage;

use super::clients::{Client, History};
use super::disk::Written;
use super::machine::Machine;
use super::members::Operator;
use super::network::Network;
use super::node::{Node, SimDriver};
use super::oracle::{Oracle, Violation, demand};
use super::queue::Queue;
use super::random::Random;
use super::repairs::stays_away;
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
    /// The copies of a snapshot are made.
    Taken { at: ReplicaId, start: u64, to: ReplicaId },
    /// A piece of a snapshot has arrived, or has not.
    Piece { at: ReplicaId, start: u64, from: ReplicaId, manifest: Digest },
    /// A process ends to start again.
    Again { at: ReplicaId, start: u64 },
    /// The state machine is synced, the blobs are swept.
    Upkeep { at: ReplicaId, start: u64 },
    /// A client does its next thing.
    Client { index: usize, turn: u64 },
    /// A client has waited long enough.
    Patience { index: usize, turn: u64 },
    /// The operator does something.
    Operator,
    /// The operator wants a quarantined replica to be rebuilt.
    Rebuild { at: ReplicaId },
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
    pub(super) operator: Operator,
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
    /// Whether manifests name the configuration that is known, in effect at their slots or not.
    pub(super) careless_manifest: bool,
    /// Whether replicas forget at a restart that they are quarantined.
    pub(super) careless_quarantine: bool,
    /// How many replicas were quarantined because of what they held.
    pub(super) quarantined: u32,
    /// How many quarantined ones were rebuilt.
    pub(super) rebuilt: u32,
    /// How many snapshots were installed.
    pub(super) installed: u32,
    /// How many changes of the members were put into the log because the operator asked for them.
    pub(super) answered_changes: u32,
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
        let greets: BTreeMap<_, _> = (1..=scenario.replicas).map(ReplicaId).map(|id| (id, address(id))).collect();
        let founder = |id: &ReplicaId| (*id, Node { greets: greets.clone(), ..Node::new(*id, disk_id(*id, 0)) });
        let nodes: BTreeMap<ReplicaId, Node<M>> = greets.keys().map(founder).collect();
        let voter = |node: &Node<M>| (node.id, Member::voter(node.disk.id, address(node.id)));
        let founding = Configuration::founding(ClusterId([7; 16]), nodes.values().map(voter).collect());
        let network = Network::new(&scenario, random.fork());
        let clients = (0..scenario.clients).map(|_| Client::new(random.fork())).collect();
        let operator = Operator::new(random.fork());
        let oracle = Oracle::new(founding);
        World {
            random,
            time: 0,
            queue: Queue::default(),
            nodes,
            network,
            oracle,
            clients,
            history: History::default(),
            operator,
            waiting: BTreeMap::new(),
            faults: BTreeMap::new(),
            is_rough: true,
            flips_blobs: false,
            careless_sweep: false,
            careless_manifest: false,
            careless_quarantine: false,
            quarantined: 0,
            rebuilt: 0,
            installed: 0,
            answered_changes: 0,
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
            Happening::Taken { at, start, to } if self.is_process(at, start) => self.taken(at, to),
            Happening::Piece { at, start, from, manifest } if self.is_process(at, start) => {
                self.piece(at, from, manifest)
            }
            Happening::Again { at, start } if self.is_process(at, start) => self.again(at),
            Happening::Settle { .. }
            | Happening::Written { .. }
            | Happening::Apply { .. }
            | Happening::Fetched { .. }
            | Happening::Taken { .. }
            | Happening::Piece { .. }
            | Happening::Again { .. }
            | Happening::Upkeep { .. } => Ok(()),
            Happening::Client { index, turn } => self.client_turn(index, turn),
            Happening::Patience { index, turn } => self.client_gives_up(index, turn),
            Happening::Operator => self.operate(),
            Happening::Rebuild { at } => self.ask_to_rebuild(at),
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

    pub(super) fn is_process(&self, id: ReplicaId, start: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.starts == start && node.process.is_some())
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
                if self.nodes[&id].process.is_none() {
                    return Ok(());
                }
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
            Effect::CutLog(base) => {
                let node = self.node(id);
                let durable = node.process.as_ref().map_or(Slot::ZERO, |process| process.machine.resume_after());
                demand!(base <= durable, "{id} cuts its log at {base}, and what it applied is durable up to {durable}");
                node.disk.log.cut(base);
                Ok(())
            }
            Effect::TakeSnapshot { to, configuration } => self.take_snapshot(id, to, configuration),
            Effect::FetchSnapshot { from, manifest } => {
                self.fetch_snapshot(id, from, manifest);
                Ok(())
            }
            Effect::InstallSnapshot { manifest } => self.decide(id, manifest),
            Effect::StartOver(configuration) => {
                let node = self.node(id);
                let start = node.starts;
                node.disk.log.form(configuration);
                self.after(0, Happening::Again { at: id, start });
                Ok(())
            }
            Effect::MemberRequestDone { ticket, result } => self.member_request_done(id, ticket, result),
            Effect::PersistQuarantine(reason) => self.quarantine(id, reason),
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
        let condemned = self.nodes[&from].condemned;
        demand!(!condemned || stays_away(&message), "{from} is quarantined and says {message:?}");
        if let PeerMessage::Paxos(envelope) = &message {
            let node = &self.nodes[&from];
            demand!(!node.wiped || votes_nothing(envelope), "{from} has lost its disk and votes: {envelope:?}");
            self.oracle.sends(envelope, &node.disk.log, node.applied())?;
            if let Message::Accept { entries, .. } = &envelope.message {
                entries.iter().for_each(|entry| self.oracle.proposes(entry));
            }
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
}

/// The disk that a replica has after so many exchanges.
pub(super) fn disk_id(id: ReplicaId, exchange: u8) -> DiskId {
    let mut bytes = [exchange; 16];
    bytes[0] = u8::try_from(id.0).expect("ids are small");
    DiskId(bytes)
}

pub(super) fn address(id: ReplicaId) -> String {
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
        | Message::ReadIndexAt { .. }
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
