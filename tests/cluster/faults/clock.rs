//! Clocks that are wrong by hours, jump, and go back.

use std::time::SystemTime;

use d3b_tests::faults::needs::{self, are_met};
use d3b_tests::faults::preload::Faults;
use d3b_tests::faults::with_seeds;
use d3b_tests::recorder::{Keys, Recorder};
use d3b_tests::{Cluster, Options};
use serde_json::json;

const HOUR_MS: i64 = 3_600_000;
/// Log time may be ahead of the majority's clocks by ten seconds; and this machine is busy.
const AHEAD_SECONDS_MAX: u64 = 60;

fn start() -> (Cluster, Vec<Faults>) {
    let mut cluster = Cluster::prepare(Options::default());
    let faults = cluster.ids().into_iter().map(|id| Faults::of(cluster.replica_mut(id))).collect();
    cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).start());
    cluster.wait_ready();
    (cluster, faults)
}

/// The times of all entries, in order.
fn log_times(cluster: &Cluster, id: u32) -> Vec<String> {
    let mut times = Vec::new();
    let mut from = 1;
    loop {
        let page: serde_json::Value =
            cluster.replica(id).get(&format!("/v1/log?from={from}&limit=1000")).expect(200).json();
        let entries = page["entries"].as_array().expect("a list");
        // No-ops have no time that anything depends on.
        let sql = entries.iter().filter(|entry| entry["kind"] != "noop");
        times.extend(sql.filter_map(|entry| Some(entry["time"].as_str()?.to_owned())));
        match entries.last().and_then(|last| last["slot"].as_u64()) {
            Some(last) => from = last + 1,
            None => return times,
        }
    }
}

#[test]
fn clocks_that_jump_by_hours_keep_histories_linearizable() {
    if !are_met(&[needs::PRELOAD]) {
        return;
    }
    with_seeds(|random| {
        let (cluster, faults) = start();
        let recorder = Recorder::start(&cluster, random, Keys::Undated);
        for _ in 0..6 {
            recorder.wait_for_more(60);
            let jump =
                *random.pick(&[-30 * 24 * HOUR_MS, -5 * HOUR_MS, -10_000, 0, 10_000, HOUR_MS, 30 * 24 * HOUR_MS]);
            random.pick(&faults).set_clock(jump);
        }
        recorder.wait_for_more(60);
        recorder.finish().verify(&cluster);
        let times = log_times(&cluster, 1);
        assert!(times.len() > 100, "{} entries have a time", times.len());
        assert!(times.is_sorted(), "log time goes back");
    });
}

/// What `CURRENT_TIMESTAMP` says, as seconds.
fn log_time(cluster: &Cluster, id: u32) -> u64 {
    let insert = "INSERT INTO times(at) VALUES(unixepoch('now')) RETURNING at";
    cluster.replica(id).sql("clock", insert, json!([]))[0][0].as_u64().expect("a time")
}

#[test]
fn one_clock_that_is_ahead_does_not_carry_log_time_away() {
    if !are_met(&[needs::PRELOAD]) {
        return;
    }
    let (cluster, faults) = start();
    cluster.create("clock");
    cluster.replica(1).sql("clock", "CREATE TABLE times(at INTEGER)", json!([]));
    let leader = cluster.leader();
    let mut last = log_time(&cluster, leader);
    for hours in [5, -5, 24 * 365, 0] {
        faults[leader as usize - 1].set_clock(hours * HOUR_MS);
        for id in cluster.ids() {
            let time = log_time(&cluster, id);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
            assert!(time >= last, "log time goes back from {last} to {time}");
            assert!(time <= now + AHEAD_SECONDS_MAX, "log time is {} s ahead", time - now);
            last = time;
        }
    }
    cluster.assert_same_everywhere();
}
