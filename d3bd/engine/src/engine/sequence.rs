//! The items of a run that concern one database: how they share its transaction, in order and without feeling each other.

use d3b::{BlobReference, KeyedOperation, Outcome, Rejection, Slot};

use super::{Trouble, answer_bytes};
use crate::apply::{self, Concluded, Entry, Execution};
use crate::database::Database;
use crate::planted::{self, Planted};
use crate::requests;

/// An entry of a run that carries a command.
pub(super) struct Item {
    /// Which one of the run's it is.
    pub index: usize,
    /// Where it stands in the log.
    pub slot: Slot,
    /// Log time.
    pub time_ms: u64,
    /// Where its randomness comes from.
    pub seed: u64,
    /// What it carries.
    pub keyed: KeyedOperation,
}

impl Item {
    fn entry(&self) -> Entry<'_> {
        Entry { slot: self.slot, time_ms: self.time_ms, seed: self.seed, keyed: &self.keyed }
    }
}

/// What came of an item on its database.
pub(super) enum Performed {
    /// A process before this one had applied it there; what is still known of it.
    Before(Option<(Slot, Outcome)>),
    /// It is applied.
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

/// Where the items of a sequence are executed.
pub(super) trait Executor {
    /// The database, opened if need be.
    fn database(&mut self) -> Result<&mut Database, Trouble>;

    /// Executes an entry in the open transaction.
    fn execute(&mut self, entry: Entry<'_>) -> Result<Execution, Trouble>;

    /// Forgets what is known from the transaction, which has ended.
    fn forget(&mut self) {}
}

/// The items of a run that concern one database.
///
/// Invariant: `open <= done.len() <= items.len()`.
#[derive(Default)]
pub(super) struct Sequence {
    /// In the order of their slots.
    items: Vec<Item>,
    /// What came of them, as far as they are done.
    done: Vec<Performed>,
    /// From this one on, what is done is in the open transaction.
    open: usize,
    /// Whether something was committed, or a process before this one may have left something unsynced.
    dirty: bool,
}

impl Sequence {
    /// Appends an item, which waits until the next [`Sequence::advance`].
    pub fn push(&mut self, item: Item) {
        self.items.push(item);
    }

    /// How many items wait.
    pub fn waiting(&self) -> usize {
        self.items.len() - self.done.len()
    }

    /// Whether the database has become dirty since this was last asked.
    pub fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// How much memory the answers of the last so many items take, roughly.
    pub fn answer_bytes(&self, items: usize) -> usize {
        let done = &self.done[self.done.len().saturating_sub(items)..];
        let bytes = |performed: &Performed| match performed {
            Performed::Before(Some((_, outcome))) => answer_bytes(outcome),
            Performed::Now(concluded) => answer_bytes(&concluded.outcome),
            Performed::Before(None) | Performed::Fenced(_) | Performed::NeedsBlob(_) => 0,
        };
        done.iter().map(bytes).sum()
    }

    /// What came of the items, each with its index in the run.
    pub fn into_done(self) -> impl Iterator<Item = (Item, Performed)> {
        self.items.into_iter().zip(self.done)
    }

    /// Takes the last item out again if it waits for a blob.
    pub fn take_needed_blob(&mut self) -> Option<BlobReference> {
        let Some(Performed::NeedsBlob(blob)) = self.done.last() else { return None };
        let blob = *blob;
        self.done.pop();
        self.items.truncate(self.done.len());
        Some(blob)
    }

    /// Does what waits, in the open transaction.
    ///
    /// # Errors
    /// The item that could not be done, and why; those behind it wait still.
    pub fn advance(&mut self, executor: &mut impl Executor) -> Result<(), (Slot, Trouble)> {
        while let Some(item) = self.items.get(self.done.len()) {
            let slot = item.slot;
            let performed = self.perform(executor).map_err(|trouble| (slot, trouble))?;
            self.done.push(performed);
        }
        Ok(())
    }

    /// Does the first item that waits.
    fn perform(&mut self, executor: &mut impl Executor) -> Result<Performed, Trouble> {
        let index = self.done.len();
        match self.attempt(index, executor)? {
            Attempt::Before(recalled) => {
                // The process that applied it may have died before it was synced, and the mark must not pass it unsynced.
                self.dirty |= !planted::breaks(Planted::EarlierProcessTakenForSynced);
                Ok(Performed::Before(recalled))
            }
            Attempt::Now(Execution::NeedsBlob(blob)) => Ok(Performed::NeedsBlob(blob)),
            Attempt::Now(Execution::Done(concluded)) => {
                // The transaction of virtual tables would else tell how many operations shared it.
                if executor.database()?.end_virtual_use()? {
                    self.dirty = true;
                    self.open = index + 1;
                }
                Ok(Performed::Now(concluded))
            }
            Attempt::Now(Execution::Ended(rejection)) => self.redo(executor, rejection).map(Performed::Now),
        }
    }

    fn attempt(&self, index: usize, executor: &mut impl Executor) -> Result<Attempt, Trouble> {
        let entry = self.items[index].entry();
        let database = executor.database()?;
        if entry.slot <= database.state.slot {
            return Ok(Attempt::Before(requests::recall(database, entry.keyed, entry.slot, entry.time_ms)?));
        }
        database.begin()?;
        executor.execute(entry).map(Attempt::Now)
    }

    /// After a refusal that ended the transaction: what was in it is done again, and the refusal recorded after that.
    /// All of it is committed, so that nothing is done again more than once.
    fn redo(&mut self, executor: &mut impl Executor, rejection: Rejection) -> Result<Concluded, Trouble> {
        let index = self.done.len();
        executor.forget();
        executor.database()?.forget_transaction()?;
        if planted::breaks(Planted::EndedTransactionNotDoneAgain) {
            self.open = index;
        }
        for earlier in self.open..index {
            let Performed::Now(before) = &self.done[earlier] else { continue };
            let same = match self.attempt(earlier, executor)? {
                Attempt::Now(Execution::Done(again)) => again == *before,
                Attempt::Now(Execution::NeedsBlob(_) | Execution::Ended(_)) | Attempt::Before(_) => false,
            };
            if !same {
                return Err(Trouble::Contradiction("an operation that was done again came out differently"));
            }
        }
        let database = executor.database()?;
        database.begin()?;
        let concluded = apply::conclude(database, self.items[index].entry(), Err(rejection), "")?;
        database.commit()?;
        self.dirty = true;
        self.open = index + 1;
        Ok(concluded)
    }

    /// Commits the open transaction.
    ///
    /// # Errors
    /// The last item, and why what was in the transaction is lost.
    pub fn commit(&mut self, executor: &mut impl Executor) -> Result<(), (Slot, Trouble)> {
        let slot = self.items.last().map_or(Slot::ZERO, |item| item.slot);
        let mut commit = || -> Result<(), Trouble> {
            let database = executor.database()?;
            if database.in_transaction() {
                self.dirty = true;
                database.commit()?;
            }
            Ok(())
        };
        commit().map_err(|trouble| (slot, trouble))?;
        self.committed();
        Ok(())
    }

    /// Says that the transaction was committed.
    pub fn committed(&mut self) {
        self.open = self.done.len();
    }

    /// Refuses what is in the open transaction, and what waits, because the database is not served here any more.
    pub fn refuse(&mut self, rejection: &Rejection) {
        for performed in &mut self.done[self.open..] {
            if matches!(performed, Performed::Now(_)) {
                *performed = Performed::Fenced(rejection.clone());
            }
        }
        self.done.resize_with(self.items.len(), || Performed::Fenced(rejection.clone()));
        self.open = self.done.len();
    }
}
