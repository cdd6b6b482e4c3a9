//! A load generator: many clients, each with a connection of its own, driven by very few threads.
//!
//! It measures servers with which it may share a machine, so a request must cost it little: one loop a thread over
//! non-blocking sockets, requests written into buffers that are used again, answers taken apart where they arrived. What
//! it costs is measured, and told.
//!
//! The loop ([`load`]) knows HTTP/1.1 and time only. What is asked for, and whether an answer is right, is told by a
//! [`Work`]: [`d3b::D3b`] is that of d3bd; other servers can be driven by the same loop.
//!
//! * *Closed loop*: every client sends its next request when the last one was answered.
//! * *Open loop*: requests are due at fixed times, whether earlier ones were answered or not, and the latency of each is
//!   counted from when it was due. A server that stalls is charged for everything that it held up.
//!
//! Latency is that of a whole operation, repeats included, as its user would have met it. It is recorded for each
//! operation that began, or was due, while it was measured; throughput counts those that were done meanwhile.

pub mod d3b;
pub mod ledger;
pub mod load;
pub mod measure;
pub mod mix;
pub mod verify;
pub mod work;

mod answer;
mod connection;
mod schedule;
mod timer;

pub use answer::Answer;
pub use ledger::{Ledger, Tally};
pub use load::{Plan, Target, run};
pub use measure::{Latency, Outcome};
pub use work::{Kind, Lost, Verdict, Work};
