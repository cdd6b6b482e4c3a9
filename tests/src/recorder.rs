//! Records what concurrent clients asked for and were told, while whatever happens to the replicas, and checks that a
//! single server could have told it: linearizable, every acknowledged write done once, every refused one never.
//!
//! Clients write, swap, delete and read registers over all replicas; a write that is not answered is asked for again at
//! the next replica with the same key. Every change of a register carries a token into a table beside it, in the same
//! batch, without any uniqueness: what the tokens say at the end decides what came of writes that nobody answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use d3b::{Code, Digest};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Replica};
use crate::http::{Http, Response};
use crate::linearizability::{Action, Observed, Operation, check};
use crate::sample::Noise;
use crate::sim::random::Random;
use crate::wait::{PATIENCE, back_off, wait_until};

/// How many registers there are: few, so that clients meet.
const REGISTERS: u64 = 6;
/// They lie in so many databases.
const DATABASES: u64 = 2;
/// How many clients there are.
const CLIENTS: u64 = 6;
/// How long a client waits for one answer; replicas are asked to answer sooner, but one that is paused does not.
const PATIENCE_OF_A_CLIENT: Duration = Duration::from_secs(3);
/// A client that has asked for so long records that it does not know.
const GIVE_UP: Duration = Duration::from_secs(25);
/// The largest media file.
const MEDIA_MAX: u64 = 100_000;

/// How clients name what they ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// With a time in the key, as is advised.
    Dated,
    /// Without, for clocks that cannot be trusted.
    Undated,
}

/// A change or a read of a register.
#[derive(Debug, Clone)]
struct Event {
    register: u64,
    /// What it left in the table of tokens if it was done; reads leave nothing.
    token: Option<u64>,
    operation: Operation,
}

/// What one client remembers.
#[derive(Debug, Default)]
struct Notes {
    events: Vec<Event>,
    /// Stale reads: the register, the value, and when it was told.
    stale: Vec<(u64, u64, u64)>,
    /// Media files that were acknowledged.
    media: BTreeMap<String, Digest>,
}

/// Everybody's clock, and what they must know of one another.
#[derive(Debug)]
struct Shared {
    began: Instant,
    stop: AtomicBool,
    answered: AtomicU64,
    endpoints: Vec<String>,
    keys: Keys,
    seed: u64,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Notes>>,
}

/// The database of a register.
fn database(register: u64) -> String {
    format!("record-{}", register % DATABASES)
}

impl Recorder {
    /// Makes the tables and lets clients begin, spread over all replicas.
    #[must_use]
    #[track_caller]
    pub fn start(cluster: &Cluster, random: &mut Random, keys: Keys) -> Recorder {
        for db in (0..DATABASES).map(database) {
            cluster.create(&db);
            let replica = cluster.replica(cluster.live()[0]);
            replica.sql(&db, "CREATE TABLE registers(name INTEGER PRIMARY KEY, value INTEGER NOT NULL)", json!([]));
            replica.sql(&db, "CREATE TABLE tokens(token INTEGER NOT NULL)", json!([]));
        }
        let shared = Arc::new(Shared {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            endpoints: cluster.endpoints(),
            keys,
            seed: random.word(),
        });
        let clients = (0..CLIENTS)
            .map(|number| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || Client::new(number, shared).work())
            })
            .collect();
        Recorder { shared, clients }
    }

    /// Waits until so many more operations were answered: whatever was done to the replicas, they must go on.
    #[track_caller]
    pub fn wait_for_more(&self, count: u64) {
        let goal = self.shared.answered.load(Ordering::Acquire) + count;
        wait_until(&format!("{count} more operations are answered"), PATIENCE, || {
            assert!(
                self.clients.iter().all(|client| !client.is_finished()),
                "a client has met an answer that it must not get"
            );
            self.shared.answered.load(Ordering::Acquire) >= goal
        });
    }

    /// The same for a group that may not be able to go on: waits no longer than so long.
    pub fn wait_for_more_if_possible(&self, count: u64, limit: Duration) {
        let goal = self.shared.answered.load(Ordering::Acquire) + count;
        let deadline = Instant::now() + limit;
        wait_until("they go on, or the time is over", limit + PATIENCE, || {
            self.shared.answered.load(Ordering::Acquire) >= goal || Instant::now() >= deadline
        });
    }

    /// Lets the clients end, after what they have under way is answered, and collects what they know.
    ///
    /// # Panics
    /// When a client was given an answer that it must not get.
    #[must_use]
    #[track_caller]
    pub fn finish(mut self) -> History {
        self.shared.stop.store(true, Ordering::Release);
        let mut history = History { shared: Arc::clone(&self.shared), notes: Notes::default() };
        for client in self.clients.drain(..) {
            let notes = client.join().expect("a client gets answers that it may get");
            history.notes.events.extend(notes.events);
            history.notes.stale.extend(notes.stale);
            history.notes.media.extend(notes.media);
        }
        history
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for client in self.clients.drain(..) {
            // Its panic, if any, was printed; this one is on its way out for another reason.
            let _ = client.join();
        }
    }
}

/// What became of a request.
enum Told {
    Done(Response),
    /// An expectation was not met.
    Refused,
    Unknown,
}

struct Client {
    number: u64,
    shared: Arc<Shared>,
    random: Random,
    http: Http,
    endpoint: usize,
    /// How many changes it has asked for.
    changes: u64,
    /// The value of each register when it was last looked at.
    seen: BTreeMap<u64, u64>,
    notes: Notes,
}

impl Client {
    fn new(number: u64, shared: Arc<Shared>) -> Client {
        let random = Random::new(shared.seed.wrapping_add(number));
        let endpoint = usize::try_from(number).expect("few clients");
        let http = Http::persistent(PATIENCE_OF_A_CLIENT);
        Client { number, shared, random, http, endpoint, changes: 0, seen: BTreeMap::new(), notes: Notes::default() }
    }

    fn work(mut self) -> Notes {
        while !self.shared.stop.load(Ordering::Acquire) {
            let register = self.random.below(REGISTERS);
            match self.random.below(100) {
                0..35 => self.read(register),
                35..60 => self.change(register, |_, to| Action::Write(to)),
                60..80 => self.change(register, |from, to| Action::Swap { from, to }),
                80..87 => self.change(register, |_, _| Action::Delete),
                87..94 => self.read_stale(register),
                _ => self.store_media(),
            }
        }
        self.notes
    }

    /// Asks one replica after the other until one answers, or it takes too long.
    fn ask(&mut self, method: &str, path: &str, key: Option<&str>, body: &[u8]) -> Told {
        let began = Instant::now();
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        loop {
            let endpoint = &self.shared.endpoints[self.endpoint % self.shared.endpoints.len()];
            match self.http.try_send(method, &format!("{endpoint}{path}"), &headers, body) {
                Ok(answer) if matches!(answer.status, 200 | 201) => {
                    self.shared.answered.fetch_add(1, Ordering::AcqRel);
                    // Now here, now there.
                    if self.random.percent(20) {
                        self.endpoint += 1;
                    }
                    return Told::Done(answer);
                }
                Ok(answer) if answer.status == 409 && answer.problem().code == Code::ExpectationFailed => {
                    self.shared.answered.fetch_add(1, Ordering::AcqRel);
                    return Told::Refused;
                }
                // It may come to pass or may have come to pass: the same key again tells.
                Ok(answer) if matches!(answer.status, 429 | 503 | 504 | 507) => {}
                Ok(answer) => panic!("{method} {endpoint}{path} {key:?}: {} {}", answer.status, answer.text()),
                Err(_) => {}
            }
            if began.elapsed() > GIVE_UP {
                return Told::Unknown;
            }
            self.endpoint += 1;
            back_off();
        }
    }

    fn note(&mut self, register: u64, token: Option<u64>, action: Action, observed: Observed, called: u64) {
        let operation = Operation { action, observed, called, returned: self.shared.now() };
        self.notes.events.push(Event { register, token, operation });
    }

    fn read(&mut self, register: u64) {
        let called = self.shared.now();
        let body = json!({"sql": "SELECT value FROM registers WHERE name = ?", "args": [register]}).to_string();
        let path = format!("/v1/db/{}/query?timeout=1s", database(register));
        let Told::Done(answer) = self.ask("POST", &path, None, body.as_bytes()) else { return };
        let value = value_in(&answer);
        self.seen.insert(register, value);
        self.note(register, None, Action::Read, Observed::Value(value), called);
    }

    /// What one replica has, at any age: it must be something that somebody has asked for at some time.
    fn read_stale(&mut self, register: u64) {
        let endpoint = self.random.pick(&self.shared.endpoints);
        let url = format!("{endpoint}/v1/db/{}/query?level=stale", database(register));
        let body = json!({"sql": "SELECT value FROM registers WHERE name = ?", "args": [register]}).to_string();
        let headers = [("content-type", "application/json")];
        let Ok(answer) = self.http.try_send("POST", &url, &headers, body.as_bytes()) else { return };
        match answer.status {
            200 => self.notes.stale.push((register, value_in(&answer), self.shared.now())),
            // One that was started just now may not know of the database or its table yet.
            400 | 404 | 503 => {}
            _ => panic!("POST {url}: {} {}", answer.status, answer.text()),
        }
    }

    fn change(&mut self, register: u64, action: impl FnOnce(u64, u64) -> Action) {
        self.changes += 1;
        let token = (self.number + 1) * 1_000_000 + self.changes;
        let from = self.seen.get(&register).copied().unwrap_or(0);
        // A register that has nothing is written, not swapped.
        let action = match action(from, token) {
            Action::Swap { from: 0, to } => Action::Write(to),
            other => other,
        };
        let statement = match action {
            Action::Write(to) => json!({"sql": "INSERT INTO registers VALUES(?, ?) ON CONFLICT(name) \
                DO UPDATE SET value = excluded.value", "args": [register, to], "expect": {"rows_affected": 1}}),
            Action::Swap { from, to } => json!({"sql": "UPDATE registers SET value = ? WHERE name = ? AND value = ?",
                "args": [to, register, from], "expect": {"rows_affected": 1}}),
            Action::Delete => json!({"sql": "DELETE FROM registers WHERE name = ?", "args": [register],
                "expect": {"rows_affected": 1}}),
            Action::Read => unreachable!("a read changes nothing"),
        };
        let body = json!({"statements": [statement, {"sql": "INSERT INTO tokens VALUES(?)", "args": [token]}]});
        let key = self.key(token);
        let path = format!("/v1/db/{}/batch?timeout=1s", database(register));
        let called = self.shared.now();
        let observed = match self.ask("POST", &path, Some(&key), body.to_string().as_bytes()) {
            Told::Done(_) => Observed::Done(true),
            Told::Refused => Observed::Done(false),
            Told::Unknown => Observed::Unknown,
        };
        match (action, observed) {
            (Action::Write(to) | Action::Swap { to, .. }, Observed::Done(true)) => self.seen.insert(register, to),
            (Action::Delete, Observed::Done(_)) => self.seen.insert(register, 0),
            _ => None,
        };
        self.note(register, Some(token), action, observed, called);
    }

    fn key(&self, token: u64) -> String {
        match self.shared.keys {
            Keys::Dated => uuid::Uuid::now_v7().to_string(),
            Keys::Undated => format!("recorder-{:x}-{token}", self.shared.seed),
        }
    }

    /// Stores a file, and looks whether the replica that is asked next has it.
    fn store_media(&mut self) {
        self.changes += 1;
        let token = (self.number + 1) * 1_000_000 + self.changes;
        let noise = Noise::new(self.random.word(), self.random.below(MEDIA_MAX));
        let (digest, bytes) = (noise.clone().digest(), noise.bytes());
        let name = format!("file-{token}");
        let path = format!("/v1/db/{}/media/{name}?timeout=1s", database(0));
        let key = self.key(token);
        let Told::Done(_) = self.ask("PUT", &path, Some(&key), &bytes) else { return };
        self.notes.media.insert(name.clone(), digest);
        self.endpoint += 1;
        let path = format!("/v1/db/{}/media/{name}?level=linearizable&timeout=1s", database(0));
        if let Told::Done(answer) = self.ask("GET", &path, None, b"") {
            assert!(Digest::of(&answer.body) == digest, "{path} gives {} other bytes", answer.body.len());
        }
    }
}

/// The value that a query found; 0 where it found none.
fn value_in(answer: &Response) -> u64 {
    match &answer.json::<Value>()["rows"][0][0] {
        Value::Null => 0,
        value => value.as_u64().expect("a number that a client sent"),
    }
}

/// What all clients know at the end.
#[derive(Debug)]
pub struct History {
    shared: Arc<Shared>,
    notes: Notes,
}

impl History {
    /// How many changes were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.notes.events.iter().filter(|event| event.token.is_some() && is_done(&event.operation)).count()
    }

    /// Demands that running replicas hold what was acknowledged, that one order explains all of it, that files can be
    /// fetched, and that the replicas are the same.
    ///
    /// # Panics
    /// When something was lost, done twice, invented, or cannot be explained.
    #[track_caller]
    pub fn verify(self, cluster: &Cluster) {
        assert!(self.acknowledged() > 0, "a history without a change proves nothing");
        if let Err(violation) = self.violation(cluster) {
            panic!("{violation}");
        }
        cluster.assert_same_everywhere();
    }

    /// The same for what must be found out: that something is wrong.
    ///
    /// # Errors
    /// What is wrong.
    pub fn violation(mut self, cluster: &Cluster) -> Result<(), String> {
        let live = cluster.live();
        let tokens = self.check_tokens(cluster.replica(live[0]))?;
        for id in &live {
            self.read_all(cluster.replica(*id));
        }
        self.settle(&tokens);
        for register in 0..REGISTERS {
            let events = self.notes.events.iter().filter(|event| event.register == register);
            let history: Vec<Operation> = events.map(|event| event.operation).collect();
            check(&history).map_err(|error| format!("register {register}: {error}"))?;
        }
        self.check_stale()?;
        for id in &live {
            self.check_media(cluster.replica(*id))?;
        }
        let unknown = self.notes.events.iter().filter(|event| event.operation.returned == u64::MAX).count();
        println!(
            "checked {} operations, {unknown} of them never answered, and {} files on replicas {live:?}",
            self.notes.events.len(),
            self.notes.media.len()
        );
        Ok(())
    }

    /// Every acknowledged change once, every refused one never, every other one once at most.
    fn check_tokens(&self, replica: &Replica) -> Result<BTreeSet<u64>, String> {
        let mut found: BTreeMap<u64, u64> = BTreeMap::new();
        for db in (0..DATABASES).map(database) {
            let answer = replica.try_sql(&db, "SELECT token, count(*) FROM tokens GROUP BY 1", json!([]));
            if answer.status != 200 {
                return Err(format!("{db} cannot be read: {} {}", answer.status, answer.text()));
            }
            let rows = answer.json::<Value>();
            let rows = rows["rows"].as_array().expect("rows");
            let number = |value: &Value| value.as_u64().expect("a number that a client sent");
            found.extend(rows.iter().map(|row| (number(&row[0]), number(&row[1]))));
        }
        let asked: BTreeMap<u64, &Operation> =
            self.notes.events.iter().filter_map(|event| Some((event.token?, &event.operation))).collect();
        for (token, operation) in &asked {
            let count = found.get(token).copied().unwrap_or(0);
            let right = match operation.observed {
                Observed::Done(true) => count == 1,
                Observed::Done(false) => count == 0,
                Observed::Value(_) | Observed::Unknown => count <= 1,
            };
            if !right {
                return Err(format!("replica {}: {operation:?} was done {count} times", replica.id));
            }
        }
        match found.keys().find(|token| !asked.contains_key(token)) {
            Some(token) => Err(format!("replica {}: nobody asked for {token}", replica.id)),
            None => Ok(found.into_keys().collect()),
        }
    }

    /// A last look at every register.
    fn read_all(&mut self, replica: &Replica) {
        for register in 0..REGISTERS {
            let called = self.shared.now();
            let select = "SELECT value FROM registers WHERE name = ?";
            let value = value_in(&replica.try_sql(&database(register), select, json!([register])).expect(200));
            let operation = Operation {
                action: Action::Read,
                observed: Observed::Value(value),
                called,
                returned: self.shared.now(),
            };
            self.notes.events.push(Event { register, token: None, operation });
        }
    }

    /// What was not answered, and left no token, was not done; what left one was done, at some time.
    fn settle(&mut self, tokens: &BTreeSet<u64>) {
        self.notes.events.retain_mut(|event| {
            if event.operation.observed != Observed::Unknown {
                return true;
            }
            event.operation.observed = Observed::Done(true);
            event.operation.returned = u64::MAX;
            event.token.is_some_and(|token| tokens.contains(&token))
        });
    }

    fn check_stale(&self) -> Result<(), String> {
        let mut asked: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for event in &self.notes.events {
            match event.operation.action {
                Action::Write(to) | Action::Swap { to, .. } => {
                    asked.insert((event.register, to), event.operation.called);
                }
                Action::Delete | Action::Read => {}
            }
        }
        for (register, value, told) in self.notes.stale.iter().filter(|(_, value, _)| *value != 0) {
            if asked.get(&(*register, *value)).is_none_or(|called| called > told) {
                return Err(format!("register {register}: a stale read found {value} before anybody wrote it"));
            }
        }
        Ok(())
    }

    fn check_media(&self, replica: &Replica) -> Result<(), String> {
        // One linearized query, then plain GETs.
        let _ = replica.databases();
        for (name, digest) in &self.notes.media {
            let answer = replica.get(&format!("/v1/db/{}/media/{name}", database(0)));
            if answer.status != 200 || Digest::of(&answer.body) != *digest {
                let (status, length) = (answer.status, answer.body.len());
                return Err(format!("replica {}: {name} is answered with {status}, {length} bytes", replica.id));
            }
        }
        Ok(())
    }
}

fn is_done(operation: &Operation) -> bool {
    operation.observed == Observed::Done(true)
}
