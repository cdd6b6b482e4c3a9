//! The commands of a scene.

use d3b::{DiskId, ReplicaId, Slot};
use d3b_paxos::types::Change;

use crate::expect::{self, Expectation};

/// From one replica to another.
pub type Link = (ReplicaId, ReplicaId);

/// What a scene may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `replicas 3`: a cluster that has formed; every replica starts.
    Replicas(u32),
    /// `elected 1`: this replica campaigns and every message arrives; how that goes is another page's matter.
    Elected(ReplicaId),
    /// `campaign 1`: time passes until this replica's patience ends; nobody else looks at the clock.
    Campaign(ReplicaId),
    /// `put 1 a=1`: a client hands a command to a replica.
    Put(ReplicaId, String),
    /// `read 2`: a client asks a replica to read.
    Read(ReplicaId),
    /// `deliver`: every message arrives, and those that come of it, until none is left. `deliver 1 2`: what is on its way
    /// from 1 to 2 arrives. `deliver 1 2 1`: only the first of it.
    Deliver(Option<(Link, usize)>),
    /// `drop 1 2`, `drop 1 2 1`: what is on its way from 1 to 2 is lost, or the first of it.
    Drop(Link, usize),
    /// `drop`: everything that is on its way is lost; which is a lot, and not told.
    DropAll,
    /// `double 1 2`: what is on its way from 1 to 2 is there twice.
    Double(Link),
    /// `hold 1 2`: what is on its way from 1 to 2, and what will be, stays on its way.
    Hold(Link),
    /// `release 1 2`, `release`: it may go on.
    Release(Option<Link>),
    /// `partition 3`, `partition 1 2`: nothing passes between these and the others.
    Partition(Vec<ReplicaId>),
    /// `heal`: everything passes.
    Heal,
    /// `disk 2 slow`: a batch stays on its way to this disk until `sync 2`. `disk 2 fast`: it does not.
    Disk(ReplicaId, bool),
    /// `sync 2`: the batch that is on its way to this disk is durable.
    Sync(ReplicaId),
    /// `crash 1`: the process ends; what is on its way to its disk is lost.
    Crash(ReplicaId),
    /// `wipe 3`: the process ends, and its disk is exchanged for an empty one.
    Wipe(ReplicaId),
    /// `restart 1`: the process starts again. `restart 1 applied 2`: its databases are only as far as slot 2.
    Restart(ReplicaId, Option<Slot>),
    /// `reset 1`: everybody else sees that replica's connections break.
    Reset(ReplicaId),
    /// `transfer 1 2`: replica 1 is asked to hand over to 2.
    Transfer(ReplicaId, ReplicaId),
    /// `add 1 4`, `promote 1 4`, `remove 1 3`: replica 1 is asked to change the configuration so; the line itself, as a
    /// name.
    Change(ReplicaId, Change, String),
    /// `join 4 1`: a new replica is told of the configuration that replica 1 has adopted, and starts.
    Join(ReplicaId, ReplicaId),
    /// `cut 1 3`: replica 1 forgets its log below slot 3.
    Cut(ReplicaId, Slot),
    /// `install 3 1`: replica 3 takes over a snapshot of all that replica 1 has applied, and starts again.
    Install(ReplicaId, ReplicaId),
    /// `tick 50`: so many milliseconds pass, in which no message arrives.
    Tick(u64),
    /// `run 50`: so many milliseconds pass, in which every message arrives at once.
    Run(u64),
    /// `status`: how far everybody is.
    Status,
    /// `expect …`: what must be so.
    Expect(Expectation),
}

impl Command {
    /// Whether it only demands something.
    pub fn is_expectation(&self) -> bool {
        matches!(self, Command::Expect(_))
    }
}

/// Reads a command.
pub fn parse(line: &str) -> Result<Command, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    Ok(match words[..] {
        ["replicas", count] => Command::Replicas(number(count)?),
        ["elected", at] => Command::Elected(replica(at)?),
        ["campaign", at] => Command::Campaign(replica(at)?),
        ["put", at, command] => Command::Put(replica(at)?, command.to_owned()),
        ["read", at] => Command::Read(replica(at)?),
        ["deliver"] => Command::Deliver(None),
        ["deliver", from, to] => Command::Deliver(Some((link(from, to)?, usize::MAX))),
        ["deliver", from, to, count] => Command::Deliver(Some((link(from, to)?, number(count)?))),
        ["drop"] => Command::DropAll,
        ["drop", from, to] => Command::Drop(link(from, to)?, usize::MAX),
        ["drop", from, to, count] => Command::Drop(link(from, to)?, number(count)?),
        ["double", from, to] => Command::Double(link(from, to)?),
        ["hold", from, to] => Command::Hold(link(from, to)?),
        ["release"] => Command::Release(None),
        ["release", from, to] => Command::Release(Some(link(from, to)?)),
        ["partition", ref ids @ ..] if !ids.is_empty() => {
            Command::Partition(ids.iter().map(|id| replica(id)).collect::<Result<_, _>>()?)
        }
        ["heal"] => Command::Heal,
        ["disk", at, "slow"] => Command::Disk(replica(at)?, true),
        ["disk", at, "fast"] => Command::Disk(replica(at)?, false),
        ["sync", at] => Command::Sync(replica(at)?),
        ["crash", at] => Command::Crash(replica(at)?),
        ["wipe", at] => Command::Wipe(replica(at)?),
        ["restart", at] => Command::Restart(replica(at)?, None),
        ["restart", at, "applied", upto] => Command::Restart(replica(at)?, Some(slot(upto)?)),
        ["reset", at] => Command::Reset(replica(at)?),
        ["transfer", from, to] => Command::Transfer(replica(from)?, replica(to)?),
        [verb @ ("add" | "promote" | "remove"), at, member] => {
            let id = replica(member)?;
            Command::Change(replica(at)?, change(verb, id)?, format!("{verb} {id}"))
        }
        ["join", at, member] => Command::Join(replica(at)?, replica(member)?),
        ["cut", at, base] => Command::Cut(replica(at)?, slot(base)?),
        ["install", at, from] => Command::Install(replica(at)?, replica(from)?),
        ["tick", ticks] => Command::Tick(number(ticks)?),
        ["run", ticks] => Command::Run(number(ticks)?),
        ["status"] => Command::Status,
        ["expect", ref rest @ ..] => Command::Expect(expect::parse(rest)?),
        _ => return Err("no such command".to_owned()),
    })
}

fn change(verb: &str, id: ReplicaId) -> Result<Change, String> {
    Ok(match verb {
        "add" => Change::Add { id, disk: disk_of(id)?, peer: format!("replica-{id}"), replaces: None },
        "promote" => Change::Promote { id },
        _ => Change::Remove { id },
    })
}

/// The disk that a replica has in the beginning.
pub fn disk_of(id: ReplicaId) -> Result<DiskId, String> {
    Ok(DiskId([u8::try_from(id.0).map_err(|_| "too many replicas")?; 16]))
}

/// Reads a number.
pub fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}

/// Reads a replica's id.
pub fn replica(word: &str) -> Result<ReplicaId, String> {
    Ok(ReplicaId(number(word)?))
}

/// Reads a slot.
pub fn slot(word: &str) -> Result<Slot, String> {
    Ok(Slot(number(word)?))
}

fn link(from: &str, to: &str) -> Result<Link, String> {
    Ok((replica(from)?, replica(to)?))
}
