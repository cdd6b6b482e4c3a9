//! The network: which messages arrive, when, and how often.

use std::collections::{BTreeMap, BTreeSet};

use d3b::ReplicaId;

use super::random::Random;
use super::scenario::Scenario;

/// A direction of a connection.
pub type Link = (ReplicaId, ReplicaId);

/// How links are.
#[derive(Debug)]
pub struct Network {
    random: Random,
    delay_min_us: u64,
    delay_max_us: u64,
    loss_per_mille: u64,
    doubled_per_mille: u64,
    late_per_mille: u64,
    /// Much is lost until then.
    lossy_until: u64,
    dead: BTreeSet<Link>,
    /// Links that are up and down for so long each, by turns.
    flapping: BTreeMap<Link, u64>,
    /// Cut off for good.
    isolated: BTreeSet<ReplicaId>,
}

impl Network {
    /// The network of a scenario.
    #[must_use]
    pub fn new(scenario: &Scenario, random: Random) -> Network {
        Network {
            random,
            delay_min_us: scenario.delay_min_us,
            delay_max_us: scenario.delay_max_us,
            loss_per_mille: scenario.loss_per_mille,
            doubled_per_mille: scenario.doubled_per_mille,
            late_per_mille: scenario.late_per_mille,
            lossy_until: 0,
            dead: BTreeSet::new(),
            flapping: BTreeMap::new(),
            isolated: BTreeSet::new(),
        }
    }

    /// Whether anything passes.
    #[must_use]
    pub fn is_up(&self, link: Link, now: u64) -> bool {
        let flaps = self.flapping.get(&link).is_some_and(|period| (now / period) % 2 == 1);
        let isolated = self.isolated.contains(&link.0) || self.isolated.contains(&link.1);
        !(flaps || isolated || self.dead.contains(&link))
    }

    /// When a message that is sent now arrives: never, once or twice.
    pub fn arrivals(&mut self, link: Link, now: u64) -> Vec<u64> {
        let loss = if now < self.lossy_until { 500 } else { self.loss_per_mille };
        if !self.is_up(link, now) || self.random.per_mille(loss) {
            return Vec::new();
        }
        let copies = if self.random.per_mille(self.doubled_per_mille) { 2 } else { 1 };
        (0..copies).map(|_| now + self.delay()).collect()
    }

    /// How long a message is on its way.
    pub fn delay(&mut self) -> u64 {
        let usual = self.random.between(self.delay_min_us, self.delay_max_us);
        if self.random.per_mille(self.late_per_mille) { usual + self.random.below(1_000_000) } else { usual }
    }

    /// Cuts every link between two sides.
    pub fn cut(&mut self, side: &BTreeSet<ReplicaId>, all: &[ReplicaId]) {
        for from in all {
            for to in all {
                if side.contains(from) != side.contains(to) {
                    self.dead.insert((*from, *to));
                }
            }
        }
    }

    /// One direction dies.
    pub fn kill(&mut self, link: Link) {
        self.dead.insert(link);
    }

    /// A link comes and goes.
    pub fn flap(&mut self, link: Link, period: u64) {
        self.flapping.insert(link, period.max(1));
    }

    /// Half of all messages are lost until then.
    pub fn lose_until(&mut self, until: u64) {
        self.lossy_until = until;
    }

    /// Every link is up again; messages are lost as often as before.
    pub fn heal(&mut self) {
        self.dead.clear();
        self.flapping.clear();
        self.lossy_until = 0;
    }

    /// From now on nothing is lost, doubled or late.
    pub fn become_fair(&mut self) {
        self.heal();
        (self.loss_per_mille, self.doubled_per_mille, self.late_per_mille) = (0, 0, 0);
    }

    /// Nothing reaches a replica or leaves it any more.
    pub fn isolate(&mut self, replica: ReplicaId) {
        self.isolated.insert(replica);
    }
}
