//! A group of shipped cores (`d3b_paxos::Replica`), a network and disks, as one value that a model checker can copy,
//! hash and step: each step is one thing that can happen in the world.
//!
//! What keeps it small without taking away anything that safety could depend on:
//!
//! * **The network is a set** out of which nothing is taken: a message may arrive at any time after it was sent, in any
//!   order, any number of times, or never. Only what would change nothing any more where it arrives is forgotten,
//!   unless the scene plays [`Scene::late`] messages; and questions for a read index arrive once, as each begins a round.
//! * **There is no time.** Every timeout is zero and every clock stands still: an election timeout may pass at any
//!   moment, no lease ever holds, and no leader steps down for want of answers.
//! * **Pre-votes are asked and answered in one step**, as they change nothing at whoever grants them; all that matters
//!   is what the asker learns of that member's promise. [`Scene::pre_votes`] plays them as messages instead.
//! * **Scenes leave out** what they are not about: writes that take their time, heartbeats and what is asked again
//!   ([`Scene::quiet`]), refusals. To lose these is nothing that a network could not do. Other scenes play them.
//!
//! Every step checks what must hold at every moment, and the first thing that does not is kept in
//! [`World::violation`], so that the checker's path ends where it went wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use d3b::{ClusterId, DiskId, ReplicaId, Slot};
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{
    Ballot, Configuration, Entry, Epoch, Member, Now, Payload, PersistId, ProposalId, ReadId, Record, Ticks,
};
use d3b_paxos::{Input, PersistBatch, Proposal, Ready, Replica, Restored, Role, Settings};
use d3b_tests::durability;

use crate::disk::Disk;
use crate::scene::Scene;

/// What must hold at every moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Law {
    /// One value per slot is chosen, one per slot and ballot is accepted, and nothing else is applied or told.
    Agreement,
    /// No later ballot carries another value in a slot where one was chosen.
    ChosenStays,
    /// Nothing is sent before what it says is durable, and no promise is taken back.
    Durability,
    /// A read sees everything that was acknowledged before it began.
    Reads,
    /// No two campaigns of a replica have the same ballot.
    Ballots,
    /// Log time rises from slot to slot.
    LogTime,
    /// A configuration is adopted if and only if it is chosen, and no slot behind it is chosen by another.
    Configurations,
}

/// One replica: its core, and what hangs on its next write.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    core: Replica<Disk>,
    disk_id: DiskId,
    /// The name of the batch is left out: equal states may have written other batches before.
    writing: Option<(PersistBatch, Vec<Envelope>)>,
    applied: Slot,
    /// The highest ballot that this disk has ever campaigned with.
    campaigned: Ballot,
    /// Whether it has crashed and started again.
    restarted: bool,
}

/// What has been accepted in a slot at a ballot, durably, by whom; acceptors may have overwritten it since.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Vote {
    entry: Entry,
    acceptors: BTreeSet<ReplicaId>,
}

/// The whole world at one moment.
#[derive(Debug, Clone)]
pub struct World {
    nodes: Vec<Arc<Node>>,
    /// Hashes of the nodes, kept so that only those that change are hashed again.
    prints: Vec<u64>,
    /// By their hashes, which makes it a set with a fixed order.
    network: BTreeMap<u64, Arc<Envelope>>,
    past: Past,
    /// The first thing that must never be.
    pub violation: Option<(Law, &'static str)>,
}

/// What has happened so far, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Past {
    campaigns: u8,
    proposals: u8,
    reads: u8,
    crashes: u8,
    wipes: u8,
    heartbeats: u8,
    transfers: u8,
    changes: u8,
    tellings: u8,
    answered: u8,
    votes: Arc<BTreeMap<Slot, BTreeMap<Ballot, Vote>>>,
    /// What a majority has accepted at one ballot, and the lowest such ballot.
    chosen: BTreeMap<Slot, (Ballot, Entry)>,
    /// Every configuration that was chosen behind the founding one, by its slot.
    configurations: BTreeMap<Slot, Configuration>,
    /// The configuration that each ballot belongs to, where there are several.
    epochs: BTreeMap<Ballot, Epoch>,
    /// The end of what any replica has applied: what a client may have been told.
    told: Slot,
    /// What each pending read must see at least.
    floors: BTreeMap<(ReplicaId, ReadId), Slot>,
}

impl PartialEq for World {
    fn eq(&self, other: &World) -> bool {
        self.prints == other.prints
            && self.network.keys().eq(other.network.keys())
            && self.past == other.past
            && self.violation == other.violation
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.prints.hash(state);
        self.network.len().hash(state);
        for print in self.network.keys() {
            print.hash(state);
        }
        self.past.hash(state);
        self.violation.hash(state);
    }
}

/// One thing that can happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Happening {
    /// A message arrives.
    Deliver(Arc<Envelope>),
    /// A write reaches the disk.
    Persist(ReplicaId),
    /// A replica's election timeout passes, and it asks around.
    Timeout(ReplicaId),
    /// A replica's election timeout passes, and its campaign is welcomed, by this member among others if more are needed.
    Campaign(ReplicaId, ReplicaId),
    /// A leader's heartbeat is due.
    Heartbeat(ReplicaId),
    /// A client proposes a value.
    Propose(ReplicaId),
    /// A client reads.
    Read(ReplicaId),
    /// A leader is told to hand over.
    Transfer(ReplicaId, ReplicaId),
    /// A change of the configuration is asked for.
    Change(ReplicaId),
    /// A replica is told of a newer configuration, and starts again with it.
    Tell(ReplicaId, Configuration),
    /// The process dies with everything that was not persisted, and starts again having applied this much.
    Crash(ReplicaId, Slot),
    /// The process dies, and starts again on a fresh disk.
    Wipe(ReplicaId),
}

/// Leaves out what is for people only.
fn normalize(envelope: &mut Envelope) {
    if let Message::Accepted { applied, .. } = &mut envelope.message {
        *applied = Slot::ZERO;
    }
}

fn print(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn id(index: usize) -> ReplicaId {
    ReplicaId(u32::try_from(index).expect("few replicas") + 1)
}

fn index(id: ReplicaId) -> usize {
    id.0 as usize - 1
}

fn disk_of(id: ReplicaId) -> DiskId {
    DiskId([u8::try_from(id.0).expect("few replicas"); 16])
}

fn founding(scene: &Scene) -> Configuration {
    let voter = |id| Member::voter(disk_of(id), String::new());
    let member = |id: ReplicaId| (id, Member { votes: id.0 <= scene.founders, ..voter(id) });
    let members = (1..=scene.replicas).map(ReplicaId).map(member).collect();
    Configuration::founding(ClusterId([7; 16]), members)
}

/// Time stands still.
const NOW: Now = Now { ticks: Ticks(0), clock_ms: 0 };

fn start(id: ReplicaId, scene: &Scene, disk_id: DiskId, disk: Disk, applied: Slot) -> Replica<Disk> {
    let settings = Settings {
        id,
        disk: disk_id,
        heartbeat: Ticks(0),
        election_timeout_min: Ticks(0),
        election_timeout_max: Ticks(0),
        seed: 0,
        inflight_bytes_max: usize::MAX,
        message_bytes_max: if scene.chunks { 1 } else { usize::MAX },
        clock_ahead_ms_max: 0,
    };
    let (configuration, held) = disk.configuration.clone().unwrap_or_else(|| (founding(scene), false));
    let restored = Restored {
        held: if held { configuration.slot } else { Slot::ZERO },
        configuration,
        promised: disk.promised.unwrap_or(Ballot::ZERO),
        base: Slot(1),
        last: disk.records.last_key_value().map_or(Slot::ZERO, |(slot, _)| *slot),
        applied,
    };
    let mut replica = Replica::new(settings, restored, disk, NOW);
    if let Some(planted) = scene.planted {
        replica.plant(planted);
    }
    replica
}

impl World {
    /// Everybody has just started for the first time.
    pub fn new(scene: &Scene) -> World {
        let node = |id| Node {
            core: start(id, scene, disk_of(id), Disk::default(), Slot::ZERO),
            disk_id: disk_of(id),
            writing: None,
            applied: Slot::ZERO,
            campaigned: Ballot::ZERO,
            restarted: false,
        };
        let nodes: Vec<Arc<Node>> = (1..=scene.replicas).map(ReplicaId).map(node).map(Arc::new).collect();
        let prints = nodes.iter().map(print).collect();
        let mut world = World { nodes, prints, network: BTreeMap::new(), past: Past::default(), violation: None };
        for index in 0..world.nodes.len() {
            // Who is alone begins to lead.
            world.settle(scene, id(index));
            world.prints[index] = print(&world.nodes[index]);
        }
        world
    }

    fn node(&self, id: ReplicaId) -> &Node {
        &self.nodes[index(id)]
    }

    fn node_mut(&mut self, id: ReplicaId) -> &mut Node {
        Arc::make_mut(&mut self.nodes[index(id)])
    }

    fn leads(&self, id: ReplicaId) -> bool {
        self.node(id).core.status().role == Role::Leader
    }

    /// What can happen next.
    pub fn happenings(&self, scene: &Scene, happenings: &mut Vec<Happening>) {
        if self.violation.is_some() {
            return;
        }
        happenings.extend(self.network.values().cloned().map(Happening::Deliver));
        let past = &self.past;
        for (index, node) in self.nodes.iter().enumerate() {
            let id = id(index);
            let leads = self.leads(id);
            if node.writing.is_some() {
                happenings.push(Happening::Persist(id));
            }
            let configuration = node.core.configuration();
            let votes = configuration.votes(id);
            if !leads && votes && past.campaigns < scene.campaigns && scene.candidates.contains(&id) {
                if scene.pre_votes {
                    happenings.push(Happening::Timeout(id));
                } else {
                    let voters = self.others(id).filter(|voter| configuration.votes(*voter));
                    happenings.extend(voters.map(|voter| Happening::Campaign(id, voter)));
                }
            }
            if leads && past.heartbeats < scene.heartbeats {
                happenings.push(Happening::Heartbeat(id));
            }
            if leads && past.proposals < scene.proposals {
                happenings.push(Happening::Propose(id));
            }
            if leads && past.transfers < scene.transfers {
                happenings.extend(self.others(id).map(|target| Happening::Transfer(id, target)));
            }
            if leads && usize::from(past.changes) < scene.changes.len() {
                happenings.push(Happening::Change(id));
            }
            if past.tellings < scene.tellings {
                let newer = past.configurations.values().filter(|newer| newer.epoch > configuration.epoch);
                let adopted =
                    |newer: &&Configuration| self.nodes.iter().any(|node| node.core.configuration() == *newer);
                happenings.extend(newer.filter(adopted).cloned().map(|newer| Happening::Tell(id, newer)));
            }
            if past.reads < scene.reads && node.core.leader().is_some() {
                happenings.push(Happening::Read(id));
            }
            if past.crashes < scene.crashes {
                happenings.push(Happening::Crash(id, node.applied));
                if node.applied > Slot::ZERO {
                    happenings.push(Happening::Crash(id, Slot::ZERO));
                }
            }
            if past.wipes < scene.wipes {
                happenings.push(Happening::Wipe(id));
            }
        }
    }

    fn others(&self, id: ReplicaId) -> impl Iterator<Item = ReplicaId> {
        (0..self.nodes.len()).map(self::id).filter(move |other| *other != id)
    }

    /// The world after something has happened; `None` if that changes nothing.
    pub fn after(&self, scene: &Scene, happening: Happening) -> Option<World> {
        let mut world = self.clone();
        let changed = match happening {
            Happening::Deliver(envelope) => world.deliver(scene, &envelope),
            Happening::Persist(id) => world.persist(scene, id),
            Happening::Timeout(id) => {
                world.tick(scene, id);
                id
            }
            Happening::Campaign(id, voter) => world.campaign(scene, id, voter),
            Happening::Heartbeat(id) => {
                world.past.heartbeats += 1;
                world.tick(scene, id);
                id
            }
            Happening::Propose(id) => {
                world.past.proposals += 1;
                // The stamp's seed makes an entry unlike that of any other slot and ballot.
                let proposal = Proposal { id: ProposalId(0), command: Bytes::from_static(b"value"), seed: 0 };
                world.step(scene, id, Input::Propose(proposal));
                id
            }
            Happening::Read(id) => {
                world.past.reads += 1;
                let read = ReadId(u64::from(world.past.reads));
                let told = world.past.told;
                world.past.floors.insert((id, read), told);
                world.step(scene, id, Input::Read(read));
                id
            }
            Happening::Transfer(id, target) => {
                world.past.transfers += 1;
                world.step(scene, id, Input::Transfer(Some(target)));
                id
            }
            Happening::Change(id) => {
                let (proposal, change) = (ProposalId(0), scene.changes[usize::from(world.past.changes)].clone());
                let last = world.node(id).core.status().last;
                world.past.changes += 1;
                world.step(scene, id, Input::Reconfigure { id: proposal, change });
                if world.node(id).core.status().last == last {
                    // It is refused for now.
                    return None;
                }
                id
            }
            Happening::Tell(id, configuration) => {
                world.past.tellings += 1;
                let node = world.node(id);
                let (disk_id, applied, disk) = (node.disk_id, node.applied, node.core.storage().clone());
                let disk = Disk { configuration: Some((configuration, false)), ..disk };
                world.restart(scene, id, disk_id, disk, applied)
            }
            Happening::Crash(id, applied) => {
                world.past.crashes += 1;
                let (disk_id, disk) = (world.node(id).disk_id, world.node(id).core.storage().clone());
                world.restart(scene, id, disk_id, disk, applied)
            }
            Happening::Wipe(id) => {
                world.past.wipes += 1;
                world.node_mut(id).campaigned = Ballot::ZERO;
                world.restart(scene, id, DiskId([0xee; 16]), Disk::default(), Slot::ZERO)
            }
        };
        world.prints[index(changed)] = print(world.node(changed));
        if !scene.late {
            world.forget_idle(scene, changed, self);
        }
        (world != *self).then_some(world)
    }

    /// Lets a message arrive; who received it.
    fn deliver(&mut self, scene: &Scene, envelope: &Arc<Envelope>) -> ReplicaId {
        let to = envelope.to;
        if matches!(envelope.message, Message::ReadIndex { .. } | Message::ReadIndexAt { .. }) {
            self.network.remove(&print(&**envelope));
        }
        let before = self.clone();
        if self.step(scene, to, Input::Message((**envelope).clone())) {
            // A pre-vote or a transfer has made a candidate. Beyond the bound, that message is lost.
            if self.past.campaigns < scene.campaigns {
                self.past.campaigns += 1;
            } else {
                *self = before;
            }
        }
        to
    }

    /// Just enough members welcome a campaign, from this one on, and it begins; nothing happens if one does not.
    fn campaign(&mut self, scene: &Scene, id: ReplicaId, first: ReplicaId) -> ReplicaId {
        let before = self.clone();
        let node = self.node_mut(id);
        node.core.tick(NOW).expect("this disk never fails");
        let asked = node.core.ready().expect("this disk never fails").send_now;
        let configuration = self.node(id).core.configuration().clone();
        let others = || self.others(id).filter(|other| configuration.votes(*other));
        let voters: Vec<ReplicaId> = others().chain(others()).skip_while(|other| *other != first).collect();
        let mut began = false;
        for voter in &voters[..configuration.majority() - 1] {
            // A pre-vote changes nothing at the member that is asked, but for what is about time, which stands still.
            let mut granter = self.node(*voter).core.clone();
            if let Some(question) = asked.iter().find(|envelope| envelope.to == *voter) {
                granter.step(NOW, Input::Message(question.clone())).expect("this disk never fails");
            }
            let answers = granter.ready().expect("this disk never fails").send_now;
            if let Some(answer) = answers.into_iter().find(|envelope| envelope.to == id) {
                began |= self.step(scene, id, Input::Message(answer));
            }
        }
        if began {
            self.past.campaigns += 1;
        } else {
            *self = before;
        }
        id
    }

    /// Hands an input to a core; whether that begins a campaign.
    fn step(&mut self, scene: &Scene, id: ReplicaId, input: Input) -> bool {
        let node = self.node_mut(id);
        let candidacy = |core: &Replica<Disk>| (core.status().role == Role::Candidate).then(|| core.promised());
        let before = candidacy(&node.core);
        node.core.step(NOW, input).expect("this disk never fails");
        let after = candidacy(&node.core);
        let began = after.is_some() && after != before;
        if began && after <= Some(node.campaigned) {
            self.violate(Law::Ballots, "a ballot was used again");
        }
        self.settle(scene, id);
        began
    }

    fn tick(&mut self, scene: &Scene, id: ReplicaId) {
        self.node_mut(id).core.tick(NOW).expect("this disk never fails");
        self.settle(scene, id);
    }

    /// Carries out what the core asks for, until it asks for nothing more.
    fn settle(&mut self, scene: &Scene, id: ReplicaId) {
        loop {
            let ready = self.node_mut(id).core.ready().expect("this disk never fails");
            self.note_epoch(scene, id);
            let Ready { persist, send_now, send_after_persist, apply, reads, replies: _ } = ready;
            for envelope in send_now {
                self.send(scene, id, envelope);
            }
            if let Some(batch) = persist {
                let node = self.node_mut(id);
                assert!(node.writing.is_none(), "the core asks for one write at a time");
                node.writing = Some((PersistBatch { id: PersistId(0), ..batch }, send_after_persist));
            }
            for read in reads {
                if let Some(floor) = self.past.floors.remove(&(id, read.id)) {
                    self.past.answered += 1;
                    if read.index < floor {
                        self.violate(Law::Reads, "a read missed what was acknowledged before it began");
                    }
                }
            }
            if let Some(range) = &apply {
                self.apply(scene, id, *range.start(), *range.end());
                self.node_mut(id).core.step(NOW, Input::Applied(*range.end())).expect("this disk never fails");
            }
            if scene.prompt && self.node(id).writing.is_some() {
                self.persist(scene, id);
            } else if apply.is_none() {
                return;
            }
        }
    }

    /// Notes which configuration a ballot belongs to.
    fn note_epoch(&mut self, scene: &Scene, id: ReplicaId) {
        let core = &self.nodes[index(id)].core;
        let (ballot, epoch) = (core.promised(), core.configuration().epoch);
        if !scene.changes.is_empty() && core.status().role == Role::Candidate {
            let known = *self.past.epochs.entry(ballot).or_insert(epoch);
            if known != epoch {
                self.violate(Law::Configurations, "a ballot belongs to two configurations");
            }
        }
    }

    fn violate(&mut self, law: Law, what: &'static str) {
        self.violation.get_or_insert((law, what));
    }

    /// Lets a message into the network, if its sender's disk bears out what it says.
    fn send(&mut self, scene: &Scene, id: ReplicaId, mut envelope: Envelope) {
        normalize(&mut envelope);
        let node = self.node(id);
        let disk = node.core.storage();
        let value = |slot| self.past.chosen.get(&slot).map(|(_, entry)| entry);
        let durable = durability::check(&envelope.message, disk, node.applied, value).is_ok();
        let chosen = |upto: Slot| (1..=upto.0).all(|slot| self.past.chosen.contains_key(&Slot(slot)));
        let mut told = true;
        match &envelope.message {
            Message::Prepare { ballot, .. } => {
                let ballot = *ballot;
                let campaigned = &mut self.nodes[index(id)];
                Arc::make_mut(campaigned).campaigned = ballot.max(campaigned.campaigned);
            }
            Message::Promise { commit, .. } | Message::Accept { commit, .. } => told = chosen(*commit),
            Message::ReadIndexReply { index, .. } => told = index.is_none_or(chosen),
            Message::PreVote { .. }
            | Message::PreVoteReply { .. }
            | Message::PromiseMore { .. }
            | Message::Accepted { .. }
            | Message::Nack { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexAt { .. }
            | Message::TimeoutNow { .. }
            | Message::Behind { .. }
            | Message::Superseded { .. } => {}
        }
        if !durable {
            self.violate(Law::Durability, "something was sent before what it says was durable");
        }
        if !told {
            self.violate(Law::Agreement, "something was told to be chosen that is not");
        }
        if scene.carries(&envelope) {
            self.network.insert(print(&envelope), Arc::new(envelope));
        }
    }

    fn persist(&mut self, scene: &Scene, id: ReplicaId) -> ReplicaId {
        let node = self.node_mut(id);
        let (Some((batch, dependent)), Some(name)) = (node.writing.take(), node.core.outstanding()) else { return id };
        let disk = node.core.storage_mut();
        let shrunk = batch.promised.is_some_and(|promised| Some(promised) < disk.promised);
        disk.promised = batch.promised.or(disk.promised);
        for record in &batch.records {
            disk.records.insert(record.slot, record.clone());
        }
        if let Some(configuration) = &batch.configuration {
            disk.configuration = Some((configuration.clone(), true));
        }
        if shrunk {
            self.violate(Law::Durability, "a promise was taken back");
        }
        for record in batch.records {
            self.vote(scene, id, record);
        }
        if let Some(adopted) = &batch.configuration
            && self.past.configurations.get(&adopted.slot) != Some(adopted)
        {
            self.violate(Law::Configurations, "a configuration was adopted that was not chosen");
        }
        for envelope in dependent {
            self.send(scene, id, envelope);
        }
        self.step(scene, id, Input::Persisted(name));
        id
    }

    /// The configuration whose majority chooses in a slot.
    fn governing(&self, scene: &Scene, slot: Slot) -> Configuration {
        let last = self.past.configurations.range(..slot).next_back();
        last.map_or_else(|| founding(scene), |(_, configuration)| configuration.clone())
    }

    /// A record is durable: perhaps its value is chosen thereby. A ballot of an earlier configuration chooses nothing.
    fn vote(&mut self, scene: &Scene, id: ReplicaId, record: Record) {
        let Record { slot, ballot, entry } = record;
        let governing = self.governing(scene, slot);
        let epochs = &self.past.epochs;
        let counts = |ballot: &Ballot| epochs.get(ballot).copied().unwrap_or_default() >= governing.epoch;
        let ballots = Arc::make_mut(&mut self.past.votes).entry(slot).or_default();
        let vote = ballots.entry(ballot).or_insert_with(|| Vote { entry: entry.clone(), acceptors: BTreeSet::new() });
        let two_values = vote.entry != entry;
        vote.acceptors.insert(id);
        let votes = |vote: &Vote| vote.acceptors.iter().filter(|id| governing.votes(**id)).count();
        let mut chosen = ballots.iter().filter(|(ballot, vote)| counts(ballot) && votes(vote) >= governing.majority());
        if let Some((lowest, Vote { entry, .. })) = chosen.next() {
            let disagree = chosen.any(|(_, vote)| vote.entry != *entry);
            let forgotten = ballots.range(lowest..).any(|(_, vote)| vote.entry != *entry);
            self.past.chosen.insert(slot, (*lowest, entry.clone()));
            if let Payload::Configuration(configuration) = &entry.payload
                && configuration.epoch > governing.epoch
            {
                let early = self.past.chosen.range(slot.next()..).next().is_some()
                    && !self.past.configurations.contains_key(&slot);
                self.past.configurations.insert(slot, (**configuration).clone());
                if early {
                    self.violate(Law::Configurations, "a slot was chosen before the configuration that governs it");
                }
            }
            if disagree {
                self.violate(Law::Agreement, "a slot has two chosen values");
            }
            if forgotten {
                self.violate(Law::ChosenStays, "a later ballot carries another value than the chosen one");
            }
        }
        if two_values {
            self.violate(Law::Agreement, "a slot has two values at one ballot");
        }
        let times = self.past.chosen.iter().map(|(slot, (_, entry))| (slot.0, entry.stamp.time_ms));
        if times.clone().zip(times.skip(1)).any(|(one, next)| next.0 == one.0 + 1 && next.1 <= one.1) {
            self.violate(Law::LogTime, "log time does not rise");
        }
    }

    fn apply(&mut self, scene: &Scene, id: ReplicaId, from: Slot, upto: Slot) {
        if from != self.node(id).applied.next() {
            self.violate(Law::Agreement, "slots were left out, or applied again");
        }
        for slot in (from.0..=upto.0).map(Slot) {
            let held = self.node(id).core.storage().records.get(&slot).map(|record| &record.entry);
            let chosen = self.past.chosen.get(&slot).map(|(_, entry)| entry);
            if held.is_none() {
                self.violate(Law::Durability, "a slot was applied that is not on the disk");
            } else if held != chosen {
                self.violate(Law::Agreement, "another value than the chosen one was applied");
            }
        }
        self.node_mut(id).applied = upto;
        if scene.reads > 0 {
            self.past.told = self.past.told.max(upto);
        }
    }

    fn restart(&mut self, scene: &Scene, id: ReplicaId, disk_id: DiskId, disk: Disk, applied: Slot) -> ReplicaId {
        let campaigned = self.node(id).campaigned;
        let core = start(id, scene, disk_id, disk, applied);
        *self.node_mut(id) = Node { core, disk_id, writing: None, applied, campaigned, restarted: true };
        self.past.floors.retain(|(reader, _), _| *reader != id);
        self.settle(scene, id);
        id
    }

    /// Forgets messages to a replica that would change nothing there any more.
    fn forget_idle(&mut self, scene: &Scene, changed: ReplicaId, before: &World) {
        let idle: Vec<u64> = self
            .network
            .iter()
            .filter(|(print, envelope)| envelope.to == changed || !before.network.contains_key(print))
            .filter(|(_, envelope)| self.is_idle(scene, envelope, 2))
            .map(|(print, _)| *print)
            .collect();
        for print in idle {
            self.network.remove(&print);
        }
    }

    /// Whether a message changes nothing where it arrives, and is answered by nothing that does.
    fn is_idle(&self, scene: &Scene, envelope: &Envelope, depth: u8) -> bool {
        let before = &self.node(envelope.to).core;
        let mut core = before.clone();
        core.step(NOW, Input::Message(envelope.clone())).expect("this disk never fails");
        let mut ready = core.ready().expect("this disk never fails");
        ready.send_now.iter_mut().for_each(normalize);
        let unanswered = |answer: &Envelope| {
            !scene.carries(answer)
                || self.network.contains_key(&print(answer))
                || depth > 0 && self.is_idle(scene, answer, depth - 1)
        };
        core == *before && ready.persist.is_none() && ready.apply.is_none() && ready.send_now.iter().all(unanswered)
    }

    // What a scene is to show, or it proves nothing.

    /// How many values of clients are chosen.
    pub fn commands_chosen(&self) -> usize {
        self.past.chosen.values().filter(|(_, entry)| matches!(entry.payload, Payload::Command(_))).count()
    }

    /// Whether somebody leads in the last configuration that there is to be, and everything is known to be chosen.
    pub fn leads_on(&self, changes: usize) -> bool {
        let changed = |node: &Node| node.core.configuration().epoch.0 == changes as u64;
        let leads = |node: &Node| node.core.status().role == Role::Leader && node.core.status().barrier_chosen;
        self.nodes.iter().any(|node| changed(node) && leads(node))
    }

    /// How many campaigns got as far as to propose something that became durable anywhere.
    pub fn ballots_accepted(&self) -> usize {
        let ballots: BTreeSet<Ballot> = self.past.votes.values().flat_map(|ballots| ballots.keys().copied()).collect();
        ballots.len()
    }

    /// Whether a later ballot took over what an earlier one had left.
    pub fn takes_over(&self) -> bool {
        self.adjacent_votes(|earlier, later| earlier == later)
    }

    /// Whether a later ballot has passed over what an earlier one had left, for nobody told its leader.
    pub fn passes_over(&self) -> bool {
        self.adjacent_votes(|earlier, later| earlier != later)
    }

    fn adjacent_votes(&self, holds: impl Fn(&Entry, &Entry) -> bool) -> bool {
        self.past.votes.values().any(|ballots| {
            ballots.values().zip(ballots.values().skip(1)).any(|(earlier, later)| holds(&earlier.entry, &later.entry))
        })
    }

    /// How many reads were answered.
    pub fn reads_answered(&self) -> u8 {
        self.past.answered
    }

    /// Whether a replica that crashed leads again, and everything is known to be chosen.
    pub fn went_on(&self) -> bool {
        let leads = |node: &Node| node.core.status().role == Role::Leader && node.core.status().barrier_chosen;
        self.nodes.iter().any(|node| node.restarted && leads(node))
    }

    /// Whether a law holds, so far.
    pub fn keeps(&self, law: Law) -> bool {
        self.violation.is_none_or(|(broken, _)| broken != law)
    }
}
