//! `cluster status`, `cluster rebuild`, `status`, `wait`, `version`: how the replicas are.

use std::time::{Duration, Instant};

use d3b::Value;
use d3b::api::{ClusterInfo, Rebuild, ReplicaInfo, Version};
use d3b::client::{ClientError, Endpoint, Method, Request};
use serde::Serialize;

use crate::cli::{Condition, Format};
use crate::error::{CliError, Health};
use crate::output::{Column, Output, json, number, optional, text};
use crate::progress::Progress;
use crate::session::{Session, tell};

/// How long one endpoint is asked how it is.
const ASK_MAX: Duration = Duration::from_secs(3);
/// How long to wait for a condition, unless told.
const WAIT_DEFAULT: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(200);

fn yes_or_no(yes: bool) -> Value {
    text(if yes { "yes" } else { "no" })
}

/// Shows the members as one replica sees them.
pub(super) fn members(session: &Session, output: &mut Output) -> Result<(), CliError> {
    let (cluster, body): (ClusterInfo, _) = session.send(&session.local(&["v1", "cluster"]))?.json()?;
    match output.format() {
        Format::Json => output.line(&body)?,
        Format::Table => {
            head(&cluster, output)?;
            replicas(&cluster, output)?;
            for line in catching_up(session, &cluster) {
                output.raw(format!("{line}\n").as_bytes())?;
            }
        }
        Format::Ndjson | Format::Csv | Format::Line => replicas(&cluster, output)?,
    }
    output.flush()?;
    for divergence in &cluster.divergent {
        tell(&format!(
            "database {} differs from replica {}'s after slot {}",
            divergence.id, divergence.replica, divergence.slot
        ));
    }
    for damaged in &cluster.damaged {
        tell(&format!("database {} of replica {} is damaged: {}", damaged.id, cluster.replica, damaged.problem));
    }
    if !cluster.damaged.is_empty() {
        tell(&format!("hint: d3bctl -e URL-OF-REPLICA-{} cluster rebuild replaces what is damaged", cluster.replica));
    }
    if cluster.divergent.is_empty() { Ok(()) } else { Err(CliError::Unhealthy(Health::Divergent)) }
}

/// Who waits for a snapshot, and how far each has come. A replica knows that of itself only, so that those that are behind
/// are asked; one that does not answer soon is passed over.
fn catching_up(session: &Session, cluster: &ClusterInfo) -> Vec<String> {
    let ask = |replica: &ReplicaInfo| {
        if replica.id == cluster.replica {
            return cluster.catching_up.clone();
        }
        let endpoint: Endpoint = replica.http.as_deref()?.parse().ok()?;
        let request = Request::get(&["v1", "cluster"]).waiting(session.settings.wait().min(ASK_MAX), false).once();
        let (seen, _): (ClusterInfo, _) = session.client.only(&endpoint).send(&request).ok()?.json().ok()?;
        seen.catching_up.filter(|_| seen.replica == replica.id)
    };
    let behind = |it: &&ReplicaInfo| it.id == cluster.replica || it.reachable && it.lag != Some(0);
    let behind = cluster.replicas.iter().filter(behind);
    std::thread::scope(|scope| {
        let threads: Vec<_> = behind.map(|replica| (replica.id, scope.spawn(move || ask(replica)))).collect();
        let answers = threads.into_iter().map(|(id, thread)| (id, thread.join().expect("asking does not panic")));
        answers.filter_map(|(id, answer)| Some(format!("replica {id} {}", answer?))).collect()
    })
}

fn head(cluster: &ClusterInfo, output: &mut Output) -> Result<(), CliError> {
    let leader = cluster.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string());
    let fields = vec![
        ("cluster", text(&cluster.cluster)),
        ("leader", text(leader)),
        ("ballot", text(&cluster.ballot)),
        ("commit", number(cluster.commit)),
        ("epoch", number(cluster.epoch)),
        ("seen by", text(format!("replica {}, {}", cluster.replica, cluster.state))),
    ];
    output.object(&[], fields)?;
    output.raw(b"\n")
}

const COLUMNS: &[Column<(ReplicaInfo, bool)>] = &[
    ("id", |(replica, _)| number(replica.id.into())),
    ("role", |(replica, leads)| text(if *leads { "leader" } else { &replica.role })),
    ("reachable", |(replica, _)| yes_or_no(replica.reachable)),
    ("applied", |(replica, _)| optional(replica.applied, number)),
    ("lag", |(replica, _)| optional(replica.lag, number)),
    ("files missing", |(replica, _)| optional(replica.files_missing.filter(|files| *files > 0), number)),
    ("http", |(replica, _)| optional(replica.http.as_deref(), text)),
    ("peer", |(replica, _)| text(&replica.peer)),
];

fn replicas(cluster: &ClusterInfo, output: &mut Output) -> Result<(), CliError> {
    if output.format() == Format::Ndjson {
        return cluster.replicas.iter().try_for_each(|replica| output.line(&json(replica)));
    }
    let rows = cluster.replicas.iter().map(|replica| (replica.clone(), Some(replica.id) == cluster.leader));
    output.list(&[], COLUMNS, &rows.collect::<Vec<_>>())
}

/// How one endpoint is.
#[derive(Debug, Serialize)]
struct EndpointStatus {
    endpoint: String,
    /// Whether it answers at all.
    reachable: bool,
    /// Whether a linearizable read would succeed there.
    ready: bool,
    replica: Option<u32>,
    state: Option<String>,
    leader: Option<u32>,
    commit: Option<u64>,
    applied: Option<u64>,
    divergent: bool,
    /// How many databases it does not serve because its files are damaged.
    damaged: usize,
    /// Why it is not ready, or what else is wrong with it.
    problem: Option<String>,
}

const STATUS_COLUMNS: &[Column<EndpointStatus>] = &[
    ("endpoint", |status| text(&status.endpoint)),
    ("replica", |status| optional(status.replica, |replica| number(replica.into()))),
    ("state", |status| optional(status.state.as_deref(), text)),
    ("leader", |status| optional(status.leader, |leader| number(leader.into()))),
    ("commit", |status| optional(status.commit, number)),
    ("applied", |status| optional(status.applied, number)),
    ("ready", |status| yes_or_no(status.ready)),
    ("problem", |status| text(status.problem.as_deref().unwrap_or_default())),
];

#[derive(Serialize)]
struct Status<'a> {
    healthy: bool,
    endpoints: &'a [EndpointStatus],
}

/// Asks every endpoint how it is, all at the same time.
pub(super) fn status(session: &Session, output: &mut Output) -> Result<(), CliError> {
    let endpoints = session.client.endpoints();
    let statuses: Vec<EndpointStatus> = std::thread::scope(|scope| {
        let threads: Vec<_> = endpoints.iter().map(|endpoint| scope.spawn(move || ask(session, endpoint))).collect();
        threads.into_iter().map(|thread| thread.join().expect("asking does not panic")).collect()
    });
    let health = health(&statuses);
    let document = json(&Status { healthy: health.is_none(), endpoints: &statuses });
    output.list(&document, STATUS_COLUMNS, &statuses)?;
    output.flush()?;
    health.map_or(Ok(()), |health| Err(CliError::Unhealthy(health)))
}

fn ask(session: &Session, endpoint: &Endpoint) -> EndpointStatus {
    let client = session.client.only(endpoint);
    let wait = session.settings.wait().min(ASK_MAX);
    let ask = |segments: &[&str]| session.send_with(&client, &Request::get(segments).waiting(wait, false).once());
    let mut status = EndpointStatus {
        endpoint: endpoint.as_str().to_owned(),
        reachable: false,
        ready: false,
        replica: None,
        state: None,
        leader: None,
        commit: None,
        applied: None,
        divergent: false,
        damaged: 0,
        problem: None,
    };
    let cluster = ask(&["v1", "cluster"]).and_then(|response| Ok(response.json::<ClusterInfo>()?.0));
    match cluster {
        Ok(cluster) => {
            status.reachable = true;
            status.replica = Some(cluster.replica);
            status.state = Some(cluster.state);
            status.leader = cluster.leader;
            status.commit = Some(cluster.commit);
            status.applied = Some(cluster.applied);
            status.divergent = !cluster.divergent.is_empty();
            status.damaged = cluster.damaged.len();
            match ask(&["readyz"]) {
                Ok(_) => {
                    status.ready = true;
                    status.problem = damaged(cluster.damaged.len());
                }
                Err(error) => status.problem = Some(cause(&error)),
            }
        }
        Err(error) => status.problem = Some(cause(&error)),
    }
    status
}

fn damaged(databases: usize) -> Option<String> {
    let what = match databases {
        0 => return None,
        1 => "a database is damaged".to_owned(),
        several => format!("{several} databases are damaged"),
    };
    Some(format!("{what}: d3bctl cluster rebuild"))
}

/// Why an endpoint is not ready, without its name, which stands beside it.
fn cause(error: &CliError) -> String {
    match error {
        CliError::Client(ClientError::Unreachable(failures) | ClientError::Timeout(failures)) => {
            failures.iter().map(|failure| failure.cause.as_str()).collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}

/// Has every endpoint that is quarantined made anew; where none is, the first one with a damaged database, one at a time,
/// for it is missed meanwhile. Where there is none either, the first endpoint says so.
pub(super) fn rebuild(session: &Session, output: &mut Output) -> Result<(), CliError> {
    let endpoints = session.client.endpoints();
    let asked: Vec<(&Endpoint, EndpointStatus)> =
        endpoints.iter().map(|endpoint| (endpoint, ask(session, endpoint))).collect();
    let those = |wanted: fn(&EndpointStatus) -> bool| {
        let wanted = asked.iter().filter(move |(_, status)| wanted(status)).map(|(endpoint, _)| *endpoint);
        wanted.collect::<Vec<_>>()
    };
    let quarantined = those(|status| status.state.as_deref() == Some("quarantined"));
    let damaged = those(|status| status.damaged > 0);
    let chosen = match (quarantined.is_empty(), damaged.is_empty()) {
        (false, _) => &quarantined[..],
        (true, false) => &damaged[..1],
        (true, true) => &those(|_| true)[..1],
    };
    for endpoint in chosen {
        let client = session.client.only(endpoint);
        let request = Request::new(Method::POST, &["v1", "admin", "rebuild"]);
        let response = session.send_with(&client, &request.waiting(session.settings.wait(), false).once())?;
        let (rebuild, body): (Rebuild, _) = response.json()?;
        if output.format() == Format::Json {
            output.line(&body)?;
        } else {
            tell(&format!("replica {} is being rebuilt; d3bctl status tells how it goes", rebuild.replica));
        }
    }
    let left = damaged.iter().filter(|endpoint| !chosen.contains(endpoint)).count();
    if left > 0 {
        tell(&format!("{left} more have damaged databases: rebuild them when this is done"));
    }
    output.flush()?;
    Ok(())
}

fn health(statuses: &[EndpointStatus]) -> Option<Health> {
    let failing = statuses.iter().filter(|status| !status.ready).count();
    if statuses.iter().all(|status| !status.reachable) {
        Some(Health::Unreachable)
    } else if failing == statuses.len() {
        Some(Health::NoQuorum)
    } else if statuses.iter().any(|status| status.divergent) {
        Some(Health::Divergent)
    } else if failing > 0 {
        Some(Health::Some(failing))
    } else {
        None
    }
}

/// Waits until a condition holds.
pub(super) fn wait(condition: Condition, session: &Session) -> Result<(), CliError> {
    let what = match condition {
        Condition::Leader => "waiting for a leader".to_owned(),
        Condition::Slot(slot) => format!("waiting for slot {slot}"),
    };
    let progress = Progress::waiting(&session.settings, what);
    let deadline = Instant::now() + session.settings.timeout.unwrap_or(WAIT_DEFAULT);
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(ASK_MAX).max(LOOK);
        let cause = match look(condition, session, left) {
            Ok(None) => break,
            Ok(Some(cause)) => cause,
            Err(error) => error.to_string(),
        };
        if Instant::now() + LOOK >= deadline {
            return Err(CliError::NotYet(cause));
        }
        std::thread::sleep(LOOK);
    }
    drop(progress);
    Ok(())
}

/// Looks once; gives what is missing.
fn look(condition: Condition, session: &Session, wait: Duration) -> Result<Option<String>, CliError> {
    match condition {
        Condition::Leader => {
            session.send(&Request::get(&["readyz"]).waiting(wait, false).once())?;
            Ok(None)
        }
        Condition::Slot(slot) => {
            let request = Request::get(&["v1", "cluster"]).waiting(wait, false).once();
            let response = session.send(&request)?;
            let endpoint = response.endpoint().clone();
            let (cluster, _): (ClusterInfo, _) = response.json()?;
            let reached = cluster.applied >= slot;
            Ok((!reached).then(|| format!("{endpoint} is at slot {}", cluster.applied)))
        }
    }
}

#[derive(Serialize)]
struct Versions<'a> {
    d3bctl: &'static str,
    server: Option<&'a Version>,
}

/// Prints the versions; its own also when there is no server.
pub(super) fn version(session: &Session, output: &mut Output) -> Result<(), CliError> {
    const OWN: &str = env!("CARGO_PKG_VERSION");
    let server = session.send(&session.local(&["version"])).and_then(|response| Ok(response.json::<Version>()?.0));
    let mut fields = vec![("d3bctl", text(OWN))];
    if let Ok(version) = &server {
        fields.push(("d3bd", text(&version.version)));
        fields.push(("sqlite", text(&version.sqlite)));
        fields.push(("execution", number(version.execution.into())));
    }
    output.object(&json(&Versions { d3bctl: OWN, server: server.as_ref().ok() }), fields)?;
    server.map(|_| ())
}
