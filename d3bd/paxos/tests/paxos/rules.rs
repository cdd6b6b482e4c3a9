//! The rules of promising and accepting, and who is heard at all.

use d3b::{ClusterId, DiskId, ReplicaId, Slot};
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{Ballot, Change, Epoch, Payload, ReadId};
use d3b_paxos::{Input, Reply, Role};

use crate::disk::Disk;
use crate::one::{One, accept, accepted, ballot, entry, promise, record};
use crate::world::{CLOCK_MS, configuration};

// Promises.

#[test]
fn a_promise_binds_at_receipt_and_is_told_after_the_sync() {
    let mut one = One::new(3);
    one.hear(2, Message::Prepare { ballot: ballot(2, 2), from: Slot(1) });
    one.hear(3, accept(ballot(1, 3), 1, &["old"], 0, 1));
    let said = one.says();
    assert!(matches!(said[..], [(3, Message::Nack { promised, .. })] if promised == ballot(2, 2)), "{said:?}");
    assert_eq!(one.writing.as_ref().unwrap().promised, Some(ballot(2, 2)));
    assert_eq!(one.persist(), [(2, promise(ballot(2, 2), 0, 1, vec![]))]);
}

#[test]
fn a_higher_ballot_stored_is_not_thereby_granted() {
    // FAULTS 16: of two candidates only the higher one has the promise, in whatever order the disk gets to know them.
    let mut one = One::new(3);
    one.hear(2, Message::Prepare { ballot: ballot(2, 2), from: Slot(1) });
    one.hear(3, Message::Prepare { ballot: ballot(2, 3), from: Slot(1) });
    one.hear(2, Message::Prepare { ballot: ballot(2, 2), from: Slot(1) });
    let said = one.settle();
    assert!(matches!(
        said[..],
        [(2, Message::Nack { .. }), (3, Message::Promise { ballot: granted, .. })] if granted == ballot(2, 3)
    ));
}

#[test]
fn a_promise_tells_all_that_is_accepted_in_chunks() {
    let mut one = One::new(3);
    one.hear(2, accept(ballot(1, 2), 1, &["a", "b", "c", "d", "e", "f"], 0, 1));
    one.settle();
    let ballot = ballot(2, 3);
    one.hear(3, Message::Prepare { ballot, from: Slot(2) });
    let mut told = Vec::new();
    let mut said = one.settle();
    loop {
        let Some((3, Message::Promise { records, next, .. })) = said.pop() else { panic!("no promise") };
        told.extend(records.into_iter().map(|record| record.slot.0));
        let Some(from) = next else { break };
        one.hear(3, Message::PromiseMore { ballot, from });
        said = one.settle();
    }
    assert_eq!(told, [2, 3, 4, 5, 6]);
}

#[test]
fn pre_votes_change_nothing_and_are_no_votes() {
    // FAULTS 9.
    let mut one = One::new(3);
    one.pass(299);
    let before = one.replica.clone();
    one.hear(2, Message::PreVote { round: 9, commit: Slot(0), nonce: 5 });
    let said = one.says();
    assert!(matches!(said[..], [(2, Message::PreVoteReply { nonce: 5, granted: false, .. })]), "it just started");
    assert_eq!(one.replica, before);

    let ballot = one.campaign();
    one.settle();
    let (granted, promised, commit) = (true, Ballot::ZERO, Slot(0));
    for peer in [2, 3] {
        one.hear(peer, Message::PreVoteReply { nonce: 5, granted, promised, commit });
    }
    assert_eq!((one.role(), one.replica.promised()), (Role::Candidate, ballot));
}

#[test]
fn pre_votes_are_granted_when_no_leader_is_heard() {
    let mut one = One::new(3);
    let ask = |one: &mut One, from, commit| {
        one.hear(from, Message::PreVote { round: 9, commit: Slot(commit), nonce: 5 });
        match one.says().pop() {
            Some((_, Message::PreVoteReply { granted, .. })) => granted,
            other => panic!("no answer: {other:?}"),
        }
    };
    one.hear(2, accept(ballot(1, 2), 1, &["a"], 0, 1));
    one.settle();
    one.hear(2, accept(ballot(1, 2), 2, &[], 1, 2));
    one.settle();
    assert!(!ask(&mut one, 3, 1), "a leader was just heard");
    assert!(ask(&mut one, 2, 1), "the leader itself asks");
    one.step(Input::ConnectionReset(ReplicaId(3)));
    assert!(!ask(&mut one, 3, 1), "that was not the leader's connection");
    one.step(Input::ConnectionReset(ReplicaId(2)));
    assert!(ask(&mut one, 3, 1), "the leader's connection was reset");
    assert!(!ask(&mut one, 3, 0), "the asker knows less that is chosen");
    one.now.ticks.0 += 4 * 600;
    assert!(ask(&mut one, 3, 0), "nobody better has come for long");
}

#[test]
fn the_own_vote_counts_when_it_is_durable() {
    // FAULTS 18.
    let mut one = One::new(3);
    let ballot = one.campaign();
    assert!(!one.says().iter().any(|(_, message)| matches!(message, Message::Prepare { .. })));
    one.hear(2, promise(ballot, 0, 1, vec![]));
    assert_eq!(one.role(), Role::Candidate);
    let said = one.persist();
    assert!(matches!(said[..], [(2, Message::Prepare { .. }), (3, Message::Prepare { .. })]), "{said:?}");
    assert_eq!(one.role(), Role::Leader);
}

#[test]
fn no_ballot_is_used_twice() {
    let mut one = One::new(3);
    let first = one.campaign();
    one.settle();
    let mut one = one.restart(0);
    let second = one.campaign();
    assert!(second > first, "{second} after {first}");
}

#[test]
fn phase_one_takes_the_highest_ballots_values_and_puts_a_barrier_behind() {
    let mut one = One::new(5);
    one.hear(2, accept(ballot(1, 2), 1, &["a1", "b1"], 0, 1));
    one.settle();
    let own = one.campaign();
    one.settle();
    one.hear(2, promise(own, 0, 1, vec![record(1, ballot(1, 2), "a1")]));
    let records = vec![record(1, ballot(1, 4), "a2"), record(2, ballot(1, 2), "b1"), record(3, ballot(1, 2), "c1")];
    one.hear(4, promise(own, 0, 1, records));
    assert_eq!(one.role(), Role::Leader);
    let log: Vec<_> = (1..=4).map(|slot| one.replica.record(Slot(slot)).unwrap().unwrap()).collect();
    assert!(log.iter().all(|record| record.ballot == own));
    let payloads: Vec<_> = log.into_iter().map(|record| record.entry.payload).collect();
    let expected: Vec<_> = ["a2", "b1", "c1"].into_iter().map(|text| entry(text).payload).collect();
    assert_eq!(payloads[..3], expected);
    assert_eq!(payloads[3], Payload::Noop);
}

#[test]
fn a_leftover_dated_before_what_overtook_it_is_not_proposed_again() {
    let mut one = One::new(3);
    let own = {
        one.hear(2, Message::Prepare { ballot: ballot(7, 2), from: Slot(1) });
        one.settle();
        one.campaign()
    };
    one.settle();
    let dated = |slot, ballot, text, time_ms| {
        let mut record = record(slot, ballot, text);
        record.entry.stamp.time_ms = time_ms;
        record
    };
    let (old, new) = (ballot(5, 2), ballot(6, 3));
    let records = vec![
        dated(1, old, "a", 100),
        dated(2, new, "b", 300),
        dated(3, new, "c", 400),
        dated(4, old, "leftover", 400),
        dated(5, old, "leftover", 500),
    ];
    one.hear(2, promise(own, 0, 1, records));
    assert_eq!(one.role(), Role::Leader);
    assert_eq!(one.replica.status().last, Slot(4));
    let barrier = one.replica.record(Slot(4)).unwrap().unwrap();
    assert_eq!(barrier.entry.payload, Payload::Noop);
    assert!(barrier.entry.stamp.time_ms > 400);
}

#[test]
fn a_candidate_behind_a_log_that_was_cut_does_not_lead() {
    let mut one = One::new(3);
    let ballot = one.campaign();
    one.settle();
    let (commit, log_start, from) = (Slot(9), Slot(7), Slot(7));
    one.hear(2, Message::Promise { ballot, commit, log_start, from, records: vec![], next: None, clock_ms: 0 });
    assert_eq!(one.role(), Role::Follower);
}

#[test]
fn a_promise_that_lacks_what_it_says_is_chosen_is_dropped() {
    let mut one = One::new(3);
    let own = one.campaign();
    one.settle();
    one.hear(2, promise(own, 2, 1, vec![record(1, ballot(1, 2), "a")]));
    one.hear(2, promise(own, 0, 1, vec![record(2, ballot(1, 2), "b")]));
    one.hear(2, promise(own, 0, 1, vec![record(1, ballot(99, 2), "c")]));
    assert_eq!(one.role(), Role::Candidate);
}

// Accepting.

#[test]
fn accepted_is_told_after_the_sync_and_only_up_to_what_is_durable() {
    // FAULTS 6.
    let mut one = One::new(3);
    let ballot = ballot(1, 2);
    one.hear(2, accept(ballot, 1, &["a"], 0, 1));
    assert_eq!(one.says(), []);
    one.hear(2, accept(ballot, 2, &["b"], 0, 2));
    assert_eq!(one.says(), [], "a batch is under way, and the ballot is not durable");
    let tell =
        |upto, round| (2, Message::Accepted { ballot, upto: Slot(upto), round, clock_ms: CLOCK_MS, applied: Slot(0) });
    assert_eq!(one.persist(), [tell(1, 1)]);
    assert_eq!(one.says(), [tell(1, 2)], "the round is acknowledged while the second entry is being written");
    assert_eq!(one.persist(), [tell(2, 2)]);
}

#[test]
fn what_is_held_at_an_older_ballot_is_not_applied() {
    let mut one = One::new(3);
    one.hear(2, accept(ballot(1, 2), 1, &["a", "b"], 0, 1));
    one.settle();
    one.hear(3, accept(ballot(2, 3), 1, &[], 2, 1));
    assert_eq!(one.ready().apply, None, "heard to be chosen, but perhaps with other values");
    one.persist();
    assert_eq!(one.ready().apply, None);
    one.hear(3, accept(ballot(2, 3), 1, &["A", "B"], 2, 1));
    assert_eq!(one.ready().apply, None, "not durable yet");
    one.persist();
    assert_eq!(one.ready().apply, Some(Slot(1)..=Slot(2)));
    assert_eq!(one.replica.record(Slot(2)).unwrap(), Some(record(2, ballot(2, 3), "B")));
}

#[test]
fn a_hole_is_asked_for_even_by_an_idle_laggard() {
    let mut one = One::new(3);
    let ballot = ballot(1, 2);
    one.hear(2, accept(ballot, 1, &["a"], 0, 1));
    one.settle();
    one.hear(2, accept(ballot, 5, &[], 0, 2));
    let nack = Message::Nack { ballot, promised: ballot, want: Slot(2), round: 2 };
    assert_eq!(one.settle(), [(2, nack)]);
}

#[test]
fn a_restart_forgets_the_run_and_asks_for_what_it_has_acknowledged() {
    let mut one = One::new(3);
    let ballot = ballot(1, 2);
    one.hear(2, accept(ballot, 1, &["a", "b", "c"], 2, 1));
    one.settle();
    let mut one = one.restart(1);
    one.hear(2, accept(ballot, 4, &[], 3, 2));
    let nack = Message::Nack { ballot, promised: ballot, want: Slot(2), round: 2 };
    assert_eq!(one.settle(), [(2, nack)]);
    assert_eq!(one.replica.status().commit, Slot(1), "a number that was merely heard is no commit");
}

#[test]
fn nothing_is_cut_off() {
    let mut one = One::new(3);
    one.hear(2, accept(ballot(1, 2), 1, &["a", "b", "c"], 0, 1));
    one.settle();
    one.hear(3, accept(ballot(2, 3), 1, &["A"], 0, 1));
    one.settle();
    assert_eq!(one.replica.status().last, Slot(3));
    assert_eq!(one.replica.record(Slot(3)).unwrap(), Some(record(3, ballot(1, 2), "c")));
}

#[test]
fn doubled_and_late_messages_change_nothing() {
    // FAULTS 19.
    let mut one = One::new(3);
    let (old, new) = (ballot(1, 2), ballot(2, 3));
    one.hear(2, accept(old, 1, &["a", "b"], 0, 1));
    one.settle();
    one.hear(3, Message::Prepare { ballot: new, from: Slot(1) });
    one.settle();
    one.hear(3, accept(new, 1, &["A", "B"], 2, 1));
    one.settle();
    let before = one.replica.clone();
    one.hear(3, accept(new, 1, &["A", "B"], 2, 1));
    one.hear(3, accept(new, 1, &["A"], 0, 1));
    one.hear(3, Message::Prepare { ballot: new, from: Slot(1) });
    one.hear(3, Message::PromiseMore { ballot: new, from: Slot(2) });
    one.hear(2, accept(old, 1, &["a", "b"], 0, 1));
    one.hear(2, Message::Prepare { ballot: old, from: Slot(1) });
    one.hear(2, Message::TimeoutNow { ballot: old });
    for message in [promise(new, 0, 1, vec![]), accepted(new, 1, 1)] {
        one.hear(2, message);
    }
    one.settle();
    let (mut left, right) = (one.replica.status(), before.status());
    left.dropped = right.dropped;
    assert_eq!(left, right);
    assert_eq!(one.replica.storage(), before.storage());
}

#[test]
fn an_old_or_doubled_persist_is_harmless() {
    let mut one = One::new(3);
    one.hear(2, accept(ballot(1, 2), 1, &["a"], 0, 1));
    one.ready();
    let id = one.writing.as_ref().unwrap().id.0;
    one.persisted(id + 1);
    one.persisted(id.wrapping_sub(1));
    assert_eq!(one.replica.outstanding().map(|id| id.0), Some(id));
    one.persist();
    one.hear(2, accept(ballot(1, 2), 2, &["b"], 2, 1));
    one.ready();
    one.persisted(id);
    assert_eq!(one.replica.status().commit, Slot(1), "the second entry is still being written");
}

#[test]
fn what_arrives_during_a_sync_forms_one_batch() {
    let mut one = One::new(3);
    one.lead_with_barrier();
    one.propose(1, "a");
    for id in 2..=4 {
        assert!(matches!(one.propose(id, "more"), Reply::Proposed { .. }));
    }
    assert_eq!(one.writing.as_ref().unwrap().records.len(), 1);
    one.persist();
    assert_eq!(one.ready().persist.unwrap().records.len(), 3);
}

// Who is heard at all.

#[test]
fn a_wiped_disk_never_votes() {
    // FAULTS 17.
    let mut one = One::on(3, Disk::fresh(), 0, |settings| settings.disk = DiskId([0xee; 16]));
    assert!(!one.replica.status().votes);
    one.hear(2, Message::PreVote { round: 1, commit: Slot(0), nonce: 1 });
    one.hear(2, Message::Prepare { ballot: ballot(1, 2), from: Slot(1) });
    one.hear(2, accept(ballot(1, 2), 1, &["a"], 0, 1));
    one.pass(10_000);
    assert_eq!((one.settle(), one.role()), (vec![], Role::Follower));
    assert_eq!(one.replica.next_deadline(), None);
}

#[test]
fn messages_that_are_not_for_this_member_are_dropped() {
    let mut one = One::new(3);
    let good_ballot = ballot(1, 2);
    let good = one.envelope(2, Message::Prepare { ballot: good_ballot, from: Slot(1) });
    let mut strange = vec![good.clone(); 5];
    strange[0].cluster = ClusterId([9; 16]);
    strange[1] =
        one.envelope(77, Message::PreVoteReply { nonce: 1, granted: true, promised: good_ballot, commit: Slot(0) });
    strange[2].to = ReplicaId(3);
    strange[3].from = ReplicaId(77);
    strange[4].from = ReplicaId(3);
    for envelope in strange {
        one.step(Input::Message(envelope));
    }
    assert_eq!((one.replica.promised(), one.replica.status().dropped), (Ballot::ZERO, 5));
    one.step(Input::Message(good));
    assert_eq!(one.replica.promised(), ballot(1, 2));
}

#[test]
fn questions_of_a_newer_configuration_are_served_and_those_of_an_older_one_told_of_it() {
    let mut one = One::new(3);
    let mut newer = one.envelope(77, Message::Prepare { ballot: ballot(1, 77), from: Slot(1) });
    newer.epoch = Epoch(1);
    one.step(Input::Message(newer));
    assert_eq!(one.replica.promised(), ballot(1, 77), "whoever is in it may be unknown here");

    let changed = configuration(3).changed(&Change::Remove { id: ReplicaId(3) }, Slot(0)).unwrap();
    let mut disk = Disk::fresh();
    disk.configuration = Some((changed.clone(), true));
    let mut one = One::on(3, disk, 0, |_| {});
    let older = one.envelope(3, Message::PreVote { round: 5, commit: Slot(9), nonce: 1 });
    one.step(Input::Message(Envelope { epoch: Epoch(0), ..older }));
    assert_eq!(one.says(), [(3, Message::Superseded { configuration: Box::new(changed) })]);
}

#[test]
fn nonsense_neither_panics_nor_ends_the_range_of_ballots() {
    let mut one = One::new(3);
    let far = ballot(u64::MAX, 2);
    let end = Slot(u64::MAX);
    let nonsense = [
        Message::PreVote { round: u64::MAX, commit: end, nonce: 0 },
        Message::PreVoteReply { nonce: 0, granted: true, promised: far, commit: end },
        Message::Prepare { ballot: far, from: end },
        Message::Prepare { ballot: ballot(1, 2), from: Slot(0) },
        Message::PromiseMore { ballot: far, from: end },
        Message::Promise {
            ballot: ballot(1, 1),
            commit: end,
            log_start: end,
            from: Slot(0),
            records: vec![],
            next: Some(end),
            clock_ms: u64::MAX,
        },
        Message::Accept { ballot: far, start: end, entries: vec![entry("a")], commit: end, round: u64::MAX },
        Message::Accept { ballot: ballot(1, 2), start: Slot(0), entries: vec![], commit: end, round: u64::MAX },
        Message::Accepted { ballot: far, upto: end, round: u64::MAX, clock_ms: u64::MAX, applied: end },
        Message::Nack { ballot: far, promised: far, want: end, round: u64::MAX },
        Message::ReadIndexReply { ballot: far, read: ReadId(0), index: Some(end) },
        Message::TimeoutNow { ballot: far },
    ];
    let dropped = nonsense.len() as u64;
    for message in nonsense.iter().cloned() {
        one.hear(2, message);
    }
    assert_eq!((one.replica.promised(), one.replica.status().dropped), (Ballot::ZERO, dropped));
    let own = one.lead_with_barrier();
    for message in nonsense {
        one.hear(2, message);
    }
    one.hear(2, Message::Nack { ballot: own, promised: own, want: Slot(0), round: 1 });
    one.hear(2, Message::Nack { ballot: own, promised: own, want: Slot(99), round: 1 });
    one.hear(2, accepted(own, 1, u64::MAX));
    one.settle();
    assert_eq!((one.role(), one.replica.promised()), (Role::Leader, own));
}

#[test]
fn a_log_that_ends_before_what_was_applied_is_refused() {
    let mut one = One::on(3, Disk::fresh(), 5, |_| {});
    assert!(one.replica.ready().is_err());
    assert!(one.replica.tick(one.now).is_err());
}
