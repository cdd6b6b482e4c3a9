//! Replicas that are killed and paused.

use d3b_tests::faults::with_seeds;
use d3b_tests::recorder::{Keys, Recorder};
use d3b_tests::sample::Noise;
use d3b_tests::sim::random::Random;
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, wait_until};

fn others(cluster: &Cluster, than: u32) -> Vec<u32> {
    cluster.live().into_iter().filter(|id| *id != than).collect()
}

#[test]
fn concurrent_histories_without_any_fault_are_linearizable() {
    with_seeds(|random| {
        let cluster = Cluster::start();
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        recorder.wait_for_more(1_000);
        recorder.finish().verify(&cluster);
    });
}

#[test]
fn kills_of_any_replica_keep_histories_linearizable() {
    with_seeds(|random| {
        let mut cluster = Cluster::start();
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        for _ in 0..4 {
            recorder.wait_for_more(100);
            let victim = *random.pick(&cluster.ids());
            println!("kill {victim}");
            cluster.replica_mut(victim).kill();
            if random.percent(40) {
                // A majority, or all of them: nothing goes on meanwhile.
                let second = *random.pick(&cluster.live());
                println!("kill {second}");
                cluster.replica_mut(second).kill();
                cluster.replica_mut(second).start();
            } else {
                recorder.wait_for_more(50);
            }
            cluster.replica_mut(victim).start();
        }
        cluster.wait_ready();
        recorder.wait_for_more(100);
        recorder.finish().verify(&cluster);
    });
}

/// A leader that sleeps through an election, with requests in its hands, must not tell anything from before.
#[test]
fn pauses_longer_than_an_election_keep_histories_linearizable() {
    with_seeds(|random| {
        let cluster = Cluster::start();
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        for _ in 0..4 {
            recorder.wait_for_more(60);
            let paused = cluster.leader();
            println!("pause the leader, {paused}");
            cluster.replica(paused).pause();
            let others = others(&cluster, paused);
            let next = cluster.leader_among(&others);
            recorder.wait_for_more(60);
            if random.percent(50) {
                // Both of its followers at once, so that it wakes to a group that sleeps.
                println!("pause {others:?}, resume {paused}");
                others.iter().for_each(|id| cluster.replica(*id).pause());
                cluster.replica(paused).resume();
                cluster.replica(paused).wait_no_quorum();
                others.iter().for_each(|id| cluster.replica(*id).resume());
            } else {
                println!("resume {paused} under {next}");
                cluster.replica(paused).resume();
            }
        }
        recorder.wait_for_more(100);
        recorder.finish().verify(&cluster);
    });
}

#[test]
fn a_file_survives_its_origin_that_dies_right_after_the_answer() {
    with_seeds(|random: &mut Random| {
        let mut cluster = Cluster::start();
        cluster.create("shop");
        for round in 0..3 {
            let origin = *random.pick(&cluster.ids());
            let noise = Noise::new(random.word(), 2_000_000);
            let path = format!("/v1/db/shop/media/film-{round}.mp4");
            cluster.replica(origin).put(&path, &noise.clone().bytes()).expect(201);
            println!("kill the origin, {origin}");
            cluster.replica_mut(origin).kill();
            for id in cluster.live() {
                let replica = cluster.replica(id);
                wait_until(&format!("replica {id} goes on"), PATIENCE, || {
                    replica.get(&format!("{path}?level=linearizable&timeout=2s")).status == 200
                });
                assert!(replica.get(&path).expect(200).body == noise.clone().bytes(), "replica {id} gives other bytes");
                replica.wait_for_blob(&noise.clone().digest());
            }
            cluster.replica_mut(origin).start_ready();
        }
        cluster.assert_same_everywhere();
    });
}
