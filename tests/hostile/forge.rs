//! Messages that no replica of ours would send: numbers at the end of their range, records out of order, foreign
//! addresses; real messages with bytes changed; and real messages once more.

use std::collections::BTreeMap;

use bytes::Bytes;
use d3b::{ClusterId, DatabaseId, DatabaseName, Digest, DiskId, ReplicaId, Slot};
use d3b_paxos::configuration::FoundingMember;
use d3b_paxos::formation::FormationMessage;
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{Ballot, Configuration, Entry, Epoch, Founding, Payload, ReadId, Record, Stamp};
use d3b_tests::sim::random::Random;
use d3bd::peer::{ForwardResult, PeerMessage};

/// How many real messages are kept to be mutated and sent once more.
const RECORDED_MAX: usize = 512;

/// A real message, as it was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// By whom.
    pub from: ReplicaId,
    /// To whom.
    pub to: ReplicaId,
    /// What.
    pub message: PeerMessage,
}

/// Makes hostile messages.
pub struct Forge {
    random: Random,
    recorded: Vec<Sent>,
    /// The configuration that right addresses are of.
    configuration: Configuration,
    /// A round and a slot near those in use, so that some lies are believable.
    pub near: (u64, u64),
}

impl Forge {
    /// A forge that knows a cluster.
    pub fn new(seed: u64, configuration: Configuration) -> Forge {
        Forge { random: Random::new(seed), recorded: Vec::new(), configuration, near: (1, 1) }
    }

    /// Remembers a real message.
    pub fn record(&mut self, sent: Sent) {
        if self.recorded.len() < RECORDED_MAX {
            self.recorded.push(sent);
        } else {
            let index = self.index(RECORDED_MAX);
            self.recorded[index] = sent;
        }
    }

    /// Whether somebody has said something of a kind.
    pub fn said_by(&self, id: ReplicaId, kind: impl Fn(&PeerMessage) -> bool) -> bool {
        self.recorded.iter().any(|sent| sent.from == id && kind(&sent.message))
    }

    /// Forgets every real message.
    pub fn forget(&mut self) {
        self.recorded = Vec::new();
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.random.below(length as u64)).expect("an index")
    }

    /// A real message once more, unchanged, from who sent it to whom it was for.
    pub fn replay(&mut self) -> Option<Sent> {
        if self.recorded.is_empty() {
            return None;
        }
        let index = self.index(self.recorded.len());
        Some(self.recorded[index].clone())
    }

    /// A real message with a few bytes changed, if it is one still.
    pub fn mutated(&mut self) -> Option<PeerMessage> {
        let mut bytes = postcard::to_allocvec(&self.replay()?.message).expect("plain data can be written");
        for _ in 0..self.random.between(1, 4) {
            let index = self.index(bytes.len());
            bytes[index] = match self.random.below(4) {
                0 => 0,
                1 => 0xff,
                _ => self.random.word().to_le_bytes()[0],
            };
        }
        postcard::from_bytes(&bytes).ok()
    }

    /// A message that nobody could send in earnest: of another cluster, sender or receiver, or with a number out of all
    /// range. Whatever else it says, it must change nothing.
    pub fn nonsense(&mut self, from: ReplicaId, to: ReplicaId) -> PeerMessage {
        let mut envelope = self.envelope(from, to);
        match self.random.below(6) {
            0 => envelope.cluster = ClusterId([0xbb; 16]),
            // A question of a newer configuration is a question; of the own one nobody says that it is an old one.
            1 => envelope.message = Message::Superseded { configuration: Box::new(self.configuration.clone()) },
            2 => envelope.from = ReplicaId(self.random.between(10, 20).try_into().expect("small")),
            3 => envelope.to = ReplicaId(self.random.between(10, 20).try_into().expect("small")),
            4 => envelope.from = to,
            _ => {
                let ballot = Ballot { round: self.beyond(), replica: from };
                envelope.message = match self.random.below(4) {
                    0 => Message::Prepare { ballot, from: Slot(1) },
                    1 => Message::Nack { ballot, promised: ballot, want: Slot(1), round: 0 },
                    2 => Message::Accept {
                        ballot,
                        start: Slot(1),
                        entries: vec![self.entry()],
                        commit: Slot(1),
                        round: 0,
                    },
                    _ => Message::PreVoteReply { nonce: 0, granted: true, promised: ballot, commit: Slot(0) },
                };
            }
        }
        PeerMessage::Paxos(envelope)
    }

    fn beyond(&mut self) -> u64 {
        *self.random.pick(&[Ballot::ROUND_MAX + 1, 1 << 62, u64::MAX - 1, u64::MAX])
    }

    /// A message that may say anything.
    pub fn lie(&mut self, from: ReplicaId, to: ReplicaId) -> PeerMessage {
        match self.random.below(20) {
            0..12 => PeerMessage::Paxos(self.envelope(from, to)),
            12 => PeerMessage::Formation(self.hello(from)),
            13 => PeerMessage::Forward { id: self.number(), command: self.bytes() },
            14 => PeerMessage::ForwardReply { id: self.number(), result: self.forward_result() },
            15 => PeerMessage::BlobOffer { digest: self.digest(), size: self.number() },
            16 => PeerMessage::BlobHeld { digest: self.digest() },
            17 => PeerMessage::BlobRefused { digest: self.digest(), reason: "x".repeat(self.index(1_000)) },
            18 => {
                let count = self.index(600);
                let fingerprints = (0..count).map(|_| (self.database(), self.slot(), [7; 16])).collect();
                PeerMessage::Gossip { applied: self.slot(), fingerprints }
            }
            _ => PeerMessage::BlobUnderWay { digest: self.digest() },
        }
    }

    fn forward_result(&mut self) -> ForwardResult {
        match self.random.below(3) {
            0 => ForwardResult::Proposed { slot: self.slot() },
            1 => ForwardResult::NotLeader { leader: self.random.percent(50).then(|| self.id()) },
            _ => ForwardResult::Overloaded,
        }
    }

    fn envelope(&mut self, from: ReplicaId, to: ReplicaId) -> Envelope {
        let Configuration { cluster, epoch, .. } = self.configuration;
        let mut envelope = Envelope { cluster, epoch, from, to, message: self.message(from) };
        if self.random.percent(10) {
            envelope.cluster = ClusterId([self.random.word().to_le_bytes()[0]; 16]);
        }
        if self.random.percent(10) {
            // Of an old configuration, or one that nobody can have come to: those in between are what members speak of.
            envelope.epoch = Epoch(self.number().saturating_add(Epoch::LEAP_MAX + 1));
        }
        if self.random.percent(5) {
            envelope.from = self.id();
        }
        if self.random.percent(5) {
            envelope.to = self.id();
        }
        envelope
    }

    fn message(&mut self, from: ReplicaId) -> Message {
        let ballot = self.ballot(from);
        match self.random.below(12) {
            0 => Message::PreVote { round: self.round(), commit: self.slot(), nonce: self.number() },
            1 => {
                let (granted, promised) = (self.random.percent(50), self.ballot(from));
                Message::PreVoteReply { nonce: self.number(), granted, promised, commit: self.slot() }
            }
            2 => Message::Prepare { ballot, from: self.slot() },
            3 => {
                let start = self.slot();
                let records = self.records(start);
                let next = self.random.percent(50).then(|| self.slot());
                let (commit, log_start, clock_ms) = (self.slot(), self.slot(), self.number());
                Message::Promise { ballot, commit, log_start, from: start, records, next, clock_ms }
            }
            4 => Message::PromiseMore { ballot, from: self.slot() },
            5 | 6 => {
                let count = self.count();
                let entries = (0..count).map(|_| self.entry()).collect();
                Message::Accept { ballot, start: self.slot(), entries, commit: self.slot(), round: self.number() }
            }
            7 => {
                let (upto, applied) = (self.slot(), self.slot());
                Message::Accepted { ballot, upto, round: self.number(), clock_ms: self.number(), applied }
            }
            8 => Message::Nack { ballot, promised: self.ballot(from), want: self.slot(), round: self.number() },
            9 => Message::ReadIndex { read: ReadId(self.number()) },
            10 => {
                let index = self.random.percent(50).then(|| self.slot());
                Message::ReadIndexReply { ballot, read: ReadId(self.number()), index }
            }
            _ => Message::TimeoutNow { ballot },
        }
    }

    // Parts.

    /// The ends of ranges, what lies beside them, and something in between.
    fn number(&mut self) -> u64 {
        match self.random.below(12) {
            0 => 0,
            1 => 1,
            2 => self.random.below(10),
            3 => u64::from(u32::MAX),
            4 => Ballot::ROUND_MAX - 1,
            5 => Ballot::ROUND_MAX,
            6 => Ballot::ROUND_MAX + 1,
            7 => i64::MAX as u64,
            8 => u64::MAX - 1,
            9 => u64::MAX,
            10 => 1_750_000_000_000,
            _ => self.random.word(),
        }
    }

    fn round(&mut self) -> u64 {
        if self.random.percent(70) { self.near.0 + self.random.below(3) } else { self.number() }
    }

    fn slot(&mut self) -> Slot {
        match self.random.below(10) {
            0..7 => Slot((self.near.1 + self.random.below(6)).saturating_sub(3)),
            _ => Slot(self.number()),
        }
    }

    fn id(&mut self) -> ReplicaId {
        ReplicaId(*self.random.pick(&[0, 1, 2, 3, 4, 9, u32::MAX]))
    }

    fn ballot(&mut self, from: ReplicaId) -> Ballot {
        let replica = if self.random.percent(80) { from } else { self.id() };
        Ballot { round: self.round(), replica }
    }

    fn count(&mut self) -> usize {
        match self.random.below(20) {
            0 => self.index(2_000),
            1..8 => 0,
            _ => self.index(5),
        }
    }

    fn bytes(&mut self) -> Bytes {
        let length = match self.random.below(30) {
            0 => self.index(200_000),
            1..4 => 0,
            _ => self.index(100),
        };
        Bytes::from(vec![0xaa; length])
    }

    fn entry(&mut self) -> Entry {
        let time_ms = if self.random.percent(60) { 1_750_000_000_000 } else { self.number() };
        let stamp = Stamp { time_ms, seed: self.random.word(), execution: 1 };
        let payload = if self.random.percent(30) { Payload::Noop } else { Payload::Command(self.bytes()) };
        Entry { stamp, payload }
    }

    /// Mostly in order, sometimes with holes, doubles, or turned around.
    fn records(&mut self, start: Slot) -> Vec<Record> {
        let count = self.count();
        let mut records = Vec::new();
        for index in 0..count as u64 {
            let ballot = self.ballot(ReplicaId(1));
            records.push(Record { slot: Slot(start.0.wrapping_add(index)), ballot, entry: self.entry() });
        }
        if self.random.percent(20) {
            records.reverse();
        }
        if self.random.percent(20) && !records.is_empty() {
            let index = self.index(records.len());
            records[index].slot = self.slot();
        }
        records
    }

    fn digest(&mut self) -> Digest {
        Digest::of(&self.random.below(50).to_le_bytes())
    }

    fn database(&mut self) -> DatabaseId {
        let name = DatabaseName::new(format!("db{}", self.random.below(1_000))).expect("a name");
        DatabaseId::derive(&name, "")
    }

    /// A hello with the sender's own disk, for its word is all that anybody has of that, and with a configuration that no
    /// formed replica has: without members, without the sender, or with too many.
    fn hello(&mut self, from: ReplicaId) -> FormationMessage {
        let disk = self.configuration.members.get(&from).map_or(DiskId([0xdd; 16]), |member| member.disk);
        let ids = match self.random.below(4) {
            0 => return FormationMessage::Hello { disk, formed: None },
            1 => 1..1,
            2 => 5..8,
            _ => 1..1_000,
        };
        let member =
            |id: u32| (ReplicaId(id), FoundingMember { disk: DiskId([0xdd; 16]), peer: "nowhere:1".to_owned() });
        let members: BTreeMap<ReplicaId, FoundingMember> = ids.map(member).collect();
        let formed = Some(Founding { cluster: ClusterId([0xcc; 16]), epoch: Epoch(self.number()), members });
        FormationMessage::Hello { disk, formed }
    }
}
