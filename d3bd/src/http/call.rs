//! One request on its way to a handler, and the pieces that most handlers need.

use std::sync::Arc;

use bytes::Bytes;
use d3b::json::Integers;
use d3b::{Code, Digest, Hasher, IdempotencyKey, Problem, Slot};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::{HeaderMap, Method, StatusCode};
use tokio::sync::{Semaphore, watch};
use warp::Filter;
use warp::path::FullPath;
use warp::reply::{Reply, Response};

use super::body::{JSON_BYTES_MAX, RequestBody};
use super::encode::{Form, Rows};
use super::memory::Memory;
use super::parameters::{Parameters, Timeout};
use super::problem::{self, bad_request};
use crate::handle::{Handle, WriteOptions};

/// What all requests share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) handle: Handle,
    /// Bytes of an uploaded file.
    pub(crate) upload_max: u64,
    /// Becomes true when the server is to end; answers without an end of their own end then.
    pub(crate) drain: watch::Receiver<bool>,
    /// One permit for each KiB that all JSON bodies together may take in memory.
    pub(crate) body_memory: Arc<Semaphore>,
    /// The same for results that are gathered before they are sent.
    pub(crate) result_memory: Arc<Semaphore>,
}

/// Names a request in answers and in the log.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// A request.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) request_id: String,
    body: Option<RequestBody>,
    /// Given back when the request has its answer.
    pub(crate) body_memory: Memory,
}

/// Takes a request out of a route whose path has matched.
pub(crate) fn call(
    shared: Arc<Shared>,
) -> impl Filter<Extract = (Call,), Error = warp::Rejection> + Clone + Send + Sync + 'static {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let head = warp::method().and(warp::path::full()).and(query).and(warp::header::headers_cloned());
    let request_id = warp::ext::optional::<RequestId>();
    head.and(request_id).and(warp::body::stream()).map(
        move |method, path: FullPath, query, headers, request_id: Option<RequestId>, body| Call {
            shared: Arc::clone(&shared),
            method,
            path: path.as_str().to_owned(),
            query,
            headers,
            request_id: request_id.map(|RequestId(text)| text).unwrap_or_default(),
            body: Some(RequestBody::new(body)),
            body_memory: Memory::new(Arc::clone(&shared.body_memory)),
        },
    )
}

impl Call {
    pub(crate) fn handle(&self) -> &Handle {
        &self.shared.handle
    }

    /// The body; a second time it is empty.
    pub(crate) fn take_body(&mut self) -> RequestBody {
        self.body.take().unwrap_or_else(RequestBody::empty)
    }

    /// The whole body, which is to be JSON. What all such bodies take in memory is bounded.
    pub(crate) async fn json_body(&mut self) -> Result<Bytes, Problem> {
        self.take_body().collect(&self.headers, JSON_BYTES_MAX, &mut self.body_memory).await
    }

    /// GET, or HEAD, which is answered like GET; hyper leaves the body out.
    pub(crate) fn is_get(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }

    /// What to answer to a method that the route does not have.
    pub(crate) fn other_method(&self, allowed: &[Method]) -> Response {
        if self.method == Method::OPTIONS {
            let mut response = StatusCode::NO_CONTENT.into_response();
            let allow = HeaderValue::from_str(&problem::allow(allowed)).expect("methods are plain text");
            response.headers_mut().insert(hyper::header::ALLOW, allow);
            return response;
        }
        problem::method_not_allowed(&self.method, &self.path, allowed)
    }

    /// What this replica has applied: a session that read here sees no less with `level=at-least` from here on.
    pub(crate) fn applied(&self) -> Slot {
        *self.handle().applied_watch().borrow()
    }

    pub(crate) fn parameters(&self) -> Result<Parameters, Problem> {
        Parameters::parse(&self.query)
    }

    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Result<Option<&str>, Problem> {
        match self.headers.get(name) {
            None => Ok(None),
            Some(value) => {
                value.to_str().map(Some).map_err(|_| bad_request(format!("the header {name} is not plain text")))
            }
        }
    }

    pub(crate) fn idempotency_key(&self) -> Result<Option<IdempotencyKey>, Problem> {
        Ok(self.header("idempotency-key")?.map(IdempotencyKey::new).transpose()?)
    }

    /// Options of a write whose body is there.
    pub(crate) fn write_options(&self, request: Digest, timeout: Timeout) -> Result<WriteOptions, Problem> {
        Ok(WriteOptions { key: self.idempotency_key()?, request, deadline: timeout.deadline() })
    }

    /// The media type of the body, without its parameters and in lower case.
    pub(crate) fn media_type(&self) -> String {
        let value = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    /// The form of the result that the request asks for.
    pub(crate) fn form(&self, rows: Rows, integers: Integers) -> Form {
        let accept = self.headers.get_all(ACCEPT);
        let asked = accept.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        for range in asked {
            match range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
                "text/csv" => return Form::Csv,
                "application/x-ndjson" | "application/jsonl" => return Form::Lines(rows, integers),
                "application/json" | "*/*" | "application/*" => break,
                _ => {}
            }
        }
        Form::Json(rows, integers)
    }

    /// Refuses preconditions where none is honoured: a client that sends one relies on it.
    pub(crate) fn refuse_preconditions(&self) -> Result<(), Problem> {
        for name in [IF_MATCH, IF_NONE_MATCH] {
            if self.headers.contains_key(&name) {
                return Err(Problem::new(Code::Precondition, format!("{} {} takes no {name}", self.method, self.path))
                    .with_hint("a batch with \"expect\" makes a change depend on what is there"));
            }
        }
        Ok(())
    }
}

/// Digests what makes two requests the same: the route, the database, and whatever the body says. Each part is digested
/// with its length, so that no two lists of parts are confused.
pub(crate) fn request_digest(parts: &[&[u8]]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(b"d3b request v1\0");
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finish()
}

/// A response with a body.
pub(crate) fn respond(status: StatusCode, content_type: &'static str, body: impl Reply) -> Response {
    let mut response = body.into_response();
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A JSON response.
pub(crate) fn json(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let mut bytes = serde_json::to_vec(body).expect("our own types are JSON");
    bytes.push(b'\n');
    respond(status, "application/json", bytes)
}

/// Says which slot an answer goes back to.
pub(crate) fn with_slot(mut response: Response, slot: Slot) -> Response {
    response.headers_mut().insert("d3b-slot", slot.0.into());
    response
}

/// Sets a header whose value was made here, or was checked.
pub(crate) fn set_header(response: &mut Response, name: &'static str, value: &str) {
    // A value that is no header text (a stored media type, say) is left out rather than failing the whole answer.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_differ_have_different_digests() {
        let digest = |parts: &[&[u8]]| request_digest(parts);
        assert_eq!(digest(&[b"query", b"shop", b"{}"]), digest(&[b"query", b"shop", b"{}"]));
        assert_ne!(digest(&[b"query", b"shop", b"{}"]), digest(&[b"batch", b"shop", b"{}"]));
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
    }
}
