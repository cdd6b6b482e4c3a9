//! What the log carries, and what came of it: operations and outcomes, free of any encoding.
//!
//! The engine turns them into the bytes of an entry (`d3b_engine::command`); HTTP and the schema service build them.

use serde::{Deserialize, Serialize};

use crate::{Code, DatabaseName, Digest, FileId, IdempotencyKey, Value};

/// The arguments of one statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Arguments {
    /// Bound to `?1`, `?2`, ... in order.
    Positional(Vec<Value>),
    /// Bound by name, the prefix (`:`, `@` or `$`) included.
    Named(Vec<(String, Value)>),
}

impl Default for Arguments {
    fn default() -> Self {
        Arguments::Positional(Vec::new())
    }
}

/// What a statement of a batch must have done, or the whole batch is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expectation {
    /// It changed exactly so many rows.
    RowsAffected(u64),
    /// It returned exactly so many rows.
    RowsReturned(u64),
}

/// One SQL statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    /// The text: exactly one statement.
    pub sql: String,
    /// What is bound to its parameters.
    pub arguments: Arguments,
    /// What it must have done.
    pub expect: Option<Expectation>,
}

/// A blob by name: its bytes are in every holder's blob store, never in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobReference {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
}

/// What an operation does to the media of its database, in the same atomic step as its SQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MediaChange {
    /// Stores a file under an id, in place of an older one of that id.
    Upload {
        /// The id.
        file_id: FileId,
        /// The bytes.
        blob: BlobReference,
        /// The media type (`image/jpeg`).
        media_type: String,
    },
    /// Removes a file; one that does not exist is `media-not-found`.
    Delete {
        /// The id.
        file_id: FileId,
    },
}

/// Whether an upload of a database may meet an older one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InsertMode {
    /// Creates or replaces.
    Replace,
    /// Creates; an existing one is `exists`.
    CreateOnly,
}

/// A change of the catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CatalogueChange {
    /// Makes `name` exist with the contents of a database file, or empty.
    Upload {
        /// The user-chosen name; never the catalogue's own.
        name: DatabaseName,
        /// Any text until authentication is switched on.
        owner: String,
        /// What the catalogue shows as `fileid`.
        file_id: FileId,
        /// The database file; `None` makes an empty database.
        blob: Option<BlobReference>,
        /// What happens to an older database of that name.
        mode: InsertMode,
    },
    /// Drops a database, its media and its files; one that does not exist is `db-not-found`.
    Delete {
        /// The name.
        name: DatabaseName,
    },
    /// A raw client's `INSERT INTO tables ...` with a database file. It must change exactly one row, whose fileid is
    /// `file_id`, else it is rolled back and `bad-request`.
    RawUpload {
        /// The client's statement.
        statement: Statement,
        /// The client's file id.
        file_id: FileId,
        /// The database file.
        blob: BlobReference,
    },
    /// A raw client's `DELETE FROM tables ...`; the same rule.
    RawDelete {
        /// The client's statement.
        statement: Statement,
        /// The client's file id.
        file_id: FileId,
    },
    /// Brings everything that a backup holds into a cluster that has no database; where it has one, it is `exists`.
    Restore {
        /// The list of the files, which the engine reads (`d3b_engine::restore`).
        manifest: BlobReference,
    },
}

/// One atomic step of the replicated state machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Operation {
    /// SQL on one database, with at most one file.
    Sql {
        /// The database, by the name that it has at the operation's slot.
        db: DatabaseName,
        /// At least one; all or none take effect. Empty only where `media` is given.
        statements: Vec<Statement>,
        /// Foreign keys are checked at the end instead of at each statement.
        deferred_foreign_keys: bool,
        /// The attached file.
        media: Option<MediaChange>,
    },
    /// A change of the catalogue.
    Catalogue(CatalogueChange),
}

impl Operation {
    /// The database in whose `_d3b_requests` the key and the answer of this operation are kept.
    #[must_use]
    pub fn database(&self) -> DatabaseName {
        match self {
            Operation::Sql { db, .. } => db.clone(),
            Operation::Catalogue(_) => DatabaseName::catalogue(),
        }
    }

    /// The blob whose bytes a majority must hold before this operation is proposed.
    #[must_use]
    pub fn blob(&self) -> Option<BlobReference> {
        match self {
            Operation::Sql { media: Some(MediaChange::Upload { blob, .. }), .. } => Some(*blob),
            Operation::Sql { .. } => None,
            Operation::Catalogue(CatalogueChange::Upload { blob, .. }) => *blob,
            Operation::Catalogue(CatalogueChange::RawUpload { blob, .. }) => Some(*blob),
            Operation::Catalogue(CatalogueChange::Restore { manifest }) => Some(*manifest),
            Operation::Catalogue(CatalogueChange::Delete { .. } | CatalogueChange::RawDelete { .. }) => None,
        }
    }
}

/// A write on its way into the log: what to do, under which key, and the digest that tells a repeated request from
/// another one with the same key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyedOperation {
    /// The client's key, or one that the receiving replica made.
    pub key: IdempotencyKey,
    /// Over route, database and body.
    pub request: Digest,
    /// What to do.
    pub operation: Operation,
}

/// What one statement gave.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatementResult {
    /// Column names, in order; a name may stand twice. Empty for a statement without rows.
    pub columns: Vec<String>,
    /// Declared types, "" where there is none; as many as columns.
    pub types: Vec<String>,
    /// The rows (of a RETURNING clause, or of a read within a batch).
    pub rows: Vec<Vec<Value>>,
    /// Rows inserted, updated or deleted by this statement itself, as `sqlite3_changes64` counts.
    pub rows_affected: u64,
    /// Set by the last INSERT of this operation; 0 where there was none.
    pub last_insert_rowid: i64,
}

/// What an operation that took effect answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// One result a statement.
    Results(Vec<StatementResult>),
    /// The catalogue changed.
    Catalogue {
        /// The database's id, as 64 hexadecimal digits.
        id: crate::DatabaseId,
        /// The name.
        name: DatabaseName,
        /// Whether an older database of that name was replaced (or, for a deletion, dropped).
        replaced: bool,
    },
}

/// An operation that was refused, the same way on every replica; nothing of it took effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    /// The kind of refusal.
    pub code: Code,
    /// The cause, as a sentence for people.
    pub detail: String,
    /// What would help.
    pub hint: Option<String>,
    /// SQLite's extended result code, where it was SQLite that refused.
    pub sqlite_code: Option<i32>,
    /// Byte offset of the error in the statement's text.
    pub offset: Option<u32>,
    /// Which statement of a batch, from 0.
    pub statement: Option<u32>,
}

impl Rejection {
    /// A refusal with a cause and nothing else.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Rejection {
        Rejection { code, detail: detail.into(), hint: None, sqlite_code: None, offset: None, statement: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Rejection {
        self.hint = Some(hint.into());
        self
    }
}

/// What came of an operation: replicated, deterministic, stored under its key.
pub type Outcome = Result<Answer, Rejection>;
