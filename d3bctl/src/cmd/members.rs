//! `cluster add`, `remove`, `replace`, `transfer`, `verify`: who belongs to the cluster, and whether all hold the same.

use std::time::{Duration, Instant};

use d3b::api::{AddReplica, ClusterInfo, MembersChanged, TransferRequest, Verified};
use d3b::client::{Body, Endpoint, Method, Request};

use super::confirm;
use crate::cli::Format;
use crate::error::{CliError, Health, UsageError};
use crate::output::{Column, Output, json, number, optional, text};
use crate::progress::Progress;
use crate::session::{Session, tell};

/// How long a replica may take to catch up, unless told.
const CATCH_UP_MAX: Duration = Duration::from_secs(24 * 3600);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// How long a fresh replica is asked who it is.
const ASK_MAX: Duration = Duration::from_secs(5);

/// Adds a replica that was started on a fresh disk, perhaps in place of another one, and waits until it votes.
pub(super) fn add(
    id: u32,
    url: &str,
    replaces: Option<u32>,
    session: &Session,
    output: &mut Output,
) -> Result<(), CliError> {
    let endpoint: Endpoint = url.parse().map_err(|error: d3b::InvalidId| invalid(error.to_string()))?;
    let client = session.client.only(&endpoint);
    let asked = Request::get(&["v1", "cluster"]).waiting(session.settings.wait().min(ASK_MAX), false).once();
    let (fresh, _): (ClusterInfo, _) = client.send(&asked)?.json()?;
    if fresh.replica != id {
        return Err(invalid(format!("{endpoint} is replica {}, not {id}", fresh.replica)));
    }
    let peer = fresh.replicas.iter().find(|replica| replica.id == id).map(|replica| replica.peer.clone());
    let Some(peer) = peer.filter(|_| !fresh.disk.is_empty()) else {
        return Err(invalid(format!("{endpoint} does not tell its disk and its peer address")));
    };
    let add = AddReplica { id, disk: fresh.disk, peer, replaces };
    let request = Request::new(Method::POST, &["v1", "cluster", "replicas"]).body("application/json", body(&add));
    let (changed, _): (MembersChanged, _) = session.send(&request.waiting(session.settings.wait(), true))?.json()?;
    if session.settings.dry_run {
        return Ok(());
    }
    // One that had been let in before does not know whose place it takes.
    let knows = |old| changed.cluster.replicas.iter().any(|it| it.id == id && it.replaces == Some(old));
    let left = replaces.filter(|old| !knows(*old));
    let mut joined = wait_until_it_votes(id, replaces.filter(|old| knows(*old)), changed.cluster.clone(), session)?;
    if let Some(old) = left {
        let request = Request::new(Method::DELETE, &["v1", "cluster", "replicas", &old.to_string()]);
        let removed = session.send(&request.waiting(session.settings.wait(), true))?;
        joined = removed.json::<MembersChanged>()?.0.cluster;
    }
    finish(&format!("replica {id} votes (epoch {})", joined.epoch), &joined, output)
}

/// The leader promotes it when it has caught up, and removes whom it replaces then.
fn wait_until_it_votes(
    id: u32,
    replaces: Option<u32>,
    mut cluster: ClusterInfo,
    session: &Session,
) -> Result<ClusterInfo, CliError> {
    let progress = Progress::waiting(&session.settings, format!("replica {id} catches up"));
    let deadline = Instant::now() + session.settings.timeout.unwrap_or(CATCH_UP_MAX);
    loop {
        let votes = cluster.replicas.iter().any(|replica| replica.id == id && replica.role == "voter");
        let replaced = replaces.is_none_or(|old| cluster.replicas.iter().all(|replica| replica.id != old));
        if votes && replaced {
            return Ok(cluster);
        }
        let Some(learner) = cluster.replicas.iter().find(|replica| replica.id == id) else {
            return Err(CliError::NotYet(format!("replica {id} is no member any more")));
        };
        let applied = learner.applied.unwrap_or(0);
        let state = format!("replica {id} is at slot {applied} of {}", cluster.commit);
        progress.say(state.clone());
        if Instant::now() + LOOK >= deadline {
            return Err(CliError::NotYet(format!("{state}; it goes on catching up, see d3bctl cluster status")));
        }
        std::thread::sleep(LOOK);
        let look = Request::get(&["v1", "cluster"]).waiting(ASK_MAX, false);
        if let Ok(response) = session.send(&look) {
            cluster = response.json::<ClusterInfo>()?.0;
        }
    }
}

/// Removes a replica for good.
pub(super) fn remove(id: u32, session: &Session, output: &mut Output) -> Result<(), CliError> {
    confirm(session, &format!("replica {id} from the cluster, for good"))?;
    let request = Request::new(Method::DELETE, &["v1", "cluster", "replicas", &id.to_string()]);
    change(request, &format!("replica {id} is removed"), session, output)
}

/// Hands the leadership over.
pub(super) fn transfer(to: Option<u32>, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let request = Request::new(Method::POST, &["v1", "cluster", "transfer"])
        .body("application/json", body(&TransferRequest { to }));
    change(request, "the leadership is handed over", session, output)
}

fn change(request: Request, done: &str, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let (changed, _): (MembersChanged, _) = session.send(&request.waiting(session.settings.wait(), true))?.json()?;
    let leader = changed.cluster.leader.map_or_else(|| "nobody leads".to_owned(), |id| format!("replica {id} leads"));
    finish(&format!("{done}; {leader}"), &changed.cluster, output)
}

fn finish(sentence: &str, cluster: &ClusterInfo, output: &mut Output) -> Result<(), CliError> {
    if output.format() == Format::Json {
        output.line(&json(cluster))?;
    } else {
        tell(sentence);
    }
    output.flush()?;
    Ok(())
}

fn body(value: &impl serde::Serialize) -> Body {
    Body::bytes(serde_json::to_vec(value).expect("plain data can be written"))
}

/// One replica, as it sees itself.
#[derive(Debug, serde::Serialize)]
struct Seen {
    id: u32,
    state: Option<String>,
    applied: Option<u64>,
    /// How many databases it has.
    databases: Option<u64>,
    /// How many of them every other replica that it has heard was found to hold the same of.
    compared: Option<u64>,
    /// Databases in which it differs from another replica.
    divergent: Vec<String>,
    problem: Option<String>,
}

const SEEN_COLUMNS: &[Column<Seen>] = &[
    ("id", |seen| number(seen.id.into())),
    ("state", |seen| optional(seen.state.as_deref(), text)),
    ("applied", |seen| optional(seen.applied, number)),
    ("databases", |seen| optional(seen.databases, number)),
    ("compared", |seen| optional(seen.compared, number)),
    ("divergent", |seen| text(seen.divergent.join(" "))),
    ("problem", |seen| text(seen.problem.as_deref().unwrap_or_default())),
];

/// Asks every member what it has found to differ from the others.
pub(super) fn verify(session: &Session, output: &mut Output) -> Result<(), CliError> {
    let (cluster, _): (ClusterInfo, _) = session.send(&session.local(&["v1", "cluster"]))?.json()?;
    let seen: Vec<Seen> =
        cluster.replicas.iter().map(|replica| look(replica.id, replica.http.as_deref(), session)).collect();
    output.list(&json(&seen), SEEN_COLUMNS, &seen)?;
    output.flush()?;
    let unwell = seen.iter().filter(|seen| seen.problem.is_some()).count();
    if seen.iter().any(|seen| !seen.divergent.is_empty()) {
        return Err(CliError::Unhealthy(Health::Divergent));
    }
    if unwell > 0 { Err(CliError::Unhealthy(Health::Some(unwell))) } else { Ok(()) }
}

fn look(id: u32, http: Option<&str>, session: &Session) -> Seen {
    let mut seen =
        Seen { id, state: None, applied: None, databases: None, compared: None, divergent: Vec::new(), problem: None };
    let Some(endpoint) = http.and_then(|http| http.parse::<Endpoint>().ok()) else {
        seen.problem = Some("its HTTP address is not known".to_owned());
        return seen;
    };
    let request = Request::new(Method::POST, &["v1", "admin", "verify"]);
    let request = request.waiting(session.settings.wait().min(ASK_MAX), false).once();
    let asked = session.send_with(&session.client.only(&endpoint), &request);
    match asked.and_then(|response| Ok(response.json::<Verified>()?.0)) {
        Ok(verified) => {
            if matches!(verified.state.as_str(), "quarantined" | "outcast") {
                seen.problem = Some(format!("it is {}", verified.state));
            }
            seen.applied = Some(verified.applied);
            seen.databases = Some(verified.databases);
            seen.compared = verified.compared.iter().map(|compared| compared.databases).min();
            seen.divergent = verified.divergent.into_iter().map(|divergence| divergence.id).collect();
            seen.state = Some(verified.state);
        }
        Err(error) => seen.problem = Some(error.to_string()),
    }
    seen
}

fn invalid(problem: String) -> CliError {
    CliError::Usage(UsageError::Replica(problem))
}
