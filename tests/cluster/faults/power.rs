//! Power cuts: what was not synced is gone, wherever it was.

use d3b_tests::faults::mounts::{Disk, own_mounts};
use d3b_tests::faults::needs::{self, are_met};
use d3b_tests::faults::preload::{Call, Fault, Faults, Rule};
use d3b_tests::faults::with_seeds;
use d3b_tests::recorder::{Keys, Recorder};
use d3b_tests::wait::{PATIENCE, wait_for};
use d3b_tests::{Cluster, Options};

/// A cluster whose replicas have a disk each; they are not started yet.
fn prepare() -> (Cluster, Vec<Disk>) {
    let cluster = Cluster::prepare(Options::default());
    let disks = cluster.ids().into_iter().map(|id| {
        let image = cluster.directory().join(format!("replica-{id}.ext4"));
        Disk::new(&image, &cluster.replica(id).data_dir, 128)
    });
    let disks = disks.collect();
    (cluster, disks)
}

fn start(cluster: &mut Cluster) {
    cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).start());
    cluster.wait_ready();
}

/// Cuts the power of some replicas, and gives it back.
fn cut(cluster: &mut Cluster, disks: &[Disk], ids: &[u32]) {
    println!("the power of replicas {ids:?} is cut");
    ids.iter().for_each(|id| disks[*id as usize - 1].cut_power());
    ids.iter().for_each(|id| cluster.replica_mut(*id).kill());
    ids.iter().for_each(|id| disks[*id as usize - 1].restore_power());
}

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    if !are_met(&[needs::LOOP]) {
        return;
    }
    own_mounts();
    with_seeds(|random| {
        let (mut cluster, disks) = prepare();
        start(&mut cluster);
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        for everyone in [true, false, true] {
            recorder.wait_for_more(60 + random.below(60));
            let mut ids = cluster.ids();
            if !everyone {
                ids = vec![*random.pick(&ids)];
            }
            cut(&mut cluster, &disks, &ids);
            ids.iter().for_each(|id| cluster.replica_mut(*id).start());
            cluster.wait_ready();
        }
        recorder.wait_for_more(60);
        recorder.finish().verify(&cluster);
        drop(disks);
    });
}

/// The proof that the test above could fail: with disks that lie, the same must be found out, by the replicas themselves
/// or by the checks.
#[test]
fn a_power_cut_on_lying_disks_is_found_out() {
    if !are_met(&[needs::LOOP, needs::PRELOAD]) {
        return;
    }
    own_mounts();
    with_seeds(|random| {
        let (mut cluster, disks) = prepare();
        let faults: Vec<Faults> = cluster.ids().into_iter().map(|id| Faults::of(cluster.replica_mut(id))).collect();
        start(&mut cluster);
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        recorder.wait_for_more(20);
        let lie = Rule { call: Call::Sync, path: "/", skip: 0, count: 0, fault: Fault::Lie };
        faults.iter().for_each(|faults| faults.set(lie));
        recorder.wait_for_more(100);
        let history = recorder.finish();
        faults.iter().for_each(Faults::clear);
        let all = cluster.ids();
        cut(&mut cluster, &disks, &all);
        all.iter().for_each(|id| cluster.replica_mut(*id).start());
        let refused = wait_for("each replica is ready or refuses", PATIENCE, || {
            let states = all.iter().map(|id| {
                let replica = cluster.replica_mut(*id);
                let running = replica.is_running() && replica.has_ended().is_none();
                if running { replica.leader().map(|_| false) } else { Some(true) }
            });
            let states: Option<Vec<bool>> = states.collect();
            states.map(|refused| refused.contains(&true))
        });
        if refused {
            println!("the replicas have noticed");
        } else {
            cluster.wait_ready();
            let violation = history.violation(&cluster).expect_err("what was acknowledged is gone");
            println!("the check has noticed: {violation}");
        }
        drop(disks);
    });
}
