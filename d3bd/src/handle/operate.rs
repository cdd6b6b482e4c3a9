//! What people who operate a replica ask of it.

use std::time::{Duration, Instant};

use d3b::api::{ClusterInfo, DamagedDatabase, ReplicaInfo, Version};
use d3b::{Code, Problem, ReplicaId, Slot};

use super::{Handle, unavailable};
use crate::driver::{CatchUp, Divergence, Event, MemberStatus, Phase, Unavailable};

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
        let damaged = parts.readers.damaged();
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
            damaged: damaged.into_iter().map(|(id, problem)| DamagedDatabase { id: id.to_string(), problem }).collect(),
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
    /// `precondition` for a replica that is neither quarantined nor has damaged databases that the others can do without,
    /// unless it is to happen by `force`.
    pub fn rebuild(&self, force: bool) -> Result<(), Problem> {
        let status = self.status();
        if force || matches!(status.phase, Phase::Quarantined { .. }) {
            return self.send(Event::Rebuild { force });
        }
        if self.parts().readers.damaged().is_empty() {
            return Err(Problem::new(
                Code::Precondition,
                "this replica is not quarantined, and none of its databases is damaged: there is nothing to repair",
            )
            .with_hint("force=true replaces its databases all the same"));
        }
        // Its vote is missed until it is rebuilt.
        others_suffice(&status.members, &status.divergences, self.replica())?;
        self.send(Event::Rebuild { force: true })
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

/// Whether a majority goes on without this replica, all of them with the same data as it has, as far as that is known.
fn others_suffice(members: &[MemberStatus], divergences: &[Divergence], me: ReplicaId) -> Result<(), Problem> {
    let refused = |detail: String| {
        Err(Problem::new(Code::Precondition, detail)
            .with_hint("see d3b-recovery(7); force=true replaces its databases all the same"))
    };
    if let Some(divergence) = divergences.first() {
        return refused(format!(
            "databases of this replica are damaged, but database {} differs from replica {}'s as well, and which is \
             right is not known",
            divergence.database, divergence.replica
        ));
    }
    let voters = members.iter().filter(|member| member.votes).count();
    let others = members.iter().filter(|member| member.votes && member.id != me && member.reachable).count();
    let needed = voters / 2 + 1;
    if others < needed {
        return refused(format!(
            "databases of this replica are damaged, but without it only {others} of {voters} voters can be reached, and \
             {needed} are needed to go on"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use d3b::DatabaseId;

    use super::*;

    fn member(id: u32, votes: bool, reachable: bool) -> MemberStatus {
        MemberStatus {
            id: ReplicaId(id),
            peer: String::new(),
            disk: None,
            votes,
            replaces: None,
            wanting: None,
            applied: None,
            compared: 0,
            reachable,
        }
    }

    #[track_caller]
    fn check(members: Vec<MemberStatus>, expected: Option<&str>) {
        let refused = others_suffice(&members, &[], ReplicaId(1)).err().map(|problem| problem.detail);
        assert_eq!(refused.is_some(), expected.is_some(), "{refused:?}");
        assert!(refused.unwrap_or_default().contains(expected.unwrap_or_default()));
    }

    #[test]
    fn a_damaged_replica_is_rebuilt_where_a_majority_goes_on_without_it() {
        let voter = |id, reachable| member(id, true, reachable);
        check(vec![voter(1, false), voter(2, true), voter(3, true)], None);
        check(vec![voter(1, false), voter(2, true), voter(3, false)], Some("only 1 of 3 voters"));
        check(vec![voter(1, false), voter(2, true)], Some("only 1 of 2"));
        check(vec![voter(1, false)], Some("only 0 of 1"));
        check(vec![voter(1, false), voter(2, true), voter(3, false), member(4, false, true)], Some("only 1 of 3"));
        // One that only learns is not missed.
        check(vec![member(1, false, false), voter(2, true), voter(3, true), voter(4, false)], None);
    }

    #[test]
    fn nothing_is_replaced_while_it_is_unknown_who_is_right() {
        let database = DatabaseId::catalogue();
        let divergence = Divergence { database, slot: Slot(7), here: [1; 16], replica: ReplicaId(2), there: [2; 16] };
        let members: Vec<MemberStatus> = (1..=3).map(|id| member(id, true, true)).collect();
        let refused = others_suffice(&members, &[divergence], ReplicaId(1)).expect_err("they differ");
        assert!(refused.code == Code::Precondition && refused.detail.contains("replica 2"), "{}", refused.detail);
    }
}
