//! Nothing is said before it is true of the disk: what the worlds of this crate demand of every message when it leaves.

use d3b::Slot;
use d3b_paxos::message::Message;
use d3b_paxos::types::{Ballot, Entry, Record};

/// What survives a replica's process.
pub trait Disk {
    /// The promise.
    fn promised(&self) -> Ballot;

    /// Whether it holds a record in a slot that satisfies a condition.
    fn holds(&self, slot: Slot, condition: impl FnOnce(&Record) -> bool) -> bool;
}

/// A message says more than is true of its sender's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overstatement {
    /// It speaks for a ballot that is not promised.
    #[error("it speaks for {0} before the promise is durable")]
    Ballot(Ballot),
    /// It speaks for a record that is not there.
    #[error("it speaks for slot {slot} at {ballot}, which is not durable")]
    Record {
        /// The record's.
        slot: Slot,
        /// The record's.
        ballot: Ballot,
    },
}

/// Checks a message that leaves a replica which has applied so much: what was applied was found to be chosen and on this
/// disk. `chosen` knows what is chosen in a slot.
///
/// # Errors
/// It says more than is true of the sender's disk.
pub fn check<'a>(
    message: &Message,
    disk: &impl Disk,
    applied: Slot,
    chosen: impl Fn(Slot) -> Option<&'a Entry>,
) -> Result<(), Overstatement> {
    match message {
        Message::Prepare { ballot, .. } => promised(disk, *ballot),
        Message::Promise { ballot, records, .. } => {
            promised(disk, *ballot)?;
            // Meanwhile it may hold more than it says.
            let missing = records.iter().find(|said| !disk.holds(said.slot, |held| held.ballot >= said.ballot));
            missing.map_or(Ok(()), |Record { slot, ballot, .. }| record(*slot, *ballot))
        }
        Message::Accepted { ballot, upto, .. } => {
            promised(disk, *ballot)?;
            let counts =
                |slot: &Slot| disk.holds(*slot, |held| held.ballot >= *ballot || chosen(*slot) == Some(&held.entry));
            let missing = (applied.0 + 1..=upto.0).map(Slot).find(|slot| !counts(slot));
            missing.map_or(Ok(()), |slot| record(slot, *ballot))
        }
        Message::PreVote { .. }
        | Message::PreVoteReply { .. }
        | Message::PromiseMore { .. }
        | Message::Accept { .. }
        | Message::Nack { .. }
        | Message::ReadIndex { .. }
        | Message::ReadIndexAt { .. }
        | Message::ReadIndexReply { .. }
        | Message::TimeoutNow { .. }
        | Message::Behind { .. }
        | Message::Superseded { .. } => Ok(()),
    }
}

fn promised(disk: &impl Disk, ballot: Ballot) -> Result<(), Overstatement> {
    if disk.promised() >= ballot { Ok(()) } else { Err(Overstatement::Ballot(ballot)) }
}

fn record(slot: Slot, ballot: Ballot) -> Result<(), Overstatement> {
    Err(Overstatement::Record { slot, ballot })
}
