//! Rules of the driver that a test may have it break, to see that the test finds out.

use d3b_paxos::Storage;

use super::Driver;
use crate::log::Proof;

/// A rule to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// An execution version begins when a majority of the members has it.
    ExecutionOfMajority,
    /// A quarantined replica answers reads.
    QuarantinedAnswers,
    /// A quarantined replica gives snapshots of what it holds.
    QuarantinedGives,
}

impl Planted {
    /// Every planted bug.
    pub const ALL: [Planted; 3] =
        [Planted::ExecutionOfMajority, Planted::QuarantinedAnswers, Planted::QuarantinedGives];
}

impl<S: Storage + Clone, D: Proof> Driver<S, D> {
    /// Breaks one rule of the driver, for a mutation test.
    pub fn mislead(&mut self, planted: Planted) {
        self.misled = Some(planted);
    }

    pub(super) fn breaks(&self, planted: Planted) -> bool {
        self.misled == Some(planted)
    }
}
