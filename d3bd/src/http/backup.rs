//! `/v1/backup` and `/v1/restore`: everything, out and in.

use std::time::Duration;

use d3b::api::Restore;
use d3b::{Problem, archive};
use hyper::{Method, StatusCode};
use warp::reply::Response;

use super::body::check_encoding;
use super::call::{Call, json, request_digest, set_header, with_slot};
use super::problem::{self, bad_request};
use super::results::with_key;
use super::streams;
use crate::backup::Wanted;

/// How long it may take until all files are held by a majority and in place, unless told.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(3600);

/// `/v1/backup`.
pub(crate) async fn backup(call: Call) -> Response {
    if call.method != Method::GET {
        return call.other_method(&[Method::GET]);
    }
    take(&call).await.unwrap_or_else(problem::response)
}

async fn take(call: &Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    parameters.finish()?;
    let backup = call.handle().backup(timeout.deadline()).await?;
    let slot = d3b::Slot(backup.header().slot);
    let name = format!("d3b-{slot}.d3b");
    let mut response = streams::response(backup.into_stream());
    set_header(&mut response, "content-type", archive::MEDIA_TYPE);
    set_header(&mut response, "content-disposition", &format!("attachment; filename=\"{name}\""));
    Ok(with_slot(response, slot))
}

/// `/v1/restore`.
pub(crate) async fn restore(call: Call) -> Response {
    if call.method != Method::POST {
        return call.other_method(&[Method::POST]);
    }
    put_back(call).await.unwrap_or_else(problem::response)
}

async fn put_back(mut call: Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    let (slot, time) = (parameters.take_number("slot")?, parameters.take("time"));
    let two = parameters.take_flag("log")?;
    parameters.finish()?;
    call.refuse_preconditions()?;
    check_encoding(&call.headers)?;
    let wanted = match (slot, &time) {
        (None, None) => Wanted::End,
        (Some(slot), None) => Wanted::Slot(slot),
        (None, Some(time)) => Wanted::Time(milliseconds(time)?),
        (Some(_), Some(_)) => {
            return Err(bad_request("slot and time say the same thing in two ways: give one of them"));
        }
    };
    let key = call.idempotency_key()?;
    let mut intake = call.handle().begin_restore(two, key.as_ref(), timeout.deadline()).await?;
    let mut body = call.take_body();
    while let Some(piece) = body.next().await? {
        // What is wrong with it is told when it is finished.
        if !intake.write(piece).await {
            break;
        }
    }
    let handle = call.handle().clone();
    let options = |manifest: &d3b::Digest| {
        let mut options = call.write_options(request_digest(&[b"restore", &manifest.0]), timeout)?;
        options.deadline = timeout.deadline_or(RESTORE_TIMEOUT);
        Ok(options)
    };
    let restored = handle.finish_restore(intake, wanted, options).await?;
    let body = Restore {
        slot: restored.write.slot.0,
        cluster: restored.cluster,
        restored_slot: restored.slot,
        restored_time: crate::time::rfc3339(restored.time_ms),
        databases: restored.databases as u64,
        media: restored.media as u64,
    };
    Ok(with_key(with_slot(json(StatusCode::OK, &body), restored.write.slot), &restored.write))
}

fn milliseconds(time: &str) -> Result<u64, Problem> {
    let parsed = time.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_millisecond()).ok());
    parsed.ok_or_else(|| bad_request(format!("time must be a moment such as 2026-11-24T08:15:00Z, not {time:?}")))
}
