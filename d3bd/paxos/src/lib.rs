//! The consensus core of d3b.

pub mod message;
pub mod types;
