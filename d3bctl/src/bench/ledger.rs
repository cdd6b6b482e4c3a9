//! What a load was told has happened, in as little room as it takes to find out whether it has.

use std::collections::BTreeMap;

/// Squares are counted modulo this prime, so that no sum overflows.
pub(super) const MODULUS: u64 = 1_000_003;

/// A multitude of numbers: how many, their sum, and a sum that tells two wrongs from a right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The sum of their squares' remainders.
    pub squares: u64,
}

impl Tally {
    /// Adds a number below 2^32.
    pub fn add(&mut self, number: u64) {
        self.count += 1;
        self.sum += number;
        self.squares += number * number % MODULUS;
    }

    fn merge(&mut self, other: &Tally) {
        self.count += other.count;
        self.sum += other.sum;
        self.squares += other.squares;
    }
}

/// A client's number, and which of its writes.
pub type Number = (u64, u64);

/// Files that were stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Media {
    /// Acknowledged.
    pub acknowledged: Vec<Number>,
    /// Sent, and nothing is known.
    pub unknown: Vec<Number>,
}

/// What is known of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Rows whose insertion was acknowledged, by client.
    pub inserted: BTreeMap<u64, Tally>,
    /// Rows that were sent, and nothing is known. Those of one batch are there together, or not at all.
    pub inserted_unknown: Vec<(u64, std::ops::Range<u64>)>,
    /// Rows whose change was acknowledged, by their ids.
    pub updated: Tally,
    /// Changes of which nothing is known.
    pub updated_unknown: u64,
    /// Files.
    pub media: Media,
}

impl Ledger {
    /// Adds what another thread knows.
    pub fn merge(&mut self, other: Ledger) {
        for (client, tally) in other.inserted {
            self.inserted.entry(client).or_default().merge(&tally);
        }
        self.inserted_unknown.extend(other.inserted_unknown);
        self.updated.merge(&other.updated);
        self.updated_unknown += other.updated_unknown;
        self.media.acknowledged.extend(other.media.acknowledged);
        self.media.unknown.extend(other.media.unknown);
    }
}
