//! The thread that writes, and the one that moves the WAL into the database behind it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use d3b_paxos::PersistBatch;
use d3b_paxos::types::Configuration;
use rusqlite::Connection;

use super::directory::Directory;
use super::reader::Cache;
use super::store::Store;
use super::{Durable, LogError, OnDurable, sqlite};

/// The core has one batch under way at a time.
const BATCHES_MAX: usize = 4;
/// How often the WAL is looked at.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(100);
/// A WAL of so many bytes is moved into the database.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// How the two threads share the work on the WAL. The checkpointer moves the bulk of it into the database while the
/// writer goes on; but the WAL can only begin anew when nothing is left, and under load there is always something left.
/// So the writer moves the little that came meanwhile, between two batches.
#[derive(Debug, Default)]
struct Wal {
    /// Bytes written since it began anew, roughly.
    bytes: AtomicU64,
    /// The bulk is moved: the writer's turn.
    finish: AtomicBool,
    /// Why the checkpointer gave up. A disk that fails it is not to be trusted with what comes after.
    failure: Mutex<Option<LogError>>,
}

/// What the writer is asked to do.
enum Request {
    Persist(PersistBatch),
    Configuration(Box<Configuration>, SyncSender<Result<(), LogError>>),
}

/// The way to the writer. Dropping it ends both threads.
#[derive(Debug)]
pub struct Log {
    requests: SyncSender<Request>,
    writer: JoinHandle<()>,
    checkpointer: JoinHandle<()>,
}

impl Log {
    pub(super) fn start(
        store: Store,
        directory: Directory,
        cache: Arc<Cache>,
        on_durable: OnDurable,
    ) -> Result<Log, LogError> {
        let (requests, inbox) = sync_channel(BATCHES_MAX);
        let (stop, stopped) = sync_channel::<()>(0);
        let wal = Arc::new(Wal::default());
        let path = store.path();
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| LogError::Io {
                path: path.clone(),
                doing: "starting a thread",
                message: error.to_string(),
            })
        };
        let (checkpointed, shared) = (path.clone(), Arc::clone(&wal));
        let checkpointer = spawn("d3bd-wal", Box::new(move || checkpoint(&checkpointed, &shared, &stopped)))?;
        let work = move || {
            write(store, &inbox, &cache, &wal, &on_durable);
            // The lock goes last, when nothing is written any more.
            drop(stop);
            drop(directory);
        };
        let writer = spawn("d3bd-log", Box::new(work))?;
        Ok(Log { requests, writer, checkpointer })
    }

    /// Writes a batch; the callback tells when it is durable.
    pub fn persist(&self, batch: PersistBatch) {
        // After a failed write the writer is gone; whoever runs this process has been told.
        drop(self.requests.send(Request::Persist(batch)));
    }

    /// Writes the configuration that forms the cluster; when this returns, it is on disk.
    ///
    /// # Errors
    /// It could not be written.
    pub fn persist_configuration(&self, configuration: &Configuration) -> Result<(), LogError> {
        let (answer, answered) = sync_channel(1);
        let request = Request::Configuration(Box::new(configuration.clone()), answer);
        self.requests.send(request).map_err(|_| LogError::Poisoned)?;
        answered.recv().map_err(|_| LogError::Poisoned)?
    }

    /// Ends the threads after everything that was asked for is written, and lets go of the directory.
    pub fn close(self) {
        let Log { requests, writer, checkpointer } = self;
        drop(requests);
        for thread in [writer, checkpointer] {
            if thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
    }
}

/// The writer's thread: ends when the log is closed, or for good after the first failure. A write that failed is never
/// tried again: the kernel may have dropped the pages, and a later fsync would say that all is well.
fn write(mut store: Store, inbox: &Receiver<Request>, cache: &Cache, wal: &Wal, on_durable: &OnDurable) {
    for request in inbox {
        match request {
            Request::Persist(batch) => {
                let id = batch.id;
                let bytes: usize = batch.records.iter().map(|record| record.entry.size()).sum();
                let result = store.persist(&batch);
                let failed = result.is_err();
                if !failed {
                    cache.add(batch.records);
                }
                on_durable(result.map(|()| Durable { id }));
                if failed {
                    return;
                }
                wal.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                if let Err(error) = finish_checkpoint(&store, wal) {
                    return on_durable(Err(error));
                }
            }
            Request::Configuration(configuration, answer) => {
                let result = store.persist_configuration(&configuration);
                let failed = result.is_err();
                drop(answer.send(result));
                if failed {
                    return;
                }
            }
        }
    }
}

/// The writer's part of a checkpoint, if it is its turn.
fn finish_checkpoint(store: &Store, wal: &Wal) -> Result<(), LogError> {
    if let Some(error) = wal.failure.lock().expect("no panic while held").take() {
        return Err(error);
    }
    if wal.finish.swap(false, Ordering::Acquire) && store.finish_checkpoint()? {
        wal.bytes.store(0, Ordering::Relaxed);
    }
    Ok(())
}

/// The checkpointer's thread: ends with the writer.
fn checkpoint(path: &Path, wal: &Wal, stopped: &Receiver<()>) {
    let connection = match open(path) {
        Ok(connection) => connection,
        Err(error) => {
            *wal.failure.lock().expect("no panic while held") = Some(error);
            return;
        }
    };
    while matches!(stopped.recv_timeout(CHECKPOINT_INTERVAL), Err(RecvTimeoutError::Timeout)) {
        if wal.bytes.load(Ordering::Relaxed) < CHECKPOINT_BYTES {
            continue;
        }
        match super::store::checkpoint(&connection) {
            Ok(_) => wal.finish.store(true, Ordering::Release),
            // Not tried again: after a failed fsync a later one may succeed without the bytes. The writer tells.
            Err(error) => {
                *wal.failure.lock().expect("no panic while held") = Some(error);
                return;
            }
        }
    }
}

fn open(path: &Path) -> Result<Connection, LogError> {
    let connection = Connection::open(path).map_err(sqlite("opening it for checkpoints"))?;
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;")
        .map_err(sqlite("opening it for checkpoints"))?;
    connection.busy_timeout(Duration::from_secs(2)).map_err(sqlite("opening it for checkpoints"))?;
    Ok(connection)
}
