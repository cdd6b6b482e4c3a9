//! How much room the disk has left.
//!
//! A log that meets a full disk in the middle of a write has to stop its replica. So what can be refused is refused
//! while there is still room for the log to go on: files first, commands later, and deletions, which make room, last.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The least and the most that is kept free of files; between them a twentieth of the disk.
const RESERVE: (u64, u64) = (8 << 20, 128 << 20);
/// Deletions need this much.
const DELETION: u64 = 1 << 20;
/// A command is written to the log and to its database, and in both to a write-ahead log first.
const COPIES: u64 = 4;
/// How old what the file system said may be when commands are let in by it.
const RECENT: Duration = Duration::from_millis(10);

/// Makes what happened to the names in a directory durable.
///
/// # Errors
/// Whatever the disk says.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

/// Removes a file durably, if it is there.
///
/// # Errors
/// Whatever the disk says.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// What the file system of a directory has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    available: u64,
    total: u64,
}

impl Room {
    /// Asks the file system of a directory; the kernel knows it, so that no disk is waited for.
    ///
    /// # Errors
    /// The directory is gone.
    pub(crate) fn of(directory: &Path) -> io::Result<Room> {
        let found = rustix::fs::statvfs(directory)?;
        Ok(Room {
            available: found.f_bavail.saturating_mul(found.f_frsize),
            total: found.f_blocks.saturating_mul(found.f_frsize),
        })
    }

    fn reserve(self) -> u64 {
        (self.total / 20).clamp(RESERVE.0, RESERVE.1)
    }

    /// # Errors
    /// `StorageFull` if so many bytes of a file would leave too little for everything else.
    pub(crate) fn for_file(self, bytes: u64) -> io::Result<()> {
        self.check(bytes.saturating_add(self.reserve()))
    }

    /// Whether a file of so many bytes, beside others like it, matters little: also where the disk is filled until nothing
    /// is let in any more.
    pub(crate) fn is_ample_for(self, bytes: u64) -> bool {
        self.reserve() / 2 >= bytes && self.for_file(bytes.saturating_mul(8)).is_ok()
    }

    /// # Errors
    /// `StorageFull` if a command of so many bytes should not be proposed.
    pub(crate) fn for_command(self, bytes: u64) -> io::Result<()> {
        self.check(bytes.saturating_mul(COPIES).saturating_add(self.reserve() / 2))
    }

    /// # Errors
    /// `StorageFull` if there is not even room to delete something.
    pub(crate) fn for_deletion(self) -> io::Result<()> {
        self.check(DELETION)
    }

    fn check(self, wanted: u64) -> io::Result<()> {
        // Some file systems do not count: then only a failed write tells.
        if self.total > 0 && self.available < wanted { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

/// Lets commands in by what the file system said a moment ago, less what was let in since: asking it for each of many
/// small commands costs more than looking at them.
#[derive(Debug)]
pub(crate) struct RecentRoom {
    directory: PathBuf,
    last: Mutex<Option<(Instant, Room)>>,
}

impl RecentRoom {
    pub(crate) fn new(directory: &Path) -> RecentRoom {
        RecentRoom { directory: directory.to_owned(), last: Mutex::new(None) }
    }

    /// # Errors
    /// As [`Room::for_command`]; or the directory is gone.
    pub(crate) fn for_command(&self, bytes: u64) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = match *last {
            Some((asked, room)) if asked.elapsed() < RECENT && room.for_command(bytes).is_ok() => room,
            Some(_) | None => {
                let room = Room::of(&self.directory)?;
                *last = Some((Instant::now(), room));
                room
            }
        };
        room.for_command(bytes)?;
        room.available = room.available.saturating_sub(bytes.saturating_mul(COPIES));
        if let Some((_, known)) = &mut *last {
            *known = room;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_refused_before_commands_and_commands_before_deletions() {
        let left = |available: u64| Room { available, total: 40 << 20 };
        let allowed = |room: Room| {
            [room.for_file(1 << 20).is_ok(), room.for_command(1 << 10).is_ok(), room.for_deletion().is_ok()]
        };
        assert_eq!(allowed(left(20 << 20)), [true, true, true]);
        assert_eq!(allowed(left(8 << 20)), [false, true, true]);
        assert_eq!(allowed(left(3 << 20)), [false, false, true]);
        assert_eq!(allowed(left(1 << 19)), [false, false, false]);
        assert_eq!(allowed(Room { available: 0, total: 0 }), [true, true, true], "who does not count is not asked");
    }

    #[test]
    fn commands_are_let_in_by_what_was_known_a_moment_ago_less_what_was_let_in_since() {
        let directory = tempfile::tempdir().unwrap();
        let recent = RecentRoom::new(directory.path());
        recent.for_command(1 << 10).unwrap();
        let soon = Instant::now() + Duration::from_secs(3600);
        let known = Room { available: 30 << 20, total: 40 << 20 };
        *recent.last.lock().unwrap() = Some((soon, known));
        recent.for_command(1 << 20).unwrap();
        let (_, left) = recent.last.lock().unwrap().unwrap();
        assert_eq!(left, Room { available: 26 << 20, ..known });
        // What would be refused by it is asked about anew: there may be more room by now.
        *recent.last.lock().unwrap() = Some((soon, Room { available: 1 << 20, ..known }));
        recent.for_command(1 << 10).unwrap();
        let (_, left) = recent.last.lock().unwrap().unwrap();
        assert!(left.available > 1 << 20);
    }

    #[test]
    fn a_disk_that_is_not_full_has_room() {
        let directory = tempfile::tempdir().unwrap();
        let room = Room::of(directory.path()).unwrap();
        assert!(room.total >= room.available && room.for_deletion().is_ok());
    }
}
