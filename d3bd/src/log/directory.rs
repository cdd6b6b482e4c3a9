//! The data directory: ours or not, and locked while the process lives.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::LogError;

/// A data directory that no other process can have.
#[derive(Debug)]
pub(super) struct Directory {
    /// Closing it lets go of the lock, also when the process is killed.
    _lock: File,
    fresh: bool,
}

impl Directory {
    /// Locks a directory that is empty or ours.
    pub(super) fn open(path: &Path) -> Result<Directory, LogError> {
        let failed = |doing| {
            move |error: std::io::Error| LogError::Io { path: path.to_owned(), doing, message: error.to_string() }
        };
        std::fs::create_dir_all(path).map_err(failed("making it"))?;
        let holds_log = || path.join(super::store::FILE).exists();
        if !holds_log() {
            refuse_foreign(path)?;
        }
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("lock"))
            .map_err(failed("opening its lock"))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let known = lock.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
            let holder = if known { format!("process {}", pid.trim()) } else { "another process".to_owned() };
            return Err(LogError::Locked { path: path.to_owned(), holder });
        }
        // For people who wonder; the lock itself is the kernel's.
        lock.set_len(0).map_err(failed("writing its lock"))?;
        write!(lock, "{}", std::process::id()).map_err(failed("writing its lock"))?;
        // Looked at only now: before it was locked, another process may have made a log here, and left again.
        Ok(Directory { _lock: lock, fresh: !holds_log() })
    }

    /// Whether it holds no log yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }
}

/// A directory without a log may hold what a start that was cut short left behind, and nothing else.
fn refuse_foreign(path: &Path) -> Result<(), LogError> {
    const OURS: &[&str] = &["lock", "databases", "blobs", "lost+found"];
    let failed =
        |error: std::io::Error| LogError::Io { path: path.to_owned(), doing: "listing it", message: error.to_string() };
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        let temporary = name.starts_with(super::store::TEMPORARY);
        if !OURS.contains(&name.as_str()) && !temporary {
            return Err(LogError::NotOurs { path: path.to_owned(), entry: name });
        }
    }
    Ok(())
}
