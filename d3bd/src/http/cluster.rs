//! Routes for who belongs to the cluster: `/v1/cluster/replicas`, `/v1/cluster/transfer`.

use d3b::api::{AddReplica, TransferRequest};
use d3b::{Code, Problem, ReplicaId};
use hyper::{Method, StatusCode};
use warp::reply::Response;

use super::call::{Call, json};
use super::problem;

/// `/v1/cluster/replicas`.
pub(crate) async fn replicas(mut call: Call) -> Response {
    if call.method != Method::POST {
        return call.other_method(&[Method::POST]);
    }
    add(&mut call).await.unwrap_or_else(problem::response)
}

async fn add(call: &mut Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    parameters.finish()?;
    let request: AddReplica = read(call).await?;
    let changed = call.handle().add_replica(request, timeout.deadline()).await?;
    Ok(json(StatusCode::OK, &changed))
}

/// `/v1/cluster/replicas/{id}`.
pub(crate) async fn replica(id: String, call: Call) -> Response {
    if call.method != Method::DELETE {
        return call.other_method(&[Method::DELETE]);
    }
    remove(&id, &call).await.unwrap_or_else(problem::response)
}

async fn remove(id: &str, call: &Call) -> Result<Response, Problem> {
    let id = id.parse().map(ReplicaId);
    let id = id.map_err(|_| Problem::new(Code::BadRequest, "the id of a replica is a number"))?;
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    parameters.finish()?;
    let changed = call.handle().remove_replica(id, timeout.deadline()).await?;
    Ok(json(StatusCode::OK, &changed))
}

/// `/v1/cluster/transfer`.
pub(crate) async fn transfer(mut call: Call) -> Response {
    if call.method != Method::POST {
        return call.other_method(&[Method::POST]);
    }
    hand_over(&mut call).await.unwrap_or_else(problem::response)
}

async fn hand_over(call: &mut Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    parameters.finish()?;
    let TransferRequest { to } = read(call).await?;
    let changed = call.handle().transfer(to.map(ReplicaId), timeout.deadline()).await?;
    Ok(json(StatusCode::OK, &changed))
}

/// The body; an empty one is `{}`.
async fn read<T: serde::de::DeserializeOwned>(call: &mut Call) -> Result<T, Problem> {
    let body = call.json_body().await?;
    let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
    serde_json::from_slice(body).map_err(|error| Problem::new(Code::BadRequest, error.to_string()))
}
