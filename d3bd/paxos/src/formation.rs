//! A cluster is formed once: every replica meets every other, the one with the lowest id mints the cluster's id, and
//! each writes the configuration, with every member's disk id, to its disk before it votes for the first time.
//!
//! Nothing that [`Formation`] says claims that a cluster is formed: only a replica that has the configuration on its
//! disk says so, and it is the driver that answers for it then. The replica that mints may therefore die before its
//! configuration is durable and mint anew after its restart, for nobody has seen the first one.
//!
//! A replica that has lost its disk meets a cluster that knows its id with another disk. It has forgotten its promises
//! and must never vote again: it is an outcast, for good.

use std::collections::{BTreeMap, BTreeSet};

use d3b::{ClusterId, DiskId, ReplicaId};
use serde::{Deserialize, Serialize};

pub use crate::configuration::REPLICAS_MAX;
use crate::types::{Configuration, Founding, Member, mix};

/// What replicas say to each other until they are formed, and what formed ones answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FormationMessage {
    /// "I am here, on this disk."
    Hello {
        /// The sender's disk.
        disk: DiskId,
        /// The configuration on the sender's disk, if it is formed, in the form that the first version knew.
        formed: Option<Founding>,
    },
    /// The same of a formed replica whose configuration that form cannot say.
    Formed {
        /// The sender's disk.
        disk: DiskId,
        /// The configuration on it.
        configuration: Configuration,
    },
}

impl FormationMessage {
    /// What a formed replica answers.
    #[must_use]
    pub fn formed(disk: DiskId, configuration: &Configuration) -> FormationMessage {
        match configuration.to_founding() {
            Some(founding) => FormationMessage::Hello { disk, formed: Some(founding) },
            None => FormationMessage::Formed { disk, configuration: configuration.clone() },
        }
    }
}

/// How far the forming of a cluster has come, as one replica sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FormationState {
    /// Not every member was met; the lowest id mints only then, and the others wait to hear from a formed replica.
    Waiting {
        /// Who was not.
        missing: BTreeSet<ReplicaId>,
    },
    /// The cluster is formed, without this replica, which waits to be added to it.
    Spare {
        /// The newest configuration that was met.
        met: Configuration,
    },
    /// The configuration to write to disk; the replica takes part once that is durable.
    Formed(Configuration),
    /// This replica never votes.
    Outcast {
        /// Why, for people.
        reason: String,
    },
}

/// The forming of a cluster at one replica with a fresh disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Formation {
    id: ReplicaId,
    disk: DiskId,
    /// Who is to be a member, with its peer address; the same at every replica.
    replicas: BTreeMap<ReplicaId, String>,
    seed: u64,
    /// Whether it may form a cluster, and is not one that joins.
    founds: bool,
    /// The disks of the members that were met, this one among them.
    met: BTreeMap<ReplicaId, DiskId>,
    /// The newest configuration of a formed cluster that does not name this replica.
    without: Option<Configuration>,
    /// Set once and for good.
    end: Option<Result<Configuration, String>>,
}

impl Formation {
    /// Starts at a replica whose disk is fresh. `seed` must be fresh randomness: the cluster's id is made of it.
    #[must_use]
    pub fn new(id: ReplicaId, disk: DiskId, replicas: BTreeMap<ReplicaId, String>, seed: u64) -> Formation {
        let end = if !replicas.contains_key(&id) {
            Some(Err(format!("replica {id} is not in the list of replicas")))
        } else if replicas.len() > REPLICAS_MAX {
            Some(Err(format!("a cluster has at most {REPLICAS_MAX} replicas, not {}", replicas.len())))
        } else {
            None
        };
        let met = BTreeMap::from([(id, disk)]);
        let mut formation = Formation { id, disk, replicas, seed, founds: true, met, without: None, end };
        formation.mint_if_complete();
        formation
    }

    /// Starts at a replica whose disk is fresh and that joins a cluster which is formed already: it never forms one.
    #[must_use]
    pub fn join(id: ReplicaId, disk: DiskId, replicas: BTreeMap<ReplicaId, String>) -> Formation {
        let met = BTreeMap::from([(id, disk)]);
        Formation { id, disk, replicas, seed: 0, founds: false, met, without: None, end: None }
    }

    /// What to tell every other replica, again and again while this one waits.
    #[must_use]
    pub fn hello(&self) -> FormationMessage {
        FormationMessage::Hello { disk: self.disk, formed: None }
    }

    /// Takes a message of another replica.
    pub fn step(&mut self, from: ReplicaId, message: FormationMessage) {
        if self.end.is_some() || from == self.id {
            return;
        }
        let (disk, formed) = match message {
            FormationMessage::Hello { disk, formed } => (disk, formed.map(Configuration::from)),
            FormationMessage::Formed { disk, configuration } => (disk, Some(configuration)),
        };
        match formed {
            Some(configuration) => self.meet_formed(from, disk, configuration),
            None if self.replicas.contains_key(&from) => {
                self.met.insert(from, disk);
                self.mint_if_complete();
            }
            None => {}
        }
    }

    /// Whoever is formed is a member, on its own disk, of a cluster of a size that there is; anything else is no
    /// configuration.
    fn meet_formed(&mut self, from: ReplicaId, disk: DiskId, configuration: Configuration) {
        let is_member = configuration.members.get(&from).is_some_and(|member| member.disk == disk);
        if !is_member || !configuration.is_sane() {
            return;
        }
        match configuration.members.get(&self.id) {
            Some(member) if member.disk == self.disk => self.end = Some(Ok(configuration)),
            Some(_) => {
                self.end = Some(Err(format!(
                    "cluster {} is formed already and knows replica {} with another disk: this disk is fresh, and a \
                     replica that has lost its disk never votes again; it must join under a new id",
                    configuration.cluster, self.id
                )));
            }
            None if self.id < configuration.next_id => {
                self.end = Some(Err(format!(
                    "cluster {} is formed already, without replica {}, and that id is not free any more: join under \
                     a new one, {} or higher",
                    configuration.cluster, self.id, configuration.next_id
                )));
            }
            None => {
                let newer = self.without.as_ref().is_none_or(|known| known.epoch < configuration.epoch);
                if newer {
                    self.without = Some(configuration);
                }
            }
        }
    }

    /// How far it has come.
    #[must_use]
    pub fn state(&self) -> FormationState {
        match &self.end {
            Some(Ok(configuration)) => FormationState::Formed(configuration.clone()),
            Some(Err(reason)) => FormationState::Outcast { reason: reason.clone() },
            None => match &self.without {
                Some(met) => FormationState::Spare { met: met.clone() },
                None => {
                    let missing = self.replicas.keys().filter(|id| !self.met.contains_key(id)).copied().collect();
                    FormationState::Waiting { missing }
                }
            },
        }
    }

    fn mint_if_complete(&mut self) {
        let lowest = self.replicas.keys().next() == Some(&self.id);
        if self.end.is_some()
            || !self.founds
            || self.without.is_some()
            || !lowest
            || self.met.len() < self.replicas.len()
        {
            return;
        }
        let member = |(id, peer): (&ReplicaId, &String)| {
            let disk = *self.met.get(id)?;
            Some((*id, Member::voter(disk, peer.clone())))
        };
        let members = self.replicas.iter().filter_map(member).collect();
        self.end = Some(Ok(Configuration::founding(self.mint(), members)));
    }

    /// The seed and the own disk's id make the cluster's id: both are random, and together wide enough.
    fn mint(&self) -> ClusterId {
        let mut id = [0; 16];
        for (half, bytes) in id.chunks_exact_mut(8).zip(self.disk.0.chunks_exact(8)) {
            let word = u64::from_le_bytes(bytes.try_into().expect("chunks of eight bytes"));
            half.copy_from_slice(&mix(self.seed, &[word]).to_le_bytes());
        }
        ClusterId(id)
    }
}

#[cfg(test)]
mod tests {
    use d3b::Slot;

    use super::*;

    fn disk(n: u8) -> DiskId {
        DiskId([n; 16])
    }

    fn replicas(count: u32) -> BTreeMap<ReplicaId, String> {
        (1..=count).map(|n| (ReplicaId(n), format!("127.0.0.1:{}", 8000 + n))).collect()
    }

    fn fresh(id: u8) -> Formation {
        Formation::new(ReplicaId(u32::from(id)), disk(id), replicas(3), 7)
    }

    fn formed(formation: &Formation) -> Configuration {
        match formation.state() {
            FormationState::Formed(configuration) => configuration,
            other => panic!("not formed: {other:?}"),
        }
    }

    #[test]
    fn the_lowest_id_mints_when_it_has_met_everyone() {
        let mut first = fresh(1);
        first.step(ReplicaId(2), fresh(2).hello());
        let missing = BTreeSet::from([ReplicaId(3)]);
        assert_eq!(first.state(), FormationState::Waiting { missing });
        first.step(ReplicaId(3), fresh(3).hello());
        let configuration = formed(&first);
        assert_eq!(configuration.members.len(), 3);
        assert_eq!(configuration.members[&ReplicaId(2)].disk, disk(2));

        let mut second = fresh(2);
        second.step(ReplicaId(1), fresh(1).hello());
        second.step(ReplicaId(3), fresh(3).hello());
        assert!(matches!(second.state(), FormationState::Waiting { .. }), "only the lowest id mints");
        second.step(ReplicaId(1), FormationMessage::formed(disk(1), &configuration));
        assert_eq!(formed(&second), configuration);
    }

    #[test]
    fn a_lone_replica_forms_at_once() {
        let lone = Formation::new(ReplicaId(1), disk(1), replicas(1), 7);
        assert_eq!(formed(&lone).members.len(), 1);
    }

    #[test]
    fn a_fresh_disk_that_meets_a_formed_cluster_is_an_outcast() {
        let mut first = fresh(1);
        first.step(ReplicaId(2), fresh(2).hello());
        first.step(ReplicaId(3), fresh(3).hello());
        let configuration = formed(&first);

        let mut wiped = Formation::new(ReplicaId(1), disk(9), replicas(3), 8);
        wiped.step(ReplicaId(2), FormationMessage::formed(disk(2), &configuration));
        assert!(matches!(wiped.state(), FormationState::Outcast { .. }));
        wiped.step(ReplicaId(2), fresh(2).hello());
        wiped.step(ReplicaId(3), fresh(3).hello());
        assert!(matches!(wiped.state(), FormationState::Outcast { .. }), "for good");
    }

    #[test]
    fn a_new_id_waits_until_it_is_added() {
        use crate::types::Change;

        let mut first = fresh(1);
        first.step(ReplicaId(2), fresh(2).hello());
        first.step(ReplicaId(3), fresh(3).hello());
        let three = formed(&first);

        let mut fourth = Formation::join(ReplicaId(4), disk(4), replicas(3));
        fourth.step(ReplicaId(2), FormationMessage::formed(disk(2), &three));
        assert_eq!(fourth.state(), FormationState::Spare { met: three.clone() });
        let change = Change::Add { id: ReplicaId(4), disk: disk(4), peer: String::new(), replaces: None };
        let four = three.changed(&change, Slot(7)).unwrap();
        fourth.step(ReplicaId(2), FormationMessage::formed(disk(9), &four));
        assert!(matches!(fourth.state(), FormationState::Spare { .. }), "whoever said it is on another disk");
        fourth.step(ReplicaId(2), FormationMessage::formed(disk(2), &four));
        assert_eq!(formed(&fourth), four);

        let mut second = Formation::join(ReplicaId(2), disk(8), replicas(3));
        second.step(ReplicaId(1), FormationMessage::formed(disk(1), &four));
        assert!(matches!(second.state(), FormationState::Outcast { .. }));
    }

    #[test]
    fn strangers_and_doubles_count_for_nothing() {
        let mut first = fresh(1);
        for _ in 0..3 {
            first.step(ReplicaId(2), fresh(2).hello());
            first.step(ReplicaId(77), fresh(2).hello());
        }
        assert!(matches!(first.state(), FormationState::Waiting { .. }));
    }

    #[test]
    fn a_list_without_oneself_or_too_long_is_refused() {
        let absent = Formation::new(ReplicaId(4), disk(4), replicas(3), 7);
        assert!(matches!(absent.state(), FormationState::Outcast { .. }));
        let many = Formation::new(ReplicaId(1), disk(1), replicas(10), 7);
        assert!(matches!(many.state(), FormationState::Outcast { .. }));
    }
}
