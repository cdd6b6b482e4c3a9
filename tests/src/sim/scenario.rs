//! What a seed makes of a run: how many replicas, how bad the network and the disks are, which faults strike and how
//! often. Every seed draws its own mixture, because a run in which everything goes wrong at once hides what goes wrong
//! when only one thing does.

use super::random::Random;

/// A kind of misfortune.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A process is killed; what it wrote stays in the operating system.
    Kill,
    /// The power fails: every unsynced byte may be lost.
    PowerCut,
    /// A process is stopped for a while and goes on, unaware.
    Pause,
    /// The group is cut in two.
    Partition,
    /// The leader is cut off, alone or with a few.
    LoneLeader,
    /// The leader's process dies at the moment when something of its is chosen, before it or anybody else knows.
    Ambush,
    /// Single directions of links die.
    OneWay,
    /// Links come and go quickly.
    Flap,
    /// Many messages are lost for a while.
    Loss,
    /// A wall clock jumps.
    ClockJump,
    /// Clocks run at another pace.
    ClockDrift,
    /// The leader is asked to hand over.
    Transfer,
    /// A disk becomes slow.
    SlowDisk,
    /// A sync fails.
    FailedSync,
    /// A disk is full for a while.
    FullDisk,
    /// A disk is exchanged for an empty one.
    Wipe,
    /// A bit of a log record flips.
    FlippedRecord,
    /// A blob's bytes change on their way.
    FlippedBlob,
    /// A connection breaks while both ends live.
    Reset,
    /// A replica is started with the next execution version.
    Upgrade,
    /// A replica's databases come to hold something that no entry has put there.
    Rot,
    /// An operator has a replica rebuilt that nothing is wrong with.
    ForcedRebuild,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Fault; 22] = [
        Fault::Kill,
        Fault::PowerCut,
        Fault::Pause,
        Fault::Partition,
        Fault::LoneLeader,
        Fault::Ambush,
        Fault::OneWay,
        Fault::Flap,
        Fault::Loss,
        Fault::ClockJump,
        Fault::ClockDrift,
        Fault::Transfer,
        Fault::SlowDisk,
        Fault::FailedSync,
        Fault::FullDisk,
        Fault::Wipe,
        Fault::FlippedRecord,
        Fault::FlippedBlob,
        Fault::Reset,
        Fault::Upgrade,
        Fault::Rot,
        Fault::ForcedRebuild,
    ];

    /// Whether it takes a replica away for good, so that only a minority may meet it.
    #[must_use]
    pub fn is_for_good(self) -> bool {
        matches!(self, Fault::Wipe | Fault::FlippedRecord)
    }

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::PowerCut => "power cut",
            Fault::Pause => "pause",
            Fault::Partition => "partition",
            Fault::LoneLeader => "lone leader",
            Fault::Ambush => "ambush",
            Fault::OneWay => "one-way partition",
            Fault::Flap => "flapping link",
            Fault::Loss => "burst of loss",
            Fault::ClockJump => "clock jump",
            Fault::ClockDrift => "clock drift",
            Fault::Transfer => "transfer",
            Fault::SlowDisk => "slow disk",
            Fault::FailedSync => "failed sync",
            Fault::FullDisk => "full disk",
            Fault::Wipe => "wiped disk",
            Fault::FlippedRecord => "flipped record",
            Fault::FlippedBlob => "flipped blob",
            Fault::Reset => "connection reset",
            Fault::Upgrade => "upgrade",
            Fault::Rot => "rotten data",
            Fault::ForcedRebuild => "forced rebuild",
        }
    }
}

/// How large a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// A second or two of simulated time.
    Short,
    /// Half a minute.
    Long,
    /// Half a minute that is mostly about files: long enough for the grace period to pass while disks hang.
    Files,
}

/// What a seed draws. Times are in microseconds of simulated time.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// How many replicas.
    pub replicas: u32,
    /// Whether the cluster forms itself in the run; else it is found formed.
    pub forms: bool,
    /// How long things go wrong.
    pub safety_us: u64,
    /// How many clients.
    pub clients: u32,
    /// How long a client rests between operations, on average.
    pub rest_us: u64,
    /// How many registers clients share.
    pub registers: u64,
    /// How many operations in a hundred are reads.
    pub reads_percent: u64,
    /// How many operations in a hundred concern media.
    pub media_percent: u64,
    /// How many operations in a hundred concern whole databases.
    pub database_percent: u64,
    /// How many writes in a hundred come without a key.
    pub keyless_percent: u64,
    /// The quickest a message travels.
    pub delay_min_us: u64,
    /// The slowest it usually travels.
    pub delay_max_us: u64,
    /// How many messages in a thousand are lost.
    pub loss_per_mille: u64,
    /// How many come twice.
    pub doubled_per_mille: u64,
    /// How many are late by up to a second.
    pub late_per_mille: u64,
    /// How long a sync of the log usually takes.
    pub sync_us: u64,
    /// How long applying a few entries usually takes.
    pub apply_us: u64,
    /// How long an unreferenced blob is kept.
    pub grace_us: u64,
    /// How often the state machine is synced and the blobs are swept.
    pub upkeep_us: u64,
    /// How long between things that the operator asks for, on average; it asks for nothing where there is no such time.
    pub changes_us: Option<u64>,
    /// How many slots that are applied durably are kept in the log; nothing is cut where there is no such number.
    pub retain: Option<u64>,
    /// How long taking a snapshot usually takes, and fetching it.
    pub snapshot_us: u64,
    /// How long a snapshot is given to others after the last one has fetched some of it.
    pub offer_us: u64,
    /// How often each replica reads its databases from end to end.
    pub scrub_us: u64,
    /// Whether a quarantined replica is rebuilt without being told to.
    pub auto_rebuild: bool,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// How long between faults, on average.
    pub fault_interval_us: u64,
    /// How many times in a hundred events wait and are handled together.
    pub burst_percent: u64,
    /// Bytes of entries in one message: small, so that promises and offers come in several.
    pub message_bytes_max: usize,
    /// Bytes of entries under way.
    pub inflight_bytes_max: usize,
}

const SECOND: u64 = 1_000_000;

impl Scenario {
    /// What this seed draws.
    #[must_use]
    pub fn draw(random: &mut Random, scale: Scale) -> Scenario {
        let replicas = *random.pick(&[1, 3, 3, 3, 3, 5, 5, 7]);
        let chance = *random.pick(&[15, 30, 50, 80]);
        let faults: Vec<Fault> = Fault::ALL.into_iter().filter(|_| random.percent(chance)).collect();
        let quiet = random.percent(5);
        let delay_min_us = *random.pick(&[20, 100, 100, 1_000, 10_000]);
        let lossy = random.percent(40);
        let retain = *random.pick(&[None, None, Some(0), Some(3), Some(30)]);
        let changes_us = *random.pick(&[None, None, Some(SECOND / 5), Some(SECOND)]);
        let scenario = Scenario {
            replicas,
            forms: random.percent(15),
            safety_us: match scale {
                // Members are looked after every second or so.
                Scale::Short if changes_us.is_some() => random.between(3 * SECOND, 12 * SECOND),
                Scale::Short => random.between(SECOND / 2, 3 * SECOND),
                Scale::Long | Scale::Files => random.between(10 * SECOND, 60 * SECOND),
            },
            clients: u32::try_from(random.between(1, 6)).expect("a small number"),
            rest_us: *random.pick(&[2_000, 20_000, 50_000, 100_000]),
            registers: random.between(1, 4),
            reads_percent: *random.pick(&[10, 40, 60]),
            media_percent: *random.pick(&[0, 10, 30]),
            database_percent: *random.pick(&[0, 0, 10]),
            keyless_percent: *random.pick(&[0, 20, 50]),
            delay_min_us,
            delay_max_us: delay_min_us * random.between(1, 5),
            loss_per_mille: if lossy { random.below(150) } else { 0 },
            doubled_per_mille: if random.percent(30) { random.below(150) } else { 0 },
            late_per_mille: if random.percent(30) { random.below(50) } else { 0 },
            sync_us: *random.pick(&[100, 300, 300, 2_000, 20_000]),
            apply_us: *random.pick(&[20, 200, 5_000]),
            grace_us: *random.pick(&[4, 8, 16]) * SECOND,
            upkeep_us: if retain.or(changes_us).is_some() {
                *random.pick(&[SECOND / 20, SECOND / 5, SECOND])
            } else {
                2 * SECOND
            },
            changes_us,
            retain,
            snapshot_us: *random.pick(&[1_000, 50_000, SECOND / 2]),
            offer_us: *random.pick(&[2, 5, 20]) * SECOND,
            scrub_us: *random.pick(&[SECOND / 5, SECOND, 5 * SECOND]),
            auto_rebuild: random.percent(50),
            faults: if quiet { Vec::new() } else { faults },
            fault_interval_us: *random.pick(&[SECOND / 20, SECOND / 5, SECOND / 2, SECOND]),
            burst_percent: *random.pick(&[0, 10, 40]),
            message_bytes_max: *random.pick(&[300, 2_000, 1 << 20]),
            inflight_bytes_max: *random.pick(&[1_000, 10_000, 1 << 24]),
        };
        match scale {
            Scale::Short | Scale::Long => scenario,
            // A lone replica has nobody to hand over to when its disk hangs.
            Scale::Files => Scenario {
                replicas: *random.pick(&[1, 1, 3, 3, 5]),
                media_percent: 90,
                reads_percent: 10,
                sync_us: 20_000,
                grace_us: 4 * SECOND,
                upkeep_us: SECOND / 2,
                faults: vec![Fault::SlowDisk, Fault::LoneLeader, Fault::Kill],
                fault_interval_us: 2 * SECOND,
                ..scenario
            },
        }
    }
}
