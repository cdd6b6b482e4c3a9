//! Read-only connections: few enough for the process's files, kept open while they are in use.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use d3b::{Code, DatabaseId, Rejection, Slot};
use rusqlite::{CachedStatement, Connection, ErrorCode};

use super::known::Known;
use crate::apply::Refusal;
use crate::database::{self, OWN};
use crate::databases;
use crate::guard::{self, Guard, Mode};
use crate::statement::Admitted;

/// How many connections there are at most, idle ones included; each has three files open.
const CONNECTIONS_MAX: usize = 128;

/// How long an idle connection stays open.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// How often it is looked for such.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How many prepared statements a connection keeps.
const STATEMENTS_MAX: usize = 64;

/// How many steps of SQLite's virtual machine lie between two looks at the clock.
const STEPS_PER_CALL: i32 = 4_000;

/// A connection that one read has for itself.
pub(super) struct Pooled {
    id: DatabaseId,
    connection: Connection,
    guard: Guard,
    admitted: Admitted,
}

impl Pooled {
    fn open(path: &Path, id: DatabaseId) -> rusqlite::Result<Pooled> {
        let (connection, guard) = guard::open_reader(path)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        Ok(Pooled { id, connection, guard, admitted: Admitted::default() })
    }

    /// The connection, for what statements cannot do.
    pub fn connection(&self) -> &Connection {
        self.guard.set(Mode::Internal);
        &self.connection
    }

    /// One of d3b's own statements, prepared at most once.
    pub fn own(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        debug_assert!(sql.starts_with(OWN), "{sql}");
        self.guard.set(Mode::Internal);
        self.connection.prepare_cached(sql)
    }

    /// What a user's statement needs, borrowed side by side.
    pub fn parts(&mut self) -> (&Connection, &Guard, &mut Admitted) {
        (&self.connection, &self.guard, &mut self.admitted)
    }

    /// Prepares a user's statement in a mode, only to look at it.
    pub fn prepare<T>(
        &mut self,
        sql: &str,
        mode: Mode,
        look: impl FnOnce(&rusqlite::Statement<'_>) -> T,
    ) -> rusqlite::Result<Result<T, Rejection>> {
        self.guard.set(mode);
        let prepared = guard::prepare_single(&self.connection, &self.guard, sql);
        Ok(prepared?.map(|statement| look(&statement)))
    }

    /// Interrupts what runs at that moment.
    pub fn until(&mut self, deadline: Instant) -> rusqlite::Result<()> {
        self.connection.progress_handler(STEPS_PER_CALL, Some(move || Instant::now() >= deadline))
    }

    /// Interrupts what runs after about so many thousands of steps.
    pub fn for_steps(&mut self, thousands: u32) -> rusqlite::Result<()> {
        // A statement that is kept counts its steps over all its runs, so that the first call may come at any time.
        let mut calls = 0;
        let exhausted = move || {
            calls += 1;
            calls > thousands
        };
        self.connection.progress_handler(1_000, Some(exhausted))
    }

    /// Reads several things as of one moment.
    pub fn snapshot<T>(&mut self, read: impl FnOnce(&mut Pooled) -> Result<T, Refusal>) -> Result<T, Refusal> {
        self.own("/*d3b*/BEGIN")?.execute([])?;
        let result = read(self);
        self.connection.progress_handler(0, None::<fn() -> bool>)?;
        self.own("/*d3b*/COMMIT")?.execute([])?;
        result
    }
}

/// What waits for the next read.
struct Idle {
    since: Instant,
    pooled: Pooled,
}

struct State {
    /// Connections that nobody uses, the longest idle first.
    idle: HashMap<DatabaseId, Vec<Idle>>,
    /// How many connections there are, in use or idle.
    open: usize,
    /// Databases that are not served, and why.
    fenced: BTreeMap<DatabaseId, String>,
    /// When idle connections were last looked through.
    looked_at: Instant,
}

/// All connections of a replica's reads.
pub(super) struct Pool {
    directory: PathBuf,
    applied: AtomicU64,
    /// What need not be found out again.
    pub(super) known: Known,
    state: Mutex<State>,
    /// Told whenever a connection is given back or closed.
    freed: Condvar,
}

impl Pool {
    pub fn new(directory: &Path) -> Pool {
        Pool {
            directory: directory.to_owned(),
            applied: AtomicU64::new(0),
            known: Known::default(),
            state: Mutex::new(State {
                idle: HashMap::new(),
                open: 0,
                fenced: BTreeMap::new(),
                looked_at: Instant::now(),
            }),
            freed: Condvar::new(),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn applied(&self) -> Slot {
        Slot(self.applied.load(Ordering::Acquire))
    }

    pub fn publish(&self, slot: Slot) {
        self.applied.store(slot.0, Ordering::Release);
    }

    pub fn fence(&self, id: DatabaseId, problem: &str) {
        let mut state = self.lock();
        state.fenced.insert(id, problem.to_owned());
        state.close_idle_of(id);
        self.known.forget_habits(id);
        self.freed.notify_all();
    }

    pub fn fenced(&self, id: DatabaseId) -> Option<String> {
        self.lock().fenced.get(&id).cloned()
    }

    pub fn all_fenced(&self) -> BTreeMap<DatabaseId, String> {
        self.lock().fenced.clone()
    }

    pub fn forget(&self, id: DatabaseId) {
        let mut state = self.lock();
        state.fenced.remove(&id);
        state.close_idle_of(id);
        self.known.forget_habits(id);
        self.freed.notify_all();
    }

    /// Closes what was idle for too long, for want of a read that would.
    pub fn close_stale(&self) {
        self.lock().close_stale(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to a database, which must be [given back](Pool::give_back) or [dropped](Pool::drop_one).
    pub fn take(&self, id: DatabaseId, deadline: Instant) -> Result<Lease<'_>, Rejection> {
        let mut state = self.lock();
        loop {
            if let Some(problem) = state.fenced.get(&id) {
                return Err(databases::fenced_rejection(problem));
            }
            if let Some(idle) = state.idle.get_mut(&id).and_then(Vec::pop) {
                return Ok(Lease { pool: self, pooled: Some(idle.pooled), kept: false });
            }
            if state.open < CONNECTIONS_MAX || state.close_idlest() {
                break;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return Err(Rejection::new(Code::Overloaded, "too many reads are under way"));
            };
            state = self.freed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.open += 1;
        drop(state);
        let mut lease = Lease { pool: self, pooled: None, kept: false };
        let path = database::path(&self.directory, id);
        if !path.exists() {
            // The engine has removed it since its name was looked up.
            return Err(Rejection::new(Code::DatabaseNotFound, "the database was dropped just now"));
        }
        lease.pooled = Some(Pooled::open(&path, id).map_err(|error| failed(&error))?);
        Ok(lease)
    }
}

impl Pool {
    /// A connection that is open and idle, if there is one to a database that is served.
    pub fn take_idle(&self, id: DatabaseId) -> Option<Lease<'_>> {
        let mut state = self.lock();
        if state.fenced.contains_key(&id) {
            return None;
        }
        let idle = state.idle.get_mut(&id).and_then(Vec::pop)?;
        Some(Lease { pool: self, pooled: Some(idle.pooled), kept: false })
    }
}

impl State {
    fn close_idle_of(&mut self, id: DatabaseId) {
        self.open -= self.idle.remove(&id).map_or(0, |idle| idle.len());
    }

    /// Closes the connection that was idle longest; `false` where all are in use.
    fn close_idlest(&mut self) -> bool {
        let idlest = self.idle.iter().filter_map(|(id, idle)| Some((idle.first()?.since, *id))).min();
        let Some((_, id)) = idlest else { return false };
        if let Some(idle) = self.idle.get_mut(&id) {
            idle.remove(0);
            self.open -= 1;
        }
        true
    }

    /// Closes what was idle for too long.
    fn close_stale(&mut self, now: Instant) {
        let mut closed = 0;
        self.idle.retain(|_, idle| {
            let before = idle.len();
            idle.retain(|idle| now.duration_since(idle.since) < IDLE_MAX);
            closed += before - idle.len();
            !idle.is_empty()
        });
        self.open -= closed;
    }
}

/// A connection on loan. Unless it is given back it is closed.
pub(super) struct Lease<'p> {
    pool: &'p Pool,
    /// `None` until it is open, and after it was given back.
    pooled: Option<Pooled>,
    /// Whether it was given back.
    kept: bool,
}

impl Lease<'_> {
    /// The connection.
    pub fn pooled(&mut self) -> &mut Pooled {
        self.pooled.as_mut().expect("a lease is handed out with an open connection, and given back by value")
    }

    /// Keeps the connection for the next read.
    pub fn give_back(mut self) {
        let Some(pooled) = self.pooled.take() else { return };
        let now = Instant::now();
        let mut state = self.pool.lock();
        if now.duration_since(state.looked_at) >= LOOK_INTERVAL {
            state.looked_at = now;
            state.close_stale(now);
        }
        if state.fenced.contains_key(&pooled.id) {
            state.open -= 1;
        } else {
            state.idle.entry(pooled.id).or_default().push(Idle { since: now, pooled });
        }
        self.kept = true;
        drop(state);
        self.pool.freed.notify_one();
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // The connection is closed before its place is given to another one.
        drop(self.pooled.take());
        self.pool.lock().open -= 1;
        self.pool.freed.notify_one();
    }
}

/// What the failure of a read means to the one who asked.
pub(super) fn failed(error: &rusqlite::Error) -> Rejection {
    let code = match database::sqlite_error(error).map(|error| error.code) {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            return databases::fenced_rejection(&error.to_string());
        }
        Some(ErrorCode::DiskFull) => Code::DiskFull,
        Some(ErrorCode::DatabaseBusy) => Code::Overloaded,
        Some(ErrorCode::OperationInterrupted) => return timed_out(),
        // It lies in this replica, and another one may do better.
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::OutOfMemory) => {
            let text = format!("the database cannot be read here: {error}");
            return Rejection::new(Code::NotReady, text).with_hint("ask another replica");
        }
        _ => Code::Internal,
    };
    Rejection::new(code, format!("the database cannot be read: {error}"))
}

/// What an error of a user's read means.
pub(super) fn refused(error: rusqlite::Error, guard: &Guard) -> rusqlite::Result<Rejection> {
    if database::sqlite_error(&error).is_some_and(|error| error.code == ErrorCode::OperationInterrupted) {
        return Ok(timed_out());
    }
    guard::rejection(error, guard)
}

/// The refusal of what took too long.
pub(super) fn timed_out() -> Rejection {
    Rejection::new(Code::RequestTimeout, "the read did not come to its end within its timeout")
        .with_hint("allow more time, or ask for less")
}
