//! The programs under test, built once by every test process, so that no test ever runs a stale one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The programs.
#[derive(Debug)]
pub struct Programs {
    /// The daemon.
    pub d3bd: PathBuf,
    /// The command line.
    pub d3bctl: PathBuf,
}

/// Builds the daemon and the command line, with the profile and the target directory of the running test.
///
/// # Panics
/// When they do not build.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(build)
}

fn build() -> Programs {
    let directory = profile_directory();
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(other) => other,
        None => panic!("{} is not a target directory", directory.display()),
    };
    let target = directory.parent().expect("the profile's directory lies in the target directory");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "d3bd", "-p", "d3bctl", "--bins", "--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(workspace())
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "the programs under test do not build");
    Programs { d3bd: directory.join("d3bd"), d3bctl: directory.join("d3bctl") }
}

/// `target/PROFILE`, from `target/PROFILE/deps/THIS` of a test or `target/PROFILE/THIS` of a program.
///
/// # Panics
/// When the running program was not built by cargo.
#[must_use]
pub fn profile_directory() -> PathBuf {
    let this = std::env::current_exe().expect("a program knows its own path");
    let directory = this.parent().expect("a program lies in a directory");
    let directory = if directory.ends_with("deps") { directory.parent().expect("deps lies in it") } else { directory };
    directory.to_owned()
}

/// The root of the source tree.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace")
}

/// A file in `tests/fixtures`.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}
