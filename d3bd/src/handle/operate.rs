//! What people who operate a replica ask of it.

use std::time::{Duration, Instant};

use d3b::api::{ClusterInfo, ReplicaInfo, Version};
use d3b::{Code, Problem, Slot};

use super::{Handle, unavailable};
use crate::driver::{CatchUp, Event, Phase, Unavailable};

impl Handle {
    /// The cluster as this replica sees it.
    #[must_use]
    pub fn cluster(&self) -> ClusterInfo {
        let parts = self.parts();
        let status = self.status();
        let replicas = status.members.iter().map(|member| {
            let me = member.id == parts.replica;
            let applied = if me { Some(status.applied) } else { member.applied };
            ReplicaInfo {
                replaces: member.replaces.map(|id| id.0),
                files_missing: member.wanting,
                id: member.id.0,
                http: if me { Some(parts.http_address.clone()) } else { parts.peers.http_of(member.id) },
                peer: member.peer.clone(),
                role: if member.votes { "voter" } else { "learner" }.to_owned(),
                applied: applied.map(|slot| slot.0),
                lag: applied.map(|slot| status.commit.0.saturating_sub(slot.0)),
                reachable: me || member.reachable,
            }
        });
        ClusterInfo {
            cluster: status.cluster.map(|cluster| cluster.to_string()).unwrap_or_default(),
            replica: parts.replica.0,
            leader: status.leader.map(|leader| leader.0),
            ballot: status.ballot.to_string(),
            epoch: status.epoch.0,
            next_id: status.next_id.0,
            disk: status.disk.to_string(),
            execution: status.execution,
            catching_up: status.catch_up.as_ref().map(CatchUp::told),
            commit: status.commit.0,
            applied: status.applied.0,
            state: status.phase.name().to_owned(),
            replicas: replicas.collect(),
            divergent: status.divergences.iter().map(crate::inspect::divergence).collect(),
        }
    }

    /// Whether a linearizable read would succeed now.
    ///
    /// # Errors
    /// Why it would not.
    pub async fn ready(&self) -> Result<Slot, Problem> {
        if let Phase::Outcast { reason } = &self.parts().status.borrow().phase {
            return Err(Problem::new(Code::NotReady, reason.clone()));
        }
        self.check_quarantine()?;
        self.read_index(Instant::now() + Duration::from_secs(1)).await
    }

    /// What this replica holds is not what the majority holds: nobody is to see it, however old it may be.
    pub(super) fn check_quarantine(&self) -> Result<(), Problem> {
        match &self.parts().status.borrow().phase {
            Phase::Quarantined { reason } => Err(unavailable(Unavailable::Quarantined { reason: reason.clone() })),
            Phase::Forming { .. } | Phase::Follower | Phase::Candidate | Phase::Leader | Phase::Outcast { .. } => {
                Ok(())
            }
        }
    }

    /// Has this replica's databases replaced by those of a healthy peer. It goes on when this returns.
    ///
    /// # Errors
    /// `precondition` for a replica that is not quarantined, unless it is to happen by `force`.
    pub fn rebuild(&self, force: bool) -> Result<(), Problem> {
        let quarantined = matches!(self.parts().status.borrow().phase, Phase::Quarantined { .. });
        if !quarantined && !force {
            return Err(Problem::new(
                Code::Precondition,
                "this replica is not quarantined: there is nothing to repair",
            )
            .with_hint("force=true replaces its databases all the same"));
        }
        self.send(Event::Rebuild { force })
    }

    /// What runs here.
    #[must_use]
    pub fn version(&self) -> Version {
        Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sqlite: d3b_engine::sqlite_version().to_owned(),
            execution: self.parts().execution,
        }
    }
}
