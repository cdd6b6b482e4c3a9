//! What reads have found out and need not find out again: what names mean, and what statements do.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use d3b::{DatabaseId, DatabaseName};

use super::Kind;

/// How many names are remembered; then all are forgotten, and found out anew as they are used.
const NAMES_MAX: usize = 16_384;
/// How many bytes of statements are.
const TEXT_BYTES_MAX: usize = 4 << 20;
/// What a statement costs besides its text, roughly.
const TEXT_OVERHEAD: usize = 128;
/// How often a statement that took long is taken for slow: its arguments, or the data, may be others.
const SLOW_FOR: u8 = 32;
/// Longer statements are not.
const TEXT_MAX: usize = 4 << 10;

/// What is known of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Habit {
    pub(super) kind: Kind,
    /// It has taken long before: so many times it is not tried on the spot.
    slow: u8,
}

impl Habit {
    /// Of one that was not seen before.
    pub(super) fn new(kind: Kind) -> Habit {
        Habit { kind, slow: 0 }
    }

    /// Of a read that took long.
    pub(super) fn slow() -> Habit {
        Habit { kind: Kind::Read, slow: SLOW_FOR }
    }
}

#[derive(Default)]
struct Names {
    /// Of which generation of the catalogue.
    generation: u64,
    ids: HashMap<DatabaseName, DatabaseId>,
}

#[derive(Default)]
struct Habits {
    of: HashMap<DatabaseId, HashMap<Box<str>, Habit>>,
    bytes: usize,
}

/// Shared by all readers.
#[derive(Default)]
pub(super) struct Known {
    generation: AtomicU64,
    names: Mutex<Names>,
    habits: Mutex<Habits>,
}

impl Known {
    /// The catalogue has changed: what names mean is to be looked up again. To be called before anybody is told of the slot
    /// that changed it.
    pub(super) fn forget_names(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// What a name means, if that is known; else the generation under which it is to be [remembered](Known::remember).
    pub(super) fn id_of(&self, name: &DatabaseName) -> Result<DatabaseId, u64> {
        let generation = self.generation.load(Ordering::Acquire);
        let names = lock(&self.names);
        let known = names.ids.get(name).filter(|_| names.generation == generation);
        known.copied().ok_or(generation)
    }

    /// A name was looked up after its generation was asked for. If the catalogue changed meanwhile, nobody will use it.
    pub(super) fn remember(&self, name: &DatabaseName, id: DatabaseId, generation: u64) {
        let mut names = lock(&self.names);
        if names.generation < generation || names.ids.len() >= NAMES_MAX {
            names.ids.clear();
            names.generation = generation;
        }
        if names.generation == generation {
            names.ids.insert(name.clone(), id);
        }
    }

    /// What a statement does, if it was seen before. What a text does hangs on the text, as long as it can be run at all.
    pub(super) fn habit(&self, id: DatabaseId, sql: &str) -> Option<Habit> {
        lock(&self.habits).of.get(&id)?.get(sql).copied()
    }

    /// Whether a statement is likely to take long.
    pub(super) fn is_slow(&self, id: DatabaseId, sql: &str) -> bool {
        let mut habits = lock(&self.habits);
        let Some(habit) = habits.of.get_mut(&id).and_then(|of| of.get_mut(sql)) else { return false };
        let slow = habit.slow > 0;
        habit.slow = habit.slow.saturating_sub(1);
        slow
    }

    /// Remembers what a statement does.
    pub(super) fn set_habit(&self, id: DatabaseId, sql: &str, habit: Habit) {
        if sql.len() > TEXT_MAX {
            return;
        }
        let mut habits = lock(&self.habits);
        if habits.bytes + sql.len() + TEXT_OVERHEAD > TEXT_BYTES_MAX {
            *habits = Habits::default();
        }
        if habits.of.entry(id).or_default().insert(sql.into(), habit).is_none() {
            habits.bytes += sql.len() + TEXT_OVERHEAD;
        }
    }

    /// Forgets the statements of a database, which is not served any more.
    pub(super) fn forget_habits(&self, id: DatabaseId) {
        let mut habits = lock(&self.habits);
        if let Some(forgotten) = habits.of.remove(&id) {
            habits.bytes -= forgotten.keys().map(|sql| sql.len() + TEXT_OVERHEAD).sum::<usize>();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> (DatabaseName, DatabaseId) {
        let name = DatabaseName::new("shop").unwrap();
        let id = DatabaseId::derive(&name, "");
        (name, id)
    }

    #[test]
    fn a_name_that_was_looked_up_before_the_catalogue_changed_is_not_used() {
        let known = Known::default();
        let (name, id) = shop();
        let before = known.id_of(&name).unwrap_err();
        known.remember(&name, id, before);
        assert_eq!(known.id_of(&name), Ok(id));
        known.forget_names();
        let after = known.id_of(&name).unwrap_err();
        known.remember(&name, id, before);
        assert_eq!(known.id_of(&name), Err(after), "what was looked up before is late");
        let other = DatabaseId::derive(&name, "again");
        known.remember(&name, other, after);
        known.remember(&name, id, before);
        assert_eq!(known.id_of(&name), Ok(other));
    }

    #[test]
    fn statements_are_bounded_and_forgotten_with_their_database() {
        let known = Known::default();
        let (_, id) = shop();
        let habit = Habit::new(Kind::Read);
        for n in 0..200_000 {
            known.set_habit(id, &format!("SELECT {n}"), habit);
        }
        assert!(lock(&known.habits).bytes <= TEXT_BYTES_MAX);
        known.set_habit(id, "SELECT 1", Habit::slow());
        assert!((0..SLOW_FOR).all(|_| known.is_slow(id, "SELECT 1")));
        assert!(!known.is_slow(id, "SELECT 1"), "it is tried once more");
        assert_eq!(known.habit(id, "SELECT 1"), Some(habit));
        known.forget_habits(id);
        assert_eq!((known.habit(id, "SELECT 1"), lock(&known.habits).bytes), (None, 0));
    }
}
