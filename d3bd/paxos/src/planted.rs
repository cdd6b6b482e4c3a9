//! Rules of the protocol that a test can switch off, to see that the checks find it. Behind the feature
//! `planted-bugs`; without it every question is answered "no" at compile time.

/// A rule to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Planted {
    /// An Accept below the promise is accepted.
    NoPromiseCheck,
    /// Entries are acknowledged while their write is still under way, so that a crash loses what was acknowledged.
    LoseAcknowledgedEntryAtCrash,
    /// Phase one takes any value that was reported, not the highest ballot's.
    AnyValueInPhaseOne,
    /// What a majority holds at older ballots counts as chosen.
    CommitAcrossBallots,
    /// Reads are answered before the barrier is chosen.
    ReadBeforeBarrier,
    /// After a restart the own promised ballot is campaigned with once more.
    BallotReusedAfterRestart,
    /// Entries are applied that are held only at an older ballot.
    ApplyBeyondDurableUpto,
    /// The own commit, from which runs begin, is the number that was heard.
    CommitBelievedAsHeard,
    /// What depends on a write is sent before the write.
    SendBeforePersist,
    /// A replica on a disk that the configuration does not name votes.
    WipedDiskVotes,
}

impl Planted {
    /// Every planted bug.
    pub const ALL: [Planted; 10] = [
        Planted::NoPromiseCheck,
        Planted::LoseAcknowledgedEntryAtCrash,
        Planted::AnyValueInPhaseOne,
        Planted::CommitAcrossBallots,
        Planted::ReadBeforeBarrier,
        Planted::BallotReusedAfterRestart,
        Planted::ApplyBeyondDurableUpto,
        Planted::CommitBelievedAsHeard,
        Planted::SendBeforePersist,
        Planted::WipedDiskVotes,
    ];
}
