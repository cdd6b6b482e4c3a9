//! `d3bctl`: parses, validates, runs; maps errors to exit codes.

use std::error::Error as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use d3b::client::ClientError;
use d3bctl::cli::{Cli, Command, Query};
use d3bctl::error::{CliError, EXIT_OK, EXIT_PIPE};
use d3bctl::output::Output;
use d3bctl::session::{Session, tell};
use d3bctl::settings::{Settings, colored};
use d3bctl::{cmd, signals};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let interactive = std::io::stderr().is_terminal();
    signals::install(interactive);
    let color = colored(cli.globals.color, interactive);
    ExitCode::from(match run(&cli) {
        Ok(()) => EXIT_OK,
        Err(error) => {
            let code = error.exit_code();
            // Whoever read the output has seen enough.
            if code != EXIT_PIPE {
                let batch = matches!(&cli.command, Command::Query(Query { batch: Some(_), .. }));
                report(&error, color, cli.globals.verbose, batch);
            }
            code
        }
    })
}

fn run(cli: &Cli) -> Result<(), CliError> {
    let session = Session::new(Settings::new(&cli.globals)?);
    let mut output = Output::new(&session.settings);
    let result = cmd::run(&cli.command, &session, &mut output);
    // What was written before a failure is shown all the same.
    result.and(output.flush())
}

/// Tells the cause, and what to do about it.
fn report(error: &CliError, color: bool, verbose: bool, batch: bool) {
    let mut cause = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        cause.push_str(&format!(": {error}"));
        source = error.source();
    }
    let (error_word, hint_word) =
        if color { ("\x1b[1;31merror:\x1b[0m", "\x1b[1mhint:\x1b[0m") } else { ("error:", "hint:") };
    if let CliError::Client(ClientError::Problem { endpoint, problem }) = error {
        if let Some(statement) = problem.statement.filter(|_| batch) {
            cause = format!("statements[{statement}]: {cause}");
        }
        if verbose {
            let request = problem.request_id.as_deref().unwrap_or("unknown");
            cause.push_str(&format!(" ({}, request {request} at {endpoint})", problem.code));
        }
    }
    tell(&format!("{error_word} {cause}"));
    if let Some(hint) = error.hint() {
        tell(&format!("{hint_word} {hint}"));
    }
}
