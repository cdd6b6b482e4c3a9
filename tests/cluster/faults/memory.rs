//! Memory that one replica cannot have.

use std::process::ExitStatus;

use d3b_tests::Cluster;
use d3b_tests::faults::with_seeds;
use d3b_tests::recorder::{Keys, Recorder};
use d3b_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

/// Takes more memory of SQLite's than there is, and changes nothing.
fn hungry_statement() -> Value {
    json!({ "sql": "SELECT length(hex(randomblob(20000000)))" })
}

/// The same before SQLite sees it.
fn hungry_request() -> Value {
    json!({ "sql": "SELECT length(?)", "args": ["x".repeat(8_000_000)] })
}

#[test]
fn a_replica_out_of_memory_keeps_histories_linearizable() {
    with_seeds(|random| {
        let mut cluster = Cluster::start();
        let recorder = Recorder::start(&cluster, random, Keys::Dated);
        for leads in [true, false, true] {
            recorder.wait_for_more(50);
            let victim = if leads { cluster.leader() } else { cluster.follower() };
            let more = *random.pick(&[0, 100_000, 1_000_000, 8_000_000]);
            println!("replica {victim} may take {more} more bytes (it leads: {leads})");
            let said_before = cluster.replica(victim).said().len();
            cluster.replica(victim).process().limit_memory(more);
            // Whether it lives: it says that it cannot, or ends.
            wait_until("it meets its limit", PATIENCE, || refuses(&cluster, victim, &hungry_statement()));
            recorder.wait_for_more(100);
            if random.percent(50) {
                // Whatever comes of it.
                println!("a long request is refused: {}", refuses(&cluster, victim, &hungry_request()));
                recorder.wait_for_more(100);
            }
            if let Some(status) = cluster.replica_mut(victim).has_ended() {
                let said = cluster.replica(victim).said().split_off(said_before);
                println!("it has ended: {status}");
                assert!(says_why(status, &said), "{status}: {said}");
            }
            // A process that has the memory goes on from what is on disk.
            cluster.replica_mut(victim).kill();
            cluster.replica_mut(victim).start_ready();
        }
        recorder.wait_for_more(50);
        recorder.finish().verify(&cluster);
    });
}

/// Whether a replica does not answer what needs much memory.
fn refuses(cluster: &Cluster, id: u32, request: &Value) -> bool {
    let url = cluster.replica(id).url("/v1/db/record-0/query?level=stale");
    let answer = cluster.http.try_send("POST", &url, &[], request.to_string().as_bytes());
    answer.map_or(true, |answer| answer.status >= 500)
}

/// What fails in SQLite or at the system stops a replica in order. Where Rust itself gets no memory there is nothing left
/// to do it with: the process is aborted, with a line that says so.
fn says_why(status: ExitStatus, said: &str) -> bool {
    match status.code() {
        Some(code) => code != 0 && said.contains("ERROR") && said.contains("error: "),
        None => said.contains("memory allocation of"),
    }
}
