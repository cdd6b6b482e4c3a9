//! Who belongs to the cluster, and how that changes.
//!
//! A configuration is an entry of the log like any other: the one at slot s governs the slots above s. One thing is
//! changed at a time, so that any majority of voters before a change has a member in common with any majority after it.

use std::collections::BTreeMap;

use d3b::{ClusterId, DiskId, ReplicaId, Slot};
use serde::{Deserialize, Serialize};

use crate::types::Epoch;

/// How many voters a cluster may have.
pub const REPLICAS_MAX: usize = 9;
/// How many members it may have, learners included.
pub const MEMBERS_MAX: usize = 16;

/// One member of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The disk that it votes with. A replica with another disk is not this member.
    pub disk: DiskId,
    /// Where its peers reach it (`host:port`); the core only carries it.
    pub peer: String,
    /// Whether it counts in majorities. A learner only listens, until it has caught up and is promoted.
    pub votes: bool,
    /// The member that is to be removed once this one votes; the core only carries it.
    pub replaces: Option<ReplicaId>,
}

impl Member {
    /// A member that votes.
    #[must_use]
    pub fn voter(disk: DiskId, peer: String) -> Member {
        Member { disk, peer, votes: true, replaces: None }
    }
}

/// Who belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Configuration {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its number.
    pub epoch: Epoch,
    /// The slot of the entry that it was chosen by; it governs the slots above. Zero for the one that formed the cluster.
    pub slot: Slot,
    /// 1 to 9 voters, and learners.
    pub members: BTreeMap<ReplicaId, Member>,
    /// The lowest id that no member ever had: ids are never used again.
    pub next_id: ReplicaId,
    /// The execution version that leaders stamp entries with; it rises when every member has it.
    pub execution: u32,
}

/// A configuration as the first version of d3b wrote it: the one that forms a cluster. Whatever can be said in this form
/// is said in it, so that replicas of that version understand.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Founding {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its number.
    pub epoch: Epoch,
    /// The voters.
    pub members: BTreeMap<ReplicaId, FoundingMember>,
}

/// A member of a [`Founding`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FoundingMember {
    /// Its disk.
    pub disk: DiskId,
    /// Where its peers reach it.
    pub peer: String,
}

/// The execution version of clusters that the first version of d3b formed.
const FIRST_EXECUTION: u32 = 1;

impl From<Founding> for Configuration {
    fn from(founding: Founding) -> Configuration {
        let Founding { cluster, epoch, members } = founding;
        let members = members.into_iter().map(|(id, FoundingMember { disk, peer })| (id, Member::voter(disk, peer)));
        Configuration { epoch, ..Configuration::founding(cluster, members.collect()) }
    }
}

/// A change of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Change {
    /// A replica on a fresh disk begins to learn.
    Add {
        /// Its id, which nobody had before.
        id: ReplicaId,
        /// Its disk.
        disk: DiskId,
        /// Where its peers reach it.
        peer: String,
        /// The member that it is to take the place of.
        replaces: Option<ReplicaId>,
    },
    /// A learner that has caught up begins to vote.
    Promote {
        /// The learner.
        id: ReplicaId,
    },
    /// A member leaves for good.
    Remove {
        /// The member.
        id: ReplicaId,
    },
    /// Leaders stamp entries with another execution version from here on.
    Execution {
        /// The version, which every member has.
        version: u32,
    },
}

/// Why a configuration cannot be changed so.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum ChangeError {
    /// The id is or was somebody's.
    #[error("the id {0} was used already, and ids are never used again; the next free one is {1}")]
    IdUsed(ReplicaId, ReplicaId),
    /// The disk is another member's.
    #[error("that disk belongs to replica {0} already")]
    DiskUsed(ReplicaId),
    /// There is no such member.
    #[error("replica {0} is not a member")]
    NotMember(ReplicaId),
    /// It votes already.
    #[error("replica {0} votes already")]
    Votes(ReplicaId),
    /// Nobody would be left.
    #[error("replica {0} is the only one that votes")]
    LastVoter(ReplicaId),
    /// There are as many as there may be.
    #[error("a cluster has at most {REPLICAS_MAX} replicas that vote, and {MEMBERS_MAX} in all")]
    TooMany,
    /// The version does not rise.
    #[error("the execution version is {0} already")]
    Execution(u32),
    /// Another change is under way.
    #[error("another change is under way")]
    UnderWay,
    /// The leader itself would leave.
    #[error("replica {0} leads; it must hand over first")]
    Leads(ReplicaId),
}

impl Configuration {
    /// The configuration that forms a cluster of these voters.
    #[must_use]
    pub fn founding(cluster: ClusterId, members: BTreeMap<ReplicaId, Member>) -> Configuration {
        let next_id = ReplicaId(members.keys().next_back().map_or(0, |id| id.0).saturating_add(1));
        Configuration { cluster, epoch: Epoch(0), slot: Slot::ZERO, members, next_id, execution: FIRST_EXECUTION }
    }

    /// The same in the form of the first version, if that can say it.
    #[must_use]
    pub fn to_founding(&self) -> Option<Founding> {
        let Configuration { cluster, epoch, .. } = *self;
        let member = |(id, member): (&ReplicaId, &Member)| {
            (*id, FoundingMember { disk: member.disk, peer: member.peer.clone() })
        };
        let founding = Founding { cluster, epoch, members: self.members.iter().map(member).collect() };
        (Configuration::from(founding.clone()) == *self).then_some(founding)
    }

    /// Who votes.
    pub fn voters(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.members.iter().filter(|(_, member)| member.votes).map(|(id, _)| *id)
    }

    /// Whether a replica votes.
    #[must_use]
    pub fn votes(&self, id: ReplicaId) -> bool {
        self.members.get(&id).is_some_and(|member| member.votes)
    }

    /// How many voters make a majority.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.voters().count() / 2 + 1
    }

    /// Whether it is one that a cluster can have.
    #[must_use]
    pub fn is_sane(&self) -> bool {
        let voters = self.voters().count();
        (1..=REPLICAS_MAX).contains(&voters)
            && self.members.len() <= MEMBERS_MAX
            && self.members.keys().all(|id| *id < self.next_id)
            && self.members.values().all(|member| member.peer.len() <= PEER_MAX)
    }

    /// What a change makes of it; its slot is the one that the entry will have.
    ///
    /// # Errors
    /// Why it cannot be changed so.
    pub fn changed(&self, change: &Change, slot: Slot) -> Result<Configuration, ChangeError> {
        let mut next = self.clone();
        next.epoch = Epoch(self.epoch.0 + 1);
        next.slot = slot;
        match change {
            Change::Add { id, disk, peer, replaces } => {
                if *id < self.next_id {
                    return Err(ChangeError::IdUsed(*id, self.next_id));
                }
                if let Some((other, _)) = self.members.iter().find(|(_, member)| member.disk == *disk) {
                    return Err(ChangeError::DiskUsed(*other));
                }
                if let Some(replaced) = replaces
                    && !self.members.contains_key(replaced)
                {
                    return Err(ChangeError::NotMember(*replaced));
                }
                next.next_id = ReplicaId(id.0.saturating_add(1));
                let member = Member { disk: *disk, peer: peer.clone(), votes: false, replaces: *replaces };
                next.members.insert(*id, member);
            }
            Change::Promote { id } => {
                let member = next.members.get_mut(id).ok_or(ChangeError::NotMember(*id))?;
                if std::mem::replace(&mut member.votes, true) {
                    return Err(ChangeError::Votes(*id));
                }
            }
            Change::Remove { id } => {
                if next.members.remove(id).is_none() {
                    return Err(ChangeError::NotMember(*id));
                }
                for member in next.members.values_mut() {
                    member.replaces = member.replaces.filter(|replaced| replaced != id);
                }
                if next.voters().next().is_none() {
                    return Err(ChangeError::LastVoter(*id));
                }
            }
            Change::Execution { version } => {
                if *version <= self.execution {
                    return Err(ChangeError::Execution(self.execution));
                }
                next.execution = *version;
            }
        }
        if next.is_sane() { Ok(next) } else { Err(ChangeError::TooMany) }
    }
}

/// No address is longer.
const PEER_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(n: u32) -> DiskId {
        DiskId([n.to_le_bytes()[0]; 16])
    }

    fn cluster(count: u32) -> Configuration {
        let member = |n| (ReplicaId(n), Member::voter(disk(n), format!("127.0.0.1:{}", 8000 + n)));
        Configuration::founding(ClusterId([7; 16]), (1..=count).map(member).collect())
    }

    fn add(id: u32) -> Change {
        Change::Add { id: ReplicaId(id), disk: disk(id), peer: "somewhere:1".to_owned(), replaces: None }
    }

    #[test]
    fn a_replica_learns_first_and_votes_then() {
        let three = cluster(3);
        let learning = three.changed(&add(4), Slot(9)).unwrap();
        assert_eq!((learning.majority(), learning.epoch, learning.slot), (2, Epoch(1), Slot(9)));
        let four = learning.changed(&Change::Promote { id: ReplicaId(4) }, Slot(11)).unwrap();
        assert_eq!((four.majority(), four.voters().count()), (3, 4));
        assert_eq!(
            four.changed(&Change::Promote { id: ReplicaId(4) }, Slot(12)),
            Err(ChangeError::Votes(ReplicaId(4)))
        );
    }

    #[test]
    fn ids_and_disks_are_never_used_again() {
        let four = cluster(3).changed(&add(4), Slot(1)).unwrap();
        let three = four.changed(&Change::Remove { id: ReplicaId(4) }, Slot(2)).unwrap();
        assert_eq!(three.changed(&add(4), Slot(3)), Err(ChangeError::IdUsed(ReplicaId(4), ReplicaId(5))));
        let same_disk = Change::Add { id: ReplicaId(5), disk: disk(2), peer: String::new(), replaces: None };
        assert_eq!(three.changed(&same_disk, Slot(3)), Err(ChangeError::DiskUsed(ReplicaId(2))));
    }

    #[test]
    fn somebody_is_left_and_nobody_is_one_too_many() {
        let one = cluster(1);
        let lone = ReplicaId(1);
        assert_eq!(one.changed(&Change::Remove { id: lone }, Slot(1)), Err(ChangeError::LastVoter(lone)));
        let full = cluster(9).changed(&add(10), Slot(1)).unwrap();
        assert_eq!(full.changed(&Change::Promote { id: ReplicaId(10) }, Slot(2)), Err(ChangeError::TooMany));
    }

    #[test]
    fn whoever_was_replaced_is_forgotten_when_it_is_gone() {
        let change = Change::Add { id: ReplicaId(4), disk: disk(4), peer: String::new(), replaces: Some(ReplicaId(2)) };
        let next = cluster(3).changed(&change, Slot(1)).unwrap();
        let next = next.changed(&Change::Remove { id: ReplicaId(2) }, Slot(2)).unwrap();
        assert_eq!(next.members[&ReplicaId(4)].replaces, None);
    }

    #[test]
    fn only_what_the_first_version_knew_is_said_in_its_form() {
        let three = cluster(3);
        let founding = three.to_founding().unwrap();
        assert_eq!(Configuration::from(founding), three);
        assert_eq!(three.changed(&add(4), Slot(1)).unwrap().to_founding(), None);
        let removed = three.changed(&Change::Remove { id: ReplicaId(3) }, Slot(1)).unwrap();
        assert_eq!(removed.to_founding(), None);
    }
}
