//! A deterministic simulator: whole clusters of the shipped driver and core, on a simulated network, disk and clock, in
//! one thread, from one seed.
//!
//! Replicas come and go as an operator asks for it ([`members`]), logs are cut, and whoever is behind the beginning of all
//! logs takes a snapshot over ([`snapshots`]). What is chosen counts by the configuration that governs its slot. A minority
//! may come to hold something else than what was chosen, and is to be quarantined for it and rebuilt ([`repairs`]).
//!
//! A run has two phases. In the first everything that the seed's [`Scenario`] knows goes wrong while clients write, read
//! and check what they are told. In the second a majority is healed, a minority may stay broken for good, and progress
//! is demanded within a bounded time. What must hold at every moment is checked after every event ([`oracle`]); at the
//! end every register's history must be linearizable, every acknowledged request must have taken effect exactly once,
//! and all replicas must hold the same.
//!
//! The state machine is the real engine ([`engine`]) or a small stand-in ([`machine`]) that lets far more schedules be
//! tried. Equal seeds give equal runs: the same events in the same order, shown by [`Report::digest`].

mod blobs;
mod clients;
pub mod disk;
mod engine;
mod faults;
mod finish;
mod machine;
mod members;
mod network;
mod node;
mod oracle;
mod processes;
mod queue;
pub mod random;
mod repairs;
pub mod scenario;
mod snapshots;
mod story;
mod turns;
mod work;
mod workload;
mod world;

use std::collections::BTreeMap;

use engine::Real;
use machine::{Machine, StandIn};
pub use node::SimDriver;
use random::Random;
use scenario::{Fault, Scale, Scenario};
use world::{Prepare, World};

/// Which state machine a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The real one.
    Real,
    /// The stand-in.
    StandIn,
}

/// How to run a seed.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The state machine.
    pub engine: Engine,
    /// How large the run is.
    pub scale: Scale,
    /// Whether to tell the story.
    pub tell: bool,
    /// A planted bug: files are dropped as soon as no row names them, whoever waits for them or has them in its log.
    pub careless_sweep: bool,
    /// A planted bug: the configuration of a snapshot is taken for one that was held as it was chosen, be it from before the
    /// snapshot's slot or not.
    pub careless_manifest: bool,
    /// A planted bug: that a replica is quarantined is not written to its disk.
    pub careless_quarantine: bool,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Of everything that happened: equal runs have equal digests.
    pub digest: u64,
    /// How many events.
    pub events: u64,
    /// How many slots were chosen.
    pub chosen: usize,
    /// How many operations of clients were answered.
    pub answered: usize,
    /// Simulated time in microseconds.
    pub simulated_us: u64,
    /// How many snapshots were installed.
    pub installed: u32,
    /// How many replicas were quarantined because of what they held.
    pub quarantined: u32,
    /// How many quarantined replicas were rebuilt.
    pub rebuilt: u32,
    /// How many changes of the members the operator got into the log.
    pub changes: u32,
    /// How often each fault struck.
    pub faults: BTreeMap<Fault, u32>,
    /// The story, if it was asked for.
    pub story: String,
}

/// A run in which something was that must never be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed} at {time_us} us: {violation}")]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// When, in microseconds of simulated time.
    pub time_us: u64,
    /// How many events had happened.
    pub events: u64,
    /// What.
    pub violation: String,
    /// The story, if it was asked for.
    pub story: String,
}

/// Runs a seed.
///
/// # Errors
/// Something was that must never be.
pub fn run(seed: u64, options: Options) -> Result<Report, Failure> {
    run_with(seed, options, None)
}

/// Runs a seed with drivers that a test has prepared: with a bug planted in them, say.
///
/// # Errors
/// Something was that must never be.
pub fn run_planted(seed: u64, options: Options, plant: impl Fn(&mut SimDriver)) -> Result<Report, Failure> {
    run_with(seed, options, Some(&plant))
}

fn run_with(seed: u64, options: Options, prepare: Option<&Prepare<'_>>) -> Result<Report, Failure> {
    match options.engine {
        Engine::Real => run_on::<Real>(seed, options, prepare),
        Engine::StandIn => run_on::<StandIn>(seed, options, prepare),
    }
}

fn run_on<M: Machine>(seed: u64, options: Options, prepare: Option<&Prepare<'_>>) -> Result<Report, Failure> {
    let mut random = Random::new(seed);
    let scenario = Scenario::draw(&mut random, options.scale);
    let mut world = World::<M>::new(scenario, random, prepare, options.tell);
    world.careless_sweep = options.careless_sweep;
    world.careless_manifest = options.careless_manifest;
    world.careless_quarantine = options.careless_quarantine;
    let result = world.live();
    let story = world.take_story();
    match result {
        Ok(()) => Ok(Report {
            seed,
            digest: world.digest(),
            events: world.events,
            chosen: world.oracle.chosen_count(),
            answered: world.history.answered(),
            simulated_us: world.time,
            installed: world.installed,
            quarantined: world.quarantined,
            rebuilt: world.rebuilt,
            changes: world.answered_changes,
            faults: std::mem::take(&mut world.faults),
            story,
        }),
        Err(violation) => {
            Err(Failure { seed, time_us: world.time, events: world.events, violation: violation.0, story })
        }
    }
}
