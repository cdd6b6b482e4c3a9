//! `/v1/log`: the Paxos log, for people and tools.

use std::sync::Arc;

use bytes::Bytes;
use d3b::{DatabaseName, Problem, Slot};
use futures_util::Stream;
use hyper::{Method, StatusCode};
use tokio::sync::watch;
use warp::reply::Response;

use super::call::{Call, Shared, json, set_header};
use super::problem::{self, bad_request};
use super::{parameters, streams};

/// Entries in a page, unless told.
const LIMIT_DEFAULT: u64 = 100;
/// The most that may be told.
const LIMIT_MAX: u64 = 1_000;

/// `/v1/log`.
pub(crate) async fn collection(call: Call) -> Response {
    if !call.is_get() {
        return call.other_method(&[Method::GET]);
    }
    list(&call).await.unwrap_or_else(problem::response)
}

async fn list(call: &Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let from = parameters.take_number("from")?;
    let limit = parameters.take_number("limit")?.unwrap_or(LIMIT_DEFAULT);
    let db = parameters.take_database("db")?;
    parameters.finish()?;
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(bad_request(format!("limit must be between 1 and {LIMIT_MAX}")));
    }
    Ok(json(StatusCode::OK, &call.handle().log_page(from, limit, db).await?))
}

/// `/v1/log/{slot}`.
pub(crate) async fn item(slot: String, call: Call) -> Response {
    if !call.is_get() {
        return call.other_method(&[Method::GET]);
    }
    entry(&slot, &call).await.unwrap_or_else(problem::response)
}

async fn entry(slot: &str, call: &Call) -> Result<Response, Problem> {
    call.parameters()?.finish()?;
    let slot = parameters::text(slot)?;
    let slot = slot.parse().map_err(|_| bad_request(format!("a slot is a whole number, not {slot:?}")))?;
    Ok(json(StatusCode::OK, &call.handle().log_entry(slot).await?))
}

/// `/v1/log/follow`.
pub(crate) async fn follow(call: Call) -> Response {
    if !call.is_get() {
        return call.other_method(&[Method::GET]);
    }
    start_following(&call).await.unwrap_or_else(problem::response)
}

async fn start_following(call: &Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let from = parameters.take_number("from")?;
    let db = parameters.take_database("db")?;
    parameters.finish()?;
    let applied = call.handle().applied_watch();
    let next = from.unwrap_or_else(|| applied.borrow().0 + 1);
    // A beginning that was cut is told with its status, before anything is streamed.
    call.handle().log_page(Some(next), 1, None).await?;
    let drain = call.shared.drain.clone();
    let following = Following { shared: Arc::clone(&call.shared), db, next, applied, drain, ended: false };
    let mut response = streams::response(following.into_stream());
    set_header(&mut response, "content-type", "application/x-ndjson");
    Ok(response)
}

/// A client that reads along as slots are applied.
struct Following {
    shared: Arc<Shared>,
    db: Option<DatabaseName>,
    next: u64,
    applied: watch::Receiver<Slot>,
    drain: watch::Receiver<bool>,
    ended: bool,
}

impl Following {
    fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
        futures_util::stream::unfold(self, |mut following| async move {
            let piece = following.next().await?;
            Some((Ok(piece), following))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let lines = match self.read().await {
                Ok(lines) => lines,
                Err(problem) => {
                    self.ended = true;
                    line(&serde_json::json!({ "error": problem.to_json() }))
                }
            };
            if !lines.is_empty() {
                return Some(lines.into());
            }
            if !self.more().await {
                self.ended = true;
                return Some(line(&serde_json::json!({ "end": true, "next": self.next })).into());
            }
        }
        None
    }

    /// What was applied and not read yet, up to a page of it.
    async fn read(&mut self) -> Result<Vec<u8>, Problem> {
        let mut lines = Vec::new();
        while lines.is_empty() && self.next <= self.applied.borrow_and_update().0 {
            let applied = self.applied.borrow().0;
            let page = self.shared.handle.log_page(Some(self.next), LIMIT_DEFAULT, None).await?;
            let before = self.next;
            for entry in page.entries.iter().take_while(|entry| entry.slot <= applied) {
                self.next = entry.slot + 1;
                if self.db.as_ref().is_none_or(|db| entry.db.as_deref() == Some(db.as_str())) {
                    lines.extend_from_slice(&line(entry));
                }
            }
            if self.next == before {
                break;
            }
        }
        Ok(lines)
    }

    /// Waits for more; false when the server is to end.
    async fn more(&mut self) -> bool {
        let draining = async {
            // A closed channel means the same as the signal.
            let _ = self.drain.wait_for(|draining| *draining).await;
        };
        tokio::select! {
            () = draining => false,
            changed = self.applied.changed() => changed.is_ok(),
        }
    }
}

fn line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("our own types are JSON");
    line.push(b'\n');
    line
}
