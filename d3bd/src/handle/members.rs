//! Changes of the cluster's members, for whoever operates it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use d3b::api::{AddReplica, MembersChanged};
use d3b::{Code, DiskId, Problem, ReplicaId, Slot};
use d3b_paxos::types::{Change, ChangeError};

use super::{Handle, stopping, unavailable};
use crate::driver::{DriverStatus, Event, Phase, Unavailable};
use crate::driving::Driving;
use crate::peer::{MemberFailure, MemberRequest};

/// How long to wait before what was refused for the moment is asked again.
const AGAIN: Duration = Duration::from_millis(50);
/// For so long a member that has not said what it can do may yet say it.
const INTRODUCTIONS_MAX: Duration = Duration::from_secs(4);

impl Handle {
    /// Adds a replica, which learns first and votes when it has caught up. Adding it again changes nothing.
    ///
    /// # Errors
    /// `exists` for an id or a disk that is taken, `precondition` while members run an older version, `bad-request`; or why
    /// the group cannot answer.
    pub async fn add_replica(&self, request: AddReplica, deadline: Instant) -> Result<MembersChanged, Problem> {
        let AddReplica { id, disk, peer, replaces } = request;
        let disk: DiskId = disk.parse().map_err(|_| Problem::new(Code::BadRequest, "disk is not a disk id"))?;
        if id == 0 || !crate::config::is_address(&peer) {
            let hint = "GET /v1/cluster on the new replica tells its id, its disk and its peer address";
            return Err(Problem::new(Code::BadRequest, "id must be above 0 and peer a host:port").with_hint(hint));
        }
        let id = ReplicaId(id);
        let change = Change::Add { id, disk, peer: peer.clone(), replaces: replaces.map(ReplicaId) };
        let done = move |status: &DriverStatus| {
            status.members.iter().any(|member| member.id == id && member.peer == peer && member.disk == Some(disk))
        };
        self.change_members(change, deadline, done).await
    }

    /// Removes a replica for good. Removing one that is not there changes nothing.
    ///
    /// # Errors
    /// `precondition` where too few voters would be left in reach; or why the group cannot answer.
    pub async fn remove_replica(&self, id: ReplicaId, deadline: Instant) -> Result<MembersChanged, Problem> {
        let done = move |status: &DriverStatus| status.members.iter().all(|member| member.id != id);
        self.change_members(Change::Remove { id }, deadline, done).await
    }

    /// Hands the leadership over, to this replica or to the one that is best placed.
    ///
    /// # Errors
    /// `precondition` where nobody takes over; or why the group cannot answer.
    pub async fn transfer(&self, to: Option<ReplicaId>, deadline: Instant) -> Result<MembersChanged, Problem> {
        let before = self.status().leader;
        if let Some(to) = to
            && !self.status().members.iter().any(|member| member.id == to && member.votes)
        {
            return Err(Problem::new(Code::Precondition, format!("replica {to} is not one that votes")));
        }
        let done = |status: &DriverStatus| match to {
            Some(to) => status.leader == Some(to),
            None => status.leader.is_some() && status.leader != before,
        };
        while !done(&self.status()) {
            self.ask_for_members(MemberRequest::Transfer(to), deadline).await.or_else(|failure| match failure {
                MemberFailure::NoLeader => Ok(Slot::ZERO),
                failure => Err(problem(failure)),
            })?;
            // The leader takes its time to bring the other one up to date, and may keep the leadership after all.
            let patience = (Instant::now() + Duration::from_secs(1)).min(deadline);
            if !self.wait_for(patience, &done).await? && Instant::now() >= deadline {
                return Err(Problem::new(Code::Precondition, "the leader could not hand over in time")
                    .with_hint("see GET /v1/cluster for who is reachable and how far it is"));
            }
        }
        Ok(self.changed(self.status().configured_at))
    }

    async fn change_members(
        &self,
        change: Change,
        deadline: Instant,
        done: impl Fn(&DriverStatus) -> bool,
    ) -> Result<MembersChanged, Problem> {
        // Whoever has just started says within a second or two what it can do.
        let introduced = Instant::now() + INTRODUCTIONS_MAX;
        loop {
            if !self.status().members.is_empty() && done(&self.status()) {
                return Ok(self.changed(self.status().configured_at));
            }
            let failure = match self.ask_for_members(MemberRequest::Change(change.clone()), deadline).await {
                Ok(slot) => {
                    let adopted = |status: &DriverStatus| {
                        status.configured_at >= slot || matches!(status.phase, Phase::Outcast { .. })
                    };
                    if !self.wait_for(deadline, adopted).await? {
                        return Err(Problem::new(
                            Code::OutcomeUnknown,
                            "the change was proposed, and is not chosen yet",
                        )
                        .with_hint("GET /v1/cluster tells who is a member; the same request again does no harm"));
                    }
                    if matches!(self.status().phase, Phase::Outcast { .. }) {
                        return Ok(self.changed(slot));
                    }
                    // Another leader may have put something else there: then it is asked once more.
                    continue;
                }
                Err(failure) => failure,
            };
            let passing = matches!(
                failure,
                MemberFailure::NoLeader
                    | MemberFailure::HandingOver
                    | MemberFailure::UnderWay
                    | MemberFailure::Overloaded
            ) || (matches!(failure, MemberFailure::Version(_)) && Instant::now() < introduced);
            if !passing || Instant::now() + AGAIN >= deadline {
                return Err(problem(failure));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn ask_for_members(&self, request: MemberRequest, deadline: Instant) -> Result<Slot, MemberFailure> {
        let ticket = self.ticket();
        let answer = self.parts().waiting.expect_member_request(ticket);
        let event = Event::MemberRequest { ticket, request, deadline: self.ticks(deadline) };
        self.send(event).map_err(|_| MemberFailure::Overloaded)?;
        answer.await.unwrap_or(Err(MemberFailure::NoLeader))
    }

    async fn wait_for(&self, deadline: Instant, reached: impl Fn(&DriverStatus) -> bool) -> Result<bool, Problem> {
        let mut status = self.parts().status.clone();
        let waited = status.wait_for(|status| reached(status));
        match tokio::time::timeout_at(tokio::time::Instant::from_std(deadline), waited).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Ok(false),
        }
    }

    /// What there is to know of the driver, now: what it publishes by itself may be a moment old.
    pub(super) fn status(&self) -> Arc<DriverStatus> {
        self.parts().events.look(Driving::publish);
        Arc::clone(&self.parts().status.borrow())
    }

    fn changed(&self, slot: Slot) -> MembersChanged {
        MembersChanged { slot: slot.0, cluster: self.cluster() }
    }
}

fn problem(failure: MemberFailure) -> Problem {
    let detail = failure.to_string();
    match failure {
        MemberFailure::NoLeader | MemberFailure::HandingOver | MemberFailure::UnderWay => {
            unavailable(Unavailable::NoQuorum)
        }
        MemberFailure::Overloaded => Problem::new(Code::Overloaded, detail),
        MemberFailure::Refused(error) => match error {
            ChangeError::IdUsed(..) | ChangeError::DiskUsed(_) => Problem::new(Code::Exists, detail),
            ChangeError::NotMember(_) => Problem::new(Code::NotFound, detail),
            ChangeError::Votes(_)
            | ChangeError::LastVoter(_)
            | ChangeError::TooMany
            | ChangeError::Execution(_)
            | ChangeError::UnderWay
            | ChangeError::Leads(_) => Problem::new(Code::Precondition, detail),
        },
        MemberFailure::Quorum { .. } => {
            Problem::new(Code::Precondition, format!("the cluster would lose its quorum: {detail}"))
                .with_hint("start the replicas that are down, or remove those first")
        }
        MemberFailure::Version(_) => Problem::new(Code::Precondition, detail)
            .with_hint("upgrade and start every replica first; one that is gone for good can be removed or replaced"),
    }
}
