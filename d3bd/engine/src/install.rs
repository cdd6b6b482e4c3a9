//! How a database's file comes into being: complete under another name, then moved to its place in one step.
//!
//! A file that stands under a database's id is therefore always a whole one: when an entry is applied again after a
//! crash, the file is either missing or as it was made then (and perhaps already further on).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use d3b::{BlobReference, Code, DatabaseId, Digest, Hasher, Rejection, Slot};
use rusqlite::{Connection, ErrorCode};

use crate::database::{self, Database};
use crate::databases::is_damage;
use crate::fingerprint::Fingerprint;
use crate::guard::{self, Guard, Mode};
use crate::{catalogue, reader, requests};

/// Why a file was not brought into place.
#[derive(Debug)]
pub(crate) enum InstallError {
    /// The uploaded bytes cannot be served; the same on every replica.
    Rejected(Rejection),
    /// SQLite failed on this replica.
    Sqlite(rusqlite::Error),
    /// The file system failed.
    Io(PathBuf, io::Error),
    /// The database that is to be replaced is damaged, so its keys cannot be inherited. The new one is in place, without
    /// them.
    Inherit(String),
}

impl From<rusqlite::Error> for InstallError {
    fn from(error: rusqlite::Error) -> InstallError {
        InstallError::Sqlite(error)
    }
}

/// A database that is to be made.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// Where databases are.
    pub directory: &'a Path,
    /// Its id.
    pub id: DatabaseId,
    /// The slot that makes it.
    pub created: Slot,
    /// The uploaded file and where it is; `None` for an empty database.
    pub image: Option<(BlobReference, &'a Path)>,
    /// The database that it replaces, whose keys it inherits.
    pub replaces: Option<&'a Database>,
}

impl Plan<'_> {
    /// Brings the file into place, unless it is there already.
    pub fn install(&self) -> Result<(), InstallError> {
        let path = database::path(self.directory, self.id);
        if path.exists() {
            return Ok(());
        }
        let building = self.directory.join(format!("{}.tmp", self.id));
        remove(&building).map_err(|error| InstallError::Io(building.clone(), error))?;
        let mut lost_keys = None;
        let built = self.build(&building, &mut lost_keys);
        if built.is_err() {
            // The error that counts is the one at hand; what is left over is removed at the next start.
            let _ = remove(&building);
        }
        built?;
        publish(&building, &path, self.directory)?;
        match lost_keys {
            None => Ok(()),
            Some(error) => Err(InstallError::Inherit(error.to_string())),
        }
    }

    /// Damage of the database whose keys are inherited is handed out through `lost_keys`.
    fn build(&self, building: &Path, lost_keys: &mut Option<rusqlite::Error>) -> Result<(), InstallError> {
        if let Some((_, image)) = self.image {
            reader::check_upload(image).map_err(InstallError::Rejected)?;
            copy(image, building).map_err(|error| InstallError::Io(building.to_owned(), error))?;
        }
        let create = |connection: &Connection| {
            database::create_tables(connection, self.id, self.created, first_fingerprint(self.image.map(|it| it.0)))?;
            match self.replaces.map(|replaced| requests::inherit(replaced, connection)) {
                None | Some(Ok(())) => Ok(()),
                Some(Err(error)) if is_damage(&error) => {
                    *lost_keys = Some(error);
                    Ok(())
                }
                Some(Err(error)) => Err(error),
            }
        };
        write(building, self.image.is_none(), create).map_err(|error| match (self.image, error) {
            (Some(_), InstallError::Sqlite(error)) if is_unusable(&error) => {
                let detail = format!("the file passed as a database, and yet could not be written to: {error}");
                InstallError::Rejected(Rejection::new(Code::NotADatabase, detail))
            }
            (_, error) => error,
        })
    }
}

/// Brings the file of a database out of a backup into place, unless it is there already: as a database that this slot
/// makes.
pub(crate) fn install_copy(
    directory: &Path,
    id: DatabaseId,
    created: Slot,
    image: (BlobReference, &Path),
) -> Result<(), InstallError> {
    let path = database::path(directory, id);
    if path.exists() {
        return Ok(());
    }
    let building = directory.join(format!("{id}.tmp"));
    let built = remove(&building)
        .and_then(|()| copy(image.1, &building))
        .map_err(|error| InstallError::Io(building.clone(), error))
        .and_then(|()| {
            let adopt =
                |connection: &Connection| database::adopt(connection, id, created, first_fingerprint(Some(image.0)));
            write(&building, false, adopt).map_err(|error| match error {
                InstallError::Sqlite(error) if is_unusable(&error) => {
                    let detail = format!("the file of a database passed, and yet could not be written to: {error}");
                    InstallError::Rejected(Rejection::new(Code::NotADatabase, detail))
                }
                error => error,
            })
        });
    if built.is_err() {
        // The error that counts is the one at hand; what is left over is removed at the next start.
        let _ = remove(&building);
    }
    built?;
    publish(&building, &path, directory)
}

/// Makes the catalogue where there is none.
pub(crate) fn install_catalogue(directory: &Path) -> Result<(), InstallError> {
    let id = DatabaseId::catalogue();
    let path = database::path(directory, id);
    if path.exists() {
        return Ok(());
    }
    let building = directory.join(format!("{id}.tmp"));
    remove(&building).map_err(|error| InstallError::Io(building.clone(), error))?;
    write(&building, true, |connection| {
        catalogue::create_tables(connection)?;
        database::create_tables(connection, id, Slot::ZERO, first_fingerprint(None))
    })?;
    publish(&building, &path, directory)
}

/// Removes what an earlier process left half made.
pub(crate) fn clean(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a database's file and what SQLite keeps beside it. The file itself goes last: as long as it is there, a
/// second attempt finds the others.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    for suffix in ["-journal", "-wal", "-shm", ""] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(&name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes renames and deletions in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The chain begins with what the database was made from.
fn first_fingerprint(image: Option<BlobReference>) -> Fingerprint {
    let mut hasher = Hasher::new();
    hasher.update(b"d3b fingerprint v1\0");
    if let Some(image) = image {
        hasher.update(&image.digest.0);
    }
    let Digest(bytes) = hasher.finish();
    Fingerprint(*bytes.first_chunk().expect("a SHA-256 digest has 32 bytes"))
}

/// A copy that its owner may write to, whatever the original allows. It shares the original's blocks where the file
/// system can do that.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = File::options().write(true).create_new(true).open(to)?;
    io::copy(&mut source, &mut target).map(|_| ())
}

/// Writes to a file in one transaction, and leaves nothing beside it.
fn write(
    path: &Path,
    create: bool,
    work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> Result<(), InstallError> {
    let (connection, guard): (Connection, Guard) = guard::open_writer(path, create)?;
    guard.set(Mode::Internal);
    connection.execute_batch("BEGIN IMMEDIATE")?;
    work(&connection)?;
    connection.execute_batch("COMMIT")?;
    // The last connection checkpoints the log and removes it when it closes.
    connection.close().map_err(|(_, error)| InstallError::Sqlite(error))?;
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let log = PathBuf::from(log);
    if log.exists() {
        let error = io::Error::other("the write-ahead log could not be folded into its database");
        return Err(InstallError::Io(log, error));
    }
    Ok(())
}

/// Moves a finished file to its place, durably.
fn publish(building: &Path, path: &Path, directory: &Path) -> Result<(), InstallError> {
    File::open(building)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(building, path))
        .map_err(|error| InstallError::Io(path.to_owned(), error))?;
    sync_directory(directory).map_err(|error| InstallError::Io(directory.to_owned(), error))
}

/// Whether an error lies in the uploaded bytes: damage that the check did not see, tables in the way, or a header that
/// forbids to write (the copy itself is this replica's own, and writable).
fn is_unusable(error: &rusqlite::Error) -> bool {
    is_damage(error)
        || database::sqlite_error(error)
            .is_some_and(|error| matches!(error.code, ErrorCode::Unknown | ErrorCode::ReadOnly))
}
