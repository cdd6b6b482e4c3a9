//! Blobs on their way to a majority, before the operations that name them are proposed.

use std::collections::{BTreeMap, BTreeSet};

use d3b::{BlobReference, Digest, ReplicaId};
use d3b_paxos::types::Ticks;

/// An offer that was not answered for so long is made again.
const OFFER_INTERVAL: Ticks = Ticks(1_000);

/// A blob that this replica holds and offers.
#[derive(Debug)]
struct Offer {
    reference: BlobReference,
    holders: BTreeSet<ReplicaId>,
    offered_at: Ticks,
}

/// The blobs that this replica offers. An offer ends with the last write that waits for it.
#[derive(Debug, Default)]
pub(super) struct Offers {
    offers: BTreeMap<Digest, Offer>,
}

impl Offers {
    /// Begins to offer a blob; false if it is being offered already.
    pub(super) fn begin(&mut self, reference: BlobReference, me: ReplicaId, now: Ticks) -> bool {
        if self.offers.contains_key(&reference.digest) {
            return false;
        }
        let holders = BTreeSet::from([me]);
        self.offers.insert(reference.digest, Offer { reference, holders, offered_at: now });
        true
    }

    /// A peer holds it. The blob is returned once a majority does.
    pub(super) fn held_by(&mut self, digest: &Digest, holder: ReplicaId, majority: usize) -> Option<BlobReference> {
        let offer = self.offers.get_mut(digest)?;
        offer.holders.insert(holder);
        self.enough(digest, majority)
    }

    /// Ends the offer and returns the blob if a majority holds it.
    pub(super) fn enough(&mut self, digest: &Digest, majority: usize) -> Option<BlobReference> {
        if self.offers.get(digest)?.holders.len() < majority {
            return None;
        }
        self.offers.remove(digest).map(|offer| offer.reference)
    }

    /// How many blobs are offered.
    pub(super) fn len(&self) -> usize {
        self.offers.len()
    }

    /// The offers to make again, with those who have not answered; offers that no write wants any more are dropped.
    pub(super) fn due(
        &mut self,
        now: Ticks,
        wanted: impl Fn(&BlobReference) -> bool,
    ) -> Vec<(BlobReference, BTreeSet<ReplicaId>)> {
        self.offers.retain(|_, offer| wanted(&offer.reference));
        let mut due = Vec::new();
        for offer in self.offers.values_mut() {
            if now.0 >= offer.offered_at.0 + OFFER_INTERVAL.0 {
                offer.offered_at = now;
                due.push((offer.reference, offer.holders.clone()));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_ends_when_a_majority_holds_the_blob() {
        let reference = BlobReference { digest: Digest::of(b"cat"), size: 3 };
        let mut offers = Offers::default();
        assert!(offers.begin(reference, ReplicaId(1), Ticks(0)));
        assert!(!offers.begin(reference, ReplicaId(1), Ticks(0)));
        assert_eq!(offers.enough(&reference.digest, 2), None);
        assert_eq!(offers.held_by(&reference.digest, ReplicaId(1), 2), None, "the same holder counts once");
        assert_eq!(offers.held_by(&reference.digest, ReplicaId(3), 2), Some(reference));
        assert_eq!(offers.held_by(&reference.digest, ReplicaId(2), 2), None);
    }

    #[test]
    fn offers_are_repeated_to_those_who_are_silent_and_dropped_when_nobody_waits() {
        let reference = BlobReference { digest: Digest::of(b"cat"), size: 3 };
        let mut offers = Offers::default();
        offers.begin(reference, ReplicaId(1), Ticks(0));
        assert!(offers.due(Ticks(999), |_| true).is_empty());
        assert_eq!(offers.due(Ticks(1_000), |_| true), [(reference, BTreeSet::from([ReplicaId(1)]))]);
        assert!(offers.due(Ticks(5_000), |_| false).is_empty());
        assert_eq!(offers.held_by(&reference.digest, ReplicaId(2), 2), None);
    }
}
