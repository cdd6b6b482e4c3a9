//! `completion`.

use clap_complete::{Shell, generate};

use crate::error::CliError;
use crate::output::Output;

/// Prints a script that completes commands.
pub(super) fn run(shell: Shell, output: &mut Output) -> Result<(), CliError> {
    let mut script = Vec::new();
    generate(shell, &mut crate::cli::command(), "d3bctl", &mut script);
    output.raw(&script)
}
