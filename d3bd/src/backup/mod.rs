//! Backups: everything that a replica holds as one archive ([`d3b::archive`]), and such an archive made into files that an
//! empty cluster can take over.
//!
//! A backup is fuzzy as a snapshot is: its files are copied while writes go on, each stands at a slot of its own, and the
//! log of the archive brings all of them to one. That happens when it is restored, on the replica that was asked: it
//! [unpacks](`Unpacked`) the archive, [replays](`replay`) its log on the files with an engine of its own, and offers what
//! comes of it to the group.

mod records;
mod replay;
mod take;
mod unpack;

pub(crate) use replay::{Restored, Wanted, replay};
pub(crate) use take::{About, Prepared, World, prepare};
pub(crate) use unpack::Unpacked;

use d3b::archive::ArchiveError;
use d3b::{Code, Problem};

use crate::handle::io_problem;

/// What is wrong with an archive, as a client sees it.
pub(crate) fn archive_problem(error: ArchiveError) -> Problem {
    match error {
        ArchiveError::Taker(error) | ArchiveError::Source(error) => io_problem(error),
        ArchiveError::Cut(_) | ArchiveError::Damaged(_) => Problem::new(Code::DigestMismatch, error.to_string())
            .with_hint("nothing was restored; d3bctl backup --verify FILE checks an archive"),
        ArchiveError::Foreign(_) | ArchiveError::Format(_) => Problem::new(Code::BadRequest, error.to_string())
            .with_hint("nothing was restored; d3bctl backup makes the archives that are taken here"),
    }
}
