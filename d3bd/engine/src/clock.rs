//! Log time in place of the wall clock, and a watch for full disks: a thin VFS over SQLite's default one.
//!
//! SQLite asks its VFS for the time, wherever SQL does: `datetime('now')`, CURRENT_TIMESTAMP, defaults, triggers. The
//! VFS `d3b` is a copy of the default VFS with another clock. While an entry is applied on a thread, that clock shows
//! the entry's log time there; otherwise it shows the wall clock.
//!
//! SQLITE_FULL has two meanings: the disk is full, or a table has used up its AUTOINCREMENT values. The first is this
//! replica's own trouble and the second an outcome that all replicas share, so the VFS notes when a write really
//! failed for want of space.
//!
//! `localtime` and `utc` depend on the time zone of the process, and are made to fail for good.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::sync::{Mutex, Once, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::ffi;

/// The name of the VFS, for opening connections.
pub const VFS: &std::ffi::CStr = c"d3b";

/// 1970 as SQLite counts: milliseconds since noon of November 24, 4714 BC (proleptic Gregorian calendar).
const UNIX_EPOCH_JULIAN_MS: i64 = 210_866_760_000_000;

/// Milliseconds of a day.
const DAY_MS: f64 = 86_400_000.0;

thread_local! {
    /// Log time in milliseconds since 1970, while an entry is applied on this thread.
    static ENTRY_TIME_MS: Cell<Option<u64>> = const { Cell::new(None) };
    /// Whether a write found the disk full on this thread.
    static DISK_FULL: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
thread_local! {
    /// How many more writes succeed on this thread; all of them where it is `None`.
    static WRITES_LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Lets every write of this thread fail after so many more. A replica that stops there, and starts again when writes
/// succeed, finds on its disk what a process that was killed at that moment would have left.
#[cfg(test)]
pub(crate) fn fail_writes_after(writes: Option<u64>) {
    WRITES_LEFT.set(writes);
}

/// Whether a write may go through to the disk.
fn may_write() -> bool {
    #[cfg(test)]
    if let Some(left) = WRITES_LEFT.get() {
        WRITES_LEFT.set(Some(left.saturating_sub(1)));
        return left > 0;
    }
    true
}

/// While it lives, SQLite sees the time of an entry on this thread.
#[derive(Debug)]
pub struct EntryClock {
    previous: Option<u64>,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

/// Shows SQLite a time on this thread, in milliseconds since 1970, until the answer is dropped.
#[must_use]
pub fn enter(time_ms: u64) -> EntryClock {
    EntryClock { previous: ENTRY_TIME_MS.replace(Some(time_ms)), not_send: PhantomData }
}

impl Drop for EntryClock {
    fn drop(&mut self) {
        ENTRY_TIME_MS.set(self.previous);
    }
}

/// Whether a write on this thread found the disk full since this was last asked.
#[must_use]
pub fn take_disk_full() -> bool {
    DISK_FULL.replace(false)
}

/// The time in milliseconds since 1970, as SQLite is to see it on this thread.
fn now_ms() -> u64 {
    ENTRY_TIME_MS.get().unwrap_or_else(|| {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    })
}

fn now_julian_ms() -> i64 {
    UNIX_EPOCH_JULIAN_MS.saturating_add(i64::try_from(now_ms()).unwrap_or(i64::MAX))
}

/// Makes the VFS known to SQLite, and turns local time off. Only the first call of a process does anything.
///
/// # Panics
/// SQLite has no default VFS, or refuses ours: then nothing could be opened at all.
pub fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Safety: SQLite's default VFS is a valid structure for the life of the process. The copy is never freed, and
        // its functions only read from it what they would read from the original.
        unsafe {
            assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK, "SQLite can be initialized");
            let default = ffi::sqlite3_vfs_find(std::ptr::null());
            assert!(!default.is_null(), "SQLite has a default VFS");
            let mut vfs = *default;
            vfs.zName = VFS.as_ptr();
            vfs.pNext = std::ptr::null_mut();
            let original_open = vfs.xOpen.expect("a VFS can open files");
            ORIGINAL_OPEN.set(original_open).expect("this is the only place that sets it, and runs once");
            vfs.xOpen = Some(open);
            vfs.xCurrentTime = Some(current_time);
            vfs.xCurrentTimeInt64 = Some(current_time_int64);
            let vfs = Box::leak(Box::new(vfs));
            assert_eq!(ffi::sqlite3_vfs_register(vfs, 0), ffi::SQLITE_OK, "SQLite takes another VFS");
            ffi::sqlite3_test_control(ffi::SQLITE_TESTCTRL_LOCALTIME_FAULT, 1 as c_int);
        }
    });
}

unsafe extern "C" fn current_time(_vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // Safety: SQLite passes a place for the answer.
    unsafe { *out = now_julian_ms() as f64 / DAY_MS };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(_vfs: *mut ffi::sqlite3_vfs, out: *mut i64) -> c_int {
    // Safety: SQLite passes a place for the answer.
    unsafe { *out = now_julian_ms() };
    ffi::SQLITE_OK
}

/// The methods of an open file, with those of the default VFS behind them. SQLite knows the first field only.
#[repr(C)]
struct Methods {
    watched: ffi::sqlite3_io_methods,
    original: *const ffi::sqlite3_io_methods,
}

/// How a VFS opens a file.
type Open = unsafe extern "C" fn(
    *mut ffi::sqlite3_vfs,
    ffi::sqlite3_filename,
    *mut ffi::sqlite3_file,
    c_int,
    *mut c_int,
) -> c_int;

/// How the default VFS does it.
static ORIGINAL_OPEN: OnceLock<Open> = OnceLock::new();

/// One for each set of methods that the default VFS uses; there are two or three, and they are never freed.
static WATCHED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// The watched form of a set of methods.
///
/// # Safety
/// `original` belongs to the default VFS, and lives as long as the process.
unsafe fn watched(original: *const ffi::sqlite3_io_methods) -> *const ffi::sqlite3_io_methods {
    let mut known = WATCHED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for address in known.iter() {
        let methods = *address as *const Methods;
        // Safety: the addresses are those of leaked boxes.
        if unsafe { (*methods).original } == original {
            return methods.cast();
        }
    }
    // Safety: the caller's promise.
    let mut copy = unsafe { *original };
    copy.xWrite = Some(write);
    copy.xTruncate = Some(truncate);
    copy.xFileControl = Some(file_control);
    let methods: *const Methods = Box::leak(Box::new(Methods { watched: copy, original }));
    known.push(methods as usize);
    methods.cast()
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // Safety: the arguments are SQLite's own, passed on to the VFS that ours is a copy of.
    unsafe {
        let Some(original) = ORIGINAL_OPEN.get() else { return ffi::SQLITE_CANTOPEN };
        let code = original(vfs, name, file, flags, out_flags);
        note(code);
        if code == ffi::SQLITE_OK && !(*file).pMethods.is_null() {
            (*file).pMethods = watched((*file).pMethods);
        }
        code
    }
}

/// # Safety
/// The file was opened by [`open`], so that its methods are the first field of [`Methods`].
unsafe fn original(file: *mut ffi::sqlite3_file) -> ffi::sqlite3_io_methods {
    // Safety: the caller's promise.
    unsafe { *(*(*file).pMethods.cast::<Methods>()).original }
}

fn note(code: c_int) -> c_int {
    if code & 0xff == ffi::SQLITE_FULL {
        DISK_FULL.set(true);
    }
    code
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, length: c_int, offset: i64) -> c_int {
    if !may_write() {
        return ffi::SQLITE_IOERR_WRITE;
    }
    // Safety: SQLite's own arguments for a file that `open` has opened.
    unsafe { original(file).xWrite.map_or(ffi::SQLITE_IOERR_WRITE, |write| note(write(file, from, length, offset))) }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    if !may_write() {
        return ffi::SQLITE_IOERR_TRUNCATE;
    }
    // Safety: SQLite's own arguments for a file that `open` has opened.
    unsafe { original(file).xTruncate.map_or(ffi::SQLITE_IOERR_TRUNCATE, |truncate| note(truncate(file, size))) }
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, operation: c_int, argument: *mut c_void) -> c_int {
    // Safety: SQLite's own arguments for a file that `open` has opened.
    unsafe {
        original(file).xFileControl.map_or(ffi::SQLITE_NOTFOUND, |control| note(control(file, operation, argument)))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, OpenFlags};

    use super::*;

    fn connection(directory: &tempfile::TempDir) -> Connection {
        register();
        Connection::open_with_flags_and_vfs(directory.path().join("db"), OpenFlags::default(), VFS).unwrap()
    }

    #[test]
    fn sql_sees_the_time_of_the_entry() {
        let directory = tempfile::TempDir::new().unwrap();
        let connection = connection(&directory);
        connection.execute_batch("CREATE TABLE t(x, at DEFAULT CURRENT_TIMESTAMP)").unwrap();
        let entry = enter(951_782_400_123);
        let mut texts: Vec<String> = Vec::new();
        for sql in ["SELECT datetime('now')", "SELECT strftime('%Y-%m-%d %H:%M:%f')", "SELECT julianday('now')"] {
            texts.push(
                connection
                    .query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0))
                    .map(|v| format!("{v:?}"))
                    .unwrap(),
            );
        }
        connection.execute("INSERT INTO t(x) VALUES(1)", []).unwrap();
        drop(entry);
        assert_eq!(texts[0], "Text(\"2000-02-29 00:00:00\")");
        assert_eq!(texts[1], "Text(\"2000-02-29 00:00:00.123\")");
        assert!(texts[2].starts_with("Real(2451603.5"), "{}", texts[2]);
        let at: String = connection.query_row("SELECT at FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(at, "2000-02-29 00:00:00");
        let later: bool = connection.query_row("SELECT datetime('now') > '2020-01-01'", [], |row| row.get(0)).unwrap();
        assert!(later, "the wall clock is back");
    }

    #[test]
    fn local_time_fails() {
        let directory = tempfile::TempDir::new().unwrap();
        let connection = connection(&directory);
        assert!(connection.query_row("SELECT datetime('now', 'localtime')", [], |_| Ok(())).is_err());
        assert!(connection.query_row("SELECT datetime('2020-01-01', 'utc')", [], |_| Ok(())).is_err());
    }

    #[test]
    fn a_full_sequence_is_not_a_full_disk() {
        let directory = tempfile::TempDir::new().unwrap();
        let connection = connection(&directory);
        connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT)").unwrap();
        connection.execute_batch("INSERT INTO t VALUES(9223372036854775807)").unwrap();
        let error = connection.execute_batch("INSERT INTO t DEFAULT VALUES").unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull));
        assert!(!take_disk_full());
    }

    #[test]
    fn a_full_disk_is_seen() {
        // Writes to this device always find it full.
        let device = c"/dev/full";
        register();
        // Safety: a file structure of the size that the VFS asks for, opened and closed by its own methods.
        unsafe {
            let vfs = ffi::sqlite3_vfs_find(VFS.as_ptr());
            let mut memory = vec![0_u64; usize::try_from((*vfs).szOsFile).unwrap().div_ceil(8)];
            let file: *mut ffi::sqlite3_file = memory.as_mut_ptr().cast();
            let flags = ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_TEMP_DB;
            let code = (*vfs).xOpen.unwrap()(vfs, device.as_ptr(), file, flags, std::ptr::null_mut());
            assert_eq!(code, ffi::SQLITE_OK);
            let bytes = [0_u8; 16];
            let code = (*(*file).pMethods).xWrite.unwrap()(file, bytes.as_ptr().cast(), 16, 0);
            assert_eq!(code, ffi::SQLITE_FULL);
            (*(*file).pMethods).xClose.unwrap()(file);
        }
        assert!(take_disk_full());
        assert!(!take_disk_full());
    }
}
