//! The rules of leading: commit, reads, bounds, log time, handing over.

use std::collections::BTreeSet;

use bytes::Bytes;
use d3b::{ReplicaId, Slot};
use d3b_paxos::message::Message;
use d3b_paxos::types::{Ballot, ProposalId, ReadId, Stamp};
use d3b_paxos::{ConfirmedRead, Input, Proposal, Reply, Role};

use crate::one::{One, accept, accepted, ballot, promise, record};
use crate::world::CLOCK_MS;

// Leading.

#[test]
fn the_leader_counts_itself_after_its_own_sync() {
    let mut one = One::new(3);
    let ballot = one.lead_with_barrier();
    one.propose(1, "a");
    one.hear(2, accepted(ballot, 2, 1));
    assert_eq!(one.ready().apply, None, "one durable copy of three");
    one.persist();
    assert_eq!(one.ready().apply, Some(Slot(2)..=Slot(2)));
}

#[test]
fn a_majority_of_followers_chooses_before_the_leaders_disk() {
    let mut one = One::new(3);
    let ballot = one.lead_with_barrier();
    one.propose(1, "a");
    one.hear(2, accepted(ballot, 2, 1));
    one.hear(3, accepted(ballot, 2, 1));
    assert_eq!(one.ready().apply, None, "chosen, but not durable here");
    let told = one.replica.status().commit;
    assert_eq!(told, Slot(1));
    one.persist();
    assert_eq!(one.ready().apply, Some(Slot(2)..=Slot(2)));
}

#[test]
fn acknowledgements_of_another_ballot_or_beyond_the_log_count_for_nothing() {
    let mut one = One::new(3);
    let own = one.lead_with_barrier();
    one.propose(1, "a");
    one.persist();
    one.hear(2, accepted(ballot(own.round - 1, 1), 2, 1));
    one.hear(2, accepted(ballot(own.round + 1, 1), 2, 1));
    one.hear(2, accepted(own, 99, 1));
    assert_eq!(one.replica.status().commit, Slot(1));
}

#[test]
fn a_leader_without_acknowledgements_steps_down() {
    // FAULTS 10: a refusal is no acknowledgement.
    let mut one = One::new(3);
    let own = one.lead_with_barrier();
    for _ in 0..13 {
        one.pass(50);
        one.hear(2, Message::Nack { ballot: ballot(0, 1), promised: own, want: Slot(1), round: 1 });
        one.settle();
    }
    assert_eq!(one.role(), Role::Follower);
    assert_eq!(one.replica.leader(), None);
}

#[test]
fn a_leader_that_is_asked_for_more_goes_on() {
    let mut one = One::new(3);
    let ballot = one.lead_with_barrier();
    for _ in 0..20 {
        one.pass(50);
        one.hear(2, Message::Nack { ballot, promised: ballot, want: Slot(1), round: 1 });
        one.settle();
    }
    assert_eq!(one.role(), Role::Leader);
}

#[test]
fn a_leader_that_meets_a_higher_promise_campaigns_above_it() {
    let mut one = One::new(3);
    let own = one.lead_with_barrier();
    let promised = ballot(own.round + 7, 3);
    one.hear(3, Message::Nack { ballot: own, promised, want: Slot(1), round: 1 });
    assert_eq!(one.role(), Role::PreCandidate);
    let nonce = one.says().into_iter().find_map(|(_, message)| match message {
        Message::PreVote { nonce, .. } => Some(nonce),
        _ => None,
    });
    let nonce = nonce.unwrap();
    one.hear(2, Message::PreVoteReply { nonce, granted: true, promised: own, commit: Slot(0) });
    assert!(one.replica.promised() > promised);
}

#[test]
fn entries_under_way_are_bounded() {
    // FAULTS 33: a dead peer and a dead majority cost no memory.
    let mut one = One::new(3);
    one.lead_with_barrier();
    let replies: Vec<_> = (1..100).map(|id| one.propose(id, "forty bytes of a command, more or less")).collect();
    let taken = replies.iter().filter(|reply| matches!(reply, Reply::Proposed { .. })).count();
    assert_eq!(taken, 2_000 / (48 + 38));
    assert_eq!(replies[98], Reply::Overloaded { id: ProposalId(99) });
}

#[test]
fn entries_that_wait_for_the_own_disk_are_bounded() {
    // FAULTS 33: the others' disks are as fast as can be, the leader's own hangs.
    let mut one = One::new(3);
    let ballot = one.lead_with_barrier();
    let replies: Vec<_> = (1..100)
        .map(|id| {
            let reply = one.propose(id, "forty bytes of a command, more or less");
            let last = one.replica.status().last;
            for peer in [2, 3] {
                one.hear(peer, accepted(ballot, last.0, 1));
            }
            reply
        })
        .collect();
    let taken = replies.iter().filter(|reply| matches!(reply, Reply::Proposed { .. })).count();
    assert_eq!(taken, 2_000 / (48 + 38));
    one.settle();
    for _ in 0..13 {
        one.pass(50);
        one.hear(2, accepted(ballot, one.replica.status().last.0, 1));
        one.settle();
    }
    assert!(matches!(one.propose(100, "the disk is back"), Reply::Proposed { .. }));
}

#[test]
fn a_leader_that_its_own_disk_holds_up_hands_over() {
    let mut one = One::new(3);
    let ballot = one.lead_with_barrier();
    let mut said = Vec::new();
    for id in 1..100 {
        one.step(Input::Propose(Proposal { id: ProposalId(id), command: Bytes::from_static(&[7; 40]), seed: 9 }));
        said.extend(one.says());
        let last = one.replica.status().last;
        one.hear(2, accepted(ballot, last.0, 1));
        one.hear(3, accepted(ballot, last.0, 1));
    }
    assert!(said.iter().any(|(_, message)| *message == Message::TimeoutNow { ballot }));
}

#[test]
fn a_leader_that_is_not_the_slowest_does_not_hand_over() {
    let mut one = One::new(3);
    one.lead_with_barrier();
    for id in 1..100 {
        one.propose(id, "forty bytes of a command, more or less");
    }
    assert!(!one.replica.status().transferring);
}

#[test]
fn a_new_leader_may_know_more_than_its_ballot_has_chosen() {
    // It has heard that slot 2 is chosen, and holds it durably before any other member holds it at its own ballot.
    let mut one = One::new(3);
    one.hear(2, accept(ballot(1, 2), 1, &["x"], 2, 1));
    one.settle();
    let own = one.campaign();
    one.hear(3, promise(own, 1, 2, vec![record(2, ballot(1, 2), "y")]));
    one.settle();
    assert_eq!((one.role(), one.replica.status().commit), (Role::Leader, Slot(2)));
    let replies: Vec<_> = (1..100).map(|id| one.propose(id, "forty bytes of a command, more or less")).collect();
    assert_eq!(replies[98], Reply::Overloaded { id: ProposalId(99) });
    assert!(!one.replica.status().transferring, "nothing waits for its own disk alone");
}

#[test]
fn a_peer_that_lost_messages_is_sent_them_again() {
    let mut one = One::new(3);
    let ballot = one.lead_with_barrier();
    one.propose(1, "a");
    one.propose(2, "b");
    one.settle();
    one.hear(2, Message::Nack { ballot, promised: ballot, want: Slot(2), round: 1 });
    let said = one.settle();
    let resent = said.iter().find_map(|(to, message)| match message {
        Message::Accept { start, entries, .. } if *to == 2 => Some((start.0, entries.len())),
        _ => None,
    });
    assert_eq!(resent, Some((2, 2)));
}

#[test]
fn log_time_keeps_within_the_bound_of_the_majoritys_clocks() {
    // FAULTS 27: the leader's clock jumps by two hours, and back.
    let mut one = One::new(3);
    let ballot = one.lead_with_barrier();
    let time = |one: &One| {
        let status = one.replica.status();
        let Stamp { time_ms, .. } = one.replica.record(status.last).unwrap().unwrap().entry.stamp;
        time_ms
    };
    one.now.clock_ms += 5;
    one.propose(1, "a");
    assert_eq!(time(&one), one.now.clock_ms);
    one.now.clock_ms += 7_200_000;
    one.propose(2, "b");
    assert_eq!(time(&one), CLOCK_MS + 1_000, "both others stand at CLOCK_MS, or have said nothing");
    one.now.clock_ms = 5;
    one.propose(3, "c");
    assert_eq!(time(&one), CLOCK_MS + 1_001);
    one.now.clock_ms = CLOCK_MS + 9_000;
    let clock_ms = CLOCK_MS + 8_500;
    one.hear(2, Message::Accepted { ballot, upto: Slot(1), round: 1, clock_ms, applied: Slot(0) });
    one.propose(4, "d");
    assert_eq!(time(&one), CLOCK_MS + 9_000);
}

#[test]
fn equal_proposals_have_unequal_seeds() {
    let mut one = One::new(3);
    one.lead_with_barrier();
    let seeds: BTreeSet<u64> = (1..=3)
        .map(|id| {
            one.propose(id, "same");
            one.replica.record(Slot(1 + id)).unwrap().unwrap().entry.stamp.seed
        })
        .collect();
    assert_eq!(seeds.len(), 3);
}

#[test]
fn a_lone_replica_leads_at_once() {
    let mut one = One::new(1);
    one.settle();
    assert_eq!(one.role(), Role::Leader);
    assert!(one.replica.status().barrier_chosen);
    one.read(1);
    assert_eq!(one.ready().reads, [ConfirmedRead { id: ReadId(1), index: Slot(1) }]);
    one.propose(1, "a");
    one.persist();
    assert_eq!(one.replica.status().commit, Slot(2));
    let mut one = one.restart(1);
    one.settle();
    assert_eq!(one.replica.status().commit, Slot(3), "the entry, and another barrier");
}

// Reads.

#[test]
fn no_read_is_answered_before_the_barrier_is_chosen() {
    // FAULTS 3.
    let mut one = One::new(3);
    let ballot = one.lead();
    one.read(1);
    one.settle();
    one.hear(2, accepted(ballot, 0, 1));
    assert_eq!(one.ready().reads, []);
    one.hear(2, accepted(ballot, 1, 1));
    assert_eq!(one.ready().reads, [], "the round before says nothing about this read");
    one.hear(2, accepted(ballot, 1, 2));
    assert_eq!(one.ready().reads, [ConfirmedRead { id: ReadId(1), index: Slot(1) }]);
}

#[test]
fn a_read_waits_for_a_round_that_began_after_it() {
    // FAULTS 2.
    let mut one = One::new(3);
    let ballot = one.lead_with_barrier();
    one.read(1);
    one.settle();
    one.read(2);
    one.hear(2, accepted(ballot, 1, 2));
    let ready = one.ready();
    assert_eq!(ready.reads, [ConfirmedRead { id: ReadId(1), index: Slot(1) }]);
    one.hear(3, accepted(ballot, 1, 2));
    one.hear(2, accepted(ballot, 1, 1));
    assert_eq!(one.ready().reads, [], "old rounds confirm nothing");
    one.hear(3, accepted(ballot, 1, 3));
    assert_eq!(one.ready().reads, [ConfirmedRead { id: ReadId(2), index: Slot(1) }]);
}

/// Who is asked for a round without entries, and its number.
fn asked(said: &[(u32, Message)]) -> (BTreeSet<u32>, u64) {
    let rounds = said.iter().filter_map(|(to, message)| match message {
        Message::Accept { entries, round, .. } if entries.is_empty() => Some((*to, *round)),
        _ => None,
    });
    let rounds: Vec<(u32, u64)> = rounds.collect();
    (rounds.iter().map(|(to, _)| *to).collect(), rounds.iter().map(|(_, round)| *round).max().unwrap_or(0))
}

/// Replica 1 of five leads, and 3 and 5 have answered its last heartbeat before the others.
fn led_with_quick_voters() -> (One, Ballot) {
    let mut one = One::new(5);
    let ballot = one.lead();
    one.settle();
    for peer in 2..=5 {
        one.hear(peer, accepted(ballot, 1, 1));
    }
    one.settle();
    one.pass(50);
    let (everybody, heartbeat) = asked(&one.says());
    assert_eq!(everybody, BTreeSet::from([2, 3, 4, 5]));
    for peer in [5, 3, 2, 4] {
        one.hear(peer, accepted(ballot, 1, heartbeat));
    }
    one.settle();
    (one, ballot)
}

#[test]
fn reads_are_confirmed_by_those_that_answered_the_last_heartbeat_first() {
    let (mut one, ballot) = led_with_quick_voters();
    one.read(1);
    let (few, round) = asked(&one.says());
    assert_eq!(few, BTreeSet::from([3, 5]));
    one.hear(5, accepted(ballot, 1, round));
    assert_eq!(one.ready().reads, [], "two of five");
    one.hear(3, accepted(ballot, 1, round));
    assert_eq!(one.ready().reads, [ConfirmedRead { id: ReadId(1), index: Slot(1) }]);
}

#[test]
fn a_read_whose_voters_are_silent_is_confirmed_by_the_next_heartbeat() {
    let (mut one, ballot) = led_with_quick_voters();
    one.read(1);
    one.says();
    one.pass(50);
    let (everybody, heartbeat) = asked(&one.says());
    assert_eq!(everybody, BTreeSet::from([2, 3, 4, 5]));
    one.hear(2, accepted(ballot, 1, heartbeat));
    one.hear(4, accepted(ballot, 1, heartbeat));
    assert_eq!(one.ready().reads, [ConfirmedRead { id: ReadId(1), index: Slot(1) }]);
    one.read(2);
    assert_eq!(asked(&one.says()).0, BTreeSet::from([2, 4]));
}

#[test]
fn a_read_whose_voter_has_died_asks_the_others_at_once() {
    let (mut one, ballot) = led_with_quick_voters();
    one.read(1);
    one.says();
    one.step(Input::ConnectionReset(ReplicaId(2)));
    assert_eq!(asked(&one.says()).0, BTreeSet::new(), "it was not asked");
    one.step(Input::ConnectionReset(ReplicaId(5)));
    let (everybody, round) = asked(&one.says());
    assert_eq!(everybody, BTreeSet::from([2, 3, 4, 5]));
    one.hear(3, accepted(ballot, 1, round));
    one.hear(4, accepted(ballot, 1, round));
    assert_eq!(one.ready().reads, [ConfirmedRead { id: ReadId(1), index: Slot(1) }]);
}

#[test]
fn a_deposed_leader_answers_no_read() {
    // FAULTS 2 and 4.
    let mut one = One::new(3);
    let own = one.lead_with_barrier();
    one.read(1);
    one.hear(3, Message::ReadIndex { read: ReadId(77) });
    one.settle();
    one.hear(2, Message::Prepare { ballot: ballot(own.round + 1, 2), from: Slot(1) });
    one.hear(3, accepted(own, 1, 2));
    let ready = one.ready();
    assert_eq!((ready.reads, ready.replies), (vec![], vec![Reply::ReadFailed { id: ReadId(1) }]));
    let refusal = |envelope: &d3b_paxos::message::Envelope| {
        matches!(envelope.message, Message::ReadIndexReply { read: ReadId(77), index: None, .. })
    };
    assert!(ready.send_now.iter().any(refusal));
}

/// The indexes that a message of a follower's is answered with.
fn answered(one: &mut One, from: u32, question: Message) -> Vec<Option<Slot>> {
    one.hear(from, question);
    let said = one.says();
    let index = |(to, message): (u32, Message)| match message {
        Message::ReadIndexReply { read: ReadId(77), index, .. } if to == from => Some(index),
        _ => None,
    };
    said.into_iter().filter_map(index).collect()
}

#[test]
fn a_question_at_the_leaders_ballot_confirms_itself_where_two_are_a_majority() {
    let mut one = One::new(3);
    let own = one.lead_with_barrier();
    let question = |ballot| Message::ReadIndexAt { ballot, read: ReadId(77) };
    assert_eq!(answered(&mut one, 3, question(own)), [Some(Slot(1))]);
    one.read(1);
    one.says();
    assert_eq!(answered(&mut one, 3, question(own)), [Some(Slot(1))]);
    assert_eq!(one.ready().reads, [], "what was asked of the leader itself needs a round of its own");
    for other in [ballot(own.round - 1, 1), ballot(own.round + 1, 2)] {
        assert_eq!(answered(&mut one, 3, question(other)), [], "its sender follows another ballot");
    }
    assert_eq!(answered(&mut one, 3, Message::ReadIndex { read: ReadId(77) }), []);
    let (mut one, own) = led_with_quick_voters();
    assert_eq!(answered(&mut one, 3, question(own)), [], "two of five are no majority");
}

#[test]
fn no_question_confirms_itself_before_the_barrier() {
    // FAULTS 3.
    let mut one = One::new(3);
    let own = one.lead();
    assert_eq!(answered(&mut one, 3, Message::ReadIndexAt { ballot: own, read: ReadId(77) }), []);
}

#[test]
fn a_followers_reads_share_a_question() {
    // FAULTS 5.
    let mut one = One::new(3);
    let ballot = ballot(1, 2);
    one.read(1);
    assert_eq!(one.ready().replies, [Reply::ReadFailed { id: ReadId(1) }], "nobody leads");
    one.hear(2, accept(ballot, 1, &[], 0, 1));
    one.read(2);
    one.read(3);
    let said = one.settle();
    let questions: Vec<_> = said
        .iter()
        .filter_map(|(to, message)| match message {
            Message::ReadIndexAt { ballot: at, read } if *at == ballot => Some((*to, *read)),
            _ => None,
        })
        .collect();
    let [(2, read)] = questions[..] else { panic!("not one question to the leader: {said:?}") };
    one.read(4);
    one.hear(3, Message::ReadIndexReply { ballot, read, index: Some(Slot(0)) });
    assert_eq!(one.ready().reads, [], "that was not the leader");
    one.hear(2, Message::ReadIndexReply { ballot, read, index: Some(Slot(5)) });
    let ids: Vec<_> = one.ready().reads.into_iter().map(|read| (read.id.0, read.index.0)).collect();
    assert_eq!(ids, [(2, 5), (3, 5)]);
}

#[test]
fn a_followers_reads_fail_with_their_leader() {
    let mut one = One::new(3);
    one.hear(2, accept(ballot(1, 2), 1, &[], 0, 1));
    one.read(1);
    one.settle();
    one.read(2);
    one.hear(3, accept(ballot(2, 3), 1, &[], 0, 1));
    assert_eq!(one.ready().replies, [1, 2].map(|id| Reply::ReadFailed { id: ReadId(id) }));
}

// Keeping up.

#[track_caller]
fn check_told(one: &One, told: Option<u64>, held: u64) {
    assert_eq!((one.replica.told(), one.replica.held()), (told.map(Slot), Slot(held)));
}

#[test]
fn a_follower_knows_what_it_was_told_of_and_does_not_hold() {
    let mut one = One::new(3);
    let theirs = ballot(1, 2);
    check_told(&one, None, 0);
    one.hear(2, accept(theirs, 1, &["a", "b"], 1, 1));
    check_told(&one, Some(1), 0);
    one.settle();
    check_told(&one, Some(1), 2);
    // More is chosen.
    one.hear(2, accept(theirs, 3, &[], 5, 2));
    check_told(&one, Some(5), 2);
    one.hear(2, accept(theirs, 3, &["c", "d", "e"], 5, 2));
    one.settle();
    check_told(&one, Some(5), 5);
    // Its leader takes it to have more.
    one.hear(2, accept(theirs, 9, &[], 5, 3));
    check_told(&one, Some(8), 5);
    one.hear(2, accept(theirs, 6, &[], 5, 3));
    check_told(&one, Some(5), 5);
}

#[test]
fn a_leader_knows_what_is_chosen_once_its_barrier_is() {
    let mut one = One::new(3);
    let own = one.lead();
    one.settle();
    check_told(&one, None, 1);
    one.hear(2, accepted(own, 1, 1));
    check_told(&one, Some(1), 1);
}

// Handing over.

#[test]
fn a_leader_hands_over_to_one_that_has_everything() {
    let mut one = One::new(3);
    let own = one.lead_with_barrier();
    one.propose(1, "a");
    one.settle();
    one.step(Input::Transfer(Some(ReplicaId(2))));
    assert_eq!(one.propose(2, "b"), Reply::NotLeader { id: ProposalId(2), leader: None });
    assert!(!one.settle().iter().any(|(_, message)| matches!(message, Message::TimeoutNow { .. })));
    one.hear(2, accepted(own, 2, 1));
    assert!(one.settle().contains(&(2, Message::TimeoutNow { ballot: own })));
    one.hear(2, Message::Prepare { ballot: ballot(own.round + 1, 2), from: Slot(1) });
    assert_eq!(one.ready().replies, [Reply::TransferEnded { handed_over: true }]);
}

#[test]
fn a_leader_that_hands_over_does_not_outrun_the_one_that_it_called() {
    // That one's promise is on its way to its disk, and what it asks waits for that; a refusal waits for nothing.
    let mut one = One::new(3);
    let own = one.lead_with_barrier();
    let called = ballot(own.round + 1, 2);
    one.step(Input::Transfer(Some(ReplicaId(2))));
    one.hear(2, accepted(own, 1, 1));
    assert!(one.settle().contains(&(2, Message::TimeoutNow { ballot: own })));
    one.hear(2, Message::Nack { ballot: own, promised: called, want: Slot(2), round: 1 });
    assert_eq!(one.role(), Role::Follower);
    assert_eq!(one.ready().replies, [Reply::TransferEnded { handed_over: true }]);
    one.hear(2, Message::Prepare { ballot: called, from: Slot(2) });
    assert!(one.settle().iter().any(|(to, said)| *to == 2 && matches!(said, Message::Promise { .. })));

    // Where nothing comes of it, it campaigns like anybody else.
    one.pass(601);
    assert_eq!(one.role(), Role::PreCandidate);
}

#[test]
fn a_leader_that_hands_over_heeds_what_others_have_left_behind() {
    let mut one = One::new(3);
    let own = one.lead_with_barrier();
    one.propose(1, "a");
    one.settle();
    one.step(Input::Transfer(Some(ReplicaId(2))));
    // What that one promised itself before it was called.
    one.hear(3, Message::Nack { ballot: own, promised: ballot(own.round + 1, 2), want: Slot(2), round: 1 });
    assert_eq!(one.role(), Role::PreCandidate);
}

#[test]
fn a_leader_that_cannot_hand_over_goes_on() {
    let mut one = One::new(3);
    let own = one.lead_with_barrier();
    one.step(Input::Transfer(None));
    assert!(one.replica.status().transferring);
    let mut replies = Vec::new();
    for _ in 0..12 {
        one.pass(50);
        one.hear(3, accepted(own, 1, 1));
        replies.extend(one.ready().replies);
    }
    assert_eq!(replies, [Reply::TransferEnded { handed_over: false }]);
    assert!(matches!(one.propose(1, "a"), Reply::Proposed { .. }));
}

#[test]
fn a_follower_that_is_handed_the_leadership_campaigns_at_once() {
    let mut one = One::new(3);
    one.hear(2, accept(ballot(1, 2), 1, &[], 0, 1));
    one.settle();
    one.hear(3, Message::TimeoutNow { ballot: ballot(1, 3) });
    assert_eq!(one.role(), Role::Follower, "that is not its leader");
    one.hear(2, Message::TimeoutNow { ballot: ballot(1, 2) });
    assert_eq!(one.role(), Role::Candidate);
    assert!(one.replica.promised() > ballot(1, 2));
}

#[test]
fn a_reset_connection_of_the_leader_is_a_timeout() {
    let mut one = One::new(3);
    one.hear(2, accept(ballot(1, 2), 1, &[], 0, 1));
    one.settle();
    one.step(Input::ConnectionReset(ReplicaId(2)));
    one.pass(51);
    assert_eq!(one.role(), Role::PreCandidate);
}
