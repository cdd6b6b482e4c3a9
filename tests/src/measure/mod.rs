//! What the benchmarks of this crate share: how long the disk takes by itself, loads of d3b, what processes use, and
//! what samples come to.

mod load;
mod probe;
mod silence;

use std::time::Duration;

use d3bctl::bench::{Plan, Target};

pub use load::{Job, drive, fill, prepare, settle};
pub use probe::Probe;
pub use silence::{Acknowledged, Silence};

/// What samples come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the middle two.
    pub median: f64,
    /// The lowest one.
    pub lowest: f64,
    /// The highest one.
    pub highest: f64,
}

impl Spread {
    /// That of some samples; all zero if there are none.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        let last = values.len().saturating_sub(1);
        Spread { median: f64::midpoint(at(last / 2), at(values.len() / 2)), lowest: at(0), highest: at(last) }
    }
}

/// Whether this was built to be measured; says so if it was not.
#[must_use]
pub fn is_release(program: &str) -> bool {
    if cfg!(debug_assertions) {
        eprintln!("{program}: this is no release build, and its figures tell nothing: cargo run --release ...");
    }
    !cfg!(debug_assertions)
}

/// Whether a name begins like one of those that were asked for, or none was.
#[must_use]
pub fn is_wanted(only: &[String], name: &str) -> bool {
    only.is_empty() || only.iter().any(|beginning| name.starts_with(beginning.as_str()))
}

/// A target by its address.
///
/// # Panics
/// When it is no address with a port.
#[must_use]
pub fn target(address: &str) -> Target {
    Target { address: address.parse().expect("an address with its port"), host: address.to_owned() }
}

/// A closed loop of so many clients, driven by one thread, that begin at all targets in turn.
#[must_use]
pub fn plan(clients: usize) -> Plan {
    Plan {
        clients,
        threads: 1,
        rate: None,
        warm_up: Duration::ZERO,
        duration: Duration::from_secs(1),
        patience: Duration::from_secs(15),
        spread: true,
    }
}

/// Processor time that processes have used so far.
#[must_use]
pub fn cpu_time(pids: &[u32]) -> Duration {
    // SAFETY: the call reads a constant of the system.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let ticks: u64 = pids
        .iter()
        .map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th field after it.
            let rest = stat.rsplit(')').next().unwrap_or_default();
            rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>()
        })
        .sum();
    Duration::from_secs_f64(ticks as f64 / ticks_per_second)
}

/// Lets this process have so many files open, or as many as it may.
pub fn allow_files(count: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours and outlives both calls. Where the limit cannot be raised, connections will fail
    // and be told of.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_cur.max(limit.rlim_max.min(count));
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[f64], median: f64, lowest: f64, highest: f64) {
        assert_eq!(Spread::of(values.to_vec()), Spread { median, lowest, highest });
    }

    #[test]
    fn samples_have_a_middle_and_two_ends() {
        check(&[], 0.0, 0.0, 0.0);
        check(&[3.0], 3.0, 3.0, 3.0);
        check(&[5.0, 1.0], 3.0, 1.0, 5.0);
        check(&[9.0, 1.0, 2.0], 2.0, 1.0, 9.0);
    }
}
