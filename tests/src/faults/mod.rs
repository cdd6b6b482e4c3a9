//! What goes wrong around a replica, played on one machine: networks, disks and clocks that fail, and runs of tests with
//! fresh seeds.
//!
//! Namespaces and mounts belong to threads and processes of the test, never to names that outlive it: the kernel takes
//! them away when the last of them is gone, however that came about.

pub mod mounts;
pub mod needs;
pub mod network;
pub mod preload;

use std::time::{Duration, Instant, SystemTime};

use crate::sim::random::Random;

/// Sets the seed of the first run of a test.
const SEED: &str = "D3B_FAULTS_SEED";
/// Every test is run with fresh seeds for so many minutes.
const MINUTES: &str = "D3B_FAULTS_MINUTES";

/// Runs a test with a fresh seed, once, or for as long as `D3B_FAULTS_MINUTES` says. The seed decides what is done to
/// whom; processes and threads take turns as they like, so that it repeats a run approximately.
pub fn with_seeds(test: impl Fn(&mut Random)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let deadline = Instant::now() + Duration::from_secs(60 * number(MINUTES).unwrap_or(0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut seeds = Random::new(u64::from(now.subsec_nanos()) ^ now.as_secs() ^ u64::from(std::process::id()) << 32);
    let mut seed = number(SEED).unwrap_or_else(|| seeds.below(1_000_000));
    loop {
        println!("---- {SEED}={seed}");
        test(&mut Random::new(seed));
        if Instant::now() >= deadline {
            return;
        }
        seed = seeds.below(1_000_000);
    }
}
