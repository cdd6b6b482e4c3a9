//! What grows, and what is measured meanwhile.

use std::time::{Duration, Instant};

use d3b_tests::cluster::Replica;
use d3b_tests::measure::{Job, drive, fill, prepare, settle, target};
use d3b_tests::process::{open_files, resident_memory};
use d3b_tests::wait::{PATIENCE, wait_for, wait_until};
use d3b_tests::{Cluster, Http, Options};
use d3bctl::bench::d3b::TABLES;
use d3bctl::bench::{Outcome, Target};
use serde_json::json;

use super::Cli;
use super::curve::Curve;

const DB: &str = "curves";
const CLIENTS: usize = 64;
/// Clients with large statements, so that what is under way at once stays within the server's bounds.
const LARGE_CLIENTS: usize = 16;
/// Bytes of a row of a database that grows.
const ROW: usize = 1_000;
/// Threads that make databases.
const MAKERS: usize = 32;
/// How long one look at a log that grows takes.
const GROW: Duration = Duration::from_secs(2);
/// How long a replica may take to start with a long log.
const START_MAX: Duration = Duration::from_secs(600);

/// A curve by its name.
pub type Growth = (&'static str, fn(&Cli) -> Curve);

/// All of them.
pub const ALL: [Growth; 7] = [
    ("clients", clients),
    ("replicas", replicas),
    ("statement-size", statement_size),
    ("databases", databases),
    ("database-size", database_size),
    ("log-length", log_length),
    ("busy-databases", busy_databases),
];

const RATE: &[&str] = &["inserts/s", "p50 ms"];

fn targets(cluster: &Cluster) -> Vec<Target> {
    cluster.ids().into_iter().map(|id| target(&cluster.replica(id).address().to_string())).collect()
}

fn leader(cluster: &Cluster) -> &Replica {
    cluster.replica(cluster.leader())
}

/// A cluster with one database that is ready for a load.
fn start(options: Options, job: &Job) -> Cluster {
    let cluster = Cluster::with(options);
    prepare(leader(&cluster), DB, job.rows, job.size);
    settle(&cluster, DB);
    cluster
}

fn job(cli: &Cli, mix: &'static str, clients: usize) -> Job {
    Job { duration: Duration::from_secs(cli.seconds), ..Job::new(mix, clients, DB) }
}

fn load(cluster: &Cluster, job: &Job) -> Outcome {
    drive(job, &targets(cluster), job.work())
}

fn p50_ms(outcome: &Outcome) -> f64 {
    outcome.latency().quantile(0.5) as f64 / 1e3
}

fn clients(cli: &Cli) -> Curve {
    let mut curve = Curve::new("clients", "Inserts of 100 bytes over clients, three replicas", "clients", RATE);
    let cluster = start(Options::default(), &job(cli, "insert", 1));
    for clients in [1, 4, 16, 64, 256, 1_000] {
        let outcome = load(&cluster, &job(cli, "insert", clients));
        curve.point(clients as f64, &[outcome.rate(), p50_ms(&outcome)]);
    }
    curve
}

fn replicas(cli: &Cli) -> Curve {
    let title = "Inserts of 100 bytes over replicas, 64 clients, all on one machine";
    let mut curve = Curve::new("replicas", title, "replicas", RATE);
    let job = job(cli, "insert", CLIENTS);
    for replicas in [1, 3, 5, 7] {
        let cluster = start(Options { replicas, ..Options::default() }, &job);
        let outcome = load(&cluster, &job);
        curve.point(replicas.into(), &[outcome.rate(), p50_ms(&outcome)]);
    }
    curve
}

fn statement_size(cli: &Cli) -> Curve {
    let title = "Inserts over the size of their row, 16 clients, three replicas";
    let columns = &["inserts/s", "MB/s", "p50 ms"];
    let mut curve = Curve::new("statement-size", title, "bytes", columns);
    let cluster = start(Options::default(), &job(cli, "insert", 1));
    // A statement with its arguments has at most 1 MiB.
    for size in [100, 1 << 10, 10 << 10, 100 << 10, 1_000_000] {
        let outcome = load(&cluster, &Job { size, ..job(cli, "insert", LARGE_CLIENTS) });
        let rate = outcome.rate();
        curve.point(size as f64, &[rate, rate * size as f64 / 1e6, p50_ms(&outcome)]);
    }
    curve
}

fn databases(cli: &Cli) -> Curve {
    let title = "Inserts of 100 bytes spread over databases, 64 clients, three replicas";
    let columns = &["inserts/s", "p50 ms", "resident MB of the largest replica", "open files of the same", "made/s"];
    let mut curve = Curve::new("databases", title, "databases", columns);
    let cluster = Cluster::start();
    let name = |number: usize| format!("many-{number}");
    let mut made = 0;
    for count in [1, 10, 100, 1_000, 10_000].into_iter().filter(|count| *count <= cli.databases) {
        let names: Vec<String> = (0..count).map(name).collect();
        let began = Instant::now();
        make(leader(&cluster), &names[made..]);
        let made_per_second = (count - made) as f64 / began.elapsed().as_secs_f64();
        made = count;
        let outcome = load(&cluster, &Job { databases: names, ..job(cli, "insert", CLIENTS) });
        let used = cluster.ids().into_iter().map(|id| {
            let pid = cluster.replica(id).pid();
            (resident_memory(pid), open_files(pid))
        });
        let (memory, files) = used.max().expect("a cluster has replicas");
        let (memory, files) = (memory as f64 / 1e6, files as f64);
        curve.point(count as f64, &[outcome.rate(), p50_ms(&outcome), memory, files, made_per_second]);
    }
    curve
}

/// Makes databases with the tables of a load, many at once.
fn make(replica: &Replica, names: &[String]) {
    let tables: Vec<_> = TABLES.iter().map(|sql| json!({ "sql": sql })).collect();
    let tables = json!({ "statements": tables }).to_string();
    let json = [("content-type", "application/json")];
    std::thread::scope(|scope| {
        for maker in 0..MAKERS {
            let (tables, json) = (&tables, &json);
            scope.spawn(move || {
                let http = Http::persistent(PATIENCE);
                for name in names.iter().skip(maker).step_by(MAKERS) {
                    // Refused for now, perhaps: so much is asked for at once.
                    wait_until(&format!("{name} is made"), PATIENCE, || {
                        let url = replica.url(&format!("/v1/db/{name}/file"));
                        http.try_send("PUT", &url, &[], [].as_slice()).is_ok_and(|it| matches!(it.status, 200 | 201))
                    });
                    wait_until(&format!("{name} has tables"), PATIENCE, || {
                        let url = replica.url(&format!("/v1/db/{name}/batch"));
                        http.try_send("POST", &url, json, tables.as_bytes()).is_ok_and(|it| it.status == 200)
                    });
                }
            });
        }
    });
}

fn database_size(cli: &Cli) -> Curve {
    let title = "Inserts, updates and reads of single rows over the size of the database, 64 clients, three replicas";
    let columns = &["inserts/s", "updates/s", "linearizable reads/s"];
    let mut curve = Curve::new("database-size", title, "MB", columns);
    let cluster = start(Options::default(), &Job { rows: 0, ..job(cli, "insert", 1) });
    let mut there = 0;
    let sizes = [1, 10, 100, 1_000, 10_000];
    for megabytes in &sizes[..if cli.large { 5 } else { 4 }] {
        let rows = megabytes * 1_000_000 / ROW as u64;
        fill(leader(&cluster), DB, there, rows, ROW);
        there = rows;
        settle(&cluster, DB);
        let rate = |mix| load(&cluster, &Job { rows, ..job(cli, mix, CLIENTS) }).rate();
        curve.point(*megabytes as f64, &[rate("insert"), rate("update"), rate("read")]);
    }
    curve
}

fn log_length(cli: &Cli) -> Curve {
    let title = "Inserts over the length of the log, all of it kept, 64 clients; a follower's start after a clean stop";
    let columns = &["inserts/s", "p50 ms", "start s"];
    let mut curve = Curve::new("log-length", title, "entries", columns);
    let options = Options::default().flag("--log-retain-bytes", "1024GiB");
    let mut cluster = start(options, &job(cli, "insert", 1));
    let lengths = [10_000, 100_000, 1_000_000, 10_000_000];
    for length in &lengths[..if cli.large { 4 } else { 3 }] {
        let grow = Job { size: 20, duration: GROW, warm_up: Duration::ZERO, ..job(cli, "insert", 256) };
        while leader(&cluster).cluster_info().applied < *length {
            load(&cluster, &grow);
        }
        let length = leader(&cluster).cluster_info().applied;
        let start = restart(&mut cluster);
        let outcome = load(&cluster, &job(cli, "insert", CLIENTS));
        curve.point(length as f64, &[outcome.rate(), p50_ms(&outcome), start.as_secs_f64()]);
    }
    curve
}

/// Stops a follower in order and starts it again; tells how long it takes until it is ready, to some 20 ms.
fn restart(cluster: &mut Cluster) -> Duration {
    let follower = cluster.follower();
    let replica = cluster.replica_mut(follower);
    replica.ask_to_stop();
    let status = replica.wait_for_end();
    assert!(status.success(), "a replica that is asked to stop stops in order: {status}");
    let began = Instant::now();
    replica.start();
    wait_for(&format!("replica {follower} is ready"), START_MAX, || replica.is_ready().then(|| began.elapsed()))
}

fn busy_databases(cli: &Cli) -> Curve {
    let title = "Inserts of 100 bytes over busy databases, 64 clients, three replicas";
    let mut curve = Curve::new("busy-databases", title, "databases", RATE);
    let cluster = Cluster::start();
    for count in [1, 2, 8] {
        let names: Vec<String> = (0..count).map(|number| format!("busy-{count}-{number}")).collect();
        make(leader(&cluster), &names);
        let outcome = load(&cluster, &Job { databases: names, ..job(cli, "insert", CLIENTS) });
        curve.point(f64::from(count), &[outcome.rate(), p50_ms(&outcome)]);
    }
    curve
}
