//! d3b against what the machine and plain tools allow: one fdatasync, one SQLite file, the HTTP stack by itself, nginx.
//!
//! `cargo run --release -p d3b-tests --bin targets` starts everything on loopback, one thing after the other, in rounds
//! that alternate their order, and sets against each other only what was measured in the same round. It prints what is
//! wanted, the median over the rounds, the lowest and the highest, and whether it is enough. It fails when something
//! went wrong, such as an acknowledged write that is lost; a target that is missed is a figure, and no failure.

mod baseline;
mod failover;
mod loads;
mod media;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser};
use d3b_tests::measure::{allow_files, is_release};

use baseline::Serve;
use report::Report;

/// d3b against what the machine and plain tools allow.
#[derive(Debug, Parser)]
#[command(name = "targets")]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    serve: Option<Serve>,
}

/// What is measured, and for how long.
#[derive(Debug, Args)]
struct Settings {
    /// How many rounds
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// For how many seconds each load is measured in each round
    #[arg(long, value_name = "N", default_value_t = 3)]
    seconds: u64,
    /// For how many seconds each load runs before
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: u64,
    /// Only targets whose names begin like this: latency, replication, reads, batches, memory, media, failover
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<String>,
    /// MiB of a media file
    #[arg(long, value_name = "N", default_value_t = 256)]
    media_mib: usize,
    /// How often the leader is killed
    #[arg(long, value_name = "N", default_value_t = 30)]
    kills: usize,
    /// How often the leader is stopped
    #[arg(long, value_name = "N", default_value_t = 10)]
    stops: usize,
    /// How often the leader hands over
    #[arg(long, value_name = "N", default_value_t = 10)]
    transfers: usize,
    /// Where the data goes; a directory for temporary files unless told
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Cli { settings, serve } = Cli::parse();
    if let Some(serve) = serve {
        serve.run();
        return ExitCode::SUCCESS;
    }
    if !is_release("targets") {
        return ExitCode::from(2);
    }
    if let Some(dir) = &settings.dir {
        // Everything that is started keeps its data in temporary directories.
        tempfile::env::override_temp_dir(dir).expect("nobody has asked for a temporary directory yet");
    }
    allow_files(4_096);
    let mut report = Report::default();
    for round in 0..settings.rounds {
        eprintln!("round {} of {}", round + 1, settings.rounds);
        loads::round(&settings, round, &mut report);
        media::round(&settings, round, &mut report);
    }
    failover::measure(&settings, &mut report);
    report.print();
    if report.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
