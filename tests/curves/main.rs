//! How the cost of d3b grows: over clients, replicas, sizes, databases, and the length of the log.
//!
//! `cargo run --release -p d3b-tests --bin curves -- --out DIR` starts everything on loopback, measures each point for a
//! few seconds, prints the figures as they come, and writes every curve as `NAME.csv` and `NAME.svg`.

mod chart;
mod curve;
mod growth;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use d3b_tests::measure::{allow_files, is_release, is_wanted};

/// How the cost of d3b grows.
#[derive(Debug, Parser)]
#[command(name = "curves")]
struct Cli {
    /// Where curves are written
    #[arg(long, value_name = "DIR", default_value = "target/curves")]
    out: PathBuf,
    /// For how many seconds each point is measured
    #[arg(long, value_name = "N", default_value_t = 3)]
    seconds: u64,
    /// Only curves whose names begin like this: clients, replicas, statement-size, databases, database-size,
    /// log-length, busy-databases
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Also a database of 10 GB and a log of ten million entries
    #[arg(long)]
    large: bool,
    /// At most so many databases
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    databases: usize,
    /// Where the data goes; a directory for temporary files unless told
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !is_release("curves") {
        return ExitCode::from(2);
    }
    if let Some(dir) = &cli.dir {
        // Everything that is started keeps its data in temporary directories.
        tempfile::env::override_temp_dir(dir).expect("nobody has asked for a temporary directory yet");
    }
    std::fs::create_dir_all(&cli.out).unwrap_or_else(|error| panic!("{}: {error}", cli.out.display()));
    allow_files(4_096);
    for (_, measure) in growth::ALL.iter().filter(|(name, _)| is_wanted(&cli.only, name)) {
        measure(&cli).write(&cli.out);
    }
    ExitCode::SUCCESS
}
