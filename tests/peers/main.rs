//! d3b and its peers, side by side: the same work, on the same machine and disk, by the same load generator.
//!
//! `cargo run --release -p d3b-tests --bin peers` starts three replicas of each system on loopback, one system after the
//! other, loads them, and begins anew, each round with fresh data and in another order. It tells medians over the rounds,
//! their spread, and ratios; and how long an fdatasync took on the same disk meanwhile. `tests/peers/install` installs
//! the peers; one that is not installed is left out.

mod d3b;
mod etcd;
mod hiqlite;
mod rqlite;
mod system;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use d3b_tests::measure::{Probe, cpu_time, is_release, is_wanted, plan};
use d3b_tests::wait::{PATIENCE, wait_until};
use d3bctl::bench::Plan;
use d3bctl::bench::load::run;

use system::{Ask, Running, SCENARIOS, Scenario, System};
use table::{Sample, print};

/// d3b and its peers, side by side.
#[derive(Debug, Parser)]
#[command(name = "peers")]
struct Cli {
    /// How many rounds
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// For how many seconds each scenario is measured in each round
    #[arg(long, value_name = "N", default_value_t = 3)]
    seconds: u64,
    /// For how many seconds each scenario runs before
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: u64,
    /// Where the peers were installed
    #[arg(long, value_name = "DIR", default_value_os_t = default_peers())]
    peers: PathBuf,
    /// Where the data goes; a directory for temporary files unless told
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Only systems whose names begin like this: d3b, etcd, rqlite, hiqlite, hiqlite-default
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Only scenarios whose names begin like this
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    scenarios: Vec<String>,
    /// Write every sample to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The directory that `tests/peers/install` uses, too.
fn default_peers() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    cache.unwrap_or_default().join("d3b-peers")
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !is_release("peers") {
        return ExitCode::from(2);
    }
    if let Some(dir) = &cli.dir {
        // Everything that is started keeps its data in temporary directories.
        tempfile::env::override_temp_dir(dir).expect("nobody has asked for a temporary directory yet");
    }
    let systems = systems(&cli);
    let scenarios: Vec<&Scenario> = SCENARIOS.iter().filter(|it| is_wanted(&cli.scenarios, it.name)).collect();
    let mut samples = Vec::new();
    let mut probe = Probe::default();
    for round in 0..cli.rounds {
        for at in 0..systems.len() {
            // Each system is the first one, the second one... as often as the others.
            let system = &systems[(round + at) % systems.len()];
            probe.take();
            eprintln!("round {} of {}: {}", round + 1, cli.rounds, system.name());
            let running = system.start();
            wait_until("every replica has what there is to read", PATIENCE, || has_everything(&*running));
            for scenario in &scenarios {
                let sample = measure(&cli, round, system.name(), &*running, scenario);
                eprintln!("  {sample}");
                samples.push(sample);
            }
        }
    }
    if let Some(path) = &cli.json {
        let json = serde_json::to_vec_pretty(&samples).expect("samples are JSON");
        std::fs::write(path, json).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    print(&systems, &scenarios, &samples, &probe);
    let failed = samples.iter().any(|sample| sample.errors > 0);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// d3b, and the peers that are installed.
fn systems(cli: &Cli) -> Vec<Box<dyn System>> {
    let mut systems: Vec<Box<dyn System>> = vec![Box::new(d3b::D3b)];
    let installed = |name: &str| {
        let program = cli.peers.join(name);
        if program.exists() {
            return Some(program);
        }
        eprintln!("left out, because it is not there: {}", program.display());
        None
    };
    if let Some(program) = installed("etcd") {
        systems.push(Box::new(etcd::Etcd { program }));
    }
    if let Some(program) = installed("rqlited") {
        systems.push(Box::new(rqlite::Rqlite { program }));
    }
    if let Some(program) = installed("hiqlite-peer") {
        systems.push(Box::new(hiqlite::Hiqlite { program: program.clone(), immediate: true }));
        systems.push(Box::new(hiqlite::Hiqlite { program, immediate: false }));
    }
    systems.retain(|system| is_wanted(&cli.only, system.name()));
    systems
}

/// Whether stale reads find what there is to read.
fn has_everything(running: &dyn Running) -> bool {
    let plan = Plan { warm_up: Duration::ZERO, duration: Duration::from_millis(100), ..plan(6) };
    let work = running.work(Ask::StaleRead, plan.clients);
    let outcome = run(&plan, &running.targets(), vec![work], &AtomicBool::new(false), |_| ());
    let (outcome, _) = outcome.expect("a load can be run");
    outcome.errors == 0 && outcome.done() > 0
}

/// Runs one scenario on a cluster that runs.
fn measure(cli: &Cli, round: usize, system: &'static str, running: &dyn Running, scenario: &Scenario) -> Sample {
    let plan = Plan {
        warm_up: Duration::from_secs(cli.warm_up),
        duration: Duration::from_secs(cli.seconds),
        ..plan(scenario.clients)
    };
    let work = running.work(scenario.ask, plan.clients);
    let mut targets = running.targets();
    targets.rotate_left(running.leader().unwrap_or(0));
    let cpu_before = cpu_time(&running.pids());
    let mut all_done = 0;
    let (outcome, _) = run(&plan, &targets, vec![work], &AtomicBool::new(false), |progress| {
        all_done = progress.done;
    })
    .expect("a load can be run");
    let server_cpu = cpu_time(&running.pids()).saturating_sub(cpu_before);
    let latency = outcome.latency();
    Sample {
        round,
        system,
        scenario: scenario.name,
        per_second: outcome.rate(),
        p50_us: latency.quantile(0.5),
        p99_us: latency.quantile(0.99),
        // Of warm-up and measurement together, as is the number of operations.
        server_cpu_us: server_cpu.as_secs_f64() * 1e6 / all_done.max(1) as f64,
        generator_cpu_us: outcome.cpu_per_operation().as_secs_f64() * 1e6,
        errors: outcome.errors + outcome.unknown + outcome.refused + outcome.reconnects,
        messages: outcome.examples,
    }
}
