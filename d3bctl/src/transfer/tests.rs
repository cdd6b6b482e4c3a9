//! Downloads are whole, or nothing is left of them.

use clap::Parser as _;

use super::*;
use crate::progress::{Progress, Shown};
use crate::settings::Settings;
use crate::tests::server::{answer, response};

const CONTENT: &[u8] = b"what the server has";

fn progress() -> Shown {
    let cli = crate::cli::Cli::try_parse_from(["d3bctl", "list", "-q"]).unwrap();
    Progress::bytes(&Settings::new(&cli.globals).unwrap(), "", None)
}

fn expected() -> Expected {
    Expected { size: Some(CONTENT.len() as u64), digest: Some(Digest::of(CONTENT)) }
}

fn download(path: &Path, bytes: Vec<u8>, expected: Expected) -> Result<(), CliError> {
    let mut target = Target::create(path)?;
    let mut hasher = Hasher::new();
    target.receive(&mut response(bytes), &mut hasher, &progress())?;
    target.finish(hasher, &expected)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_whole_download_takes_the_place_of_its_target() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("target");
    std::fs::write(&path, b"old").unwrap();
    download(&path, answer("", CONTENT.len(), CONTENT), expected()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
    assert_eq!(names(directory.path()), ["target"]);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o600, 0o600);
    assert_eq!(mode & 0o111, 0);
}

#[test]
fn a_damaged_download_leaves_the_target_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("target");
    std::fs::write(&path, b"old").unwrap();
    let wrong = Expected { digest: Some(Digest::of(b"something else")), ..expected() };
    let error = download(&path, answer("", CONTENT.len(), CONTENT), wrong).unwrap_err();
    assert!(matches!(error, CliError::Damaged(Damage::Digest { .. })), "{error}");
    assert_eq!(error.exit_code(), 9);
    let short = Expected { size: Some(99), digest: None };
    let error = download(&path, answer("", CONTENT.len(), CONTENT), short).unwrap_err();
    assert!(matches!(error, CliError::Damaged(Damage::Size { expected: 99, .. })), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names(directory.path()), ["target"]);
}

#[test]
fn a_download_that_breaks_off_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("target");
    let error = download(&path, answer("", 10 << 20, CONTENT), Expected::default()).unwrap_err();
    assert_eq!(error.exit_code(), 8, "{error}");
    assert!(names(directory.path()).is_empty());
}

#[test]
fn a_link_stays_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let (path, link) = (directory.path().join("target"), directory.path().join("link"));
    std::fs::write(&path, b"old").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    download(&link, answer("", CONTENT.len(), CONTENT), expected()).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
}

#[test]
fn a_device_stays_a_device() {
    download(Path::new("/dev/null"), answer("", CONTENT.len(), CONTENT), expected()).unwrap();
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn a_target_without_a_directory_is_an_error_of_this_side() {
    let error = Target::create(Path::new("/no/such/directory/file")).unwrap_err();
    assert!(matches!(&error, CliError::File { .. }), "{error}");
}

#[test]
fn a_broken_download_is_taken_up_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("target");
    let (mut target, mut hasher) = Target::resume(&path, &progress()).unwrap();
    // A body that is not small breaks off while it is received.
    let error =
        target.receive(&mut response(answer("", 10 << 20, &CONTENT[..5])), &mut hasher, &progress()).unwrap_err();
    assert_eq!(error.exit_code(), 8);
    drop(target);
    assert_eq!(names(directory.path()), ["target.part"]);

    let (mut target, mut hasher) = Target::resume(&path, &progress()).unwrap();
    assert_eq!(hasher.length(), 5);
    let rest = &CONTENT[5..];
    target.receive(&mut response(answer("", rest.len(), rest)), &mut hasher, &progress()).unwrap();
    target.finish(hasher, &expected()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
    assert_eq!(names(directory.path()), ["target"]);
}

#[test]
fn a_damaged_beginning_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("target");
    std::fs::write(directory.path().join("target.part"), b"WHAT").unwrap();
    let (mut target, mut hasher) = Target::resume(&path, &progress()).unwrap();
    let rest = &CONTENT[4..];
    target.receive(&mut response(answer("", rest.len(), rest)), &mut hasher, &progress()).unwrap();
    assert_eq!(target.finish(hasher, &expected()).unwrap_err().exit_code(), 9);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn a_source_is_digested_and_measured() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), CONTENT).unwrap();
    let source = Source::open(file.path()).unwrap();
    assert_eq!(source.length, CONTENT.len() as u64);
    assert_eq!(source.beginning(4).unwrap(), b"what");
    assert_eq!(source.beginning(1_000).unwrap(), CONTENT);
    assert_eq!(source.digest(&progress()).unwrap(), Digest::of(CONTENT));
    assert!(Source::open(Path::new("/")).is_err(), "a directory is no file");
}
