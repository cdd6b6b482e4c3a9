//! The thread that writes, and the one that moves the WAL into the database behind it. A third one looks, once after the
//! start, how large and how old what it found is.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use d3b::Slot;
use d3b_paxos::PersistBatch;
use d3b_paxos::types::Configuration;
use rusqlite::{Connection, OpenFlags};

use super::directory::Directory;
use super::extent::Extent;
use super::reader::Cache;
use super::store::Store;
use super::{Durable, LogError, OnDurable, sqlite};

/// How often the WAL is looked at.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(100);
/// A WAL of so many bytes is moved into the database: one that has room for them from the start, or another one.
const CHECKPOINT_BYTES: (u64, u64) = (12 << 20, 4 << 20);
/// What a WAL has room for from the start: those, and what is written while they are moved.
const WAL_BYTES: u64 = 16 << 20;
/// A page of the database, and a page in the WAL.
const PAGE_BYTES: u64 = 4096;
const FRAME_BYTES: u64 = 24 + PAGE_BYTES;
/// How many records are removed between two batches, and how many bytes of them.
const CUT_RECORDS: u32 = 1_000;
const CUT_BYTES: u64 = 1 << 20;
/// Under load, records are removed after every so many batches.
const BATCHES_PER_CUT: u32 = 8;
/// How many records are looked at in one go when their sizes are added up.
const SIZES: u32 = 10_000;

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

/// Goes on, on the writer's thread, when a configuration is on disk.
type Then = Box<dyn FnOnce(Result<Configuration, LogError>) + Send>;

/// What the writer is asked to do.
enum Request {
    Persist(PersistBatch),
    Configuration(Box<Configuration>, Then),
    Cut(Slot),
}

/// The way to the writer. Dropping it ends both threads.
#[derive(Debug)]
pub struct Log {
    requests: Sender<Request>,
    writer: JoinHandle<()>,
    checkpointer: JoinHandle<()>,
    surveyor: JoinHandle<()>,
}

impl Log {
    pub(super) fn start(
        store: Store,
        directory: Directory,
        cache: Arc<Cache>,
        on_durable: OnDurable,
    ) -> Result<Log, LogError> {
        // One batch is under way at a time, and whoever asks may be the writer itself, which must not wait for itself.
        let (requests, inbox) = channel();
        let (stop, stopped) = sync_channel::<()>(0);
        let wal = Arc::new(Wal::default());
        let path = store.path();
        // What a crash has left is moved, and on the disk, before anything is written; the next batch begins the WAL anew.
        store.finish_checkpoint()?;
        let bytes_max = if store.lay_out_wal(WAL_BYTES)? { CHECKPOINT_BYTES.0 } else { CHECKPOINT_BYTES.1 };
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| LogError::Io {
                path: path.clone(),
                doing: "starting a thread",
                message: error.to_string(),
            })
        };
        let (checkpointed, shared) = (path.clone(), Arc::clone(&wal));
        let checkpointer =
            spawn("d3bd-wal", Box::new(move || checkpoint(&checkpointed, bytes_max, &shared, &stopped)))?;
        let closed = Arc::new(AtomicBool::new(false));
        let (surveyed, known, ended) = (path.clone(), Arc::clone(&cache), Arc::clone(&closed));
        let surveyor = spawn("d3bd-survey", Box::new(move || survey(&surveyed, &known, &ended)))?;
        let work = move || {
            let writer = Writer { store, cache, wal, cutting: None };
            writer.run(&inbox, &on_durable);
            closed.store(true, Ordering::Relaxed);
            // The lock goes last, when nothing is written any more.
            drop(stop);
            drop(directory);
        };
        let writer = spawn("d3bd-log", Box::new(work))?;
        Ok(Log { requests, writer, checkpointer, surveyor })
    }

    /// Writes a batch; the callback tells when it is durable.
    pub fn persist(&self, batch: PersistBatch) {
        // After a failed write the writer is gone; whoever runs this process has been told.
        drop(self.requests.send(Request::Persist(batch)));
    }

    /// Writes a configuration that this replica was told of. When it is on disk, or cannot be written, `then` is called on
    /// the writer's thread; this returns at once.
    pub fn persist_configuration(
        &self,
        configuration: Configuration,
        then: impl FnOnce(Result<Configuration, LogError>) + Send + 'static,
    ) {
        let request = Request::Configuration(Box::new(configuration), Box::new(then));
        if let Err(SendError(Request::Configuration(_, then))) = self.requests.send(request) {
            then(Err(LogError::Poisoned));
        }
    }

    /// Drops what is below a slot, beside everything else: nobody must want to read it any more.
    pub fn cut(&self, base: Slot) {
        drop(self.requests.send(Request::Cut(base)));
    }

    /// Ends the threads after everything that was asked for is written, and lets go of the directory.
    pub fn close(self) {
        let Log { requests, writer, checkpointer, surveyor } = self;
        drop(requests);
        for thread in [writer, checkpointer, surveyor] {
            if thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
    }
}

/// The writer's thread.
struct Writer {
    store: Store,
    cache: Arc<Cache>,
    wal: Arc<Wal>,
    /// Records below this slot are being removed.
    cutting: Option<Slot>,
}

impl Writer {
    /// Ends when the log is closed, or for good after the first failure. A write that failed is never tried again: the
    /// kernel may have dropped the pages, and a later fsync would say that all is well.
    fn run(mut self, inbox: &Receiver<Request>, on_durable: &OnDurable) {
        // A cut that an earlier process has not brought to its end.
        self.cutting = Some(self.cache.ends().0);
        let mut batches = 0;
        loop {
            // Removing records is what is done when there is nothing else to do, and a little also when there is.
            let request = if self.cutting.is_some() { inbox.try_recv() } else { inbox.recv().map_err(Into::into) };
            let idle = matches!(request, Err(TryRecvError::Empty));
            let result = match request {
                Ok(request) => self.handle(request, on_durable),
                Err(TryRecvError::Empty) => Ok(()),
                Err(TryRecvError::Disconnected) => return,
            };
            batches += 1;
            let cut = match result {
                Ok(()) if idle || batches >= BATCHES_PER_CUT => {
                    batches = 0;
                    self.remove()
                }
                other => other,
            };
            if let Err(error) = cut {
                return on_durable(Err(error));
            }
        }
    }

    /// An error that nobody was told of yet ends the writer.
    fn handle(&mut self, request: Request, on_durable: &OnDurable) -> Result<(), LogError> {
        match request {
            Request::Persist(batch) => {
                let id = batch.id;
                let bytes: usize = batch.records.iter().map(|record| record.entry.size()).sum();
                // The page that its records end on goes along each time, as does now and then one that leads to it.
                let frames = bytes as u64 / PAGE_BYTES + 2;
                self.store.persist(&batch)?;
                self.cache.add(batch.records);
                on_durable(Ok(Durable { id }));
                self.wal.bytes.fetch_add(frames * FRAME_BYTES, Ordering::Relaxed);
                self.finish_checkpoint()
            }
            Request::Configuration(configuration, then) => {
                let result = self.store.persist_configuration(&configuration);
                // Whoever asked is told; and so is everybody else, for nothing is written after a failure.
                then(result.clone().map(|()| *configuration));
                result
            }
            Request::Cut(base) => {
                if base > self.cache.ends().0 {
                    // Readers first: what they find missing after this was cut off. Rows only when the base is on disk.
                    self.cache.cut(base);
                    self.store.set_base(base)?;
                    self.cutting = Some(base);
                }
                Ok(())
            }
        }
    }

    /// Removes some of what was cut off.
    fn remove(&mut self) -> Result<(), LogError> {
        let Some(base) = self.cutting else { return Ok(()) };
        match self.store.remove_below(base, CUT_RECORDS, CUT_BYTES)? {
            Some(bytes) => {
                self.wal.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.finish_checkpoint()
            }
            None => {
                self.cutting = None;
                Ok(())
            }
        }
    }

    /// The writer's part of a checkpoint, if it is its turn.
    fn finish_checkpoint(&self) -> Result<(), LogError> {
        if let Some(error) = self.wal.failure.lock().expect("no panic while held").take() {
            return Err(error);
        }
        if self.wal.finish.swap(false, Ordering::Acquire) && self.store.finish_checkpoint()? {
            self.wal.bytes.store(0, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Adds up how large what was there at the start is, a little at a time: no replica waits for that.
fn survey(path: &Path, cache: &Cache, closed: &AtomicBool) {
    let (base, last) = cache.ends();
    match sizes(path, base, last, closed) {
        Ok(Some(older)) => cache.complete(older),
        Ok(None) => {}
        // Without it the log is not cut, and whoever has to read it learns why.
        Err(error) => tracing::warn!(%error, "the size of the log is not known"),
    }
}

fn sizes(path: &Path, base: Slot, last: Slot, closed: &AtomicBool) -> Result<Option<Extent>, LogError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(sqlite("opening it for its size"))?;
    connection.busy_timeout(Duration::from_secs(10)).map_err(sqlite("opening it for its size"))?;
    let mut extent = Extent::default();
    let mut next = base;
    while next <= last {
        if closed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let sizes = super::store::sizes(&connection, next, last, SIZES)?;
        let Some(end) = sizes.last() else { break };
        next = end.slot.next();
        sizes.into_iter().for_each(|size| extent.add(size));
    }
    Ok(Some(extent))
}

/// The checkpointer's thread: ends with the writer.
fn checkpoint(path: &Path, bytes_max: u64, wal: &Wal, stopped: &Receiver<()>) {
    let connection = match open(path) {
        Ok(connection) => connection,
        Err(error) => {
            *wal.failure.lock().expect("no panic while held") = Some(error);
            return;
        }
    };
    while matches!(stopped.recv_timeout(CHECKPOINT_INTERVAL), Err(RecvTimeoutError::Timeout)) {
        if wal.bytes.load(Ordering::Relaxed) < bytes_max {
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
