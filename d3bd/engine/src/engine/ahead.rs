//! What is done ahead of a checkpoint, on another thread.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use d3b::Slot;

use super::{Fatal, sqlite_failed};
use crate::databases::{self, Dirty};

#[derive(Debug, Default)]
struct State {
    running: u32,
    failed: Option<Fatal>,
}

/// The work that is under way, and whether any has failed. A checkpoint that did not hear of a failure might sync the same
/// file once more, and be told that all is well.
#[derive(Debug, Default, Clone)]
pub(super) struct Ahead {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Ahead {
    /// Work on these files. It counts as under way until it was done or dropped.
    pub(super) fn work(&self, slot: Slot, dirty: Vec<Dirty>) -> impl FnOnce() + Send + use<> {
        self.change(|state| state.running += 1);
        let running = Running { ahead: self.clone() };
        move || {
            let done = dirty.into_iter().try_for_each(|dirty| sync(slot, dirty));
            if let Err(fatal) = done {
                running.ahead.change(|state| state.failed = Some(fatal));
            }
            drop(running);
        }
    }

    /// Whether nothing is under way.
    pub(super) fn is_over(&self) -> bool {
        self.change(|state| state.running == 0)
    }

    /// Waits for the end of what is under way.
    ///
    /// # Errors
    /// Some of it has failed.
    pub(super) fn wait(&self) -> Result<(), Fatal> {
        let (state, ended) = &*self.shared;
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = ended.wait_while(state, |state| state.running > 0).unwrap_or_else(PoisonError::into_inner);
        state.failed.take().map_or(Ok(()), Err)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Does beforehand what makes a checkpoint take long: syncs a database's write-ahead log and folds it. What the writer adds
/// meanwhile is left to the checkpoint. A sync that fails must not be passed over: the next one may succeed without the bytes.
fn sync(slot: Slot, Dirty { id, path, is_open }: Dirty) -> Result<(), Fatal> {
    if let Err(source) = databases::sync_log(&path) {
        return Err(Fatal::Io { slot, path, source });
    }
    databases::fold_beside(&path, is_open).map_err(|error| sqlite_failed(error, slot, id))
}

struct Running {
    ahead: Ahead,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ahead.change(|state| state.running -= 1);
        self.ahead.shared.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a failed sync has lost, the next one does not miss.
    #[test]
    fn a_checkpoint_hears_of_what_failed_ahead_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        // Where the write-ahead log should be is something that cannot be synced as a file.
        std::os::unix::fs::symlink("db-wal", directory.path().join("db-wal")).unwrap();
        let ahead = Ahead::default();
        let work = ahead.work(Slot(7), vec![Dirty { id: d3b::DatabaseId::catalogue(), path, is_open: false }]);
        assert!(!ahead.is_over());
        let waits = ahead.clone();
        let waiting = std::thread::spawn(move || waits.wait());
        work();
        assert!(matches!(waiting.join().unwrap(), Err(Fatal::Io { slot: Slot(7), .. })));
        assert!(ahead.is_over());
    }

    #[test]
    fn work_that_nobody_does_holds_nobody_up() {
        let ahead = Ahead::default();
        drop(ahead.work(Slot(7), Vec::new()));
        ahead.wait().unwrap();
    }
}
