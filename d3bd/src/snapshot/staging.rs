//! Collecting a snapshot that was fetched, until it is complete.

use std::io;
use std::path::{Path, PathBuf};

use d3b::{BlobReference, Digest};

use super::{Manifest, ManifestDatabase, ManifestError, remove_directory, sync_directory, write_whole};
use crate::media::BlobStore;

/// Where snapshots are collected.
const INCOMING: &str = "incoming";
/// What was decided on.
pub(super) const INSTALL: &str = "install";
/// The manifest beside the files.
pub(super) const MANIFEST: &str = "manifest";
/// The files, under the names that they will have.
pub(super) const DATABASES: &str = "databases";

/// Why a snapshot cannot be collected.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// What is called its manifest is none.
    #[error("the snapshot's manifest cannot be used")]
    Manifest(#[from] ManifestError),
    /// The file system failed.
    #[error("{} cannot be written", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file has another size than the manifest says.
    #[error("the file of database {} has {found} bytes, where {} are due", .database.id, .database.file.size)]
    Size {
        /// What the manifest says.
        database: Box<ManifestDatabase>,
        /// The size of the file.
        found: u64,
    },
    /// Something is missing still.
    #[error("{0} files of the snapshot are missing")]
    Incomplete(usize),
    /// A snapshot was decided on before, and awaits a start.
    #[error("another snapshot is about to be installed")]
    Decided,
}

/// A snapshot of which some files are here: `DATA/incoming/DIGEST/` holds its manifest and `databases/`. It can be gone
/// on with after a crash at any point.
#[derive(Debug)]
pub struct Staging {
    data_directory: PathBuf,
    path: PathBuf,
    manifest: Manifest,
}

impl Staging {
    /// Begins to collect a snapshot whose manifest is in the blob store, or goes on with it. Files that another snapshot
    /// has left here are used, where they are the same; the rest of it is dropped.
    ///
    /// # Errors
    /// The manifest is none, or a directory cannot be made.
    pub fn begin(data_directory: &Path, reference: &BlobReference, blobs: &BlobStore) -> Result<Staging, StagingError> {
        if data_directory.join(INSTALL).exists() {
            return Err(StagingError::Decided);
        }
        let manifest = Manifest::load(blobs, reference)?;
        let incoming = data_directory.join(INCOMING);
        let path = incoming.join(reference.digest.to_string());
        let staging = Staging { data_directory: data_directory.to_owned(), path, manifest };
        staging.make(&incoming).map_err(|source| StagingError::Io { path: staging.path.clone(), source })?;
        Ok(staging)
    }

    /// The snapshot that an earlier process was collecting, if there is one.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn resume(data_directory: &Path) -> Result<Option<Staging>, StagingError> {
        let incoming = data_directory.join(INCOMING);
        let found = list(&incoming).map_err(|source| StagingError::Io { path: incoming, source })?;
        let whole = found.into_iter().find_map(|path| Some((read_manifest(&path).ok()?, path)));
        Ok(whole.map(|(manifest, path)| Staging { data_directory: data_directory.to_owned(), path, manifest }))
    }

    /// Drops what was collected, of whatever snapshot.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn clear(data_directory: &Path) -> io::Result<()> {
        remove_directory(&data_directory.join(INCOMING))
    }

    fn make(&self, incoming: &Path) -> io::Result<()> {
        std::fs::create_dir_all(self.path.join(DATABASES))?;
        for directory in [&self.path, incoming, &self.data_directory] {
            sync_directory(directory)?;
        }
        if !self.path.join(MANIFEST).exists() {
            write_whole(&self.path.join(MANIFEST), &self.manifest.encode())?;
        }
        for other in list(incoming)?.into_iter().filter(|path| *path != self.path) {
            self.inherit(&other)?;
            remove_directory(&other)?;
        }
        Ok(())
    }

    /// Takes the files of another snapshot that belong to this one as well.
    fn inherit(&self, other: &Path) -> io::Result<()> {
        let Ok(manifest) = read_manifest(other) else { return Ok(()) };
        for database in manifest.databases.iter().filter(|database| self.manifest.databases.contains(database)) {
            let from = file(other, database);
            if from.exists() && !file(&self.path, database).exists() {
                std::fs::rename(from, file(&self.path, database))?;
            }
        }
        sync_directory(&self.path.join(DATABASES))
    }

    /// What it is to consist of.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The files that are still to be fetched.
    #[must_use]
    pub fn missing(&self) -> Vec<BlobReference> {
        let missing = self.manifest.databases.iter().filter(|database| !file(&self.path, database).exists());
        missing.map(|database| database.file).collect()
    }

    /// Takes a file out of the blob store, where it has just been fetched to, and whose digest was verified there; nothing
    /// happens if it is not there, or does not belong to the snapshot.
    ///
    /// # Errors
    /// It has the wrong size, or cannot be moved.
    pub fn stage(&self, digest: &Digest, blobs: &BlobStore) -> Result<(), StagingError> {
        for database in self.manifest.databases.iter().filter(|database| database.file.digest == *digest) {
            let to = file(&self.path, database);
            let failed = |source| StagingError::Io { path: to.clone(), source };
            let Some(from) = blobs.path(digest) else { continue };
            let found = std::fs::metadata(from).map_err(failed)?.len();
            if found != database.file.size {
                return Err(StagingError::Size { database: Box::new(database.clone()), found });
            }
            blobs.take_out(digest, &to).map_err(failed)?;
        }
        Ok(())
    }

    /// Decides that this snapshot is what the next start begins with: one rename, which is durable when this returns. This
    /// process must end without writing anything more that is to last.
    ///
    /// # Errors
    /// Something is missing, another one was decided on before, or the file system failed.
    pub fn decide(self) -> Result<(), StagingError> {
        let missing = self.missing().len();
        if missing > 0 {
            return Err(StagingError::Incomplete(missing));
        }
        let install = self.data_directory.join(INSTALL);
        if install.exists() {
            return Err(StagingError::Decided);
        }
        std::fs::rename(&self.path, &install)
            .and_then(|()| sync_directory(&self.data_directory))
            .and_then(|()| sync_directory(&self.data_directory.join(INCOMING)))
            .map_err(|source| StagingError::Io { path: install, source })
    }
}

fn file(staging: &Path, database: &ManifestDatabase) -> PathBuf {
    staging.join(DATABASES).join(format!("{}.sqlite3", database.id))
}

/// The manifest in a directory of a snapshot.
pub(super) fn read_manifest(directory: &Path) -> Result<Manifest, ManifestError> {
    let bytes = std::fs::read(directory.join(MANIFEST)).map_err(|error| ManifestError::Unread(error.to_string()))?;
    Manifest::decode(&bytes)
}

fn list(incoming: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(incoming) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    Ok(paths)
}
