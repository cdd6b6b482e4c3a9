//! A load of keyed writers that remembers what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, Replica};
use crate::http::Http;
use crate::wait::{PATIENCE, wait_until};

/// A write: the writer's number, and which of its writes.
pub type Write = (u64, u64);

/// What the writers know at the end.
#[derive(Debug, Default)]
pub struct Record {
    /// Told to have happened.
    pub acknowledged: BTreeSet<Write>,
    /// Sent, and nothing is known.
    pub unknown: BTreeSet<Write>,
}

/// Writers at work. Each sends one write after the other, every one with a key of its own, to one replica, and moves
/// on to the next replica with the same key when that one does not answer.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Record>>,
}

/// The database of the load.
pub const DB: &str = "load";

impl Load {
    /// Makes the table and lets writers begin, spread over all replicas.
    #[must_use]
    pub fn start(cluster: &Cluster, writers: u64) -> Load {
        cluster.create(DB);
        // No key and no uniqueness: a write that happens twice must be seen.
        let first = cluster.replica(cluster.live()[0]);
        first.sql(DB, "CREATE TABLE writes(writer INTEGER, number INTEGER)", json!([]));
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writers = (0..writers)
            .map(|writer| {
                let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
                let endpoints = cluster.endpoints();
                std::thread::spawn(move || work(writer, &endpoints, &stop, &acknowledged))
            })
            .collect();
        Load { stop, acknowledged, writers }
    }

    /// Waits until so many more writes have been acknowledged.
    #[track_caller]
    pub fn wait_for_more(&self, count: u64) {
        let goal = self.acknowledged.load(Ordering::Acquire) + count;
        wait_until(&format!("{count} more writes are acknowledged"), PATIENCE, || {
            assert!(
                self.writers.iter().all(|writer| !writer.is_finished()),
                "a writer has met an answer that it must not get"
            );
            self.acknowledged.load(Ordering::Acquire) >= goal
        });
    }

    /// Lets the writers end and collects what they know.
    ///
    /// # Panics
    /// When a writer was given an answer that it must not get.
    #[must_use]
    #[track_caller]
    pub fn finish(mut self) -> Record {
        self.stop.store(true, Ordering::Release);
        let mut all = Record::default();
        for writer in self.writers.drain(..) {
            let record = writer.join().expect("a writer gets answers that it may get");
            all.acknowledged.extend(record.acknowledged);
            all.unknown.extend(record.unknown);
        }
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for writer in self.writers.drain(..) {
            // Its panic, if any, was printed; this one is on its way out for another reason.
            let _ = writer.join();
        }
    }
}

fn work(writer: u64, endpoints: &[String], stop: &AtomicBool, acknowledged: &AtomicU64) -> Record {
    let http = Http::persistent(Duration::from_secs(15));
    let mut endpoint = usize::try_from(writer).expect("few writers");
    let mut record = Record::default();
    for number in 0.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let key = uuid::Uuid::now_v7().to_string();
        let body = json!({ "sql": "INSERT INTO writes VALUES(?, ?)", "args": [writer, number] }).to_string();
        loop {
            let url = format!("{}/v1/db/{DB}/query?timeout=3s", endpoints[endpoint % endpoints.len()]);
            let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
            match http.try_send("POST", &url, &headers, body.as_bytes()) {
                Ok(answer) if answer.status == 200 => {
                    record.acknowledged.insert((writer, number));
                    acknowledged.fetch_add(1, Ordering::AcqRel);
                    break;
                }
                // It may come to pass or may have come to pass: the same key again tells.
                Ok(answer) if matches!(answer.status, 429 | 503 | 504) => {}
                Ok(answer) => panic!("writer {writer}, write {number}: {} {}", answer.status, answer.text()),
                Err(_) => {}
            }
            if stop.load(Ordering::Acquire) {
                record.unknown.insert((writer, number));
                break;
            }
            endpoint += 1;
            std::thread::yield_now();
        }
    }
    record
}

impl Record {
    /// Demands that a replica holds every acknowledged write exactly once, every other one at most once, and none that
    /// nobody sent.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn verify(&self, replica: &Replica) {
        let rows = replica.sql(DB, "SELECT writer, number, count(*) FROM writes GROUP BY 1, 2", json!([]));
        let number = |value: &Value| value.as_u64().expect("a number that a writer sent");
        let found: BTreeMap<Write, u64> = rows
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| ((number(&row[0]), number(&row[1])), number(&row[2])))
            .collect();
        let lost: Vec<_> = self.acknowledged.iter().filter(|write| !found.contains_key(write)).collect();
        let doubled: Vec<_> = found.iter().filter(|(_, count)| **count > 1).collect();
        let invented: Vec<_> =
            found.keys().filter(|write| !self.acknowledged.contains(write) && !self.unknown.contains(write)).collect();
        let id = replica.id;
        assert!(lost.is_empty(), "replica {id} has lost {lost:?}");
        assert!(doubled.is_empty(), "replica {id} has doubled {doubled:?}");
        assert!(invented.is_empty(), "replica {id} has what nobody sent: {invented:?}");
    }

    /// [`Record::verify`] on every running replica.
    #[track_caller]
    pub fn verify_everywhere(&self, cluster: &Cluster) {
        assert!(!self.acknowledged.is_empty(), "a load that wrote nothing proves nothing");
        for id in cluster.live() {
            self.verify(cluster.replica(id));
        }
    }
}
