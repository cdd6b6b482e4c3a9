//! Routes for those who operate a replica: `/v1/cluster`, `/livez`, `/readyz`, `/metrics`, `/version`.

use d3b::Problem;
use hyper::{Method, StatusCode};
use warp::reply::Response;

use super::call::{Call, json, respond, with_slot};
use super::problem;

/// `/v1/cluster`.
pub(crate) async fn cluster(call: Call) -> Response {
    simple(&call, |call| Ok(json(StatusCode::OK, &call.handle().cluster())))
}

/// `/version`.
pub(crate) async fn version(call: Call) -> Response {
    simple(&call, |call| Ok(json(StatusCode::OK, &call.handle().version())))
}

/// `/livez`: the process answers.
pub(crate) async fn livez(call: Call) -> Response {
    simple(&call, |_| Ok(respond(StatusCode::OK, "text/plain", "ok\n")))
}

fn simple(call: &Call, answer: impl FnOnce(&Call) -> Result<Response, Problem>) -> Response {
    if !call.is_get() {
        return call.other_method(&[Method::GET]);
    }
    let checked = call.parameters().and_then(|parameters| parameters.finish());
    checked.and_then(|()| answer(call)).unwrap_or_else(problem::response)
}

/// `/metrics`: numbers for Prometheus.
pub(crate) async fn metrics(call: Call) -> Response {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    simple(&call, |call| Ok(respond(StatusCode::OK, TEXT, super::metrics::text(&call.handle().cluster()))))
}

/// `/readyz`: a linearizable read would succeed now.
pub(crate) async fn readyz(call: Call) -> Response {
    if !call.is_get() {
        return call.other_method(&[Method::GET]);
    }
    ready(&call).await.unwrap_or_else(problem::response)
}

async fn ready(call: &Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let verbose = parameters.take_flag("verbose")?;
    parameters.finish()?;
    let slot = call.handle().ready().await?;
    if !verbose {
        return Ok(with_slot(respond(StatusCode::OK, "text/plain", "ok\n"), slot));
    }
    let cluster = call.handle().cluster();
    let leader = cluster.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string());
    let reachable = cluster.replicas.iter().filter(|replica| replica.reachable).count();
    let text = format!(
        "ok\nreplica {}\nstate {}\nleader {leader}\nballot {}\ncommit {}\napplied {}\nread index {slot}\n\
         replicas reachable {reachable} of {}\n",
        cluster.replica,
        cluster.state,
        cluster.ballot,
        cluster.commit,
        cluster.applied,
        cluster.replicas.len(),
    );
    Ok(with_slot(respond(StatusCode::OK, "text/plain", text), slot))
}
