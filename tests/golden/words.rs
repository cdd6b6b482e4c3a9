//! Messages and records in the words of the essay.

use d3b::{ReplicaId, Slot};
use d3b_paxos::PersistBatch;
use d3b_paxos::message::Message;
use d3b_paxos::types::{Configuration, Member, Payload, Record};

/// What a slot holds.
pub fn payload(payload: &Payload) -> String {
    match payload {
        Payload::Noop => "no-op".to_owned(),
        Payload::Command(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Payload::Configuration(configuration) => members(configuration),
    }
}

/// `3`, or `3..=5`.
pub fn slots(first: Slot, last: Slot) -> String {
    if first == last { first.to_string() } else { format!("{first}..={last}") }
}

fn record(record: &Record) -> String {
    format!("{} {} at {}", record.slot, payload(&record.entry.payload), record.ballot)
}

/// What a batch makes durable.
pub fn batch(batch: &PersistBatch) -> String {
    let mut parts: Vec<String> = batch.promised.iter().map(|ballot| format!("promised {ballot}")).collect();
    if !batch.records.is_empty() {
        let records: Vec<String> = batch.records.iter().map(record).collect();
        parts.push(format!("accepted {}", records.join(", ")));
    }
    parts.extend(batch.configuration.iter().map(|configuration| format!("adopted {}", members(configuration))));
    parts.join("; ")
}

/// A configuration: its number and its members; who only learns stands in brackets.
pub fn members(configuration: &Configuration) -> String {
    let member = |(id, member): (&ReplicaId, &Member)| if member.votes { id.to_string() } else { format!("({id})") };
    let members: Vec<String> = configuration.members.iter().map(member).collect();
    format!("configuration {} of {}", configuration.epoch.0, members.join(" "))
}

/// What a message says, without the heartbeat's round: what repeats itself is equal but for that.
pub fn said(message: &Message) -> String {
    match message {
        Message::PreVote { round, commit, nonce: _ } => format!("PreVote for round {round}, commit {commit}"),
        Message::PreVoteReply { nonce: _, granted, promised, commit } => {
            let answer = if *granted { "welcome" } else { "not welcome" };
            format!("PreVoteReply {answer}, promised {promised}, commit {commit}")
        }
        Message::Prepare { ballot, from } => format!("Prepare {ballot} from {from}"),
        Message::Promise { ballot, commit, log_start: _, from, records, next, clock_ms: _ } => {
            let records: Vec<String> = records.iter().map(record).collect();
            let more = next.map_or(String::new(), |next| format!(", more from {next}"));
            format!("Promise {ballot}, commit {commit}, from {from} [{}]{more}", records.join(", "))
        }
        Message::PromiseMore { ballot, from } => format!("PromiseMore {ballot} from {from}"),
        Message::Accept { ballot, start, entries, commit, round: _ } => {
            let entries: Vec<String> = entries.iter().map(|entry| payload(&entry.payload)).collect();
            format!("Accept {ballot} from {start} [{}], commit {commit}", entries.join(", "))
        }
        Message::Accepted { ballot, upto, round: _, clock_ms: _, applied: _ } => {
            format!("Accepted {ballot} upto {upto}")
        }
        Message::Nack { ballot, promised, want, round: _ } if promised > ballot => {
            // What it wants means nothing in a refusal for good.
            let _ = want;
            format!("Nack {ballot}, promised {promised}")
        }
        Message::Nack { ballot, promised: _, want, round: _ } => format!("Nack {ballot}, wants {want}"),
        // Its name is made of a seed, and tells readers nothing.
        Message::ReadIndex { read: _ } => "ReadIndex".to_owned(),
        Message::ReadIndexAt { ballot, read: _ } => format!("ReadIndex at {ballot}"),
        Message::ReadIndexReply { ballot, read: _, index: Some(index) } => {
            format!("ReadIndexReply {index}, confirmed by {ballot}")
        }
        Message::ReadIndexReply { ballot: _, read: _, index: None } => "ReadIndexReply: does not lead".to_owned(),
        Message::TimeoutNow { ballot } => format!("TimeoutNow {ballot}"),
        Message::Behind { ballot, base } => format!("Behind {ballot}, the log begins at {base}"),
        Message::Superseded { configuration } => format!("Superseded by {}", members(configuration)),
    }
}

/// The heartbeat's round that a message carries.
pub fn round(message: &Message) -> Option<u64> {
    match message {
        Message::Accept { round, .. } | Message::Accepted { round, .. } => Some(*round),
        Message::Nack { ballot, promised, round, .. } if ballot == promised => Some(*round),
        Message::PreVote { .. }
        | Message::PreVoteReply { .. }
        | Message::Prepare { .. }
        | Message::Promise { .. }
        | Message::PromiseMore { .. }
        | Message::Nack { .. }
        | Message::ReadIndex { .. }
        | Message::ReadIndexAt { .. }
        | Message::ReadIndexReply { .. }
        | Message::TimeoutNow { .. }
        | Message::Behind { .. }
        | Message::Superseded { .. } => None,
    }
}
