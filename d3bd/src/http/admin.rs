//! Routes for what operators may have done at once: `/v1/admin/snapshot`, `compact`, `verify`, `rebuild`.

use d3b::api::{Compacted, Rebuild, Snapshotted};
use d3b::{Problem, Slot};
use hyper::{Method, StatusCode};
use warp::reply::Response;

use super::call::{Call, json};
use super::problem;

/// `/v1/admin/snapshot`: everything that is applied is to be durable.
pub(crate) async fn snapshot(call: Call) -> Response {
    if call.method != Method::POST {
        return call.other_method(&[Method::POST]);
    }
    take_snapshot(&call).await.unwrap_or_else(problem::response)
}

async fn take_snapshot(call: &Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    parameters.finish()?;
    let slot = call.handle().checkpoint(timeout.deadline()).await?;
    Ok(json(StatusCode::OK, &Snapshotted { replica: call.handle().replica().0, slot: slot.0 }))
}

/// `/v1/admin/compact`: the log is to begin as late as is safe.
pub(crate) async fn compact(call: Call) -> Response {
    if call.method != Method::POST {
        return call.other_method(&[Method::POST]);
    }
    cut(&call).await.unwrap_or_else(problem::response)
}

async fn cut(call: &Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    let upto = parameters.take_number("to_slot")?.map_or(Slot(u64::MAX), Slot);
    parameters.finish()?;
    let base = call.handle().compact(upto, timeout.deadline()).await?;
    Ok(json(StatusCode::OK, &Compacted { replica: call.handle().replica().0, base: base.0 }))
}

/// `/v1/admin/verify`: what this replica holds, beside what the others say that they hold.
pub(crate) async fn verify(call: Call) -> Response {
    if call.method != Method::POST {
        return call.other_method(&[Method::POST]);
    }
    compare(&call).await.unwrap_or_else(problem::response)
}

async fn compare(call: &Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let log = parameters.take_flag("log")?;
    parameters.finish()?;
    Ok(json(StatusCode::OK, &call.handle().verify(log).await?))
}

/// `/v1/admin/rebuild`: a quarantined replica is to be made anew from a peer.
pub(crate) async fn rebuild(call: Call) -> Response {
    if call.method != Method::POST {
        return call.other_method(&[Method::POST]);
    }
    let force = call.parameters().and_then(|mut parameters| {
        let force = parameters.take_flag("force")?;
        parameters.finish()?;
        Ok(force)
    });
    let begun = force.and_then(|force| call.handle().rebuild(force));
    let answer = || json(StatusCode::ACCEPTED, &Rebuild { replica: call.handle().replica().0, begun: true });
    begun.map_or_else(problem::response, |()| answer())
}
