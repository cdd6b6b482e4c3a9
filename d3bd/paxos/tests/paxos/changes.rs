//! The rules of configurations that change.

use d3b::{DiskId, ReplicaId, Slot};
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{Ballot, Change, Configuration, Entry, Epoch, Payload, ProposalId, Stamp};
use d3b_paxos::{Input, Reply, Role};

use crate::disk::Disk;
use crate::one::{One, accept, accepted, ballot, promise, record};
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

// Who is told.

#[test]
fn whoever_was_removed_tells_those_who_do_not_know_it() {
    // Of two replicas the one that knows of the removal is the removed one: without a word of it the other would wait for
    // its vote for ever.
    let removed = configuration(2).changed(&remove(1), Slot(4)).unwrap();
    let mut one = One::on(2, disk_with(&removed, true), 0, |_| {});
    one.hear_of(0, 2, Message::PreVote { round: 5, commit: Slot(3), nonce: 1 });
    assert_eq!(one.says(), [(2, Message::Superseded { configuration: Box::new(removed) })]);
}
