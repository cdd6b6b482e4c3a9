//! The one engine of a replica: what is open, what is durable, what comes next.

use std::path::Path;

use d3b::{DatabaseId, Digest, Slot};

use crate::fingerprint::Fingerprint;
use crate::reader::Readers;
use crate::{Blobs, Fatal, LogEntry, Options, Progress};

/// The replicated state machine of one replica, in one directory.
#[derive(Debug)]
pub struct Engine {
    applied: Slot,
    durable: Slot,
    readers: Readers,
}

impl Engine {
    /// Opens the databases in a directory, which may be new; the catalogue is made where it is missing.
    ///
    /// # Errors
    /// The catalogue cannot be opened or made.
    pub fn open(_directory: &Path, _options: Options) -> Result<Engine, Fatal> {
        Ok(Engine { applied: Slot::ZERO, durable: Slot::ZERO, readers: Readers })
    }

    /// Everything up to here is durable in every database: entries are to be handed in from the next slot on.
    #[must_use]
    pub fn resume_after(&self) -> Slot {
        self.durable
    }

    /// The last slot that was applied.
    #[must_use]
    pub fn applied(&self) -> Slot {
        self.applied
    }

    /// Applies entries in order.
    ///
    /// # Errors
    /// The replica must stop.
    pub fn apply(&mut self, entries: &[LogEntry<'_>], _blobs: &dyn Blobs) -> Result<Progress, Fatal> {
        self.applied = entries.last().map_or(self.applied, |entry| entry.slot);
        Ok(Progress { applied: Vec::new(), needs_blob: None })
    }

    /// Makes what was applied durable, and moves the mark of [`Engine::resume_after`].
    ///
    /// # Errors
    /// The replica must stop.
    pub fn checkpoint(&mut self) -> Result<Slot, Fatal> {
        self.durable = self.applied;
        Ok(self.durable)
    }

    /// The chain of every database that was touched since the last call, with the slot after which it stands.
    #[must_use]
    pub fn fingerprints(&self) -> Vec<(DatabaseId, Slot, Fingerprint)> {
        Vec::new()
    }

    /// Where reads are served from.
    #[must_use]
    pub fn readers(&self) -> Readers {
        self.readers.clone()
    }

    /// Shows every blob that a media row of a live database names.
    ///
    /// # Errors
    /// The replica must stop.
    pub fn referenced_blobs(&self, _visit: &mut dyn FnMut(Digest)) -> Result<(), Fatal> {
        Ok(())
    }
}
