//! The commands, one module a noun.

mod backup;
mod bench;
mod cluster;
mod completion;
mod database;
mod log;
mod log_verify;
mod media;
mod members;
mod query;

use std::io::{IsTerminal as _, Write as _};

use crate::cli::{Cluster, Command, Log, Media};
use crate::error::{CliError, UsageError};
use crate::output::Output;
use crate::session::{Session, tell};

/// Runs a command.
///
/// # Errors
/// Why it did not do what it was told.
pub fn run(command: &Command, session: &Session, output: &mut Output) -> Result<(), CliError> {
    match command {
        Command::Upload(arguments) => database::upload(arguments, session, output),
        Command::Download(arguments) => database::download(arguments, session),
        Command::Delete(arguments) => database::delete(&arguments.db, session, output),
        Command::List => database::list(session, output),
        Command::Info(arguments) => database::info(&arguments.db, session, output),
        Command::Schema(arguments) => database::schema(arguments, session, output),
        Command::Backup(arguments) => backup::backup(arguments, session),
        Command::Restore(arguments) => backup::restore(arguments, session, output),
        Command::Query(arguments) => query::run(arguments, session, output),
        Command::Media(Media::Put(arguments)) => media::put::run(arguments, session, output),
        Command::Media(Media::Get(arguments)) => media::get::run(arguments, session),
        Command::Media(Media::List(arguments)) => media::list(&arguments.db, session, output),
        Command::Media(Media::Info(arguments)) => media::info(arguments, session, output),
        Command::Media(Media::Delete(arguments)) => media::delete(arguments, session, output),
        Command::Log(Log::List(arguments)) => log::list(arguments, session, output),
        Command::Log(Log::Show(arguments)) => log::show(arguments.number, session, output),
        Command::Log(Log::Tail(arguments)) => log::tail(arguments, session, output),
        Command::Log(Log::Status) => log::status(session, output),
        Command::Log(Log::Verify) => log_verify::verify(session, output),
        Command::Cluster(Cluster::Status | Cluster::Members) => cluster::members(session, output),
        Command::Cluster(Cluster::Add(arguments)) => members::add(arguments.id, &arguments.url, None, session, output),
        Command::Cluster(Cluster::Replace(arguments)) => {
            members::add(arguments.new, &arguments.url, Some(arguments.old), session, output)
        }
        Command::Cluster(Cluster::Remove(arguments)) => members::remove(arguments.id, session, output),
        Command::Cluster(Cluster::Transfer(arguments)) => members::transfer(arguments.id, session, output),
        Command::Cluster(Cluster::Verify) => members::verify(session, output),
        Command::Cluster(Cluster::Rebuild) => cluster::rebuild(session, output),
        Command::Status => cluster::status(session, output),
        Command::Wait(arguments) => cluster::wait(arguments.condition, session),
        Command::Bench(arguments) => bench::run(arguments, session, output),
        Command::Version => cluster::version(session, output),
        Command::Completion(arguments) => completion::run(arguments.shell, output),
    }
}

/// Asks whether a deletion is meant, where somebody can be asked.
fn confirm(session: &Session, what: &str) -> Result<(), CliError> {
    if session.settings.yes || session.settings.dry_run {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() || !session.settings.interactive {
        return Err(UsageError::NeedsYes(what.to_owned()).into());
    }
    // A question that cannot be written gets no answer either.
    let _ = write!(std::io::stderr(), "Delete {what}? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer).map_err(CliError::Input)?;
    if read == 0 {
        // The line of the question is still open.
        tell("");
    }
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") { Ok(()) } else { Err(CliError::Declined) }
}
