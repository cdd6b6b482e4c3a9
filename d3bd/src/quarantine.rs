//! `DATA/quarantined`: that this replica holds other data than the majority, and why. A process that finds it neither votes
//! nor answers until its databases were replaced by a peer's.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::disk::remove_file;

/// The file in the data directory.
const FILE: &str = "quarantined";

fn place(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// Why the replica of this directory is quarantined, if it is.
///
/// # Errors
/// Whatever the disk says; a file that is there counts, whatever it holds.
pub(crate) fn read(data_dir: &Path) -> io::Result<Option<String>> {
    match std::fs::read(place(data_dir)) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Quarantines the replica of this directory, durably.
///
/// # Errors
/// Whatever the disk says.
pub(crate) fn write(data_dir: &Path, reason: &str) -> io::Result<()> {
    let mut file = File::create(place(data_dir))?;
    writeln!(file, "{reason}")?;
    file.sync_all()?;
    File::open(data_dir)?.sync_all()
}

/// Lets the replica of this directory take part again, durably.
///
/// # Errors
/// Whatever the disk says.
pub(crate) fn remove(data_dir: &Path) -> io::Result<()> {
    remove_file(&place(data_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_by_the_next_process() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), None);
        write(directory.path(), "it differs").unwrap();
        assert_eq!(read(directory.path()).unwrap().as_deref(), Some("it differs"));
        std::fs::write(place(directory.path()), b"").unwrap();
        assert_eq!(read(directory.path()).unwrap().as_deref(), Some(""), "a torn one counts as well");
        remove(directory.path()).unwrap();
        remove(directory.path()).unwrap();
        assert_eq!(read(directory.path()).unwrap(), None);
    }
}
