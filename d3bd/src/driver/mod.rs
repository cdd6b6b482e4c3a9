//! The driver: the one state machine that sees everything. Events go in, effects come out; it owns no thread, no
//! socket, no file and no clock, so that the daemon and a simulator run the very same code.
//!
//! A replica is first [`Phase::Forming`], until every member was met; then it runs the consensus core for good. The
//! driver keeps the books around the core: which client waits for what, what may be sent only when something is
//! durable, what the engine is busy with, which peers hold which blob.

mod catch_up;
mod complaints;
mod event;
mod fingerprints;
mod members;
mod offers;
#[cfg(feature = "planted-bugs")]
mod planted;
mod quarantine;
mod reads;
mod status;
mod writes;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use d3b::{Answer, BlobReference, ReplicaId, Slot};
use d3b_paxos::formation::{Formation, FormationMessage, FormationState};
use d3b_paxos::message::Envelope;
use d3b_paxos::types::{Ballot, ChangeError, Configuration, Now, PersistId, ProposalId, ReadId, Ticks};
use d3b_paxos::{Input, Proposal, Ready, Replica, Reply, Restored, Settings, Storage, StorageError};

pub use catch_up::CatchUp;
pub use event::{
    ApplyReport, Effect, Event, OwnOutcome, Process, ReadRequest, Ticket, Unavailable, WriteFailure, WriteRequest,
};
pub use fingerprints::Divergence;
#[cfg(feature = "planted-bugs")]
pub use planted::Planted;
pub use quarantine::Repair;
pub use status::{DriverStatus, Load, MemberStatus, Outline, Pending, Phase};

use crate::log::{Durable, Proof};
use crate::peer::{ForwardResult, MemberFailure, PeerMessage};
use complaints::Complaints;
use members::{MEMBERS_INTERVAL, Members};
use offers::Offers;
use quarantine::{Quarantine, Sums};
use reads::Reads;
use writes::{Source, Writes};

/// How often a forming replica says hello.
const HELLO_INTERVAL: Ticks = Ticks(200);
/// How often replicas tell each other how far they are and what their databases' fingerprints are.
const GOSSIP_INTERVAL: Ticks = Ticks(1_000);
/// How long what was refused waits before it is tried again.
const RETRY_INTERVAL: Ticks = Ticks(20);
/// Within so long a leader must have been heard, and a write of the log ended, for this replica to be settled.
const SETTLED_MAX: Ticks = Ticks(1_000);
/// How many proposals of peers may wait for their slots at once.
const FORWARDED_MAX: usize = 65_536;

/// What a replica starts with.
#[derive(Debug, Clone)]
pub struct Start {
    /// The core's settings.
    pub settings: Settings,
    /// The newest execution version that this build can apply.
    pub execution: u32,
    /// Whether the cluster is formed already, and this replica joins it.
    pub joins: bool,
    /// Every replica that the cluster is formed of, with its peer address; used until it is formed.
    pub replicas: BTreeMap<ReplicaId, String>,
    /// The configuration on disk; `None` in a fresh directory.
    pub configuration: Option<Configuration>,
    /// See [`Restored::held`].
    pub held: Slot,
    /// The promise on disk.
    pub promised: Ballot,
    /// The first slot that the log holds.
    pub base: Slot,
    /// The last slot that the log holds.
    pub last: Slot,
    /// Everything up to here is applied.
    pub applied: Slot,
    /// What was found wrong with this replica before, and what is done about it.
    pub repair: Repair,
}

enum Stage<S> {
    Forming(Formation),
    /// The configuration is being written to disk.
    Adopting,
    Running(Box<Replica<S>>),
    Outcast(String),
    /// It holds other data than the majority.
    Quarantined(Box<Quarantine>),
}

/// The state around the consensus core of one replica. `S` reads its log, `D` proves that a batch of it is durable.
pub struct Driver<S, D = Durable> {
    start: Start,
    storage: S,
    stage: Stage<S>,
    now: Now,
    effects: Vec<Effect<D>>,
    writes: Writes,
    reads: Reads,
    offers: Offers,
    sums: Sums,
    members: Members,
    /// The snapshot that this replica waits for.
    catch_up: Option<CatchUp>,
    /// Why it is no member any more, once its log has said so.
    removed: Option<String>,
    /// When the write of the log that is under way began.
    writing_since: Option<Ticks>,
    /// When this replica was last known to be [settled](DriverStatus::settled_at).
    settled_at: Option<Ticks>,
    /// Proposals whose slot the core has yet to tell.
    proposals: BTreeMap<ProposalId, Source>,
    next_proposal: u64,
    /// What may be sent once a batch is durable.
    dependent: BTreeMap<PersistId, Vec<Envelope>>,
    applied: Slot,
    /// Whether the engine is at work.
    applying: bool,
    /// What the engine is to do next.
    to_apply: Option<RangeInclusive<Slot>>,
    /// The leader and the ballot that are known.
    led_by: (Option<ReplicaId>, Ballot),
    /// The last leader that there was, with its ballot: who pending writes were handed to.
    handed_to: Option<(ReplicaId, Ballot)>,
    leader_heard_at: Option<Ticks>,
    /// Since when the same one leads, at the same ballot.
    led_since: Option<Ticks>,
    /// When this replica was told of what it had yet to hold, and the end of that.
    settling: Option<(Ticks, Slot)>,
    heard_at: BTreeMap<ReplicaId, Ticks>,
    applied_by: BTreeMap<ReplicaId, Slot>,
    complaints: Complaints,
    hello_at: Ticks,
    gossip_at: Ticks,
    retry_at: Ticks,
    /// The rule that the core breaks, in mutation tests.
    #[cfg(feature = "planted-bugs")]
    planted: Option<d3b_paxos::Planted>,
    /// The rule that the driver itself breaks, in mutation tests.
    #[cfg(feature = "planted-bugs")]
    misled: Option<Planted>,
}

impl<S: Storage + Clone, D: Proof> Driver<S, D> {
    /// A replica that has just started.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn new(start: Start, storage: S, now: Now) -> Result<Driver<S, D>, StorageError> {
        let applied = start.applied;
        let mut driver = Driver {
            stage: Stage::Adopting,
            storage,
            now,
            effects: Vec::new(),
            writes: Writes::default(),
            reads: Reads::default(),
            offers: Offers::default(),
            sums: Sums::default(),
            members: Members::default(),
            catch_up: None,
            removed: None,
            writing_since: None,
            settled_at: None,
            proposals: BTreeMap::new(),
            next_proposal: 0,
            dependent: BTreeMap::new(),
            applied,
            applying: false,
            to_apply: None,
            led_by: (None, Ballot::ZERO),
            handed_to: None,
            leader_heard_at: None,
            led_since: None,
            settling: None,
            heard_at: BTreeMap::new(),
            applied_by: BTreeMap::new(),
            complaints: Complaints::default(),
            hello_at: now.ticks,
            gossip_at: now.ticks,
            retry_at: now.ticks,
            #[cfg(feature = "planted-bugs")]
            planted: None,
            #[cfg(feature = "planted-bugs")]
            misled: None,
            start,
        };
        match driver.start.configuration.clone() {
            Some(configuration) => driver.run(configuration),
            None => {
                let Start { settings, replicas, joins, .. } = &driver.start;
                let formation = if *joins {
                    Formation::join(settings.id, settings.disk, replicas.clone())
                } else {
                    Formation::new(settings.id, settings.disk, replicas.clone(), settings.seed)
                };
                driver.stage = Stage::Forming(formation);
                driver.follow_formation();
            }
        }
        driver.pump()?;
        Ok(driver)
    }

    fn me(&self) -> ReplicaId {
        self.start.settings.id
    }

    /// Starts the core under a configuration that is on disk, unless that names this replica with another disk. One that
    /// was removed takes no part, but others may still have to hear of it, from nobody else.
    fn run(&mut self, configuration: Configuration) {
        let me = self.me();
        let own_disk = configuration.members.get(&me).map(|member| member.disk);
        let quarantined = self.start.repair.quarantined.is_some();
        let foreign = own_disk.map_or(quarantined, |disk| disk != self.start.settings.disk);
        #[cfg(feature = "planted-bugs")]
        let foreign = foreign && self.planted != Some(d3b_paxos::Planted::WipedDiskVotes);
        if foreign {
            let reason = match own_disk {
                Some(_) => format!("the cluster knows replica {me} with another disk than this one, so it never votes"),
                None => format!("replica {me} was removed from the cluster (epoch {})", configuration.epoch.0),
            };
            self.stage = Stage::Outcast(reason);
            return;
        }
        if let Some(reason) = self.start.repair.quarantined.clone() {
            tracing::error!(reason, "this replica is quarantined: it does not vote or answer (see d3b-recovery(7))");
            self.stage = Stage::Quarantined(Box::new(Quarantine { reason, configuration, base: self.start.base }));
            return self.rebuild_by_itself();
        }
        let restored = Restored {
            configuration,
            held: self.start.held,
            promised: self.start.promised,
            base: self.start.base,
            last: self.start.last,
            applied: self.applied,
        };
        #[cfg_attr(not(feature = "planted-bugs"), expect(unused_mut, reason = "only a plant changes it here"))]
        let mut replica = Replica::new(self.start.settings.clone(), restored, self.storage.clone(), self.now);
        #[cfg(feature = "planted-bugs")]
        if let Some(planted) = self.planted {
            replica.plant(planted);
        }
        self.stage = Stage::Running(Box::new(replica));
    }

    /// Breaks one rule of the protocol, for a mutation test.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, planted: d3b_paxos::Planted) {
        self.planted = Some(planted);
        if let Stage::Running(replica) = &mut self.stage {
            replica.plant(planted);
        }
    }

    /// Takes one event. Call [`Driver::pump`] after each burst of them.
    ///
    /// # Errors
    /// The log cannot be read: the replica must stop.
    pub fn handle(&mut self, now: Now, event: Event<D>) -> Result<(), StorageError> {
        self.now = now;
        match event {
            Event::Peer { from, message } => self.handle_peer(from, message)?,
            Event::ConnectionReset(peer) => {
                // Until it is heard from again: what it says next may come on another connection.
                self.heard_at.remove(&peer);
                self.step(Input::ConnectionReset(peer))?;
            }
            Event::Durable(proof) => self.handle_durable(proof)?,
            Event::ConfigurationPersisted(configuration) => self.run(configuration),
            Event::Applied(report) => self.handle_applied(report)?,
            Event::BlobFetched { from, reference, result } => self.answer_offer(from, reference, result),
            Event::BlobUnderWay { from, reference } => {
                let message = PeerMessage::BlobUnderWay { digest: reference.digest };
                self.effects.push(Effect::Send { to: from, message });
            }
            Event::Write(request) => self.begin_write(request),
            Event::Read(request) => self.begin_read(&request),
            Event::HandOver => self.step(Input::Transfer(None))?,
            Event::Rebuild { force } => self.handle_rebuild(force),
            Event::ContentRead { database, slot, chain, digest } => {
                self.sums.record_chain(database, slot, chain);
                self.sums.record_content(database, slot, digest);
            }
            Event::MemberRequest { ticket, request, deadline } => {
                self.begin_member_request(ticket, request, deadline)?
            }
            Event::Wanting(blobs) => self.members.wanting = blobs,
            Event::SnapshotTaken { to, result } => self.answer_snapshot_request(to, result),
            Event::SnapshotProgress { manifest, here, of } => self.handle_snapshot_progress(manifest, (here, of)),
            Event::SnapshotStaged { manifest, result } => self.handle_snapshot_staged(manifest, result),
            // What it is rebuilt from must not end before its log begins, and nothing is added to that meanwhile.
            Event::CutDue(_) if matches!(self.stage, Stage::Quarantined(_)) => {}
            Event::CutDue(base) => {
                // The core first: from here on it refers whoever wants more to a snapshot.
                self.step(Input::Cut(base))?;
                self.effects.push(Effect::CutLog(base));
            }
        }
        Ok(())
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// The log cannot be read: the replica must stop.
    pub fn tick(&mut self, now: Now) -> Result<(), StorageError> {
        self.now = now;
        if let Stage::Running(replica) = &mut self.stage {
            replica.tick(now)?;
        }
        self.expire();
        self.expire_member_requests();
        self.expire_catch_up();
        if now.ticks >= self.members.look_at {
            self.members.look_at = Ticks(now.ticks.0 + MEMBERS_INTERVAL.0);
            self.look_after_members()?;
        }
        if now.ticks >= self.retry_at {
            self.retry_at = Ticks(now.ticks.0 + RETRY_INTERVAL.0);
            self.writes.retry_refused();
            self.writes.retry_unacknowledged(now.ticks);
            self.repeat_offers();
        }
        if now.ticks >= self.hello_at {
            self.hello_at = Ticks(now.ticks.0 + HELLO_INTERVAL.0);
            self.say_hello();
        }
        if now.ticks >= self.gossip_at {
            self.gossip_at = Ticks(now.ticks.0 + GOSSIP_INTERVAL.0);
            self.gossip();
            self.tell_about();
        }
        Ok(())
    }

    /// When [`Driver::tick`] is due next, if nothing happens before.
    #[must_use]
    pub fn next_tick(&self) -> Ticks {
        let core = match &self.stage {
            Stage::Running(replica) => replica.next_deadline(),
            Stage::Forming(_) | Stage::Adopting | Stage::Outcast(_) => Some(self.hello_at),
            Stage::Quarantined(_) => None,
        };
        let retry = (self.writes.has_routable() || self.reads.has_arrived()).then_some(self.retry_at);
        let looks = self.led_by.0.filter(|leader| *leader == self.me()).map(|_| self.members.look_at);
        let members = self.members.next_deadline();
        [core, retry, self.writes.next_deadline(), self.reads.next_deadline(), looks, members]
            .into_iter()
            .flatten()
            .fold(self.gossip_at, Ticks::min)
    }

    /// Hands events on to the core, and collects what it wants done.
    ///
    /// # Errors
    /// The log cannot be read: the replica must stop.
    pub fn pump(&mut self) -> Result<(), StorageError> {
        self.notice_leader();
        self.route_writes()?;
        self.ask_reads()?;
        if let Stage::Running(replica) = &mut self.stage {
            let ready = replica.ready()?;
            self.carry_out(ready);
        }
        self.notice_configuration();
        self.notice_leader();
        self.notice_settled();
        Ok(())
    }

    /// What is to be done now, in this order.
    pub fn take_effects(&mut self) -> Vec<Effect<D>> {
        std::mem::take(&mut self.effects)
    }

    fn step(&mut self, input: Input) -> Result<(), StorageError> {
        match &mut self.stage {
            Stage::Running(replica) => replica.step(self.now, input),
            Stage::Forming(_) | Stage::Adopting | Stage::Outcast(_) | Stage::Quarantined(_) => Ok(()),
        }
    }

    fn carry_out(&mut self, ready: Ready) {
        let Ready { persist, send_now, send_after_persist, apply, reads, replies } = ready;
        for envelope in send_now {
            self.effects.push(Effect::Send { to: envelope.to, message: PeerMessage::Paxos(envelope) });
        }
        if let Some(batch) = persist {
            self.dependent.insert(batch.id, send_after_persist);
            self.writing_since = Some(self.now.ticks);
            self.effects.push(Effect::Persist(batch));
        }
        if let Some(range) = apply {
            let start = self.to_apply.as_ref().map_or(*range.start(), |waiting| *waiting.start());
            self.to_apply = Some(start..=*range.end());
            self.apply_next();
        }
        for read in reads {
            self.reads.confirm(read.id, read.index);
        }
        self.finish_reads();
        for reply in replies {
            self.handle_reply(reply);
        }
    }

    /// The engine works on one range at a time; what becomes ready meanwhile is the next one.
    fn apply_next(&mut self) {
        if !self.applying
            && let Some(range) = self.to_apply.take()
        {
            self.applying = true;
            self.effects.push(Effect::Apply(range));
        }
    }

    fn handle_durable(&mut self, proof: D) -> Result<(), StorageError> {
        let id = proof.id();
        self.writing_since = None;
        let envelopes = self.dependent.remove(&id).unwrap_or_default();
        if !envelopes.is_empty() {
            let messages = envelopes.into_iter().map(|envelope| (envelope.to, PeerMessage::Paxos(envelope))).collect();
            self.effects.push(Effect::SendDependent { proof, messages });
        }
        self.step(Input::Persisted(id))
    }

    fn handle_applied(&mut self, report: ApplyReport) -> Result<(), StorageError> {
        self.applying = !report.finished;
        self.applied = report.applied;
        for (database, slot, fingerprint) in report.fingerprints {
            self.sums.record_chain(database, slot, fingerprint);
        }
        for own in report.own {
            if self.writes.remove(own.ticket) {
                let result = Ok((own.slot, own.outcome));
                self.effects.push(Effect::WriteDone { ticket: own.ticket, result });
            }
        }
        self.step(Input::Applied(report.applied))?;
        self.finish_reads();
        self.apply_next();
        Ok(())
    }

    fn handle_peer(&mut self, from: ReplicaId, message: PeerMessage) -> Result<(), StorageError> {
        if self.heard_at.insert(from, self.now.ticks).is_none() {
            self.tell_about_to(from);
        }
        if self.led_by.0 == Some(from) && self.removed.is_none() {
            self.leader_heard_at = Some(self.now.ticks);
        }
        match message {
            PeerMessage::Paxos(envelope) => self.handle_paxos(from, envelope)?,
            PeerMessage::Formation(message) => self.handle_formation(from, message),
            PeerMessage::Forward { id, command } => self.propose_for_peer(from, id, command)?,
            PeerMessage::ForwardReply { id, result } => self.handle_forward_reply(from, Ticket(id), result),
            PeerMessage::BlobOffer { digest, size } => {
                self.effects.push(Effect::FetchBlob { from, reference: BlobReference { digest, size } });
            }
            PeerMessage::BlobHeld { digest } => {
                if let Stage::Running(replica) = &self.stage
                    && let Some(reference) = self.offers.held_by(&digest, from, replica.configuration())
                {
                    self.blob_held(&reference);
                }
            }
            PeerMessage::BlobUnderWay { digest } => self.writes.blob_under_way(&digest, self.now.ticks),
            PeerMessage::BlobRefused { digest, reason } => {
                tracing::warn!(peer = %from, %digest, reason, "a peer could not take a blob over");
            }
            PeerMessage::Gossip { applied, fingerprints } => self.handle_gossip(from, applied, &fingerprints),
            PeerMessage::Contents { digests } => self.handle_contents(from, &digests),
            PeerMessage::About { execution, wanting } => self.handle_about(from, execution, wanting),
            PeerMessage::MemberRequest { id, request } => self.handle_member_request(from, id, request)?,
            PeerMessage::MemberReply { id, result } => self.handle_member_reply(id, result),
            PeerMessage::SnapshotRequest => self.handle_snapshot_request(from),
            PeerMessage::SnapshotReady { slot, digest, size } => {
                self.handle_snapshot_ready(from, slot, BlobReference { digest, size });
            }
            PeerMessage::SnapshotRefused { reason } => self.handle_snapshot_refused(from, &reason),
        }
        Ok(())
    }

    // Formation.

    fn handle_formation(&mut self, from: ReplicaId, message: FormationMessage) {
        #[cfg(feature = "planted-bugs")]
        if self.planted == Some(d3b_paxos::Planted::WipedDiskVotes)
            && let (Stage::Forming(_), FormationMessage::Hello { formed: Some(formed), .. }) = (&self.stage, &message)
        {
            self.effects.push(Effect::PersistConfiguration(formed.clone().into()));
            self.stage = Stage::Adopting;
            return;
        }
        match &mut self.stage {
            Stage::Forming(formation) => {
                formation.step(from, message);
                self.follow_formation();
            }
            Stage::Running(_) => match message {
                FormationMessage::Hello { formed: None, .. } => self.tell_configuration(from),
                FormationMessage::Hello { formed: Some(_), .. } => {}
                FormationMessage::Formed { disk, configuration } => self.hear_configuration(from, disk, &configuration),
            },
            Stage::Adopting | Stage::Outcast(_) | Stage::Quarantined(_) => {}
        }
    }

    fn follow_formation(&mut self) {
        let Stage::Forming(formation) = &self.stage else { return };
        match formation.state() {
            FormationState::Waiting { .. } | FormationState::Spare { .. } => {}
            FormationState::Formed(configuration) => {
                self.stage = Stage::Adopting;
                self.effects.push(Effect::PersistConfiguration(configuration));
            }
            FormationState::Outcast { reason } => self.stage = Stage::Outcast(reason),
        }
    }

    fn say_hello(&mut self) {
        let Stage::Forming(formation) = &self.stage else { return };
        for to in self.start.replicas.keys().filter(|id| **id != self.start.settings.id) {
            let message = PeerMessage::Formation(formation.hello());
            self.effects.push(Effect::Send { to: *to, message });
        }
    }

    // Writes.

    fn begin_write(&mut self, request: WriteRequest) {
        let ticket = request.ticket;
        if let Some(reason) = self.unavailable() {
            self.effects.push(Effect::WriteDone { ticket, result: Err(reason.into()) });
            return;
        }
        let blob = request.blob;
        if let Err(failure) = self.writes.add(request) {
            self.effects.push(Effect::WriteDone { ticket, result: Err(failure) });
            return;
        }
        if let Some(reference) = blob {
            self.offer(reference);
        }
    }

    /// Asks everyone to take a blob over, unless they are asked already.
    fn offer(&mut self, reference: BlobReference) {
        if self.offers.begin(reference, self.me(), self.now.ticks) {
            let message = PeerMessage::BlobOffer { digest: reference.digest, size: reference.size };
            self.send_to_members(|_| true, &message);
        }
        if let Stage::Running(replica) = &self.stage
            && let Some(held) = self.offers.enough(&reference.digest, replica.configuration())
        {
            self.blob_held(&held);
        }
    }

    fn blob_held(&mut self, held: &BlobReference) {
        for ticket in self.writes.blob_held(held, self.now.ticks) {
            let result = Ok((self.applied, Ok(Answer::Results(Vec::new()))));
            self.effects.push(Effect::WriteDone { ticket, result });
        }
    }

    fn repeat_offers(&mut self) {
        let due = self.offers.due(self.now.ticks, |reference| self.writes.wants_blob(reference));
        for (reference, holders) in due {
            let message = PeerMessage::BlobOffer { digest: reference.digest, size: reference.size };
            self.send_to_members(|id| !holders.contains(&id), &message);
        }
    }

    fn answer_offer(&mut self, from: ReplicaId, reference: BlobReference, result: Result<(), String>) {
        let digest = reference.digest;
        let message = match result {
            Ok(()) => PeerMessage::BlobHeld { digest },
            Err(reason) => PeerMessage::BlobRefused { digest, reason },
        };
        self.effects.push(Effect::Send { to: from, message });
    }

    /// Hands waiting writes to the leader, if there is one.
    fn route_writes(&mut self) -> Result<(), StorageError> {
        let Some(leader) = self.led_by.0 else { return Ok(()) };
        if !self.writes.has_routable() {
            return Ok(());
        }
        let routable = self.writes.take_routable(leader, self.now.ticks);
        for reference in routable.blobs {
            self.offer(reference);
        }
        for (ticket, command) in routable.commands {
            if leader == self.me() {
                self.propose(Source::Client(ticket), command)?;
            } else {
                let message = PeerMessage::Forward { id: ticket.0, command };
                self.effects.push(Effect::Send { to: leader, message });
            }
        }
        Ok(())
    }

    fn propose(&mut self, source: Source, command: Bytes) -> Result<(), StorageError> {
        self.next_proposal += 1;
        let id = ProposalId(self.next_proposal);
        self.proposals.insert(id, source);
        let seed = self.start.settings.seed ^ self.next_proposal.rotate_left(32);
        self.step(Input::Propose(Proposal { id, command, seed }))
    }

    fn propose_for_peer(&mut self, from: ReplicaId, id: u64, command: Bytes) -> Result<(), StorageError> {
        if self.proposals.len() >= FORWARDED_MAX {
            let message = PeerMessage::ForwardReply { id, result: ForwardResult::Overloaded };
            self.effects.push(Effect::Send { to: from, message });
            return Ok(());
        }
        if self.unavailable().is_some() {
            let message = PeerMessage::ForwardReply { id, result: ForwardResult::NotLeader { leader: None } };
            self.effects.push(Effect::Send { to: from, message });
            return Ok(());
        }
        self.propose(Source::Peer(from, id), command)
    }

    fn handle_reply(&mut self, reply: Reply) {
        let (id, result) = match reply {
            Reply::Proposed { id, slot, .. } if self.members.is_ours(id) => return self.end_change(id, Ok(slot)),
            Reply::NotLeader { id, .. } | Reply::Overloaded { id } if self.members.is_ours(id) => {
                return self.end_change(id, Err(MemberFailure::NoLeader));
            }
            Reply::Refused { id, error: ChangeError::UnderWay } => {
                return self.end_change(id, Err(MemberFailure::UnderWay));
            }
            Reply::Refused { id, error } => return self.end_change(id, Err(MemberFailure::Refused(error))),
            Reply::Behind { peer, .. } => return self.begin_catch_up(peer, false),
            Reply::Superseded { configuration } => return self.handle_superseded(&configuration),
            Reply::Proposed { id, slot, .. } => (id, ForwardResult::Proposed { slot }),
            Reply::NotLeader { id, leader } => (id, ForwardResult::NotLeader { leader }),
            Reply::Overloaded { id } => (id, ForwardResult::Overloaded),
            Reply::ReadFailed { id } => return self.reads.fail(id),
            Reply::TransferEnded { .. } => return,
        };
        match self.proposals.remove(&id) {
            Some(Source::Client(ticket)) => self.handle_forward_reply(self.me(), ticket, result),
            Some(Source::Peer(to, id)) => {
                self.effects.push(Effect::Send { to, message: PeerMessage::ForwardReply { id, result } });
            }
            None => {}
        }
    }

    fn handle_forward_reply(&mut self, by: ReplicaId, ticket: Ticket, result: ForwardResult) {
        match result {
            ForwardResult::Proposed { .. } => self.writes.proposed(ticket, by),
            ForwardResult::NotLeader { .. } => self.writes.not_proposed(ticket, by),
            ForwardResult::Overloaded => {
                if let Some(failure) = self.writes.overloaded(ticket, by) {
                    self.effects.push(Effect::WriteDone { ticket, result: Err(failure) });
                }
            }
        }
    }

    // Reads.

    fn begin_read(&mut self, request: &ReadRequest) {
        #[cfg(feature = "planted-bugs")]
        if self.breaks(Planted::QuarantinedAnswers) && matches!(self.stage, Stage::Quarantined(_)) {
            self.effects.push(Effect::ReadDone { ticket: request.ticket, result: Ok(self.applied) });
            return;
        }
        let refused = match self.unavailable() {
            Some(reason) => Some(reason),
            None => (!self.reads.add(request)).then_some(Unavailable::Overloaded),
        };
        if let Some(reason) = refused {
            self.effects.push(Effect::ReadDone { ticket: request.ticket, result: Err(reason) });
        }
    }

    fn ask_reads(&mut self) -> Result<(), StorageError> {
        if self.led_by.0.is_none() {
            return Ok(());
        }
        match self.reads.ask() {
            Some(ReadId(id)) => self.step(Input::Read(ReadId(id))),
            None => Ok(()),
        }
    }

    fn finish_reads(&mut self) {
        for (ticket, index) in self.reads.take_visible(self.applied) {
            self.effects.push(Effect::ReadDone { ticket, result: Ok(index) });
        }
    }

    fn expire(&mut self) {
        for (ticket, failure) in self.writes.take_expired(self.now.ticks) {
            self.effects.push(Effect::WriteDone { ticket, result: Err(failure) });
        }
        for ticket in self.reads.take_expired(self.now.ticks) {
            self.effects.push(Effect::ReadDone { ticket, result: Err(Unavailable::NoQuorum) });
        }
    }

    // The group.

    /// Notices another leader, or another ballot of the same one: what was handed to the old one may be lost.
    fn notice_leader(&mut self) {
        let Stage::Running(replica) = &self.stage else { return };
        let led_by = (replica.leader(), replica.promised());
        if led_by.0 == Some(self.me()) {
            self.leader_heard_at = Some(self.now.ticks);
        }
        if led_by != self.led_by {
            // One that was out of sight for a while and is back at the same ballot has lost nothing.
            let handed_to = led_by.0.map(|leader| (leader, led_by.1));
            if handed_to.is_some() && handed_to != self.handed_to {
                self.writes.leader_changed(self.now.ticks);
                self.handed_to = handed_to;
            }
            match led_by.0 {
                Some(leader) if led_by.0 != self.led_by.0 => {
                    tracing::info!(%leader, ballot = %led_by.1, "has a leader")
                }
                None if self.led_by.0.is_some() => tracing::info!(ballot = %led_by.1, "has no leader"),
                Some(_) | None => {}
            }
            self.led_by = led_by;
            self.led_since = led_by.0.map(|_| self.now.ticks);
            self.settling = None;
        }
    }

    fn notice_settled(&mut self) {
        let recent = |moment: Ticks| self.now.ticks.0 <= moment.0 + SETTLED_MAX.0;
        // One that has just begun to lead may not know yet how much is chosen.
        let hears = self.leader_heard_at.is_some_and(recent) && self.led_since.is_some_and(|since| !recent(since));
        let Stage::Running(replica) = &self.stage else { return };
        let Some(told) = replica.told().filter(|_| hears && self.writing_since.is_none_or(recent)) else {
            self.settling = None;
            return;
        };
        // What it was told of a moment ago, for at any moment the disk may be behind what was told in this one.
        let (since, end) = *self.settling.get_or_insert((self.now.ticks, told));
        if replica.held() >= end {
            self.settled_at = self.settled_at.max(Some(since));
            self.settling = Some((self.now.ticks, told)).filter(|_| replica.held() < told);
        }
    }

    fn send_to_members(&mut self, to: impl Fn(ReplicaId) -> bool, message: &PeerMessage) {
        let Stage::Running(replica) = &self.stage else { return };
        for id in replica.configuration().members.keys() {
            if *id != self.start.settings.id && to(*id) {
                self.effects.push(Effect::Send { to: *id, message: message.clone() });
            }
        }
    }

    /// Why this replica takes no requests at all.
    fn unavailable(&self) -> Option<Unavailable> {
        if let Some(reason) = &self.removed {
            return Some(Unavailable::Outcast { reason: reason.clone() });
        }
        match &self.stage {
            Stage::Running(_) => None,
            Stage::Forming(formation) => Some(Unavailable::Forming { missing: missing(formation) }),
            Stage::Adopting => Some(Unavailable::Forming { missing: Vec::new() }),
            Stage::Outcast(reason) => Some(Unavailable::Outcast { reason: reason.clone() }),
            Stage::Quarantined(quarantine) => Some(Unavailable::Quarantined { reason: quarantine.reason.clone() }),
        }
    }
}

fn missing(formation: &Formation) -> Vec<ReplicaId> {
    match formation.state() {
        FormationState::Waiting { missing } => missing.into_iter().collect(),
        FormationState::Spare { .. } | FormationState::Formed(_) | FormationState::Outcast { .. } => Vec::new(),
    }
}
