//! Linearizable reads, and writes that happen once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use d3b::Code;
use d3b::api::RequestOutcome;
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Http, wait_until};
use serde_json::{Value, json};

/// A database with one number in it.
fn make_register(cluster: &Cluster) {
    cluster.create("register");
    let replica = cluster.replica(1);
    replica.sql("register", "CREATE TABLE register(n INTEGER)", json!([]));
    replica.sql("register", "INSERT INTO register VALUES(0)", json!([]));
}

fn read(http: &Http, url: &str) -> Option<i64> {
    let body = json!({"sql": "SELECT n FROM register"}).to_string();
    let url = format!("{url}/v1/db/register/query?timeout=5s");
    let answer = http.try_send("POST", &url, &[("content-type", "application/json")], body.as_bytes()).ok()?;
    match answer.status {
        200 => answer.json::<Value>()["rows"][0][0].as_i64(),
        503 | 504 => None,
        other => panic!("a read was answered with {other}: {}", answer.text()),
    }
}

#[test]
fn paused_leader_gives_no_stale_answer() {
    let cluster = Cluster::start();
    make_register(&cluster);
    for round in 1..=4 {
        let paused = cluster.leader();
        let other = cluster.follower();
        let replica = cluster.replica(paused);
        assert_eq!(read(&cluster.http, &replica.url("")), Some(round - 1));
        replica.pause();
        // The others elect a leader and go on.
        wait_until("the others have another leader", PATIENCE, || {
            cluster.replica(other).leader().is_some_and(|leader| leader != paused)
        });
        cluster.replica(other).sql("register", "UPDATE register SET n = ?", json!([round]));
        std::thread::scope(|scope| {
            // These reads begin after the write was acknowledged; the paused replica finds them when it wakes, before
            // anything can have told it that it was deposed.
            let (connected, connections) = std::sync::mpsc::channel();
            let reads: Vec<_> = (0..8)
                .map(|_| {
                    let connected = connected.clone();
                    let (http, url) = (Http::new(), replica.url(""));
                    scope.spawn(move || {
                        connected.send(()).expect("the test waits");
                        read(&http, &url)
                    })
                })
                .collect();
            (0..8).for_each(|_| connections.recv().expect("every reader begins"));
            replica.resume();
            for read in reads {
                let value = read.join().expect("a reader gets answers that it may get");
                assert!(value.is_none_or(|value| value == round), "round {round}: a stale {value:?}");
            }
        });
        wait_until("the paused replica follows", PATIENCE, || read(&cluster.http, &replica.url("")) == Some(round));
    }
    cluster.assert_same_everywhere();
}

/// Increments once, however often it must ask; gives the number that it made.
fn increment(http: &Http, endpoints: &[String], first: usize) -> i64 {
    let key = uuid::Uuid::now_v7().to_string();
    let body = json!({"sql": "UPDATE register SET n = n + 1 RETURNING n"}).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
    for attempt in 0..10_000 {
        let url = format!("{}/v1/db/register/query?timeout=3s", endpoints[(first + attempt) % endpoints.len()]);
        match http.try_send("POST", &url, &headers, body.as_bytes()) {
            Ok(answer) if answer.status == 200 => {
                return answer.json::<Value>()["rows"][0][0].as_i64().expect("a number");
            }
            Ok(answer) if matches!(answer.status, 429 | 503 | 504) => {}
            Ok(answer) => panic!("an increment was answered with {}: {}", answer.status, answer.text()),
            Err(_) => {}
        }
    }
    panic!("an increment was never answered");
}

/// Everybody who was told a number has seen it before anybody asks next.
#[test]
fn reads_never_go_back_while_leaders_come_and_go() {
    let mut cluster = Cluster::start();
    make_register(&cluster);
    let endpoints = cluster.endpoints();
    let (stop, floor) = (AtomicBool::new(false), AtomicI64::new(0));
    let (reads, made) = (AtomicI64::new(0), std::sync::Mutex::new(BTreeSet::new()));
    std::thread::scope(|scope| {
        // Whatever happens, the others end when this scope does.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        let stopping = Stop(&stop);
        for worker in 0..3 {
            let (stop, floor, reads, made, endpoints) = (&stop, &floor, &reads, &made, &endpoints);
            scope.spawn(move || {
                let http = Http::persistent(Duration::from_secs(15));
                while !stop.load(Ordering::Acquire) {
                    let before = floor.load(Ordering::Acquire);
                    let value = increment(&http, endpoints, worker);
                    assert!(made.lock().expect("no panic while held").insert(value), "{value} was made twice");
                    // A repeated request may tell a number that was made before another one asked.
                    floor.fetch_max(value, Ordering::AcqRel);
                    assert!(value > before || before == 0, "an increment made {value} after {before} had been seen");
                }
            });
            scope.spawn(move || {
                let http = Http::persistent(Duration::from_secs(15));
                while !stop.load(Ordering::Acquire) {
                    let before = floor.load(Ordering::Acquire);
                    let Some(value) = read(&http, &endpoints[worker]) else { continue };
                    assert!(value >= before, "replica {} gave {value} after {before} had been seen", worker + 1);
                    floor.fetch_max(value, Ordering::AcqRel);
                    reads.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        let wait_for_more = |count: i64| {
            let (made_now, read_now) = (floor.load(Ordering::Acquire), reads.load(Ordering::Acquire));
            wait_until("reads and increments go on", PATIENCE, || {
                floor.load(Ordering::Acquire) >= made_now + count && reads.load(Ordering::Acquire) >= read_now + count
            });
        };
        for _ in 0..2 {
            wait_for_more(50);
            let leader = cluster.leader();
            cluster.replica(leader).pause();
            wait_for_more(20);
            cluster.replica(leader).resume();
            wait_for_more(50);
            let leader = cluster.leader();
            cluster.replica_mut(leader).kill();
            wait_for_more(20);
            cluster.replica_mut(leader).start_ready();
        }
        drop(stopping);
    });
    let made = made.into_inner().expect("no panic while held");
    for id in cluster.ids() {
        let n = cluster.replica(id).value("register", "SELECT n FROM register");
        assert_eq!(n, made.len(), "every increment that was answered, once");
    }
    cluster.assert_same_everywhere();
}

#[test]
fn same_key_is_executed_once_across_replicas_and_failover() {
    let mut cluster = Cluster::start();
    cluster.create("shop");
    cluster.replica(1).sql("shop", "CREATE TABLE orders(id INTEGER PRIMARY KEY, what TEXT)", json!([]));
    let key = uuid::Uuid::now_v7().to_string();
    let send = |url: String, what: &str| {
        let body = json!({"sql": "INSERT INTO orders(what) VALUES(?) RETURNING id", "args": [what]}).to_string();
        let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
        Http::new().send("POST", &url, &headers, body.as_bytes())
    };
    let url = |cluster: &Cluster, id: u32| cluster.replica(id).url("/v1/db/shop/query");

    // All at once, over every replica.
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let requests: Vec<_> = (0..12)
            .map(|n| {
                let (send, url) = (&send, url(&cluster, n % 3 + 1));
                scope.spawn(move || send(url, "tea").expect(200).json::<Value>())
            })
            .collect();
        requests.into_iter().map(|request| request.join().expect("an answer")).collect()
    });
    let first = &answers[0];
    assert!(answers.iter().all(|answer| answer == first), "{answers:?}");

    // After the leader's death, and after everybody's.
    let leader = cluster.leader();
    cluster.replica_mut(leader).kill();
    for id in cluster.live() {
        cluster.replica_mut(id).wait_ready();
        assert_eq!(&send(url(&cluster, id), "tea").expect(200).json::<Value>(), first);
    }
    cluster.replica_mut(leader).start_ready();
    cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).kill());
    cluster.ids().into_iter().for_each(|id| cluster.replica_mut(id).start());
    cluster.wait_ready();
    for id in cluster.ids() {
        assert_eq!(&send(url(&cluster, id), "tea").expect(200).json::<Value>(), first);
        send(url(&cluster, id), "coffee").expect_problem(Code::KeyReused);
        let outcome: RequestOutcome =
            cluster.replica(id).get(&format!("/v1/db/shop/requests/{key}")).expect(200).json();
        assert_eq!((outcome.key.as_str(), outcome.outcome.as_str()), (key.as_str(), "ok"));
        assert_eq!(Some(outcome.slot), first["slot"].as_u64());
        cluster.replica(id).get("/v1/db/shop/requests/never-used").expect(404);
        assert_eq!(cluster.replica(id).sql("shop", "SELECT id, what FROM orders", json!([])), json!([[1, "tea"]]));
    }
    cluster.assert_same_everywhere();
}

#[test]
fn time_and_chance_are_the_same_on_every_replica() {
    let cluster = Cluster::start();
    cluster.create("dice");
    let replica = cluster.replica(2);
    replica.sql(
        "dice",
        "CREATE TABLE rolls(id INTEGER PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP, n INTEGER DEFAULT (random()), \
         b BLOB DEFAULT (randomblob(8)), day REAL DEFAULT (julianday('now')))",
        json!([]),
    );
    for id in [1, 2, 3, 1, 2, 3] {
        cluster.replica(id).sql("dice", "INSERT INTO rolls DEFAULT VALUES", json!([]));
    }
    replica.sql("dice", "CREATE TABLE mixed AS SELECT id, n FROM rolls ORDER BY random()", json!([]));
    let everything = "SELECT * FROM rolls UNION ALL SELECT rowid, id, n, NULL, NULL FROM mixed";
    let first = cluster.replica(1).sql("dice", everything, json!([]));
    assert_eq!(first.as_array().map(Vec::len), Some(12));
    for id in [2, 3] {
        assert_eq!(cluster.replica(id).sql("dice", everything, json!([])), first);
    }
    cluster.assert_same_everywhere();
}
