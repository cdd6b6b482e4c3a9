//! Reads from snapshots, beside the engine.

/// Where reads are served from.
#[derive(Debug, Clone)]
pub struct Readers;
