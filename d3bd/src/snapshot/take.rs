//! Taking a snapshot: the engine's copies become blobs.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use d3b::{BlobReference, DatabaseId, Slot};
use d3b_engine::snapshot::{Copied, Pace};
use d3b_engine::{SnapshotError, SnapshotSource};
use d3b_paxos::types::{Configuration, Record};

use super::{Manifest, ManifestDatabase};
use crate::media::{BlobStore, Kept};

/// Why no snapshot was taken. Another replica may be able to.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Nothing was applied yet: there is nothing to take.
    #[error("nothing is applied yet")]
    Empty,
    /// The record or the configuration is not the one at the snapshot's slot.
    #[error("what is known of the log does not belong to slot {0}")]
    Beside(Slot),
    /// A database cannot be copied.
    #[error(transparent)]
    Copy(#[from] SnapshotError),
    /// A copy cannot be put among the blobs.
    #[error("a copy cannot be put among the blobs")]
    Blobs(#[source] io::Error),
}

/// A snapshot that was taken. While it lives its files are not collected.
#[derive(Debug)]
pub struct Taken {
    /// What it consists of.
    pub manifest: Manifest,
    /// The blob that says so.
    pub reference: BlobReference,
    /// For the manifest and every file.
    pub(super) kept: Vec<Kept>,
}

/// Takes a snapshot. What has not changed since an earlier one is not copied again. Blocks, for as long as `pace` makes
/// it last.
///
/// # Errors
/// See [`TakeError`]; what was copied by then is collected like any file that nobody needs.
pub fn take(
    source: &SnapshotSource,
    record: Record,
    configuration: Configuration,
    blobs: &BlobStore,
    earlier: Option<&Manifest>,
    pace: Pace<'_>,
) -> Result<Taken, TakeError> {
    let slot = source.slot();
    if slot == Slot::ZERO {
        return Err(TakeError::Empty);
    }
    if record.slot != slot {
        return Err(TakeError::Beside(slot));
    }
    let known = earlier.into_iter().flat_map(|manifest| &manifest.databases);
    let known = known.map(|database| ((database.id, database.slot), database.file)).collect();
    let mut taking = Taking { blobs, known, pace, kept: Vec::new(), databases: Vec::new() };
    let listed = taking.add(|to, _, pace| source.copy_catalogue(to, pace))?;
    for one in listed {
        taking.add(|to, known, pace| {
            let copied = source.copy(&one, to, |slot| known(one.id(), slot), pace)?;
            Ok((copied, ()))
        })?;
    }
    let Taking { mut kept, databases, .. } = taking;
    let manifest = Manifest { slot, record, configuration, databases };
    let (reference, keep) = write(blobs, &manifest.encode()).map_err(TakeError::Blobs)?;
    kept.push(keep);
    Ok(Taken { manifest, reference, kept })
}

fn write(blobs: &BlobStore, bytes: &[u8]) -> io::Result<(BlobReference, Kept)> {
    let keep = blobs.keep(&d3b::Digest::of(bytes));
    let mut writer = blobs.writer(bytes.len() as u64)?;
    writer.write(bytes)?;
    Ok((writer.finish()?, keep))
}

/// What has been copied so far.
struct Taking<'a> {
    blobs: &'a BlobStore,
    known: HashMap<(DatabaseId, Slot), BlobReference>,
    pace: Pace<'a>,
    kept: Vec<Kept>,
    databases: Vec<ManifestDatabase>,
}

impl Taking<'_> {
    fn add<T>(
        &mut self,
        copy: impl FnOnce(&Path, &dyn Fn(DatabaseId, Slot) -> bool, Pace<'_>) -> Result<(Copied, T), SnapshotError>,
    ) -> Result<T, TakeError> {
        let to = Temporary::new(self.blobs);
        let (blobs, pace) = (self.blobs, &mut self.pace);
        let mut paced = |bytes| {
            blobs.room()?.for_file(bytes)?;
            pace(bytes)
        };
        // Whatever is known now is not collected before it is kept.
        let known = |id, slot| self.known.get(&(id, slot)).is_some_and(|file| blobs.contains(&file.digest));
        let (copied, rest) = copy(&to.0, &known, &mut paced)?;
        let Copied { id, name, slot, fingerprint, written } = copied;
        let (file, kept) = if written {
            blobs.import(&to.0, &mut paced).map_err(TakeError::Blobs)?
        } else {
            let file = self.known[&(id, slot)];
            (file, blobs.keep(&file.digest))
        };
        self.kept.push(kept);
        self.databases.push(ManifestDatabase { id, name, slot, fingerprint: fingerprint.0, file });
        Ok(rest)
    }
}

/// The path of a file that does not outlive its use.
#[derive(Debug)]
pub(crate) struct Temporary(pub(crate) PathBuf);

impl Temporary {
    pub(crate) fn new(blobs: &BlobStore) -> Temporary {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Temporary(blobs.temporary_directory().join(format!("snapshot-{}-{number}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It has its place by now, or is of no use; what cannot be removed now is removed at the next start.
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let mut path = self.0.clone().into_os_string();
            path.push(suffix);
            let _ = std::fs::remove_file(path);
        }
    }
}
