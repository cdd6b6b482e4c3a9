//! `d3bd`: parses, validates, runs; maps errors to exit codes.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use d3bd::cli::{Cli, Command, LogArguments, RecoverArguments};
use d3bd::config::{ConfigError, Merged, Settings, environment};
use d3bd::recover::{Asking, RecoverError};
use d3bd::{demo, offline, recover, run};

/// Bad flags, environment or file.
const EXIT_USAGE: u8 = 2;
/// It could not start, or stopped itself.
const EXIT_FAILED: u8 = 1;

/// What one thread allocates another one frees, and with a heap for each thread much would be kept that nobody uses.
fn share_heaps() {
    // SAFETY: no other thread runs yet; the call changes a setting of the allocator.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

fn main() -> ExitCode {
    share_heaps();
    let cli = Cli::parse();
    let result = match cli.command.unwrap_or(Command::Run(cli.flags)) {
        Command::Run(flags) => settings(&flags).and_then(|(_, settings)| run_replica(&settings)),
        Command::Demo(arguments) => demo::run(&arguments).map_err(|error| failure(&error)),
        Command::CheckConfig(flags) => settings(&flags).and_then(|_| print("the configuration is in order\n")),
        Command::PrintConfig(flags) => settings(&flags).and_then(|(merged, _)| print(&merged.describe())),
        Command::Log(LogArguments { from, limit, flags }) => {
            settings(&flags).and_then(|(_, settings)| read_log(&settings, from, limit))
        }
        Command::Recover(RecoverArguments { yes, flags }) => {
            settings(&flags).and_then(|(_, settings)| make_new_cluster(&settings, yes))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, text)) => {
            // Where even this cannot be written, the exit code says it.
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(code)
        }
    }
}

type Failure = (u8, String);

/// An error with its causes, each on a line of its own.
fn failure(error: &dyn std::error::Error) -> Failure {
    let mut text = format!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("\n  because: {error}"));
        cause = error.source();
    }
    (EXIT_FAILED, text)
}

fn settings(flags: &d3bd::config::Flags) -> Result<(Merged, Settings), Failure> {
    let wrong = |error: ConfigError| (EXIT_USAGE, failure(&error).1);
    let merged = environment(std::env::vars_os()).and_then(|found| Merged::collect(flags, &found)).map_err(wrong)?;
    let settings = merged.settings().map_err(wrong)?;
    Ok((merged, settings))
}

fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever read the output has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| failure(&error)),
    }
}

fn run_replica(settings: &Settings) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::new(&settings.log_level);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // The journal has times of its own.
    if journal {
        log.without_time().init()
    } else {
        log.init()
    }
    run::run(settings).map_err(|error| failure(&error))
}

fn read_log(settings: &Settings, from: u64, limit: u64) -> Result<(), Failure> {
    match offline::print_log(settings, from, limit, &mut std::io::stdout().lock()) {
        Err(offline::OfflineError::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| failure(&error)),
    }
}

fn make_new_cluster(settings: &Settings, yes: bool) -> Result<(), Failure> {
    let mut input = std::io::stdin().lock();
    let answers = input.is_terminal().then_some(&mut input as &mut dyn std::io::BufRead);
    let asking = Asking { yes, answers, out: &mut std::io::stdout() };
    recover::recover(&settings.data_dir, asking).map_err(|error| {
        let code = if matches!(error, RecoverError::NeedsYes) { EXIT_USAGE } else { EXIT_FAILED };
        (code, failure(&error).1)
    })
}
