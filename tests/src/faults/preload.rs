//! A library that comes between a daemon and its libc: file operations that fail, lie, tear or take long, and a clock
//! that jumps. Each daemon looks into a file of its own to see what is to go wrong; see `fixtures/faults.c`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::build::{fixture, profile_directory};
use crate::cluster::Replica;
use crate::wait::{PATIENCE, wait_until};

/// Calls that change files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// fsync and fdatasync.
    Sync = 1,
    /// write and its relatives.
    Write = 2,
    /// open.
    Open = 4,
    /// rename.
    Rename = 8,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this error number, and does nothing.
    Fail(i32),
    /// It says that it was done, and does nothing.
    Lie,
    /// A write writes half, and fails with this error number.
    Tear(i32),
    /// A write writes half, and then the process is killed.
    TearAndKill,
    /// It takes so many microseconds longer.
    Delay(u32),
}

/// Which calls go wrong, and how.
#[derive(Debug, Clone, Copy)]
pub struct Rule<'a> {
    /// The calls.
    pub call: Call,
    /// Only on files whose path holds this.
    pub path: &'a str,
    /// The first so many are left alone.
    pub skip: u32,
    /// Then so many go wrong; 0 for all.
    pub count: u32,
    /// How.
    pub fault: Fault,
}

/// Words of eight bytes in the file, in the order of `fixtures/faults.c`.
const CLOCK: u64 = 0;
const CALL: u64 = 1;
const ACTION: u64 = 2;
const DETAIL: u64 = 3;
const SKIP: u64 = 4;
const COUNT: u64 = 5;
const SEEN: u64 = 6;
const HIT: u64 = 7;
const PATH: u64 = 8;
const PATH_MAX: usize = 255;
const LENGTH: u64 = PATH * 8 + PATH_MAX as u64 + 1;

/// What goes wrong in one replica.
#[derive(Debug)]
pub struct Faults {
    control: File,
    name: String,
}

impl Faults {
    /// Lets a replica that is not started yet be started with the library.
    ///
    /// # Panics
    /// When the library does not build; [`super::needs::PRELOAD`] says what it takes.
    #[must_use]
    pub fn of(replica: &mut Replica) -> Faults {
        let path = replica.log.with_extension("faults");
        let control = File::options().read(true).write(true).create_new(true).open(&path).expect("a new file");
        control.set_len(LENGTH).expect("room for a few bytes");
        replica.set_environment("LD_PRELOAD", library().as_os_str());
        replica.set_environment("FAULTS_CONTROL", path.as_os_str());
        Faults { control, name: format!("replica {}", replica.id) }
    }

    /// Lets something go wrong from now on, in place of what went wrong before.
    pub fn set(&self, rule: Rule<'_>) {
        println!("{}: {rule:?}", self.name);
        assert!(rule.path.len() < PATH_MAX, "{} is too long", rule.path);
        let (action, detail) = match rule.fault {
            Fault::Fail(error) => (1, i64::from(error)),
            Fault::Lie => (2, 0),
            Fault::Tear(error) => (3, i64::from(error)),
            Fault::TearAndKill => (4, 0),
            Fault::Delay(microseconds) => (5, i64::from(microseconds)),
        };
        self.clear();
        let mut path = rule.path.as_bytes().to_vec();
        path.push(0);
        self.control.write_all_at(&path, PATH * 8).expect("a file of ours");
        self.put(CALL, rule.call as i64);
        self.put(DETAIL, detail);
        self.put(SKIP, i64::from(rule.skip));
        self.put(COUNT, i64::from(rule.count));
        self.put(SEEN, 0);
        self.put(HIT, 0);
        // Last: from here on it counts.
        self.put(ACTION, action);
    }

    /// Lets everything be done as it is asked for.
    pub fn clear(&self) {
        self.put(ACTION, 0);
    }

    /// How many calls went wrong since the rule was set.
    #[must_use]
    pub fn hits(&self) -> i64 {
        self.get(HIT)
    }

    /// Waits until something went wrong.
    #[track_caller]
    pub fn wait_for_hit(&self) {
        wait_until(&format!("{}: something goes wrong", self.name), PATIENCE, || self.hits() > 0);
    }

    /// Sets the wall clock ahead by so many milliseconds, or back.
    pub fn set_clock(&self, ahead: i64) {
        println!("{}: its clock is {ahead} ms ahead", self.name);
        self.put(CLOCK, ahead);
    }

    fn put(&self, word: u64, value: i64) {
        self.control.write_all_at(&value.to_ne_bytes(), word * 8).expect("a file of ours");
    }

    fn get(&self, word: u64) -> i64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, word * 8).expect("a file of ours");
        i64::from_ne_bytes(bytes)
    }
}

/// The library, built once by every test process.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let library = profile_directory().join("libd3b_faults.so");
        let fresh = library.with_extension(format!("so.{}", std::process::id()));
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-o"])
            .arg(&fresh)
            .arg(fixture("faults.c"))
            .arg("-ldl")
            .status();
        assert!(status.is_ok_and(|status| status.success()), "faults.c does not build");
        std::fs::rename(&fresh, &library).expect("a file of ours can be renamed");
        library
    })
}
