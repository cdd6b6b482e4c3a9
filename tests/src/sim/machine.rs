//! The replicated state machine of a simulated replica: the real engine, or a small stand-in for it that lets thousands
//! of runs be tried in the time of one.

use std::collections::BTreeMap;
use std::rc::Rc;

use d3b::{
    Answer, Arguments, CatalogueChange, Code, DatabaseId, Digest, Expectation, FileId, IdempotencyKey, MediaChange,
    Operation, Outcome, Rejection, Slot, Statement, Value,
};
use d3b_engine::{Applied, Blobs, Fingerprint, LogEntry, Progress, command};

use super::random::Random;
use super::workload::{self, DELETE, Register, SWAP, TOKEN, WRITE};

/// What can be read of a machine at the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// How often each request took effect.
    pub tokens: BTreeMap<u64, u32>,
    /// Everything, as text: equal on replicas that have applied the same.
    pub contents: String,
}

/// What a database was found to hold.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    /// Which.
    pub database: DatabaseId,
    /// The last slot that concerned it.
    pub slot: Slot,
    /// Its chain after that slot.
    pub chain: [u8; 16],
    /// A digest of everything in it.
    pub digest: [u8; 16],
}

/// A state machine with a disk of its own.
pub trait Machine: Sized {
    /// What survives the process.
    type Image;

    /// A snapshot that is being taken.
    type Taking;

    /// A snapshot's files.
    type Copy;

    /// A disk on which nothing was ever written.
    fn blank() -> Self::Image;

    /// Starts on what the process before left. In which order it works on different databases is drawn from `lane_order`,
    /// and must not show.
    ///
    /// # Errors
    /// It cannot be read.
    fn open(image: &mut Self::Image, execution: u32, lane_order: u64) -> Result<Self, String>;

    /// Whether whole databases can come and go.
    const DATABASES: bool;

    /// Everything up to here is durable.
    fn resume_after(&self) -> Slot;

    /// The last slot that was applied.
    fn applied(&self) -> Slot;

    /// Applies entries, or the first of them.
    ///
    /// # Errors
    /// The replica must stop.
    fn apply(&mut self, entries: &[LogEntry<'_>], blobs: &dyn Blobs) -> Result<Progress, String>;

    /// Makes everything that was applied durable.
    ///
    /// # Errors
    /// The replica must stop.
    fn checkpoint(&mut self) -> Result<(), String>;

    /// Begins a snapshot: everything up to its slot is durable, and will be in it; what is applied until
    /// [`Machine::copy`] may be in it or not.
    ///
    /// # Errors
    /// The replica must stop.
    fn begin_snapshot(&mut self) -> Result<(Slot, Self::Taking), String>;

    /// Makes the copies.
    ///
    /// # Errors
    /// They cannot be made.
    fn copy(&self, taking: Self::Taking) -> Result<Self::Copy, String>;

    /// Puts a snapshot of a slot in the place of everything.
    fn install(image: &mut Self::Image, slot: Slot, copy: &Self::Copy);

    /// Changes something that no entry has asked for, durably. False if there is nothing to change.
    ///
    /// # Errors
    /// It cannot be changed.
    fn rot(&mut self, registers: u64, random: &mut Random) -> Result<bool, String>;

    /// Reads every database from end to end.
    fn scrub(&self) -> Vec<Content>;

    /// The process ends. After a power cut what was not synced may be lost.
    fn crash(self, image: &mut Self::Image, power_cut: bool, random: &mut Random);

    /// The value of a register: for files, of the digest ([`file_value`]).
    ///
    /// # Errors
    /// It cannot be read.
    fn look(&self, register: Register) -> Result<u64, String>;

    /// The blobs that its state refers to.
    ///
    /// # Errors
    /// It cannot be read.
    fn referenced(&self) -> Result<Vec<Digest>, String>;

    /// Everything.
    ///
    /// # Errors
    /// It cannot be read.
    fn audit(&self) -> Result<Audit, String>;
}

/// The value of a file as far as its digest tells it.
#[must_use]
pub fn file_value(digest: &Digest) -> u64 {
    u64::from_le_bytes(digest.0[..8].try_into().expect("a digest has more than eight bytes"))
}

/// The stand-in's state: what the operations of [`workload`] make of it.
#[derive(Debug, Clone, Default)]
pub struct State {
    applied: Slot,
    rows: BTreeMap<i64, i64>,
    files: BTreeMap<FileId, Digest>,
    tokens: BTreeMap<i64, u32>,
    requests: BTreeMap<IdempotencyKey, (Digest, Slot, Outcome)>,
    fingerprint: u64,
    /// The last slot that held a command.
    changed: Slot,
}

/// What is left of a stand-in when its process has ended.
#[derive(Debug, Clone, Default)]
pub struct StandInImage {
    state: Rc<State>,
    durable: Slot,
}

/// A state machine of a few maps that takes the same commands as the engine. Like the engine's databases, its state may
/// be ahead of its durable mark after a crash; entries that it has already are not applied again.
#[derive(Debug)]
pub struct StandIn {
    state: Rc<State>,
    synced: Rc<State>,
    applied: Slot,
    execution: u32,
}

/// How to take a change back.
enum Undo {
    Token(i64),
    Row(i64, Option<i64>),
}

impl State {
    fn run(&mut self, statement: &Statement, undo: &mut Vec<Undo>) -> Result<u64, Rejection> {
        let Arguments::Positional(values) = &statement.arguments else { return Ok(0) };
        let integer = |index: usize| match values.get(index) {
            Some(Value::Integer(integer)) => *integer,
            Some(Value::Null | Value::Real(_) | Value::Text(_) | Value::Blob(_)) | None => 0,
        };
        let changed = match statement.sql.as_str() {
            TOKEN => {
                *self.tokens.entry(integer(0)).or_default() += 1;
                undo.push(Undo::Token(integer(0)));
                1
            }
            WRITE => {
                undo.push(Undo::Row(integer(0), self.rows.insert(integer(0), integer(1))));
                1
            }
            SWAP if self.rows.get(&integer(0)) == Some(&integer(1)) => {
                undo.push(Undo::Row(integer(0), self.rows.insert(integer(0), integer(2))));
                1
            }
            DELETE => {
                let before = self.rows.remove(&integer(0));
                undo.push(Undo::Row(integer(0), before));
                u64::from(before.is_some())
            }
            _ => 0,
        };
        match statement.expect {
            Some(Expectation::RowsAffected(rows)) if rows != changed => {
                Err(Rejection::new(Code::ExpectationFailed, "another number of rows"))
            }
            Some(Expectation::RowsAffected(_) | Expectation::RowsReturned(_)) | None => Ok(changed),
        }
    }

    fn take_back(&mut self, step: Undo) {
        match step {
            Undo::Token(token) => match self.tokens.get_mut(&token) {
                Some(count) if *count > 1 => *count -= 1,
                Some(_) | None => drop(self.tokens.remove(&token)),
            },
            Undo::Row(row, Some(value)) => drop(self.rows.insert(row, value)),
            Undo::Row(row, None) => drop(self.rows.remove(&row)),
        }
    }

    /// All or nothing.
    fn execute(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::Sql { statements, media, .. } => {
                let mut undo = Vec::new();
                let mut result = Ok(());
                for statement in statements {
                    result = result.and_then(|()| self.run(statement, &mut undo).map(|_| ()));
                }
                let result = result.and_then(|()| match media {
                    Some(MediaChange::Upload { file_id, blob, .. }) => {
                        self.files.insert(file_id.clone(), blob.digest);
                        Ok(())
                    }
                    Some(MediaChange::Delete { file_id }) => match self.files.remove(file_id) {
                        Some(_) => Ok(()),
                        None => Err(Rejection::new(Code::MediaNotFound, "no such file")),
                    },
                    None => Ok(()),
                });
                match result {
                    Ok(()) => Ok(Answer::Results(Vec::new())),
                    Err(rejection) => {
                        undo.into_iter().rev().for_each(|step| self.take_back(step));
                        Err(rejection)
                    }
                }
            }
            Operation::Catalogue(CatalogueChange::Upload { name, .. }) => {
                Ok(Answer::Catalogue { id: DatabaseId::derive(name, ""), name: name.clone(), replaced: false })
            }
            Operation::Catalogue(
                CatalogueChange::Delete { .. }
                | CatalogueChange::RawUpload { .. }
                | CatalogueChange::RawDelete { .. }
                | CatalogueChange::Restore { .. },
            ) => Err(Rejection::new(Code::DatabaseNotFound, "the stand-in has one database")),
        }
    }

    fn chain(&self) -> [u8; 16] {
        let mut chain = [0; 16];
        chain[..8].copy_from_slice(&self.fingerprint.to_le_bytes());
        chain
    }

    fn apply(&mut self, entry: &LogEntry<'_>) -> Applied {
        self.applied = entry.slot;
        let mut applied = Applied {
            slot: entry.slot,
            key: None,
            origin: None,
            db: None,
            database: None,
            outcome: None,
            executed_at: entry.slot,
            fingerprint: None,
        };
        let Some(Ok(command)) = entry.command.map(command::decode) else { return applied };
        self.changed = entry.slot;
        let keyed = command.keyed;
        let outcome = match self.requests.get(&keyed.key) {
            Some((request, slot, outcome)) if *request == keyed.request => {
                applied.executed_at = *slot;
                outcome.clone()
            }
            Some(_) => Err(Rejection::new(Code::KeyReused, "another request")),
            None => {
                let outcome = self.execute(&keyed.operation);
                self.requests.insert(keyed.key.clone(), (keyed.request, entry.slot, outcome.clone()));
                outcome
            }
        };
        let mut mixed = Random::new(self.fingerprint ^ entry.slot.0 ^ entry.seed ^ entry.time_ms.rotate_left(20));
        self.fingerprint = mixed.word() ^ u64::from(outcome.is_ok());
        applied.fingerprint = Some(Fingerprint(self.chain()));
        applied.database = Some(DatabaseId::catalogue());
        applied.key = Some(keyed.key);
        applied.origin = Some(command.origin);
        applied.outcome = Some(outcome);
        applied
    }
}

impl Machine for StandIn {
    type Image = StandInImage;
    type Taking = ();
    type Copy = Rc<State>;
    const DATABASES: bool = false;

    fn blank() -> StandInImage {
        StandInImage::default()
    }

    fn open(image: &mut StandInImage, execution: u32, _lane_order: u64) -> Result<StandIn, String> {
        let StandInImage { state, durable } = image.clone();
        Ok(StandIn { synced: state.clone(), state, applied: durable, execution })
    }

    fn resume_after(&self) -> Slot {
        self.synced.applied.min(self.applied)
    }

    fn applied(&self) -> Slot {
        self.applied
    }

    fn apply(&mut self, entries: &[LogEntry<'_>], _blobs: &dyn Blobs) -> Result<Progress, String> {
        let mut progress = Progress { applied: Vec::new(), needs_blob: None };
        for entry in entries {
            if entry.slot != self.applied.next() {
                return Err(format!("slot {} after slot {}", entry.slot, self.applied));
            }
            if entry.command.is_some() && entry.execution > self.execution {
                return Err(format!("slot {} wants execution version {}", entry.slot, entry.execution));
            }
            self.applied = entry.slot;
            if entry.slot > self.state.applied {
                progress.applied.push(Rc::make_mut(&mut self.state).apply(entry));
            }
        }
        Ok(progress)
    }

    fn checkpoint(&mut self) -> Result<(), String> {
        self.synced = Rc::clone(&self.state);
        Ok(())
    }

    fn begin_snapshot(&mut self) -> Result<(Slot, ()), String> {
        self.checkpoint()?;
        Ok((self.applied, ()))
    }

    fn copy(&self, (): ()) -> Result<Rc<State>, String> {
        Ok(Rc::clone(&self.state))
    }

    fn install(image: &mut StandInImage, slot: Slot, copy: &Rc<State>) {
        *image = StandInImage { state: Rc::clone(copy), durable: slot };
    }

    fn rot(&mut self, registers: u64, random: &mut Random) -> Result<bool, String> {
        let value = i64::try_from(random.between(1 << 40, 1 << 50)).map_err(|error| error.to_string())?;
        let row = i64::try_from(random.below(registers)).map_err(|error| error.to_string())?;
        let (seen, chain) = (random.percent(70), random.percent(50));
        for state in [&mut self.state, &mut self.synced] {
            let state = Rc::make_mut(state);
            // Nothing that is written later makes this one right again.
            state.rows.insert(-1, value);
            if seen {
                state.rows.insert(row, value);
            }
            if chain {
                state.fingerprint ^= value.unsigned_abs();
            }
        }
        Ok(true)
    }

    fn scrub(&self) -> Vec<Content> {
        let State { rows, files, tokens, changed, .. } = &*self.state;
        if *changed == Slot::ZERO {
            return Vec::new();
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&Digest::of(format!("{rows:?} {files:?} {tokens:?}").as_bytes()).0[..16]);
        vec![Content { database: DatabaseId::catalogue(), slot: *changed, chain: self.state.chain(), digest }]
    }

    fn crash(self, image: &mut StandInImage, power_cut: bool, random: &mut Random) {
        let durable = self.resume_after();
        let state = if power_cut && random.percent(50) { self.synced } else { self.state };
        *image = StandInImage { state, durable };
    }

    fn look(&self, register: Register) -> Result<u64, String> {
        Ok(match register {
            Register::Row(row) => {
                let row = i64::try_from(row).map_err(|error| error.to_string())?;
                self.state.rows.get(&row).map_or(0, |value| value.unsigned_abs())
            }
            Register::File(file) => self.state.files.get(&workload::file_id(file)).map_or(0, file_value),
            Register::Database | Register::SetUp(_) => 0,
        })
    }

    fn referenced(&self) -> Result<Vec<Digest>, String> {
        Ok(self.state.files.values().copied().collect())
    }

    fn audit(&self) -> Result<Audit, String> {
        let State { rows, files, tokens, fingerprint, .. } = &*self.state;
        let tokens = tokens.iter().map(|(token, count)| (token.unsigned_abs(), *count)).collect();
        Ok(Audit { tokens, contents: format!("{rows:?} {files:?} {fingerprint:x}") })
    }
}
