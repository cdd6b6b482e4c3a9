//! Snapshots, for replicas that need more of the log than anybody holds.
//!
//! One is taken when somebody asks ([`take`]): the engine copies its databases, the copies become blobs, and a manifest
//! says what they are and where the log goes on. Manifest and files are fetched like any other blob. What a replica
//! holds of them it collects beside its data ([`Staging`]); when it has everything, one rename decides ([`Staging::decide`]),
//! and its next start puts the snapshot in the place of its databases and of the beginning of its log ([`install`]).
//!
//! `DATA/snapshot` names the manifest that is offered, `DATA/incoming/DIGEST/` is what is being collected, and
//! `DATA/install/` what was decided on.

mod install;
mod manifest;
mod offer;
mod staging;
mod take;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

pub use install::{InstallError, install};
pub use manifest::{Manifest, ManifestDatabase, ManifestError};
pub use offer::{Offer, Reservation};
pub use staging::{Staging, StagingError};
pub(crate) use take::Temporary;
pub use take::{TakeError, Taken, take};

use crate::disk::sync_directory;

/// Writes a small file so that it is there whole, and durably, or as it was before.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Removes a directory and what is in it, if it is there.
fn remove_directory(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
