//! One replica, whose peers, disk and clock the test plays by hand.

use bytes::Bytes;
use d3b::{DiskId, ReplicaId, Slot};
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{Ballot, Entry, Now, Payload, PersistId, ProposalId, ReadId, Record, Stamp, Ticks};
use d3b_paxos::{Input, Proposal, Ready, Replica, Reply, Restored, Role, Settings};

use crate::disk::Disk;
use crate::world::{CLOCK_MS, configuration, settings};

pub struct One {
    pub replica: Replica<Disk>,
    pub now: Now,
    count: u32,
    /// The batch that is handed out.
    pub writing: Option<d3b_paxos::PersistBatch>,
    pub after: Vec<Envelope>,
}

pub fn ballot(round: u64, replica: u32) -> Ballot {
    Ballot { round, replica: ReplicaId(replica) }
}

pub fn entry(text: &'static str) -> Entry {
    let stamp = Stamp { time_ms: CLOCK_MS, seed: 1, execution: 1 };
    Entry { stamp, payload: Payload::Command(Bytes::from_static(text.as_bytes())) }
}

/// The entry in this slot, dated as a leader would: stamps rise along its log.
fn dated(slot: u64, text: &'static str) -> Entry {
    let mut entry = entry(text);
    entry.stamp.time_ms += slot;
    entry
}

pub fn record(slot: u64, ballot: Ballot, text: &'static str) -> Record {
    Record { slot: Slot(slot), ballot, entry: dated(slot, text) }
}

/// An Accept of consecutive entries.
pub fn accept(ballot: Ballot, start: u64, texts: &[&'static str], commit: u64, round: u64) -> Message {
    let entries = (start..).zip(texts).map(|(slot, text)| dated(slot, text)).collect();
    Message::Accept { ballot, start: Slot(start), entries, commit: Slot(commit), round }
}

pub fn accepted(ballot: Ballot, upto: u64, round: u64) -> Message {
    Message::Accepted { ballot, upto: Slot(upto), round, clock_ms: CLOCK_MS, applied: Slot(0) }
}

/// A whole promise.
pub fn promise(ballot: Ballot, commit: u64, from: u64, records: Vec<Record>) -> Message {
    let (commit, from) = (Slot(commit), Slot(from));
    Message::Promise { ballot, commit, log_start: Slot(1), from, records, next: None, clock_ms: CLOCK_MS }
}

impl One {
    /// Replica 1 of so many, on a fresh disk.
    pub fn new(count: u32) -> One {
        One::on(count, Disk::fresh(), 0, |_| {})
    }

    /// Replica 1 of so many, on this disk.
    pub fn on(count: u32, disk: Disk, applied: u64, adjust: impl FnOnce(&mut Settings)) -> One {
        let now = Now { ticks: Ticks(10_000), clock_ms: CLOCK_MS };
        let restored = Restored {
            configuration: disk.configuration.clone().map_or(configuration(count), |(configuration, _)| configuration),
            held: disk.held(),
            promised: disk.promised,
            base: Slot(1),
            last: disk.last(),
            applied: Slot(applied),
        };
        let mut settings = settings(ReplicaId(1), DiskId([1; 16]), 42);
        adjust(&mut settings);
        let replica = Replica::new(settings, restored, disk, now);
        One { replica, now, count, writing: None, after: Vec::new() }
    }

    /// The process dies with everything that is not durable, and starts again.
    pub fn restart(self, applied: u64) -> One {
        One::on(self.count, self.replica.storage().clone(), applied, |_| {})
    }

    pub fn step(&mut self, input: Input) {
        self.replica.step(self.now, input).unwrap();
    }

    pub fn envelope(&self, from: u32, message: Message) -> Envelope {
        let configuration = self.replica.configuration();
        let (cluster, epoch) = (configuration.cluster, configuration.epoch);
        Envelope { cluster, epoch, from: ReplicaId(from), to: ReplicaId(1), message }
    }

    pub fn hear(&mut self, from: u32, message: Message) {
        let envelope = self.envelope(from, message);
        self.step(Input::Message(envelope));
    }

    pub fn pass(&mut self, ticks: u64) {
        self.now.ticks.0 += ticks;
        self.now.clock_ms += ticks;
        self.replica.tick(self.now).unwrap();
    }

    /// What is to be done; a batch stays under way until [`One::persist`].
    pub fn ready(&mut self) -> Ready {
        let ready = self.replica.ready().unwrap();
        if let Some(batch) = &ready.persist {
            assert!(self.writing.is_none(), "one batch at a time");
            self.writing = Some(batch.clone());
            self.after = ready.send_after_persist.clone();
        } else {
            assert!(ready.send_after_persist.is_empty());
        }
        ready
    }

    /// Messages that are said at once, with their receivers.
    pub fn says(&mut self) -> Vec<(u32, Message)> {
        self.ready().send_now.into_iter().map(|envelope| (envelope.to.0, envelope.message)).collect()
    }

    /// The batch under way becomes durable; what waited for it.
    pub fn persist(&mut self) -> Vec<(u32, Message)> {
        let batch = self.writing.take().expect("a batch is under way");
        self.replica.storage_mut().write(&batch);
        self.step(Input::Persisted(batch.id));
        self.after.drain(..).map(|envelope| (envelope.to.0, envelope.message)).collect()
    }

    /// Hands out a batch and makes it durable, until nothing is left to write.
    pub fn settle(&mut self) -> Vec<(u32, Message)> {
        let mut said = self.says();
        while self.writing.is_some() {
            said.extend(self.persist());
            said.extend(self.says());
        }
        said
    }

    pub fn role(&self) -> Role {
        self.replica.status().role
    }

    /// Waits for no leader, and is granted its pre-vote; its ballot is not durable yet.
    pub fn campaign(&mut self) -> Ballot {
        self.pass(700);
        let nonce = self.says().into_iter().find_map(|(_, message)| match message {
            Message::PreVote { nonce, .. } => Some(nonce),
            _ => None,
        });
        let nonce = nonce.expect("it asks around");
        for peer in 2..=self.count / 2 + 1 {
            let (promised, commit) = (Ballot::ZERO, Slot(0));
            self.hear(peer, Message::PreVoteReply { nonce, granted: true, promised, commit });
        }
        assert_eq!(self.role(), Role::Candidate);
        self.replica.promised()
    }

    /// Leads, by the promise of a bare majority that has accepted nothing; the barrier is not durable yet.
    pub fn lead(&mut self) -> Ballot {
        let ballot = self.campaign();
        self.settle();
        let from = self.replica.status().commit.next();
        for peer in 2..=self.count / 2 + 1 {
            self.hear(peer, promise(ballot, from.previous().0, from.0, Vec::new()));
        }
        assert_eq!(self.role(), Role::Leader);
        ballot
    }

    /// Leads, with the barrier chosen; the rounds so far are acknowledged.
    pub fn lead_with_barrier(&mut self) -> Ballot {
        let ballot = self.lead();
        self.settle();
        let last = self.replica.status().last;
        self.hear(2, accepted(ballot, last.0, 0));
        assert!(self.replica.status().barrier_chosen);
        self.settle();
        ballot
    }

    pub fn propose(&mut self, id: u64, text: &'static str) -> Reply {
        self.step(Input::Propose(Proposal {
            id: ProposalId(id),
            command: Bytes::from_static(text.as_bytes()),
            seed: 9,
        }));
        let ready = self.replica_reply();
        ready.expect("a proposal is answered at once")
    }

    /// Takes the replies without losing the rest: the messages of the same round are dropped, as a network may.
    fn replica_reply(&mut self) -> Option<Reply> {
        self.ready().replies.pop()
    }

    pub fn read(&mut self, id: u64) {
        self.step(Input::Read(ReadId(id)));
    }

    pub fn persisted(&mut self, id: u64) {
        self.step(Input::Persisted(PersistId(id)));
    }
}
