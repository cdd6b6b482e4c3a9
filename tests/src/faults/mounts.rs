//! File systems of a test's own: small ones that fill up, and ones that lose power.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::wait::{PATIENCE, wait_until};

/// ext4's way to stop as in a power cut: `EXT4_IOC_SHUTDOWN` of `fs/ext4/ext4.h`, `_IOR('X', 125, __u32)`.
const EXT4_SHUTDOWN: libc::Ioctl = 0x8004_587d;
/// What is in memory only, data and journal alike, never reaches the disk.
const WITHOUT_FLUSH: u32 = 2;
/// The major number of loop devices.
const LOOP_MAJOR: u32 = 7;

/// Gives the calling thread mounts of its own, and with it every thread and process that it starts later. They are gone
/// when these are.
///
/// # Panics
/// When the machine refuses; [`super::needs::MOUNTS`] says what it takes.
pub fn own_mounts() {
    // SAFETY: it changes which mounts the calling thread sees, and no memory.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(unshared, 0, "no mounts of our own: {}", std::io::Error::last_os_error());
    // What is mounted from here on must not be seen by anyone else.
    run(Command::new("mount").args(["--make-rprivate", "/"]));
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A mount that goes when it is dropped.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// A file system in memory with so much room.
    #[must_use]
    #[track_caller]
    pub fn tmpfs(at: &Path, mebibytes: u64) -> Mount {
        make_directory(at);
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]).arg(at));
        Mount { at: at.to_owned() }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Takes up all the room that is left, with a file that is returned.
    ///
    /// # Panics
    /// When it cannot be filled.
    #[must_use]
    pub fn fill(&self) -> PathBuf {
        let path = self.at.join("lost+found");
        let mut file = File::create(&path).expect("a full disk has room for one more name");
        let piece = vec![0x55; 1 << 16];
        let mut length = piece.len();
        while length > 0 {
            match std::io::Write::write(&mut file, &piece[..length]) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => length /= 2,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever still uses it keeps it until it ends; then it is gone.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
    }
}

/// An ext4 in a file, whose power can be cut.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount: Mount,
}

impl Disk {
    /// Makes it and mounts it.
    ///
    /// # Panics
    /// When the machine refuses; [`super::needs::LOOP`] says what it takes.
    #[must_use]
    #[track_caller]
    pub fn new(image: &Path, at: &Path, mebibytes: u64) -> Disk {
        File::create_new(image).and_then(|file| file.set_len(mebibytes << 20)).expect("room for a disk");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image));
        make_directory(at);
        mount(image, at);
        Disk { image: image.to_owned(), mount: Mount { at: at.to_owned() } }
    }

    /// Cuts the power: what was not synced by now never was. Whoever uses the disk gets errors from now on.
    ///
    /// # Panics
    /// When it is not on a loop device, or the kernel refuses.
    pub fn cut_power(&self) {
        let directory = File::open(&self.mount.at).expect("the mounted directory");
        let device = std::os::unix::fs::MetadataExt::dev(&directory.metadata().expect("it is open"));
        assert_eq!(libc::major(device), LOOP_MAJOR, "{} is no disk of ours", self.mount.at.display());
        let how = WITHOUT_FLUSH;
        // SAFETY: the descriptor is open, and the kernel reads four bytes that outlive the call.
        let done = unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_SHUTDOWN, &raw const how) };
        assert_eq!(done, 0, "the power cannot be cut: {}", std::io::Error::last_os_error());
    }

    /// Mounts it again, after everybody who used it is gone.
    #[track_caller]
    pub fn restore_power(&self) {
        wait_until("nobody uses the disk any more", PATIENCE, || {
            Command::new("umount").arg(&self.mount.at).output().is_ok_and(|output| output.status.success())
        });
        mount(&self.image, &self.mount.at);
    }
}

/// The journal is written when somebody asks for it, hardly ever by itself.
#[track_caller]
fn mount(image: &Path, at: &Path) {
    run(Command::new("mount").args(["-t", "ext4", "-o", "loop,commit=300"]).arg(image).arg(at));
}

#[track_caller]
fn make_directory(at: &Path) {
    std::fs::create_dir_all(at).expect("a directory to mount on");
}
