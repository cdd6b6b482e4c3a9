//! The command line of `d3bctl`: help, completions and the manual are made from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::bench::mix::Mix;

/// The command line of d3b, a RESTful distributed database server.
///
/// It speaks to any replica; when one cannot be reached or cannot serve, the next endpoint is tried. What it writes is
/// executed once, however often it has to be sent.
#[derive(Debug, Parser)]
#[command(name = "d3bctl", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that may stand anywhere.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Replicas to ask, in this order; the next one when one fails
    #[arg(
        short,
        long,
        global = true,
        env = "D3B_ENDPOINTS",
        value_name = "URL,...",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8055",
        hide_env_values = true
    )]
    pub endpoints: Vec<String>,
    /// The form of the output: table on a terminal, else json
    #[arg(short, long, global = true, env = "D3B_OUTPUT", value_name = "FORMAT", hide_env_values = true)]
    pub output: Option<Format>,
    /// How long to wait for an answer (500ms, 5s, 2m), over all endpoints; 10s unless told, longer for uploads and waits
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// How fresh a read must be; linearizable unless told
    #[arg(long, global = true, value_name = "LEVEL")]
    pub level: Option<Level>,
    /// For --level at-least: the slot that a read must have seen, as an earlier answer told it
    #[arg(long, global = true, value_name = "SLOT")]
    pub slot: Option<u64>,
    /// Execute a write under this key, so that running the command again does not execute it twice
    #[arg(long, global = true, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// No progress bars and no notes
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Tell every request, and what became of it
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Whether to use colours; auto is on terminals, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
    /// Do not ask before something is deleted
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Say what would be sent to change anything, and do not send it; a query counts as a change
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Tell each request as a curl command too
    #[arg(long, global = true)]
    pub show_curl: bool,
}

/// Forms of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns, for people
    Table,
    /// The server's JSON
    Json,
    /// One JSON object a line
    Ndjson,
    /// Comma-separated values with a header line
    Csv,
    /// One value a line, for wide rows
    Line,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// It sees every write that was acknowledged before it began
    Linearizable,
    /// What the replica has, at any age, also without a majority
    Stale,
    /// Everything up to --slot
    AtLeast,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On terminals
    Auto,
    /// Also into files and pipes
    Always,
    /// Not at all
    Never,
}

/// What `d3bctl` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Upload an SQLite 3 file as a database
    Upload(Upload),
    /// Download a consistent copy of a database
    Download(Download),
    /// Drop a database and its media
    Delete(Database),
    /// List the databases
    List,
    /// Tell of one database
    Info(Database),
    /// Show the schema of a database
    Schema(Schema),
    /// Run one SQL statement, or a batch of them
    Query(Query),
    /// Files that belong to a database
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Media(Media),
    /// The Paxos log: what was chosen, by which ballot, with what effect
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Log(Log),
    /// Take a consistent copy of everything: databases, media, catalogue; or verify one
    Backup(Backup),
    /// Bring a backup into an empty cluster
    Restore(Restore),
    /// The replicas as a group
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Cluster(Cluster),
    /// Whether each endpoint can serve
    Status,
    /// Wait until something holds
    Wait(Wait),
    /// Load the cluster, measure how it does, and see whether it did what it said
    Bench(Bench),
    /// Print the versions of d3bctl and of the server
    Version,
    /// Print a script that completes commands in a shell
    Completion(Completion),
}

/// A database.
#[derive(Debug, Args)]
pub struct Database {
    /// The database
    #[arg(value_name = "DB")]
    pub db: String,
}

/// What to upload.
#[derive(Debug, Args)]
pub struct Upload {
    /// The name that the database gets
    #[arg(value_name = "DB")]
    pub db: String,
    /// An SQLite 3 file; an empty one makes an empty database; - is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Replace a database of that name
    #[arg(long)]
    pub replace: bool,
    /// Any text, kept with the database
    #[arg(long, value_name = "TEXT")]
    pub owner: Option<String>,
}

/// What to download.
#[derive(Debug, Args)]
pub struct Download {
    /// The database
    #[arg(value_name = "DB")]
    pub db: String,
    /// Where to; DB.sqlite3 unless told; - is standard output
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
}

/// Where to put a backup.
#[derive(Debug, Args)]
pub struct Backup {
    /// Where to; d3b-SLOT.d3b unless told; - is standard output
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Take none, but see whether this one is whole; needs no server; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "file")]
    pub verify: Option<PathBuf>,
}

/// What to restore.
#[derive(Debug, Args)]
pub struct Restore {
    /// The backup; - is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Everything as it was after this slot; the backup's own slot unless told
    #[arg(long, value_name = "SLOT")]
    pub to_slot: Option<u64>,
    /// Everything as it was at this moment, such as 2026-11-24T08:15:00Z, by the log's time
    #[arg(long, value_name = "TIME", conflicts_with = "to_slot")]
    pub to_time: Option<String>,
    /// A later backup of the same cluster, whose log reaches further
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub log: Option<PathBuf>,
}

/// What to show of a schema.
#[derive(Debug, Args)]
pub struct Schema {
    /// The database
    #[arg(value_name = "DB")]
    pub db: String,
    /// Only this table or view, with what belongs to it
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,
}

/// What to run.
#[derive(Debug, Args)]
pub struct Query {
    /// The database
    #[arg(value_name = "DB")]
    pub db: String,
    /// The statement: text, @FILE, or - for standard input
    #[arg(value_name = "SQL", required_unless_present = "batch", conflicts_with = "batch")]
    pub sql: Option<String>,
    /// Values for ?1, ?2, ...: a number, null, text:TEXT, blob:@FILE, blob:HEX, or any other text
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    pub args: Vec<String>,
    /// All values as JSON: an array, or an object of names with their sign
    #[arg(long, value_name = "JSON", conflicts_with_all = ["args", "batch"])]
    pub args_json: Option<String>,
    /// Run a batch, all of it or nothing: a file with the body of POST /v1/db/DB/batch, or with its array of
    /// statements; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub batch: Option<PathBuf>,
}

/// What to do with media.
#[derive(Debug, Subcommand)]
pub enum Media {
    /// Store a file, alone or with a statement: both or neither
    Put(MediaPut),
    /// Fetch a file, or all files that a query names
    Get(MediaGet),
    /// List the files
    List(Database),
    /// Tell of one file
    Info(MediaInfo),
    /// Delete files
    Delete(MediaDelete),
}

/// What to store.
#[derive(Debug, Args)]
pub struct MediaPut {
    /// The database
    #[arg(value_name = "DB")]
    pub db: String,
    /// The file; - is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Values for the parameters of --sql, as query takes them
    #[arg(value_name = "ARG", allow_negative_numbers = true, requires = "sql")]
    pub args: Vec<String>,
    /// The file's id; its name unless told
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// A statement to run in the same atomic step: text, or @FILE
    #[arg(long, value_name = "SQL")]
    pub sql: Option<String>,
    /// The media type, such as image/jpeg; found out from the file's name unless told
    #[arg(long = "type", value_name = "TYPE")]
    pub media_type: Option<String>,
}

/// What to fetch.
#[derive(Debug, Args)]
pub struct MediaGet {
    /// The database
    #[arg(value_name = "DB")]
    pub db: String,
    /// The file's id
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    pub id: Option<String>,
    /// Where to; a name made from the id unless told; - is standard output
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "dir")]
    pub file: Option<PathBuf>,
    /// Fetch every file whose id stands in the first column of this query: text, or @FILE
    #[arg(long, value_name = "SQL")]
    pub all: Option<String>,
    /// The directory for the files; made if it is not there
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// Keep what was fetched if the connection breaks off, as FILE.part, and go on from there
    #[arg(long = "continue")]
    pub resume: bool,
}

/// One file.
#[derive(Debug, Args)]
pub struct MediaInfo {
    /// The database
    #[arg(value_name = "DB")]
    pub db: String,
    /// The file's id
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Files.
#[derive(Debug, Args)]
pub struct MediaDelete {
    /// The database
    #[arg(value_name = "DB")]
    pub db: String,
    /// The files' ids
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
}

/// What to see of the log.
#[derive(Debug, Subcommand)]
pub enum Log {
    /// List entries, the newest 50 unless told
    List(LogList),
    /// Show one entry
    Show(LogShow),
    /// Show the newest entries, and follow
    Tail(LogTail),
    /// How far the log reaches
    Status,
    /// Read every replica's log from end to end, and compare them
    Verify,
}

/// Which entries.
#[derive(Debug, Args)]
pub struct LogList {
    /// The first slot; without it, the newest entries are shown
    #[arg(long, value_name = "SLOT")]
    pub from: Option<u64>,
    /// How many entries at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub limit: u64,
    /// Only entries of this database
    #[arg(long, value_name = "DB")]
    pub db: Option<String>,
}

/// Which entry.
#[derive(Debug, Args)]
pub struct LogShow {
    /// The slot
    #[arg(value_name = "SLOT")]
    pub number: u64,
}

/// Which entries, and whether to go on.
#[derive(Debug, Args)]
pub struct LogTail {
    /// Go on with entries as they are applied, until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// How many entries to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub limit: u64,
    /// Only entries of this database
    #[arg(long, value_name = "DB")]
    pub db: Option<String>,
}

/// What to see of the group.
#[derive(Debug, Subcommand)]
pub enum Cluster {
    /// Members, leader, and how far each replica is
    Status,
    /// The same as status
    Members,
    /// Add a replica that was started on a fresh disk, and wait until it votes
    Add(ClusterAdd),
    /// Remove a replica for good
    Remove(ClusterMember),
    /// Add a replica in place of another one, which is removed when the new one votes
    Replace(ClusterReplace),
    /// Hand the leadership over
    Transfer(ClusterTransfer),
    /// Whether every replica holds the same, as each of them sees it
    Verify,
    /// Make quarantined replicas, or one with a damaged database, anew from a healthy one
    Rebuild,
}

/// A replica that is to be added.
#[derive(Debug, Args)]
pub struct ClusterAdd {
    /// Its id, which no replica ever had
    #[arg(value_name = "ID")]
    pub id: u32,
    /// Where it serves HTTP
    #[arg(value_name = "URL")]
    pub url: String,
}

/// A replica.
#[derive(Debug, Args)]
pub struct ClusterMember {
    /// Its id
    #[arg(value_name = "ID")]
    pub id: u32,
}

/// Who takes whose place.
#[derive(Debug, Args)]
pub struct ClusterReplace {
    /// The replica that goes
    #[arg(value_name = "OLD")]
    pub old: u32,
    /// The id of the one that comes, which no replica ever had
    #[arg(value_name = "NEW")]
    pub new: u32,
    /// Where that one serves HTTP
    #[arg(value_name = "URL")]
    pub url: String,
}

/// Who is to lead.
#[derive(Debug, Args)]
pub struct ClusterTransfer {
    /// The replica; whoever is best placed if absent
    #[arg(value_name = "ID")]
    pub id: Option<u32>,
}

/// What to wait for.
#[derive(Debug, Args)]
pub struct Wait {
    /// leader: a linearizable read succeeds; slot=N: a replica has applied slot N
    #[arg(long = "for", value_name = "CONDITION", value_parser = Condition::parse)]
    pub condition: Condition,
}

/// What load.
#[derive(Debug, Args)]
pub struct Bench {
    /// What to ask for: insert, keyed-insert, batch, update, read, stale-read, media-put, media-get; several with
    /// their weights, such as insert=1,read=9
    #[arg(long, value_name = "MIX", default_value = "insert")]
    pub work: Mix,
    /// How many clients, each with a connection of its own and one request at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// Requests a second, due at fixed times however slow the answers are (an open loop); as many as are answered
    /// unless told (a closed loop)
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// For how long it is measured
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// For how long the load runs before it is measured; 0 is not at all
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration_or_none)]
    pub warm_up: Duration,
    /// Over how many databases the work is spread, evenly
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub databases: u32,
    /// Rows of each database that are there to be read and updated
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub rows: u32,
    /// Rows of a batch
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: u32,
    /// Bytes of a row's text
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub size: u32,
    /// Bytes of a media file
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 10, value_parser = clap::value_parser!(u32).range(0..=64 << 20))]
    pub media_size: u32,
    /// Whom the clients ask; after a failure each goes on to the next endpoint
    #[arg(long, value_name = "WHOM", default_value = "all")]
    pub target: BenchTarget,
    /// Threads that drive the clients; one does for most servers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Show every second in the table, too
    #[arg(long)]
    pub timeline: bool,
    /// Leave the databases there at the end
    #[arg(long)]
    pub keep: bool,
}

/// Whom a load asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchTarget {
    /// The endpoints, in equal parts
    All,
    /// The first endpoint
    First,
    /// The leader at the beginning
    Leader,
}

/// Which shell.
#[derive(Debug, Args)]
pub struct Completion {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// What can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// A linearizable read succeeds.
    Leader,
    /// A replica has applied this slot.
    Slot(u64),
}

impl Condition {
    fn parse(text: &str) -> Result<Condition, String> {
        if text == "leader" {
            return Ok(Condition::Leader);
        }
        let slot = text.strip_prefix("slot=").and_then(|slot| slot.parse().ok());
        slot.map(Condition::Slot).ok_or_else(|| "it is leader or slot=N".to_owned())
    }
}

/// The most that a server can be told.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

fn parse_duration(text: &str) -> Result<Duration, String> {
    let form = || "it is a duration such as 500ms, 5s or 2m".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| form())?;
    let unit = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(form()),
    };
    match number.checked_mul(unit).map(Duration::from_millis) {
        Some(duration) if duration.is_zero() => Err("it must not be nothing".to_owned()),
        Some(duration) if duration <= TIMEOUT_MAX => Ok(duration),
        Some(_) | None => Err("it is an hour at most".to_owned()),
    }
}

fn parse_duration_or_none(text: &str) -> Result<Duration, String> {
    let unit = text.trim_start_matches('0');
    if unit.len() < text.len() && matches!(unit, "" | "ms" | "s" | "m" | "min" | "h") {
        return Ok(Duration::ZERO);
    }
    parse_duration(text)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.001..=10_000_000.0).contains(rate));
    rate.ok_or_else(|| "it is a number from 0.001 to 10,000,000".to_owned())
}

/// The definition, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["d3bctl"], line].concat())
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn options_stand_anywhere_and_negative_numbers_are_arguments() {
        let cli =
            parse(&["query", "shop", "-o", "csv", "SELECT ?, ?", "-7", "-1.5e3", "--level", "stale", "-y"]).unwrap();
        assert_eq!(cli.globals.output, Some(Format::Csv));
        assert_eq!(cli.globals.level, Some(Level::Stale));
        assert!(cli.globals.yes);
        let Command::Query(query) = cli.command else { panic!() };
        assert_eq!(query.sql.as_deref(), Some("SELECT ?, ?"));
        assert_eq!(query.args, ["-7", "-1.5e3"]);
    }

    #[test]
    fn two_dashes_end_the_options() {
        let cli = parse(&["query", "shop", "--", "-- a comment\nSELECT ?", "-x", "--yes"]).unwrap();
        assert!(!cli.globals.yes);
        let Command::Query(query) = cli.command else { panic!() };
        assert_eq!(query.sql.as_deref(), Some("-- a comment\nSELECT ?"));
        assert_eq!(query.args, ["-x", "--yes"]);
    }

    #[test]
    fn the_statement_of_a_file_has_its_arguments_after_it() {
        let line =
            ["media", "put", "shop", "cat.jpg", "--id", "cat", "--sql", "INSERT INTO pics VALUES(?, ?)", "cat", "-7"];
        let Command::Media(Media::Put(put)) = parse(&line).unwrap().command else { panic!() };
        assert_eq!((put.id.as_deref(), put.args), (Some("cat"), vec!["cat".to_owned(), "-7".to_owned()]));
        assert!(parse(&["media", "put", "shop", "cat.jpg", "an argument without a statement"]).is_err());
    }

    #[track_caller]
    fn check_usage(line: &[&str]) {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line:?}");
    }

    #[test]
    fn what_is_missing_or_contradicts_itself_is_an_error_of_usage() {
        check_usage(&[]);
        check_usage(&["query"]);
        check_usage(&["query", "shop"]);
        check_usage(&["query", "shop", "SELECT 1", "--batch", "f"]);
        check_usage(&["query", "shop", "SELECT ?", "1", "--args-json", "[1]"]);
        check_usage(&["media", "get", "shop"]);
        check_usage(&["media", "delete", "shop"]);
        check_usage(&["wait", "--for", "slot=x"]);
        check_usage(&["wait"]);
        check_usage(&["list", "--timeout", "0s"]);
        check_usage(&["list", "--timeout", "2h"]);
        check_usage(&["log", "list", "-n", "1001"]);
        check_usage(&["list", "-q", "-v"]);
        check_usage(&["bench", "--work", "select"]);
        check_usage(&["bench", "--rate", "0"]);
        check_usage(&["bench", "--duration", "0s"]);
    }

    #[test]
    fn a_load_may_have_no_warm_up() {
        for (text, seconds) in [("0", 0), ("0s", 0), ("3s", 3)] {
            let Command::Bench(bench) = parse(&["bench", "--warm-up", text]).unwrap().command else { panic!() };
            assert_eq!(bench.warm_up, Duration::from_secs(seconds));
        }
    }

    #[test]
    fn conditions() {
        assert_eq!(Condition::parse("leader"), Ok(Condition::Leader));
        assert_eq!(Condition::parse("slot=17"), Ok(Condition::Slot(17)));
        assert!(Condition::parse("slot=").is_err());
    }
}
