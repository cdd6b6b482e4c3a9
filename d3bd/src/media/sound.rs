//! Which blobs were found to be what their names say, lately: they need not be hashed again on their way out.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use d3b::Digest;

/// For how long what was found is believed, however often the file is asked for.
const BELIEVED: Duration = Duration::from_secs(600);
/// How many blobs are remembered; the one that was looked at longest ago is forgotten for a new one.
const REMEMBERED_MAX: usize = 4_096;

/// A file as it was when it was looked at: whoever writes to it, or puts another in its place, changes one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    /// What an open file is now.
    pub(super) fn of(file: &File) -> io::Result<Identity> {
        let metadata = file.metadata()?;
        Ok(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The blobs that were hashed from end to end and had the right digest: when they were received, when all of one was
/// given out, when the scrubber read it. What is believed for it is no more than that those bytes are still in the page
/// cache, or were not read from the disk since: whoever has to read from the disk says so by [`Sound::forget`]. The kernel
/// may read ahead, and other processes may read, without anybody hearing of it; hence the bound in time.
#[derive(Debug, Default)]
pub(super) struct Sound {
    blobs: Mutex<HashMap<Digest, (Identity, Instant)>>,
}

impl Sound {
    fn blobs(&self) -> MutexGuard<'_, HashMap<Digest, (Identity, Instant)>> {
        // One entry more or less is all that a panic can leave behind.
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This file has the bytes of this name. The identity is from before they were read.
    pub(super) fn remember(&self, digest: Digest, identity: Identity) {
        self.remember_at(digest, identity, Instant::now());
    }

    fn remember_at(&self, digest: Digest, identity: Identity, now: Instant) {
        let mut blobs = self.blobs();
        if blobs.len() >= REMEMBERED_MAX && !blobs.contains_key(&digest) {
            let oldest = blobs.iter().min_by_key(|(_, (_, at))| *at).map(|(digest, _)| *digest);
            oldest.and_then(|oldest| blobs.remove(&oldest));
        }
        blobs.insert(digest, (identity, now));
    }

    /// Some of it is read from the disk again, which may give something else.
    pub(super) fn forget(&self, digest: &Digest) {
        self.blobs().remove(digest);
    }

    /// Whether this very file was found sound lately.
    pub(super) fn knows(&self, digest: &Digest, identity: Identity) -> bool {
        self.knows_at(digest, identity, Instant::now())
    }

    fn knows_at(&self, digest: &Digest, identity: Identity, now: Instant) -> bool {
        let blobs = self.blobs();
        let Some((found, at)) = blobs.get(digest) else { return false };
        *found == identity && now.saturating_duration_since(*at) < BELIEVED
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn another_file_a_changed_one_and_an_old_finding_are_not_believed() {
        let (mut file, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (sound, digest, now) = (Sound::default(), Digest::of(b""), Instant::now());
        let identity = Identity::of(&file).unwrap();
        assert!(!sound.knows_at(&digest, identity, now));
        sound.remember_at(digest, identity, now);
        assert!(sound.knows_at(&digest, Identity::of(&file).unwrap(), now));
        assert!(!sound.knows_at(&digest, Identity::of(&other).unwrap(), now));
        assert!(!sound.knows_at(&digest, identity, now + BELIEVED));
        file.write_all(b"x").unwrap();
        assert!(!sound.knows_at(&digest, Identity::of(&file).unwrap(), now));
        sound.forget(&digest);
        assert!(!sound.knows_at(&digest, identity, now));
    }

    #[test]
    fn memory_is_bounded() {
        let identity = Identity::of(&tempfile::tempfile().unwrap()).unwrap();
        let (sound, now) = (Sound::default(), Instant::now());
        let digest = |n: usize| Digest::of(&n.to_le_bytes());
        for n in 0..REMEMBERED_MAX + 10 {
            sound.remember_at(digest(n), identity, now + Duration::from_nanos(n as u64));
        }
        assert_eq!(sound.blobs().len(), REMEMBERED_MAX);
        assert!(!sound.knows_at(&digest(9), identity, now) && sound.knows_at(&digest(10), identity, now));
    }
}
