//! The one engine of a replica: what is open, what is durable, what comes next.
//!
//! Entries are applied in runs. Within a run every database that is touched has one transaction and a lane, in which its
//! entries wait; lanes are run beside each other. Entries that concern the catalogue are carried out in their turn, when
//! all lanes have come so far. Answers leave the engine when all transactions are committed. A crash in between leaves some databases ahead of others. Each knows its own
//! last slot and skips what it has, names are resolved as of the entry's slot, and a database's file is either missing
//! or whole: so applying the entries behind the durable mark again brings everything to the same state.

mod ahead;
mod lane;
mod restore;
mod run;
mod sequence;
mod workers;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use d3b::{Answer, BlobReference, CatalogueChange, DatabaseId, DatabaseName, Digest, Outcome, Slot};

use crate::apply::{self, Entry, Execution, Refusal};
use crate::catalogue::{self, Changed, Lifetime};
use crate::database::{self, Database};
use crate::databases::{self, Databases, Unusable};
use crate::fingerprint::Fingerprint;
use crate::guard::{self, Mode};
use crate::install::{self, InstallError, Plan};
use crate::planted::{self, Planted};
use crate::reader::Readers;
use crate::snapshot::SnapshotSource;
use crate::{Blobs, Fatal, LogEntry, Options, Progress, media};
use ahead::Ahead;
use lane::Lane;
use workers::Workers;

/// How many entries share transactions at most.
const RUN_ENTRIES_MAX: usize = 1024;

/// How many bytes of answers one call gives back, roughly; it ends early rather than exceed that by more than
/// [`run::ANSWERING_MAX`] answers of [`apply::RESULT_BYTES_MAX`] each.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How many resolved names are kept in memory.
const NAMES_MAX: usize = 16 * 1024;

/// How many databases' ids are read at once where media is looked for.
const MEDIA_DATABASES: u32 = 64;

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
    /// The threads that share the lanes of a run.
    workers: Workers<Lane>,
    /// Where the order of lanes comes from; `None` for the longest first.
    lane_order: Option<u64>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("applied", &self.applied).field("durable", &self.durable).finish_non_exhaustive()
    }
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
            workers: Workers::start(options.workers),
            lane_order: options.lane_order,
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

    /// Closes the databases that nothing was applied to since the last time, and connections for reads that were idle for some
    /// time: what is not in use takes neither files nor memory. Whatever comes next opens them again.
    pub fn close_unused(&mut self) {
        self.databases.close_unused();
        self.readers.close_stale();
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
        self.media_in_part(None, &|| false, visit).map(|_| ())
    }

    /// Shows the media files of the live databases behind one of them, in the order of their ids, until it is enough;
    /// returns the last database that was looked into, if there may be more.
    ///
    /// # Errors
    /// A database cannot be read for a reason that lies in this replica.
    pub fn media_in_part(
        &self,
        behind: Option<DatabaseId>,
        enough: &dyn Fn() -> bool,
        visit: &mut dyn FnMut(BlobReference),
    ) -> Result<Option<DatabaseId>, Fatal> {
        let slot = self.applied;
        let mut behind = behind;
        loop {
            let some = catalogue::live_ids_behind(&self.catalogue, behind, MEDIA_DATABASES)
                .map_err(|error| sqlite_failed(error, slot, DatabaseId::catalogue()))?;
            for id in &some {
                self.media_of(*id, visit)?;
                behind = Some(*id);
                if enough() {
                    return Ok(behind);
                }
            }
            if some.is_empty() {
                return Ok(None);
            }
        }
    }

    fn media_of(&self, id: DatabaseId, visit: &mut dyn FnMut(BlobReference)) -> Result<(), Fatal> {
        let mut read = || -> rusqlite::Result<()> {
            let (connection, guard) = guard::open_reader(&database::path(self.databases.directory(), id))?;
            guard.set(Mode::Internal);
            media::visit(&connection, visit)
        };
        match read().map_err(Unusable::from) {
            Ok(()) => Ok(()),
            Err(Unusable::Damaged(problem)) => {
                tracing::warn!(database = %id, problem, "the media of a damaged database cannot be listed");
                Ok(())
            }
            Err(Unusable::Failed(error)) => Err(sqlite_failed(error, self.applied, id)),
        }
    }
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

fn failed(trouble: Trouble, slot: Slot, database: DatabaseId) -> Fatal {
    match trouble {
        Trouble::Unusable(problem) => unusable(problem, slot, database),
        Trouble::Install(error) => install_failed(error, slot, database),
        Trouble::Contradiction(problem) => Fatal::State { slot, database, problem: problem.to_owned() },
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
