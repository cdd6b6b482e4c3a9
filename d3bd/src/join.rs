//! A replica that joins a running cluster: it asks any member who belongs to it, and then to be let in.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use d3b::api::{AddReplica, ClusterInfo, MembersChanged};
use d3b::client::{Body, Client, Endpoint, Method, Request, Unobserved};
use d3b::{DiskId, ReplicaId};

use crate::config::Settings;
use crate::run::{RunError, Stop};

/// How often it asks again while nobody can let it in.
const AGAIN: Duration = Duration::from_secs(1);
/// How long one attempt may take.
const WAIT: Duration = Duration::from_secs(15);

/// What a replica needs to know before it formats its directory: its id and whom to greet. A directory that was formatted
/// before knows.
///
/// # Errors
/// The URL is none, or nobody answers there as a member of a cluster.
pub(crate) fn prepare(settings: &mut Settings) -> Result<(), RunError> {
    if let Some(id) = formatted(&settings.data_dir)? {
        if !settings.id_given {
            settings.id = id;
        }
        return Ok(());
    }
    let Some(url) = settings.join.clone() else { return Ok(()) };
    let refused = |problem: String| RunError::Join { url: url.clone(), problem };
    let response = client(&url)?.send(&Request::get(&["v1", "cluster"])).map_err(|error| refused(error.to_string()))?;
    let (cluster, _): (ClusterInfo, _) = response.json().map_err(|error| refused(error.to_string()))?;
    if cluster.cluster.is_empty() {
        return Err(refused("that replica belongs to no cluster yet".to_owned()));
    }
    if !settings.id_given {
        settings.id = ReplicaId(cluster.next_id);
    }
    let members = cluster.replicas.into_iter().map(|member| (ReplicaId(member.id), member.peer));
    let own = settings.replicas.remove(&settings.id);
    settings.replicas = members.collect();
    if let Some(own) = own {
        settings.replicas.insert(settings.id, own);
    }
    Ok(())
}

/// The replica that a directory belongs to, if it is formatted.
fn formatted(data_dir: &Path) -> Result<Option<ReplicaId>, RunError> {
    Ok(crate::log::replica_of(data_dir)?)
}

/// Asks to be let in, on a thread of its own, until it is or the process stops.
pub(crate) fn ask(settings: &Settings, disk: DiskId, peer: String, stop: &Arc<Stop>) -> Result<(), RunError> {
    let Some(url) = settings.join.clone() else { return Ok(()) };
    let (client, id, stop) = (client(&url)?, settings.id, Arc::clone(stop));
    let add = AddReplica { id: id.0, disk: disk.to_string(), peer, replaces: None };
    let work = move || {
        let mut told = String::new();
        while !stop.asked() {
            match send(&client, &add) {
                Ok(changed) => {
                    tracing::info!(replica = %id, epoch = changed.cluster.epoch, "the cluster has let this replica in");
                    return;
                }
                Err(problem) => {
                    if problem != told {
                        tracing::warn!(url, problem, "the cluster has not let this replica in yet");
                        told = problem;
                    }
                    std::thread::sleep(AGAIN);
                }
            }
        }
    };
    let spawned = std::thread::Builder::new().name("d3bd-join".to_owned()).spawn(work);
    spawned.map(|_| ()).map_err(|source| RunError::System { what: "a thread", source })
}

fn send(client: &Client, add: &AddReplica) -> Result<MembersChanged, String> {
    let body = serde_json::to_vec(add).map_err(|error| error.to_string())?;
    let request = Request::new(Method::POST, &["v1", "cluster", "replicas"])
        .body("application/json", Body::bytes(body))
        .waiting(WAIT, true);
    let response = client.send(&request).map_err(|error| error.to_string())?;
    response.json().map(|(changed, _)| changed).map_err(|error| error.to_string())
}

fn client(url: &str) -> Result<Client, RunError> {
    let endpoint: Endpoint = url
        .parse()
        .map_err(|error: d3b::InvalidId| RunError::Join { url: url.to_owned(), problem: error.to_string() })?;
    let agent = concat!("d3bd/", env!("CARGO_PKG_VERSION"));
    Ok(Client::new(vec![endpoint], agent, Arc::new(Unobserved)))
}

/// Where the members of a configuration are.
pub(crate) fn addresses(configuration: &d3b_paxos::types::Configuration) -> BTreeMap<ReplicaId, String> {
    configuration.members.iter().map(|(id, member)| (*id, member.peer.clone())).collect()
}
