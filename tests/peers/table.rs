//! Samples, and what they come to.

use std::fmt;

use d3b_tests::measure::{Probe, Spread};
use serde::Serialize;

use super::system::{Scenario, System};

/// One scenario on one system in one round.
#[derive(Debug, Serialize)]
pub struct Sample {
    /// Which round.
    pub round: usize,
    /// Which system.
    pub system: &'static str,
    /// Which scenario.
    pub scenario: &'static str,
    /// Operations a second.
    pub per_second: f64,
    /// The median latency in microseconds.
    pub p50_us: u64,
    /// That of the slowest hundredth.
    pub p99_us: u64,
    /// Processor time of all three replicas for each operation, in microseconds.
    pub server_cpu_us: f64,
    /// That of the generator.
    pub generator_cpu_us: f64,
    /// Operations that did not go as they should.
    pub errors: u64,
    /// The first few messages about them.
    pub messages: Vec<String>,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample { scenario, per_second, p50_us, p99_us, errors, .. } = self;
        write!(f, "{scenario:14} {per_second:9.0}/s  p50 {p50_us} us  p99 {p99_us} us")?;
        if *errors > 0 {
            write!(f, "  {errors} failures: {:?}", self.messages)?;
        }
        Ok(())
    }
}

/// Prints medians over the rounds, their spread, and how many times the throughput of each peer d3b has.
pub fn print(systems: &[Box<dyn System>], scenarios: &[&Scenario], samples: &[Sample], probe: &Probe) {
    println!(
        "| scenario | system | per second | lowest to highest | p50 ms | p99 ms | servers' CPU us | generator's CPU us | d3b is |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for scenario in scenarios {
        for system in systems {
            let of = |name: &str| -> Vec<&Sample> {
                samples.iter().filter(|it| it.scenario == scenario.name && it.system == name).collect()
            };
            let own = of(system.name());
            let median =
                |value: fn(&Sample) -> f64| Spread::of(own.iter().map(|sample| value(sample)).collect()).median;
            let Spread { median: rate, lowest: least, highest: most } =
                Spread::of(own.iter().map(|sample| sample.per_second).collect());
            // Round by round, so that what slows the whole machine for a while slows both.
            let ratios = of("d3b").into_iter().zip(&own).map(|(d3b, peer)| d3b.per_second / peer.per_second);
            let ratio = Spread::of(ratios.collect());
            let ratio = match system.name() {
                "d3b" => String::new(),
                _ => format!("{:.2} times as fast ({:.2} to {:.2})", ratio.median, ratio.lowest, ratio.highest),
            };
            println!(
                "| {} | {} | {rate:.0} | {least:.0} to {most:.0} | {:.2} | {:.2} | {:.0} | {:.0} | {ratio} |",
                scenario.name,
                system.name(),
                median(|sample| sample.p50_us as f64) / 1000.0,
                median(|sample| sample.p99_us as f64) / 1000.0,
                median(|sample| sample.server_cpu_us),
                median(|sample| sample.generator_cpu_us),
            );
        }
    }
    println!();
    for system in systems {
        println!("* {}: {}", system.name(), system.terms());
    }
    println!("* the disk: fdatasync of 4 KiB p50 {} us, p99 {} us", probe.quantile(0.5), probe.quantile(0.99));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("* the machine: {cores} cores, which servers and generator share");
}
