//! The engine as a whole, on real files.

mod catalogue;
mod crash;
mod damaged;
mod generated;
mod hostile;
mod keys;
mod lanes;
mod operations;
mod planted;
mod restore;
mod sameness;
mod scrub;
mod snapshot;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use d3b::{
    Answer, Arguments, BlobReference, CatalogueChange, Code, DatabaseId, DatabaseName, Digest, Expectation, FileId,
    IdempotencyKey, InsertMode, KeyedOperation, MediaChange, Operation, Rejection, ReplicaId, Slot, Statement,
    StatementResult, Value,
};
use tempfile::TempDir;

use crate::{
    Applied, Blobs, Command, EXECUTION, Engine, Fatal, Fingerprint, LogEntry, Options, Origin, Progress, command,
};

/// Log time of slot 0 in these tests, in milliseconds since 1970.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

/// A log entry that owns its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub slot: Slot,
    pub time_ms: u64,
    pub command: Option<Vec<u8>>,
}

impl Entry {
    pub fn borrow(&self) -> LogEntry<'_> {
        LogEntry {
            slot: self.slot,
            time_ms: self.time_ms,
            seed: self.slot.0 * 7919,
            execution: EXECUTION,
            command: self.command.as_deref(),
        }
    }
}

/// Files by digest.
#[derive(Debug, Default)]
pub(crate) struct Files(pub HashMap<Digest, PathBuf>);

impl Blobs for Files {
    fn path(&self, digest: &Digest) -> Option<PathBuf> {
        self.0.get(digest).cloned()
    }
}

/// An engine in a temporary directory, with the log that it is fed from.
pub(crate) struct Lab {
    pub directory: TempDir,
    pub engine: Option<Engine>,
    pub log: Vec<Entry>,
    pub files: Files,
    pub clock_ms: u64,
    options: Options,
    keys: u64,
}

impl Lab {
    pub fn new() -> Lab {
        Lab::with_options(Options::default())
    }

    pub fn with_options(options: Options) -> Lab {
        Lab::within(TempDir::new().unwrap(), options)
    }

    /// A lab of which there are many, each of a few megabytes at most.
    pub fn in_memory(options: Options) -> Lab {
        Lab::within(directory_in_memory(), options)
    }

    fn within(directory: TempDir, options: Options) -> Lab {
        let engine = Engine::open(&directory.path().join("databases"), options).unwrap();
        let (log, files) = (Vec::new(), Files::default());
        Lab { directory, engine: Some(engine), log, files, clock_ms: START_MS, options, keys: 0 }
    }

    /// A lab with one empty database of that name.
    pub fn with_database(database: &str) -> Lab {
        let mut lab = Lab::new();
        let applied = lab.one(create(database));
        assert!(matches!(applied.outcome, Some(Ok(_))), "{applied:?}");
        lab
    }

    pub fn databases(&self) -> PathBuf {
        self.directory.path().join("databases")
    }

    pub fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("the engine is running")
    }

    /// Appends an operation to the log under a key of its own, without applying it.
    pub fn append(&mut self, operation: Operation) {
        self.keys += 1;
        let key = format!("key {}", self.keys);
        self.append_keyed(&key, operation);
    }

    pub fn append_keyed(&mut self, key: &str, operation: Operation) {
        let request = Digest::of(format!("{operation:?}").as_bytes());
        let keyed = KeyedOperation { key: IdempotencyKey::new(key).unwrap(), request, operation };
        let origin = Origin { replica: ReplicaId(1), incarnation: 1, sequence: self.log.len() as u64 };
        self.append_bytes(Some(command::encode(&Command { origin, keyed })));
    }

    pub fn append_bytes(&mut self, command: Option<Vec<u8>>) {
        self.clock_ms += 1;
        self.log.push(Entry { slot: Slot(self.log.len() as u64 + 1), time_ms: self.clock_ms, command });
    }

    /// Applies what the log holds and the engine lacks, in batches of that many entries.
    pub fn catch_up(&mut self, batch: usize) -> Vec<Applied> {
        let mut all = Vec::new();
        loop {
            let Progress { applied, needs_blob } = self.pull(batch);
            assert_eq!(needs_blob, None);
            if applied.is_empty() {
                return all;
            }
            all.extend(applied);
        }
    }

    /// Applies one batch.
    pub fn pull(&mut self, batch: usize) -> Progress {
        self.try_pull(batch).unwrap()
    }

    /// Applies one batch, which may stop the replica.
    pub fn try_pull(&mut self, batch: usize) -> Result<Progress, Fatal> {
        let engine = self.engine.as_mut().expect("the engine is running");
        let from = usize::try_from(engine.applied().0).unwrap();
        let entries: Vec<LogEntry<'_>> = self.log[from..].iter().take(batch).map(Entry::borrow).collect();
        engine.apply(&entries, &self.files)
    }

    /// Appends one operation and applies it alone.
    pub fn one(&mut self, operation: Operation) -> Applied {
        self.append(operation);
        self.catch_up(1).pop().unwrap()
    }

    pub fn one_keyed(&mut self, key: &str, operation: Operation) -> Applied {
        self.append_keyed(key, operation);
        self.catch_up(1).pop().unwrap()
    }

    /// Stops without a checkpoint and starts again.
    pub fn restart(&mut self) {
        self.engine = None;
        self.engine = Some(Engine::open(&self.databases(), self.options).unwrap());
    }

    /// Starts anew from a copy of the directory, as a crash would leave it.
    pub fn restart_from(&mut self, copy: &Path) {
        self.engine = None;
        fs::remove_dir_all(self.databases()).unwrap();
        copy_directory(copy, &self.databases());
        self.engine = Some(Engine::open(&self.databases(), self.options).unwrap());
    }

    /// Another engine that has applied the same log.
    pub fn replica(&self, batch: usize) -> Lab {
        let mut other = Lab::new();
        other.log = self.log.clone();
        other.files = Files(self.files.0.clone());
        other.catch_up(batch);
        other
    }

    /// Runs one read in a database, as an operation of its own, and returns its rows.
    pub fn rows(&mut self, database: &str, query: &str) -> Vec<Vec<Value>> {
        let applied = self.one(sql(database, &[query]));
        results(&applied).pop().unwrap().rows
    }

    /// The one value that a query gives.
    pub fn value(&mut self, database: &str, query: &str) -> Value {
        self.rows(database, query).pop().unwrap().pop().unwrap()
    }

    /// Stores bytes as a blob.
    pub fn blob(&mut self, bytes: &[u8]) -> BlobReference {
        let reference = BlobReference { digest: Digest::of(bytes), size: bytes.len() as u64 };
        let path = self.directory.path().join(format!("{}.blob", reference.digest));
        fs::write(&path, bytes).unwrap();
        self.files.0.insert(reference.digest, path);
        reference
    }

    /// The chains of all databases.
    pub fn chains(&mut self) -> Vec<(DatabaseId, Slot, Fingerprint)> {
        self.engine().fingerprints()
    }

    /// The file names in the directory, without those that SQLite keeps beside a database.
    pub fn file_names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.databases())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm"))
            .collect();
        names.sort();
        names
    }
}

/// A directory on a file system in memory, where the machine has one. What such tests check does not depend on the disk,
/// and they would spend most of their time syncing it.
pub(crate) fn directory_in_memory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

pub(crate) fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub(crate) fn name(text: &str) -> DatabaseName {
    DatabaseName::new(text).unwrap()
}

pub(crate) fn file_id(text: &str) -> FileId {
    FileId::new(text).unwrap()
}

pub(crate) fn statement(sql: &str, arguments: Vec<Value>) -> Statement {
    Statement { sql: sql.to_owned(), arguments: Arguments::Positional(arguments), expect: None }
}

pub(crate) fn sql(database: &str, texts: &[&str]) -> Operation {
    Operation::Sql {
        db: name(database),
        statements: texts.iter().map(|text| statement(text, vec![])).collect(),
        deferred_foreign_keys: false,
        media: None,
    }
}

pub(crate) fn with_media(operation: Operation, change: MediaChange) -> Operation {
    match operation {
        Operation::Sql { db, statements, deferred_foreign_keys, .. } => {
            Operation::Sql { db, statements, deferred_foreign_keys, media: Some(change) }
        }
        Operation::Catalogue(_) => operation,
    }
}

pub(crate) fn upload(database: &str, blob: Option<BlobReference>, mode: InsertMode) -> Operation {
    Operation::Catalogue(CatalogueChange::Upload {
        name: name(database),
        owner: "ann".to_owned(),
        file_id: file_id(&format!("{database}.sqlite3")),
        blob,
        mode,
    })
}

pub(crate) fn create(database: &str) -> Operation {
    upload(database, None, InsertMode::CreateOnly)
}

pub(crate) fn delete(database: &str) -> Operation {
    Operation::Catalogue(CatalogueChange::Delete { name: name(database) })
}

#[track_caller]
pub(crate) fn results(applied: &Applied) -> Vec<StatementResult> {
    match &applied.outcome {
        Some(Ok(Answer::Results(results))) => results.clone(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub(crate) fn made(applied: &Applied) -> (DatabaseId, bool) {
    match &applied.outcome {
        Some(Ok(Answer::Catalogue { id, replaced, .. })) => (*id, *replaced),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub(crate) fn refused(applied: &Applied) -> Rejection {
    match &applied.outcome {
        Some(Err(rejection)) => rejection.clone(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub(crate) fn check_code(applied: &Applied, expected: Code) {
    assert_eq!(refused(applied).code, expected, "{applied:?}");
}

/// The bytes of a database file that some other program made.
pub(crate) fn database_file(schema: &str) -> Vec<u8> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("made.sqlite3");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(schema).unwrap();
    connection.close().unwrap();
    fs::read(&path).unwrap()
}
