//! Rules of the protocol that a mutation test can switch off, to see that the checks notice. Behind the feature
//! `planted-bugs`; without it every question is answered "no" at compile time.

/// A rule to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Planted {
    /// An Accept below the promise is accepted.
    NoPromiseCheck,
    /// Entries are acknowledged while their write is still under way, so that a crash loses what was acknowledged.
    LoseAcknowledgedEntryAtCrash,
    /// Phase one takes the lowest ballot's value instead of the highest one's.
    AnyValueInPhaseOne,
    /// What a majority holds at older ballots counts as chosen.
    CommitAcrossBallots,
    /// Reads are answered before the barrier is chosen.
    ReadBeforeBarrier,
    /// Reads are answered without asking a majority whether this replica still leads.
    ReadWithoutRound,
    /// A follower's question confirms itself also where more than two are a majority.
    QuestionConfirmsAlone,
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
    /// A configuration is adopted when it is accepted, chosen or not.
    ConfigurationAdoptedUnchosen,
    /// What follows a new configuration in the log is proposed before that is chosen, by the majority that was.
    ProposalsBehindConfiguration,
}

#[cfg(feature = "planted-bugs")]
impl Planted {
    /// Every planted bug.
    pub const ALL: [Planted; 14] = [
        Planted::NoPromiseCheck,
        Planted::LoseAcknowledgedEntryAtCrash,
        Planted::AnyValueInPhaseOne,
        Planted::CommitAcrossBallots,
        Planted::ReadBeforeBarrier,
        Planted::ReadWithoutRound,
        Planted::QuestionConfirmsAlone,
        Planted::BallotReusedAfterRestart,
        Planted::ApplyBeyondDurableUpto,
        Planted::CommitBelievedAsHeard,
        Planted::SendBeforePersist,
        Planted::WipedDiskVotes,
        Planted::ConfigurationAdoptedUnchosen,
        Planted::ProposalsBehindConfiguration,
    ];
}

/// Which rule this replica breaks: none, and no space, without the feature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Mutation {
    #[cfg(feature = "planted-bugs")]
    planted: Option<Planted>,
}

impl Mutation {
    /// Breaks a rule.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn plant(&mut self, planted: Planted) {
        self.planted = Some(planted);
    }

    /// Whether the rule is broken.
    #[inline]
    pub(crate) fn breaks(self, rule: Planted) -> bool {
        #[cfg(feature = "planted-bugs")]
        let broken = self.planted == Some(rule);
        #[cfg(not(feature = "planted-bugs"))]
        let broken = {
            let _ = rule;
            false
        };
        broken
    }
}
