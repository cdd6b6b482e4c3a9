//! The rules of configurations that change.

use d3b::{DiskId, ReplicaId, Slot};
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{Ballot, Change, ChangeError, Configuration, Entry, Epoch, Payload, ProposalId, ReadId, Stamp};
use d3b_paxos::{Input, Reply, Role};

use crate::disk::Disk;
use crate::one::{One, accept, accepted, ballot, entry, promise, record};
use crate::world::{CLOCK_MS, configuration};

fn add(id: u32) -> Change {
    let disk = DiskId([u8::try_from(id).unwrap(); 16]);
    Change::Add { id: ReplicaId(id), disk, peer: String::new(), replaces: None }
}

fn remove(id: u32) -> Change {
    Change::Remove { id: ReplicaId(id) }
}

/// The entry of a configuration, dated as the other entries of its slot.
fn entry_of(configuration: &Configuration) -> Entry {
    let stamp = Stamp { time_ms: CLOCK_MS + configuration.slot.0, seed: 1, execution: 1 };
    Entry { stamp, payload: Payload::Configuration(Box::new(configuration.clone())) }
}

fn accept_of(ballot: Ballot, start: u64, entries: Vec<Entry>, commit: u64, round: u64) -> Message {
    Message::Accept { ballot, start: Slot(start), entries, commit: Slot(commit), round }
}

/// A disk on which a configuration was adopted: as it was chosen, or as its replica was told of it when it joined.
fn disk_with(configuration: &Configuration, chosen_here: bool) -> Disk {
    let mut disk = Disk::fresh();
    disk.configuration = Some((configuration.clone(), chosen_here));
    disk
}

impl One {
    /// Hears a message of a sender that knows another configuration.
    fn hear_of(&mut self, epoch: u64, from: u32, message: Message) {
        let envelope = self.envelope(from, message);
        self.step(Input::Message(Envelope { epoch: Epoch(epoch), ..envelope }));
    }

    fn reconfigure(&mut self, id: u64, change: Change) -> Reply {
        self.step(Input::Reconfigure { id: ProposalId(id), change });
        self.ready().replies.pop().expect("a change is answered at once")
    }
}

// Adopting.

#[test]
fn of_two_configurations_with_one_number_the_first_one_counts() {
    // Replica 3 proposed to remove 2, and nobody heard; replica 2 has had 4 added, in an earlier slot. What 3 left behind
    // is dated later, is found, and is proposed again as what it has become: an entry that means nothing.
    let founding = configuration(3);
    let added = founding.changed(&add(4), Slot(1)).unwrap();
    let rival = founding.changed(&remove(2), Slot(2)).unwrap();
    let mut one = One::new(3);
    one.hear_of(1, 2, accept_of(ballot(3, 2), 1, vec![entry_of(&added), entry_of(&rival)], 2, 1));
    one.settle();
    assert_eq!(one.replica.configuration(), &added);
    assert_eq!((one.replica.status().commit, one.replica.status().changing), (Slot(2), false));
}

#[test]
fn nothing_follows_a_configuration_before_it_is_adopted_and_then_a_new_ballot() {
    let mut one = One::new(3);
    let own = one.lead_with_barrier();
    let leads = ChangeError::Leads(ReplicaId(1));
    assert_eq!(one.reconfigure(1, remove(1)), Reply::Refused { id: ProposalId(1), error: leads });
    let proposed = Reply::Proposed { id: ProposalId(2), slot: Slot(2), ballot: own };
    assert_eq!(one.reconfigure(2, add(4)), proposed);
    assert_eq!(one.propose(3, "waits"), Reply::NotLeader { id: ProposalId(3), leader: None });
    let under_way = Reply::Refused { id: ProposalId(4), error: ChangeError::UnderWay };
    assert_eq!(one.reconfigure(4, add(5)), under_way);
    one.persist();
    one.hear(2, accepted(own, 2, 1));
    let ready = one.ready();
    assert_eq!(ready.persist.map(|batch| batch.configuration.is_some()), Some(true));
    assert_eq!(ready.apply, None, "chosen, but not adopted");
    assert_eq!(one.propose(5, "waits"), Reply::NotLeader { id: ProposalId(5), leader: None });
    one.persist();
    assert_eq!((one.role(), one.replica.configuration().epoch), (Role::Candidate, Epoch(1)));
    assert!(one.replica.promised() > own);
    assert_eq!(one.ready().apply, Some(Slot(2)..=Slot(2)));
}

#[test]
fn whoever_has_a_configuration_to_adopt_does_not_campaign() {
    let added = configuration(3).changed(&add(4), Slot(1)).unwrap();
    let mut one = One::new(3);
    let theirs = ballot(1, 2);
    one.hear(2, accept_of(theirs, 1, vec![entry_of(&added)], 0, 1));
    one.settle();
    one.hear(2, accept_of(theirs, 2, vec![], 1, 2));
    one.says();
    one.hear(2, Message::TimeoutNow { ballot: theirs });
    one.pass(10_000);
    assert_eq!((one.says(), one.role()), (vec![], Role::Follower));
    one.persist();
    assert_eq!(one.replica.configuration(), &added);
    one.pass(700);
    assert_eq!(one.role(), Role::PreCandidate);
    let asked: Vec<u32> = one.says().into_iter().map(|(to, _)| to).collect();
    assert_eq!(asked, [2, 3], "a learner is not asked");
}

#[test]
fn a_candidate_of_an_old_configuration_stops_where_it_ended() {
    let added = configuration(3).changed(&add(4), Slot(1)).unwrap();
    let mut one = One::new(3);
    let own = one.campaign();
    one.settle();
    let mut found = vec![record(1, ballot(0, 2), ""), record(2, ballot(0, 3), "of the next configuration")];
    found[0].entry = entry_of(&added);
    one.hear(2, promise(own, 0, 1, found));
    assert_eq!(one.role(), Role::Leader);
    assert_eq!(one.replica.status().last, Slot(1));
    let status = one.replica.status();
    assert!(status.changing && !status.barrier_chosen);
}

#[test]
fn what_was_adopted_as_it_was_chosen_is_known_to_be_held_after_a_restart() {
    let added = configuration(3).changed(&add(4), Slot(2)).unwrap();
    let mut one = One::new(3);
    one.hear(2, accept_of(ballot(1, 2), 1, vec![entry("a"), entry_of(&added)], 2, 1));
    one.settle();
    let mut one = one.restart(0);
    assert_eq!((one.replica.configuration(), one.replica.status().commit), (&added, Slot(2)));
    assert_eq!(one.ready().apply, Some(Slot(1)..=Slot(2)));

    let joiner = One::on(3, disk_with(&added, false), 0, |_| {});
    assert_eq!(joiner.replica.status().commit, Slot(0), "whoever was told of it holds nothing yet");
}

// Reading.

#[test]
fn a_leader_that_has_found_a_configuration_confirms_no_read() {
    // The configuration in slot 1 was chosen before, perhaps, and its majority has chosen and answered what lies behind:
    // this leader knows nothing of that, and proposes nothing there.
    let added = configuration(3).changed(&add(4), Slot(1)).unwrap();
    let mut one = One::new(3);
    let own = one.campaign();
    one.settle();
    let mut found = record(1, ballot(0, 2), "");
    found.entry = entry_of(&added);
    one.hear(2, promise(own, 0, 1, vec![found]));
    assert_eq!(one.role(), Role::Leader);
    one.says();
    one.read(1);
    one.hear(2, accepted(own, 1, 1));
    one.hear(3, accepted(own, 1, 1));
    one.persist();
    one.hear(3, accepted(own, 1, 1));
    // Its disk is about to adopt the configuration, and takes its time.
    let mut reads = one.ready().reads;
    for round in 2..5 {
        one.hear(2, accepted(own, 1, round));
        one.hear(3, accepted(own, 1, round));
        reads.extend(one.ready().reads);
    }
    assert_eq!(one.role(), Role::Leader, "the configuration is not adopted yet");
    assert_eq!(reads, []);
}

// Who is heard, and who is told.

#[test]
fn a_learner_promises_to_nobody_but_who_counts_it_already() {
    let mut learning = configuration(3);
    learning.epoch = Epoch(1);
    learning.members.get_mut(&ReplicaId(1)).unwrap().votes = false;
    let mut one = One::on(3, disk_with(&learning, false), 0, |_| {});
    let prepare = |round| Message::Prepare { ballot: ballot(round, 2), from: Slot(1) };
    one.hear(2, Message::PreVote { round: 1, commit: Slot(0), nonce: 1 });
    one.hear(2, prepare(1));
    one.pass(10_000);
    assert_eq!((one.settle(), one.replica.promised()), (vec![], Ballot::ZERO));
    one.hear(2, accept(ballot(1, 2), 1, &["a"], 0, 1));
    let said = one.settle();
    assert!(matches!(said[..], [(2, Message::Accepted { .. })]), "it learns: {said:?}");
    one.hear_of(2, 2, prepare(2));
    let said = one.settle();
    assert!(matches!(said[..], [(2, Message::Promise { .. })]), "there it votes: {said:?}");
}

#[test]
fn a_removed_leader_is_refused() {
    let removed = configuration(3).changed(&remove(3), Slot(4)).unwrap();
    let mut one = One::on(3, disk_with(&removed, true), 0, |_| {});
    let tells = || vec![(3, Message::Superseded { configuration: Box::new(removed.clone()) })];
    let theirs = ballot(9, 3);
    for question in [
        accept(theirs, 5, &["a"], 4, 1),
        Message::Prepare { ballot: theirs, from: Slot(5) },
        Message::ReadIndex { read: ReadId(7) },
        Message::TimeoutNow { ballot: theirs },
    ] {
        one.hear_of(0, 3, question);
        assert_eq!(one.says(), tells());
    }
    assert_eq!((one.replica.promised(), one.replica.status().last), (Ballot::ZERO, Slot(4)));
    one.hear(3, Message::Prepare { ballot: theirs, from: Slot(5) });
    assert_eq!(one.says(), [], "in this configuration it is nobody");
}

#[test]
fn only_members_are_believed_that_there_is_a_newer_configuration() {
    let newer = configuration(3).changed(&remove(1), Slot(4)).unwrap();
    let superseded = || Message::Superseded { configuration: Box::new(newer.clone()) };
    let mut one = One::new(3);
    one.hear_of(1, 77, superseded());
    one.hear_of(0, 2, superseded());
    assert_eq!(one.ready().replies, []);
    one.hear_of(1, 2, superseded());
    assert_eq!(one.ready().replies, [Reply::Superseded { configuration: Box::new(newer) }]);
    assert_eq!(one.replica.configuration(), &configuration(3), "it is for the driver to write it down");
}

#[test]
fn whoever_was_removed_tells_those_who_do_not_know_it() {
    // Of two replicas the one that knows of the removal is the removed one: without a word of it the other would wait for
    // its vote for ever.
    let removed = configuration(2).changed(&remove(1), Slot(4)).unwrap();
    let mut one = One::on(2, disk_with(&removed, true), 0, |_| {});
    one.hear_of(0, 2, Message::PreVote { round: 5, commit: Slot(3), nonce: 1 });
    assert_eq!(one.says(), [(2, Message::Superseded { configuration: Box::new(removed) })]);
}
