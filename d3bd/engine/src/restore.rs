//! What a backup brings into an empty cluster: a list of files, itself a blob, that one operation names.

use d3b::{BlobReference, DatabaseId, DatabaseName, Slot};
use serde::{Deserialize, Serialize};

/// The version of the encoding, its first byte.
const VERSION: u8 = 1;
/// No list is larger: so many bytes name more than a million files.
pub const BYTES_MAX: u64 = 256 << 20;

/// The files of a backup that stands at one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreManifest {
    /// The cluster that it was taken of, for people.
    pub cluster: String,
    /// The slot of that cluster's log at which all of it stands, for people.
    pub slot: Slot,
    /// Its catalogue: users, databases, keys.
    pub catalogue: BlobReference,
    /// Every database that its catalogue names.
    pub databases: Vec<RestoredDatabase>,
    /// Every media file that a database names.
    pub media: Vec<BlobReference>,
}

/// One database of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredDatabase {
    /// The id that it had.
    pub id: DatabaseId,
    /// Its name.
    pub name: DatabaseName,
    /// Its file, d3b's own tables included.
    pub file: BlobReference,
}

/// Why bytes are not such a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreManifestError {
    /// Another build's encoding.
    #[error("the list of a backup's files has version {0}, and this build knows version {VERSION}")]
    Version(u8),
    /// They do not parse.
    #[error("the list of a backup's files does not parse")]
    Malformed,
}

impl RestoreManifest {
    /// The bytes that its blob has.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("plain data can be written")
    }

    /// Reads what [`RestoreManifest::encode`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub fn decode(bytes: &[u8]) -> Result<RestoreManifest, RestoreManifestError> {
        match bytes.split_first() {
            Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
                Ok((manifest, [])) => Ok(manifest),
                Ok(_) | Err(_) => Err(RestoreManifestError::Malformed),
            },
            Some((version, _)) => Err(RestoreManifestError::Version(*version)),
            None => Err(RestoreManifestError::Malformed),
        }
    }

    /// The files without which it cannot be restored: the catalogue, then the databases.
    pub fn files(&self) -> impl Iterator<Item = BlobReference> + '_ {
        std::iter::once(self.catalogue).chain(self.databases.iter().map(|database| database.file))
    }
}
