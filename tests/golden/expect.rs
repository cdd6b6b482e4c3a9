//! What a scene demands in words.

use d3b::{ReplicaId, Slot};
use d3b_paxos::Role;
use d3b_paxos::types::{Ballot, Epoch};

use crate::script::{number, replica, slot};
use crate::words;
use crate::world::World;

/// What must be so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expectation {
    /// `leader 1`: it leads, and nobody leads at a higher ballot.
    Leader(ReplicaId),
    /// `no leader`: nobody leads.
    NoLeader,
    /// `follows 2 1`: replica 2 takes replica 1 for the leader.
    Follows(ReplicaId, ReplicaId),
    /// `follows 2 nobody`: it knows of no leader.
    FollowsNobody(ReplicaId),
    /// `promised 2 1.1`: its promise, as it binds.
    Promised(ReplicaId, Ballot),
    /// `durable 2 1.1`: its promise, on its disk.
    Durable(ReplicaId, Ballot),
    /// `applied 3 5`: it has applied the log up to here, not further.
    Applied(ReplicaId, Slot),
    /// `holds 3 2 a=1 at 1.1`: what is on its disk in a slot.
    Holds(ReplicaId, Slot, String, Ballot),
    /// `holds 3 2 nothing`.
    HoldsNothing(ReplicaId, Slot),
    /// `chosen 2 a=1`: a majority has accepted it at one ballot.
    Chosen(Slot, String),
    /// `not chosen 2`.
    NotChosen(Slot),
    /// `answer a=1 2`: its client was told that it stands in this slot, or that it reads as of it.
    Answer(String, Slot),
    /// `no answer r1`: its client was told nothing good.
    NoAnswer(String),
    /// `refused r1`: its client was told that it is not to be had here.
    Refused(String),
    /// `adopted 2 1`: the number of the configuration on its disk.
    Adopted(ReplicaId, Epoch),
    /// `begins 1 3`: the first slot of the log on its disk.
    Begins(ReplicaId, Slot),
    /// `superseded 3 1`: its driver was told of the configuration of this number.
    Superseded(ReplicaId, Epoch),
    /// `behind 3 5`: its driver was told that it lacks what stood before this slot.
    Behind(ReplicaId, Slot),
    /// `silent 3`: it has not said a word since it started.
    Silent(ReplicaId),
}

/// Reads an expectation.
pub fn parse(words: &[&str]) -> Result<Expectation, String> {
    Ok(match words {
        ["leader", at] => Expectation::Leader(replica(at)?),
        ["no", "leader"] => Expectation::NoLeader,
        ["follows", at, "nobody"] => Expectation::FollowsNobody(replica(at)?),
        ["follows", at, leader] => Expectation::Follows(replica(at)?, replica(leader)?),
        ["promised", at, promised] => Expectation::Promised(replica(at)?, ballot(promised)?),
        ["durable", at, promised] => Expectation::Durable(replica(at)?, ballot(promised)?),
        ["applied", at, upto] => Expectation::Applied(replica(at)?, slot(upto)?),
        ["holds", at, place, "nothing"] => Expectation::HoldsNothing(replica(at)?, slot(place)?),
        ["holds", at, place, value, "at", by] => {
            Expectation::Holds(replica(at)?, slot(place)?, (*value).to_owned(), ballot(by)?)
        }
        ["chosen", place, value @ ..] if !value.is_empty() => Expectation::Chosen(slot(place)?, value.join(" ")),
        ["not", "chosen", place] => Expectation::NotChosen(slot(place)?),
        ["answer", name, place] => Expectation::Answer((*name).to_owned(), slot(place)?),
        ["no", "answer", name] => Expectation::NoAnswer((*name).to_owned()),
        ["refused", name] => Expectation::Refused((*name).to_owned()),
        ["adopted", at, epoch] => Expectation::Adopted(replica(at)?, Epoch(number(epoch)?)),
        ["begins", at, base] => Expectation::Begins(replica(at)?, slot(base)?),
        ["superseded", at, epoch] => Expectation::Superseded(replica(at)?, Epoch(number(epoch)?)),
        ["behind", at, base] => Expectation::Behind(replica(at)?, slot(base)?),
        ["silent", at] => Expectation::Silent(replica(at)?),
        _ => return Err("no such expectation".to_owned()),
    })
}

fn ballot(word: &str) -> Result<Ballot, String> {
    let (round, replica) = word.split_once('.').ok_or_else(|| format!("{word} is no ballot"))?;
    Ok(Ballot { round: number(round)?, replica: ReplicaId(number(replica)?) })
}

/// Demands a fact, and tells what is the case otherwise.
fn demand(holds: bool, instead: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(instead()) }
}

impl Expectation {
    /// Looks whether it is so.
    pub fn check(&self, world: &World) -> Result<(), String> {
        match self {
            Expectation::Leader(at) => {
                let highest = world.leaders().into_iter().max_by_key(|(_, ballot)| *ballot);
                demand(highest.is_some_and(|(leader, _)| leader == *at), || format!("leaders: {:?}", world.leaders()))
            }
            Expectation::NoLeader => demand(world.leaders().is_empty(), || format!("leaders: {:?}", world.leaders())),
            Expectation::Follows(at, leader) => {
                let status = world.status(*at)?;
                let follows = status.role == Role::Follower && status.leader == Some(*leader);
                demand(follows, || format!("{:?} of {:?}", status.role, status.leader))
            }
            Expectation::FollowsNobody(at) => {
                let status = world.status(*at)?;
                demand(status.leader.is_none(), || format!("{:?} of {:?}", status.role, status.leader))
            }
            Expectation::Promised(at, ballot) => {
                let promised = world.status(*at)?.promised;
                demand(promised == *ballot, || format!("promised {promised}"))
            }
            Expectation::Durable(at, ballot) => {
                let promised = world.node(*at)?.disk.promised();
                demand(promised == *ballot, || format!("promised {promised}"))
            }
            Expectation::Applied(at, upto) => {
                let applied = world.node(*at)?.applied;
                demand(applied == *upto, || format!("applied {applied}"))
            }
            Expectation::Holds(at, slot, value, ballot) => {
                let record = world.node(*at)?.disk.record(*slot);
                let held = record.map(|record| (words::payload(&record.entry.payload), record.ballot));
                demand(held == Some((value.clone(), *ballot)), || format!("holds {held:?}"))
            }
            Expectation::HoldsNothing(at, slot) => {
                let record = world.node(*at)?.disk.record(*slot);
                demand(record.is_none(), || format!("holds {record:?}"))
            }
            Expectation::Chosen(slot, value) => {
                let chosen = world.chosen(*slot);
                demand(chosen.as_ref() == Some(value), || format!("chosen: {chosen:?}"))
            }
            Expectation::NotChosen(slot) => {
                let chosen = world.chosen(*slot);
                demand(chosen.is_none(), || format!("chosen: {chosen:?}"))
            }
            Expectation::Answer(name, slot) => {
                let answer = world.answer(name)?;
                demand(answer == Some(Some(*slot)), || format!("answer: {answer:?}"))
            }
            Expectation::NoAnswer(name) => {
                let answer = world.answer(name)?;
                demand(!matches!(answer, Some(Some(_))), || format!("answer: {answer:?}"))
            }
            Expectation::Refused(name) => {
                let answer = world.answer(name)?;
                demand(answer == Some(None), || format!("answer: {answer:?}"))
            }
            Expectation::Adopted(at, epoch) => {
                let configuration = world.node(*at)?.disk.configuration();
                demand(configuration.epoch == *epoch, || words::members(&configuration))
            }
            Expectation::Begins(at, slot) => {
                let base = world.node(*at)?.disk.base();
                demand(base == *slot, || format!("begins at {base}"))
            }
            Expectation::Superseded(at, epoch) => {
                let told = world.node(*at)?.superseded;
                demand(told == Some(*epoch), || format!("it was told of {told:?}"))
            }
            Expectation::Behind(at, base) => {
                let told = world.node(*at)?.behind;
                demand(told == Some(*base), || format!("it was told of {told:?}"))
            }
            Expectation::Silent(at) => {
                let sent = world.node(*at)?.sent;
                demand(sent == 0, || format!("it has sent {sent} messages"))
            }
        }
    }
}
