//! Linearizable reads without clocks. The leader notes its commit, has a majority confirm its ballot with one round of
//! heartbeats, and only then gives the noted commit out as the index: every write that was answered before the read was
//! asked stands at or below it, for a later leader would have needed a promise from one of that majority.
//!
//! One round is under way at a time, and what is asked meanwhile joins the next one, so that any number of reads costs
//! one message per round trip to each of a majority: those that answered the last heartbeat first (`leader.rs`). The next
//! heartbeat asks everybody again. A follower asks in the same rhythm; in a cluster where two are a majority its question,
//! which carries the ballot, is itself the acknowledgement that is needed, and is answered without a round.

use d3b::{ReplicaId, Slot};

use crate::types::{ReadId, Ticks, mix};

/// Who waits for an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    /// A read of this replica's driver.
    Own(ReadId),
    /// A follower's question.
    Peer(ReplicaId, ReadId),
}

/// A round that a majority has yet to confirm.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Round {
    /// Acknowledgements of this round and of later ones confirm it.
    number: u64,
    /// The commit when the round began; all askers had asked by then.
    index: Slot,
    askers: Vec<Asker>,
}

/// The reads that a leader confirms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct LeaderReads {
    waiting: Vec<Asker>,
    round: Option<Round>,
}

impl LeaderReads {
    /// Joins the next round. A follower has one question at a time: a new one replaces the one it has given up.
    pub(crate) fn ask(&mut self, asker: Asker) {
        if let Asker::Peer(peer, _) = asker {
            self.waiting.retain(|other| !matches!(other, Asker::Peer(id, _) if *id == peer));
        }
        self.waiting.push(asker);
    }

    /// Whether a round should begin.
    pub(crate) fn is_due(&self) -> bool {
        self.round.is_none() && !self.waiting.is_empty()
    }

    /// Whether a round waits to be confirmed.
    pub(crate) fn is_under_way(&self) -> bool {
        self.round.is_some()
    }

    /// Begins a round with all that wait.
    pub(crate) fn begin(&mut self, number: u64, index: Slot) {
        self.round = Some(Round { number, index, askers: std::mem::take(&mut self.waiting) });
    }

    /// A majority has acknowledged the ballot in this round or a later one.
    pub(crate) fn confirm(&mut self, number: u64) -> Option<(Slot, Vec<Asker>)> {
        let round = self.round.take_if(|round| round.number <= number)?;
        Some((round.index, round.askers))
    }

    /// Everyone who waits, when the leader steps down.
    pub(crate) fn into_askers(self) -> impl Iterator<Item = Asker> {
        self.round.into_iter().flat_map(|round| round.askers).chain(self.waiting)
    }
}

/// A follower's question that is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    /// Its name on the wire.
    name: ReadId,
    ids: Vec<ReadId>,
    at: Ticks,
}

/// The reads that a follower has confirmed by its leader.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct FollowerReads {
    waiting: Vec<ReadId>,
    question: Option<Question>,
}

impl FollowerReads {
    /// Joins the next question.
    pub(crate) fn ask(&mut self, id: ReadId) {
        self.waiting.push(id);
    }

    /// The next question, if none is on its way and any read waits. Its name is made of the process's seed and the
    /// youngest read, neither of which is ever used again.
    pub(crate) fn begin(&mut self, seed: u64, now: Ticks) -> Option<ReadId> {
        let youngest = *self.waiting.last()?;
        if self.question.is_some() {
            return None;
        }
        let name = ReadId(mix(seed, &[youngest.0]));
        self.question = Some(Question { name, ids: std::mem::take(&mut self.waiting), at: now });
        Some(name)
    }

    /// The question was answered, well or not: its reads.
    pub(crate) fn end(&mut self, name: ReadId) -> Option<Vec<ReadId>> {
        Some(self.question.take_if(|question| question.name == name)?.ids)
    }

    /// The question was not answered for so long: its reads.
    pub(crate) fn expire(&mut self, now: Ticks, timeout: Ticks) -> Vec<ReadId> {
        self.question.take_if(|question| now > question.at.after(timeout)).map_or(Vec::new(), |question| question.ids)
    }

    /// When to look for an answer that does not come.
    pub(crate) fn deadline(&self, timeout: Ticks) -> Option<Ticks> {
        self.question.as_ref().map(|question| question.at.after(timeout).after(Ticks(1)))
    }

    /// Every read, when the leader changes.
    pub(crate) fn into_ids(self) -> impl Iterator<Item = ReadId> {
        self.question.into_iter().flat_map(|question| question.ids).chain(self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_round_at_a_time_and_later_reads_join_the_next() {
        let mut reads = LeaderReads::default();
        reads.ask(Asker::Own(ReadId(1)));
        assert!(reads.is_due());
        reads.begin(5, Slot(3));
        reads.ask(Asker::Own(ReadId(2)));
        assert!(!reads.is_due());
        assert_eq!(reads.confirm(4), None, "a round before it confirms nothing");
        assert_eq!(reads.confirm(6), Some((Slot(3), vec![Asker::Own(ReadId(1))])));
        assert!(reads.is_due());
    }

    #[test]
    fn a_follower_has_one_question_with_the_leader() {
        let mut reads = LeaderReads::default();
        reads.ask(Asker::Peer(ReplicaId(2), ReadId(1)));
        reads.ask(Asker::Peer(ReplicaId(3), ReadId(1)));
        reads.ask(Asker::Peer(ReplicaId(2), ReadId(9)));
        let askers: Vec<_> = reads.into_askers().collect();
        assert_eq!(askers, [Asker::Peer(ReplicaId(3), ReadId(1)), Asker::Peer(ReplicaId(2), ReadId(9))]);
    }

    #[test]
    fn an_answer_to_another_process_names_another_question() {
        let ask = |seed| {
            let mut reads = FollowerReads::default();
            reads.ask(ReadId(1));
            reads.begin(seed, Ticks(0)).unwrap()
        };
        assert_ne!(ask(1), ask(2));
    }

    #[test]
    fn an_unanswered_question_expires() {
        let mut reads = FollowerReads::default();
        reads.ask(ReadId(1));
        reads.begin(0, Ticks(10)).unwrap();
        reads.ask(ReadId(2));
        assert_eq!(reads.begin(0, Ticks(11)), None);
        assert!(reads.expire(Ticks(15), Ticks(5)).is_empty());
        assert_eq!(reads.expire(Ticks(16), Ticks(5)), [ReadId(1)]);
        assert!(reads.begin(0, Ticks(16)).is_some());
    }
}
