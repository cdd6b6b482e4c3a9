//! The command line of `d3bd`: help and manual are made from it.

use crate::config::Flags;
use crate::demo::DemoArguments;

/// A replica of d3b, a RESTful distributed database server.
///
/// Without arguments it is a cluster of one on this machine, with a data directory of its own. Several replicas, each
/// with its own --id, --data-dir, --listen and --peer-listen, and all with the same --replicas, agree by Multi-Paxos
/// on one log of SQL operations and apply them to many SQLite databases.
#[derive(Debug, clap::Parser)]
#[command(name = "d3bd", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` unless told
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// What `d3bd` can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run a replica (the default)
    Run(Flags),
    /// Start a throw-away cluster on loopback with a sample database, and say what to try
    Demo(DemoArguments),
    /// Check the configuration and exit
    CheckConfig(Flags),
    /// Print the merged configuration, and where each value came from
    PrintConfig(Flags),
    /// Read the log of a data directory, also while its replica is stopped
    Log(LogArguments),
    /// Make a new cluster of one surviving replica, when a majority of its cluster is gone for good
    Recover(RecoverArguments),
}

/// Which replica has survived.
#[derive(Debug, clap::Args)]
pub struct RecoverArguments {
    /// Do not ask whether it is meant
    #[arg(short, long)]
    pub yes: bool,
    /// Settings: --data-dir, or what it is made from.
    #[command(flatten)]
    pub flags: Flags,
}

/// What to read of the log.
#[derive(Debug, clap::Args)]
pub struct LogArguments {
    /// The first slot
    #[arg(long, value_name = "SLOT", default_value_t = 1)]
    pub from: u64,
    /// How many entries at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u64,
    /// Settings: --data-dir, or what it is made from.
    #[command(flatten)]
    pub flags: Flags,
}

/// The definition, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}
