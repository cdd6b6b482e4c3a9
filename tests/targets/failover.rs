//! How long writes stand still when the leader dies, stops or hands over; and whether all of them are there afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use d3b_tests::measure::{Acknowledged, Job, Silence, is_wanted, prepare, settle};
use d3b_tests::wait::{PATIENCE, wait_for, wait_until};
use d3b_tests::{Cluster, Replica};
use d3bctl::bench::d3b::D3b;
use d3bctl::bench::ledger::Number;
use d3bctl::bench::verify::{ENTRIES, Found, Given, THINGS, compare, present_query};
use d3bctl::bench::{Answer, Kind, Ledger, Lost, Outcome, Plan, Tally, Verdict, Work, run};
use serde_json::{Value, json};

use super::Settings;
use super::loads::targets;
use super::report::{Goal, KILL, KILL_WORST, Report, STOP, TRANSFER};

const DB: &str = "failover";
const CLIENTS: usize = 6;
/// Answers that were on their way at an event arrive within this time: the silence that it causes begins within it.
const ON_ITS_WAY: Duration = Duration::from_millis(30);
/// Writes that are acknowledged between events, at least; a few more each time, so that events come at any moment.
const WRITES_BETWEEN: usize = 200;
/// Rows that one question names, at most.
const NAMED_MAX: usize = 200;
/// How often a transfer is asked for that is refused for now.
const TRANSFERS_MAX: usize = 50;

/// What happens to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Kill,
    Stop,
    Transfer,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Event::Kill => "leader killed",
            Event::Stop => "leader stopped",
            Event::Transfer => "leader hands over",
        }
    }

    fn goals(self) -> &'static [&'static Goal] {
        match self {
            Event::Kill => &[&KILL, &KILL_WORST],
            Event::Stop => &[&STOP],
            Event::Transfer => &[&TRANSFER],
        }
    }
}

/// Measures all events on one cluster.
pub fn measure(settings: &Settings, report: &mut Report) {
    if !is_wanted(&settings.only, "failover") {
        return;
    }
    let mut cluster = Cluster::start();
    let job = Job { rows: 1, ..Job::new("keyed-insert", CLIENTS, DB) };
    prepare(cluster.replica(cluster.leader()), DB, job.rows, job.size);
    settle(&cluster, DB);
    let mut all = Ledger::default();
    let kinds = [(Event::Kill, settings.kills), (Event::Stop, settings.stops), (Event::Transfer, settings.transfers)];
    let most = kinds.iter().map(|(_, count)| *count).max().unwrap_or_default();
    for turn in 0..most {
        for (event, _) in kinds.iter().filter(|(_, count)| turn < *count) {
            cluster.wait_ready();
            let (silence, ledger) = under_load(*event, turn, &job, &mut cluster, report);
            all.merge(ledger);
            match silence {
                Some(silence) => note(*event, silence, report),
                None => report.note("a transfer was refused for so long that it was left out".to_owned()),
            }
        }
    }
    cluster.wait_ready();
    for complaint in verify(&cluster, &all, job.rows) {
        report.failure(&complaint);
    }
    let rows: u64 = all.inserted.values().map(|tally| tally.count).sum();
    report.note(format!("failover: {rows} acknowledged rows were looked for on every replica"));
}

/// Lets something happen to the leader of clients that are spread over all replicas. They are fresh ones each time: a
/// client whose replica was away does not come back to it, and in the end all of them would be at one.
fn under_load(
    event: Event,
    turn: usize,
    job: &Job,
    cluster: &mut Cluster,
    report: &mut Report,
) -> (Option<Silence>, Ledger) {
    let acknowledged = Arc::new(Acknowledged::default());
    let work = Watched { inner: job.work(), acknowledged: Arc::clone(&acknowledged) };
    // Ended by hand.
    let plan = Plan { warm_up: Duration::ZERO, duration: Duration::from_secs(86_400), ..job.plan() };
    let (at, stop) = (targets(cluster), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| run(&plan, &at, vec![work], &stop, |_| ()).expect("a load can be run"));
        let silence = {
            // Also when something goes wrong: the load would go on.
            let _stop = StopAtEnd(&stop);
            let before = WRITES_BETWEEN + turn * 37;
            wait_until("writes are acknowledged", PATIENCE, || acknowledged.count() > before);
            happen(event, cluster, &acknowledged)
        };
        let (outcome, works) = load.join().expect("the load does not panic");
        complain(event, &outcome, report);
        let mut ledger = Ledger::default();
        works.into_iter().flat_map(|work| work.inner.into_ledgers()).for_each(|of_one| ledger.merge(of_one));
        (silence, ledger)
    })
}

fn note(event: Event, silence: Silence, report: &mut Report) {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    // A leader hands over when its successor is ready, and takes writes until then.
    let judged = if event == Event::Transfer { silence.length } else { silence.until };
    for goal in event.goals() {
        report.sample(goal, milliseconds(judged));
    }
    report.figure(&format!("{}: silence", event.name()), "ms", milliseconds(silence.length));
    report.figure(&format!("{}: from the event to its end", event.name()), "ms", milliseconds(silence.until));
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets something happen, measures, and makes it good again.
fn happen(event: Event, cluster: &mut Cluster, acknowledged: &Acknowledged) -> Option<Silence> {
    let leader = cluster.leader();
    let measure = |began: Instant, caused: Instant| {
        wait_for(&format!("{}: writes go on", event.name()), PATIENCE, || acknowledged.silence(began, caused))
    };
    match event {
        Event::Kill => {
            let began = Instant::now();
            cluster.replica_mut(leader).kill();
            let silence = measure(began, began + ON_ITS_WAY);
            cluster.replica_mut(leader).start_ready();
            Some(silence)
        }
        Event::Stop => {
            let began = Instant::now();
            cluster.replica(leader).pause();
            let silence = measure(began, began + ON_ITS_WAY);
            cluster.replica(leader).resume();
            Some(silence)
        }
        Event::Transfer => {
            for _ in 0..TRANSFERS_MAX {
                let leader = cluster.leader();
                let began = Instant::now();
                let answer = cluster.replica(leader).post("/v1/cluster/transfer", &json!({}));
                if answer.status == 200 {
                    return Some(measure(began, Instant::now() + ON_ITS_WAY));
                }
                // A follower that was restarted just now may have to catch up first.
                let seen = acknowledged.count();
                wait_until("writes are acknowledged", PATIENCE, || acknowledged.count() > seen + WRITES_BETWEEN);
            }
            None
        }
    }
}

/// A load whose acknowledgements are noted.
struct Watched {
    inner: D3b,
    acknowledged: Arc<Acknowledged>,
}

impl Work for Watched {
    fn kinds(&self) -> &[Kind] {
        self.inner.kinds()
    }

    fn begin(&mut self, client: usize) -> usize {
        self.inner.begin(client)
    }

    fn request(&mut self, client: usize, host: &str, out: &mut Vec<u8>) {
        self.inner.request(client, host, out);
    }

    fn judge(&mut self, client: usize, answer: &Answer<'_>) -> Verdict {
        let verdict = self.inner.judge(client, answer);
        if let Verdict::Done(_) = verdict {
            self.acknowledged.note(Instant::now());
        }
        verdict
    }

    fn lost(&mut self, client: usize, finally: bool) -> Lost {
        self.inner.lost(client, finally)
    }
}

/// Tells what the clients met that they should not have.
fn complain(event: Event, outcome: &Outcome, report: &mut Report) {
    let Outcome { errors, refused, unknown, examples, .. } = outcome;
    if *errors > 0 {
        report.failure(&format!("{}: {errors} wrong answers: {examples:?}", event.name()));
    }
    if *refused + *unknown > 0 {
        report.note(format!("{}: {refused} refusals, {unknown} outcomes unknown", event.name()));
    }
}

/// What replicas hold other than they should.
fn verify(cluster: &Cluster, ledger: &Ledger, rows: u64) -> Vec<String> {
    let given = Given { rows, files: 0, media_size: 0 };
    let slot = cluster.replica(cluster.leader()).try_sql(DB, "SELECT 1", json!([])).expect(200).slot();
    let mut complaints = Vec::new();
    let mut chains = BTreeMap::new();
    for id in cluster.ids() {
        let replica = cluster.replica(id);
        let found = found(replica, slot, ledger);
        complaints.extend(compare(given, ledger, &found).into_iter().map(|it| format!("replica {id}: {it}")));
        let chain = replica.databases().into_iter().find(|info| info.name == DB).map(|info| info.fingerprint);
        chains.insert(id, chain);
        let divergent = replica.cluster_info().divergent;
        if !divergent.is_empty() {
            complaints.push(format!("replica {id} sees {divergent:?}"));
        }
    }
    if chains.values().any(|chain| chain.is_none() || chain != &chains[&cluster.ids()[0]]) {
        complaints.push(format!("fingerprints differ: {chains:?}"));
    }
    complaints
}

/// What a replica holds itself, as of a slot.
fn found(replica: &Replica, slot: u64, ledger: &Ledger) -> Found {
    let rows = |sql: &str| -> Vec<Vec<u64>> {
        let path = format!("/v1/db/{DB}/query?level=at-least&slot={slot}&timeout=60s");
        let mut answer: Value = replica.post(&path, &json!({ "sql": sql })).expect(200).json();
        serde_json::from_value(answer["rows"].take()).expect("rows of numbers")
    };
    let mut found = Found::default();
    for row in rows(ENTRIES) {
        found.inserted.insert(row[0], Tally { count: row[1], sum: row[2], squares: row[3] });
    }
    for row in rows(THINGS) {
        found.rows = row[0];
        found.updated = Tally { count: row[1], sum: row[2], squares: row[3] };
    }
    let unknown = ledger.inserted_unknown.iter();
    let unknown: Vec<Number> =
        unknown.flat_map(|(client, numbers)| numbers.clone().map(|number| (*client, number))).collect();
    for named in unknown.chunks(NAMED_MAX) {
        for row in rows(&present_query(named)) {
            found.present.insert((row[0], row[1]), row[2]);
        }
    }
    found
}
