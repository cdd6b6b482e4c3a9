//! How many inserts a second one engine applies, over more and more databases, with other threads and without them.
//!
//! `cargo run --release -p d3b-engine --example parallel -- [DIRECTORY] [WORKERS] [ROUNDS] [DATABASES]...`. Both engines live in this
//! process, and take turns. The ratios are taken round by round: the median, and between which they lie.
//! How many databases are kept open can be told by the variable `CONNECTIONS`.
//!
//! On a machine that is busy otherwise the time says little, so the processor time is told too, per insert: that of the
//! thread that calls the engine, which others can only shorten, and that of all threads.

use std::path::{Path, PathBuf};
use std::time::Instant;

use d3b::{
    Arguments, CatalogueChange, DatabaseName, Digest, FileId, IdempotencyKey, InsertMode, KeyedOperation, Operation,
    ReplicaId, Slot, Statement, Value,
};
use d3b_engine::{Blobs, Command, EXECUTION, Engine, LogEntry, Options, Origin, command};

/// How many inserts an engine applies in one turn, and at most how many in one call.
const INSERTS: usize = 16_384;
const BATCHES: [usize; 3] = [16, 128, 1_024];

/// Over how many databases the inserts are spread, where nothing else is said.
const DATABASES: &[usize] = &[1, 2, 8];

struct NoBlobs;

impl Blobs for NoBlobs {
    fn path(&self, _digest: &Digest) -> Option<PathBuf> {
        None
    }
}

/// An engine, and how far its log has come.
struct Replica {
    engine: Engine,
    slot: u64,
}

impl Replica {
    fn new(directory: &Path, workers: usize, databases: usize) -> Replica {
        let connections_max = std::env::var("CONNECTIONS").map_or(64, |text| text.parse().expect("a number"));
        let options = Options { workers, connections_max, ..Options::default() };
        let engine = Engine::open(directory, options).expect("the directory can be used");
        let mut replica = Replica { engine, slot: 0 };
        for database in 0..databases {
            let create = Operation::Catalogue(CatalogueChange::Upload {
                name: name(database),
                owner: String::new(),
                file_id: FileId::new(format!("{database}.sqlite3")).expect("it is valid"),
                blob: None,
                mode: InsertMode::CreateOnly,
            });
            let table = sql(database, "CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT)", vec![]);
            replica.apply(&[create, table].map(|operation| encoded(operation, database)), 16);
        }
        replica
    }

    /// Applies commands, so many in a call.
    fn apply(&mut self, commands: &[Vec<u8>], batch: usize) -> Turn {
        let (began, caller, all) = (Instant::now(), caller_ns(), all_ns());
        for part in commands.chunks(batch) {
            let entries = part.iter().enumerate().map(|(index, command)| LogEntry {
                slot: Slot(self.slot + 1 + index as u64),
                time_ms: 1_700_000_000_000 + self.slot,
                seed: self.slot,
                execution: EXECUTION,
                command: Some(command),
            });
            let entries: Vec<_> = entries.collect();
            let progress = self.engine.apply(&entries, &NoBlobs).expect("the replica goes on");
            assert!(progress.applied.iter().all(|applied| matches!(applied.outcome, Some(Ok(_)))));
            assert_eq!(progress.applied.len(), part.len());
            self.slot += part.len() as u64;
        }
        let count = commands.len() as f64;
        let per_insert = |from, to| (to - from) as f64 / 1_000.0 / count;
        Turn {
            per_second: count / began.elapsed().as_secs_f64(),
            caller_us: per_insert(caller, caller_ns()),
            all_us: per_insert(all, all_ns()),
        }
    }
}

/// What a turn has cost.
#[derive(Clone, Copy)]
struct Turn {
    per_second: f64,
    caller_us: f64,
    all_us: f64,
}

/// The processor time that a thread has used, in nanoseconds.
fn used_ns(thread: &Path) -> u64 {
    let text = std::fs::read_to_string(thread.join("schedstat")).expect("the system tells");
    text.split_whitespace().next().and_then(|number| number.parse().ok()).expect("it begins with a number")
}

fn caller_ns() -> u64 {
    used_ns(Path::new("/proc/thread-self"))
}

fn all_ns() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").expect("the system tells");
    threads.map(|thread| used_ns(&thread.expect("it can be listed").path())).sum()
}

fn name(database: usize) -> DatabaseName {
    DatabaseName::new(format!("db{database}")).expect("it is valid")
}

fn sql(database: usize, text: &str, arguments: Vec<Value>) -> Operation {
    let statement = Statement { sql: text.to_owned(), arguments: Arguments::Positional(arguments), expect: None };
    Operation::Sql { db: name(database), statements: vec![statement], deferred_foreign_keys: false, media: None }
}

/// An encoded command under a key of its own.
fn encoded(operation: Operation, number: usize) -> Vec<u8> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static KEYS: AtomicU64 = AtomicU64::new(0);
    let key = format!("key {}", KEYS.fetch_add(1, Ordering::Relaxed));
    let keyed = KeyedOperation {
        request: Digest::of(key.as_bytes()),
        key: IdempotencyKey::new(key).expect("it is valid"),
        operation,
    };
    let origin = Origin { replica: ReplicaId(1), incarnation: 1, sequence: number as u64 };
    command::encode(&Command { origin, keyed })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let workers = arguments.next().map_or(1, |text| text.parse().expect("a number"));
    let rounds = arguments.next().map_or(7, |text| text.parse().expect("a number"));
    let named: Vec<usize> = arguments.map(|text| text.parse().expect("a number")).collect();
    let spreads = if named.is_empty() { DATABASES.to_vec() } else { named };
    let most = spreads.iter().copied().max().unwrap_or(1);
    let directories = [0, 1].map(|_| tempfile::tempdir_in(&parent).expect("a directory can be made"));
    let mut alone = Replica::new(directories[0].path(), 0, most);
    let mut shared = Replica::new(directories[1].path(), workers, most);
    println!("databases, in a call: inserts a second without and with {workers} workers, ratio (lowest, highest);");
    println!("    microseconds of an insert on the calling thread and on all, without workers and with them");
    for databases in spreads {
        for batch in BATCHES {
            let (mut without, mut with) = (Vec::new(), Vec::new());
            for round in 0..=rounds {
                let text = "INSERT INTO t(x) VALUES(?)";
                let value = || vec![Value::Text("a hundred bytes or so ".repeat(5))];
                let insert = |number| encoded(sql(number % databases, text, value()), number);
                let commands: Vec<Vec<u8>> = (0..INSERTS).map(insert).collect();
                let mut turns = [(&mut alone, &mut without), (&mut shared, &mut with)];
                if round % 2 == 1 {
                    turns.reverse();
                }
                for (replica, turns) in turns {
                    let turn = replica.apply(&commands, batch);
                    replica.engine.checkpoint_ahead()();
                    replica.engine.checkpoint().expect("the replica goes on");
                    // The first one warms up.
                    if round > 0 {
                        turns.push(turn);
                    }
                }
            }
            show(databases, batch, &without, &with);
        }
    }
}

fn show(databases: usize, batch: usize, without: &[Turn], with: &[Turn]) {
    let of = |turns: &[Turn], what: fn(&Turn) -> f64| median(turns.iter().map(what).collect());
    let speed = |turns: &[Turn]| of(turns, |turn| turn.per_second);
    let cost = |turns: &[Turn]| (of(turns, |turn| turn.caller_us), of(turns, |turn| turn.all_us));
    let ratios: Vec<f64> =
        with.iter().zip(without).map(|(with, without)| with.per_second / without.per_second).collect();
    let (lowest, highest) = ratios.iter().fold((f64::MAX, 0_f64), |(low, high), one| (low.min(*one), high.max(*one)));
    let ((caller, all), (caller_with, all_with)) = (cost(without), cost(with));
    println!(
        "{databases}, {batch:4}: {:6.0} {:6.0}, {:.2} ({lowest:.2}, {highest:.2}); \
         {caller:.1} and {all:.1}, {caller_with:.1} and {all_with:.1}",
        speed(without),
        speed(with),
        median(ratios),
    );
}
