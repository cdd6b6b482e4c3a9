//! Bringing a backup into an empty cluster, in one entry.
//!
//! The databases get ids of their own, made from this entry's key and slot as those of uploads are: a database that was
//! restored before and dropped since may still have its file here. So a file that stands under one of these ids was put
//! there by this very entry, and after a crash what is there is kept.

use std::collections::BTreeMap;
use std::path::PathBuf;

use d3b::{Answer, BlobReference, Code, DatabaseId, DatabaseName, Rejection};

use super::{Engine, Trouble};
use crate::apply::{self, Entry, Execution, Refusal};
use crate::install::{self, InstallError};
use crate::reader::{check_copy, open_immutable};
use crate::restore::{BYTES_MAX, RestoreManifest};
use crate::{Blobs, catalogue, database};

/// A backup whose files are all here.
struct Backup {
    manifest: RestoreManifest,
    catalogue: PathBuf,
    /// By the ids that they had.
    databases: BTreeMap<DatabaseId, (BlobReference, PathBuf)>,
}

/// What is known of a backup's files.
enum Gathered {
    Whole(Backup),
    Missing(BlobReference),
    Refused(Rejection),
}

impl Engine {
    /// Restores a backup, if the catalogue is empty.
    pub(super) fn restore(
        &mut self,
        entry: Entry<'_>,
        manifest: BlobReference,
        blobs: &dyn Blobs,
    ) -> Result<Execution, Trouble> {
        if let Some(concluded) = apply::by_key(&mut self.catalogue, entry)? {
            return Ok(Execution::Done(concluded));
        }
        // Nobody fetches gigabytes for what is refused.
        let gathered = match catalogue::check_empty(&self.catalogue) {
            Ok(()) => gather(manifest, blobs)?,
            Err(Refusal::Rejected(rejection)) => Gathered::Refused(rejection),
            Err(Refusal::Failed(error)) => return Err(error.into()),
        };
        let outcome = match gathered {
            Gathered::Missing(blob) => return Ok(Execution::NeedsBlob(blob)),
            Gathered::Refused(rejection) => Err(rejection),
            Gathered::Whole(backup) => self.take_in(entry, &backup)?,
        };
        let change = format!("restore {}", manifest.digest);
        Ok(Execution::Done(apply::conclude(&mut self.catalogue, entry, outcome, &change)?))
    }

    fn take_in(&mut self, entry: Entry<'_>, backup: &Backup) -> Result<Result<Answer, Rejection>, Trouble> {
        if let Err(rejection) = check(backup) {
            return local_failure(rejection).map(Err);
        }
        let from = open_immutable(&backup.catalogue)?;
        let files: BTreeMap<DatabaseId, DatabaseName> =
            backup.manifest.databases.iter().map(|database| (database.id, database.name.clone())).collect();
        self.catalogue.run_own("/*d3b*/SAVEPOINT d3b_change")?;
        let unique = entry.keyed.key.as_str();
        let rows = apply::atomically(&mut self.catalogue, entry, false, |catalogue| {
            catalogue::restore(catalogue, &from, &files, unique, entry.slot)
        });
        let outcome = match rows {
            Ok(made) => match self.install_all(entry, backup, &made) {
                Ok(()) => {
                    self.names.clear();
                    let (id, name) = (DatabaseId::catalogue(), DatabaseName::catalogue());
                    Ok(Answer::Catalogue { id, name, replaced: false })
                }
                Err(Trouble::Install(InstallError::Rejected(rejection))) => {
                    self.catalogue.recorder.discard();
                    self.catalogue.keys_expire_at = None;
                    self.catalogue.run_own("/*d3b*/ROLLBACK TO d3b_change")?;
                    Err(rejection)
                }
                Err(trouble) => return Err(trouble),
            },
            Err(Refusal::Rejected(rejection)) => {
                self.catalogue.keys_expire_at = None;
                Err(rejection)
            }
            Err(Refusal::Failed(error)) => return Err(error.into()),
        };
        self.catalogue.run_own("/*d3b*/RELEASE d3b_change")?;
        Ok(outcome)
    }

    /// Brings all files into place, or none.
    fn install_all(
        &mut self,
        entry: Entry<'_>,
        backup: &Backup,
        made: &[(DatabaseId, DatabaseId)],
    ) -> Result<(), Trouble> {
        let directory = self.databases.directory().to_owned();
        for (old, id) in made {
            let Some((blob, path)) = backup.databases.get(old) else {
                return Err(Trouble::Contradiction("a database of a backup has no file"));
            };
            let Err(error) = install::install_copy(&directory, *id, entry.slot, (*blob, path)) else { continue };
            if let InstallError::Rejected(_) = error {
                for (_, id) in made {
                    let path = database::path(&directory, *id);
                    install::remove(&path).map_err(|source| Trouble::Install(InstallError::Io(path, source)))?;
                }
            }
            return Err(Trouble::Install(error));
        }
        Ok(())
    }
}

/// Reads the list, and looks for the files.
fn gather(reference: BlobReference, blobs: &dyn Blobs) -> Result<Gathered, Trouble> {
    let Some(path) = blobs.path(&reference.digest) else { return Ok(Gathered::Missing(reference)) };
    let refused = |detail: String| Ok(Gathered::Refused(Rejection::new(Code::BadRequest, detail)));
    if reference.size > BYTES_MAX {
        return refused(format!("the list of a backup's files has {} bytes", reference.size));
    }
    let bytes = std::fs::read(&path).map_err(|error| Trouble::Install(InstallError::Io(path, error)))?;
    let manifest = match RestoreManifest::decode(&bytes) {
        Ok(manifest) => manifest,
        Err(error) => return refused(error.to_string()),
    };
    let mut paths = Vec::new();
    for file in manifest.files() {
        match blobs.path(&file.digest) {
            Some(path) => paths.push((file, path)),
            None => return Ok(Gathered::Missing(file)),
        }
    }
    let mut paths = paths.into_iter();
    let (_, catalogue) = paths.next().expect("the catalogue is the first of the files");
    let databases: BTreeMap<_, _> = manifest.databases.iter().map(|database| database.id).zip(paths).collect();
    if databases.len() != manifest.databases.len() || databases.contains_key(&DatabaseId::catalogue()) {
        return refused("the list of a backup's files names a database twice".to_owned());
    }
    Ok(Gathered::Whole(Backup { manifest, catalogue, databases }))
}

/// Looks into every file before anything is done with one.
fn check(backup: &Backup) -> Result<(), Rejection> {
    let about = |name: &DatabaseName, rejection: Rejection| Rejection {
        detail: format!("the backup's file of {name} cannot be used: {}", rejection.detail),
        ..rejection
    };
    crate::reader::check_catalogue(&backup.catalogue)
        .map_err(|rejection| about(&DatabaseName::catalogue(), rejection))?;
    for restored in &backup.manifest.databases {
        let Some((_, path)) = backup.databases.get(&restored.id) else { continue };
        check_copy(path, restored.id).map_err(|rejection| about(&restored.name, rejection))?;
    }
    Ok(())
}

/// A file that cannot be read here may well be readable elsewhere: that is no answer.
fn local_failure(rejection: Rejection) -> Result<Rejection, Trouble> {
    if rejection.code == Code::Internal {
        let error = std::io::Error::other(rejection.detail);
        return Err(Trouble::Install(InstallError::Io(PathBuf::from("a file of the backup"), error)));
    }
    Ok(rejection)
}
