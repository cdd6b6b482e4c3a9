//! A cluster in memory: replicas, their disks, and a network that loses, doubles and reorders. It watches from above
//! what no replica can see: what is durable where, what is thereby chosen, and what anybody has applied.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use d3b::{ClusterId, DiskId, ReplicaId, Slot};
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{Ballot, Change, Configuration, Entry, Member, Now, Payload, ProposalId, ReadId, Ticks};
use d3b_paxos::{
    ConfirmedRead, Input, PersistBatch, Proposal, Ready, Replica, Reply, Restored, Role, Settings, StorageError,
};

use crate::disk::Disk;

/// What went wrong.
#[derive(Debug)]
pub struct Violation(#[expect(dead_code, reason = "shown by Debug")] pub String);

impl From<StorageError> for Violation {
    fn from(error: StorageError) -> Violation {
        Violation(error.message)
    }
}

pub type Checked = Result<(), Violation>;

macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(Violation(format!($($text)+)));
        }
    };
}

#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        d3b::splitmix64(&mut self.0)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// A replica with everything around it.
pub struct Node {
    pub replica: Option<Replica<Disk>>,
    pub disk: Disk,
    pub disk_id: DiskId,
    /// Handed out, and the messages that wait for it.
    writing: Option<(PersistBatch, Vec<Envelope>)>,
    /// When that was handed out.
    writing_since: u64,
    /// What the state machine has applied, in memory and durably.
    pub applied: Slot,
    applied_durable: Slot,
    to_apply: Slot,
    /// Paused: it neither hears nor ticks.
    pub paused: bool,
    /// Its wall clock is so far off.
    clock_offset_ms: u64,
    incarnation: u64,
    promised: Ballot,
    pub confirmed: usize,
}

impl Node {
    fn new(disk: Disk, disk_id: DiskId, clock_offset_ms: u64) -> Node {
        Node {
            replica: None,
            disk,
            disk_id,
            writing: None,
            writing_since: 0,
            applied: Slot::ZERO,
            applied_durable: Slot::ZERO,
            to_apply: Slot::ZERO,
            paused: false,
            clock_offset_ms,
            incarnation: 0,
            promised: Ballot::ZERO,
            confirmed: 0,
        }
    }
}

pub struct World {
    pub random: Random,
    /// Every configuration that was chosen, by its slot; the first one is the founding one's.
    pub configurations: BTreeMap<Slot, Configuration>,
    pub nodes: BTreeMap<ReplicaId, Node>,
    pub network: Vec<Envelope>,
    pub blocked: BTreeSet<(ReplicaId, ReplicaId)>,
    pub ticks: u64,
    /// In fair time, a disk takes so long to sync.
    pub sync_ticks: u64,
    /// Even in fair time, the disk of this replica never ends a sync.
    pub hung: Option<ReplicaId>,
    loss: u64,
    doubling: u64,
    /// Who has ever durably accepted what: from it follows what is chosen.
    accepted: BTreeMap<(Slot, Ballot), (Entry, BTreeSet<ReplicaId>)>,
    pub chosen: BTreeMap<Slot, Entry>,
    /// The highest slot that anybody has applied.
    visible: Slot,
    /// Reads that wait, with what was visible when they were asked.
    reads: BTreeMap<(ReplicaId, ReadId), Slot>,
    /// Who needs a snapshot, and whose log begins too late for it.
    pub behind: BTreeMap<ReplicaId, ReplicaId>,
    /// Who was told of a newer configuration than its own.
    told: BTreeMap<ReplicaId, Configuration>,
    next_id: u64,
    pub proposed: BTreeMap<ProposalId, Reply>,
    /// Whether configurations change and logs are cut.
    pub changes: bool,
    /// Whether messages are compared with their sender's disk; if not, only results count.
    pub checks_messages: bool,
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<d3b_paxos::Planted>,
}

pub const CLOCK_MS: u64 = 1_700_000_000_000;

pub fn configuration(count: u32) -> Configuration {
    let member = |n: u32| {
        let disk = DiskId([u8::try_from(n).unwrap(); 16]);
        (ReplicaId(n), Member::voter(disk, format!("127.0.0.1:{}", 8000 + n)))
    };
    Configuration::founding(ClusterId([7; 16]), (1..=count).map(member).collect())
}

pub fn settings(id: ReplicaId, disk: DiskId, seed: u64) -> Settings {
    Settings {
        id,
        disk,
        heartbeat: Ticks(50),
        election_timeout_min: Ticks(300),
        election_timeout_max: Ticks(600),
        seed,
        inflight_bytes_max: 2_000,
        message_bytes_max: 200,
        clock_ahead_ms_max: 1_000,
    }
}

impl World {
    pub fn new(count: u32, seed: u64) -> World {
        let configuration = configuration(count);
        let mut random = Random(seed);
        let mut nodes = BTreeMap::new();
        for (id, member) in &configuration.members {
            let clock_offset_ms = if random.percent(20) { random.below(7_200_000) } else { random.below(10) };
            let mut disk = Disk::fresh();
            disk.configuration = Some((configuration.clone(), false));
            let node = Node::new(disk, member.disk, clock_offset_ms);
            nodes.insert(*id, node);
        }
        let (loss, doubling) = (random.below(4) * 7, random.below(3) * 8);
        World {
            random,
            configurations: BTreeMap::from([(Slot::ZERO, configuration)]),
            nodes,
            network: Vec::new(),
            blocked: BTreeSet::new(),
            ticks: 0,
            sync_ticks: 0,
            hung: None,
            loss,
            doubling,
            accepted: BTreeMap::new(),
            chosen: BTreeMap::new(),
            visible: Slot::ZERO,
            reads: BTreeMap::new(),
            behind: BTreeMap::new(),
            told: BTreeMap::new(),
            next_id: 0,
            proposed: BTreeMap::new(),
            changes: seed % 2 == 1,
            checks_messages: true,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }

    pub fn ids(&self) -> Vec<ReplicaId> {
        self.nodes.keys().copied().collect()
    }

    pub fn node(&self, id: ReplicaId) -> &Node {
        &self.nodes[&id]
    }

    fn node_mut(&mut self, id: ReplicaId) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub fn now(&self, id: ReplicaId) -> Now {
        Now { ticks: Ticks(self.ticks), clock_ms: CLOCK_MS + self.ticks + self.node(id).clock_offset_ms }
    }

    pub fn leader(&self) -> Option<ReplicaId> {
        let leads = |node: &Node| node.replica.as_ref().is_some_and(|replica| replica.status().role == Role::Leader);
        let ballot = |node: &Node| node.replica.as_ref().map(Replica::promised);
        self.nodes.iter().filter(|(_, node)| leads(node)).max_by_key(|(_, node)| ballot(node)).map(|(id, _)| *id)
    }

    // Processes.

    pub fn start(&mut self, id: ReplicaId) -> Checked {
        let seed = self.random.next();
        let now = self.now(id);
        #[cfg(feature = "planted-bugs")]
        let planted = self.planted;
        let node = self.node_mut(id);
        let Some((configuration, _)) = node.disk.configuration.clone() else { return Ok(()) };
        node.incarnation += 1;
        node.applied = node.applied_durable;
        node.to_apply = node.applied;
        node.confirmed = 0;
        let restored = Restored {
            configuration,
            held: node.disk.held(),
            promised: node.disk.promised,
            base: node.disk.base,
            last: node.disk.last(),
            applied: node.applied_durable,
        };
        ensure!(node.disk.promised >= node.promised, "the promise of {id} fell over a crash");
        #[cfg_attr(not(feature = "planted-bugs"), expect(unused_mut, reason = "only a plant changes it here"))]
        let mut replica = Replica::new(settings(id, node.disk_id, seed), restored, node.disk.clone(), now);
        #[cfg(feature = "planted-bugs")]
        if let Some(planted) = planted {
            replica.plant(planted);
        }
        node.replica = Some(replica);
        self.pump(id)
    }

    /// The process dies; what was being written is on the disk or not.
    pub fn crash(&mut self, id: ReplicaId) -> Checked {
        let written = self.random.percent(50);
        let back = self.random.below(3);
        let node = self.node_mut(id);
        node.replica = None;
        node.paused = false;
        // After a power cut the state machine may be a few slots behind.
        node.applied_durable = node.applied_durable.max(Slot(node.applied.0.saturating_sub(back)));
        node.promised = node.disk.promised;
        let writing = node.writing.take();
        self.reads.retain(|(reader, _), _| *reader != id);
        if let Some((batch, _)) = writing.filter(|_| written) {
            self.write(id, &batch)?;
        }
        Ok(())
    }

    /// The process dies, and of what the state machine has applied nothing was durable.
    pub fn forget_applied(&mut self, id: ReplicaId) -> Checked {
        self.crash(id)?;
        let node = self.node_mut(id);
        (node.applied, node.applied_durable) = (Slot::ZERO, Slot::ZERO);
        Ok(())
    }

    /// Its disk is swapped for a fresh one.
    pub fn wipe(&mut self, id: ReplicaId) -> Checked {
        self.crash(id)?;
        let node = self.node_mut(id);
        let configuration = node.disk.configuration.take();
        node.disk = Disk { configuration, ..Disk::fresh() };
        node.disk_id = DiskId([0xee; 16]);
        node.promised = Ballot::ZERO;
        (node.applied, node.applied_durable) = (Slot::ZERO, Slot::ZERO);
        Ok(())
    }

    pub fn step(&mut self, id: ReplicaId, input: Input) -> Checked {
        let now = self.now(id);
        if let Some(replica) = &mut self.node_mut(id).replica {
            let before = replica.promised();
            replica.step(now, input)?;
            ensure!(replica.promised() >= before, "the promise of {id} fell");
        }
        Ok(())
    }

    pub fn tick(&mut self, id: ReplicaId) -> Checked {
        let now = self.now(id);
        if let Some(replica) = &mut self.node_mut(id).replica {
            replica.tick(now)?;
            let next = replica.next_deadline();
            ensure!(next.is_none_or(|next| next > now.ticks), "{id} would be ticked again at once, and for ever");
        }
        Ok(())
    }

    /// Does what the replica wants done.
    pub fn pump(&mut self, id: ReplicaId) -> Checked {
        let Some(replica) = &mut self.node_mut(id).replica else { return Ok(()) };
        let Ready { persist, send_now, send_after_persist, apply, reads, replies } = replica.ready()?;
        ensure!(persist.is_some() || send_after_persist.is_empty(), "messages of {id} wait for nothing");
        for envelope in send_now {
            self.send(envelope)?;
        }
        let ticks = self.ticks;
        let node = self.node_mut(id);
        if let Some(batch) = persist {
            ensure!(node.writing.is_none(), "{id} writes two batches at once");
            node.writing = Some((batch, send_after_persist));
            node.writing_since = ticks;
        }
        if let Some(range) = apply {
            ensure!(*range.start() == node.to_apply.next(), "{id} applies {range:?} after {}", node.to_apply);
            node.to_apply = *range.end();
        }
        for ConfirmedRead { id: read, index } in reads {
            self.node_mut(id).confirmed += 1;
            let Some(visible) = self.reads.remove(&(id, read)) else {
                return Err(Violation(format!("{id} confirms a read that does not wait")));
            };
            ensure!(index >= visible, "a read of {id} is stale: index {index}, visible before {visible}");
        }
        for reply in replies {
            self.take_reply(id, reply);
        }
        Ok(())
    }

    fn take_reply(&mut self, id: ReplicaId, reply: Reply) {
        match reply {
            Reply::Proposed { id: proposal, .. }
            | Reply::NotLeader { id: proposal, .. }
            | Reply::Overloaded { id: proposal }
            | Reply::Refused { id: proposal, .. } => {
                let before = self.proposed.insert(proposal, reply);
                assert_eq!(before, None, "a proposal is answered once");
            }
            Reply::ReadFailed { id: read } => {
                assert!(self.reads.remove(&(id, read)).is_some(), "a read is answered once");
            }
            Reply::TransferEnded { .. } => {}
            Reply::Behind { peer, .. } => drop(self.behind.insert(id, peer)),
            Reply::Superseded { configuration } => drop(self.told.insert(id, *configuration)),
        }
    }

    // The disk.

    /// The batch under way becomes durable.
    pub fn persisted(&mut self, id: ReplicaId) -> Checked {
        let Some((batch, messages)) = self.node_mut(id).writing.take() else { return Ok(()) };
        self.write(id, &batch)?;
        for envelope in messages {
            self.send(envelope)?;
        }
        self.step(id, Input::Persisted(batch.id))
    }

    fn write(&mut self, id: ReplicaId, batch: &PersistBatch) -> Checked {
        if let Some(configuration) = batch.configuration.as_ref().filter(|_| self.checks_messages) {
            let chosen = self.configurations.get(&configuration.slot);
            ensure!(chosen == Some(configuration), "{id} adopts a configuration that was not chosen");
        }
        let node = self.nodes.get_mut(&id).unwrap();
        if let Some(promised) = batch.promised {
            ensure!(promised >= node.disk.promised, "the durable promise of {id} fell");
        }
        node.disk.write(batch);
        if let Some(replica) = &mut node.replica {
            replica.storage_mut().write(batch);
        }
        for record in &batch.records {
            let key = (record.slot, record.ballot);
            let (entry, acceptors) =
                self.accepted.entry(key).or_insert_with(|| (record.entry.clone(), BTreeSet::new()));
            ensure!(*entry == record.entry, "two values at slot {} and ballot {}", record.slot, record.ballot);
            acceptors.insert(id);
            // It is the configuration before the slot that says whose votes count.
            let (_, governing) = self.configurations.range(..record.slot).next_back().expect("there is a founding one");
            if acceptors.iter().filter(|id| governing.votes(**id)).count() >= governing.majority() {
                let chosen = self.chosen.entry(record.slot).or_insert_with(|| record.entry.clone());
                ensure!(*chosen == record.entry, "two values are chosen at slot {}", record.slot);
                // One that a rival of the chosen one left behind is chosen in vain.
                if let Payload::Configuration(configuration) = &record.entry.payload
                    && configuration.epoch > governing.epoch
                    && !self.configurations.contains_key(&record.slot)
                {
                    self.configurations.insert(record.slot, (**configuration).clone());
                    let behind = self.chosen.range(record.slot.next()..).next();
                    ensure!(behind.is_none(), "slot {behind:?} was chosen before the configuration that governs it");
                }
            }
        }
        Ok(())
    }

    // Configurations, snapshots, and logs that are cut.

    /// The newest configuration that was chosen.
    pub fn configuration(&self) -> &Configuration {
        self.configurations.last_key_value().expect("there is a founding one").1
    }

    /// Asks a replica to change the configuration.
    pub fn reconfigure(&mut self, id: ReplicaId, change: Change) -> Checked {
        self.next_id += 1;
        let proposal = ProposalId(self.next_id);
        self.step(id, Input::Reconfigure { id: proposal, change })
    }

    /// Some change that makes sense, given the newest configuration. Whoever has lost its disk is removed first: nobody
    /// else may go before, or no majority might be left.
    pub fn some_change(&mut self) -> Change {
        let configuration = self.configuration().clone();
        let ids: Vec<ReplicaId> = configuration.members.keys().copied().collect();
        if let Some(id) = ids.iter().find(|id| !self.has_its_disk(**id)) {
            return Change::Remove { id: *id };
        }
        let learner = ids.iter().find(|id| !configuration.votes(**id));
        let roll = self.random.below(4);
        match learner {
            Some(id) if roll < 3 => Change::Promote { id: *id },
            Some(_) | None if roll < 2 && self.nodes.len() < 12 => {
                let id = configuration.next_id;
                let disk = DiskId([u8::try_from(id.0).unwrap(); 16]);
                self.nodes.entry(id).or_insert_with(|| Node::new(Disk::fresh(), disk, 0));
                Change::Add { id, disk, peer: String::new(), replaces: None }
            }
            Some(_) | None => {
                let index = self.random.below(ids.len() as u64);
                Change::Remove { id: ids[usize::try_from(index).unwrap()] }
            }
        }
    }

    /// Whoever was added hears of it from a member, and starts.
    pub fn welcome(&mut self) -> Checked {
        for id in self.ids() {
            if self.node(id).disk.configuration.is_some() {
                continue;
            }
            let told = self.nodes.values().find_map(|node| {
                let (configuration, _) = node.disk.configuration.as_ref()?;
                configuration.members.contains_key(&id).then(|| configuration.clone())
            });
            if let Some(configuration) = told {
                self.node_mut(id).disk.configuration = Some((configuration, false));
                self.start(id)?;
            }
        }
        Ok(())
    }

    /// Whoever was told of a newer configuration writes it down, as one that joins does, and starts again.
    pub fn heed_told(&mut self) -> Checked {
        for (id, configuration) in std::mem::take(&mut self.told) {
            let newer = |(own, _): &(Configuration, bool)| own.epoch < configuration.epoch;
            if self.node(id).replica.is_some() && self.node(id).disk.configuration.as_ref().is_some_and(newer) {
                self.crash(id)?;
                // What was being written may have brought a newer one.
                let disk = &mut self.node_mut(id).disk;
                disk.configuration =
                    disk.configuration.take().filter(|own| !newer(own)).or(Some((configuration, false)));
                self.start(id)?;
            }
        }
        Ok(())
    }

    /// The state machine is synced.
    pub fn checkpoint(&mut self, id: ReplicaId) {
        let node = self.node_mut(id);
        if node.replica.is_some() {
            node.applied_durable = node.applied;
        }
    }

    /// The log is cut somewhere below what is durable in the state machine.
    pub fn cut(&mut self, id: ReplicaId) -> Checked {
        let back = self.random.below(5);
        let base = Slot(self.node(id).applied_durable.0.saturating_sub(back));
        if self.node(id).replica.is_none() || base <= self.node(id).disk.base {
            return Ok(());
        }
        self.step(id, Input::Cut(base))?;
        let node = self.node_mut(id);
        node.disk.cut(base);
        if let Some(replica) = &mut node.replica {
            replica.storage_mut().cut(base);
        }
        Ok(())
    }

    /// Whoever is behind somebody's log gets his snapshot, and starts again with it.
    pub fn install_snapshots(&mut self) -> Checked {
        for (id, peer) in std::mem::take(&mut self.behind) {
            self.checkpoint(peer);
            let source = self.node(peer);
            let slot = source.applied_durable;
            let record = source.disk.records.get(&slot).cloned();
            let Some((configuration, _)) = source.disk.configuration.clone() else { continue };
            let Some(record) = record else { continue };
            if slot <= self.node(id).applied || self.node(id).replica.is_none() {
                continue;
            }
            self.crash(id)?;
            let node = self.node_mut(id);
            node.disk.install(record, &configuration);
            (node.applied, node.applied_durable) = (slot, slot);
            self.start(id)?;
        }
        Ok(())
    }

    /// The state machine applies up to so many of the slots that it was given.
    pub fn apply(&mut self, id: ReplicaId, count: u64) -> Checked {
        for _ in 0..count {
            let node = self.nodes.get_mut(&id).unwrap();
            if node.replica.is_none() || node.applied >= node.to_apply {
                return Ok(());
            }
            let slot = node.applied.next();
            let Some(record) = node.disk.records.get(&slot) else {
                return Err(Violation(format!("{id} applies slot {slot}, which is not on its disk")));
            };
            ensure!(self.chosen.get(&slot) == Some(&record.entry), "{id} applies at slot {slot} what is not chosen");
            node.applied = slot;
            self.visible = self.visible.max(slot);
            self.step(id, Input::Applied(slot))?;
        }
        Ok(())
    }

    // The network.

    fn send(&mut self, envelope: Envelope) -> Checked {
        if self.checks_messages {
            self.check_durable(&envelope)?;
        }
        if self.blocked.contains(&(envelope.from, envelope.to)) || self.random.percent(self.loss) {
            return Ok(());
        }
        if self.random.percent(self.doubling) {
            self.network.push(envelope.clone());
        }
        self.network.push(envelope);
        Ok(())
    }

    /// Nothing is said before it is true of the disk.
    fn check_durable(&self, envelope: &Envelope) -> Checked {
        let (from, disk) = (envelope.from, &self.node(envelope.from).disk);
        match &envelope.message {
            Message::Prepare { ballot, .. } => {
                ensure!(disk.promised >= *ballot, "{from} sends Prepare {ballot} before it is durable");
            }
            Message::Promise { ballot, records, .. } => {
                ensure!(disk.promised >= *ballot, "{from} sends Promise {ballot} before it is durable");
                // What was cut meanwhile was held when it was said.
                for record in records.iter().filter(|record| record.slot >= disk.base) {
                    let held = disk.records.get(&record.slot).map(|held| held.ballot);
                    ensure!(held >= Some(record.ballot), "{from} promises a record that is not durable");
                }
            }
            Message::Accepted { ballot, upto, .. } => {
                ensure!(disk.promised >= *ballot, "{from} sends Accepted {ballot} before the promise is durable");
                // What is applied was found to be chosen and on this disk.
                for slot in (self.node(from).applied.0 + 1..=upto.0).map(Slot) {
                    let held = disk.records.get(&slot);
                    let chosen = self.chosen.get(&slot);
                    let counts = held.is_some_and(|held| held.ballot >= *ballot || chosen == Some(&held.entry));
                    ensure!(counts, "{from} sends Accepted {ballot} up to {upto}, but slot {slot} is not durable");
                }
            }
            Message::PreVote { .. }
            | Message::PreVoteReply { .. }
            | Message::PromiseMore { .. }
            | Message::Accept { .. }
            | Message::Nack { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexAt { .. }
            | Message::ReadIndexReply { .. }
            | Message::TimeoutNow { .. }
            | Message::Behind { .. }
            | Message::Superseded { .. } => {}
        }
        Ok(())
    }

    /// Delivers the message at this index of the bag.
    pub fn deliver(&mut self, index: usize) -> Checked {
        let envelope = self.network.remove(index);
        let to = envelope.to;
        if self.node(to).paused {
            self.network.push(envelope);
            return Ok(());
        }
        self.step(to, Input::Message(envelope))
    }

    // Clients.

    pub fn propose(&mut self, id: ReplicaId) -> Result<ProposalId, Violation> {
        self.next_id += 1;
        let proposal = ProposalId(self.next_id);
        let command = Bytes::from(format!("command {}", self.next_id));
        let seed = self.random.next();
        self.step(id, Input::Propose(Proposal { id: proposal, command, seed }))?;
        Ok(proposal)
    }

    /// Asks under an id that this process has not used, though the one before may have.
    pub fn read(&mut self, id: ReplicaId) -> Checked {
        if self.node(id).replica.is_none() {
            return Ok(());
        }
        self.next_id += 1;
        let read = ReadId(self.next_id);
        self.reads.insert((id, read), self.visible);
        self.step(id, Input::Read(read))
    }

    /// Heals everything and lets fair time pass: no message is lost any more, every disk works.
    pub fn heal(&mut self) -> Checked {
        (self.loss, self.doubling) = (0, 0);
        self.blocked.clear();
        for id in self.ids() {
            self.node_mut(id).paused = false;
            if self.node(id).replica.is_none() {
                self.start(id)?;
            }
        }
        Ok(())
    }

    /// A tick of fair time.
    pub fn pass(&mut self) -> Checked {
        self.ticks += 10;
        self.welcome()?;
        self.install_snapshots()?;
        self.heed_told()?;
        let awake: Vec<ReplicaId> = self.nodes.iter().filter(|(_, node)| !node.paused).map(|(id, _)| *id).collect();
        for id in &awake {
            self.tick(*id)?;
            self.pump(*id)?;
        }
        for _ in 0..3 {
            for _ in 0..self.network.len() {
                let to = self.network[0].to;
                self.deliver(0)?;
                if awake.contains(&to) {
                    self.pump(to)?;
                }
            }
            for id in awake.iter().copied() {
                if self.hung != Some(id) && self.ticks >= self.node(id).writing_since + self.sync_ticks {
                    self.persisted(id)?;
                    self.pump(id)?;
                }
                self.apply(id, u64::MAX)?;
            }
        }
        Ok(())
    }

    /// Lets fair time pass until the condition holds.
    pub fn pass_until(&mut self, what: &str, mut done: impl FnMut(&mut World) -> bool) -> Checked {
        for _ in 0..2_000.max(4 * self.sync_ticks) {
            if done(self) {
                return Ok(());
            }
            self.pass()?;
        }
        Err(Violation(format!("no progress: {what}")))
    }

    /// After [`World::heal`]: every voter gets everything that one leader proposes, and answers reads.
    pub fn demand_progress(&mut self) -> Checked {
        let before = self.commands();
        self.pass_until("a proposal", |world| {
            if let Some(leader) = world.leader()
                && world.commands() == before
            {
                let _ = world.propose(leader);
            }
            world.commands() > before
        })?;
        self.pass_until("everybody applies everything", |world| {
            let last = world.chosen.last_key_value().map(|(slot, _)| *slot);
            world.voters().all(|node| Some(node.applied) >= last)
        })?;
        for id in self.ids() {
            let before = self.node(id).confirmed;
            if !self.votes(id) {
                continue;
            }
            self.pass_until("a read", |world| {
                if world.node(id).confirmed == before && !world.reads.keys().any(|(reader, _)| *reader == id) {
                    let _ = world.read(id);
                }
                world.node(id).confirmed > before
            })?;
        }
        Ok(())
    }

    fn has_its_disk(&self, id: ReplicaId) -> bool {
        self.configuration().members.get(&id).is_some_and(|member| member.disk == self.node(id).disk_id)
    }

    pub fn votes(&self, id: ReplicaId) -> bool {
        self.configuration().votes(id) && self.has_its_disk(id)
    }

    fn voters(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|(id, _)| self.votes(**id)).map(|(_, node)| node)
    }

    /// Log time rises from every chosen slot to the next.
    pub fn check_log_time(&self) -> Checked {
        for ((slot, entry), (next, later)) in self.chosen.iter().zip(self.chosen.iter().skip(1)) {
            let (time, then) = (entry.stamp.time_ms, later.stamp.time_ms);
            ensure!(*next != slot.next() || then > time, "slot {next} is dated {then}, after slot {slot} at {time}");
        }
        Ok(())
    }

    /// The wall clock of a replica jumps.
    pub fn jump_clock(&mut self, id: ReplicaId) {
        let offset = self.random.below(10_000);
        self.node_mut(id).clock_offset_ms = offset;
    }

    pub fn commands(&self) -> usize {
        self.chosen.values().filter(|entry| matches!(entry.payload, Payload::Command(_))).count()
    }
}
