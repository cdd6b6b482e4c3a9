//! What replicas tell each other of their data, and what becomes of one that differs from the majority: it votes no more
//! and answers nobody, until it is rebuilt from a peer.

use d3b::{DatabaseId, ReplicaId, Slot};
use d3b_paxos::Storage;
use d3b_paxos::types::Configuration;

use super::fingerprints::{Divergence, Fingerprints, Place, Told, Verdict};
use super::{Driver, Effect, Stage, Unavailable};
use crate::log::Proof;
use crate::peer::PeerMessage;

/// How many databases' chains are kept for comparison.
const CHAINS_MAX: usize = 4_096;
/// How many chains that a peer told are: what it tells in a few seconds.
const CHAINS_HEARD_MAX: usize = 1_024;
/// How many databases' contents are, here and of each peer. They change rarely, and are told in turn.
const CONTENTS_MAX: usize = 16_384;

/// How a replica deals with what was found wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repair {
    /// Why it was quarantined before it started, if it was.
    pub quarantined: Option<String>,
    /// Whether it is rebuilt without being told to.
    pub auto: bool,
}

/// A replica that takes no part until it is rebuilt.
pub(super) struct Quarantine {
    /// Why.
    pub(super) reason: String,
    /// The members, of whom one may have what it is rebuilt from.
    pub(super) configuration: Configuration,
    /// Where its log begins: a snapshot of less is of no use.
    pub(super) base: Slot,
}

/// Two ways to look at the same data.
#[derive(Debug)]
pub(super) struct Sums {
    /// What was done to each database: differs when replicas did different things.
    chains: Fingerprints,
    /// What each database holds: differs also when a disk has changed something.
    contents: Fingerprints,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chain,
    Content,
}

impl Default for Sums {
    fn default() -> Sums {
        Sums {
            chains: Fingerprints::new(CHAINS_MAX, CHAINS_HEARD_MAX),
            contents: Fingerprints::new(CONTENTS_MAX, CONTENTS_MAX),
        }
    }
}

impl Sums {
    /// A database has this chain after this slot.
    pub(super) fn record_chain(&mut self, database: DatabaseId, slot: Slot, chain: [u8; 16]) {
        self.chains.record(database, slot, chain);
    }

    /// A database was found to hold this after this slot.
    pub(super) fn record_content(&mut self, database: DatabaseId, slot: Slot, digest: [u8; 16]) {
        self.contents.record_again(database, slot, digest);
    }

    /// Everything that is known to differ.
    pub(super) fn divergences(&self) -> Vec<Divergence> {
        self.chains.divergences().chain(self.contents.divergences()).cloned().collect()
    }

    /// Of at least how many databases a peer and this replica were found to hold the same.
    pub(super) fn agreed(&self, replica: ReplicaId) -> usize {
        self.chains.agreed(replica).max(self.contents.agreed(replica))
    }

    fn of(&mut self, kind: Kind) -> &mut Fingerprints {
        match kind {
            Kind::Chain => &mut self.chains,
            Kind::Content => &mut self.contents,
        }
    }
}

impl<S: Storage + Clone, D: Proof> Driver<S, D> {
    /// Tells the others how far this replica is and what it holds, and looks at it once more beside what they told.
    pub(super) fn gossip(&mut self) {
        if !matches!(self.stage, Stage::Running(_)) || self.removed.is_some() {
            return;
        }
        let (chains, contents) = (self.sums.chains.tell(), self.sums.contents.tell());
        let message = PeerMessage::Gossip { applied: self.applied, fingerprints: chains.clone() };
        self.send_to_members(|_| true, &message);
        if !contents.is_empty() {
            self.send_to_members(|_| true, &PeerMessage::Contents { digests: contents.clone() });
        }
        // What was told before it was known here was compared with nothing.
        self.judge(Kind::Chain, &chains);
        self.judge(Kind::Content, &contents);
    }

    pub(super) fn handle_gossip(&mut self, from: ReplicaId, applied: Slot, told: &[Told]) {
        self.applied_by.insert(from, applied);
        self.hear(Kind::Chain, from, told);
    }

    pub(super) fn handle_contents(&mut self, from: ReplicaId, told: &[Told]) {
        self.hear(Kind::Content, from, told);
    }

    fn hear(&mut self, kind: Kind, from: ReplicaId, told: &[Told]) {
        let Stage::Running(replica) = &self.stage else { return };
        if !replica.configuration().members.contains_key(&from) || self.removed.is_some() {
            return;
        }
        for Divergence { database, slot, .. } in self.sums.of(kind).hear(from, told) {
            tracing::error!(peer = %from, %database, %slot, ?kind, "this replica's data differs from a peer's");
        }
        self.judge(kind, told);
    }

    /// Looks whether this replica is in the minority with what it holds.
    fn judge(&mut self, kind: Kind, told: &[Told]) {
        for &(database, slot, _) in told {
            let Stage::Running(replica) = &self.stage else { return };
            let voters: Vec<ReplicaId> = replica.configuration().voters().collect();
            let me = self.me();
            match self.sums.of(kind).judge((database, slot), me, &voters) {
                Some(Verdict::Minority { majority, here, there }) => {
                    self.quarantine(reason(kind, (database, slot), &majority, here, there));
                }
                Some(Verdict::Split) => tracing::error!(
                    %database,
                    %slot,
                    ?kind,
                    "the replicas hold different data, and no majority of them agrees: nobody knows who is right, so all \
                     go on (see d3b-recovery(7))"
                ),
                None => {}
            }
        }
    }

    /// Takes this replica out of everything, for good or until it is rebuilt.
    fn quarantine(&mut self, reason: String) {
        let Stage::Running(replica) = &self.stage else { return };
        tracing::error!(reason, "this replica is quarantined: it votes and answers no more (see d3b-recovery(7))");
        let (configuration, base) = (replica.configuration().clone(), replica.status().base);
        self.stage = Stage::Quarantined(Box::new(Quarantine { reason: reason.clone(), configuration, base }));
        self.effects.push(Effect::PersistQuarantine(reason.clone()));
        // A batch that becomes durable now says nothing any more.
        self.dependent.clear();
        self.proposals.clear();
        self.to_apply = None;
        self.led_by.0 = None;
        self.settled_at = None;
        let unavailable = Unavailable::Quarantined { reason };
        for (ticket, failure) in self.writes.take_all(&unavailable) {
            self.effects.push(Effect::WriteDone { ticket, result: Err(failure) });
        }
        for ticket in self.reads.take_all() {
            self.effects.push(Effect::ReadDone { ticket, result: Err(unavailable.clone()) });
        }
        self.rebuild_by_itself();
    }

    /// Begins to rebuild a quarantined replica, where nobody needs to be asked.
    pub(super) fn rebuild_by_itself(&mut self) {
        if self.start.repair.auto && matches!(self.stage, Stage::Quarantined(_)) {
            self.rebuild_from_after(self.me());
        }
    }

    /// Somebody wants this replica to be rebuilt. One that takes part stops doing so first.
    pub(super) fn handle_rebuild(&mut self, force: bool) {
        if force && self.removed.is_none() {
            self.quarantine("an operator asked for it to be rebuilt".to_owned());
        }
        if matches!(self.stage, Stage::Quarantined(_)) {
            self.rebuild_from_after(self.me());
        }
    }

    /// The members that this replica may be rebuilt from: those that tell what they hold, as whoever takes part does; else
    /// anybody who does, for who has joined since this replica was quarantined, it does not know; else whoever is heard
    /// from at all.
    pub(super) fn healthy_members(&self) -> Vec<ReplicaId> {
        let configuration = match &self.stage {
            Stage::Running(replica) => replica.configuration(),
            Stage::Quarantined(quarantine) => &quarantine.configuration,
            Stage::Forming(_) | Stage::Adopting | Stage::Outcast(_) => return Vec::new(),
        };
        let others: Vec<ReplicaId> = configuration.voters().filter(|id| *id != self.me()).collect();
        let is_heard = |id: &ReplicaId| *id != self.me() && self.is_reachable(*id);
        let heard: Vec<ReplicaId> = others.iter().copied().filter(is_heard).collect();
        let telling: Vec<ReplicaId> = self.applied_by.keys().copied().filter(is_heard).collect();
        let both = telling.iter().copied().filter(|id| others.contains(id)).collect();
        [both, telling, heard, others].into_iter().find(|some| !some.is_empty()).unwrap_or_default()
    }
}

/// Why a replica is quarantined, for people.
fn reason(kind: Kind, (database, slot): Place, majority: &[ReplicaId], here: [u8; 16], there: [u8; 16]) -> String {
    let hex = |sum: [u8; 16]| format!("{:032x}", u128::from_be_bytes(sum));
    let what = match kind {
        Kind::Chain => "fingerprint",
        Kind::Content => "content",
    };
    let majority: Vec<String> = majority.iter().map(ToString::to_string).collect();
    format!(
        "after slot {slot} the {what} of database {database} is {} here, and {} on replicas {}, a majority",
        hex(here),
        hex(there),
        majority.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use d3b::{ClusterId, DiskId};
    use d3b_paxos::types::{Ballot, Member, Now, PersistId, Record, Ticks};
    use d3b_paxos::{Settings, StorageError};

    use super::super::{Event, Phase, ReadRequest, Start, Ticket};
    use super::*;

    /// A log without a record.
    #[derive(Debug, Clone)]
    struct Empty;

    impl Storage for Empty {
        fn read(&self, _: Slot, _: Slot, _: usize) -> Result<Vec<Record>, StorageError> {
            Ok(Vec::new())
        }
    }

    #[derive(Debug)]
    struct Written;

    impl Proof for Written {
        fn id(&self) -> PersistId {
            PersistId(1)
        }
    }

    const DISK: DiskId = DiskId([1; 16]);
    const PLACE_SLOT: Slot = Slot(5);

    fn now(ticks: u64) -> Now {
        Now { ticks: Ticks(ticks), clock_ms: ticks }
    }

    fn shop() -> DatabaseId {
        DatabaseId::derive(&d3b::DatabaseName::new("shop").unwrap(), "")
    }

    /// What replica 1 of some starts with.
    fn start(voters: u32, repair: Repair) -> Start {
        let member = |id: u32| (ReplicaId(id), Member::voter(DiskId([id.to_le_bytes()[0]; 16]), format!("peer:{id}")));
        let members: BTreeMap<ReplicaId, Member> = (1..=voters).map(member).collect();
        let settings = Settings {
            id: ReplicaId(1),
            disk: DISK,
            heartbeat: Ticks(50),
            election_timeout_min: Ticks(300),
            election_timeout_max: Ticks(600),
            seed: 7,
            inflight_bytes_max: 1 << 20,
            message_bytes_max: 1 << 20,
            clock_ahead_ms_max: 1_000,
        };
        Start {
            settings,
            execution: 1,
            joins: false,
            replicas: BTreeMap::new(),
            configuration: Some(Configuration::founding(ClusterId([7; 16]), members)),
            held: Slot::ZERO,
            promised: Ballot::ZERO,
            base: Slot(1),
            last: Slot::ZERO,
            applied: Slot::ZERO,
            repair,
        }
    }

    /// It, holding `[1; 16]`.
    fn driver(voters: u32, repair: Repair) -> Driver<Empty, Written> {
        let mut driver = Driver::new(start(voters, repair), Empty, now(0)).unwrap();
        driver.sums.record_chain(shop(), PLACE_SLOT, [1; 16]);
        driver.sums.record_content(shop(), PLACE_SLOT, [1; 16]);
        driver
    }

    fn asks_for_snapshot(effect: &Effect<Written>) -> bool {
        matches!(effect, Effect::Send { message: PeerMessage::SnapshotRequest, .. })
    }

    fn tell(driver: &mut Driver<Empty, Written>, from: u32, sum: u8) {
        tell_at(driver, 1, from, sum);
    }

    fn tell_at(driver: &mut Driver<Empty, Written>, ticks: u64, from: u32, sum: u8) {
        let message = PeerMessage::Gossip { applied: PLACE_SLOT, fingerprints: vec![(shop(), PLACE_SLOT, [sum; 16])] };
        driver.handle(now(ticks), Event::Peer { from: ReplicaId(from), message }).unwrap();
    }

    fn is_quarantined(driver: &Driver<Empty, Written>) -> bool {
        matches!(driver.status().phase, Phase::Quarantined { .. })
    }

    #[test]
    fn the_minority_is_quarantined_and_says_so_to_its_disk_and_to_whoever_waits() {
        let mut driver = driver(3, Repair::default());
        driver.handle(now(1), Event::Read(ReadRequest { ticket: Ticket(1), deadline: Ticks(9_000) })).unwrap();
        tell(&mut driver, 2, 2);
        assert!(!is_quarantined(&driver), "one against one decides nothing");
        tell(&mut driver, 3, 2);
        assert!(is_quarantined(&driver));
        let effects = driver.take_effects();
        assert!(effects.iter().any(|effect| matches!(effect, Effect::PersistQuarantine(_))));
        let told = |effect: &Effect<Written>| {
            matches!(effect, Effect::ReadDone { result: Err(Unavailable::Quarantined { .. }), .. })
        };
        assert!(effects.iter().any(told));
        assert!(!effects.iter().any(asks_for_snapshot), "nobody asked for that");
        // However much time passes, it says nothing to anybody, and asks for nothing to be written.
        for ticks in (0..20_000).step_by(50) {
            driver.tick(now(ticks)).unwrap();
            driver.pump().unwrap();
        }
        assert!(driver.take_effects().is_empty());
        driver.handle(now(20_000), Event::Read(ReadRequest { ticket: Ticket(2), deadline: Ticks(30_000) })).unwrap();
        assert!(driver.take_effects().iter().any(told));
    }

    #[test]
    fn what_differs_on_the_disk_alone_counts_as_well() {
        let mut driver = driver(3, Repair::default());
        for from in [2, 3] {
            let message = PeerMessage::Contents { digests: vec![(shop(), PLACE_SLOT, [2; 16])] };
            driver.handle(now(1), Event::Peer { from: ReplicaId(from), message }).unwrap();
        }
        assert!(is_quarantined(&driver));
    }

    #[test]
    fn the_majority_and_both_halves_go_on() {
        let check = |voters: u32, told: &[u8]| {
            let mut driver = driver(voters, Repair::default());
            for (from, sum) in (2..).zip(told) {
                tell(&mut driver, from, *sum);
            }
            assert!(!is_quarantined(&driver), "{told:?}");
            assert!(!driver.status().divergences.is_empty(), "{told:?} is shown all the same");
        };
        check(3, &[1, 2]);
        check(4, &[1, 2, 2]);
        check(3, &[2, 3]);
        check(2, &[2]);
        check(5, &[1, 1, 2, 2]);
    }

    #[test]
    fn strangers_have_no_say() {
        let mut driver = driver(3, Repair::default());
        for stranger in 4..8 {
            tell(&mut driver, stranger, 2);
        }
        assert!(!is_quarantined(&driver));
    }

    #[test]
    fn a_restart_changes_nothing() {
        let quarantined = Repair { quarantined: Some("it differs".to_owned()), auto: false };
        let driver = driver(3, quarantined);
        assert_eq!(driver.status().phase, Phase::Quarantined { reason: "it differs".to_owned() });
        assert_eq!(driver.status().members.len(), 3);
    }

    #[test]
    fn it_is_rebuilt_when_it_is_told_to_or_by_itself() {
        let rebuilds = |driver: &mut Driver<Empty, Written>| {
            driver.take_effects().iter().filter(|effect| asks_for_snapshot(effect)).count()
        };
        let mut by_itself = driver(3, Repair { quarantined: None, auto: true });
        tell(&mut by_itself, 2, 2);
        tell(&mut by_itself, 3, 2);
        assert_eq!(rebuilds(&mut by_itself), 1);
        let mut after_restart = driver(3, Repair { quarantined: Some("it differs".to_owned()), auto: true });
        assert_eq!(rebuilds(&mut after_restart), 1);
        let mut healthy = driver(3, Repair::default());
        healthy.handle(now(1), Event::Rebuild { force: false }).unwrap();
        assert_eq!(rebuilds(&mut healthy), 0);
        healthy.handle(now(1), Event::Rebuild { force: true }).unwrap();
        assert!(is_quarantined(&healthy));
        assert_eq!(rebuilds(&mut healthy), 1);
    }

    #[test]
    fn where_all_refuse_they_are_not_asked_all_the_time() {
        let mut driver = driver(3, Repair { quarantined: Some("it differs".to_owned()), auto: true });
        let mut asked = Vec::new();
        for ticks in 0..10_000 {
            for from in [ReplicaId(2), ReplicaId(3)].into_iter().filter(|_| ticks % 50 == 0) {
                let message = PeerMessage::Gossip { applied: Slot(1), fingerprints: Vec::new() };
                driver.handle(now(ticks), Event::Peer { from, message }).unwrap();
            }
            driver.tick(now(ticks)).unwrap();
            driver.pump().unwrap();
            for effect in driver.take_effects() {
                let Effect::Send { to, message: PeerMessage::SnapshotRequest } = effect else { continue };
                asked.push(to.0);
                let message = PeerMessage::SnapshotRefused { reason: "another one is being taken".to_owned() };
                driver.handle(now(ticks), Event::Peer { from: to, message }).unwrap();
            }
        }
        assert!((5..=11).contains(&asked.len()), "{asked:?}");
        assert!(asked.contains(&2) && asked.contains(&3), "{asked:?}");
    }

    #[test]
    fn a_snapshot_that_ends_before_the_log_begins_is_not_fetched() {
        let check = |slot: u64, fetched: bool| {
            let mut start = start(3, Repair { quarantined: Some("it differs".to_owned()), auto: true });
            (start.base, start.last, start.applied) = (Slot(10), Slot(12), Slot(12));
            let mut driver: Driver<Empty, Written> = Driver::new(start, Empty, now(0)).unwrap();
            let reference = d3b::BlobReference { digest: d3b::Digest([1; 32]), size: 1 };
            let message =
                PeerMessage::SnapshotReady { slot: Slot(slot), digest: reference.digest, size: reference.size };
            driver.handle(now(1), Event::Peer { from: ReplicaId(2), message }).unwrap();
            let effects = driver.take_effects();
            let fetches = |effect: &Effect<Written>| matches!(effect, Effect::FetchSnapshot { .. });
            assert_eq!(effects.iter().any(fetches), fetched, "of slot {slot}");
        };
        check(9, false);
        check(10, true);
        check(11, true);
    }

    #[test]
    fn the_log_is_not_cut_while_a_snapshot_may_come_that_ends_before_the_cut() {
        let check = |quarantined: bool| {
            let mut driver = driver(3, Repair::default());
            if quarantined {
                tell(&mut driver, 2, 2);
                tell(&mut driver, 3, 2);
            }
            driver.take_effects();
            driver.handle(now(2), Event::CutDue(Slot(2))).unwrap();
            let cuts = |effect: &Effect<Written>| matches!(effect, Effect::CutLog(Slot(2)));
            assert_eq!(driver.take_effects().iter().any(cuts), !quarantined);
        };
        check(false);
        check(true);
    }

    #[test]
    fn a_snapshot_that_is_ready_too_late_is_not_given() {
        let check = |quarantined: bool| {
            let mut driver = driver(3, Repair::default());
            driver.handle(now(1), Event::Peer { from: ReplicaId(3), message: PeerMessage::SnapshotRequest }).unwrap();
            if quarantined {
                tell(&mut driver, 2, 2);
                tell(&mut driver, 3, 2);
            }
            driver.take_effects();
            let manifest = d3b::BlobReference { digest: d3b::Digest([1; 32]), size: 1 };
            let result = Ok((PLACE_SLOT, manifest));
            driver.handle(now(2), Event::SnapshotTaken { to: ReplicaId(3), result }).unwrap();
            let gives = |effect: &Effect<Written>| {
                matches!(effect, Effect::Send { message: PeerMessage::SnapshotReady { .. }, .. })
            };
            assert_eq!(driver.take_effects().iter().any(gives), !quarantined);
        };
        check(false);
        check(true);
    }

    #[test]
    fn one_whose_peers_have_all_been_replaced_asks_those_that_tell_what_they_hold() {
        let mut driver = driver(3, Repair { quarantined: Some("it differs".to_owned()), auto: true });
        driver.take_effects();
        let mut asked = Vec::new();
        for ticks in 0..70_000 {
            if ticks % 1_000 == 0 {
                tell_at(&mut driver, ticks, 4, 2);
            }
            driver.tick(now(ticks)).unwrap();
            let effects = driver.take_effects();
            asked.extend(effects.into_iter().filter_map(|effect| match effect {
                Effect::Send { to, message: PeerMessage::SnapshotRequest } => Some(to.0),
                _ => None,
            }));
        }
        assert!(asked.contains(&4), "{asked:?}");
    }

    #[test]
    fn a_snapshot_that_was_asked_for_before_does_not_keep_it_from_being_rebuilt() {
        let mut driver = driver(3, Repair { quarantined: None, auto: true });
        driver.begin_catch_up(ReplicaId(3), false);
        driver.take_effects();
        tell(&mut driver, 2, 2);
        tell(&mut driver, 3, 2);
        assert!(driver.take_effects().iter().any(asks_for_snapshot));
    }
}
