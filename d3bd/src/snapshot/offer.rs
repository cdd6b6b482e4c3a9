//! The snapshot that this replica offers to those that are behind: at most one, and for no longer than somebody fetches it.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use d3b::{BlobReference, Digest, Slot};

use super::{Manifest, Taken, write_whole};
use crate::disk::remove_file;
use crate::media::{BlobStore, Kept};

/// The file that names the snapshot which is offered.
const OFFERED: &str = "snapshot";

/// How long nobody may have fetched anything of it before it is dropped.
const UNUSED_MAX: Duration = Duration::from_secs(3600);

/// What is offered; clones share it. Its files are not collected, also after a restart.
#[derive(Debug, Clone)]
pub struct Offer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Names the manifest.
    path: PathBuf,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    current: Option<Current>,
    /// The slots of what is being taken.
    reserved: BTreeMap<u64, Slot>,
    /// Tells reservations apart.
    next: u64,
}

/// Says that a snapshot at some slot will be offered, as long as it lives.
#[derive(Debug)]
pub struct Reservation {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.lock().reserved.remove(&self.number);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("no panic while held")
    }
}

#[derive(Debug)]
struct Current {
    reference: BlobReference,
    manifest: Arc<Manifest>,
    /// The manifest and all its files.
    digests: HashSet<Digest>,
    /// When something of it was last asked for.
    used: Instant,
    _kept: Vec<Kept>,
}

/// Ends whatever is offered, at a start: what this replica held then may be what it is rebuilt for.
pub(super) fn withdraw(data_directory: &Path) -> io::Result<()> {
    remove_file(&data_directory.join(OFFERED))
}

impl Offer {
    /// What an earlier process of this replica offered, as far as all of it is still there.
    ///
    /// # Errors
    /// The file that names it cannot be read or removed.
    pub fn open(data_directory: &Path, blobs: &BlobStore, now: Instant) -> io::Result<Offer> {
        let path = data_directory.join(OFFERED);
        let current = match std::fs::read_to_string(&path) {
            Ok(text) => load(text.trim(), blobs, now),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let books = Mutex::new(Books { current, ..Books::default() });
        let offer = Offer { shared: Arc::new(Shared { path, books }) };
        if offer.current().is_none() {
            offer.forget()?;
        }
        Ok(offer)
    }

    /// Says that something is being taken that needs the log behind this slot.
    #[must_use]
    pub fn reserve(&self, slot: Slot) -> Reservation {
        let mut books = self.shared.lock();
        books.next += 1;
        let number = books.next;
        books.reserved.insert(number, slot);
        Reservation { shared: Arc::clone(&self.shared), number }
    }

    /// The lowest slot of what is being taken. Files that the log names behind it are needed too.
    #[must_use]
    pub fn reserved(&self) -> Option<Slot> {
        self.shared.lock().reserved.values().min().copied()
    }

    /// Offers a snapshot, instead of the one before.
    ///
    /// # Errors
    /// Its name cannot be written down; then the one before is offered still.
    pub fn publish(&self, taken: Taken, now: Instant) -> io::Result<()> {
        let Taken { manifest, reference, kept } = taken;
        let text = format!("{} {}\n", reference.digest, reference.size);
        let mut books = self.shared.lock();
        write_whole(&self.shared.path, text.as_bytes())?;
        books.current = Some(Current::new(manifest, reference, kept, now));
        Ok(())
    }

    /// The manifest that is offered, and its blob.
    #[must_use]
    pub fn current(&self) -> Option<(BlobReference, Arc<Manifest>)> {
        let books = self.shared.lock();
        books.current.as_ref().map(|current| (current.reference, Arc::clone(&current.manifest)))
    }

    /// The lowest slot of what is or will be offered. Whoever takes it over needs the log behind it, which is not to be cut
    /// above.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        let books = self.shared.lock();
        books
            .current
            .as_ref()
            .map(|current| current.manifest.slot)
            .into_iter()
            .chain(books.reserved.values().copied())
            .min()
    }

    /// Somebody fetches a blob; if it belongs to the snapshot, that is in use. Returns whether it does.
    pub fn fetched(&self, digest: &Digest, now: Instant) -> bool {
        let mut books = self.shared.lock();
        let current = books.current.as_mut().filter(|current| current.digests.contains(digest));
        current.map(|current| current.used = now).is_some()
    }

    /// Drops it if nobody has used it for long.
    ///
    /// # Errors
    /// The file that names it cannot be removed.
    pub fn expire(&self, now: Instant) -> io::Result<()> {
        let mut books = self.shared.lock();
        let unused = |current: &Current| now.saturating_duration_since(current.used) >= UNUSED_MAX;
        if books.current.as_ref().is_some_and(unused) {
            // First the name, then the files.
            self.forget()?;
            books.current = None;
        }
        Ok(())
    }

    fn forget(&self) -> io::Result<()> {
        remove_file(&self.shared.path)
    }
}

impl Current {
    fn new(manifest: Manifest, reference: BlobReference, kept: Vec<Kept>, now: Instant) -> Current {
        let files = manifest.databases.iter().map(|database| database.file.digest);
        let digests = files.chain([reference.digest]).collect();
        Current { reference, manifest: Arc::new(manifest), digests, used: now, _kept: kept }
    }
}

/// An offer of which something is missing is none.
fn load(text: &str, blobs: &BlobStore, now: Instant) -> Option<Current> {
    let (digest, size) = text.split_once(' ')?;
    let reference = BlobReference { digest: digest.parse().ok()?, size: size.parse().ok()? };
    let manifest = Manifest::load(blobs, &reference).ok()?;
    let digests = manifest.databases.iter().map(|database| database.file.digest).chain([reference.digest]);
    let kept = digests.map(|digest| {
        let keep = blobs.keep(&digest);
        blobs.contains(&digest).then_some(keep)
    });
    let kept = kept.collect::<Option<Vec<Kept>>>()?;
    Some(Current::new(manifest, reference, kept, now))
}
