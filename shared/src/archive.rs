//! A backup as one file: a tar stream, compressed with zstd.
//!
//! ```text
//! d3b-backup.json             what is in it: the header, first
//! databases/<id>.sqlite3      page copies, the catalogue's first, each at a slot of its own
//! blobs/<sha256>              media, and the files of databases that the log uploads
//! log/<first>-<last>          records of the log, which bring all copies to one slot
//! d3b-backup.end.json         a SHA-256 over everything before: what was cut off has none
//! ```
//!
//! Everything stands in the order that the header tells, so that a reader needs to look nowhere twice. Sizes and digests
//! of files are in the header; what the end has is over the name, the length and the content of every entry, the header
//! included.

mod read;
#[cfg(test)]
mod tests;
mod write;

use serde::{Deserialize, Serialize};

use crate::{BlobReference, Digest, Hasher};

pub use read::{ArchiveError, Part, Visitor, read, verify};
pub use write::ArchiveWriter;

/// The version of the format.
pub const FORMAT: u32 = 1;
/// What an archive is as the body of a request or an answer.
pub const MEDIA_TYPE: &str = "application/vnd.d3b.backup";

const HEADER: &str = "d3b-backup.json";
const END: &str = "d3b-backup.end.json";
/// No header is larger: so many bytes name more than a million files.
const HEADER_BYTES_MAX: u64 = 256 << 20;
/// No stretch of the log is larger: it holds one record, or less than a few MiB.
pub const LOG_BYTES_MAX: u64 = 64 << 20;

/// What an archive holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format.
    pub format: u32,
    /// The version of d3b that wrote it, for people.
    pub d3b: String,
    /// The version of the SQL semantics that its log is applied with.
    pub execution: u32,
    /// The cluster that it was taken of.
    pub cluster: String,
    /// When it was taken, by the clock of the replica that took it (RFC 3339).
    pub time: String,
    /// The slot at which everything stands once the log is applied.
    pub slot: u64,
    /// The log time of that slot, in milliseconds since 1970.
    pub time_ms: u64,
    /// Every file of a database is at this slot or a later one: the log is applied from the next one on.
    pub from: u64,
    /// The members of the cluster, for people.
    pub members: Vec<Member>,
    /// The catalogue, then all databases that it names.
    pub databases: Vec<Database>,
    /// Media, and the files of databases that the log uploads.
    pub blobs: Vec<File>,
    /// Which records are in it.
    pub log: LogRange,
}

/// A member of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: u32,
    /// Its address for peers.
    pub peer: String,
    /// Its role.
    pub role: String,
}

/// A database in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The last slot that its file has applied.
    pub slot: u64,
    /// The chain after that slot.
    pub fingerprint: String,
    /// Its file.
    #[serde(flatten)]
    pub file: File,
}

/// A file in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its SHA-256.
    pub sha256: Digest,
    /// In bytes.
    pub size: u64,
}

impl From<BlobReference> for File {
    fn from(blob: BlobReference) -> File {
        File { sha256: blob.digest, size: blob.size }
    }
}

impl From<File> for BlobReference {
    fn from(file: File) -> BlobReference {
        BlobReference { digest: file.sha256, size: file.size }
    }
}

/// A stretch of the log; empty where `last` is below `first`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRange {
    /// The first slot.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

impl Header {
    /// The lowest slot that everything in it can be brought to: that of the file that is furthest on.
    #[must_use]
    pub fn slot_min(&self) -> u64 {
        self.databases.iter().map(|database| database.slot).max().unwrap_or(self.from).max(self.from)
    }

    /// The bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let files = self.databases.iter().map(|database| database.file).chain(self.blobs.iter().copied());
        files.map(|file| file.size).sum()
    }
}

/// What stands at the end.
#[derive(Debug, Serialize, Deserialize)]
struct End {
    sha256: Digest,
    entries: u64,
}

/// Digests entries.
#[derive(Debug, Default)]
struct Sum {
    hasher: Hasher,
    entries: u64,
}

impl Sum {
    fn begin(&mut self, name: &str, length: u64) {
        self.entries += 1;
        self.hasher.update(name.as_bytes());
        self.hasher.update(&[0]);
        self.hasher.update(&length.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    fn end(self) -> End {
        End { entries: self.entries, sha256: self.hasher.finish() }
    }
}

fn database_name(id: &str) -> String {
    format!("databases/{id}.sqlite3")
}

fn blob_name(file: &File) -> String {
    format!("blobs/{}", file.sha256)
}

fn log_name(first: u64, last: u64) -> String {
    format!("log/{first}-{last}")
}
