//! The blobs on this replica's disk.
//!
//! `DATA/blobs/ab/abcd...` is a blob named by its SHA-256; it is there whole and durable, or not at all.
//! `DATA/blobs/tmp` holds what is being written and is emptied at start, but for what a fetch can resume.
//! A blob's modification time says since when its grace period runs.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use d3b::{BlobReference, Digest, Hasher};

use super::sound::{Identity, Sound};
use super::writeback::Writeback;
use crate::disk::{Room, sync_directory};

/// The name of the directory for what is not whole yet.
const TEMPORARY: &str = "tmp";
/// What the name of a fetch that can be resumed begins with.
const PARTIAL: &str = "fetch-";
/// How much of a blob is read at once to check it.
const CHECK_BYTES: usize = 256 << 10;

/// How much is hashed at once.
const PIECE: usize = 1 << 20;

/// The blobs of one replica; clones share it.
#[derive(Debug, Clone)]
pub struct BlobStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    temporary: PathBuf,
    next: AtomicU64,
    /// Blobs that are not collected, and how many want each. Held also while a blob is dropped, gets its place, or has
    /// its time renewed: a blob that looked old may otherwise be dropped right after it was acknowledged.
    kept: Mutex<BTreeMap<Digest, usize>>,
    sound: Sound,
}

/// Keeps a blob from being collected as long as it lives.
#[derive(Debug)]
pub struct Kept {
    shared: Arc<Shared>,
    digest: Digest,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut kept = self.shared.kept();
        if let Some(count) = kept.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                kept.remove(&self.digest);
            }
        }
    }
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<Digest, usize>> {
        // A count that a panic left behind keeps a file too long, at worst.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a collection dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// How many blobs.
    pub count: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl BlobStore {
    /// Opens the store in a directory, which may be new, and removes what an earlier process did not finish.
    ///
    /// # Errors
    /// The directory cannot be made, listed or cleaned.
    pub fn open(directory: &Path) -> io::Result<BlobStore> {
        let temporary = directory.join(TEMPORARY);
        std::fs::create_dir_all(&temporary)?;
        for entry in std::fs::read_dir(&temporary)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                let path = entry.path();
                if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
            }
        }
        sync_directory(directory)?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent)?;
        }
        let shared = Shared {
            directory: directory.to_owned(),
            temporary,
            next: AtomicU64::new(0),
            kept: Mutex::default(),
            sound: Sound::default(),
        };
        Ok(BlobStore { shared: Arc::new(shared) })
    }

    /// Where files may be made that do not outlive this process.
    #[must_use]
    pub fn temporary_directory(&self) -> &Path {
        &self.shared.temporary
    }

    /// Keeps a blob, also one that is yet to come, from being collected.
    #[must_use]
    pub fn keep(&self, digest: &Digest) -> Kept {
        *self.shared.kept().entry(*digest).or_default() += 1;
        Kept { shared: Arc::clone(&self.shared), digest: *digest }
    }

    /// What the disk has left.
    pub(crate) fn room(&self) -> io::Result<Room> {
        Room::of(&self.shared.directory)
    }

    /// Which blobs need not be hashed again before they are given out.
    pub(super) fn sound(&self) -> &Sound {
        &self.shared.sound
    }

    fn place(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.shared.directory.join(&name[..2]).join(name)
    }

    pub(super) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.shared.temporary.join(format!("{PARTIAL}{digest}"))
    }

    /// How many bytes of a blob that is being fetched are here.
    #[must_use]
    pub fn partial_length(&self, digest: &Digest) -> u64 {
        std::fs::metadata(self.partial_path(digest)).map_or(0, |metadata| metadata.len())
    }

    /// Begins a blob of at most so many bytes. Blocks, as all of its methods do.
    ///
    /// # Errors
    /// No file can be made.
    pub fn writer(&self, size_max: u64) -> io::Result<BlobWriter> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.temporary.join(format!("upload-{}-{number}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let writeback = Writeback::of(path.clone());
        Ok(BlobWriter { store: self.clone(), file, path: Some(path), writeback, hasher: Hasher::new(), size_max })
    }

    /// The path of a blob that is here.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.place(digest)).filter(|path| path.exists())
    }

    /// Whether a blob is here.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_some()
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// `NotFound` where it is not here.
    pub fn open_file(&self, digest: &Digest) -> io::Result<File> {
        File::open(self.place(digest))
    }

    /// Takes a blob that is not what its name says out of its place; what is left of it stays beside, under another name,
    /// for people to look at.
    pub(crate) fn set_aside(&self, digest: &Digest) {
        self.sound().forget(digest);
        let place = self.place(digest);
        let aside = place.with_extension("damaged");
        let moved = {
            let _kept = self.shared.kept();
            std::fs::rename(&place, &aside)
        };
        tracing::error!(%digest, path = %aside.display(), ?moved, "a file on this disk is damaged and was set aside");
    }

    /// The blobs that are here and whose names begin with this byte.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub(crate) fn list(&self, first: u8) -> io::Result<Vec<Digest>> {
        let directory = self.shared.directory.join(format!("{first:02x}"));
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().parse().ok()));
        names.filter_map(io::Result::transpose).collect()
    }

    /// Reads a blob from end to end, to see whether it is still what its name says; `pace` hears of what was read, and
    /// may end it. Tells how long it is, and whether it is sound; `None` where it was ended.
    ///
    /// # Errors
    /// `NotFound` where it is not here; whatever the disk says.
    pub(crate) fn check(&self, digest: &Digest, pace: &mut dyn FnMut(u64) -> bool) -> io::Result<Option<(u64, bool)>> {
        let mut file = self.open_file(digest)?;
        let identity = Identity::of(&file)?;
        // Until all of it is read nobody knows what the disk gives.
        self.sound().forget(digest);
        let mut hasher = Hasher::new();
        let mut piece = vec![0; CHECK_BYTES];
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                let length = hasher.length();
                let sound = hasher.finish() == *digest;
                if sound {
                    self.sound().remember(*digest, identity);
                }
                return Ok(Some((length, sound)));
            }
            hasher.update(&piece[..read]);
            if !pace(read as u64) {
                return Ok(None);
            }
        }
    }

    /// Begins a blob's grace period anew, durably; false where the blob is not here.
    ///
    /// # Errors
    /// The time cannot be set or synced.
    pub fn renew(&self, digest: &Digest) -> io::Result<bool> {
        let file = {
            let _kept = self.shared.kept();
            match File::open(self.place(digest)) {
                Ok(file) => {
                    file.set_modified(SystemTime::now())?;
                    file
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
        };
        file.sync_all()?;
        Ok(true)
    }

    /// Drops the blobs that nothing refers to and whose grace period is over, and fetches that nobody resumed.
    ///
    /// # Errors
    /// The directory cannot be listed; what cannot be removed is left for the next time.
    pub fn collect(
        &self,
        referenced: &dyn Fn(&Digest) -> bool,
        grace: Duration,
        now: SystemTime,
    ) -> io::Result<Collected> {
        let mut collected = Collected::default();
        for entry in std::fs::read_dir(&self.shared.directory)? {
            let path = entry?.path();
            let temporary = path == self.shared.temporary;
            if !path.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let digest = name.parse::<Digest>();
                let wanted = match (temporary, &digest) {
                    (true, _) => !name.starts_with(PARTIAL),
                    (false, Ok(digest)) => referenced(digest),
                    (false, Err(_)) => true,
                };
                let kept = self.shared.kept();
                let wanted = wanted || digest.is_ok_and(|digest| kept.contains_key(&digest));
                if !wanted && let Some(bytes) = remove_if_old(&entry.path(), grace, now) {
                    collected.count += 1;
                    collected.bytes += bytes;
                }
            }
        }
        Ok(collected)
    }

    /// Moves a complete file, whose bytes were hashed, into its place, durably: the file, then its directory.
    fn install(&self, file: &File, path: &Path, digest: &Digest) -> io::Result<()> {
        file.set_modified(SystemTime::now())?;
        file.sync_all()?;
        let place = self.place(digest);
        let parent = place.parent().expect("a blob lies in a directory");
        if !parent.exists() {
            std::fs::create_dir_all(parent)?;
        }
        // Whoever made it may not have come to sync it; where there is nothing to sync, it costs nothing.
        sync_directory(&self.shared.directory)?;
        {
            let _kept = self.shared.kept();
            std::fs::rename(path, &place)?;
        }
        // Moving it counts as a change of it.
        self.sound().remember(*digest, Identity::of(file)?);
        sync_directory(parent)
    }

    /// Takes in a complete, durable file of this file system, by moving it; it is kept as long as what is returned with it
    /// lives. Asks `pace` with the bytes that were hashed since the last time.
    ///
    /// # Errors
    /// It cannot be read or moved, or `pace` said so.
    pub(crate) fn import(
        &self,
        path: &Path,
        pace: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<(BlobReference, Kept)> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut hasher = Hasher::new();
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            pace(read as u64)?;
        }
        let size = hasher.length();
        let digest = hasher.finish();
        let kept = self.keep(&digest);
        self.install(&file, path, &digest)?;
        Ok((BlobReference { digest, size }, kept))
    }

    /// Moves a blob out of the store, durably; false where it is not here.
    ///
    /// # Errors
    /// It cannot be moved, or a directory not be synced.
    pub(crate) fn take_out(&self, digest: &Digest, to: &Path) -> io::Result<bool> {
        let place = self.place(digest);
        {
            let _kept = self.shared.kept();
            match std::fs::rename(&place, to) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound && !place.exists() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        for path in [to, &place] {
            sync_directory(path.parent().expect("a file lies in a directory"))?;
        }
        Ok(true)
    }

    /// Moves a fetched file into its place if it is what it should be; else it is removed.
    pub(super) fn adopt(&self, file: &File, path: &Path, found: &Digest, wanted: &Digest) -> io::Result<bool> {
        if found != wanted {
            std::fs::remove_file(path)?;
            return Ok(false);
        }
        self.install(file, path, wanted)?;
        Ok(true)
    }
}

impl d3b_engine::Blobs for BlobStore {
    fn path(&self, digest: &Digest) -> Option<PathBuf> {
        BlobStore::path(self, digest)
    }
}

fn remove_if_old(path: &Path, grace: Duration, now: SystemTime) -> Option<u64> {
    let metadata = std::fs::metadata(path).ok()?;
    let age = now.duration_since(metadata.modified().ok()?).ok()?;
    if age < grace {
        return None;
    }
    std::fs::remove_file(path).ok()?;
    Some(metadata.len())
}

/// A blob that is being written; dropped before [`BlobWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct BlobWriter {
    store: BlobStore,
    file: File,
    /// `None` once it has its place.
    path: Option<PathBuf>,
    writeback: Writeback,
    hasher: Hasher,
    size_max: u64,
}

impl BlobWriter {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// `FileTooLarge` past the bound; `StorageFull` before the log would have no room left; whatever the disk says.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.hasher.length() + bytes.len() as u64 > self.size_max {
            let text = format!("the file is larger than {} bytes, which is the most that is taken in", self.size_max);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        self.store.room()?.for_file(bytes.len() as u64)?;
        self.hasher.update(bytes);
        self.file.write_all(bytes)?;
        self.writeback.written(bytes.len() as u64)
    }

    /// Makes it durable under its name.
    ///
    /// # Errors
    /// Whatever the disk says; nothing is left behind then.
    pub fn finish(mut self) -> io::Result<BlobReference> {
        self.writeback.settle()?;
        let size = self.hasher.length();
        let digest = std::mem::take(&mut self.hasher).finish();
        let path = self.path.as_ref().expect("it has no place yet");
        self.store.install(&self.file, path, &digest)?;
        self.path = None;
        Ok(BlobReference { digest, size })
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What cannot be removed now is removed at the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, BlobStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        (directory, store)
    }

    fn put(store: &BlobStore, bytes: &[u8]) -> BlobReference {
        let mut writer = store.writer(1 << 20).unwrap();
        for piece in bytes.chunks(2) {
            writer.write(piece).unwrap();
        }
        writer.finish().unwrap()
    }

    fn temporary_files(store: &BlobStore) -> usize {
        std::fs::read_dir(store.temporary_directory()).unwrap().count()
    }

    #[test]
    fn a_blob_is_named_by_its_content_and_kept_once() {
        let (_directory, store) = store();
        let reference = put(&store, b"a cat");
        assert_eq!(reference, BlobReference { digest: Digest::of(b"a cat"), size: 5 });
        assert_eq!(put(&store, b"a cat"), reference);
        assert_eq!(std::fs::read(store.path(&reference.digest).unwrap()).unwrap(), b"a cat");
        assert_eq!(temporary_files(&store), 0);
    }

    #[test]
    fn what_is_not_finished_leaves_nothing_behind() {
        let (directory, store) = store();
        let mut writer = store.writer(4).unwrap();
        assert_eq!(writer.write(b"12345").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        drop(writer);
        assert_eq!(temporary_files(&store), 0);
        std::fs::write(store.temporary_directory().join("upload-1-1"), b"crash").unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        assert_eq!(temporary_files(&store), 0);
    }

    #[test]
    fn collection_respects_references_and_the_grace_period() {
        let (_directory, store) = store();
        let (kept, dropped) = (put(&store, b"kept"), put(&store, b"dropped"));
        let grace = Duration::from_secs(60);
        let referenced = |digest: &Digest| *digest == kept.digest;
        assert_eq!(store.collect(&referenced, grace, SystemTime::now()).unwrap(), Collected::default());
        let later = SystemTime::now() + grace;
        assert_eq!(store.collect(&referenced, grace, later).unwrap(), Collected { count: 1, bytes: 7 });
        assert!(store.contains(&kept.digest) && !store.contains(&dropped.digest));
    }

    #[test]
    fn what_somebody_keeps_is_not_collected() {
        let (_directory, store) = store();
        let reference = put(&store, b"wanted");
        let later = SystemTime::now() + Duration::from_secs(100);
        let (one, other) = (store.keep(&reference.digest), store.keep(&reference.digest));
        drop(one);
        assert_eq!(store.collect(&|_| false, Duration::from_secs(60), later).unwrap().count, 0);
        drop(other);
        assert_eq!(store.collect(&|_| false, Duration::from_secs(60), later).unwrap().count, 1);
    }

    #[test]
    fn an_acknowledgement_begins_the_grace_period_anew() {
        let (_directory, store) = store();
        let reference = put(&store, b"old");
        let old = SystemTime::now() - Duration::from_secs(100);
        File::open(store.path(&reference.digest).unwrap()).unwrap().set_modified(old).unwrap();
        assert!(store.renew(&reference.digest).unwrap());
        let collected = store.collect(&|_| false, Duration::from_secs(60), SystemTime::now()).unwrap();
        assert_eq!(collected.count, 0);
        assert!(!store.renew(&Digest::of(b"unknown")).unwrap());
    }
}
