//! Logs that nobody has thought of: made from a seed, applied in many ways, and always with the same result.
//!
//! * `dice` draws, `expressions`, `queries`, `statements` and `definitions` write SQL for what `schema` finds in a
//!   database, and `applications` are those that people could have built.
//! * `log` makes of it batches, uploads, repeated requests and jumps in time.
//! * `ways` applies a log otherwise, in this process and in another one; `promises` is the model of what keys do;
//!   `oracle` is plain SQLite, for the logs in which there is neither clock nor randomness.
//!
//! `D3B_FUZZ_MINUTES` runs fresh seeds for so long, and `D3B_FUZZ_SEED` one seed, which is how a failure is replayed.

mod applications;
mod definitions;
pub(crate) mod dice;
mod expressions;
mod log;
mod oracle;
mod promises;
mod queries;
mod schema;
mod shrink;
mod statements;
mod ways;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

use super::*;
use dice::Dice;
use log::{Making, other_dice};
use oracle::Oracle;
use ways::Way;

/// How many entries the log of a seed has.
const LENGTH: usize = 200;

/// How much is told of a failure.
const MESSAGE_CHARS_MAX: usize = 10_000;

/// The seeds of every test run.
const SEEDS: std::ops::Range<u64> = 0..12;

/// Whether the log of a seed leaves out clock and randomness. Every application comes with them and without.
fn is_pure(seed: u64) -> bool {
    (seed / applications::APPLICATIONS.len() as u64).is_multiple_of(2)
}

/// Writes SQL.
pub(crate) struct Generator {
    dice: Dice,
    /// Whether clock and randomness are left out, so that plain SQLite answers alike.
    pure: bool,
    /// Whether values may be bound instead of written out.
    binds: bool,
    /// What is bound in the statement at hand.
    arguments: Vec<Value>,
}

impl Generator {
    pub fn new(seed: u64) -> Generator {
        Generator { dice: Dice::new(seed), pure: is_pure(seed), binds: false, arguments: Vec::new() }
    }

    /// A value as it stands in the text; its place where it is bound.
    fn bind(&mut self, value: Value) -> String {
        if !self.binds {
            return "5".to_owned();
        }
        self.arguments.push(value);
        "?".to_owned()
    }
}

/// What a seed came to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub done: usize,
    pub refused: usize,
    pub codes: std::collections::BTreeMap<String, usize>,
    pub compared: u64,
}

/// Makes the log of a seed, applies it in every way, and compares.
///
/// # Errors
/// The first difference.
pub(crate) fn check(seed: u64) -> Result<Tally, String> {
    let mut lab = Lab::in_memory(Options::default());
    let mut making = Making::new(&mut lab, seed);
    let mut generator = Generator::new(seed);
    generator.make(&mut making, LENGTH);
    let context = |problem: String| format!("with the {} beside generated statements: {problem}", making.application());
    promises::check(&making).map_err(context)?;
    let mut tally = Tally::default();
    if generator.pure {
        let mut oracle = Oracle::new();
        oracle.check(&making).map_err(context)?;
        tally.compared = oracle.compared;
    }
    for applied in &making.applied {
        match &applied.outcome {
            Some(Ok(_)) => tally.done += 1,
            Some(Err(rejection)) => {
                tally.refused += 1;
                *tally.codes.entry(format!("{:?} {}", rejection.code, rejection.detail)).or_default() += 1;
            }
            None => {}
        }
    }
    let Making { applied, operations, .. } = making;
    let explain = |problem: String| {
        let slot = problem.split_whitespace().nth(1).and_then(|slot| slot.trim_end_matches(':').parse::<usize>().ok());
        let operation = slot.and_then(|slot| operations.get(slot.checked_sub(1)?)?.as_ref());
        format!("{problem}\n{operation:#?}")
    };
    let expected = ways::reference(&mut lab, &applied)?;
    for (index, way) in [Way::Restarts, Way::Crashes].into_iter().enumerate() {
        let files = Files(lab.files.0.clone());
        let found = ways::apply_otherwise(&lab.log, files, &mut other_dice(seed, index as u64), way);
        found.and_then(|found| expected.compare(&found)).map_err(|problem| format!("{way:?}: {}", explain(problem)))?;
    }
    let found = ways::apply_elsewhere(&lab, seed);
    found.and_then(|found| expected.compare(&found)).map_err(|problem| format!("elsewhere: {}", explain(problem)))?;
    Ok(tally)
}

/// Shows the core of what a seed has found.
fn explain(seed: u64) {
    let mut lab = Lab::in_memory(Options::default());
    let mut making = Making::new(&mut lab, seed);
    Generator::new(seed).make(&mut making, LENGTH);
    println!("{}", shrink::shrink(&lab.log, &lab.files).unwrap_or_else(|| "restarts alone do not show it".to_owned()));
}

/// Checks a seed and says at once, when it fails, how to see that again.
#[track_caller]
fn check_loudly(seed: u64) -> Tally {
    let problem = match catch_unwind(AssertUnwindSafe(|| check(seed))) {
        Ok(Ok(tally)) => return tally,
        Ok(Err(problem)) => problem,
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default(),
    };
    let problem: String = problem.chars().take(MESSAGE_CHARS_MAX).collect();
    panic!("seed {seed}; replay with D3B_FUZZ_SEED={seed} cargo test -p d3b-engine generated\n{problem}");
}

fn number_from(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn generated_logs_give_one_state_however_they_are_applied() {
    if let Some(seed) = number_from("D3B_FUZZ_SEED") {
        if catch_unwind(AssertUnwindSafe(|| check(seed).is_ok())).unwrap_or(false) {
            println!("{:#?}", check_loudly(seed));
        } else {
            explain(seed);
            check_loudly(seed);
        }
        return;
    }
    if let Some(minutes) = number_from("D3B_FUZZ_MINUTES") {
        let until = Instant::now() + Duration::from_secs(60 * minutes);
        let first = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64);
        let seeds = (first..).take_while(|_| Instant::now() < until).map(check_loudly).count();
        println!("{seeds} seeds from {first} on");
        return;
    }
    let (mut done, mut refused, mut compared) = (0, 0, 0);
    for tally in SEEDS.map(check_loudly) {
        done += tally.done;
        refused += tally.refused;
        compared += tally.compared;
    }
    println!("{done} done, {refused} refused, {compared} compared with plain SQLite");
    assert!(done > 500 && refused > 200 && compared > 300, "the logs do something: {done} {refused} {compared}");
}
