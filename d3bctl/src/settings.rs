//! Flags and environment, validated: what the commands go by.

use std::io::IsTerminal as _;
use std::time::Duration;

use d3b::IdempotencyKey;
use d3b::client::Endpoint;

use crate::cli::{Color, Format, Globals, Level};
use crate::error::UsageError;

/// How long to wait for an answer, unless told.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// How fresh reads must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadLevel {
    /// Every acknowledged write is seen.
    Linearizable,
    /// Whatever the replica has.
    Stale,
    /// Everything up to a slot.
    AtLeast(u64),
}

/// What every command goes by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Never empty.
    pub endpoints: Vec<Endpoint>,
    /// The form of the output.
    pub format: Format,
    /// How long to wait, if it was told.
    pub timeout: Option<Duration>,
    /// How fresh reads must be.
    pub level: ReadLevel,
    /// A key for the write of this command.
    pub key: Option<IdempotencyKey>,
    /// No progress, no notes.
    pub quiet: bool,
    /// Tell every request.
    pub verbose: bool,
    /// Do not ask.
    pub yes: bool,
    /// Write nothing.
    pub dry_run: bool,
    /// Tell requests as curl commands.
    pub show_curl: bool,
    /// Colours on standard output.
    pub color: bool,
    /// Whether standard error is a terminal.
    pub interactive: bool,
}

impl Settings {
    /// Validates the flags.
    ///
    /// # Errors
    /// What makes no sense.
    pub fn new(globals: &Globals) -> Result<Settings, UsageError> {
        let endpoints: Result<Vec<Endpoint>, _> =
            globals.endpoints.iter().filter(|text| !text.trim().is_empty()).map(|text| text.parse()).collect();
        let mut endpoints = endpoints.map_err(UsageError::Endpoint)?;
        if endpoints.is_empty() {
            // An empty variable is as good as none.
            endpoints.push("http://127.0.0.1:8055".parse().expect("the default is an endpoint"));
        }
        let level = match (globals.level, globals.slot) {
            (None | Some(Level::Linearizable), None) => ReadLevel::Linearizable,
            (Some(Level::Stale), None) => ReadLevel::Stale,
            (None | Some(Level::AtLeast), Some(slot)) => ReadLevel::AtLeast(slot),
            (Some(Level::AtLeast), None) => return Err(UsageError::LevelWithoutSlot),
            (Some(Level::Linearizable | Level::Stale), Some(_)) => return Err(UsageError::SlotWithoutLevel),
        };
        let key = globals.idempotency_key.clone().map(IdempotencyKey::new).transpose().map_err(UsageError::Key)?;
        let terminal = std::io::stdout().is_terminal();
        let format = globals.output.unwrap_or(if terminal { Format::Table } else { Format::Json });
        Ok(Settings {
            endpoints,
            format,
            timeout: globals.timeout,
            level,
            key,
            quiet: globals.quiet,
            verbose: globals.verbose,
            yes: globals.yes,
            dry_run: globals.dry_run,
            show_curl: globals.show_curl,
            color: colored(globals.color, terminal),
            interactive: std::io::stderr().is_terminal(),
        })
    }

    /// How long to wait for an answer.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.timeout.unwrap_or(TIMEOUT_DEFAULT)
    }
}

/// Whether to use colours where `terminal` says whether it is one.
#[must_use]
pub fn colored(color: Color, terminal: bool) -> bool {
    match color {
        Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        Color::Always => true,
        Color::Never => false,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn settings(line: &[&str]) -> Result<Settings, UsageError> {
        let line = [&["d3bctl", "list"], line].concat();
        Settings::new(&crate::cli::Cli::try_parse_from(line).unwrap().globals)
    }

    #[test]
    fn endpoints_are_a_list_in_order() {
        let settings = settings(&["-e", "127.0.0.1:1, http://h:2/,[::1]"]).unwrap();
        let endpoints: Vec<&str> = settings.endpoints.iter().map(Endpoint::as_str).collect();
        assert_eq!(endpoints, ["http://127.0.0.1:1", "http://h:2", "http://[::1]:8055"]);
    }

    #[test]
    fn a_slot_says_at_least() {
        assert_eq!(settings(&["--slot", "7"]).unwrap().level, ReadLevel::AtLeast(7));
        assert_eq!(settings(&["--slot", "7", "--level", "at-least"]).unwrap().level, ReadLevel::AtLeast(7));
        assert_eq!(settings(&[]).unwrap().level, ReadLevel::Linearizable);
        assert!(matches!(settings(&["--level", "at-least"]), Err(UsageError::LevelWithoutSlot)));
        assert!(matches!(settings(&["--level", "stale", "--slot", "7"]), Err(UsageError::SlotWithoutLevel)));
    }
}
