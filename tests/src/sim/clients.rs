//! Clients: what each is about, and the history that all of them make.

use std::collections::{BTreeMap, BTreeSet};

use d3b::{Code, IdempotencyKey, Outcome, ReplicaId, Slot};
use d3bd::driver::{Ticket, WriteFailure};

use super::machine::file_value;
use super::random::Random;
use super::scenario::Scenario;
use super::workload::{self, Register};
use crate::linearizability::{Action, Observed, Operation};

/// How often a client sends the same request at most.
const ATTEMPTS_MAX: u32 = 6;

/// What a client wants.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it concerns.
    pub register: Register,
    /// What is to be done with it.
    pub action: Action,
    /// Names it, also among the effects.
    pub token: u64,
    /// The idempotency key; without one it is never sent again.
    pub key: Option<IdempotencyKey>,
    /// When it was first sent.
    pub called: u64,
    /// How often it was sent.
    pub attempts: u32,
    /// Whether any attempt may have an effect yet, or have had one.
    pub in_doubt: bool,
    /// What an answer to it must have seen.
    pub floor: Slot,
}

/// What a client is doing.
#[derive(Debug, Clone)]
pub enum Stage {
    /// Nothing.
    Resting,
    /// It will send this (again).
    Sending(Request),
    /// It waits for an answer.
    Waiting {
        /// What it asked.
        request: Request,
        /// Whom.
        replica: ReplicaId,
        /// Under which number.
        ticket: Ticket,
    },
    /// It has done what it was made for.
    Done,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    /// Its own chance.
    pub random: Random,
    /// What it is doing.
    pub stage: Stage,
    /// A client that talks to one replica only, and does these things one after another.
    pub script: Option<(ReplicaId, Vec<(Register, Action)>)>,
    /// Counts what it did, so that a late alarm is not taken for a new one.
    pub turn: u64,
}

/// What became of a request that notes a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It took effect.
    Acknowledged,
    /// It did not, and never will.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// Everything that clients saw.
#[derive(Debug, Default)]
pub struct History {
    /// By register, for the checker.
    pub operations: BTreeMap<Register, Vec<Operation>>,
    /// By token.
    pub fates: BTreeMap<u64, Fate>,
    /// Every value that was ever to be written, for stale reads.
    pub written: BTreeMap<Register, BTreeSet<u64>>,
    next_token: u64,
}

impl History {
    /// A number that was not used before.
    pub fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// A request is about to be sent for the first time.
    pub fn begin(&mut self, request: &Request) {
        if let Action::Write(value) | Action::Swap { to: value, .. } = seen(request.register, request.action) {
            self.written.entry(request.register).or_default().insert(value);
        }
    }

    /// A request is over.
    pub fn end(&mut self, request: &Request, observed: Option<Observed>, now: u64) {
        let fate = match observed {
            Some(Observed::Done(true)) => Fate::Acknowledged,
            Some(Observed::Done(false)) | None => Fate::Refused,
            Some(Observed::Unknown) => Fate::Unknown,
            Some(Observed::Value(_)) => Fate::Refused,
        };
        if let Register::SetUp(_) = request.register {
            return;
        }
        if request.action != Action::Read && request.register != Register::Database {
            self.fates.insert(request.token, fate);
        }
        if let Some(observed) = observed {
            let action = seen(request.register, request.action);
            let operation = Operation { action, observed, called: request.called, returned: now };
            self.operations.entry(request.register).or_default().push(operation);
        }
    }

    /// The last value that a register was seen to have, for swaps that have a chance.
    #[must_use]
    pub fn last_value(&self, register: Register) -> Option<u64> {
        let operations = self.operations.get(&register)?;
        operations.iter().rev().find_map(|operation| match (operation.action, operation.observed) {
            (_, Observed::Value(value)) if value != 0 => Some(value),
            (Action::Write(value), Observed::Done(true)) => Some(value),
            (Action::Swap { to, .. }, Observed::Done(true)) => Some(to),
            _ => None,
        })
    }

    /// How many operations have an answer.
    #[must_use]
    pub fn answered(&self) -> usize {
        let known = |operation: &&Operation| operation.observed != Observed::Unknown;
        self.operations.values().flatten().filter(known).count()
    }
}

/// An action as reads see it: the value of a file is that of its digest.
fn seen(register: Register, action: Action) -> Action {
    match (register, action) {
        (Register::File(_), Action::Write(value)) => Action::Write(file_value(&workload::blob(value).digest)),
        (_, action) => action,
    }
}

impl Client {
    /// A client with chance of its own.
    #[must_use]
    pub fn new(random: Random) -> Client {
        Client { random, stage: Stage::Resting, script: None, turn: 0 }
    }

    /// Draws the next request.
    pub fn draw(&mut self, scenario: &Scenario, databases: bool, history: &mut History, now: u64) -> Request {
        let random = &mut self.random;
        let register = if databases && random.percent(scenario.database_percent) {
            Register::Database
        } else if random.percent(scenario.media_percent) {
            Register::File(random.below(scenario.registers))
        } else {
            Register::Row(random.below(scenario.registers))
        };
        let token = history.token();
        let last = history.last_value(register);
        let action = if random.percent(scenario.reads_percent) {
            Action::Read
        } else {
            match (random.below(10), register, last) {
                (0..2, Register::Row(_), Some(from)) => Action::Swap { from, to: token },
                (2..4, _, Some(_)) => Action::Delete,
                _ => Action::Write(token),
            }
        };
        let keyless = random.percent(scenario.keyless_percent);
        let key = (!keyless).then(|| key(token, now, random));
        Request { register, action, token, key, called: now, attempts: 0, in_doubt: false, floor: Slot::ZERO }
    }
}

/// A key as clients make them: most are UUIDs of version 7, some are anything.
fn key(token: u64, now: u64, random: &mut Random) -> IdempotencyKey {
    let text = if random.percent(50) {
        let millis = super::node::EPOCH_MS + now / 1_000;
        let mut noise = [0; 10];
        noise[..8].copy_from_slice(&token.to_be_bytes());
        uuid::Builder::from_unix_timestamp_millis(millis, &noise).into_uuid().to_string()
    } else {
        format!("request {token}")
    };
    IdempotencyKey::new(text).expect("a key that is well formed")
}

/// What an outcome of a write means for the history; `None` where nothing happened at all.
#[must_use]
pub fn observe(request: &Request, outcome: &Outcome) -> Option<Observed> {
    match outcome {
        Ok(_) => Some(Observed::Done(true)),
        Err(rejection) => match (request.action, rejection.code) {
            (Action::Swap { .. } | Action::Delete, Code::ExpectationFailed)
            | (Action::Delete, Code::MediaNotFound | Code::DatabaseNotFound) => Some(Observed::Done(false)),
            // A key that was dated ahead, say: an attempt before this one may be executed all the same.
            _ if request.in_doubt || request.attempts > 1 => Some(Observed::Unknown),
            _ => None,
        },
    }
}

/// Whether a failed attempt may have an effect.
#[must_use]
pub fn leaves_doubt(failure: &WriteFailure) -> bool {
    match failure {
        WriteFailure::OutcomeUnknown => true,
        WriteFailure::Unavailable(_) | WriteFailure::Overloaded | WriteFailure::BlobNotHeld => false,
    }
}

/// Whether a client sends a request again after an attempt that gave nothing.
#[must_use]
pub fn may_repeat(request: &Request) -> bool {
    let keyed = request.key.is_some() || request.action == Action::Read;
    request.attempts < ATTEMPTS_MAX && (keyed || !request.in_doubt)
}
