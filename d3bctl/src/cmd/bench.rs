//! `bench`: makes databases of its own, loads them, verifies what was written, and takes them away again.

mod report;
mod verify;

use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use d3b::api::ClusterInfo;
use d3b::client::{Body, ClientError, Endpoint, Method, Request};
use serde_json::json;

use crate::bench::d3b::{D3b, FILL, Spec, TABLES, content, given_id};
use crate::bench::load::{Plan, Target, run as load, shares};
use crate::bench::mix::{Mix, Sort};
use crate::bench::{Ledger, Outcome};
use crate::cli::{Bench, BenchTarget};
use crate::error::{CliError, Health};
use crate::output::Output;
use crate::progress::Progress;
use crate::session::{CATALOGUE, Session, tell};
use crate::signals;

use report::Report;
use verify::{Asked, Verification, current_slot, verify};

/// Files of each database that are there to be fetched.
const FILES: u64 = 64;
/// Rows and bytes that one statement fills a table with, at most.
const FILL_ROWS_MAX: u64 = 10_000;
const FILL_BYTES_MAX: u64 = 1 << 20;
/// How long a server is tried before the next of its addresses is.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How much longer than a server takes at most its answer may be on its way.
const GRACE: Duration = Duration::from_secs(2);
/// How long one step of the preparation or of the verification may take at least: what is told is for the load.
pub(super) const STEP_WAIT: Duration = Duration::from_secs(60);

/// Loads the cluster.
pub(super) fn run(arguments: &Bench, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let (spec, run) = spec(arguments, session);
    if session.settings.dry_run {
        let databases = spec.databases.len();
        let line = format!("would make {databases} databases named {run}..., and load them with {}\n", spec.mix);
        return output.raw(line.as_bytes());
    }
    let targets = targets(arguments.target, session)?;
    let names = if spec.databases.len() == 1 { run.clone() } else { format!("{run}-...") };
    let stop = signals::end_softly(format!("databases named {names} may be left; d3bctl delete takes them away"));
    let mut made = 0;
    let measured = prepare(&spec, &mut made, session)
        .and_then(|()| catch_up(&spec, &targets, session))
        .and_then(|()| measure(arguments, &spec, &targets, stop, session))
        .and_then(|(outcome, ledgers)| Ok((outcome, verify(&spec, &ledgers, session)?)));
    let removed = if arguments.keep { keep(&names, session) } else { remove(&spec.databases[..made], session) };
    signals::end_at_once();
    let (outcome, verification) = measured?;
    Report::new(arguments, &spec, &outcome, &verification, session).write(arguments.timeline, output)?;
    output.flush()?;
    removed?;
    judge(&outcome, &verification)
}

fn judge(outcome: &Outcome, verification: &Verification) -> Result<(), CliError> {
    if !verification.problems.is_empty() {
        Err(CliError::LoadMismatch)
    } else if outcome.errors > 0 {
        Err(CliError::LoadErrors(outcome.errors))
    } else {
        match verification.unasked() {
            0 => Ok(()),
            unasked => Err(CliError::Unhealthy(Health::Some(unasked))),
        }
    }
}

/// What is asked for, and the name of this run.
fn spec(arguments: &Bench, session: &Session) -> (Arc<Spec>, String) {
    let mix: Mix = arguments.work.clone();
    let random = uuid::Uuid::now_v7().simple().to_string();
    let run = format!("bench-{}", &random[random.len() - 12..]);
    let databases = match arguments.databases {
        1 => vec![run.clone()],
        several => (0..several).map(|database| format!("{run}-{database}")).collect(),
    };
    let needs_rows = [Sort::Read, Sort::StaleRead, Sort::Update].into_iter().any(|sort| mix.has(sort));
    let parameters = match session.settings.timeout {
        Some(timeout) => format!("?timeout={}ms", timeout.as_millis()),
        None => String::new(),
    };
    let spec = Spec {
        databases,
        batch: arguments.batch.into(),
        size: arguments.size as usize,
        media_size: arguments.media_size as usize,
        rows: if needs_rows { arguments.rows.into() } else { 0 },
        files: if mix.has(Sort::MediaGet) { FILES } else { 0 },
        mix,
        run: run.clone(),
        parameters,
    };
    (Arc::new(spec), run)
}

/// Where the clients begin, and where they go on.
fn targets(target: BenchTarget, session: &Session) -> Result<Vec<Target>, CliError> {
    let mut endpoints = session.client.endpoints().to_vec();
    if target == BenchTarget::Leader {
        let (cluster, _): (ClusterInfo, _) = session.send(&session.local(&["v1", "cluster"]))?.json()?;
        let leader = cluster.replicas.iter().find(|replica| Some(replica.id) == cluster.leader);
        let leader = leader.and_then(|replica| replica.http.as_deref()?.parse::<Endpoint>().ok());
        let leader = leader.ok_or_else(|| CliError::NotYet("nobody knows where the leader is".to_owned()))?;
        endpoints.retain(|endpoint| *endpoint != leader);
        endpoints.insert(0, leader);
    }
    endpoints.iter().map(resolve).collect()
}

/// The address of an endpoint at which somebody listens; the first one, if nobody does.
fn resolve(endpoint: &Endpoint) -> Result<Target, CliError> {
    let host = endpoint.as_str().trim_start_matches("http://");
    let addresses: Vec<SocketAddr> = host.to_socket_addrs().map_err(CliError::Load)?.collect();
    let listening = |address: &&SocketAddr| TcpStream::connect_timeout(address, CONNECT_MAX).is_ok();
    let address = match addresses.as_slice() {
        [only] => Some(only),
        several => several.iter().find(listening).or(several.first()),
    };
    let nowhere = || CliError::NotYet(format!("{endpoint} has no address"));
    Ok(Target { address: *address.ok_or_else(nowhere)?, host: host.to_owned() })
}

fn body(value: &serde_json::Value) -> Body {
    Body::bytes(value.to_string())
}

/// Sends a change that may take a while.
fn change(request: Request, db: &str, session: &Session) -> Result<(), CliError> {
    let request = session.change(request, db).waiting(session.settings.wait().max(STEP_WAIT), true);
    session.write(&request, &[]).map(|_| ())
}

/// Makes the databases, with what there is to read in them. `made` counts them.
fn prepare(spec: &Spec, made: &mut usize, session: &Session) -> Result<(), CliError> {
    let progress = Progress::items(&session.settings, "making databases", spec.databases.len() as u64);
    let text = "x".repeat(spec.size);
    for db in &spec.databases {
        let file = Request::new(Method::PUT, &["v1", "db", db, "file"]).header("if-none-match", "*");
        change(
            file.parameter("owner", "d3bctl bench").body("application/vnd.sqlite3", Body::default()),
            CATALOGUE,
            session,
        )?;
        *made += 1;
        let statements: Vec<_> = TABLES.iter().map(|sql| json!({ "sql": sql })).collect();
        let batch = Request::new(Method::POST, &["v1", "db", db, "batch"]);
        change(batch.body("application/json", body(&json!({ "statements": statements }))), db, session)?;
        let step = (FILL_BYTES_MAX / (spec.size as u64 + 16)).clamp(1, FILL_ROWS_MAX);
        for first in (1..=spec.rows).step_by(usize::try_from(step).expect("a small number")) {
            let last = spec.rows.min(first + step - 1);
            let query = Request::new(Method::POST, &["v1", "db", db, "query"]);
            let fill = json!({ "sql": FILL, "args": [first, last, text] });
            change(query.body("application/json", body(&fill)), db, session)?;
        }
        for file in 0..spec.files {
            let id = given_id(file);
            let put = Request::new(Method::PUT, &["v1", "db", db, "media", &id]);
            let bytes = Body::bytes(content(&id, spec.media_size));
            change(put.body("application/octet-stream", bytes), db, session)?;
        }
        progress.add(1);
    }
    Ok(())
}

/// Waits until every server has what there is to read, so that stale reads find it; one that cannot be reached is left
/// to the load.
fn catch_up(spec: &Spec, targets: &[Target], session: &Session) -> Result<(), CliError> {
    let progress = Progress::waiting(&session.settings, "waiting for the replicas");
    let slot = current_slot(&spec.databases[0], session)?;
    for target in targets {
        let Ok(endpoint) = target.host.parse::<Endpoint>() else { continue };
        progress.say(format!("waiting for {endpoint}"));
        match (Asked { client: session.client.only(&endpoint), slot, session }).has_caught_up(&spec.databases[0]) {
            Ok(()) | Err(CliError::Client(ClientError::Unreachable(_))) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Runs the load, and gives what was acknowledged, database by database.
fn measure(
    arguments: &Bench,
    spec: &Arc<Spec>,
    targets: &[Target],
    stop: &std::sync::atomic::AtomicBool,
    session: &Session,
) -> Result<(Outcome, Vec<Ledger>), CliError> {
    let (clients, threads) = (arguments.clients as usize, arguments.threads.min(arguments.clients) as usize);
    allow_files(clients);
    let plan = Plan {
        clients,
        threads,
        rate: arguments.rate,
        warm_up: arguments.warm_up,
        duration: arguments.duration,
        patience: session.settings.wait() + GRACE,
        spread: arguments.target == BenchTarget::All,
    };
    let mut first = 0;
    let works = shares(clients, threads).into_iter().map(|share| {
        let work = D3b::new(spec, first, share);
        first += share as u64;
        work
    });
    let whole = arguments.warm_up + arguments.duration;
    let progress = Progress::time(&session.settings, "", whole);
    let mut last = (Duration::ZERO, 0);
    let (outcome, works) = load(&plan, targets, works.collect(), stop, |now| {
        let seconds = (now.elapsed - last.0).as_secs_f64();
        // Over a second or so, or it would flicker.
        if seconds >= 1.0 {
            let rate = (now.done - last.1) as f64 / seconds;
            let phase = if now.elapsed < arguments.warm_up { "warming up" } else { "measuring" };
            progress.say(format!("{phase}, {rate:.0} requests/s"));
            last = (now.elapsed, now.done);
        }
        progress.set(u64::try_from(now.elapsed.min(whole).as_millis()).unwrap_or(u64::MAX));
    })
    .map_err(CliError::Load)?;
    drop(progress);
    if stop.load(Ordering::Acquire) {
        session.note("ended early; what was written is verified all the same");
    }
    let mut ledgers = vec![Ledger::default(); spec.databases.len()];
    for work in works {
        ledgers.iter_mut().zip(work.into_ledgers()).for_each(|(all, ledger)| all.merge(ledger));
    }
    Ok((outcome, ledgers))
}

/// Every client is a connection, and so an open file.
fn allow_files(clients: usize) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours and outlives both calls. Where the limit cannot be raised, connections will fail
    // and be told of.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_cur.max(limit.rlim_max.min(clients as u64 + 64));
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

fn keep(names: &str, session: &Session) -> Result<(), CliError> {
    session.note(&format!("kept: {names}"));
    Ok(())
}

/// Drops the databases; all that can be dropped.
fn remove(databases: &[String], session: &Session) -> Result<(), CliError> {
    let progress = Progress::items(&session.settings, "removing databases", databases.len() as u64);
    let mut result = Ok(());
    for db in databases {
        let removed = change(Request::new(Method::DELETE, &["v1", "db", db]), CATALOGUE, session);
        if let Err(error) = removed {
            tell(&format!("{db} is left: {error}"));
            result = Err(error);
        }
        progress.add(1);
    }
    result
}
