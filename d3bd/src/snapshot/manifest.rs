//! What a snapshot consists of.

use std::collections::BTreeSet;
use std::io::Read as _;

use d3b::{BlobReference, DatabaseId, DatabaseName, Slot};
use d3b_paxos::types::{Configuration, Record};
use serde::{Deserialize, Serialize};

use crate::log::Beginning;
use crate::media::BlobStore;

/// The version of the encoding, its first byte.
const VERSION: u8 = 1;
/// No manifest is larger: so many bytes name more than a hundred thousand databases.
const BYTES_MAX: u64 = 64 << 20;

/// A snapshot: where it stands in the log, and its files.
///
/// Invariants, checked when it is decoded: the record is that of the slot; the configuration is not newer; the catalogue
/// is among the databases, and none is there twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Everything up to here is in the files, and the log goes on behind it.
    pub slot: Slot,
    /// The log's record at that slot, which its receiver's log begins with.
    pub record: Record,
    /// The configuration in effect at that slot.
    pub configuration: Configuration,
    /// Every database that was not dropped by then, the catalogue first.
    pub databases: Vec<ManifestDatabase>,
}

/// One database of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestDatabase {
    /// Its id.
    pub id: DatabaseId,
    /// Its name, for people.
    pub name: DatabaseName,
    /// The last slot that it has applied: the snapshot's or an earlier one if nothing concerned it since, or a later one.
    pub slot: Slot,
    /// The chain after that slot.
    pub fingerprint: [u8; 16],
    /// Its file.
    pub file: BlobReference,
}

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// There are none here.
    #[error("it cannot be read: {0}")]
    Unread(String),
    /// There are too many.
    #[error("it has {0} bytes, and no manifest has more than {BYTES_MAX}")]
    TooLarge(u64),
    /// Another version of d3b wrote it.
    #[error("it has version {0}, and this build knows version {VERSION}")]
    Version(u8),
    /// They do not parse.
    #[error("it does not parse")]
    Malformed,
    /// What they say contradicts itself.
    #[error("it contradicts itself: {0}")]
    Inconsistent(&'static str),
}

impl Manifest {
    /// The bytes that its blob has.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("plain data can be written")
    }

    /// Reads bytes that may come from anywhere.
    ///
    /// # Errors
    /// They are no manifest of this version.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        if bytes.len() as u64 > BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len() as u64));
        }
        let manifest = match bytes.split_first() {
            Some((&VERSION, body)) => match postcard::take_from_bytes::<Manifest>(body) {
                Ok((manifest, [])) => manifest,
                Ok(_) | Err(_) => return Err(ManifestError::Malformed),
            },
            Some((version, _)) => return Err(ManifestError::Version(*version)),
            None => return Err(ManifestError::Malformed),
        };
        manifest.check().map_err(ManifestError::Inconsistent)?;
        Ok(manifest)
    }

    /// Whether a blob can be a manifest by its size: nobody fetches one that cannot.
    ///
    /// # Errors
    /// It is too large.
    pub fn check_size(reference: &BlobReference) -> Result<(), ManifestError> {
        if reference.size > BYTES_MAX { Err(ManifestError::TooLarge(reference.size)) } else { Ok(()) }
    }

    /// Reads a manifest that is in the blob store.
    ///
    /// # Errors
    /// It is not there, or no manifest.
    pub fn load(blobs: &BlobStore, reference: &BlobReference) -> Result<Manifest, ManifestError> {
        Manifest::check_size(reference)?;
        let file = blobs.open_file(&reference.digest).map_err(|error| ManifestError::Unread(error.to_string()))?;
        let mut bytes = Vec::new();
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| ManifestError::Unread(error.to_string()))?;
        Manifest::decode(&bytes)
    }

    fn check(&self) -> Result<(), &'static str> {
        let slots = [self.slot, self.record.slot, self.configuration.slot];
        let slots = slots.into_iter().chain(self.databases.iter().map(|database| database.slot));
        let ids: BTreeSet<DatabaseId> = self.databases.iter().map(|database| database.id).collect();
        match () {
            () if self.slot == Slot::ZERO || self.record.slot != self.slot => Err("its record is that of another slot"),
            // SQLite's integers end there.
            () if slots.into_iter().any(|slot| i64::try_from(slot.0).is_err()) => Err("a slot is out of range"),
            () if !self.configuration.is_sane() => Err("no cluster has its configuration"),
            () if !ids.contains(&DatabaseId::catalogue()) => Err("the catalogue is not among its databases"),
            () if ids.len() != self.databases.len() => Err("it names a database twice"),
            () => Ok(()),
        }
    }

    /// Where a log begins that goes on behind it.
    #[must_use]
    pub fn beginning(&self) -> Beginning {
        let ahead = self.databases.iter().map(|database| database.slot).max().unwrap_or(self.slot);
        Beginning { record: self.record.clone(), configuration: self.configuration.clone(), ahead }
    }
}
