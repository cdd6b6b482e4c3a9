//! The one engine of a replica: what is open, what is durable, what comes next.
//!
//! Entries are applied in runs. Within a run every database that is touched has one transaction; answers leave the
//! engine when all of them are committed. A crash in between leaves some databases ahead of others. Each knows its own
//! last slot and skips what it has, names are resolved as of the entry's slot, and a database's file is either missing
//! or whole: so applying the entries behind the durable mark again brings everything to the same state.

mod ahead;
mod restore;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use d3b::{
    Answer, BlobReference, CatalogueChange, Code, DatabaseId, DatabaseName, Digest, Operation, Outcome, Rejection, Slot,
};

use crate::apply::{self, Concluded, Entry, Execution, Refusal};
use crate::catalogue::{self, Changed, Lifetime};
use crate::command::{self, Command, DecodeError};
use crate::database::{self, Database};
use crate::databases::{self, Databases, Unusable};
use crate::fingerprint::Fingerprint;
use crate::guard::{self, Mode};
use crate::install::{self, InstallError, Plan};
use crate::planted::{self, Planted};
use crate::reader::Readers;
use crate::requests;
use crate::snapshot::SnapshotSource;
use crate::{Applied, Blobs, EXECUTION_FIRST, Fatal, LogEntry, Options, Progress, media};
use ahead::Ahead;

/// How many entries share transactions at most.
const RUN_ENTRIES_MAX: usize = 1024;

/// How many bytes of answers one call gives back, roughly; it ends early rather than exceed that by more than one.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How many resolved names are kept in memory.
const NAMES_MAX: usize = 16 * 1024;

/// How many databases' fingerprints are kept for the exchange with other replicas.
const FINGERPRINTS_MAX: usize = 1024;

/// The replicated state machine of one replica, in one directory.
///
/// Invariants: `durable <= applied`; between two calls no transaction is open, and every database has applied all
/// entries up to `applied` that concern it (after a restart perhaps more), unless it is fenced.
pub struct Engine {
    catalogue: Database,
    databases: Databases,
    /// What names mean, for slots that their lifetimes cover.
    names: HashMap<DatabaseName, (DatabaseId, Lifetime)>,
    /// The latest chains of the databases that were touched last.
    fingerprints: BTreeMap<DatabaseId, (Slot, Fingerprint)>,
    /// The newest execution version that it applies.
    execution: u32,
    applied: Slot,
    durable: Slot,
    readers: Readers,
    /// Every snapshot that is being taken holds one more of it.
    pin: Arc<()>,
    /// What is done ahead of the next checkpoint.
    ahead: Ahead,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("applied", &self.applied).field("durable", &self.durable).finish_non_exhaustive()
    }
}

/// Entries that are applied together.
struct Run<'e> {
    /// The entries, as far as they were looked at.
    items: Vec<Item<'e>>,
    /// What came of them, as many as `items`.
    applied: Vec<Applied>,
    /// Which items are in the open transaction of a database.
    open: HashMap<DatabaseId, Vec<usize>>,
}

/// An entry and what it carries.
struct Item<'e> {
    entry: LogEntry<'e>,
    command: Option<Result<Command, DecodeError>>,
}

/// What happened to one entry of a run.
enum Step {
    Applied(Applied),
    NeedsBlob(BlobReference),
}

impl Engine {
    /// Opens the databases in a directory, which may be new; the catalogue is made where it is missing.
    ///
    /// # Errors
    /// The directory or the catalogue cannot be made, opened or read.
    pub fn open(directory: &Path, options: Options) -> Result<Engine, Fatal> {
        let io = |source| Fatal::Io { slot: Slot::ZERO, path: directory.to_owned(), source };
        let id = DatabaseId::catalogue();
        std::fs::create_dir_all(directory).map_err(io)?;
        install::clean(directory).map_err(io)?;
        install::install_catalogue(directory).map_err(|error| install_failed(error, Slot::ZERO, id))?;
        let catalogue = Database::open(&database::path(directory, id), id)
            .map_err(|error| unusable(error.into(), Slot::ZERO, id))?;
        let sqlite = |error| sqlite_failed(error, Slot::ZERO, id);
        let durable = catalogue::mark(&catalogue).map_err(sqlite)?;
        let fenced = catalogue::fenced(&catalogue).map_err(sqlite)?;
        let readers = Readers::new(directory);
        readers.publish(durable);
        for (id, problem) in &fenced {
            readers.fence(*id, problem);
        }
        Ok(Engine {
            catalogue,
            databases: Databases::new(directory, options.connections_max, fenced),
            names: HashMap::new(),
            fingerprints: BTreeMap::new(),
            execution: options.execution,
            applied: durable,
            durable,
            readers,
            pin: Arc::default(),
            ahead: Ahead::default(),
        })
    }

    /// Everything up to here is durable in every database: entries are to be handed in from the next slot on.
    #[must_use]
    pub fn resume_after(&self) -> Slot {
        self.durable
    }

    /// The last slot that a database is known to have applied, perhaps by an earlier process: a log that ends before it
    /// has lost something.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn newest_slot(&self) -> Result<Slot, Fatal> {
        let directory = self.databases.directory();
        let io = |source| Fatal::Io { slot: self.applied, path: directory.to_owned(), source };
        let newest = databases::newest_slot(directory).map_err(io)?;
        Ok(newest.max(self.catalogue.state.slot).max(self.applied))
    }

    /// The last slot that was applied.
    #[must_use]
    pub fn applied(&self) -> Slot {
        self.applied
    }

    /// Where reads are served from.
    #[must_use]
    pub fn readers(&self) -> Readers {
        self.readers.clone()
    }

    /// The chains of the databases that were touched last, each with the slot after which it stands.
    #[must_use]
    pub fn fingerprints(&self) -> Vec<(DatabaseId, Slot, Fingerprint)> {
        self.fingerprints.iter().map(|(id, (slot, fingerprint))| (*id, *slot, *fingerprint)).collect()
    }

    /// Applies entries in order, the first of them the one after [`Engine::applied`].
    ///
    /// It may stop early, for want of a blob or because the answers have grown large; [`Engine::applied`] tells how
    /// far it came. After a restart, entries that a database has applied before do nothing there.
    ///
    /// # Errors
    /// The replica must stop; whatever was not committed is applied again by its next process.
    pub fn apply(&mut self, entries: &[LogEntry<'_>], blobs: &dyn Blobs) -> Result<Progress, Fatal> {
        let mut progress = Progress { applied: Vec::with_capacity(entries.len()), needs_blob: None };
        let mut bytes = 0;
        for part in entries.chunks(RUN_ENTRIES_MAX) {
            let wanted = part.len();
            let (applied, needs_blob) = self.run(part, blobs, &mut bytes)?;
            let stopped = applied.len() < wanted;
            progress.applied.extend(applied);
            progress.needs_blob = needs_blob;
            if stopped || bytes >= ANSWER_BYTES_MAX {
                break;
            }
        }
        Ok(progress)
    }

    fn run(
        &mut self,
        entries: &[LogEntry<'_>],
        blobs: &dyn Blobs,
        bytes: &mut usize,
    ) -> Result<(Vec<Applied>, Option<(Slot, BlobReference)>), Fatal> {
        let mut run = Run { items: Vec::with_capacity(entries.len()), applied: Vec::new(), open: HashMap::new() };
        let mut needs_blob = None;
        for entry in entries {
            let expected = run.items.last().map_or(self.applied, |item| item.entry.slot).next();
            if entry.slot != expected {
                return Err(Fatal::Gap { expected, found: entry.slot });
            }
            if entry.command.is_some() && !(EXECUTION_FIRST..=self.execution).contains(&entry.execution) {
                let (slot, execution) = (entry.slot, entry.execution);
                return Err(Fatal::Execution { slot, execution, newest: self.execution });
            }
            run.items.push(Item { entry: *entry, command: entry.command.map(command::decode) });
            match self.step(&mut run, blobs)? {
                Step::Applied(applied) => {
                    *bytes += applied.outcome.as_ref().map_or(0, answer_bytes);
                    run.applied.push(applied);
                }
                Step::NeedsBlob(blob) => {
                    needs_blob = Some((entry.slot, blob));
                    break;
                }
            }
            if *bytes >= ANSWER_BYTES_MAX {
                break;
            }
        }
        self.commit(&mut run)?;
        if run.applied.iter().any(|applied| applied.database == Some(DatabaseId::catalogue())) {
            self.readers.forget_names();
        }
        if let Some(last) = run.applied.last() {
            self.applied = last.slot;
            self.readers.publish(last.slot);
        }
        Ok((run.applied, needs_blob))
    }

    /// Applies the last item of a run.
    fn step(&mut self, run: &mut Run<'_>, blobs: &dyn Blobs) -> Result<Step, Fatal> {
        let index = run.items.len() - 1;
        let Item { entry, command } = &run.items[index];
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
        let command = match command {
            None => return Ok(Step::Applied(applied)),
            Some(Err(error)) => {
                applied.outcome = Some(Err(Rejection::new(Code::BadRequest, error.to_string())));
                return Ok(Step::Applied(applied));
            }
            Some(Ok(command)) => command,
        };
        let name = command.keyed.operation.database();
        applied.key = Some(command.keyed.key.clone());
        applied.origin = Some(command.origin);
        applied.database = self.resolve(&name, entry.slot)?;
        applied.db = Some(name);
        // What finds no database is answered for by the catalogue.
        let id = applied.database.unwrap_or_else(DatabaseId::catalogue);
        match self.perform(run, index, id, blobs)? {
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
            Performed::NeedsBlob(blob) => return Ok(Step::NeedsBlob(blob)),
        }
        Ok(Step::Applied(applied))
    }

    /// What a name means to an entry at that slot.
    fn resolve(&mut self, name: &DatabaseName, at: Slot) -> Result<Option<DatabaseId>, Fatal> {
        if name.is_catalogue() {
            return Ok(Some(DatabaseId::catalogue()));
        }
        let at = if planted::breaks(Planted::NamesResolvedAsOfNow) { Slot(i64::MAX.unsigned_abs()) } else { at };
        if let Some((id, lifetime)) = self.names.get(name)
            && lifetime.covers(at)
        {
            return Ok(Some(*id));
        }
        let found = catalogue::resolve(&self.catalogue, name, at)
            .map_err(|error| sqlite_failed(error, at, DatabaseId::catalogue()))?;
        if let Some(found) = found {
            if self.names.len() >= NAMES_MAX {
                self.names.clear();
            }
            self.names.insert(name.clone(), found);
        }
        Ok(found.map(|(id, _)| id))
    }

    /// Applies an item of a run on its database.
    fn perform(
        &mut self,
        run: &mut Run<'_>,
        index: usize,
        id: DatabaseId,
        blobs: &dyn Blobs,
    ) -> Result<Performed, Fatal> {
        if let Some(problem) = self.databases.fenced(id) {
            return Ok(Performed::Fenced(databases::fenced_rejection(problem)));
        }
        if id != DatabaseId::catalogue() && !self.databases.has_room_for(id) {
            self.commit(run)?;
        }
        let slot = run.items[index].entry.slot;
        match self.attempt(&run.items[index], id, blobs) {
            Ok(Attempt::Before(recalled)) => {
                // The process that applied it may have died before it was synced, and the mark must not pass it unsynced.
                // The catalogue is synced in any case.
                if id != DatabaseId::catalogue() && !planted::breaks(Planted::EarlierProcessTakenForSynced) {
                    self.databases.set_dirty(id);
                }
                Ok(Performed::Before(recalled))
            }
            Ok(Attempt::Now(Execution::NeedsBlob(blob))) => Ok(Performed::NeedsBlob(blob)),
            Ok(Attempt::Now(Execution::Done(concluded))) => {
                run.open.entry(id).or_default().push(index);
                match self.commit_alone(run, id) {
                    Ok(()) => Ok(Performed::Now(concluded)),
                    Err(trouble) => self.give_up(run, id, slot, trouble).map(Performed::Fenced),
                }
            }
            Ok(Attempt::Now(Execution::Ended(rejection))) => match self.redo(run, index, id, rejection, blobs) {
                Ok(concluded) => Ok(Performed::Now(concluded)),
                Err(trouble) => self.give_up(run, id, slot, trouble).map(Performed::Fenced),
            },
            Err(trouble) => self.give_up(run, id, slot, trouble).map(Performed::Fenced),
        }
    }

    fn attempt(&mut self, item: &Item<'_>, id: DatabaseId, blobs: &dyn Blobs) -> Result<Attempt, Trouble> {
        let Some(Ok(Command { keyed, .. })) = &item.command else {
            return Err(Trouble::Contradiction("an entry without a command was to be executed"));
        };
        let LogEntry { slot, time_ms, seed, .. } = item.entry;
        let entry = Entry { slot, time_ms, seed, keyed };
        let database = if id == DatabaseId::catalogue() { &mut self.catalogue } else { self.databases.get(id)? };
        if slot <= database.state.slot {
            return Ok(Attempt::Before(requests::recall(database, keyed, slot, time_ms)?));
        }
        database.begin()?;
        let execution = match &keyed.operation {
            Operation::Sql { db, .. } if id == DatabaseId::catalogue() && !db.is_catalogue() => {
                apply::without_database(database, entry, db)?
            }
            Operation::Sql { .. } => apply::execute(database, entry)?,
            Operation::Catalogue(CatalogueChange::Restore { manifest }) => self.restore(entry, *manifest, blobs)?,
            Operation::Catalogue(change) => self.change(entry, change, blobs)?,
        };
        Ok(Attempt::Now(execution))
    }

    /// Changes the catalogue, and brings the file of a new database into place.
    fn change(&mut self, entry: Entry<'_>, change: &CatalogueChange, blobs: &dyn Blobs) -> Result<Execution, Trouble> {
        if let Some(concluded) = apply::by_key(&mut self.catalogue, entry)? {
            return Ok(Execution::Done(concluded));
        }
        // A file without a byte is an empty database.
        let image = match entry.keyed.operation.blob().filter(|blob| blob.size > 0) {
            None => None,
            Some(blob) => match blobs.path(&blob.digest) {
                Some(path) => Some((blob, path)),
                None => return Ok(Execution::NeedsBlob(blob)),
            },
        };
        self.catalogue.run_own("/*d3b*/SAVEPOINT d3b_change")?;
        let rows = |catalogue: &mut Database| catalogue::change(catalogue, entry.keyed, change, entry.slot);
        let outcome = match apply::atomically(&mut self.catalogue, entry, false, rows) {
            Ok(changed) => {
                match self.install(&changed, entry.slot, image.as_ref().map(|(blob, path)| (*blob, &**path))) {
                    Ok(()) => {
                        self.names.clear();
                        Ok(answer(changed))
                    }
                    Err(Trouble::Install(InstallError::Rejected(rejection))) => {
                        self.catalogue.recorder.discard();
                        self.catalogue.run_own("/*d3b*/ROLLBACK TO d3b_change")?;
                        Err(rejection)
                    }
                    Err(trouble) => return Err(trouble),
                }
            }
            Err(Refusal::Rejected(rejection)) if self.catalogue.has_ended() => return Ok(Execution::Ended(rejection)),
            Err(Refusal::Rejected(rejection)) => Err(rejection),
            Err(Refusal::Failed(error)) => return Err(error.into()),
        };
        self.catalogue.run_own("/*d3b*/RELEASE d3b_change")?;
        Ok(Execution::Done(apply::conclude(&mut self.catalogue, entry, outcome, "")?))
    }

    fn install(
        &mut self,
        changed: &Changed,
        created: Slot,
        image: Option<(BlobReference, &Path)>,
    ) -> Result<(), Trouble> {
        if !changed.made {
            return Ok(());
        }
        let directory = self.databases.directory().to_owned();
        let mut plan = Plan { directory: &directory, id: changed.id, created, image, replaces: None };
        let Some(replaced) = changed.replaced else {
            return plan.install().map_err(Trouble::Install);
        };
        let problem = match self.databases.fenced(replaced) {
            Some(problem) => problem.to_owned(),
            None => match self.databases.get(replaced) {
                Err(Unusable::Damaged(problem)) => problem,
                Err(Unusable::Failed(error)) => return Err(error.into()),
                Ok(database) => {
                    plan.replaces = Some(database);
                    match plan.install() {
                        Err(InstallError::Inherit(problem)) => problem,
                        result => return result.map_err(Trouble::Install),
                    }
                }
            },
        };
        // Without its predecessor's keys it might carry out again here what others know to be repeated.
        self.fence(changed.id, format!("it could not inherit the keys of the one before: {problem}"));
        self.fence(replaced, problem);
        Ok(())
    }

    /// Stops serving a database.
    fn fence(&mut self, id: DatabaseId, problem: String) {
        self.readers.fence(id, &problem);
        self.databases.fence(id, problem);
        self.fingerprints.remove(&id);
    }

    /// After a refusal that ended the transaction: what was in it is done again, and the refusal recorded after that.
    /// All of it is committed, so that nothing is done again more than once.
    fn redo(
        &mut self,
        run: &mut Run<'_>,
        index: usize,
        id: DatabaseId,
        rejection: Rejection,
        blobs: &dyn Blobs,
    ) -> Result<Concluded, Trouble> {
        self.names.clear();
        self.existing(id)?.forget_transaction()?;
        if planted::breaks(Planted::EndedTransactionNotDoneAgain) {
            run.open.remove(&id);
        }
        for earlier in run.open.get(&id).into_iter().flatten() {
            let same = match self.attempt(&run.items[*earlier], id, blobs)? {
                Attempt::Now(Execution::Done(concluded)) => {
                    run.applied[*earlier].outcome.as_ref() == Some(&concluded.outcome)
                        && run.applied[*earlier].fingerprint == Some(concluded.fingerprint)
                }
                Attempt::Now(Execution::NeedsBlob(_) | Execution::Ended(_)) | Attempt::Before(_) => false,
            };
            if !same {
                return Err(Trouble::Contradiction("an operation that was done again came out differently"));
            }
        }
        let Item { entry: LogEntry { slot, time_ms, seed, .. }, command: Some(Ok(Command { keyed, .. })) } =
            &run.items[index]
        else {
            return Err(Trouble::Contradiction("an entry without a command was executed"));
        };
        let entry = Entry { slot: *slot, time_ms: *time_ms, seed: *seed, keyed };
        let database = self.existing(id)?;
        database.begin()?;
        let concluded = apply::conclude(database, entry, Err(rejection), "")?;
        database.commit()?;
        self.databases.set_dirty(id);
        run.open.remove(&id);
        Ok(concluded)
    }

    /// Ends the transaction of a database whose virtual tables would else tell how many operations shared it.
    fn commit_alone(&mut self, run: &mut Run<'_>, id: DatabaseId) -> Result<(), Trouble> {
        let database = self.existing(id)?;
        if database.end_virtual_use()? {
            self.databases.set_dirty(id);
            run.open.remove(&id);
        }
        Ok(())
    }

    /// A database that is open.
    fn existing(&mut self, id: DatabaseId) -> Result<&mut Database, Trouble> {
        if id == DatabaseId::catalogue() {
            return Ok(&mut self.catalogue);
        }
        self.databases.get_open(id).ok_or(Trouble::Contradiction("a database with a transaction is not open"))
    }

    /// Commits every open transaction.
    fn commit(&mut self, run: &mut Run<'_>) -> Result<(), Fatal> {
        let slot = run.items.last().map_or(self.applied, |item| item.entry.slot);
        for id in self.databases.in_transaction() {
            self.databases.set_dirty(id);
            if let Err(trouble) = self.existing(id).and_then(|database| Ok(database.commit()?)) {
                self.give_up(run, id, slot, trouble)?;
            }
        }
        let id = DatabaseId::catalogue();
        if let Err(error) = self.catalogue.commit() {
            return Err(sqlite_failed(error, slot, id));
        }
        run.open.clear();
        Ok(())
    }

    /// Fences the one database where that is enough; everything else stops the replica.
    fn give_up(&mut self, run: &mut Run<'_>, id: DatabaseId, slot: Slot, trouble: Trouble) -> Result<Rejection, Fatal> {
        let problem = match trouble {
            Trouble::Unusable(Unusable::Damaged(problem)) if id != DatabaseId::catalogue() => problem,
            Trouble::Unusable(unusable) => return Err(self::unusable(unusable, slot, id)),
            Trouble::Install(error) => return Err(install_failed(error, slot, id)),
            Trouble::Contradiction(problem) => {
                return Err(Fatal::State { slot, database: id, problem: problem.to_owned() });
            }
        };
        tracing::error!(%slot, database = %id, problem, "a database is damaged and is not served by this replica any more");
        let rejection = databases::fenced_rejection(&problem);
        self.fence(id, problem);
        for index in run.open.remove(&id).into_iter().flatten() {
            if let Some(applied) = run.applied.get_mut(index) {
                applied.outcome = Some(Err(rejection.clone()));
                applied.fingerprint = None;
            }
        }
        Ok(rejection)
    }

    /// Stops serving a database whose file was found to be damaged, durably.
    ///
    /// # Errors
    /// It is the catalogue, without which there is nothing to serve; or that cannot be written down.
    pub fn set_damaged(&mut self, id: DatabaseId, problem: String) -> Result<(), Fatal> {
        if id == DatabaseId::catalogue() {
            return Err(Fatal::State { slot: self.applied, database: id, problem });
        }
        tracing::error!(database = %id, problem, "a database is damaged and is not served by this replica any more");
        self.fence(id, problem);
        self.checkpoint().map(|_| ())
    }

    fn remember(&mut self, id: DatabaseId, slot: Slot, fingerprint: Fingerprint) {
        self.fingerprints.insert(id, (slot, fingerprint));
        if self.fingerprints.len() >= 2 * FINGERPRINTS_MAX {
            let mut slots: Vec<Slot> = self.fingerprints.values().map(|(slot, _)| *slot).collect();
            slots.sort_unstable();
            let oldest = slots[slots.len() - FINGERPRINTS_MAX];
            self.fingerprints.retain(|_, (slot, _)| *slot >= oldest);
        }
    }

    /// Makes what was applied durable in every database, then moves the mark of [`Engine::resume_after`], then removes
    /// the files of databases whose end has become durable with it.
    ///
    /// # Errors
    /// The replica must stop: after a failed sync nobody knows what is on the disk.
    pub fn checkpoint(&mut self) -> Result<Slot, Fatal> {
        self.ahead.wait()?;
        let slot = self.applied;
        let directory = self.databases.directory().to_owned();
        let io = |source| Fatal::Io { slot, path: directory.clone(), source };
        self.databases.sync().map_err(|(id, source)| Fatal::Io {
            slot,
            path: database::path(&directory, id),
            source,
        })?;
        install::sync_directory(&directory).map_err(io)?;
        let id = DatabaseId::catalogue();
        self.mark(slot).map_err(|error| sqlite_failed(error, slot, id))?;
        databases::sync_log(&database::path(&directory, id)).map_err(io)?;
        self.durable = slot;
        self.catalogue.checkpoint().map_err(|error| sqlite_failed(error, slot, id))?;
        self.remove_dropped(slot)?;
        Ok(slot)
    }

    /// Work that makes the next [`Engine::checkpoint`] short, to be done on another thread while the engine goes on. The
    /// checkpoint waits for its end, and tells if it has failed.
    #[must_use = "a checkpoint waits until it was done or dropped"]
    pub fn checkpoint_ahead(&self) -> impl FnOnce() + Send + use<> {
        self.ahead.work(self.applied, self.databases.dirty())
    }

    /// Whether nothing of that is under way.
    #[must_use]
    pub fn is_ahead_over(&self) -> bool {
        self.ahead.is_over()
    }

    /// Begins a snapshot, which can then be taken beside the engine, on another thread: its slot is everything that was
    /// applied until now. While it is being taken, files of dropped databases stay.
    ///
    /// # Errors
    /// Those of [`Engine::checkpoint`].
    pub fn begin_snapshot(&mut self) -> Result<SnapshotSource, Fatal> {
        let slot = self.checkpoint()?;
        Ok(SnapshotSource::new(self.databases.directory(), slot, self.readers.clone(), Arc::clone(&self.pin)))
    }

    /// Whether the next checkpoint will sync a database.
    #[cfg(test)]
    pub(crate) fn awaits_sync(&self, id: DatabaseId) -> bool {
        self.databases.is_dirty(id)
    }

    /// How often the step limit was looked at in the last operation on a database.
    #[cfg(test)]
    pub(crate) fn calls_counted(&mut self, id: DatabaseId) -> u64 {
        self.databases.get_open(id).map_or(0, |database| database.guard.calls())
    }

    fn mark(&mut self, slot: Slot) -> rusqlite::Result<()> {
        self.catalogue.begin()?;
        catalogue::set_mark(&self.catalogue, slot)?;
        for (id, problem) in self.databases.all_fenced() {
            catalogue::set_fenced(&self.catalogue, *id, slot, problem)?;
        }
        self.catalogue.commit()
    }

    fn remove_dropped(&mut self, durable: Slot) -> Result<(), Fatal> {
        // A snapshot whose copy of the catalogue names them has yet to copy them; the next checkpoint comes soon.
        if Arc::strong_count(&self.pin) > 1 && !planted::breaks(Planted::DroppedFilesRemovedUnderSnapshot) {
            return Ok(());
        }
        let id = DatabaseId::catalogue();
        let sqlite = |error| sqlite_failed(error, durable, id);
        let dropped = catalogue::dropped(&self.catalogue, durable).map_err(sqlite)?;
        if dropped.is_empty() {
            return Ok(());
        }
        let directory = self.databases.directory().to_owned();
        for id in &dropped {
            self.databases.forget(*id);
            self.readers.forget(*id);
            self.fingerprints.remove(id);
            let path = database::path(&directory, *id);
            install::remove(&path).map_err(|source| Fatal::Io { slot: durable, path, source })?;
        }
        install::sync_directory(&directory).map_err(|source| Fatal::Io { slot: durable, path: directory, source })?;
        // The history is what finds these files: it may forget them only now.
        self.names.clear();
        self.catalogue.begin().map_err(sqlite)?;
        for id in &dropped {
            catalogue::forget(&self.catalogue, *id).map_err(sqlite)?;
        }
        self.catalogue.commit().map_err(sqlite)
    }

    /// Shows every blob that a media row of a live database names.
    ///
    /// # Errors
    /// A database cannot be read for a reason that lies in this replica.
    pub fn referenced_blobs(&self, visit: &mut dyn FnMut(Digest)) -> Result<(), Fatal> {
        self.media(&mut |reference| visit(reference.digest))
    }

    /// Shows every media file of a live database, each as often as rows name it.
    ///
    /// # Errors
    /// A database cannot be read for a reason that lies in this replica.
    pub fn media(&self, visit: &mut dyn FnMut(BlobReference)) -> Result<(), Fatal> {
        let slot = self.applied;
        let live = catalogue::live_ids(&self.catalogue)
            .map_err(|error| sqlite_failed(error, slot, DatabaseId::catalogue()))?;
        for id in live {
            let mut read = || -> rusqlite::Result<()> {
                let (connection, guard) = guard::open_reader(&database::path(self.databases.directory(), id))?;
                guard.set(Mode::Internal);
                media::visit(&connection, visit)
            };
            match read().map_err(Unusable::from) {
                Ok(()) => {}
                Err(Unusable::Damaged(problem)) => {
                    tracing::warn!(database = %id, problem, "the media of a damaged database cannot be listed");
                }
                Err(Unusable::Failed(error)) => return Err(sqlite_failed(error, slot, id)),
            }
        }
        Ok(())
    }
}

/// What came of an item on its database.
enum Performed {
    /// A process before this one had applied it there; what is still known of it.
    Before(Option<(Slot, Outcome)>),
    /// It is applied, and will be committed with the run.
    Now(Concluded),
    /// The database is not served here.
    Fenced(Rejection),
    /// It waits for a blob.
    NeedsBlob(BlobReference),
}

/// What one attempt at an item gave.
enum Attempt {
    Before(Option<(Slot, Outcome)>),
    Now(Execution),
}

/// Why an attempt gave nothing.
#[derive(Debug)]
enum Trouble {
    Unusable(Unusable),
    Install(InstallError),
    Contradiction(&'static str),
}

impl From<Unusable> for Trouble {
    fn from(unusable: Unusable) -> Trouble {
        Trouble::Unusable(unusable)
    }
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Trouble {
        Trouble::Unusable(error.into())
    }
}

fn answer(changed: Changed) -> Answer {
    match changed.result {
        Some(result) => Answer::Results(vec![result]),
        None => Answer::Catalogue { id: changed.id, name: changed.name, replaced: changed.replaced.is_some() },
    }
}

/// How much memory an answer takes, roughly.
fn answer_bytes(outcome: &Outcome) -> usize {
    match outcome {
        Ok(Answer::Results(results)) => {
            results.iter().flat_map(|result| &result.rows).flatten().map(|value| 32 + value.as_ref().size()).sum()
        }
        Ok(Answer::Catalogue { .. }) | Err(_) => 0,
    }
}

fn sqlite_failed(source: rusqlite::Error, slot: Slot, database: DatabaseId) -> Fatal {
    let code = database::sqlite_error(&source).map_or(0, |error| error.extended_code);
    Fatal::Sqlite { slot, database, code, source }
}

fn unusable(unusable: Unusable, slot: Slot, database: DatabaseId) -> Fatal {
    match unusable {
        Unusable::Failed(error) => sqlite_failed(error, slot, database),
        Unusable::Damaged(problem) => Fatal::State { slot, database, problem },
    }
}

fn install_failed(error: InstallError, slot: Slot, database: DatabaseId) -> Fatal {
    match error {
        InstallError::Sqlite(error) => sqlite_failed(error, slot, database),
        InstallError::Io(path, source) => Fatal::Io { slot, path, source },
        InstallError::Rejected(rejection) => Fatal::State { slot, database, problem: rejection.detail },
        InstallError::Inherit(problem) => Fatal::State { slot, database, problem },
    }
}
