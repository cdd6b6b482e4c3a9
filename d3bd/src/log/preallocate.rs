//! Room for the WAL, laid out before anything is written into it. A write that lengthens a file makes the fsync behind it
//! write the file's metadata too, one thing after the other: on ext4 an fsync then waits for the disk four times, and only
//! twice where the blocks are there and hold something already.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::disk::Room;

/// What is written at once.
const PIECE: usize = 1 << 20;
/// So many times what is laid out has to be free on the disk.
const SPARE: u64 = 8;

/// Makes a file at least so long, with zeros at its end that are on the disk, unless that would take much of what the disk
/// has left. SQLite reads a WAL up to the first frame that was not written behind the one before it, which zeros are not.
/// Nobody may write to the file meanwhile.
///
/// # Errors
/// What the file system says; the file is then as long as it was. It may be used all the same, unless an fsync failed.
pub(super) fn lay_out(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len();
    let missing = bytes.saturating_sub(length);
    if missing == 0 || Room::of(path)?.for_file(missing.saturating_mul(SPARE)).is_err() {
        return Ok(());
    }
    fill(&file, length, bytes).inspect_err(|_| drop(file.set_len(length)))?;
    file.sync_all()
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
