//! What can go wrong, as a cause, a hint and an exit code.

use std::io;
use std::path::PathBuf;

use d3b::Code;
use d3b::archive::ArchiveError;
use d3b::client::ClientError;

/// Success.
pub const EXIT_OK: u8 = 0;
/// The request, the SQL or a local file was rejected.
pub const EXIT_REJECTED: u8 = 1;
/// The command line is in error.
pub const EXIT_USAGE: u8 = 2;
/// No endpoint can be reached.
pub const EXIT_UNREACHABLE: u8 = 3;
/// There is no such thing.
pub const EXIT_NOT_FOUND: u8 = 5;
/// It is there already, or something else than was expected.
pub const EXIT_CONFLICT: u8 = 6;
/// No majority of the replicas can be reached.
pub const EXIT_NO_QUORUM: u8 = 7;
/// Time ran out, or it is not known what came of a write.
pub const EXIT_TIMEOUT: u8 = 8;
/// What was received is not what was sent.
pub const EXIT_INTEGRITY: u8 = 9;
/// Something serves, and not as it should.
pub const EXIT_UNHEALTHY: u8 = 10;
/// Whoever read the output has closed it.
pub const EXIT_PIPE: u8 = 141;

/// Why a command did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The server said no, or nothing.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The command line holds together, and yet makes no sense.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// A local file.
    #[error("{}", .path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// Standard output.
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
    /// Standard input.
    #[error("standard input cannot be read")]
    Input(#[source] io::Error),
    /// A file beside a database holds changes that are not in it.
    #[error("{} lies beside the database, and holds changes that would be lost", .0.display())]
    JournalBeside(PathBuf),
    /// A file beside the target of a download would be taken for its journal.
    #[error("{} lies beside the target, and would be taken for a part of the new file", .0.display())]
    JournalBesideTarget(PathBuf),
    /// A file that is to be a database and is none.
    #[error("{} is not an SQLite 3 database", .0.display())]
    NotADatabase(PathBuf),
    /// A database that should not be there.
    #[error("the database {0} exists")]
    DatabaseExists(String),
    /// A file that should not be there.
    #[error("{} exists", .0.display())]
    FileExists(PathBuf),
    /// No such table in a schema.
    #[error("the database {db} has no table or view {table}")]
    NoSuchTable {
        /// The database.
        db: String,
        /// The table.
        table: String,
    },
    /// A download that is not what the server sent.
    #[error("what was received is damaged: {0}")]
    Damaged(Damage),
    /// A backup that is not what was written.
    #[error(transparent)]
    Archive(ArchiveError),
    /// A cluster that is to be restored into, and holds something.
    #[error("{0}")]
    ClusterNotEmpty(String),
    /// Some of several files.
    #[error("{failed} of {all} files could not be fetched")]
    SomeFiles {
        /// How many.
        failed: usize,
        /// Of how many.
        all: usize,
        /// The exit code of the first failure.
        code: u8,
    },
    /// What was waited for did not come to pass.
    #[error("it did not come to pass in time: {0}")]
    NotYet(String),
    /// Endpoints that do not serve.
    #[error("{0}")]
    Unhealthy(Health),
    /// Logs that do not hold what they should.
    #[error("the logs of {0} replicas are damaged, or not what the others hold")]
    LogsDamaged(usize),
    /// The user was asked, and said no.
    #[error("nothing was deleted")]
    Declined,
    /// The operating system does not let a load run.
    #[error("the load cannot be run")]
    Load(#[source] io::Error),
    /// Operations of a load that were answered with what should not be.
    #[error("{0} operations were answered with an error")]
    LoadErrors(u64),
    /// Replicas that do not hold what was acknowledged.
    #[error("the replicas do not hold what was acknowledged")]
    LoadMismatch,
}

/// A command line that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// An endpoint's address.
    #[error(transparent)]
    Endpoint(d3b::InvalidId),
    /// A key.
    #[error(transparent)]
    Key(d3b::InvalidId),
    /// A level without its slot.
    #[error("--level at-least needs --slot")]
    LevelWithoutSlot,
    /// A slot without its level.
    #[error("--slot belongs to --level at-least")]
    SlotWithoutLevel,
    /// An argument of a statement.
    #[error("the argument {argument:?}: {problem}")]
    Argument {
        /// As it was given.
        argument: String,
        /// What is wrong with it.
        problem: String,
    },
    /// `--args-json`.
    #[error("--args-json: {0}")]
    ArgumentsJson(String),
    /// `--batch`.
    #[error("--batch: {0}")]
    Batch(String),
    /// A replica that is not what it should be.
    #[error("{0}")]
    Replica(String),
    /// Nobody can be asked.
    #[error("this deletes {0}, and nobody can be asked whether that is meant")]
    NeedsYes(String),
    /// One key for several writes.
    #[error("--idempotency-key names one write, and these are several")]
    OneKeyForSeveral,
    /// A file from standard input has no name.
    #[error("a file from standard input needs an --id")]
    NeedsId,
    /// Several files need a directory.
    #[error("--all needs --dir")]
    NeedsDirectory,
    /// Nobody reads a backup.
    #[error("a backup is not written to a terminal")]
    BackupToTerminal,
    /// Standard output cannot be taken up again.
    #[error("--continue needs a file, not standard output")]
    ContinueToOutput,
}

/// What is wrong with a download.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Its length.
    #[error("it has {found} bytes instead of {expected}")]
    Size {
        /// What the server said.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Its digest.
    #[error("its SHA-256 is {found} instead of {expected}")]
    Digest {
        /// What the server said.
        expected: d3b::Digest,
        /// What came.
        found: d3b::Digest,
    },
    /// It was another file from one moment to the next.
    #[error("the file was replaced while it was fetched")]
    Replaced,
}

/// What is wrong with a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Health {
    /// No endpoint answers.
    #[error("no endpoint can be reached")]
    Unreachable,
    /// Endpoints answer, and none can serve.
    #[error("no endpoint can serve: there is no majority")]
    NoQuorum,
    /// Some endpoints serve, and some do not.
    #[error("{0} of the endpoints cannot serve")]
    Some(usize),
    /// Replicas that should hold the same do not.
    #[error("databases differ between replicas")]
    Divergent,
}

impl CliError {
    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Client(error) => error.exit_code(),
            CliError::Usage(_) => EXIT_USAGE,
            CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => EXIT_PIPE,
            CliError::File { .. }
            | CliError::Output(_)
            | CliError::Input(_)
            | CliError::JournalBeside(_)
            | CliError::JournalBesideTarget(_)
            | CliError::NotADatabase(_)
            | CliError::Load(_)
            | CliError::LoadErrors(_)
            | CliError::Declined => EXIT_REJECTED,
            CliError::DatabaseExists(_) | CliError::FileExists(_) | CliError::ClusterNotEmpty(_) => EXIT_CONFLICT,
            CliError::Archive(ArchiveError::Cut(_) | ArchiveError::Damaged(_)) => EXIT_INTEGRITY,
            CliError::Archive(_) => EXIT_REJECTED,
            CliError::NoSuchTable { .. } => EXIT_NOT_FOUND,
            CliError::Damaged(_) | CliError::LogsDamaged(_) | CliError::LoadMismatch => EXIT_INTEGRITY,
            CliError::SomeFiles { code, .. } => *code,
            CliError::NotYet(_) => EXIT_TIMEOUT,
            CliError::Unhealthy(Health::Unreachable) => EXIT_UNREACHABLE,
            CliError::Unhealthy(Health::NoQuorum) => EXIT_NO_QUORUM,
            CliError::Unhealthy(Health::Some(_) | Health::Divergent) => EXIT_UNHEALTHY,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            CliError::Client(error) => return client_hint(error),
            CliError::Usage(error) => return error.hint(),
            CliError::JournalBeside(path) => {
                let database = path.to_string_lossy();
                let database = database.trim_end_matches("-wal").trim_end_matches("-journal");
                return Some(format!(
                    "close the programs that use it, then: sqlite3 '{database}' 'PRAGMA wal_checkpoint(TRUNCATE)'"
                ));
            }
            CliError::JournalBesideTarget(_) => "download to another file, or remove what belongs to the old one",
            CliError::NotADatabase(_) => "an empty file makes an empty database",
            CliError::DatabaseExists(_) => "--replace puts the file in its place",
            CliError::FileExists(_) => "name the file to replace it, or another one",
            CliError::NoSuchTable { .. } => "without TABLE the whole schema is shown",
            CliError::Damaged(_) => "nothing was kept; try again",
            CliError::Archive(ArchiveError::Cut(_) | ArchiveError::Damaged(_)) => {
                "take another backup, or use an older one: of this one not even a part is used"
            }
            CliError::Archive(_) => "d3bctl backup makes such files",
            CliError::ClusterNotEmpty(_) => "nothing was changed; restore into a new cluster",
            CliError::SomeFiles { .. } => "the others are there; with --continue they are not fetched again",
            CliError::NotYet(_) => "--timeout gives it longer",
            CliError::LogsDamaged(_) => "d3b-recovery(7) tells what to do about a damaged log",
            CliError::Unhealthy(Health::Unreachable) => {
                "is d3bd running there? -e or D3B_ENDPOINTS names other endpoints"
            }
            CliError::Unhealthy(_) => "d3bctl cluster status tells how the replicas see each other",
            CliError::LoadErrors(_) => "the report shows the first few",
            CliError::LoadMismatch => "keep the replicas' data and logs: this is a bug, or a disk that lies",
            CliError::File { .. }
            | CliError::Output(_)
            | CliError::Input(_)
            | CliError::Load(_)
            | CliError::Declined => return None,
        };
        Some(text.to_owned())
    }
}

/// The server's hints speak of HTTP; where our user has another way, that is told.
fn client_hint(error: &ClientError) -> Option<String> {
    match error {
        ClientError::Problem { problem, .. } if problem.code == Code::NoQuorum => {
            Some("d3bctl cluster status tells who is reachable; --level stale reads what a replica has".to_owned())
        }
        ClientError::Problem { problem, .. } if problem.code == Code::Exists => {
            Some("--replace puts the file in its place".to_owned())
        }
        other => other.hint(),
    }
}

impl UsageError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            UsageError::NeedsYes(_) => "--yes says that it is meant",
            UsageError::Argument { .. } => "text:TEXT passes anything as text",
            UsageError::BackupToTerminal => "name a file, or send it down a pipe",
            UsageError::LevelWithoutSlot => "a write's answer tells its slot",
            UsageError::Replica(_) => "start the new replica first: d3bd --id ID --join URL of any member",
            UsageError::Endpoint(_)
            | UsageError::Key(_)
            | UsageError::SlotWithoutLevel
            | UsageError::ArgumentsJson(_)
            | UsageError::Batch(_)
            | UsageError::OneKeyForSeveral
            | UsageError::NeedsId
            | UsageError::NeedsDirectory
            | UsageError::ContinueToOutput => return None,
        };
        Some(text.to_owned())
    }
}

/// For `map_err`: an error of a file of which the path is known.
pub fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> CliError {
    let path = path.into();
    move |source| CliError::File { path, source }
}
