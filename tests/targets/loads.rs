//! Inserts, reads and batches, against what the disk, SQLite and HTTP allow; and the memory that they take.

use std::collections::BTreeMap;
use std::time::Duration;

use d3b_tests::measure::{Job, Probe, drive, is_wanted, prepare, settle, target};
use d3b_tests::process::{peak_memory, resident_memory};
use d3b_tests::{Cluster, Options};
use d3bctl::bench::d3b::D3b;
use d3bctl::bench::{Answer, Kind, Lost, Outcome, Target, Verdict, Work};

use super::Settings;
use super::baseline::{Server, local_batches};
use super::report::{
    BATCHES, GROUP_COMMIT, LATENCY, MEMORY_IDLE, MEMORY_PEAK, READS, REPLICATION, Report, STALE_READS,
};

const DB: &str = "targets";
/// Clients of everything but latency and batches.
const CLIENTS: usize = 64;
/// Clients that send batches, and rows of each.
const BATCH_CLIENTS: usize = 16;
const BATCH: u64 = 100;
/// Rows a second that batches have to come to, if a quarter of a local SQLite is not more.
const BATCH_ROWS_WANTED: f64 = 100_000.0;
const MB: f64 = 1e6;

/// One thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Disk,
    Latency,
    Replicated,
    Alone,
    GroupCommit,
    Reads,
    StaleReads,
    Constant,
    Batches,
    LocalBatches,
}

/// What they are for, in their order; every other round goes backwards.
const STEPS: [(Step, &str); 10] = [
    (Step::Disk, "latency"),
    (Step::Latency, "latency"),
    (Step::Alone, "replication"),
    (Step::Replicated, "replication"),
    (Step::GroupCommit, "replication"),
    (Step::Reads, "reads"),
    (Step::StaleReads, "reads"),
    (Step::Constant, "reads"),
    (Step::Batches, "batches"),
    (Step::LocalBatches, "batches"),
];

impl Step {
    /// What is measured, and in what.
    fn figure(self) -> (&'static str, &'static str) {
        match self {
            Step::Disk => ("the disk: fdatasync of 4 KiB, p50", "us"),
            Step::Latency => ("insert, 1 client, three replicas, p50", "us"),
            Step::Replicated => ("inserts, 64 clients, three replicas", "/s"),
            Step::Alone => ("inserts, 64 clients, one replica", "/s"),
            Step::GroupCommit => ("inserts, 64 clients, HTTP with SQLite's group commit", "/s"),
            Step::Reads => ("linearizable reads, 64 clients", "/s"),
            Step::StaleReads => ("stale reads, 64 clients", "/s"),
            Step::Constant => ("HTTP with a constant answer, 64 clients", "/s"),
            Step::Batches => ("batches of 100 rows, 16 clients", "rows/s"),
            Step::LocalBatches => ("batches of 100 rows, a local SQLite", "rows/s"),
        }
    }
}

/// Everything that runs during a round.
struct Machines {
    three: Cluster,
    alone: Cluster,
    group_commit: Server,
    constant: Server,
}

/// Measures one round.
pub fn round(settings: &Settings, round: usize, report: &mut Report) {
    let wants_memory = is_wanted(&settings.only, "memory");
    let mut steps: Vec<Step> = STEPS
        .into_iter()
        .filter(|(_, target)| wants_memory || is_wanted(&settings.only, target))
        .map(|(step, _)| step)
        .collect();
    if steps.is_empty() {
        return;
    }
    let machines = start(wants_memory, report);
    if round % 2 == 1 {
        steps.reverse();
    }
    let mut found = BTreeMap::new();
    for step in steps {
        let figure = measure(settings, &machines, step);
        let (name, unit) = step.figure();
        report.figure(name, unit, figure);
        found.insert(step, figure);
    }
    judge(&found, report);
    if wants_memory {
        for id in machines.three.ids() {
            report.sample(&MEMORY_PEAK, peak_memory(machines.three.replica(id).pid()) as f64 / MB);
        }
    }
}

/// Starts the servers, and gives them what there is to read.
fn start(wants_memory: bool, report: &mut Report) -> Machines {
    let three = Cluster::start();
    if wants_memory {
        for id in three.ids() {
            report.sample(&MEMORY_IDLE, resident_memory(three.replica(id).pid()) as f64 / MB);
        }
    }
    let alone = Cluster::with(Options { replicas: 1, ..Options::default() });
    let job = Job::new("read", 1, DB);
    for cluster in [&three, &alone] {
        prepare(cluster.replica(cluster.leader()), DB, job.rows, job.size);
        settle(cluster, DB);
    }
    Machines { three, alone, group_commit: Server::group_commit(), constant: Server::constant() }
}

/// Where a cluster's replicas serve.
pub fn targets(cluster: &Cluster) -> Vec<Target> {
    cluster.ids().into_iter().map(|id| target(&cluster.replica(id).address().to_string())).collect()
}

fn measure(settings: &Settings, machines: &Machines, step: Step) -> f64 {
    let job = |mix, clients| Job {
        warm_up: Duration::from_secs(settings.warm_up),
        duration: Duration::from_secs(settings.seconds),
        batch: BATCH,
        ..Job::new(mix, clients, DB)
    };
    let load = |job: &Job, targets: &[Target]| drive(job, targets, job.work());
    let three = || targets(&machines.three);
    let rows = |outcome: &Outcome| outcome.kinds[0].rows as f64 / outcome.measured.as_secs_f64();
    match step {
        Step::Disk => {
            let mut probe = Probe::default();
            probe.take();
            probe.quantile(0.5) as f64
        }
        Step::Latency => load(&job("insert", 1), &three()).latency().quantile(0.5) as f64,
        Step::Replicated => load(&job("insert", CLIENTS), &three()).rate(),
        Step::Alone => load(&job("insert", CLIENTS), &targets(&machines.alone)).rate(),
        Step::GroupCommit => load(&job("insert", CLIENTS), std::slice::from_ref(&machines.group_commit.target)).rate(),
        Step::Reads => load(&job("read", CLIENTS), &three()).rate(),
        Step::StaleReads => load(&job("stale-read", CLIENTS), &three()).rate(),
        Step::Constant => {
            let job = job("stale-read", CLIENTS);
            drive(&job, std::slice::from_ref(&machines.constant.target), AnyAnswer(job.work())).rate()
        }
        Step::Batches => rows(&load(&job("batch", BATCH_CLIENTS), &three())),
        Step::LocalBatches => local_batches(BATCH, Duration::from_secs(settings.seconds)),
    }
}

/// Sets against each other what was measured in one round.
fn judge(found: &BTreeMap<Step, f64>, report: &mut Report) {
    let get = |step: Step| found.get(&step).copied();
    if let (Some(insert), Some(disk)) = (get(Step::Latency), get(Step::Disk)) {
        report.sample(&LATENCY, insert / disk);
    }
    let percent = [
        (&REPLICATION, get(Step::Replicated), get(Step::Alone)),
        (&GROUP_COMMIT, get(Step::Alone), get(Step::GroupCommit)),
        (&READS, get(Step::Reads), get(Step::StaleReads)),
        (&STALE_READS, get(Step::StaleReads), get(Step::Constant)),
        (&BATCHES, get(Step::Batches), get(Step::LocalBatches).map(|rows| (rows / 4.0).max(BATCH_ROWS_WANTED))),
    ];
    for (goal, own, other) in percent {
        if let (Some(own), Some(other)) = (own, other) {
            report.sample(goal, 100.0 * own / other);
        }
    }
}

/// The requests of a load whose answers say nothing.
struct AnyAnswer(D3b);

impl Work for AnyAnswer {
    fn kinds(&self) -> &[Kind] {
        self.0.kinds()
    }

    fn begin(&mut self, client: usize) -> usize {
        self.0.begin(client)
    }

    fn request(&mut self, client: usize, host: &str, out: &mut Vec<u8>) {
        self.0.request(client, host, out);
    }

    fn judge(&mut self, _: usize, answer: &Answer<'_>) -> Verdict {
        match answer.status {
            200 => Verdict::Done(1),
            status => Verdict::Wrong(format!("{status} {}", String::from_utf8_lossy(answer.body))),
        }
    }

    fn lost(&mut self, client: usize, finally: bool) -> Lost {
        self.0.lost(client, finally)
    }
}
