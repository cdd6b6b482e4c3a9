//! Runs seeds of the simulator: `cargo run --release -p d3b-tests --bin sim -- --seed 42 --trace`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use d3b_tests::sim::scenario::{Fault, Scale};
use d3b_tests::sim::{Engine, Failure, Options, Report, run};

/// Simulates whole clusters under faults, one for each seed, and checks everything that they do.
#[derive(Debug, Parser)]
#[command(name = "sim", max_term_width = 100)]
struct Arguments {
    /// Run this seed only
    #[arg(long)]
    seed: Option<u64>,
    /// Begin with this seed; a fresh one unless told
    #[arg(long, conflicts_with = "seed")]
    from: Option<u64>,
    /// How many seeds to run
    #[arg(long, default_value_t = 1_000, conflicts_with_all = ["seed", "minutes"])]
    seeds: u64,
    /// Run seeds for so many minutes
    #[arg(long, conflicts_with = "seed")]
    minutes: Option<f64>,
    /// The state machine
    #[arg(long, value_enum, default_value_t = Machine::Both)]
    machine: Machine,
    /// How much is simulated for each seed
    #[arg(long, value_enum, default_value_t = Size::Short)]
    scale: Size,
    /// Tell the story of the seed in readable lines
    #[arg(long, requires = "seed")]
    trace: bool,
    /// How many threads run seeds
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// How large a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Size {
    /// A second or two of trouble
    Short,
    /// Up to a minute of it
    Long,
    /// The same, mostly about files and hanging disks
    Files,
}

/// What applies the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Machine {
    /// The SQL engine, on files in memory
    Engine,
    /// A small stand-in
    StandIn,
    /// The engine for every eighth seed, the stand-in for the others
    Both,
}

impl Machine {
    fn of(self, seed: u64) -> Engine {
        match self {
            Machine::Engine => Engine::Real,
            Machine::StandIn => Engine::StandIn,
            Machine::Both if seed.is_multiple_of(8) => Engine::Real,
            Machine::Both => Engine::StandIn,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Machine::Engine => "engine",
            Machine::StandIn => "stand-in",
            Machine::Both => "both",
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => replay(&arguments, seed),
        None => explore(&arguments),
    }
}

fn options(arguments: &Arguments, seed: u64) -> Options {
    let scale = match arguments.scale {
        Size::Short => Scale::Short,
        Size::Long => Scale::Long,
        Size::Files => Scale::Files,
    };
    Options {
        engine: arguments.machine.of(seed),
        scale,
        tell: arguments.trace,
        careless_sweep: false,
        careless_manifest: false,
        careless_quarantine: false,
    }
}

fn replay(arguments: &Arguments, seed: u64) -> ExitCode {
    match run(seed, options(arguments, seed)) {
        Ok(report) => {
            print!("{}", report.story);
            let Report {
                digest, events, chosen, answered, simulated_us, installed, quarantined, rebuilt, changes, ..
            } = report;
            println!(
                "seed {seed}: digest {digest:016x}, {events} events, {chosen} slots chosen, {answered} operations \
                 answered, {installed} snapshots installed, {changes} changes of members, {quarantined} quarantined, \
                 {rebuilt} rebuilt, {:.1} simulated seconds",
                seconds(simulated_us)
            );
            ExitCode::SUCCESS
        }
        Err(failure) => {
            print!("{}", failure.story);
            println!("{failure} (after {} events)", failure.events);
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Default)]
struct Totals {
    seeds: u64,
    events: u64,
    chosen: usize,
    answered: usize,
    installed: u64,
    quarantined: u64,
    rebuilt: u64,
    changes: u64,
    simulated_us: u64,
    faults: BTreeMap<Fault, u64>,
    failures: Vec<Failure>,
}

impl Totals {
    fn add(&mut self, result: Result<Report, Failure>) {
        self.seeds += 1;
        match result {
            Ok(report) => {
                self.events += report.events;
                self.chosen += report.chosen;
                self.answered += report.answered;
                self.installed += u64::from(report.installed);
                self.quarantined += u64::from(report.quarantined);
                self.rebuilt += u64::from(report.rebuilt);
                self.changes += u64::from(report.changes);
                self.simulated_us += report.simulated_us;
                for (fault, count) in report.faults {
                    *self.faults.entry(fault).or_default() += u64::from(count);
                }
            }
            Err(failure) => self.failures.push(failure),
        }
    }
}

fn explore(arguments: &Arguments) -> ExitCode {
    let from = arguments.from.unwrap_or_else(fresh_seed);
    println!("seeds from {from}, machine {}", arguments.machine.name());
    let began = Instant::now();
    let deadline = arguments.minutes.map(|minutes| began + Duration::from_secs_f64(minutes * 60.0));
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let over = deadline.map_or(index >= arguments.seeds, |deadline| Instant::now() >= deadline);
                    if over {
                        break;
                    }
                    let seed = from.wrapping_add(index);
                    let result = run(seed, options(arguments, seed));
                    let mut totals = totals.lock().expect("no panic while held");
                    if let Err(failure) = &result {
                        println!("{failure}");
                        println!("  replay: {}", replay_command(arguments, seed));
                        stop.store(totals.failures.len() >= 20, Ordering::Relaxed);
                    }
                    totals.add(result);
                }
            });
        }
    });
    let totals = totals.into_inner().expect("no panic while held");
    tell(&totals, began.elapsed(), arguments.threads.max(1));
    if totals.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How to see a seed again.
fn replay_command(arguments: &Arguments, seed: u64) -> String {
    let scale = match arguments.scale {
        Size::Short => "short",
        Size::Long => "long",
        Size::Files => "files",
    };
    let machine = arguments.machine.name();
    format!("cargo run --release -p d3b-tests --bin sim -- --machine {machine} --scale {scale} --seed {seed} --trace")
}

fn tell(totals: &Totals, elapsed: Duration, threads: usize) {
    let wall = elapsed.as_secs_f64();
    let rate = totals.seeds as f64 / wall;
    println!(
        "{} seeds in {wall:.1} s ({rate:.0} a second, {:.0} a second and thread), {:.1} simulated hours, {} events, \
         {} slots chosen, {} operations answered, {} snapshots installed, {} changes of members, {} quarantined, \
         {} rebuilt",
        totals.seeds,
        rate / threads as f64,
        seconds(totals.simulated_us) / 3_600.0,
        totals.events,
        totals.chosen,
        totals.answered,
        totals.installed,
        totals.changes,
        totals.quarantined,
        totals.rebuilt,
    );
    let faults: Vec<String> = totals.faults.iter().map(|(fault, count)| format!("{} {count}", fault.name())).collect();
    println!("faults: {}", faults.join(", "));
    println!("{} passed, {} failed", totals.seeds - totals.failures.len() as u64, totals.failures.len());
}

fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

/// A seed that nobody has seen.
fn fresh_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos() & u128::from(u64::MAX >> 1)).unwrap_or_default() / 1_000 * 1_000
}
