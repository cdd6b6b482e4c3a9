//! Rules of the engine that a mutation test can switch off, to see that the checks notice. Behind the feature
//! `planted-bugs`; without it every question is answered "no" at compile time.
//!
//! Which rule is broken is told by an environment variable, and holds for the whole process: engines are opened deep
//! inside the tests, on many threads and in processes that the tests start, and all of them must break the same rule.

use rusqlite::Connection;

/// Names the rule that a process breaks, as [`Planted`] spells it.
#[cfg(feature = "planted-bugs")]
pub const VARIABLE: &str = "D3B_PLANTED";

macro_rules! planted {
    ($($(#[$doc:meta])* $rule:ident,)*) => {
        /// A rule to break.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Planted {
            $($(#[$doc])* $rule,)*
        }

        #[cfg(feature = "planted-bugs")]
        impl Planted {
            /// Every planted bug.
            pub const ALL: &'static [Planted] = &[$(Planted::$rule),*];
        }
    };
}

planted! {
    /// The applied slot is written after the effects are committed.
    AppliedSlotOutsideTransaction,
    /// Keys and their answers are written after the effects are committed.
    KeysOutsideTransaction,
    /// Keys expire by the replica's clock.
    KeysExpireByWallClock,
    /// SQL sees the replica's clock.
    ReplicasClockInSql,
    /// SQL draws its randomness from the replica.
    ReplicasDiceInSql,
    /// `changes()` and its like tell of operations before.
    ConnectionStateKept,
    /// The schema stays in memory as definitions have left it.
    SchemaKeptInMemory,
    /// A database that replaces another begins without its keys.
    KeysLostOnReplace,
    /// The rows of CREATE TABLE AS are left out of the chain.
    CreatedRowsOutsideChain,
    /// What the modules of virtual tables have in memory stays there.
    ModulesKeptInMemory,
    /// What full-text search holds back is written at the next savepoint, or at COMMIT.
    EffectsHeldBack,
    /// What was in a transaction that a refusal ended is not done again.
    EndedTransactionNotDoneAgain,
    /// Deferred foreign keys are not checked at the end of an operation.
    DeferredKeysUnchecked,
    /// A name means what it means now, not at the entry's slot.
    NamesResolvedAsOfNow,
    /// What an earlier process applied is taken for synced.
    EarlierProcessTakenForSynced,
    /// A statement that is kept prepared goes on counting its steps.
    StepsOfKeptStatements,
    /// The greatest rowid may be used, and the next one is random.
    GreatestRowidAllowed,
    /// Files of dropped databases are removed while a snapshot is being taken.
    DroppedFilesRemovedUnderSnapshot,
    /// The copy of the catalogue says that as much is durable as was when it was made.
    MarkOfSnapshotLeftAsItIs,
    /// A copy of a database has a schema version of its own.
    SchemaVersionOfCopyChanged,
    /// The answer of a refused request is not kept under its key.
    RefusalsNotKept,
}

/// Whether the rule is broken.
#[cfg(feature = "planted-bugs")]
pub(crate) fn breaks(rule: Planted) -> bool {
    static BROKEN: std::sync::OnceLock<Option<Planted>> = std::sync::OnceLock::new();
    let broken = BROKEN.get_or_init(|| {
        let name = std::env::var(VARIABLE).ok()?;
        let known = Planted::ALL.iter().find(|rule| format!("{rule:?}") == name);
        Some(*known.unwrap_or_else(|| panic!("{VARIABLE} names no planted bug: {name}")))
    });
    *broken == Some(rule)
}

/// Whether the rule is broken: never.
#[cfg(not(feature = "planted-bugs"))]
#[inline]
pub(crate) const fn breaks(_rule: Planted) -> bool {
    false
}

/// The replica's own time in milliseconds since 1970 where that rule is broken, else the log's.
pub(crate) fn time_ms(rule: Planted, log_time_ms: u64) -> u64 {
    if !breaks(rule) {
        return log_time_ms;
    }
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// Takes the keys of the open transaction out of it.
pub(crate) fn set_keys_aside(connection: &Connection, committed: d3b::Slot) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "CREATE TEMP TABLE aside AS SELECT * FROM main._d3b_requests WHERE slot > {committed};
         DELETE FROM main._d3b_requests WHERE slot > {committed};"
    ))
}

/// Writes those keys after all.
pub(crate) fn bring_keys_back(connection: &Connection) -> rusqlite::Result<()> {
    connection
        .execute_batch("INSERT OR REPLACE INTO main._d3b_requests SELECT * FROM temp.aside; DROP TABLE temp.aside;")
}
