//! One database within a run, on whatever thread: its items, and all that is done to it for them.
//!
//! Operations of different databases do not feel each other, so lanes may run beside each other and in any order. What
//! they have in common (the catalogue, what is fenced and dirty, the answers) is left to the engine, which looks after it
//! when all of them have ended.

use std::path::PathBuf;

use d3b::{DatabaseId, Slot};

use super::Trouble;
use super::sequence::{Executor, Item, Sequence};
use super::workers::Job;
use crate::apply::{self, Entry, Execution};
use crate::database::Database;
use crate::databases::{self, Unusable};

/// How much work it is to open a database, in operations.
const OPENING: usize = 16;

/// How much work a transaction of its own is.
const COMMIT: usize = 4;

/// A database and its items in a run.
pub(super) struct Lane {
    file: OpenFile,
    pub sequence: Sequence,
    /// How many items waited when it was last sent off.
    sent: usize,
    /// Whether it is to end with a commit.
    commits: bool,
    /// Another database, to be closed to make room.
    closes: Option<Database>,
    /// What has ended it, and at which item.
    pub stopped: Option<(Slot, Stopped)>,
}

/// Why a lane goes no further.
pub(super) enum Stopped {
    /// Its database is damaged: all items that are not committed are refused.
    Damaged(String),
    /// The replica must stop.
    Failed(Trouble),
}

/// A database, open or to be opened.
struct OpenFile {
    id: DatabaseId,
    path: PathBuf,
    open: Option<Database>,
}

impl Executor for OpenFile {
    fn database(&mut self) -> Result<&mut Database, Trouble> {
        let database = match self.open.take() {
            Some(database) => database,
            None => Database::open(&self.path, self.id).map_err(Unusable::from)?,
        };
        Ok(self.open.insert(database))
    }

    fn execute(&mut self, entry: Entry<'_>) -> Result<Execution, Trouble> {
        Ok(apply::execute(self.database()?, entry)?)
    }
}

impl Lane {
    /// Nothing waits yet in it.
    pub fn new(id: DatabaseId, path: PathBuf) -> Lane {
        let file = OpenFile { id, path, open: None };
        Lane { file, sequence: Sequence::default(), sent: 0, commits: false, closes: None, stopped: None }
    }

    /// Its database.
    pub fn id(&self) -> DatabaseId {
        self.file.id
    }

    /// Appends an item.
    pub fn push(&mut self, item: Item) {
        self.sequence.push(item);
    }

    /// Makes it ready to be run: to the end of what waits, and to a commit if so wanted.
    pub fn send(&mut self, database: Option<Database>, commits: bool) {
        self.file.open = database;
        self.sent = self.sequence.waiting();
        self.commits = commits;
    }

    /// Whether it will have to open its database.
    pub fn opens(&self) -> bool {
        self.file.open.is_none()
    }

    /// Says which other database it has to close before.
    pub fn close_first(&mut self, other: Database) {
        self.closes = Some(other);
    }

    /// How much is to be done, in operations.
    pub fn work(&self) -> usize {
        self.sent + if self.opens() { OPENING } else { 0 } + if self.commits { COMMIT } else { 0 }
    }

    /// Its database, to be kept open.
    pub fn take_database(&mut self) -> Option<Database> {
        self.file.open.take()
    }

    /// How much memory the answers take that it has given since it was sent, roughly.
    pub fn answer_bytes(&self) -> usize {
        self.sequence.answer_bytes(self.sent)
    }
}

impl Job for Lane {
    fn run(&mut self) {
        if let Some(other) = self.closes.take() {
            other.close_quickly();
        }
        let advanced = self.sequence.advance(&mut self.file);
        let ended = match advanced {
            // One that is not open has nothing to commit.
            Ok(()) if self.commits && !self.opens() => self.sequence.commit(&mut self.file),
            ended => ended,
        };
        self.stopped = match ended {
            Ok(()) => None,
            Err((slot, Trouble::Unusable(Unusable::Damaged(problem)))) => {
                self.sequence.refuse(&databases::fenced_rejection(&problem));
                // What is in its transaction is rolled back.
                self.file.open = None;
                Some((slot, Stopped::Damaged(problem)))
            }
            Err((slot, trouble)) => Some((slot, Stopped::Failed(trouble))),
        };
    }
}
