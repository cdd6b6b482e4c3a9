//! Loads of d3b, by the generator of `d3bctl bench`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use d3bctl::bench::d3b::{D3b, FILL, Spec, TABLES};
use d3bctl::bench::load::run;
use d3bctl::bench::{Outcome, Plan, Target, Work};
use serde_json::json;

use super::plan;
use crate::wait::{PATIENCE, wait_until};
use crate::{Cluster, Replica};

/// Rows that one statement fills a table with, at most.
const FILL_ROWS_MAX: u64 = 4_000;

/// What is asked for, how often at a time, and for how long.
#[derive(Debug, Clone)]
pub struct Job {
    /// The kinds of operations, as `d3bctl bench --work` takes them.
    pub mix: &'static str,
    /// Clients at a time.
    pub clients: usize,
    /// Names of the databases, which were made ready by [`prepare`].
    pub databases: Vec<String>,
    /// Rows of each that there are to be read.
    pub rows: u64,
    /// Bytes of a row's text.
    pub size: usize,
    /// Rows of a batch.
    pub batch: u64,
    /// What comes before it is measured.
    pub warm_up: Duration,
    /// For how long it is measured.
    pub duration: Duration,
}

impl Job {
    /// Clients that do one kind of thing to one database, with rows of 100 bytes.
    #[must_use]
    pub fn new(mix: &'static str, clients: usize, database: &str) -> Job {
        Job {
            mix,
            clients,
            databases: vec![database.to_owned()],
            rows: 1_000,
            size: 100,
            batch: 100,
            warm_up: Duration::from_secs(1),
            duration: Duration::from_secs(3),
        }
    }

    /// Its clients. No two of one process ever write the same row.
    ///
    /// # Panics
    /// When there is no such mix.
    #[must_use]
    pub fn work(&self) -> D3b {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let spec = Spec {
            databases: self.databases.clone(),
            mix: self.mix.parse().expect("kinds of operations"),
            batch: self.batch,
            size: self.size,
            media_size: 0,
            rows: self.rows,
            files: 0,
            run: format!("measure-{}", std::process::id()),
            parameters: String::new(),
        };
        let base = NEXT.fetch_add(self.clients as u64, Ordering::Relaxed);
        D3b::new(&Arc::new(spec), base, self.clients)
    }

    /// How it is loaded.
    #[must_use]
    pub fn plan(&self) -> Plan {
        Plan { warm_up: self.warm_up, duration: self.duration, ..plan(self.clients) }
    }
}

/// Runs a load, and says what did not go as it should.
///
/// # Panics
/// When the system has no room for it, or nothing at all was done.
pub fn drive(job: &Job, targets: &[Target], work: impl Work) -> Outcome {
    let (outcome, _) =
        run(&job.plan(), targets, vec![work], &AtomicBool::new(false), |_| ()).expect("a load can be run");
    let failures = outcome.errors + outcome.unknown + outcome.refused + outcome.reconnects;
    if failures > 0 {
        eprintln!("  {}, {} clients: {failures} failures: {:?}", job.mix, job.clients, outcome.examples);
    }
    assert!(outcome.done() > 0, "{}: nothing was done: {:?}", job.mix, outcome.examples);
    outcome
}

/// Makes a database with the tables of a load, with so many rows of this many bytes to be read.
#[track_caller]
pub fn prepare(replica: &Replica, db: &str, rows: u64, size: usize) {
    wait_until(&format!("{db} is made"), PATIENCE, || {
        matches!(replica.put(&format!("/v1/db/{db}/file"), b"").status, 200 | 201)
    });
    for sql in TABLES {
        replica.sql(db, sql, json!([]));
    }
    fill(replica, db, 0, rows, size);
}

/// Adds rows to be read, so that there are `rows` where there were `there`.
#[track_caller]
pub fn fill(replica: &Replica, db: &str, there: u64, rows: u64, size: usize) {
    let text = "x".repeat(size);
    let step = usize::try_from(FILL_ROWS_MAX).expect("a small number");
    for first in (there + 1..=rows).step_by(step) {
        let args = json!([first, rows.min(first + FILL_ROWS_MAX - 1), text]);
        let path = format!("/v1/db/{db}/query?timeout=60s");
        replica.post(&path, &json!({ "sql": FILL, "args": args })).expect(200);
    }
}

/// Waits until every replica has what there is to read, so that stale reads find it.
#[track_caller]
pub fn settle(cluster: &Cluster, db: &str) {
    for id in cluster.live() {
        // A linearizable read is answered by a replica that has everything.
        cluster.replica(id).value(db, "SELECT count(*) FROM things");
    }
}
