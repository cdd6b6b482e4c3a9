//! A group of shipped drivers on simulated disks, with a network into which anybody may put anything.

use std::collections::BTreeMap;

use bytes::Bytes;
use d3b::{ClusterId, DiskId, ReplicaId, Slot};
use d3b_paxos::types::{Configuration, Member, Now, Payload, Ticks};
use d3b_paxos::{PersistBatch, Settings, Storage as _};
use d3b_tests::sim::SimDriver;
use d3b_tests::sim::disk::{Disk, Written};
use d3b_tests::sim::random::Random;
use d3bd::driver::{ApplyReport, Driver, Effect, Event, Phase, Repair, Start, Ticket, WriteRequest};
use d3bd::peer::PeerMessage;

use crate::forge::{Forge, Sent};

/// Bytes of entries that may be under way to one peer.
pub const INFLIGHT_BYTES_MAX: usize = 64 << 10;
/// What one message may make a driver want done, at most.
const EFFECTS_MAX: usize = 200;
/// What waits in the network, at most; the rest is lost.
const NETWORK_MAX: usize = 2_000;

/// A replica.
pub struct Node {
    /// The shipped driver, with the shipped core in it.
    pub driver: SimDriver,
    disk: Disk,
    writing: Option<PersistBatch>,
    /// A disk that is stuck never writes.
    pub is_stuck: bool,
    /// The commands that it has applied, by slot.
    pub applied: BTreeMap<Slot, Bytes>,
    applied_upto: Slot,
}

/// A group.
pub struct Group {
    /// The replicas.
    pub nodes: BTreeMap<ReplicaId, Node>,
    /// The configuration, formed or to be.
    pub configuration: Configuration,
    /// Chance.
    pub random: Random,
    /// Makes what is hostile, of what it has seen.
    pub forge: Forge,
    ticks: u64,
    network: Vec<Sent>,
    next_ticket: u64,
}

fn disk_id(id: ReplicaId) -> DiskId {
    DiskId([u8::try_from(id.0).expect("a few replicas"); 16])
}

impl Group {
    /// Three replicas of a formed cluster, or three that have yet to meet.
    pub fn new(seed: u64, is_formed: bool) -> Group {
        let ids = (1..=3).map(ReplicaId);
        let member = |id: ReplicaId| (id, Member::voter(disk_id(id), format!("replica-{id}")));
        let members = ids.clone().map(member).collect();
        let configuration = Configuration::founding(ClusterId([7; 16]), members);
        let mut random = Random::new(seed);
        let forge = Forge::new(random.word(), configuration.clone());
        let mut group = Group {
            nodes: BTreeMap::new(),
            configuration,
            random,
            forge,
            ticks: 0,
            network: Vec::new(),
            next_ticket: 0,
        };
        for id in ids {
            let node = group.node(id, disk_id(id), is_formed);
            group.nodes.insert(id, node);
        }
        for id in group.ids() {
            group.settle(id);
        }
        group
    }

    /// A replica on some disk.
    fn node(&mut self, id: ReplicaId, disk: DiskId, is_formed: bool) -> Node {
        let settings = Settings {
            id,
            disk,
            heartbeat: Ticks(50),
            election_timeout_min: Ticks(300),
            election_timeout_max: Ticks(600),
            seed: self.random.word(),
            inflight_bytes_max: INFLIGHT_BYTES_MAX,
            message_bytes_max: 4 << 10,
            clock_ahead_ms_max: 10_000,
        };
        let replicas = self.configuration.members.iter().map(|(id, member)| (*id, member.peer.clone())).collect();
        let disk = Disk::blank(disk);
        let start = Start {
            settings,
            execution: 1,
            joins: false,
            repair: Repair::default(),
            replicas,
            configuration: is_formed.then(|| self.configuration.clone()),
            held: Slot::ZERO,
            promised: disk.log.promised(),
            base: Slot(1),
            last: Slot::ZERO,
            applied: Slot::ZERO,
        };
        let driver = Driver::new(start, disk.log.clone(), self.now()).expect("an empty log can be read");
        let applied = BTreeMap::new();
        Node { driver, disk, writing: None, is_stuck: false, applied, applied_upto: Slot::ZERO }
    }

    /// Replaces a replica by one whose disk the configuration does not know.
    pub fn make_outcast(&mut self, id: ReplicaId) {
        let node = self.node(id, DiskId([0xee; 16]), true);
        self.nodes.insert(id, node);
        self.settle(id);
        assert!(matches!(self.phase(id), Phase::Outcast { .. }));
    }

    /// A replica is gone, and whatever was on its way to it.
    pub fn remove(&mut self, gone: ReplicaId) {
        self.nodes.remove(&gone);
        self.network.retain(|sent| sent.to != gone);
        for id in self.ids() {
            self.event(id, Event::ConnectionReset(gone));
        }
    }

    /// Every replica.
    pub fn ids(&self) -> Vec<ReplicaId> {
        self.nodes.keys().copied().collect()
    }

    /// What a replica is doing.
    pub fn phase(&self, id: ReplicaId) -> Phase {
        self.nodes[&id].driver.status().phase
    }

    fn now(&self) -> Now {
        Now { ticks: Ticks(self.ticks), clock_ms: 1_750_000_000_000 + self.ticks }
    }

    /// Gives a replica an event, and does what it wants done.
    pub fn event(&mut self, id: ReplicaId, event: Event<Written>) {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("a replica of this group");
        node.driver.handle(now, event).unwrap_or_else(|error| panic!("replica {id} must stop: {error}"));
        self.settle(id);
    }

    /// Lets a replica hear something from somebody who has proved to be `from`.
    pub fn hear(&mut self, from: ReplicaId, to: ReplicaId, message: PeerMessage) {
        self.event(to, Event::Peer { from, message });
    }

    fn settle(&mut self, id: ReplicaId) {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("a replica of this group");
        if now.ticks >= node.driver.next_tick() {
            node.driver.tick(now).unwrap_or_else(|error| panic!("replica {id} must stop: {error}"));
        }
        let mut count = 0;
        loop {
            let node = self.nodes.get_mut(&id).expect("a replica of this group");
            node.driver.pump().unwrap_or_else(|error| panic!("replica {id} must stop: {error}"));
            let effects = node.driver.take_effects();
            if effects.is_empty() {
                return;
            }
            count += effects.len();
            assert!(count < EFFECTS_MAX, "replica {id} wants {count} things done, of {effects:?}");
            for effect in effects {
                self.carry_out(id, effect);
            }
        }
    }

    fn carry_out(&mut self, id: ReplicaId, effect: Effect<Written>) {
        let node = self.nodes.get_mut(&id).expect("a replica of this group");
        match effect {
            Effect::Persist(batch) => {
                assert!(node.writing.is_none(), "one batch at a time");
                node.writing = Some(batch);
            }
            Effect::PersistConfiguration(configuration) => {
                node.disk.log.form(configuration.clone());
                let now = self.now();
                let node = self.nodes.get_mut(&id).expect("a replica of this group");
                let handled = node.driver.handle(now, Event::ConfigurationPersisted(configuration));
                handled.unwrap_or_else(|error| panic!("replica {id} must stop: {error}"));
            }
            Effect::Send { to, message } => self.send(id, to, message),
            Effect::SendDependent { proof: _, messages } => {
                for (to, message) in messages {
                    self.send(id, to, message);
                }
            }
            Effect::Apply(range) => {
                let (first, last) = (*range.start(), *range.end());
                let records = node.disk.log.read(first, last, usize::MAX).expect("a log in memory");
                assert_eq!(records.len() as u64, last.0 + 1 - first.0, "what is applied is on the disk");
                assert_eq!(first, node.applied_upto.next(), "slots are applied in order");
                for record in records {
                    if let Payload::Command(command) = record.entry.payload {
                        node.applied.insert(record.slot, command);
                    }
                }
                node.applied_upto = last;
                let report = ApplyReport { applied: last, own: Vec::new(), fingerprints: Vec::new(), finished: true };
                let now = self.now();
                let node = self.nodes.get_mut(&id).expect("a replica of this group");
                let handled = node.driver.handle(now, Event::Applied(report));
                handled.unwrap_or_else(|error| panic!("replica {id} must stop: {error}"));
            }
            Effect::FetchBlob { .. }
            | Effect::CutLog(_)
            | Effect::StartOver(_)
            | Effect::WriteDone { .. }
            | Effect::ReadDone { .. }
            | Effect::Connect(_)
            | Effect::TakeSnapshot { .. }
            | Effect::FetchSnapshot { .. }
            | Effect::InstallSnapshot { .. }
            | Effect::PersistQuarantine(_)
            | Effect::MemberRequestDone { .. } => {}
        }
    }

    fn send(&mut self, from: ReplicaId, to: ReplicaId, message: PeerMessage) {
        let sent = Sent { from, to, message };
        // A doubled Forward is a doubled command, which connections do not make.
        if !matches!(sent.message, PeerMessage::Forward { .. } | PeerMessage::ForwardReply { .. }) {
            self.forge.record(sent.clone());
        }
        if self.network.len() < NETWORK_MAX && self.nodes.contains_key(&to) {
            self.network.push(sent);
        }
    }

    /// What is on its way is lost, and nobody remembers it.
    pub fn forget_network(&mut self) {
        self.network = Vec::new();
        self.forge.forget();
    }

    /// A message that is on its way arrives: mostly the oldest.
    pub fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let span = if self.random.percent(80) { 1 } else { self.network.len().min(10) };
        let index = usize::try_from(self.random.below(span as u64)).expect("an index");
        let Sent { from, to, message } = self.network.remove(index);
        self.hear(from, to, message);
    }

    /// What is on its way to a disk is durable, unless the disk is stuck.
    pub fn sync(&mut self, id: ReplicaId) {
        let node = self.nodes.get_mut(&id).expect("a replica of this group");
        if node.is_stuck {
            return;
        }
        if let Some(batch) = node.writing.take() {
            let written = node.disk.log.write(&batch);
            self.event(id, Event::Durable(written));
        }
    }

    /// A client writes.
    pub fn write(&mut self, at: ReplicaId, command: Bytes) {
        self.next_ticket += 1;
        let (ticket, deadline) = (Ticket(self.next_ticket), Ticks(self.ticks + 5_000));
        self.event(at, Event::Write(WriteRequest { ticket, command, blob: None, retry: true, deadline }));
    }

    /// Some time passes.
    pub fn pass(&mut self, ticks: u64) {
        self.ticks += ticks;
        for id in self.ids() {
            self.settle(id);
        }
    }

    /// Everything arrives and every disk writes for a while.
    pub fn calm(&mut self, ticks: u64) {
        let end = self.ticks + ticks;
        while self.ticks < end {
            for _ in 0..500 {
                if self.network.is_empty() {
                    break;
                }
                self.deliver();
            }
            for id in self.ids() {
                self.sync(id);
            }
            self.pass(10);
        }
    }

    /// One thing happens as it does in a group that nobody disturbs.
    pub fn live(&mut self) {
        let ids = self.ids();
        let id = *self.random.pick(&ids);
        match self.random.below(10) {
            0..5 => self.deliver(),
            5..8 => self.sync(id),
            8 => {
                let ticks = self.random.below(40);
                self.pass(ticks);
            }
            _ => {
                let command = format!("command {} of {id}", self.next_ticket);
                self.write(id, Bytes::from(command));
            }
        }
        let status = self.nodes[&id].driver.status();
        self.forge.near = (status.ballot.round, status.last.0);
    }

    /// Demands that the group gets a new command applied by a majority, within a bounded time.
    #[track_caller]
    pub fn demand_progress(&mut self, what: &str) {
        for attempt in 0..20 {
            let command = Bytes::from(format!("progress {attempt}"));
            for id in self.ids() {
                self.write(id, command.clone());
            }
            self.calm(2_000);
            let has = |node: &&Node| node.applied.values().any(|applied| *applied == command);
            if self.nodes.values().filter(has).count() >= 2 {
                return;
            }
        }
        let states: Vec<_> = self.nodes.values().map(|node| node.driver.status()).collect();
        panic!("{what}: no progress after 40 seconds: {states:#?}");
    }

    /// Demands that whatever two replicas have applied in a slot is the same.
    #[track_caller]
    pub fn demand_agreement(&self, what: &str) {
        let mut all: BTreeMap<Slot, &Bytes> = BTreeMap::new();
        for (id, node) in &self.nodes {
            for (slot, command) in &node.applied {
                let other = all.entry(*slot).or_insert(command);
                assert_eq!(*other, command, "{what}: replica {id} has applied something else in slot {slot}");
            }
        }
    }
}
