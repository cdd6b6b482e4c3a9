//! One replica: dispatches what happens to the role that it plays.

use d3b::{ReplicaId, Slot};

use crate::interface::{Input, Ready, Restored, Role, Settings, Status, Storage, StorageError};
use crate::types::{Ballot, Configuration, Now, Record, Ticks};

/// One replica of the group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Replica<S> {
    settings: Settings,
    restored: Restored,
    storage: S,
    now: Now,
}

impl<S: Storage> Replica<S> {
    /// A replica that has just started.
    #[must_use]
    pub fn new(settings: Settings, restored: Restored, storage: S, now: Now) -> Replica<S> {
        Replica { settings, restored, storage, now }
    }

    /// Breaks a rule of the protocol from here on, to see that a test finds it.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, _planted: crate::planted::Planted) {}

    /// The batch that is handed out and not yet reported durable.
    #[must_use]
    pub fn outstanding(&self) -> Option<crate::types::PersistId> {
        None
    }

    /// Takes what happened.
    ///
    /// # Errors
    /// The log cannot be read: the replica must stop.
    pub fn step(&mut self, now: Now, _input: Input) -> Result<(), StorageError> {
        self.now = now;
        Ok(())
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// The log cannot be read: the replica must stop.
    pub fn tick(&mut self, now: Now) -> Result<(), StorageError> {
        self.now = now;
        Ok(())
    }

    /// When [`Replica::tick`] is due next, if nothing happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Ticks> {
        None
    }

    /// What is to be done now. Call it after each burst of steps.
    ///
    /// # Errors
    /// The log cannot be read: the replica must stop.
    pub fn ready(&mut self) -> Result<Ready, StorageError> {
        Ok(Ready::default())
    }

    /// Who leads, as far as known.
    #[must_use]
    pub fn leader(&self) -> Option<ReplicaId> {
        None
    }

    /// The highest ballot that it has promised.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.restored.promised
    }

    /// Who votes.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.restored.configuration
    }

    /// The settings that it runs with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A snapshot of its state for people.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            role: Role::Follower,
            leader: None,
            promised: self.restored.promised,
            commit: self.restored.applied,
            applied: self.restored.applied,
            last: self.restored.last,
            base: self.restored.base,
            barrier_chosen: false,
            peers: std::collections::BTreeMap::new(),
            transferring: false,
            votes: true,
            dropped: 0,
        }
    }

    /// The record of a slot, be it durable already or not; `None` if the log holds none.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn record(&self, slot: Slot) -> Result<Option<Record>, StorageError> {
        Ok(self.storage.read(slot, slot, 0)?.into_iter().next())
    }

    /// The storage that it reads from.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The storage that it reads from, for a test that plays the disk.
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }
}
