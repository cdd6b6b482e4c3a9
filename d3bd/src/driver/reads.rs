//! Linearizable reads on their way: asked, confirmed by the core, and waiting for the engine to catch up.

use std::collections::{BTreeMap, BTreeSet};

use d3b::Slot;
use d3b_paxos::types::{ReadId, Ticks};

use super::event::{ReadRequest, Ticket};

/// How many reads may wait at once; more are refused.
const READS_MAX: usize = 65_536;

/// The reads of this replica's clients.
///
/// Every known ticket stands in `deadlines`, and in exactly one of `arrived`, `asked` and `confirmed`.
#[derive(Debug, Default)]
pub(super) struct Reads {
    next_id: u64,
    deadlines: BTreeMap<Ticket, Ticks>,
    by_deadline: BTreeSet<(Ticks, Ticket)>,
    arrived: Vec<Ticket>,
    asked: BTreeMap<ReadId, Vec<Ticket>>,
    confirmed: BTreeSet<(Slot, Ticket)>,
}

impl Reads {
    /// Takes a read; false when too many wait.
    pub(super) fn add(&mut self, request: &ReadRequest) -> bool {
        if self.deadlines.len() >= READS_MAX {
            return false;
        }
        self.deadlines.insert(request.ticket, request.deadline);
        self.by_deadline.insert((request.deadline, request.ticket));
        self.arrived.push(request.ticket);
        true
    }

    /// All reads that arrived since the last call share one question to the core.
    pub(super) fn ask(&mut self) -> Option<ReadId> {
        let tickets: Vec<Ticket> =
            self.arrived.drain(..).filter(|ticket| self.deadlines.contains_key(ticket)).collect();
        if tickets.is_empty() {
            return None;
        }
        self.next_id += 1;
        let id = ReadId(self.next_id);
        self.asked.insert(id, tickets);
        Some(id)
    }

    /// The core has confirmed a read index.
    pub(super) fn confirm(&mut self, id: ReadId, index: Slot) {
        for ticket in self.asked.remove(&id).unwrap_or_default() {
            if self.deadlines.contains_key(&ticket) {
                self.confirmed.insert((index, ticket));
            }
        }
    }

    /// The core has given up a question: its reads arrive anew, under a fresh id.
    pub(super) fn fail(&mut self, id: ReadId) {
        self.arrived.extend(self.asked.remove(&id).unwrap_or_default());
    }

    /// How many reads wait, and how many are named anywhere in the books.
    pub(super) fn len(&self) -> usize {
        let asked: usize = self.asked.values().map(Vec::len).sum();
        self.deadlines.len().max(self.arrived.len() + asked + self.confirmed.len())
    }

    /// Whether an answer of the core is awaited.
    pub(super) fn is_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Whether reads wait to be asked.
    pub(super) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// The reads whose index is applied.
    pub(super) fn take_visible(&mut self, applied: Slot) -> Vec<(Ticket, Slot)> {
        let later = self.confirmed.split_off(&(applied.next(), Ticket(0)));
        let visible = std::mem::replace(&mut self.confirmed, later);
        visible
            .into_iter()
            .filter_map(|(index, ticket)| {
                let deadline = self.deadlines.remove(&ticket)?;
                self.by_deadline.remove(&(deadline, ticket));
                Some((ticket, index))
            })
            .collect()
    }

    /// The reads whose time is up; they leave the books, and later answers to them are ignored.
    pub(super) fn take_expired(&mut self, now: Ticks) -> Vec<Ticket> {
        let mut expired = Vec::new();
        while let Some(&(deadline, ticket)) = self.by_deadline.first() {
            if deadline > now {
                break;
            }
            self.by_deadline.pop_first();
            self.deadlines.remove(&ticket);
            expired.push(ticket);
        }
        if !expired.is_empty() {
            // Without a leader nobody asks, and what arrived would pile up.
            self.arrived.retain(|ticket| self.deadlines.contains_key(ticket));
            self.confirmed.retain(|(_, ticket)| self.deadlines.contains_key(ticket));
            for tickets in self.asked.values_mut() {
                tickets.retain(|ticket| self.deadlines.contains_key(ticket));
            }
        }
        expired
    }

    /// Every read; later answers to them are ignored.
    pub(super) fn take_all(&mut self) -> Vec<Ticket> {
        let all = std::mem::replace(self, Reads { next_id: self.next_id, ..Reads::default() });
        all.deadlines.into_keys().collect()
    }

    /// When the next read's time is up.
    pub(super) fn next_deadline(&self) -> Option<Ticks> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(ticket: u64, deadline: u64) -> ReadRequest {
        ReadRequest { ticket: Ticket(ticket), deadline: Ticks(deadline) }
    }

    #[test]
    fn reads_that_arrive_together_share_a_question() {
        let mut reads = Reads::default();
        assert!(reads.add(&request(1, 100)) && reads.add(&request(2, 100)));
        let id = reads.ask().unwrap();
        assert_eq!(reads.ask(), None);
        reads.confirm(id, Slot(5));
        assert!(reads.take_visible(Slot(4)).is_empty());
        assert_eq!(reads.take_visible(Slot(5)), [(Ticket(1), Slot(5)), (Ticket(2), Slot(5))]);
        assert_eq!(reads.next_deadline(), None);
    }

    #[test]
    fn a_failed_question_is_asked_again_under_a_fresh_id() {
        let mut reads = Reads::default();
        reads.add(&request(1, 100));
        let first = reads.ask().unwrap();
        reads.fail(first);
        let second = reads.ask().unwrap();
        assert_ne!(first, second);
        reads.confirm(first, Slot(1));
        assert!(reads.take_visible(Slot(9)).is_empty(), "the answer to the failed question counts for nothing");
        reads.confirm(second, Slot(2));
        assert_eq!(reads.take_visible(Slot(9)).len(), 1);
    }

    #[test]
    fn an_expired_read_is_gone_for_good() {
        let mut reads = Reads::default();
        reads.add(&request(1, 10));
        let id = reads.ask().unwrap();
        assert_eq!(reads.take_expired(Ticks(10)), [Ticket(1)]);
        reads.confirm(id, Slot(1));
        assert!(reads.take_visible(Slot(1)).is_empty());
    }

    #[test]
    fn reads_that_expire_unasked_leave_nothing_behind() {
        let mut reads = Reads::default();
        for ticket in 0..100 {
            reads.add(&request(ticket, 10 + ticket));
            reads.take_expired(Ticks(10 + ticket));
        }
        assert!(!reads.has_arrived() && reads.deadlines.is_empty() && reads.arrived.is_empty());
    }
}
