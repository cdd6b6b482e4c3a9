//! The JSON bodies of the versioned HTTP API, as both sides of it read and write them.
//!
//! Rows are not here: they are written straight from SQLite's values by [`crate::json`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// `GET /v1/db`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseList {
    /// In order of their names.
    pub databases: Vec<DatabaseInfo>,
}

/// One database, as `GET /v1/db/{db}` and the list show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseInfo {
    /// The user-chosen name.
    pub name: String,
    /// The hashed id: 64 hexadecimal digits.
    pub id: String,
    /// Any text.
    pub owner: String,
    /// Size of the database file in bytes, as this replica has it.
    pub size: u64,
    /// The last slot that concerned it on this replica.
    pub slot: u64,
    /// When it was created: log time, RFC 3339.
    pub created: String,
    /// The chain of its effects so far, in hexadecimal.
    pub fingerprint: String,
    /// How many media files it has.
    pub media: u64,
}

/// `PUT /v1/db/{db}/file` and `DELETE /v1/db/{db}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseChange {
    /// The user-chosen name.
    pub name: String,
    /// The hashed id.
    pub id: String,
    /// Whether an older database of that name was replaced or dropped.
    pub replaced: bool,
    /// The slot of the change.
    pub slot: u64,
}

/// `GET /v1/db/{db}/schema`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schema {
    /// Tables, indexes, views and triggers, in the order of their creation; d3b's own tables are left out.
    pub objects: Vec<SchemaObject>,
}

/// One row of `sqlite_schema`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SchemaObject {
    /// `table`, `index`, `view` or `trigger`.
    pub r#type: String,
    /// Its name.
    pub name: String,
    /// The table that it belongs to.
    pub table: String,
    /// The text that makes it; `None` for automatic indexes.
    pub sql: Option<String>,
}

/// One media file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MediaInfo {
    /// Its id.
    pub file_id: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Media type.
    pub r#type: String,
    /// The slot that stored it.
    pub slot: u64,
}

/// `GET /v1/db/{db}/media`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MediaList {
    /// In order of their ids.
    pub media: Vec<MediaInfo>,
    /// The id to give as `after` for the next page, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `GET /v1/db/{db}/requests/{key}`: what came of an idempotency key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestOutcome {
    /// The key.
    pub key: String,
    /// The slot at which it was executed.
    pub slot: u64,
    /// When: log time, RFC 3339.
    pub time: String,
    /// `ok` or the code of the refusal.
    pub outcome: String,
    /// The stored answer, in the form in which the request itself would have answered: results, or a problem.
    pub answer: serde_json::Value,
}

/// `GET /v1/log?from=&limit=&db=`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogPage {
    /// In order of slots.
    pub entries: Vec<LogEntry>,
    /// The first slot that the log still holds.
    pub base: u64,
    /// The last slot that is known to be chosen.
    pub commit: u64,
}

/// One slot of the Paxos log, as this replica has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The slot.
    pub slot: u64,
    /// The ballot at which this replica accepted it: `round.replica`.
    pub ballot: String,
    /// `accepted`, `chosen` or `applied`.
    pub state: String,
    /// `noop`, `configuration`, `sql` or `catalogue`.
    pub kind: String,
    /// The database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db: Option<String>,
    /// The statements' texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sql: Vec<String>,
    /// What it does besides SQL, in words (`upload cat.jpg, 48213 bytes, sha256 9f86...`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
    /// Log time, RFC 3339 with milliseconds.
    pub time: String,
    /// The idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `ok` or the code of the refusal, once it is applied and as long as its key is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// The database's chain after this entry, once it is applied and as long as its key is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// `GET /v1/cluster`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// The cluster's id; empty while it is being formed.
    pub cluster: String,
    /// The replica that answers.
    pub replica: u32,
    /// The leader that it knows of.
    pub leader: Option<u32>,
    /// The highest ballot that it has promised.
    pub ballot: String,
    /// The configuration's epoch.
    pub epoch: u64,
    /// The lowest id that no member ever had.
    #[serde(default)]
    pub next_id: u32,
    /// The answering replica's disk.
    #[serde(default)]
    pub disk: String,
    /// The version of the SQL semantics that entries are stamped with.
    #[serde(default)]
    pub execution: u32,
    /// The snapshot that the answering replica waits for.
    #[serde(default)]
    pub catching_up: Option<CatchingUp>,
    /// The last slot that it knows to be chosen.
    pub commit: u64,
    /// The last slot that it has applied.
    pub applied: u64,
    /// `forming`, `follower`, `candidate`, `leader` or `outcast`.
    pub state: String,
    /// Every member.
    pub replicas: Vec<ReplicaInfo>,
    /// Databases whose fingerprints differ between replicas; empty when all is well.
    #[serde(default)]
    pub divergent: Vec<Divergence>,
    /// Databases that the answering replica does not serve, because its files of them are damaged; empty when all is well.
    #[serde(default)]
    pub damaged: Vec<DamagedDatabase>,
}

/// A database that one replica does not serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedDatabase {
    /// Its hashed id.
    pub id: String,
    /// How the damage shows.
    pub problem: String,
}

/// One member, as the answering replica sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaInfo {
    /// Its id.
    pub id: u32,
    /// Its HTTP address, learned when it connected.
    pub http: Option<String>,
    /// Its peer address.
    pub peer: String,
    /// `voter`, or `learner` until it has caught up.
    pub role: String,
    /// The member whose place it is to take.
    #[serde(default)]
    pub replaces: Option<u32>,
    /// How many files it has yet to fetch, as far as it has said.
    #[serde(default)]
    pub files_missing: Option<u64>,
    /// The last slot that it said to have applied.
    pub applied: Option<u64>,
    /// How many chosen slots it has yet to apply.
    pub lag: Option<u64>,
    /// Whether it was heard from within the last few heartbeats.
    pub reachable: bool,
}

/// A snapshot on its way to a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatchingUp {
    /// The replica that gives it.
    pub from: u32,
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes in all; 0 while it is being taken.
    pub of: u64,
}

/// The rest of a sentence that begins with who catches up.
impl fmt::Display for CatchingUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CatchingUp { from, bytes, of } = self;
        match of {
            0 => write!(f, "waits for a snapshot from replica {from}"),
            _ => write!(f, "fetches a snapshot: {} of {} from replica {from}", Size(*bytes), Size(*of)),
        }
    }
}

/// A number of bytes as people read it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(bits, _)| self.0 >> bits > 0) {
            Some((bits, unit)) => write!(f, "{:.1} {unit}", self.0 as f64 / (1_u64 << bits) as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// `POST /v1/cluster/replicas`: a replica that was started on a fresh disk, and what it tells of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddReplica {
    /// Its id, which nobody had before.
    pub id: u32,
    /// Its disk, as `GET /v1/cluster` tells it there.
    pub disk: String,
    /// Its peer address.
    pub peer: String,
    /// The member whose place it is to take.
    #[serde(default)]
    pub replaces: Option<u32>,
}

/// `POST /v1/cluster/transfer`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// Who is to lead; whoever is best placed if absent.
    #[serde(default)]
    pub to: Option<u32>,
}

/// The members were changed, or another one leads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MembersChanged {
    /// The slot of the configuration that governs now.
    pub slot: u64,
    /// The cluster as it is now.
    pub cluster: ClusterInfo,
}

/// Two replicas that should hold the same and do not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The database's hashed id.
    pub id: String,
    /// The slot after which the fingerprints differ.
    pub slot: u64,
    /// This replica's fingerprint.
    pub here: String,
    /// The other replica.
    pub replica: u32,
    /// Its fingerprint.
    pub there: String,
}

/// `POST /v1/admin/rebuild`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rebuild {
    /// The replica that is made anew.
    pub replica: u32,
    /// That it has begun.
    pub begun: bool,
}

/// `POST /v1/admin/snapshot`: what is applied is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshotted {
    /// The replica that answers.
    pub replica: u32,
    /// The last slot whose effects are durable in all databases there.
    pub slot: u64,
}

/// `POST /v1/admin/compact`: the log was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compacted {
    /// The replica that answers.
    pub replica: u32,
    /// The first slot that its log still holds.
    pub base: u64,
}

/// `POST /v1/admin/verify`: what a replica holds, beside what the others say that they hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// The replica that answers.
    pub replica: u32,
    /// As in [`ClusterInfo::state`].
    pub state: String,
    /// The last slot that it has applied.
    pub applied: u64,
    /// How many databases it has, the catalogue among them.
    pub databases: u64,
    /// What was found to be equal.
    pub compared: Vec<Compared>,
    /// What was found to differ; empty when all is well.
    pub divergent: Vec<Divergence>,
    /// What came of reading the log, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogVerified>,
}

/// What a replica has found to be equal to another one's since it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The other replica.
    pub replica: u32,
    /// Of at least so many databases both had the same sum after the same slot.
    pub databases: u64,
}

/// A log that was read from end to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogVerified {
    /// The first slot that it holds.
    pub base: u64,
    /// The last one.
    pub last: u64,
    /// The first record that is missing or is not what was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<LogDamage>,
}

/// A record that is missing or is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDamage {
    /// Its slot.
    pub slot: u64,
    /// How it shows.
    pub problem: String,
}

/// `GET /version`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// The daemon's version.
    pub version: String,
    /// The bundled SQLite's version.
    pub sqlite: String,
    /// The version of the SQL semantics that entries are stamped with.
    pub execution: u32,
}

/// The answer of `POST /v1/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The slot that restored everything.
    pub slot: u64,
    /// The cluster that the backup was taken of.
    pub cluster: String,
    /// The slot of that cluster's log at which everything stands.
    pub restored_slot: u64,
    /// Its log time (RFC 3339).
    pub restored_time: String,
    /// How many databases there are.
    pub databases: u64,
    /// How many media files there are.
    pub media: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: u64, of: u64, expected: &str) {
        assert_eq!(CatchingUp { from: 1, bytes, of }.to_string(), expected);
    }

    #[test]
    fn progress_is_told_in_units_that_people_read() {
        check(0, 0, "waits for a snapshot from replica 1");
        check(0, 1_023, "fetches a snapshot: 0 B of 1023 B from replica 1");
        check(1 << 10, (1 << 30) - 1, "fetches a snapshot: 1.0 KiB of 1024.0 MiB from replica 1");
        check(412 << 20, 3 << 29, "fetches a snapshot: 412.0 MiB of 1.5 GiB from replica 1");
        check(1 << 40, u64::MAX, "fetches a snapshot: 1.0 TiB of 16777216.0 TiB from replica 1");
    }
}
