//! Room for the WAL, laid out before anything is written into it. A write that lengthens a file makes the fsync behind it
//! write the file's metadata too, one thing after the other: on ext4 an fsync then waits for the disk four times, and only
//! twice where the blocks are there and hold something already.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::disk::Room;

/// What is written at once.
const PIECE: usize = 1 << 20;

/// Makes a file at least so long, with zeros at its end that are on the disk; false, and the file is as long as it was,
/// where that would take much of what the disk has. SQLite reads a WAL up to the first frame that was not written behind the
/// one before it, which zeros are not. Nobody may write to the file meanwhile.
///
/// # Errors
/// What the file system says. After that nobody knows what of the file is on the disk.
pub(super) fn lay_out(path: &Path, bytes: u64) -> io::Result<bool> {
    if !Room::of(path)?.is_ample_for(bytes) {
        return Ok(false);
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len();
    match fill(&file, length, bytes) {
        Ok(()) => file.sync_all().map(|()| true),
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            file.set_len(length)?;
            file.sync_all().map(|()| false)
        }
        Err(error) => Err(error),
    }
}

fn fill(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; PIECE];
    let mut at = from;
    while at < to {
        let piece = usize::try_from(to - at).unwrap_or(PIECE).min(PIECE);
        file.write_all_at(&zeros[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}
