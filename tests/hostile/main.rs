//! Hostile peers: whatever arrives from one that knows the cluster's key, the driver does not panic, does not have to
//! stop, takes no more memory than the bound, keeps its ballots usable, and goes on once it is left alone.
//!
//! Messages come in three kinds. *Nonsense* could come from no replica of ours: of another cluster, of a sender that is
//! somebody else, with numbers beyond all range. It changes nothing, and neither does a real message that comes once
//! more: while only these come, replicas agree. *Lies* may say anything that a replica could say. Nobody is protected
//! from what they claim; but whoever hears them survives them.
//!
//! Seeds are printed. `D3B_HOSTILE_ROUNDS` asks for more of them, `D3B_HOSTILE_SEED` for one in particular.

mod forge;
mod group;
mod memory;

use d3b::{ReplicaId, Slot};
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{Ballot, Entry, Payload, Stamp};
use d3bd::driver::Phase;
use d3bd::peer::PeerMessage;

use forge::Sent;
use group::{Group, INFLIGHT_BYTES_MAX};

/// Runs a test over seeds.
fn over_seeds(rounds: u64, test: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("D3B_HOSTILE_SEED") {
        println!("seed {seed}");
        return test(seed);
    }
    for seed in 0..number("D3B_HOSTILE_ROUNDS").unwrap_or(rounds) {
        // The last one that is printed is the one that failed.
        println!("D3B_HOSTILE_SEED={seed}");
        test(seed);
    }
}

/// A message of a kind, said by somebody, to somebody.
fn pair(group: &mut Group) -> (ReplicaId, ReplicaId) {
    let ids = group.ids();
    let to = *group.random.pick(&ids);
    let from = loop {
        let from = *group.random.pick(&ids);
        if from != to {
            break from;
        }
    };
    (from, to)
}

#[test]
fn nonsense_and_replays_change_nothing() {
    over_seeds(40, |seed| {
        let mut group = Group::new(seed, true);
        group.calm(2_000);
        for _ in 0..1_500 {
            group.live();
            let (from, to) = pair(&mut group);
            if group.random.percent(50) {
                let message = group.forge.nonsense(from, to);
                group.hear(from, to, message);
            } else if let Some(Sent { from, to, message }) = group.forge.replay() {
                group.hear(from, to, message);
            }
        }
        group.demand_agreement("under nonsense and replays");
        group.demand_progress("after nonsense and replays");
        group.demand_agreement("after nonsense and replays");
    });
}

#[test]
fn lies_are_survived_in_every_role() {
    over_seeds(60, |seed| {
        let mut group = Group::new(seed, true);
        let mut roles = std::collections::BTreeSet::new();
        if seed % 3 > 0 {
            group.calm(2_000);
        }
        for _ in 0..1_500 {
            group.live();
            let (from, to) = pair(&mut group);
            let lie = if group.random.percent(30) { group.forge.mutated() } else { None };
            let lie = lie.unwrap_or_else(|| group.forge.lie(from, to));
            group.hear(from, to, lie);
            roles.insert(group.phase(to).name());
        }
        for id in group.ids() {
            let ballot = group.nodes[&id].driver.status().ballot;
            assert!(ballot.round < Ballot::ROUND_MAX / 2, "replica {id} was lifted to {ballot}");
        }
        group.demand_progress("after lies");
        assert!(roles.contains("follower"), "{roles:?}");
    });
}

#[test]
fn lies_do_not_end_the_forming_of_a_cluster() {
    over_seeds(60, |seed| {
        let mut group = Group::new(seed, false);
        for step in 0..300 {
            let (from, to) = pair(&mut group);
            let lie = group.forge.lie(from, to);
            group.hear(from, to, lie);
            if step % 10 == 0 {
                group.pass(20);
            }
        }
        group.demand_progress("after a disturbed beginning");
    });
}

#[test]
fn an_outcast_stays_silent_whatever_it_hears() {
    over_seeds(20, |seed| {
        let mut group = Group::new(seed, true);
        let outcast = ReplicaId(3);
        group.make_outcast(outcast);
        for _ in 0..500 {
            let from = ReplicaId(1 + u32::try_from(group.random.below(2)).expect("small"));
            let lie = group.forge.lie(from, outcast);
            group.hear(from, outcast, lie);
            let spoke = group.forge.said_by(outcast, |message| matches!(message, PeerMessage::Paxos(_)));
            assert!(!spoke, "it has said something that could count");
            assert!(matches!(group.phase(outcast), Phase::Outcast { .. }));
        }
        group.demand_progress("beside an outcast");
    });
}

/// An envelope with right addresses.
fn envelope(group: &Group, from: u32, to: u32, message: Message) -> PeerMessage {
    let (cluster, epoch) = (group.configuration.cluster, group.configuration.epoch);
    PeerMessage::Paxos(Envelope { cluster, epoch, from: ReplicaId(from), to: ReplicaId(to), message })
}

fn entry(length: usize) -> Entry {
    let stamp = Stamp { time_ms: 1_750_000_000_000, seed: 0, execution: 1 };
    Entry { stamp, payload: Payload::Command(vec![0xaa; length].into()) }
}

/// One message with the highest round that is let in must not leave the replica without a ballot to campaign with.
#[test]
fn no_message_lifts_the_ballots_to_the_end_of_their_range() {
    let ballot = Ballot { round: Ballot::ROUND_MAX, replica: ReplicaId(3) };
    let messages = [
        Message::Prepare { ballot, from: Slot(1) },
        Message::Accept { ballot, start: Slot(1), entries: vec![entry(1)], commit: Slot(0), round: 1 },
        Message::PreVoteReply { nonce: 0, granted: false, promised: ballot, commit: Slot(0) },
        Message::Nack { ballot, promised: ballot, want: Slot(1), round: 0 },
        Message::Promise {
            ballot,
            commit: Slot(0),
            log_start: Slot(1),
            from: Slot(1),
            records: Vec::new(),
            next: None,
            clock_ms: 0,
        },
    ];
    for message in messages {
        let what = format!("after {message:?}");
        let mut group = Group::new(1, true);
        group.calm(2_000);
        for to in [1, 2] {
            for _ in 0..3 {
                let message = envelope(&group, 3, to, message.clone());
                group.hear(ReplicaId(3), ReplicaId(to), message);
            }
        }
        // Whoever leads is gone: the others need a ballot above all that they have seen.
        group.remove(ReplicaId(3));
        group.calm(5_000);
        group.demand_progress(&what);
        let round = group.nodes[&ReplicaId(1)].driver.status().ballot.round;
        assert!(round < Ballot::ROUND_MAX / 2, "{what}: round {round}");
    }
}

/// One replica that was lifted far ahead of the others is not lost to them: they get there step by step.
#[test]
fn the_others_follow_to_a_ballot_that_one_was_lifted_to() {
    let mut group = Group::new(1, true);
    group.calm(2_000);
    for step in 1..=5 {
        let ballot = Ballot { round: step * Ballot::LEAP_MAX, replica: ReplicaId(3) };
        let message = envelope(&group, 3, 1, Message::Prepare { ballot, from: Slot(1) });
        group.hear(ReplicaId(3), ReplicaId(1), message);
    }
    assert_eq!(group.nodes[&ReplicaId(1)].driver.status().ballot.round, 5 * Ballot::LEAP_MAX);
    group.remove(ReplicaId(3));
    group.demand_progress("with one that was lifted");
}

/// A stamp that no clock shows would stop every engine that has to store it.
#[test]
fn no_message_brings_an_impossible_time_into_the_log() {
    let mut group = Group::new(1, true);
    let ballot = Ballot { round: 9, replica: ReplicaId(3) };
    let mut late = entry(1);
    late.stamp.time_ms = u64::MAX;
    let message = Message::Accept { ballot, start: Slot(1), entries: vec![late], commit: Slot(0), round: 1 };
    let message = envelope(&group, 3, 1, message);
    group.hear(ReplicaId(3), ReplicaId(1), message);
    assert_eq!(group.nodes[&ReplicaId(1)].driver.status().last, Slot(0));
}

/// An entry that does not fit into a message of those who hold it would stand in the way of everything after it.
#[test]
fn no_command_is_too_large_to_be_sent_on() {
    let mut group = Group::new(1, true);
    group.calm(2_000);
    for id in group.ids() {
        let last = group.nodes[&id].driver.status().last;
        let from = ReplicaId(id.0 % 3 + 1);
        let command = vec![0; 33 << 20].into();
        group.hear(from, id, PeerMessage::Forward { id: 1, command });
        assert_eq!(group.nodes[&id].driver.status().last, last, "replica {id}");
        let ballot = Ballot { round: 9 + u64::from(id.0), replica: from };
        let accept =
            Message::Accept { ballot, start: Slot(1), entries: vec![entry(33 << 20)], commit: Slot(0), round: 1 };
        let message = envelope(&group, from.0, id.0, accept);
        group.hear(from, id, message);
        assert_eq!(group.nodes[&id].driver.status().last, last, "replica {id}");
    }
    group.demand_progress("after commands that are too large");
}

/// Floods a replica whose disk is stuck, and demands that it keeps no more than a bound of what it hears.
#[track_caller]
fn check_flood(what: &str, bound: usize, prepare: impl Fn(&mut Group), flood: impl Fn(u64) -> Vec<Message>) {
    let mut group = Group::new(1, true);
    prepare(&mut group);
    for node in group.nodes.values_mut() {
        node.is_stuck = true;
    }
    let before = memory::held();
    for turn in 0..2_000 {
        for message in flood(turn) {
            let message = envelope(&group, 3, 1, message);
            group.hear(ReplicaId(3), ReplicaId(1), message);
        }
        group.forget_network();
    }
    let grown = memory::held().saturating_sub(before);
    assert!(grown < bound, "{what}: {grown} bytes are held");
}

/// What a replica may keep: what is under way by its settings, a few times over, for records and queues around it.
const HELD_MAX: usize = 8 * INFLIGHT_BYTES_MAX;

#[test]
fn a_flood_of_accepts_takes_bounded_memory() {
    let accept = |round: u64, start: u64, entries: Vec<Entry>| Message::Accept {
        ballot: Ballot { round, replica: ReplicaId(3) },
        start: Slot(start),
        entries,
        commit: Slot(0),
        round: 1,
    };
    check_flood("large entries", HELD_MAX, |_| {}, |turn| vec![accept(9, turn + 1, vec![entry(10_000)])]);
    check_flood("small entries", HELD_MAX, |_| {}, |turn| vec![accept(9, turn * 50 + 1, vec![entry(0); 50])]);
    check_flood("ballots", HELD_MAX, |_| {}, |turn| vec![accept(9 + turn, 1, vec![entry(1_000); 10])]);
}

#[test]
fn a_flood_of_questions_takes_bounded_memory() {
    let ballot = |turn| Ballot { round: 9 + turn, replica: ReplicaId(3) };
    let led = |group: &mut Group| {
        group.calm(2_000);
    };
    check_flood("prepares", HELD_MAX, led, |turn| vec![Message::Prepare { ballot: ballot(turn), from: Slot(1) }]);
    let reads = |turn| {
        let read = |n| Message::ReadIndex { read: d3b_paxos::types::ReadId(turn * 10 + n) };
        (0..10).map(read).collect()
    };
    check_flood("reads", HELD_MAX, led, reads);
}

#[test]
fn a_flood_of_everything_takes_bounded_memory() {
    let mut group = Group::new(1, true);
    group.calm(2_000);
    for node in group.nodes.values_mut() {
        node.is_stuck = true;
    }
    let before = memory::held();
    for _ in 0..20_000 {
        let (from, to) = pair(&mut group);
        let lie = group.forge.lie(from, to);
        group.hear(from, to, lie);
        group.forget_network();
    }
    let grown = memory::held().saturating_sub(before);
    assert!(grown < 3 * HELD_MAX, "{grown} bytes are held");
}
