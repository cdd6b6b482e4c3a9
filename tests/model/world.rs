//! A group of shipped cores (`d3b_paxos::Replica`), a network and disks, as one value that a model checker can copy,
//! hash and step: each step is one thing that can happen in the world.
//!
//! Messages in the network are a set: they are delivered in any order, late, or never (a message that stays in the set
//! for good is a lost one). A delivered message is taken out, unless the scene plays doubled messages.
//!
//! Every step checks what must hold at every moment, and the first thing that does not is kept in
//! [`World::violation`], so that one property finds them all and the checker's path tells the story.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use bytes::Bytes;
use d3b::{ClusterId, DiskId, ReplicaId, Slot};
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{
    Ballot, Configuration, Entry, Epoch, Member, Now, PersistId, ProposalId, ReadId, Record, Ticks,
};
use d3b_paxos::{Input, PersistBatch, Planted, Proposal, Ready, Replica, Restored, Settings, Storage, StorageError};

/// Longer than any election timeout of the models: whoever is ticked after so long campaigns.
const LONG: u64 = 100;

/// What may happen in a scene, and how often: the bounds that make it finite.
#[derive(Debug, Clone)]
pub struct Scene {
    /// How many replicas.
    pub replicas: u32,
    /// How many times some replica's election timeout may pass.
    pub campaigns: u8,
    /// How many values clients may propose.
    pub proposals: u8,
    /// How many reads clients may ask.
    pub reads: u8,
    /// How many times a replica may crash and start again.
    pub crashes: u8,
    /// How many heartbeats leaders may send on their own.
    pub heartbeats: u8,
    /// How many deliveries may leave the message in the network, to come again.
    pub doubled: u8,
    /// Who may campaign.
    pub candidates: BTreeSet<ReplicaId>,
    /// A bug that was planted.
    pub planted: Option<Planted>,
}

impl Scene {
    /// Nothing happens, among so many replicas.
    pub fn of(replicas: u32) -> Scene {
        Scene {
            replicas,
            campaigns: 0,
            proposals: 0,
            reads: 0,
            crashes: 0,
            heartbeats: 0,
            doubled: 0,
            candidates: (1..=replicas).map(ReplicaId).collect(),
            planted: None,
        }
    }
}

/// A disk: what was persisted, readable by the core.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Disk {
    records: BTreeMap<Slot, Record>,
    promised: Option<Ballot>,
}

impl Storage for Disk {
    fn read(&self, from: Slot, upto: Slot, _bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        Ok(if from > upto {
            Vec::new()
        } else {
            self.records.range(from..=upto).map(|(_, record)| record.clone()).collect()
        })
    }
}

/// One replica: its core, and what hangs on its next write.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    core: Replica<Disk>,
    writing: Option<(PersistBatch, Vec<Envelope>)>,
    applied: Slot,
    /// The highest ballot that it ever campaigned with, of which it must not use one twice.
    campaigned: Ballot,
}

/// The whole world at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    nodes: Vec<Node>,
    /// By their hashes, which makes it a set with a fixed order.
    network: BTreeMap<u64, Envelope>,
    now: u64,
    campaigns: u8,
    proposals: u8,
    reads: u8,
    crashes: u8,
    heartbeats: u8,
    doubled: u8,
    /// What a majority holds at one ballot, and the lowest ballot that it was seen chosen at.
    chosen: BTreeMap<Slot, Entry>,
    /// The end of what any replica has applied: what a client may have been told.
    told: Slot,
    /// What each pending read must see at least.
    floors: BTreeMap<(ReplicaId, ReadId), Slot>,
    /// How many reads were answered.
    pub answered: u8,
    /// The first thing that must never be.
    pub violation: Option<&'static str>,
}

/// One thing that can happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Happening {
    /// A message arrives.
    Deliver(Envelope),
    /// A message arrives, and will come again.
    DeliverTwice(Envelope),
    /// A write reaches the disk.
    Persist(ReplicaId),
    /// A replica's election timeout passes.
    Timeout(ReplicaId),
    /// A leader's heartbeat is due.
    Heartbeat(ReplicaId),
    /// A client proposes a value.
    Propose(ReplicaId),
    /// A client reads.
    Read(ReplicaId),
    /// The process dies with everything that was not persisted, and starts again.
    Crash(ReplicaId),
}

fn hash(envelope: &Envelope) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    envelope.hash(&mut hasher);
    hasher.finish()
}

fn id(index: usize) -> ReplicaId {
    ReplicaId(u32::try_from(index).expect("few replicas") + 1)
}

fn configuration(replicas: u32) -> Configuration {
    let member = |id: u32| Member { disk: DiskId([u8::try_from(id).expect("few replicas"); 16]), peer: String::new() };
    let members = (1..=replicas).map(|id| (ReplicaId(id), member(id))).collect();
    Configuration { cluster: ClusterId([7; 16]), epoch: Epoch(0), members }
}

fn settings(id: ReplicaId, scene: &Scene) -> Settings {
    let disk = configuration(scene.replicas).members[&id].disk;
    Settings {
        id,
        disk,
        heartbeat: Ticks(LONG / 4),
        election_timeout_min: Ticks(LONG),
        election_timeout_max: Ticks(LONG + 1),
        seed: 0,
        inflight_bytes_max: usize::MAX,
        message_bytes_max: usize::MAX,
        execution: 1,
        clock_ahead_ms_max: 0,
    }
}

impl World {
    /// Everybody has just started for the first time.
    pub fn new(scene: &Scene) -> World {
        let mut world = World {
            nodes: Vec::new(),
            network: BTreeMap::new(),
            now: 0,
            campaigns: 0,
            proposals: 0,
            reads: 0,
            crashes: 0,
            heartbeats: 0,
            doubled: 0,
            chosen: BTreeMap::new(),
            told: Slot::ZERO,
            floors: BTreeMap::new(),
            answered: 0,
            violation: None,
        };
        for index in 0..scene.replicas as usize {
            world.nodes.push(Node {
                core: world.start(id(index), scene, Disk::default(), Slot::ZERO),
                writing: None,
                applied: Slot::ZERO,
                campaigned: Ballot::ZERO,
            });
        }
        world
    }

    fn start(&self, id: ReplicaId, scene: &Scene, disk: Disk, applied: Slot) -> Replica<Disk> {
        let restored = Restored {
            configuration: configuration(scene.replicas),
            promised: disk.promised.unwrap_or(Ballot::ZERO),
            base: Slot(1),
            last: disk.records.last_key_value().map_or(Slot::ZERO, |(slot, _)| *slot),
            applied,
        };
        let mut replica = Replica::new(settings(id, scene), restored, disk, self.moment());
        if let Some(planted) = scene.planted {
            replica.plant(planted);
        }
        replica
    }

    fn moment(&self) -> Now {
        Now { ticks: Ticks(self.now), clock_ms: 0 }
    }

    fn node(&mut self, id: ReplicaId) -> &mut Node {
        &mut self.nodes[id.0 as usize - 1]
    }

    /// What can happen next.
    pub fn happenings(&self, scene: &Scene, happenings: &mut Vec<Happening>) {
        if self.violation.is_some() {
            return;
        }
        for envelope in self.network.values() {
            happenings.push(Happening::Deliver(envelope.clone()));
            if self.doubled < scene.doubled {
                happenings.push(Happening::DeliverTwice(envelope.clone()));
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let id = id(index);
            let leads = node.core.leader() == Some(id);
            if node.writing.is_some() {
                happenings.push(Happening::Persist(id));
            }
            if !leads && self.campaigns < scene.campaigns && scene.candidates.contains(&id) {
                happenings.push(Happening::Timeout(id));
            }
            if leads && self.heartbeats < scene.heartbeats {
                happenings.push(Happening::Heartbeat(id));
            }
            if leads && self.proposals < scene.proposals {
                happenings.push(Happening::Propose(id));
            }
            if self.reads < scene.reads && node.core.leader().is_some() {
                happenings.push(Happening::Read(id));
            }
            if self.crashes < scene.crashes {
                happenings.push(Happening::Crash(id));
            }
        }
    }

    /// The world after something has happened; `None` if that changes nothing.
    pub fn after(&self, scene: &Scene, happening: Happening) -> Option<World> {
        let mut world = self.clone();
        match happening {
            Happening::Deliver(envelope) => {
                world.network.remove(&hash(&envelope));
                world.step(envelope.to, Input::Message(envelope));
            }
            Happening::DeliverTwice(envelope) => {
                world.doubled += 1;
                world.step(envelope.to, Input::Message(envelope));
            }
            Happening::Persist(id) => world.persist(id),
            Happening::Timeout(id) => {
                world.campaigns += 1;
                world.now += 2 * LONG;
                world.tick(id);
            }
            Happening::Heartbeat(id) => {
                world.heartbeats += 1;
                world.now += LONG / 4;
                world.tick(id);
            }
            Happening::Propose(id) => {
                world.proposals += 1;
                let proposal = Proposal {
                    id: ProposalId(u64::from(world.proposals)),
                    command: Bytes::copy_from_slice(&[world.proposals]),
                    seed: 0,
                };
                world.step(id, Input::Propose(proposal));
            }
            Happening::Read(id) => {
                world.reads += 1;
                let read = ReadId(u64::from(world.reads));
                world.floors.insert((id, read), world.told);
                world.step(id, Input::Read(read));
            }
            Happening::Crash(id) => world.crash(id, scene),
        }
        (world != *self).then_some(world)
    }

    fn step(&mut self, id: ReplicaId, input: Input) {
        let now = self.moment();
        self.node(id).core.step(now, input).expect("this disk never fails");
        self.settle(id);
    }

    fn tick(&mut self, id: ReplicaId) {
        let now = self.moment();
        self.node(id).core.tick(now).expect("this disk never fails");
        self.settle(id);
    }

    /// Carries out what the core asks for, until it asks for nothing more.
    fn settle(&mut self, id: ReplicaId) {
        loop {
            let ready = self.node(id).core.ready().expect("this disk never fails");
            let Ready { persist, send_now, send_after_persist, apply, reads, replies: _ } = ready;
            for envelope in send_now {
                self.send(id, envelope);
            }
            if let Some(batch) = persist {
                let node = self.node(id);
                assert!(node.writing.is_none(), "the core asks for one write at a time");
                node.writing = Some((batch, send_after_persist));
            }
            for read in reads {
                if let Some(floor) = self.floors.remove(&(id, read.id)) {
                    self.answered += 1;
                    if read.index < floor {
                        self.violate("a read missed what was acknowledged before it began");
                    }
                }
            }
            let Some(range) = apply else { return };
            self.apply(id, *range.start(), *range.end());
            let now = self.moment();
            self.node(id).core.step(now, Input::Applied(*range.end())).expect("this disk never fails");
        }
    }

    fn violate(&mut self, what: &'static str) {
        self.violation.get_or_insert(what);
    }

    /// Lets a message into the network, if its sender's disk bears out what it says.
    fn send(&mut self, id: ReplicaId, envelope: Envelope) {
        let node = &self.nodes[id.0 as usize - 1];
        let disk = node.core.storage();
        let promised = disk.promised.unwrap_or(Ballot::ZERO);
        let (commit, single) = (node.applied, self.nodes.len() == 1);
        let durable = match &envelope.message {
            Message::Prepare { ballot, .. } | Message::Promise { ballot, .. } => promised >= *ballot,
            Message::Accepted { ballot, upto, .. } => {
                promised >= *ballot
                    && (commit.next().0..=upto.0)
                        .all(|slot| disk.records.get(&Slot(slot)).is_some_and(|record| record.ballot == *ballot))
            }
            Message::PreVote { .. }
            | Message::PreVoteReply { .. }
            | Message::PromiseMore { .. }
            | Message::Accept { .. }
            | Message::Nack { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexReply { .. }
            | Message::TimeoutNow { .. } => true,
        };
        if !durable {
            self.violate("something was sent before what it says was durable");
        }
        if let Message::Prepare { ballot, .. } = envelope.message
            && ballot < self.nodes[id.0 as usize - 1].campaigned
        {
            self.violate("a ballot was used again");
        }
        if let Message::Prepare { ballot, .. } = envelope.message {
            self.node(id).campaigned = ballot;
        }
        assert!(!single, "a group of one has nobody to talk to");
        self.network.insert(hash(&envelope), envelope);
    }

    fn persist(&mut self, id: ReplicaId) {
        let Some((batch, dependent)) = self.node(id).writing.take() else { return };
        let PersistBatch { id: persist_id, promised, records } = batch;
        let disk = self.node(id).core.storage_mut();
        let before = disk.promised;
        if let Some(promised) = promised {
            disk.promised = Some(promised);
        }
        let shrunk = disk.promised < before;
        for record in records {
            disk.records.insert(record.slot, record);
        }
        if shrunk {
            self.violate("a promise was taken back");
        }
        self.notice_chosen();
        for envelope in dependent {
            self.send(id, envelope);
        }
        self.persisted(id, persist_id);
    }

    fn persisted(&mut self, id: ReplicaId, persist_id: PersistId) {
        self.step(id, Input::Persisted(persist_id));
    }

    /// A value is chosen where a majority's disks hold it at one ballot; no slot may ever have two.
    fn notice_chosen(&mut self) {
        let majority = self.nodes.len() / 2 + 1;
        let mut held: BTreeMap<(Slot, Ballot), Vec<&Entry>> = BTreeMap::new();
        for node in &self.nodes {
            for (slot, record) in &node.core.storage().records {
                held.entry((*slot, record.ballot)).or_default().push(&record.entry);
            }
        }
        let mut found = Vec::new();
        let mut two_values = false;
        for ((slot, _), entries) in &held {
            two_values |= entries.windows(2).any(|pair| pair[0] != pair[1]);
            if entries.len() >= majority {
                found.push((*slot, entries[0].clone()));
            }
        }
        for (slot, entry) in found {
            let known = self.chosen.entry(slot).or_insert_with(|| entry.clone());
            if *known != entry {
                self.violate("a slot has two chosen values");
            }
        }
        if two_values {
            self.violate("a slot has two values at one ballot");
        }
    }

    fn apply(&mut self, id: ReplicaId, from: Slot, upto: Slot) {
        for slot in from.0..=upto.0 {
            let slot = Slot(slot);
            let held = self.node(id).core.storage().records.get(&slot).map(|record| record.entry.clone());
            match (held, self.chosen.get(&slot)) {
                (None, _) => self.violate("a slot was applied that is not on the disk"),
                (Some(_), None) => self.violate("a slot was applied that is not chosen"),
                (Some(held), Some(chosen)) if held != *chosen => {
                    self.violate("another value than the chosen one was applied")
                }
                (Some(_), Some(_)) => {}
            }
        }
        self.node(id).applied = upto;
        self.told = self.told.max(upto);
    }

    fn crash(&mut self, id: ReplicaId, scene: &Scene) {
        self.crashes += 1;
        let node = &self.nodes[id.0 as usize - 1];
        let (disk, applied) = (node.core.storage().clone(), node.applied);
        let core = self.start(id, scene, disk, applied);
        let node = self.node(id);
        node.core = core;
        node.writing = None;
        self.floors.retain(|(reader, _), _| *reader != id);
        self.settle(id);
    }

    /// Whether some value of a client is chosen.
    pub fn chose_a_command(&self) -> bool {
        self.chosen.values().any(|entry| matches!(entry.payload, d3b_paxos::types::Payload::Command(_)))
    }

    /// Whether this many ballots got as far as a campaign.
    pub fn campaigned(&self) -> usize {
        self.nodes.iter().filter(|node| node.campaigned > Ballot::ZERO).count()
    }
}
