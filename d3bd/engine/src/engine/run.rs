//! One run of entries: handed out to the lanes of their databases, in the order of the log, and gathered again.
//!
//! An entry that concerns the catalogue is carried out in its turn, when all lanes have done what stands before it. What
//! becomes of lanes beside that (a damaged database, a failure) is looked after in the order of slots, whatever order the
//! lanes have ended in.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use d3b::{BlobReference, CatalogueChange, Code, DatabaseId, Operation, Rejection, Slot};

use super::lane::{Lane, Stopped};
use super::sequence::{Executor, Item, Performed, Sequence};
use super::{ANSWER_BYTES_MAX, Engine, Trouble, failed, sqlite_failed};
use crate::apply::{self, Entry, Execution};
use crate::command::{self, Command};
use crate::database::{self, Database};
use crate::{Applied, Blobs, EXECUTION_FIRST, Fatal, LogEntry, databases, text};

/// How many operations that may answer with rows are carried out before it is looked how large the answers are.
pub(super) const ANSWERING_MAX: usize = 4;

/// How many operations another thread has to take over to be worth its waking: as many take three times as long.
const WORTH_WAKING: usize = 16;

/// Entries that are applied together.
struct Run {
    /// What came of the entries as far as they were looked at. Of those in `catalogue` and `lanes` it is not known yet.
    applied: Vec<Applied>,
    /// Those that are applied on the catalogue.
    catalogue: Sequence,
    /// Those that are applied on other databases.
    lanes: BTreeMap<DatabaseId, Lane>,
    /// How many operations there were, since this was last counted from 0, whose answers may be large and may not be in
    /// `bytes` yet.
    answering: usize,
    /// How much memory the known answers take, those of earlier runs of the call included.
    bytes: usize,
}

impl Engine {
    /// Applies entries, the first of them or all: each is handed to its database's lane or, where it concerns the catalogue,
    /// carried out in its turn.
    pub(super) fn run(
        &mut self,
        entries: &[LogEntry<'_>],
        blobs: &dyn Blobs,
        bytes: &mut usize,
    ) -> Result<(Vec<Applied>, Option<(Slot, BlobReference)>), Fatal> {
        let mut run = Run {
            applied: Vec::with_capacity(entries.len()),
            catalogue: Sequence::default(),
            lanes: BTreeMap::new(),
            answering: 0,
            bytes: *bytes,
        };
        let mut needs_blob = None;
        for entry in entries {
            let expected = run.applied.last().map_or(self.applied, |applied| applied.slot).next();
            if entry.slot != expected {
                return Err(Fatal::Gap { expected, found: entry.slot });
            }
            if entry.command.is_some() && !(EXECUTION_FIRST..=self.execution).contains(&entry.execution) {
                let (slot, execution) = (entry.slot, entry.execution);
                return Err(Fatal::Execution { slot, execution, newest: self.execution });
            }
            if let Some(blob) = self.step(&mut run, entry, blobs)? {
                needs_blob = Some((entry.slot, blob));
                break;
            }
            if run.answering >= ANSWERING_MAX {
                self.join(&mut run, false)?;
                run.answering = 0;
            }
            if run.bytes >= ANSWER_BYTES_MAX {
                break;
            }
        }
        self.commit(&mut run)?;
        for (item, performed) in run.catalogue.into_done() {
            self.tell(&mut run.applied[item.index], DatabaseId::catalogue(), performed);
        }
        if run.applied.iter().any(|applied| applied.database == Some(DatabaseId::catalogue())) {
            self.readers.forget_names();
        }
        if let Some(last) = run.applied.last() {
            self.applied = last.slot;
            self.readers.publish(last.slot);
        }
        *bytes = run.bytes;
        Ok((run.applied, needs_blob))
    }

    /// Takes the next entry into a run; answers with the blob that it waits for, if it does, and is left out then.
    fn step(&mut self, run: &mut Run, entry: &LogEntry<'_>, blobs: &dyn Blobs) -> Result<Option<BlobReference>, Fatal> {
        let LogEntry { slot, time_ms, seed, .. } = *entry;
        let mut applied = Applied {
            slot,
            key: None,
            origin: None,
            db: None,
            database: None,
            outcome: None,
            executed_at: slot,
            fingerprint: None,
        };
        let Command { origin, keyed } = match entry.command.map(command::decode) {
            None => {
                run.applied.push(applied);
                return Ok(None);
            }
            Some(Err(error)) => {
                applied.outcome = Some(Err(Rejection::new(Code::BadRequest, error.to_string())));
                run.applied.push(applied);
                return Ok(None);
            }
            Some(Ok(command)) => command,
        };
        let name = keyed.operation.database();
        applied.key = Some(keyed.key.clone());
        applied.origin = Some(origin);
        applied.database = self.resolve(&name, slot)?;
        applied.db = Some(name);
        // What finds no database is answered for by the catalogue.
        let id = applied.database.unwrap_or_else(DatabaseId::catalogue);
        if let Some(problem) = self.databases.fenced(id) {
            applied.outcome = Some(Err(databases::fenced_rejection(problem)));
            run.applied.push(applied);
            return Ok(None);
        }
        run.answering += usize::from(may_answer_with_rows(&keyed.operation));
        let item = Item { index: run.applied.len(), slot, time_ms, seed, keyed };
        run.applied.push(applied);
        if id == DatabaseId::catalogue() {
            return self.in_line(run, item, blobs);
        }
        if !run.lanes.contains_key(&id) && run.lanes.len() >= self.databases.connections_max() {
            self.commit(run)?;
        }
        let directory = self.databases.directory();
        run.lanes.entry(id).or_insert_with(|| Lane::new(id, database::path(directory, id))).push(item);
        Ok(None)
    }

    /// Applies the last entry of a run on the catalogue, when all before it are applied.
    fn in_line(&mut self, run: &mut Run, item: Item, blobs: &dyn Blobs) -> Result<Option<BlobReference>, Fatal> {
        self.join(run, false)?;
        run.catalogue.push(item);
        let failed = |(slot, trouble)| failed(trouble, slot, DatabaseId::catalogue());
        run.catalogue.advance(&mut InLine { engine: self, blobs }).map_err(failed)?;
        run.bytes += run.catalogue.answer_bytes(1);
        let needed = run.catalogue.take_needed_blob();
        if needed.is_some() {
            run.applied.pop();
        }
        Ok(needed)
    }

    /// Carries out what waits in the lanes of a run; and commits their transactions, if so wanted, so that the run needs
    /// the lanes no more.
    fn join(&mut self, run: &mut Run, commits: bool) -> Result<(), Fatal> {
        let due = |(_, lane): &(DatabaseId, Lane)| commits || lane.sequence.waiting() > 0;
        let (lanes, rest) = std::mem::take(&mut run.lanes).into_iter().partition::<BTreeMap<_, _>, _>(due);
        run.lanes = rest;
        let mut lanes: Vec<Lane> = lanes.into_values().collect();
        for lane in &mut lanes {
            lane.send(self.databases.take(lane.id()), commits);
        }
        let mut idle = self.databases.take_idle(lanes.len()).into_iter();
        for lane in lanes.iter_mut().filter(|lane| lane.opens()) {
            idle.next().into_iter().for_each(|other| lane.close_first(other));
        }
        idle.for_each(Database::close_quickly);
        let mut lanes = self.fork(lanes);
        // Whatever order they ended in, nobody is to see it.
        lanes.sort_unstable_by_key(|lane| (lane.stopped.as_ref().map(|(slot, _)| *slot), lane.id()));
        for mut lane in lanes {
            let id = lane.id();
            run.bytes += lane.answer_bytes();
            if let Some(database) = lane.take_database() {
                self.databases.put(database);
            }
            if lane.sequence.take_dirty() {
                self.databases.set_dirty(id);
            }
            let problem = match lane.stopped.take() {
                None if !commits => {
                    run.lanes.insert(id, lane);
                    continue;
                }
                None => None,
                Some((slot, Stopped::Failed(trouble))) => return Err(failed(trouble, slot, id)),
                Some((slot, Stopped::Damaged(problem))) => {
                    tracing::error!(%slot, database = %id, problem, "a database is damaged and is not served by this replica any more");
                    Some(problem)
                }
            };
            for (item, performed) in lane.sequence.into_done() {
                self.tell(&mut run.applied[item.index], id, performed);
            }
            problem.into_iter().for_each(|problem| self.fence(id, problem));
        }
        Ok(())
    }

    /// Runs lanes, and comes back when all have ended. Whether it is worth a thread's waking depends on how much it could
    /// take over: all but the longest lane.
    fn fork(&mut self, mut lanes: Vec<Lane>) -> Vec<Lane> {
        lanes.sort_unstable_by_key(|lane| (Reverse(lane.work()), lane.id()));
        let shared: usize = lanes.iter().skip(1).map(Lane::work).sum();
        let mut helpers = shared / WORTH_WAKING;
        if let Some(state) = &mut self.lane_order {
            shuffle(&mut lanes, state);
            helpers = usize::MAX;
        }
        let helpers = helpers.min(self.workers.count()).min(lanes.len().saturating_sub(1));
        self.workers.run(lanes, helpers)
    }

    /// Writes down what came of an entry.
    fn tell(&mut self, applied: &mut Applied, id: DatabaseId, performed: Performed) {
        match performed {
            Performed::Before(recalled) => {
                if let Some((slot, outcome)) = recalled {
                    applied.executed_at = slot;
                    applied.outcome = Some(outcome);
                }
            }
            Performed::Now(concluded) => {
                applied.executed_at = concluded.executed_at;
                applied.outcome = Some(concluded.outcome);
                applied.fingerprint = Some(concluded.fingerprint);
                self.remember(id, applied.slot, concluded.fingerprint);
            }
            Performed::Fenced(rejection) => applied.outcome = Some(Err(rejection)),
            // Its entry was left out of the run.
            Performed::NeedsBlob(_) => {}
        }
    }

    /// Carries out what waits in a run, and commits every open transaction.
    fn commit(&mut self, run: &mut Run) -> Result<(), Fatal> {
        self.join(run, true)?;
        let slot = run.applied.last().map_or(self.applied, |applied| applied.slot);
        self.catalogue.commit().map_err(|error| sqlite_failed(error, slot, DatabaseId::catalogue()))?;
        run.catalogue.committed();
        Ok(())
    }
}

/// Executes entries on the catalogue, which is the engine's own.
struct InLine<'e> {
    engine: &'e mut Engine,
    blobs: &'e dyn Blobs,
}

impl Executor for InLine<'_> {
    fn database(&mut self) -> Result<&mut Database, Trouble> {
        Ok(&mut self.engine.catalogue)
    }

    fn execute(&mut self, entry: Entry<'_>) -> Result<Execution, Trouble> {
        let catalogue = &mut self.engine.catalogue;
        match &entry.keyed.operation {
            Operation::Sql { db, .. } if !db.is_catalogue() => Ok(apply::without_database(catalogue, entry, db)?),
            Operation::Sql { .. } => Ok(apply::execute(catalogue, entry)?),
            Operation::Catalogue(CatalogueChange::Restore { manifest }) => {
                self.engine.restore(entry, *manifest, self.blobs)
            }
            Operation::Catalogue(change) => self.engine.change(entry, change, self.blobs),
        }
    }

    fn forget(&mut self) {
        self.engine.names.clear();
    }
}

/// Whether an operation's answer may be as large as [`apply::RESULT_BYTES_MAX`].
fn may_answer_with_rows(operation: &Operation) -> bool {
    match operation {
        Operation::Sql { statements, .. } => statements.iter().any(|statement| text::may_return_rows(&statement.sql)),
        Operation::Catalogue(_) => false,
    }
}

/// Puts lanes into an order that follows from the state of a generator (SplitMix64), which moves on.
fn shuffle(lanes: &mut [Lane], state: &mut u64) {
    for last in (1..lanes.len()).rev() {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let other = (word >> 33) as usize % (last + 1);
        lanes.swap(last, other);
    }
}
