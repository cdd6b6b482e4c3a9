//! Replicas that hear one another badly, one way only, or not at all.

use std::time::Duration;

use d3b_tests::faults::needs::{self, are_met};
use d3b_tests::faults::network::{CUT, Line, Network};
use d3b_tests::faults::with_seeds;
use d3b_tests::recorder::{Keys, Recorder};
use d3b_tests::sim::random::Random;
use d3b_tests::{Cluster, Options, wait_until};

/// Three replicas on hosts of their own.
fn start(random: &mut Random) -> (Cluster, Network) {
    let network = Network::new(3, random.word());
    (Cluster::with(Options::default().on(network.replicas())), network)
}

/// Lets clients work on them, and checks what they were told.
fn at_work(test: impl Fn(&mut Random, &Cluster, &Network, &Recorder)) {
    if !are_met(&[needs::NETWORK]) {
        return;
    }
    with_seeds(|random| {
        let (cluster, network) = start(random);
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        test(random, &cluster, &network, &recorder);
        recorder.wait_for_more(100);
        recorder.finish().verify(&cluster);
    });
}

#[test]
fn a_leader_that_is_cut_off_answers_nothing_and_the_others_go_on() {
    at_work(|_, cluster, network, recorder| {
        for _ in 0..3 {
            recorder.wait_for_more(50);
            let alone = cluster.leader();
            let others = cluster.others(alone);
            others.iter().for_each(|id| network.part(alone, *id));
            cluster.leader_among(&others);
            recorder.wait_for_more(100);
            // The clients reach it as before; it must not tell them anything.
            cluster.replica(alone).wait_no_quorum();
            network.heal();
            cluster.leader();
        }
    });
}

/// One that hears and is not heard, or is heard and does not hear, must neither stop the others nor be stopped by them
/// for good.
#[test]
fn lines_that_are_cut_one_way_leave_a_leader() {
    at_work(|random, cluster, network, recorder| {
        for round in 0..6 {
            recorder.wait_for_more(50);
            let leader = cluster.leader();
            let others = cluster.others(leader);
            let (one, two) = (others[0], others[1]);
            match round {
                0 => others.iter().for_each(|id| network.set(leader, *id, CUT)),
                1 => others.iter().for_each(|id| network.set(*id, leader, CUT)),
                2 => network.set(leader, *random.pick(&others), CUT),
                3 => network.set(*random.pick(&others), leader, CUT),
                // Everybody reaches somebody, in a ring.
                4 => [(leader, one), (one, two), (two, leader)]
                    .iter()
                    .for_each(|(from, to)| network.set(*from, *to, CUT)),
                _ => network.part(leader, one),
            }
            if round != 4 {
                // A majority that can hear each other is there, so there must be progress.
                recorder.wait_for_more(100);
            }
            network.heal();
            cluster.leader();
        }
    });
}

#[test]
fn loss_delay_doubling_and_reordering_keep_histories_linearizable() {
    at_work(|random, cluster, network, recorder| {
        for _ in 0..3 {
            let bad = Line {
                cut: false,
                loss: random.below(8),
                doubled: random.below(20),
                overtaking: random.below(30),
                delay: random.below(10),
                jitter: random.below(20),
            };
            network.set_all(bad);
            recorder.wait_for_more(100);
            // And one line that is much worse than the others.
            let (from, to) = *random.pick(&[(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)]);
            network.set(from, to, Line { loss: 40, ..bad });
            recorder.wait_for_more(100);
        }
        network.heal();
        cluster.leader();
    });
}

/// TCP would ask the other end of a line again after twice the time each time, and so would stay silent after a cut for as
/// long as the cut has lasted.
#[test]
fn links_over_a_line_that_is_cut_are_given_up_and_made_anew() {
    /// Many times what it takes, and less than the kernel or a test would be patient by themselves.
    const GIVEN_UP: Duration = Duration::from_secs(15);
    if !are_met(&[needs::NETWORK]) {
        return;
    }
    with_seeds(|random| {
        let (cluster, network) = start(random);
        for leads in [true, false, true] {
            let alone = if leads { cluster.leader() } else { cluster.follower() };
            let others = cluster.others(alone);
            others.iter().for_each(|id| network.part(alone, *id));
            wait_until("whoever speaks over the cut has given its connection up", GIVEN_UP, || {
                others.iter().all(|id| !cluster.replica(alone).speaks_to(cluster.replica(*id)))
            });
            let leader = cluster.leader_among(&others);
            wait_until("the leader has given its connection up", GIVEN_UP, || {
                !cluster.replica(leader).speaks_to(cluster.replica(alone))
            });
            network.heal();
            wait_until("the one that was alone takes part again", GIVEN_UP, || cluster.replica(alone).is_ready());
        }
    });
}
