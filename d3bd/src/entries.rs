//! What a record of the log means to the engine and to the blob store.

use d3b::{BlobReference, CatalogueChange, Operation};
use d3b_engine::restore::RestoreManifest;
use d3b_engine::{Blobs, LogEntry, command};
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

/// The blobs that a record's operation needs, those included that are named by a list which is itself a blob. Of a list
/// that is not here nothing more is known, and nothing that it names was fetched here for it.
#[must_use]
pub fn blobs_of(record: &Record, blobs: &dyn Blobs) -> Vec<(Needed, BlobReference)> {
    let Some(first) = blob_of(record) else { return Vec::new() };
    let mut all = vec![first];
    if let Some(manifest) = restored_by(record, blobs) {
        all.extend(manifest.files().map(|file| (Needed::ToApply, file)));
        all.extend(manifest.media.iter().map(|file| (Needed::Later, *file)));
    }
    all
}

/// The list of files of a record that restores a backup, if it is here.
fn restored_by(record: &Record, blobs: &dyn Blobs) -> Option<RestoreManifest> {
    let Payload::Command(bytes) = &record.entry.payload else { return None };
    let Operation::Catalogue(CatalogueChange::Restore { manifest }) = command::decode(bytes).ok()?.keyed.operation
    else {
        return None;
    };
    if manifest.size > d3b_engine::restore::BYTES_MAX {
        return None;
    }
    let bytes = std::fs::read(blobs.path(&manifest.digest)?).ok()?;
    RestoreManifest::decode(&bytes).ok()
}
