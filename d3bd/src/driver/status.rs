//! What people, and the parts of the daemon around the driver, may want to know of it.

use d3b::{ClusterId, DiskId, ReplicaId, Slot};
use d3b_paxos::types::{Ballot, Configuration, Epoch, Ticks};
use d3b_paxos::{Replica, Role, Storage};

use super::quarantine::Quarantine;
use super::{CatchUp, Divergence, Driver, SETTLED_MAX, Stage, missing};
use crate::log::Proof;

/// Whether a replica takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It waits until every member was met.
    Forming {
        /// Who was not.
        missing: Vec<ReplicaId>,
    },
    /// It takes part as a follower.
    Follower,
    /// It tries to lead.
    Candidate,
    /// It leads.
    Leader,
    /// Its disk is not a member's: it never votes.
    Outcast {
        /// Why.
        reason: String,
    },
    /// It holds other data than the majority: it neither votes nor answers until it is rebuilt.
    Quarantined {
        /// Why.
        reason: String,
    },
}

impl Phase {
    /// The word for it in the API.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Forming { .. } => "forming",
            Phase::Follower => "follower",
            Phase::Candidate => "candidate",
            Phase::Leader => "leader",
            Phase::Outcast { .. } => "outcast",
            Phase::Quarantined { .. } => "quarantined",
        }
    }
}

/// One member as this replica sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: ReplicaId,
    /// Its peer address.
    pub peer: String,
    /// Its disk, once the cluster is formed.
    pub disk: Option<DiskId>,
    /// Whether it votes, or only learns yet.
    pub votes: bool,
    /// The member whose place it is to take.
    pub replaces: Option<ReplicaId>,
    /// How many files it has yet to fetch, as far as it has said.
    pub wanting: Option<u64>,
    /// What it last said to have applied.
    pub applied: Option<Slot>,
    /// Of at least how many databases it was found to hold the same as this replica.
    pub compared: usize,
    /// Whether it was heard from within the last few heartbeats.
    pub reachable: bool,
}

/// What people may want to know of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverStatus {
    /// Whether it takes part, and how.
    pub phase: Phase,
    /// The cluster, once it is formed.
    pub cluster: Option<ClusterId>,
    /// The configuration's epoch.
    pub epoch: Epoch,
    /// The slot that the configuration was chosen in.
    pub configured_at: Slot,
    /// The lowest id that no member ever had.
    pub next_id: ReplicaId,
    /// The execution version that entries are stamped with.
    pub execution: u32,
    /// This replica's disk.
    pub disk: DiskId,
    /// The snapshot that it waits for.
    pub catch_up: Option<CatchUp>,
    /// The leader that it knows of.
    pub leader: Option<ReplicaId>,
    /// The highest ballot that it has promised.
    pub ballot: Ballot,
    /// The end of what it knows to be chosen.
    pub commit: Slot,
    /// The end of what it has applied.
    pub applied: Slot,
    /// The end of its log; of a leader, the end of what it has proposed: behind it may lie what other leaders left over.
    pub last: Slot,
    /// The beginning of its log.
    pub base: Slot,
    /// When a leader was last heard from (or had a majority, on the leader itself).
    pub leader_heard_at: Option<Ticks>,
    /// When this replica was last known to be in touch with a leader, to have what that one knows to be chosen, and its
    /// log to be written without delay. Only then is what stands neither in its log nor in its databases not on its way
    /// there either: a replica that was cut off, that waits for a snapshot, or whose disk hangs, must not drop a file for
    /// want of an entry.
    pub settled_at: Option<Ticks>,
    /// Every member.
    pub members: Vec<MemberStatus>,
    /// What was found to differ from a peer.
    pub divergences: Vec<Divergence>,
}

impl DriverStatus {
    fn set_configuration(&mut self, configuration: &Configuration) {
        self.cluster = Some(configuration.cluster);
        self.epoch = configuration.epoch;
        self.configured_at = configuration.slot;
        self.next_id = configuration.next_id;
        self.execution = configuration.execution;
    }

    /// What others wait for.
    #[must_use]
    pub fn outline(&self) -> Outline {
        let DriverStatus { leader, ballot, epoch, .. } = *self;
        Outline { phase: self.phase.name(), leader, ballot, epoch }
    }

    /// The members but one, those first that are heard from: one that does not answer costs its timeout.
    #[must_use]
    pub fn others(&self, than: ReplicaId) -> Vec<ReplicaId> {
        let mut others: Vec<&MemberStatus> = self.members.iter().filter(|member| member.id != than).collect();
        others.sort_by_key(|member| !member.reachable);
        others.into_iter().map(|member| member.id).collect()
    }

    /// Whether a replica is a member that votes.
    #[must_use]
    pub fn votes_here(&self, id: ReplicaId) -> bool {
        self.members.iter().any(|member| member.id == id && member.votes)
    }

    /// Whether the replica was settled a moment ago.
    #[must_use]
    pub fn is_settled(&self, now: Ticks) -> bool {
        self.settled_at.is_some_and(|settled| now.0 <= settled.0 + SETTLED_MAX.0)
    }
}

/// What others wait for: when it changes they are told at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    phase: &'static str,
    leader: Option<ReplicaId>,
    ballot: Ballot,
    epoch: Epoch,
}

/// What is under way, so that an event may have to wait for its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    /// A batch of the log: what is written meanwhile is in the next one.
    pub log: bool,
    /// A question for a read index: who asks meanwhile shares the next one.
    pub round: bool,
}

/// What the driver's books hold at a moment. Each has its bound, and all are empty when nobody waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Writes of this replica's clients.
    pub writes: usize,
    /// Reads of this replica's clients.
    pub reads: usize,
    /// Proposals whose slot the core has yet to tell, of peers too.
    pub proposals: usize,
    /// Blobs that are offered to peers.
    pub offers: usize,
    /// Requests for other members.
    pub members: usize,
    /// Batches of the log whose messages wait for the disk.
    pub batches: usize,
}

impl<S: Storage + Clone, D: Proof> Driver<S, D> {
    /// What its books hold.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            writes: self.writes.len(),
            reads: self.reads.len(),
            proposals: self.proposals.len(),
            offers: self.offers.len(),
            members: self.members.len(),
            batches: self.dependent.len(),
        }
    }

    /// What is under way.
    #[must_use]
    pub fn pending(&self) -> Pending {
        Pending { log: self.writing_since.is_some(), round: self.reads.is_asked() }
    }

    /// What others wait for; the same as that of [`Driver::status`], and cheap.
    #[must_use]
    pub fn outline(&self) -> Outline {
        let fixed = |phase| Outline { phase, leader: None, ballot: self.start.promised, epoch: Epoch(0) };
        match &self.stage {
            Stage::Running(replica) => Outline {
                phase: if self.removed.is_some() { "outcast" } else { phase(replica.role()).name() },
                leader: replica.leader(),
                ballot: replica.promised(),
                epoch: replica.configuration().epoch,
            },
            Stage::Forming(_) | Stage::Adopting => fixed("forming"),
            Stage::Outcast(_) => fixed("outcast"),
            Stage::Quarantined(quarantine) => Outline { epoch: quarantine.configuration.epoch, ..fixed("quarantined") },
        }
    }

    /// What people may want to know.
    #[must_use]
    pub fn status(&self) -> DriverStatus {
        let mut status = DriverStatus {
            phase: Phase::Forming { missing: Vec::new() },
            cluster: None,
            epoch: Epoch(0),
            configured_at: Slot::ZERO,
            next_id: ReplicaId(0),
            execution: self.start.execution,
            disk: self.start.settings.disk,
            catch_up: self.catch_up.clone(),
            leader: None,
            ballot: self.start.promised,
            commit: self.applied,
            applied: self.applied,
            last: self.start.last,
            base: self.start.base,
            leader_heard_at: self.leader_heard_at,
            settled_at: self.settled_at,
            members: Vec::new(),
            divergences: self.sums.divergences(),
        };
        match &self.stage {
            Stage::Running(replica) => self.running_status(replica, &mut status),
            Stage::Forming(formation) => {
                status.phase = Phase::Forming { missing: missing(formation) };
                let members = self.start.replicas.iter().map(|(id, peer)| self.member(*id, peer));
                status.members = members.collect();
            }
            Stage::Adopting => {}
            Stage::Outcast(reason) => status.phase = Phase::Outcast { reason: reason.clone() },
            Stage::Quarantined(quarantine) => {
                let Quarantine { reason, configuration, base: _ } = &**quarantine;
                status.phase = Phase::Quarantined { reason: reason.clone() };
                status.set_configuration(configuration);
                let members = configuration.members.iter().map(|(id, member)| self.member(*id, &member.peer));
                status.members = members.collect();
            }
        }
        status
    }

    fn running_status(&self, replica: &Replica<S>, status: &mut DriverStatus) {
        let core = replica.status();
        status.phase = phase(core.role);
        let configuration = replica.configuration();
        status.set_configuration(configuration);
        if let Some(reason) = &self.removed {
            status.phase = Phase::Outcast { reason: reason.clone() };
        }
        status.leader = core.leader;
        status.ballot = core.promised;
        status.commit = core.commit;
        status.last = core.last;
        status.base = core.base;
        let members = configuration.members.iter().map(|(id, member)| {
            let (votes, replaces, disk) = (member.votes, member.replaces, Some(member.disk));
            let member = MemberStatus { votes, replaces, disk, ..self.member(*id, &member.peer) };
            // A leader hears more often of its followers than they gossip.
            let acknowledged = core.peers.get(id).map(|peer| peer.applied).filter(|slot| *slot > Slot::ZERO);
            MemberStatus { applied: member.applied.max(acknowledged), ..member }
        });
        status.members = members.collect();
    }

    fn member(&self, id: ReplicaId, peer: &str) -> MemberStatus {
        let about =
            if id == self.me() { self.members.wanting } else { self.members.about.get(&id).and_then(|it| it.wanting) };
        MemberStatus {
            id,
            peer: peer.to_owned(),
            disk: None,
            votes: true,
            replaces: None,
            wanting: about,
            applied: self.applied_by.get(&id).copied(),
            compared: self.sums.agreed(id),
            reachable: self.is_reachable(id),
        }
    }
}

fn phase(role: Role) -> Phase {
    match role {
        Role::Follower => Phase::Follower,
        Role::PreCandidate | Role::Candidate => Phase::Candidate,
        Role::Leader => Phase::Leader,
    }
}
