//! The start that puts a snapshot in the place of what was there: first the log, in one transaction, then the databases,
//! by renames. Every step can be done again, and a crash between any two of them is gone on from by the next start.

use std::io;
use std::path::{Path, PathBuf};

use d3b::Slot;

use super::staging::{DATABASES, INSTALL, MANIFEST, read_manifest};
use super::{ManifestError, remove_directory, sync_directory};
use crate::log::{Locked, LogError};

/// What the databases are called that a snapshot replaces, until they are gone.
const OLD: &str = "databases.old";

/// Why a start cannot install the snapshot that was decided on.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The manifest beside the files is none.
    #[error("the manifest in {} cannot be used", path.display())]
    Manifest {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The log cannot be begun anew.
    #[error("the log cannot be begun anew behind a snapshot")]
    Log(#[from] LogError),
    /// The file system failed.
    #[error("the snapshot in {} cannot be put in place", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Installs the snapshot that was decided on, if there is one; its slot. To be called at start, before log and databases
/// are used.
///
/// # Errors
/// See [`InstallError`]; the next start goes on from there.
pub fn install(log: &mut Locked) -> Result<Option<Slot>, InstallError> {
    install_by_steps(log, &mut || Ok(()))
}

/// Asks before each step whether to go on: a test says no, as a crash would.
pub(super) fn install_by_steps(
    log: &mut Locked,
    step: &mut dyn FnMut() -> io::Result<()>,
) -> Result<Option<Slot>, InstallError> {
    let data = log.directory().to_owned();
    let path = data.join(INSTALL);
    if !path.exists() {
        return Ok(None);
    }
    let failed = |source| InstallError::Io { path: path.clone(), source };
    let mut installed = None;
    // Its files are moved last: as long as they are there, everything is done again.
    if path.join(DATABASES).exists() {
        let manifest = read_manifest(&path).map_err(|source| InstallError::Manifest { path: path.clone(), source })?;
        step().map_err(failed)?;
        if log.begin_at(&manifest.beginning())? {
            // What it was quarantined for is about to be replaced, and must not be given to others any more; should this
            // process end here, the next one goes on.
            super::offer::withdraw(&data).map_err(failed)?;
            crate::quarantine::remove(&data).map_err(failed)?;
            move_databases(&data, &path, step).map_err(failed)?;
            installed = Some(manifest.slot);
            tracing::info!(slot = %manifest.slot, databases = manifest.databases.len(), "installed a snapshot");
        } else {
            tracing::warn!(slot = %manifest.slot, "a snapshot is older than the log's beginning, and is dropped");
        }
    }
    clean(&data, &path, step).map_err(failed)?;
    Ok(installed)
}

fn move_databases(data: &Path, install: &Path, step: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
    let (databases, old) = (data.join(DATABASES), data.join(OLD));
    if databases.exists() {
        // What an earlier snapshot replaced, and was not removed.
        step()?;
        remove_directory(&old)?;
        step()?;
        std::fs::rename(&databases, &old)?;
    }
    // The name must be free for good before it is given away.
    sync_directory(data)?;
    step()?;
    std::fs::rename(install.join(DATABASES), &databases)?;
    sync_directory(data)?;
    sync_directory(install)
}

fn clean(data: &Path, install: &Path, step: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
    step()?;
    remove_directory(&data.join(OLD))?;
    step()?;
    // Of a snapshot that is dropped the files go first: a directory with files and without a manifest is damage.
    remove_directory(&install.join(DATABASES))?;
    step()?;
    match std::fs::remove_file(install.join(MANIFEST)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    step()?;
    remove_directory(install)?;
    sync_directory(data)
}
