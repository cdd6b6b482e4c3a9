//! `d3bctl`, the command line of d3b. Flags are parsed (`cli`), validated (`settings`), and carried out (`cmd`); it knows
//! the daemon by its HTTP API only.

pub mod bench;
pub mod cli;
pub mod cmd;
pub mod error;
pub mod output;
pub mod session;
pub mod settings;
pub mod signals;

mod arguments;
mod names;
mod progress;
mod transfer;

#[cfg(test)]
mod tests;
