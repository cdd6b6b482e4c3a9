//! Faults of all kinds, several at a time, as chance has it.

use std::time::Duration;

use d3b_tests::faults::needs::{self, are_met};
use d3b_tests::faults::network::{CUT, Line, Network};
use d3b_tests::faults::preload::{Call, Fault, Faults, Rule};
use d3b_tests::faults::with_seeds;
use d3b_tests::recorder::{Keys, Recorder};
use d3b_tests::sim::random::Random;
use d3b_tests::{Cluster, Options};

/// How many faults there are in one run.
const FAULTS: u64 = 12;
/// How long a fault lasts where nothing goes on meanwhile.
const FAULT_MAX: Duration = Duration::from_secs(1);

/// Replicas, and everything that can be done to them.
struct World {
    cluster: Cluster,
    network: Network,
    faults: Vec<Faults>,
    paused: Vec<u32>,
}

impl World {
    fn new(random: &mut Random) -> World {
        let network = Network::new(3, random.word());
        let mut cluster = Cluster::prepare(Options::default().on(network.replicas()));
        let faults = cluster.ids().into_iter().map(|id| Faults::of(cluster.replica_mut(id))).collect();
        cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).start());
        cluster.wait_ready();
        World { cluster, network, faults, paused: Vec::new() }
    }

    /// Does something to one replica.
    fn break_something(&mut self, random: &mut Random) {
        let victim = *random.pick(&self.cluster.ids());
        let other = *random.pick(&self.cluster.ids().into_iter().filter(|id| *id != victim).collect::<Vec<_>>());
        let faults = &self.faults[victim as usize - 1];
        let path = *random.pick(&["/log.sqlite3", "/databases/", "/blobs/"]);
        let skip = u32::try_from(random.below(10)).expect("a small number");
        match random.below(10) {
            0 => {
                println!("kill {victim}");
                self.cluster.replica_mut(victim).kill();
                self.paused.retain(|id| *id != victim);
            }
            1 => self.pause(victim),
            2 => self.network.part(victim, other),
            3 => self.network.set(victim, other, CUT),
            4 => {
                let loss = random.below(10);
                self.network.set_all(Line {
                    loss,
                    doubled: 10,
                    overtaking: 10,
                    delay: 5,
                    jitter: 20,
                    ..Line::default()
                });
            }
            5 => faults.set(Rule { call: Call::Sync, path, skip: 0, count: 0, fault: Fault::Delay(200_000) }),
            6 => faults.set(Rule { call: Call::Write, path, skip, count: 1, fault: Fault::TearAndKill }),
            7 => faults.set(Rule { call: Call::Sync, path, skip, count: 1, fault: Fault::Fail(libc::EIO) }),
            8 => faults.set(Rule { call: Call::Write, path, skip, count: 1, fault: Fault::Tear(libc::ENOSPC) }),
            _ => faults.set_clock(*random.pick(&[-5 * 3_600_000, -20_000, 0, 20_000, 5 * 3_600_000])),
        }
    }

    fn pause(&mut self, victim: u32) {
        if self.cluster.live().contains(&victim) && !self.paused.contains(&victim) {
            println!("pause {victim}");
            self.cluster.replica(victim).pause();
            self.paused.push(victim);
        }
    }

    /// Makes everything good again, and waits until it is.
    fn repair(&mut self) {
        println!("repair");
        self.network.heal();
        self.faults.iter().for_each(Faults::clear);
        for id in self.paused.drain(..) {
            self.cluster.replica(id).resume();
        }
        for id in self.cluster.ids() {
            if self.cluster.replica(id).is_running() {
                let _ = self.cluster.replica_mut(id).has_ended();
            }
            if !self.cluster.replica(id).is_running() {
                self.cluster.replica_mut(id).start();
            }
        }
        self.cluster.ids().into_iter().for_each(|id| self.cluster.revive(id));
    }
}

#[test]
fn a_mixture_of_faults_keeps_histories_linearizable() {
    if !are_met(&[needs::NETWORK, needs::PRELOAD]) {
        return;
    }
    with_seeds(|random| {
        let mut world = World::new(random);
        let recorder = Recorder::start(&world.cluster, random, Keys::Undated);
        for _ in 0..FAULTS {
            world.break_something(random);
            recorder.wait_for_more_if_possible(20, FAULT_MAX);
            if random.percent(30) {
                world.repair();
                recorder.wait_for_more(20);
            }
        }
        world.repair();
        recorder.wait_for_more(50);
        recorder.finish().verify(&world.cluster);
    });
}
