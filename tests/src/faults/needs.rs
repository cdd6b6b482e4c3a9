//! What a test needs of the machine, and what is said where it is missing.

use std::io::Write as _;
use std::path::Path;

/// Something that not every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The rights of root, of which making namespaces is one.
    Root,
    /// A program, and the package that it comes with.
    Program(&'static str, &'static str),
    /// A device.
    Device(&'static str),
}

/// Networks of [`super::network`].
pub const NETWORK: &[Need] = &[Need::Root, Need::Program("ip", "iproute2"), Need::Device("/dev/net/tun")];
/// Mounts of [`super::mounts`].
pub const MOUNTS: &[Need] = &[Need::Root, Need::Program("mount", "mount")];
/// File systems on loop devices.
pub const LOOP: &[Need] = &[
    Need::Root,
    Need::Program("mount", "mount"),
    Need::Program("mkfs.ext4", "e2fsprogs"),
    Need::Device("/dev/loop-control"),
];
/// What is loaded before libc.
pub const PRELOAD: &[Need] = &[Need::Program("cc", "gcc")];

impl Need {
    /// What to call it, if it is missing.
    fn missing(self) -> Option<String> {
        match self {
            Need::Root => (!may_make_namespaces()).then(|| "root".to_owned()),
            Need::Program(program, package) => (!is_in_path(program)).then(|| package.to_owned()),
            Need::Device(path) => (!Path::new(path).exists()).then(|| path.to_owned()),
        }
    }
}

/// Whether everything is there. If not, the test says that it was skipped, past the capture of its output, so that
/// whoever counts the tests can count this one as what it is.
#[must_use]
pub fn are_met(needs: &[&[Need]]) -> bool {
    let mut missing: Vec<String> =
        needs.iter().flat_map(|needs| needs.iter()).filter_map(|need| need.missing()).collect();
    missing.dedup();
    if missing.is_empty() {
        return true;
    }
    let thread = std::thread::current();
    let line = format!("skipped: {}: needs {}\n", thread.name().unwrap_or("a test"), missing.join(" and "));
    // Not being able to say it fails nothing.
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn may_make_namespaces() -> bool {
    let attempt = || {
        // SAFETY: it moves this thread, which ends right after, into namespaces of its own, and touches no memory.
        unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) == 0 }
    };
    std::thread::spawn(attempt).join().unwrap_or(false)
}
