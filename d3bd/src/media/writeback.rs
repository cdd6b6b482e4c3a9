//! Bringing a file to the disk while more of it comes, so that little is left to wait for at its end.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::thread::JoinHandle;

/// After so many bytes what is there is synced. Each time the file system's journal is written too: more often would cost
/// more than it saves, and files that are smaller do not pay for it at all.
const PART: u64 = 32 << 20;

/// Syncs a growing file beside whoever writes it. That makes nothing durable that anybody relies on: whoever has written
/// everything syncs the file too, and its directory. But a sync that has failed may only be told once: it must not be
/// passed over by going on with the file.
#[derive(Debug)]
pub(super) struct Writeback {
    path: PathBuf,
    /// Bytes that came after the last sync began.
    fresh: u64,
    under_way: Option<JoinHandle<io::Result<()>>>,
}

impl Writeback {
    /// For a file that is being written.
    pub(super) fn of(path: PathBuf) -> Writeback {
        Writeback { path, fresh: 0, under_way: None }
    }

    /// So many bytes were written.
    ///
    /// # Errors
    /// An earlier sync has failed; the file is worth nothing then.
    pub(super) fn written(&mut self, bytes: u64) -> io::Result<()> {
        self.fresh += bytes;
        if self.fresh < PART || self.under_way.as_ref().is_some_and(|sync| !sync.is_finished()) {
            return Ok(());
        }
        self.settle()?;
        self.fresh = 0;
        // Opened anew, so that the writer's own sync at the end is told of a failure once more.
        let file = File::open(&self.path)?;
        let thread = std::thread::Builder::new().name("d3bd-writeback".to_owned());
        self.under_way = Some(thread.spawn(move || file.sync_data())?);
        Ok(())
    }

    /// Waits until nothing is under way any more.
    ///
    /// # Errors
    /// A sync has failed; the file is worth nothing then.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        let Some(sync) = self.under_way.take() else { return Ok(()) };
        sync.join().unwrap_or_else(|_| Err(io::Error::other("the thread that synced a file has panicked")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_failed_is_told_to_whoever_goes_on_or_ends() {
        let failing = || {
            let sync = std::thread::spawn(|| Err(io::Error::other("the disk")));
            while !sync.is_finished() {
                std::thread::yield_now();
            }
            Writeback { path: PathBuf::new(), fresh: 0, under_way: Some(sync) }
        };
        assert_eq!(failing().written(PART).unwrap_err().to_string(), "the disk");
        assert_eq!(failing().settle().unwrap_err().to_string(), "the disk");
    }

    #[test]
    fn only_large_files_are_synced_before_their_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writeback = Writeback::of(file.path().to_owned());
        writeback.written(PART - 1).unwrap();
        assert!(writeback.under_way.is_none());
        writeback.written(1).unwrap();
        assert!(writeback.under_way.is_some());
        writeback.settle().unwrap();
    }
}
