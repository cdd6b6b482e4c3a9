//! Blobs on their way to a majority, before the operations that name them are proposed.

use std::collections::{BTreeMap, BTreeSet};

use d3b::{BlobReference, Digest, ReplicaId};
use d3b_paxos::types::{Configuration, Ticks};

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

    /// A peer holds it. The blob is returned once a majority of those who vote does.
    pub(super) fn held_by(
        &mut self,
        digest: &Digest,
        holder: ReplicaId,
        configuration: &Configuration,
    ) -> Option<BlobReference> {
        let offer = self.offers.get_mut(digest)?;
        offer.holders.insert(holder);
        self.enough(digest, configuration)
    }

    /// Ends the offer and returns the blob if a majority of those who vote holds it: what others hold may be gone with
    /// a minority of them.
    pub(super) fn enough(&mut self, digest: &Digest, configuration: &Configuration) -> Option<BlobReference> {
        let holders = &self.offers.get(digest)?.holders;
        if configuration.voters().filter(|id| holders.contains(id)).count() < configuration.majority() {
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
    use d3b::{ClusterId, DiskId, Slot};
    use d3b_paxos::types::{Change, Member};

    use super::*;

    fn voters(count: u8) -> Configuration {
        let member = |n: u8| (ReplicaId(n.into()), Member::voter(DiskId([n; 16]), String::new()));
        Configuration::founding(ClusterId([7; 16]), (1..=count).map(member).collect())
    }

    #[test]
    fn whoever_only_learns_does_not_count() {
        let add =
            Change::Add { id: ReplicaId(4), disk: DiskId([4; 16]), peer: String::new(), replaces: Some(ReplicaId(3)) };
        let configuration = voters(3).changed(&add, Slot(9)).unwrap();
        let reference = BlobReference { digest: Digest::of(b"cat"), size: 3 };
        let mut offers = Offers::default();
        offers.begin(reference, ReplicaId(1), Ticks(0));
        assert_eq!(offers.held_by(&reference.digest, ReplicaId(4), &configuration), None);
        assert_eq!(offers.held_by(&reference.digest, ReplicaId(2), &configuration), Some(reference));
    }

    #[test]
    fn an_offer_ends_when_a_majority_holds_the_blob() {
        let reference = BlobReference { digest: Digest::of(b"cat"), size: 3 };
        let mut offers = Offers::default();
        assert!(offers.begin(reference, ReplicaId(1), Ticks(0)));
        assert!(!offers.begin(reference, ReplicaId(1), Ticks(0)));
        assert_eq!(offers.enough(&reference.digest, &voters(3)), None);
        assert_eq!(offers.held_by(&reference.digest, ReplicaId(1), &voters(3)), None, "the same holder counts once");
        assert_eq!(offers.held_by(&reference.digest, ReplicaId(3), &voters(3)), Some(reference));
        assert_eq!(offers.held_by(&reference.digest, ReplicaId(2), &voters(3)), None);
    }

    #[test]
    fn offers_are_repeated_to_those_who_are_silent_and_dropped_when_nobody_waits() {
        let reference = BlobReference { digest: Digest::of(b"cat"), size: 3 };
        let mut offers = Offers::default();
        offers.begin(reference, ReplicaId(1), Ticks(0));
        assert!(offers.due(Ticks(999), |_| true).is_empty());
        assert_eq!(offers.due(Ticks(1_000), |_| true), [(reference, BTreeSet::from([ReplicaId(1)]))]);
        assert!(offers.due(Ticks(5_000), |_| false).is_empty());
        assert_eq!(offers.held_by(&reference.digest, ReplicaId(2), &voters(3)), None);
    }
}
