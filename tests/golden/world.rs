//! The world of a scene: replicas, their disks, the network between them, and one clock. It does what the script says
//! and tells what comes of it; and it sees from above what no replica can, so that it notices when a rule is broken.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use d3b::{ClusterId, DiskId, ReplicaId, Slot};
use d3b_paxos::message::Envelope;
use d3b_paxos::types::{Ballot, Change, Configuration, Entry, Epoch, Member, Now, Payload, ProposalId, ReadId, Ticks};
use d3b_paxos::{Input, PersistBatch, Proposal, Ready, Replica, Reply, Restored, Role, Settings, Status};
use d3b_tests::durability;

use crate::disk::Disk;
use crate::script::{Command, Link, disk_of};
use crate::words;

/// What came of a command, or what must never be.
pub type Told<T = ()> = Result<T, String>;

/// A batch on its way to a disk, and what may be said once it is there.
#[derive(Debug)]
struct Writing {
    batch: PersistBatch,
    dependent: Vec<Envelope>,
}

/// A replica with everything around it.
pub struct Node {
    replica: Option<Replica<Disk>>,
    /// What survives the process.
    pub disk: Disk,
    disk_id: DiskId,
    /// Whether batches stay on their way until the script lets them through.
    is_slow: bool,
    writing: Option<Writing>,
    /// The databases are as far as this.
    pub applied: Slot,
    /// How many processes it has had.
    starts: u64,
    /// How many messages this process has sent.
    pub sent: usize,
    /// What was last told of its role.
    told: (Role, Option<ReplicaId>, Ballot),
    /// The newest configuration that its driver was told of.
    pub superseded: Option<Epoch>,
    /// Where the log begins that its driver was told to be behind of.
    pub behind: Option<Slot>,
    /// Reads with an index that is not applied yet.
    confirmed: Vec<(Slot, String)>,
}

impl Node {
    fn new(disk: Disk, disk_id: DiskId) -> Node {
        Node {
            replica: None,
            disk,
            disk_id,
            is_slow: false,
            writing: None,
            applied: Slot::ZERO,
            starts: 0,
            sent: 0,
            told: (Role::Follower, None, Ballot::ZERO),
            superseded: None,
            behind: None,
            confirmed: Vec::new(),
        }
    }
}

/// The world.
pub struct World {
    nodes: BTreeMap<ReplicaId, Node>,
    /// Every configuration that was chosen, by its slot; the founding one in slot 0.
    configurations: BTreeMap<Slot, Configuration>,
    ticks: u64,
    /// What is on its way, in the order in which it was sent.
    network: Vec<Envelope>,
    held: BTreeSet<Link>,
    cut: BTreeSet<Link>,
    /// While time runs: what was said on each link, for what repeats it is only counted.
    said: BTreeSet<(Link, String)>,
    repeated: Option<usize>,
    lines: Vec<String>,
    /// Who has accepted what at which ballot.
    accepted: BTreeMap<(Slot, Ballot), BTreeSet<ReplicaId>>,
    chosen: BTreeMap<Slot, Entry>,
    proposals: Vec<String>,
    reads: u64,
    /// Where each command stands, at the replica that took it.
    waiting: BTreeMap<(ReplicaId, Slot), String>,
    /// The answers to clients: a slot, or that it is not to be had; `None` while there is none.
    answers: BTreeMap<String, Option<Option<Slot>>>,
}

impl World {
    /// A world without replicas.
    pub fn new() -> World {
        World {
            nodes: BTreeMap::new(),
            configurations: BTreeMap::new(),
            ticks: 0,
            network: Vec::new(),
            held: BTreeSet::new(),
            cut: BTreeSet::new(),
            said: BTreeSet::new(),
            repeated: None,
            lines: Vec::new(),
            accepted: BTreeMap::new(),
            chosen: BTreeMap::new(),
            proposals: Vec::new(),
            reads: 0,
            waiting: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    /// Does what a command says, and tells what came of it.
    pub fn run(&mut self, command: Command) -> Told<Vec<String>> {
        match command {
            Command::Replicas(count) => self.form(count)?,
            Command::Elected(at) => self.elect(at)?,
            Command::Campaign(at) => self.campaign(at)?,
            Command::Put(at, command) => self.put(at, command)?,
            Command::Read(at) => {
                self.reads += 1;
                self.answers.insert(format!("r{}", self.reads), None);
                self.tell(format!("{at} is asked r{}", self.reads));
                self.step(at, Input::Read(ReadId(self.reads)))?;
            }
            Command::Deliver(None) => self.deliver_all()?,
            Command::Deliver(Some((link, count))) => {
                for envelope in self.take(link, count)? {
                    self.deliver(envelope)?;
                }
            }
            Command::Drop(link, count) => {
                for envelope in self.take(link, count)? {
                    self.lose(&envelope);
                }
            }
            Command::DropAll => self.network.clear(),
            Command::Double(link) => {
                let copies: Vec<Envelope> = self.network.iter().filter(|e| (e.from, e.to) == link).cloned().collect();
                self.network.extend(copies);
            }
            Command::Hold(link) => drop(self.held.insert(link)),
            Command::Release(Some(link)) => drop(self.held.remove(&link)),
            Command::Release(None) => self.held.clear(),
            Command::Partition(side) => {
                let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
                let links = ids.iter().flat_map(|from| ids.iter().map(|to| (*from, *to)));
                self.cut.extend(links.filter(|(from, to)| side.contains(from) != side.contains(to)));
            }
            Command::Heal => self.cut.clear(),
            Command::Disk(at, is_slow) => self.node_mut(at)?.is_slow = is_slow,
            Command::Sync(at) => self.sync(at)?,
            Command::Crash(at) => self.crash(at)?,
            Command::Wipe(at) => self.wipe(at)?,
            Command::Restart(at, applied) => self.restart(at, applied)?,
            Command::Reset(peer) => {
                let others: Vec<ReplicaId> = self.alive().into_iter().filter(|id| *id != peer).collect();
                for id in others {
                    self.step(id, Input::ConnectionReset(peer))?;
                }
            }
            Command::Transfer(from, to) => self.step(from, Input::Transfer(Some(to)))?,
            Command::Change(at, change, name) => self.change(at, change, name)?,
            Command::Join(id, member) => self.join(id, member)?,
            Command::Cut(at, base) => self.cut_log(at, base)?,
            Command::Install(at, from) => self.install(at, from)?,
            Command::Tick(ticks) => self.pass(ticks, false)?,
            Command::Run(ticks) => self.pass(ticks, true)?,
            Command::Status => self.tell_status(),
            Command::Expect(expectation) => expectation.check(self)?,
        }
        Ok(std::mem::take(&mut self.lines))
    }

    // What expectations look at.

    /// A replica.
    pub fn node(&self, id: ReplicaId) -> Told<&Node> {
        self.nodes.get(&id).ok_or_else(|| format!("there is no replica {id}"))
    }

    fn node_mut(&mut self, id: ReplicaId) -> Told<&mut Node> {
        self.nodes.get_mut(&id).ok_or_else(|| format!("there is no replica {id}"))
    }

    /// A living replica's state.
    pub fn status(&self, id: ReplicaId) -> Told<Status> {
        let replica = self.node(id)?.replica.as_ref();
        Ok(replica.ok_or_else(|| format!("{id} is dead"))?.status())
    }

    /// Who leads, at which ballot.
    pub fn leaders(&self) -> Vec<(ReplicaId, Ballot)> {
        let status = |(id, node): (&ReplicaId, &Node)| Some((*id, node.replica.as_ref()?.status()));
        let leaders = self.nodes.iter().filter_map(status).filter(|(_, status)| status.role == Role::Leader);
        leaders.map(|(id, status)| (id, status.promised)).collect()
    }

    /// What was chosen in a slot.
    pub fn chosen(&self, slot: Slot) -> Option<String> {
        self.chosen.get(&slot).map(|entry| words::payload(&entry.payload))
    }

    /// What a client was told, if anything.
    pub fn answer(&self, name: &str) -> Told<Option<Option<Slot>>> {
        self.answers.get(name).copied().ok_or_else(|| format!("nobody has asked {name}"))
    }

    // Commands.

    fn tell(&mut self, line: String) {
        self.lines.push(line);
    }

    fn now(&self) -> Now {
        Now { ticks: Ticks(self.ticks), clock_ms: 1_750_000_000_000 + self.ticks }
    }

    fn alive(&self) -> Vec<ReplicaId> {
        self.nodes.iter().filter(|(_, node)| node.replica.is_some()).map(|(id, _)| *id).collect()
    }

    fn form(&mut self, count: u32) -> Told {
        let member = |id| Ok((id, Member::voter(disk_of(id)?, format!("replica-{id}"))));
        let members = (1..=count).map(ReplicaId).map(member).collect::<Told<_>>()?;
        let configuration = Configuration::founding(ClusterId([7; 16]), members);
        for id in (1..=count).map(ReplicaId) {
            self.nodes.insert(id, Node::new(Disk::blank(configuration.clone()), disk_of(id)?));
        }
        self.configurations.insert(Slot::ZERO, configuration);
        for id in (1..=count).map(ReplicaId) {
            self.restart(id, None)?;
        }
        Ok(())
    }

    /// Asks for a change of the configuration.
    fn change(&mut self, id: ReplicaId, change: Change, name: String) -> Told {
        self.tell(format!("{id} is asked to {name}"));
        self.proposals.push(name);
        self.step(id, Input::Reconfigure { id: ProposalId(self.proposals.len() as u64), change })
    }

    /// A new replica starts with what a member tells it.
    fn join(&mut self, id: ReplicaId, member: ReplicaId) -> Told {
        let configuration = self.node(member)?.disk.configuration();
        self.tell(format!("{id} is told by {member} of {}", words::members(&configuration)));
        self.nodes.insert(id, Node::new(Disk::blank(configuration), disk_of(id)?));
        self.restart(id, None)
    }

    /// Forgets the beginning of a log.
    fn cut_log(&mut self, id: ReplicaId, base: Slot) -> Told {
        if base > self.node(id)?.applied {
            return Err(format!("{id} has not applied slot {base}"));
        }
        self.step(id, Input::Cut(base))?;
        self.node(id)?.disk.cut(base);
        self.tell(format!("{id} disk   forgets what is below {base}"));
        Ok(())
    }

    /// Takes another replica's databases over, with the end of what they hold and its configuration.
    fn install(&mut self, id: ReplicaId, from: ReplicaId) -> Told {
        let Node { disk, applied, .. } = self.node(from)?;
        let (slot, configuration) = (*applied, disk.configuration());
        let record = disk.record(slot).ok_or_else(|| format!("{from} holds nothing in slot {slot}"))?;
        self.crash(id)?;
        self.node(id)?.disk.install(record, configuration);
        self.tell(format!("{id} disk   takes the databases of {from}, as of {slot}"));
        self.restart(id, Some(slot))
    }

    fn restart(&mut self, id: ReplicaId, applied: Option<Slot>) -> Told {
        let now = self.now();
        let node = self.node_mut(id)?;
        if node.replica.is_some() {
            return Err(format!("{id} is alive"));
        }
        node.starts += 1;
        node.applied = applied.unwrap_or(node.applied);
        node.sent = 0;
        node.confirmed.clear();
        let settings = Settings {
            id,
            disk: node.disk_id,
            heartbeat: Ticks(50),
            election_timeout_min: Ticks(300),
            election_timeout_max: Ticks(600),
            seed: u64::from(id.0) * 1_000 + node.starts,
            inflight_bytes_max: 64 << 10,
            message_bytes_max: 4 << 10,
            clock_ahead_ms_max: 10_000,
        };
        let restored = Restored {
            configuration: node.disk.configuration(),
            held: node.disk.held(),
            promised: node.disk.promised(),
            base: node.disk.base(),
            last: node.disk.last(),
            applied: node.applied,
        };
        let (restarts, promised, last) = (node.starts > 1, restored.promised, restored.last);
        node.told = (Role::Follower, None, promised);
        let applied = node.applied;
        node.replica = Some(Replica::new(settings, restored, node.disk.clone(), now));
        if restarts {
            self.tell(format!("{id} starts: promised {promised}, log up to {last}, databases as of {applied}"));
        }
        self.settle(id)
    }

    fn crash(&mut self, id: ReplicaId) -> Told {
        let node = self.node_mut(id)?;
        node.replica.take().ok_or_else(|| format!("{id} is dead already"))?;
        let lost = node.writing.take();
        self.tell(format!("{id} dies"));
        if let Some(Writing { batch, .. }) = lost {
            self.tell(format!("{id} disk   never wrote: {}", words::batch(&batch)));
        }
        self.waiting.retain(|(at, _), _| *at != id);
        Ok(())
    }

    fn wipe(&mut self, id: ReplicaId) -> Told {
        if self.node(id)?.replica.is_some() {
            self.crash(id)?;
        }
        let node = self.node_mut(id)?;
        node.disk = Disk::blank(node.disk.configuration());
        node.disk_id = DiskId([0xee; 16]);
        node.applied = Slot::ZERO;
        self.tell(format!("{id} disk   is another one, and empty"));
        Ok(())
    }

    fn put(&mut self, id: ReplicaId, command: String) -> Told {
        if self.answers.insert(command.clone(), None).is_some() {
            return Err("every command of a scene is another one".to_owned());
        }
        self.tell(format!("{id} is asked {command}"));
        let command_bytes = Bytes::from(command.clone());
        self.proposals.push(command);
        let proposal = Proposal { id: ProposalId(self.proposals.len() as u64), command: command_bytes, seed: 0 };
        self.step(id, Input::Propose(proposal))
    }

    fn campaign(&mut self, id: ReplicaId) -> Told {
        for _ in 0..10 {
            let replica = self.node(id)?.replica.as_ref().ok_or_else(|| format!("{id} is dead"))?;
            if replica.status().role != Role::Follower {
                return Ok(());
            }
            let deadline = replica.next_deadline().ok_or_else(|| format!("{id} waits for nothing"))?;
            self.ticks = self.ticks.max(deadline.0);
            self.tick(id)?;
        }
        Err(format!("{id} does not campaign"))
    }

    /// Makes a replica the leader, with everybody at the end of its log, and tells only the outcome.
    fn elect(&mut self, id: ReplicaId) -> Told {
        self.campaign(id)?;
        self.deliver_all()?;
        let Status { role, promised, last, .. } = self.status(id)?;
        if role != Role::Leader || self.nodes.values().any(|node| node.applied != last) {
            return Err(format!("{id} does not lead everybody"));
        }
        self.lines.clear();
        self.tell(format!("{id} leads at {promised}, and everybody has applied its barrier in slot {last}"));
        Ok(())
    }

    fn tick(&mut self, id: ReplicaId) -> Told {
        let now = self.now();
        let replica = self.node_mut(id)?.replica.as_mut().ok_or_else(|| format!("{id} is dead"))?;
        replica.tick(now).map_err(|error| error.message)?;
        self.settle(id)
    }

    /// Lets time pass, with what replicas do when their time comes; messages arrive, or stay on their way.
    fn pass(&mut self, ticks: u64, delivers: bool) -> Told {
        let end = self.ticks + ticks;
        self.said.clear();
        self.repeated = Some(0);
        if delivers {
            self.deliver_all()?;
        }
        loop {
            let due = |node: &Node| node.replica.as_ref().and_then(Replica::next_deadline);
            let next = self.nodes.values().filter_map(due).min().map_or(end, |next| next.0.max(self.ticks));
            if next >= end {
                break;
            }
            self.ticks = next;
            for id in self.alive() {
                if due(self.node(id)?).is_some_and(|deadline| deadline.0 <= next) {
                    self.tick(id)?;
                }
            }
            if delivers {
                self.deliver_all()?;
            }
            // A deadline that is due has moved on, unless the replica waits for its disk; then time must pass.
            self.ticks += 1;
        }
        self.ticks = self.ticks.max(end);
        if let Some(repeated) = self.repeated.take().filter(|repeated| *repeated > 0) {
            self.tell(format!("({repeated} messages that only repeat what was said)"));
        }
        Ok(())
    }

    fn tell_status(&mut self) {
        let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        for id in ids {
            let Ok(Status { role, promised, commit, applied, last, .. }) = self.status(id) else {
                self.tell(format!("{id} is dead"));
                continue;
            };
            let role = format!("{role:?}");
            self.tell(format!("{id} {role:<12} promised {promised}, applied {applied}, commit {commit}, last {last}"));
        }
    }

    // The network.

    /// Takes from the network what is on its way on a link.
    fn take(&mut self, link: Link, count: usize) -> Told<Vec<Envelope>> {
        let mut taken = Vec::new();
        let mut rest = Vec::new();
        for envelope in self.network.drain(..) {
            let wanted = (envelope.from, envelope.to) == link && taken.len() < count;
            if wanted { taken.push(envelope) } else { rest.push(envelope) }
        }
        self.network = rest;
        if taken.is_empty() { Err(format!("nothing is on its way from {} to {}", link.0, link.1)) } else { Ok(taken) }
    }

    fn deliver_all(&mut self) -> Told {
        for _ in 0..10_000 {
            let free = |envelope: &Envelope| !self.held.contains(&(envelope.from, envelope.to));
            let Some(index) = self.network.iter().position(free) else { return Ok(()) };
            let envelope = self.network.remove(index);
            self.deliver(envelope)?;
        }
        Err("messages lead to messages without end".to_owned())
    }

    fn deliver(&mut self, envelope: Envelope) -> Told {
        let link = (envelope.from, envelope.to);
        // Whoever was added and has not started yet hears nothing.
        let alive = self.nodes.get(&envelope.to).is_some_and(|node| node.replica.is_some());
        if self.cut.contains(&link) || !alive {
            self.lose(&envelope);
            return Ok(());
        }
        self.tell_message(&envelope, "->");
        self.step(envelope.to, Input::Message(envelope))
    }

    fn lose(&mut self, envelope: &Envelope) {
        self.tell_message(envelope, "-x");
    }

    fn tell_message(&mut self, envelope: &Envelope, arrow: &str) {
        let Envelope { from, to, message, .. } = envelope;
        let said = words::said(message);
        if let Some(repeated) = &mut self.repeated
            && !self.said.insert(((*from, *to), said.clone()))
        {
            *repeated += 1;
            return;
        }
        let round = words::round(message).map_or(String::new(), |round| format!(", round {round}"));
        self.tell(format!("{from} {arrow} {to}   {said}{round}"));
    }

    fn send(&mut self, envelope: Envelope) -> Told {
        self.check_durable(&envelope)?;
        let node = self.node_mut(envelope.from)?;
        node.sent += 1;
        self.network.push(envelope);
        Ok(())
    }

    /// What a message says to be durable is on its sender's disk when it leaves.
    fn check_durable(&self, envelope: &Envelope) -> Told {
        let Envelope { from, message, .. } = envelope;
        let Node { disk, applied, .. } = self.node(*from)?;
        durability::check(message, disk, *applied, |slot| self.chosen.get(&slot))
            .map_err(|error| format!("{from} says what is not on its disk: {}: {error}", words::said(message)))
    }

    // Replicas.

    fn step(&mut self, id: ReplicaId, input: Input) -> Told {
        let now = self.now();
        let replica = self.node_mut(id)?.replica.as_mut().ok_or_else(|| format!("{id} is dead"))?;
        replica.step(now, input).map_err(|error| error.message)?;
        self.settle(id)
    }

    /// Does what a replica wants done, until it wants nothing more.
    fn settle(&mut self, id: ReplicaId) -> Told {
        for _ in 0..100 {
            self.tell_role(id)?;
            let replica = self.node_mut(id)?.replica.as_mut().ok_or_else(|| format!("{id} is dead"))?;
            let ready = replica.ready().map_err(|error| error.message)?;
            if ready == Ready::default() {
                return Ok(());
            }
            self.carry_out(id, ready)?;
        }
        Err(format!("{id} never settles"))
    }

    fn carry_out(&mut self, id: ReplicaId, ready: Ready) -> Told {
        let Ready { persist, send_now, send_after_persist, apply, reads, replies } = ready;
        for envelope in send_now {
            self.send(envelope)?;
        }
        for reply in replies {
            self.take_reply(id, reply)?;
        }
        if let Some(batch) = persist {
            let is_slow = self.node(id)?.is_slow;
            if is_slow {
                self.tell(format!("{id} disk   begins to write: {}", words::batch(&batch)));
            }
            self.node_mut(id)?.writing = Some(Writing { batch, dependent: send_after_persist });
            if !is_slow {
                self.write(id)?;
            }
        }
        if let Some(slots) = apply {
            self.apply(id, *slots.start(), *slots.end())?;
        }
        for read in reads {
            self.node_mut(id)?.confirmed.push((read.index, format!("r{}", read.id.0)));
        }
        self.answer_reads(id)
    }

    fn sync(&mut self, id: ReplicaId) -> Told {
        if self.node(id)?.writing.is_none() {
            return Err(format!("nothing is on its way to the disk of {id}"));
        }
        self.write(id)?;
        self.settle(id)
    }

    /// The batch that is on its way to a disk arrives there.
    fn write(&mut self, id: ReplicaId) -> Told {
        let node = self.node_mut(id)?;
        let Some(Writing { batch, dependent }) = node.writing.take() else { return Ok(()) };
        if batch.promised.is_some_and(|promised| promised < node.disk.promised()) {
            return Err(format!("{id} takes a promise back"));
        }
        node.disk.write(&batch);
        self.tell(format!("{id} disk   {}", words::batch(&batch)));
        self.count(id, &batch)?;
        for envelope in dependent {
            self.send(envelope)?;
        }
        let now = self.now();
        let replica = self.node_mut(id)?.replica.as_mut().ok_or_else(|| format!("{id} is dead"))?;
        replica.step(now, Input::Persisted(batch.id)).map_err(|error| error.message)
    }

    /// Sees what is chosen by a batch's being durable; a slot has one value for ever.
    fn count(&mut self, id: ReplicaId, batch: &PersistBatch) -> Told {
        for record in &batch.records {
            let acceptors = self.accepted.entry((record.slot, record.ballot)).or_default();
            acceptors.insert(id);
            // It is the configuration before the slot that says whose votes count.
            let governing = self.configurations.range(..record.slot).next_back();
            let (_, governing) = governing.ok_or("there is no configuration")?;
            if acceptors.iter().filter(|id| governing.votes(**id)).count() < governing.majority() {
                continue;
            }
            let next = match &record.entry.payload {
                Payload::Configuration(next) if next.epoch > governing.epoch => Some((**next).clone()),
                Payload::Noop | Payload::Command(_) | Payload::Configuration(_) => None,
            };
            if let Some(next) = next {
                self.configurations.insert(record.slot, next);
            }
            match self.chosen.get(&record.slot) {
                Some(entry) if *entry == record.entry => {}
                Some(entry) => return Err(format!("slot {} was chosen otherwise: {entry:?}", record.slot)),
                None => {
                    self.chosen.insert(record.slot, record.entry.clone());
                    let value = words::payload(&record.entry.payload);
                    self.tell(format!("* chosen in slot {}: {value}, at {}", record.slot, record.ballot));
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, id: ReplicaId, first: Slot, last: Slot) -> Told {
        self.tell(format!("{id} applies {}", words::slots(first, last)));
        for slot in (first.0..=last.0).map(Slot) {
            let held = self.node(id)?.disk.record(slot).map(|record| record.entry);
            if held.is_none() || held.as_ref() != self.chosen.get(&slot) {
                return Err(format!("{id} applies in slot {slot} what was not chosen: {held:?}"));
            }
            if let (Some(command), Some(entry)) = (self.waiting.remove(&(id, slot)), held) {
                let took = words::payload(&entry.payload);
                if took == command {
                    self.tell(format!("{id} answers {command}: slot {slot}"));
                    self.answers.insert(command, Some(Some(slot)));
                }
            }
        }
        let now = self.now();
        let node = self.node_mut(id)?;
        node.applied = last;
        let replica = node.replica.as_mut().ok_or_else(|| format!("{id} is dead"))?;
        replica.step(now, Input::Applied(last)).map_err(|error| error.message)
    }

    fn answer_reads(&mut self, id: ReplicaId) -> Told {
        let node = self.node_mut(id)?;
        let applied = node.applied;
        let (ready, rest) = node.confirmed.drain(..).partition(|(index, _)| *index <= applied);
        node.confirmed = rest;
        for (index, name) in ready {
            let ready: (Slot, String) = (index, name);
            self.tell(format!("{id} answers {}: as of slot {}", ready.1, ready.0));
            self.answers.insert(ready.1, Some(Some(ready.0)));
        }
        Ok(())
    }

    fn take_reply(&mut self, id: ReplicaId, reply: Reply) -> Told {
        let command = |id: ProposalId| {
            let index = usize::try_from(id.0).ok().and_then(|number| number.checked_sub(1));
            index.and_then(|index| self.proposals.get(index)).cloned().ok_or("a reply to nothing")
        };
        match reply {
            Reply::Proposed { id: proposal, slot, ballot } => {
                let command = command(proposal)?;
                self.tell(format!("{id} proposes {command} in slot {slot} at {ballot}"));
                self.waiting.insert((id, slot), command);
            }
            Reply::NotLeader { id: proposal, leader } => {
                let command = command(proposal)?;
                let leader = leader.map_or("nobody is known to".to_owned(), |leader| format!("{leader} does"));
                self.tell(format!("{id} refuses {command}: it does not lead, {leader}"));
                self.answers.insert(command, Some(None));
            }
            Reply::Overloaded { id: proposal } => {
                let command = command(proposal)?;
                self.tell(format!("{id} refuses {command}: too much is under way"));
                self.answers.insert(command, Some(None));
            }
            Reply::ReadFailed { id: read } => {
                let name = format!("r{}", read.0);
                self.tell(format!("{id} refuses {name}: nobody has confirmed it"));
                self.answers.insert(name, Some(None));
            }
            Reply::TransferEnded { handed_over: true } => self.tell(format!("{id} has handed over")),
            Reply::TransferEnded { handed_over: false } => self.tell(format!("{id} leads on: nobody has taken over")),
            Reply::Refused { id: _, error } => self.tell(format!("{id} does not change the configuration: {error}")),
            Reply::Behind { peer, base } => {
                self.node_mut(id)?.behind = Some(base);
                self.tell(format!("{id} needs a snapshot: the log of {peer} begins at {base}"))
            }
            Reply::Superseded { configuration } => {
                self.node_mut(id)?.superseded = Some(configuration.epoch);
                self.tell(format!(
                    "{id} hears that its configuration is an old one: {}",
                    words::members(&configuration)
                ));
            }
        }
        Ok(())
    }

    /// Tells of a change of role, of leader, or of a campaign.
    fn tell_role(&mut self, id: ReplicaId) -> Told {
        let status = self.status(id)?;
        let (role, leader, promised) = (status.role, status.leader, status.promised);
        let node = self.node_mut(id)?;
        let before = std::mem::replace(&mut node.told, (role, leader, promised));
        if before == node.told {
            return Ok(());
        }
        let stepped_down = before.0 == Role::Leader && (role != Role::Leader || promised != before.2);
        let same = (before.0, before.1) == (role, leader);
        let line = match role {
            Role::PreCandidate if same => None,
            Role::PreCandidate => Some("asks whether a campaign would be welcome".to_owned()),
            Role::Candidate => Some(format!("campaigns at {promised}")),
            Role::Leader => Some(format!("leads at {promised}")),
            Role::Follower => match leader {
                Some(leader) => Some(format!("follows {leader} at {promised}")),
                None if same => None,
                None => Some("follows nobody".to_owned()),
            },
        };
        if stepped_down && role != Role::Leader {
            self.tell(format!("{id} leads no more"));
        }
        if promised != before.2 && matches!(role, Role::Follower | Role::PreCandidate) {
            // A promise binds at once; when it is durable, the disk says so.
            self.tell(format!("{id} promises {promised}"));
        }
        if let Some(line) = line {
            self.tell(format!("{id} {line}"));
        }
        Ok(())
    }
}
