//! Child processes that never outlive the test, and what `/proc` tells of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use crate::wait::wait_for;

/// A child that is killed when this is dropped, or when the thread that spawned it ends without dropping it.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a command.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn spawn(command: &mut Command) -> Process {
        let prepare = || {
            // SAFETY: prctl with PR_SET_PDEATHSIG touches this process' own state only, and is async-signal-safe.
            match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        Process { child }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours can be waited for")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn wait_for_end(&mut self, limit: Duration) -> ExitStatus {
        wait_for(&format!("process {} ends", self.pid()), limit, || self.ended())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.pid()).expect("process ids are small");
        // SAFETY: kill has no memory effects; the child was not waited for, so the id is still its own.
        unsafe { libc::kill(pid, signal) };
    }

    /// Bounds how many files it may have open from now on.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn limit_files(&self, count: u64) {
        self.limit(libc::RLIMIT_NOFILE, count);
    }

    /// Lets it take no more than so many bytes of memory from now on, besides what it has.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn limit_memory(&self, more: u64) {
        // Not RLIMIT_AS: the allocator has reserved far more addresses than it uses.
        self.limit(libc::RLIMIT_DATA, data_memory(self.pid()).saturating_add(more));
    }

    /// Sets a limit, or the highest that may be set.
    fn limit(&self, resource: libc::__rlimit_resource_t, value: u64) {
        let pid = i32::try_from(self.pid()).expect("process ids are small");
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: both structures are whole and outlive the calls; the child was not waited for, so the id is its own.
        let done = unsafe {
            let read = libc::prlimit(pid, resource, std::ptr::null(), &raw mut limit);
            limit.rlim_cur = value.min(limit.rlim_max);
            read == 0 && libc::prlimit(pid, resource, &raw const limit, std::ptr::null_mut()) == 0
        };
        assert!(done, "process {pid} takes no limit: {}", std::io::Error::last_os_error());
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The most memory that a process has had resident since [`forget_peak`], in bytes.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn peak_memory(pid: u32) -> u64 {
    memory(pid, "VmHWM:")
}

/// How much memory of a process is resident now, in bytes.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn resident_memory(pid: u32) -> u64 {
    memory(pid, "VmRSS:")
}

/// How many files, sockets and the like a process has open.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there").count()
}

/// How much memory of its own a process may write to, resident or not, in bytes.
fn data_memory(pid: u32) -> u64 {
    memory(pid, "VmData:")
}

fn memory(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("a process has memory");
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number of KiB");
    kib * 1024
}

/// Lets [`peak_memory`] begin anew.
///
/// # Panics
/// When there is no such process.
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the peak of a child of ours can be reset");
}

/// The other ends of the open connections over IPv4 in the network of a process.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn connections(pid: u32) -> Vec<SocketAddr> {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("the process is there");
    let parse = |line: &str| -> Option<SocketAddr> {
        let mut words = line.split_whitespace().skip(2);
        let (remote, state) = (words.next()?, words.next()?);
        let (address, port) = remote.split_once(':')?;
        // The kernel writes the four bytes as a number of its own order.
        let address = Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.to_ne_bytes());
        (state == ESTABLISHED).then_some(SocketAddr::new(address.into(), u16::from_str_radix(port, 16).ok()?))
    };
    table.lines().skip(1).filter_map(parse).collect()
}

/// Whether a process is there and has not ended.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state comes after the name, which is in parentheses and may hold anything.
    !matches!(status.rsplit(')').next().and_then(|rest| rest.trim().chars().next()), None | Some('Z' | 'X'))
}

/// The end of a text file, for messages.
#[must_use]
pub fn last_lines(path: &Path, count: usize) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
