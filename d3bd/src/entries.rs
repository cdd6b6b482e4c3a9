//! What a record of the log means to the engine and to the blob store.

use d3b::BlobReference;
use d3b_engine::{LogEntry, command};
use d3b_paxos::types::{Payload, Record};

/// A record as the engine applies it.
#[must_use]
pub fn log_entry(record: &Record) -> LogEntry<'_> {
    let stamp = record.entry.stamp;
    let command = match &record.entry.payload {
        Payload::Noop | Payload::Configuration(_) => None,
        Payload::Command(bytes) => Some(&bytes[..]),
    };
    LogEntry { slot: record.slot, time_ms: stamp.time_ms, seed: stamp.seed, execution: stamp.execution, command }
}

/// When a blob is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// Before its entry can be applied.
    ToApply,
    /// When somebody asks for it.
    Later,
}

/// The blob that a record's operation names; its bytes are kept as long as the record may be applied.
#[must_use]
pub fn blob_of(record: &Record) -> Option<(Needed, BlobReference)> {
    match &record.entry.payload {
        Payload::Noop | Payload::Configuration(_) => None,
        Payload::Command(bytes) => {
            let operation = command::decode(bytes).ok()?.keyed.operation;
            let needed = match &operation {
                d3b::Operation::Sql { .. } => Needed::Later,
                d3b::Operation::Catalogue(_) => Needed::ToApply,
            };
            Some((needed, operation.blob()?))
        }
    }
}
