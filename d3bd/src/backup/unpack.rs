//! An archive on its way onto the disk, verified as it comes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, Write as _};
use std::path::{Path, PathBuf};

use d3b::archive::{self, Header, Part, Visitor};
use d3b::{Code, Digest, Problem};

use super::archive_problem;
use crate::media::BlobStore;

/// The files of an archive, in a directory that goes with this.
pub(crate) struct Unpacked {
    directory: tempfile::TempDir,
    store: BlobStore,
    /// What the files are of: the first archive.
    pub(crate) header: Header,
    /// By its first slot: a stretch of the log, and its last slot.
    pub(crate) log: BTreeMap<u64, (u64, PathBuf)>,
    blobs: BTreeSet<Digest>,
}

impl Unpacked {
    /// Takes in an archive.
    ///
    /// # Errors
    /// It is damaged, or there is no room for it; nothing is left of it then.
    pub(crate) fn first(from: &mut dyn BufRead, store: &BlobStore) -> Result<Unpacked, Problem> {
        let make = || -> io::Result<tempfile::TempDir> {
            let directory = tempfile::Builder::new().prefix("restore-").tempdir_in(store.temporary_directory())?;
            for name in ["databases", "blobs", "log", "copies"] {
                std::fs::create_dir(directory.path().join(name))?;
            }
            Ok(directory)
        };
        let directory = make().map_err(crate::handle::io_problem)?;
        let mut taker = Taker::new(directory.path(), store, None);
        let header = archive::read(from, &mut taker).map_err(archive_problem)?;
        let Taker { log, blobs, .. } = taker;
        Ok(Unpacked { directory, store: store.clone(), header, log, blobs })
    }

    /// Takes the log and the files of a later archive of the same cluster in besides.
    ///
    /// # Errors
    /// As [`Unpacked::first`]; or it does not go on where the first one ends.
    pub(crate) fn later(&mut self, from: &mut dyn BufRead) -> Result<(), Problem> {
        let directory = self.directory.path().to_owned();
        let mut taker = Taker::new(&directory, &self.store, Some(&self.header));
        taker.blobs = std::mem::take(&mut self.blobs);
        let result = archive::read(from, &mut taker);
        let Taker { log, blobs, misfit, .. } = taker;
        self.blobs = blobs;
        self.log.extend(log);
        match (result, misfit) {
            (_, Some(misfit)) => Err(Problem::new(Code::BadRequest, misfit)),
            (Err(error), None) => Err(archive_problem(error)),
            (Ok(_), None) => Ok(()),
        }
    }

    /// Where the databases are.
    pub(crate) fn databases(&self) -> PathBuf {
        self.directory.path().join("databases")
    }

    /// Where to put copies.
    pub(crate) fn copies(&self) -> PathBuf {
        self.directory.path().join("copies")
    }
}

impl d3b_engine::Blobs for Unpacked {
    fn path(&self, digest: &Digest) -> Option<PathBuf> {
        self.blobs.contains(digest).then(|| self.directory.path().join("blobs").join(digest.to_string()))
    }
}

/// Writes parts to files.
struct Taker<'a> {
    directory: &'a Path,
    store: &'a BlobStore,
    /// The archive before this one; of this one only log and blobs are wanted then.
    before: Option<&'a Header>,
    /// Records up to here are of no use.
    from: u64,
    /// Why this one does not belong to the one before.
    misfit: Option<String>,
    file: Option<File>,
    log: BTreeMap<u64, (u64, PathBuf)>,
    blobs: BTreeSet<Digest>,
}

impl<'a> Taker<'a> {
    fn new(directory: &'a Path, store: &'a BlobStore, before: Option<&'a Header>) -> Taker<'a> {
        let (misfit, file, log, blobs) = (None, None, BTreeMap::new(), BTreeSet::new());
        Taker { directory, store, before, from: 0, misfit, file, log, blobs }
    }

    fn place(&mut self, part: &Part) -> Option<PathBuf> {
        match part {
            Part::Database(_) if self.before.is_some() => None,
            Part::Database(database) => Some(self.directory.join("databases").join(format!("{}.sqlite3", database.id))),
            Part::Blob(file) => {
                let fresh = self.blobs.insert(file.sha256);
                fresh.then(|| self.directory.join("blobs").join(file.sha256.to_string()))
            }
            Part::Log { last, .. } if *last <= self.from => None,
            Part::Log { first, last } => {
                let kind = if self.before.is_some() { "later" } else { "log" };
                let path = self.directory.join("log").join(format!("{kind}-{first}-{last}"));
                self.log.insert(*first, (*last, path.clone()));
                Some(path)
            }
        }
    }
}

impl Visitor for Taker<'_> {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.from = header.from;
        if let Some(before) = self.before {
            self.from = before.slot;
            self.misfit = if header.cluster != before.cluster {
                Some("the later backup is one of another cluster".to_owned())
            } else if header.log.first > before.slot + 1 {
                let (first, slot) = (header.log.first, before.slot);
                Some(format!(
                    "the log of the later backup begins at slot {first}, and the first one ends at slot {slot}"
                ))
            } else {
                None
            };
            if self.misfit.is_some() {
                return Err(io::Error::other("the later backup does not belong to the first one"));
            }
        }
        self.store.room()?.for_file(header.bytes())
    }

    fn begin(&mut self, part: &Part, length: u64) -> io::Result<()> {
        self.store.room()?.for_file(length)?;
        self.file = match self.place(part) {
            Some(path) => Some(File::options().read(true).write(true).create_new(true).open(path)?),
            None => None,
        };
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match self.file.take() {
            Some(file) => file.sync_all(),
            None => Ok(()),
        }
    }
}
