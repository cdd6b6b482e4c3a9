//! What happens on Ctrl-C: files that are being made are taken away, and the exit code says why.
//!
//! A thread of its own waits for the signals, so that nothing here has to be safe in a signal handler.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use d3b::client::{ClientError, Endpoint, Failure, WriteKey};

/// Files that must not outlive a process that is interrupted.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
/// The write whose answer is being waited for, and whom to ask for it later.
static WRITING: Mutex<Option<(WriteKey, Endpoint)>> = Mutex::new(None);

/// What comes within this time is the same wish: timeout(1) sends a signal to a process and to its group.
const ONE_WISH: Duration = Duration::from_millis(300);
/// Whether the next signal is a wish to come to an end.
static SOFT: AtomicBool = AtomicBool::new(false);
/// Whether that was wished.
static ENDING: AtomicBool = AtomicBool::new(false);
/// What is left behind, and what to do about it.
static LEFT: Mutex<Option<String>> = Mutex::new(None);

/// Keeps a file on the list of those to take away.
#[derive(Debug)]
pub struct Unfinished(PathBuf);

impl Unfinished {
    /// Puts a file on the list.
    #[must_use]
    pub fn new(path: &Path) -> Unfinished {
        UNFINISHED.lock().expect("no panic while held").insert(path.to_owned());
        Unfinished(path.to_owned())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.lock().expect("no panic while held").remove(&self.0);
    }
}

/// Says that a write is under way, or that none is.
pub fn writing(write: Option<(WriteKey, Endpoint)>) {
    *WRITING.lock().expect("no panic while held") = write;
}

/// From now on the first signal does not end the process, but sets what is returned; the next one ends it, and says
/// what is `left`, and what to do about it.
pub fn end_softly(left: String) -> &'static AtomicBool {
    *LEFT.lock().expect("no panic while held") = Some(left);
    SOFT.store(true, Ordering::Release);
    &ENDING
}

/// From now on a signal ends the process, and nothing is left behind.
pub fn end_at_once() {
    SOFT.store(false, Ordering::Release);
    *LEFT.lock().expect("no panic while held") = None;
}

/// Lets a thread wait for SIGINT, SIGTERM and SIGHUP. To be called before other threads are started, which then leave
/// the signals to that one.
pub fn install(interactive: bool) {
    // SAFETY: the set is initialized by sigemptyset before it is read; the calls touch nothing else.
    let set = unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        if libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            // The signals then end the process as they always do.
            return;
        }
        set
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        let mut wished: Option<Instant> = None;
        // SAFETY: both pointers are to live values of this thread.
        while unsafe { libc::sigwait(&raw const set, &raw mut signal) } == 0 {
            if SOFT.swap(false, Ordering::AcqRel) {
                ENDING.store(true, Ordering::Release);
                wished = Some(Instant::now());
            } else if wished.is_none_or(|wished| wished.elapsed() > ONE_WISH) {
                end(signal, interactive);
            }
        }
    });
}

/// Ends the process as an interrupted one.
fn end(signal: i32, interactive: bool) {
    // Held to the end, so that no file is finished or begun any more.
    let unfinished = UNFINISHED.lock().expect("no panic while held");
    for path in unfinished.iter() {
        // It may be gone already.
        let _ = std::fs::remove_file(path);
    }
    let mut text = String::new();
    if interactive {
        // Over the progress bar, and over the ^C of the terminal.
        text.push_str("\r\x1b[K");
    }
    text.push_str("interrupted\n");
    if let Some((key, endpoint)) = WRITING.lock().expect("no panic while held").take() {
        let failures = vec![Failure { endpoint, cause: "interrupted".to_owned() }];
        let hint = ClientError::OutcomeUnknown { key, failures }.hint().unwrap_or_default();
        text.push_str(&format!("hint: a request was under way that may have written: {hint}\n"));
    }
    if let Some(left) = LEFT.lock().expect("no panic while held").take() {
        text.push_str(&format!("hint: {left}\n"));
    }
    // Where nobody reads it any more, the exit code says it.
    let _ = std::io::stderr().write_all(text.as_bytes());
    // SAFETY: _exit takes a number and does not return; nothing is left to clean up.
    unsafe { libc::_exit(128 + signal) };
}
