//! Serves blobs to peers: `GET /blobs/SHA256`, with `Range: bytes=FROM-`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use d3b::{BlobReference, Digest};
use futures_util::TryStreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::{BlobStore, blob_stream};
use crate::rate::Rate;

/// How long a peer may take to say what it wants.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Told of each blob that a peer asks for, and of each piece of it that is sent; says how fast it may go, if it is to be
/// bounded.
pub type OnServed = Arc<dyn Fn(&Digest) -> Option<Arc<Rate>> + Send + Sync>;

/// Answers the requests on a stream that a peer opened, until it closes it.
pub async fn serve(stream: TcpStream, store: BlobStore, on_served: OnServed) {
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (store, on_served) = (store.clone(), Arc::clone(&on_served));
        async move { Ok::<_, Infallible>(answer(&request, store, on_served).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a peer's stream for blobs ended");
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

async fn answer(request: &Request<hyper::body::Incoming>, store: BlobStore, on_served: OnServed) -> Response<Body> {
    if request.method() != Method::GET {
        return status(StatusCode::METHOD_NOT_ALLOWED);
    }
    let digest = request.uri().path().strip_prefix("/blobs/").and_then(|name| name.parse::<Digest>().ok());
    let Some(digest) = digest else { return status(StatusCode::NOT_FOUND) };
    on_served(&digest);
    let opening = store.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let file = opening.open_file(&digest)?;
        let size = file.metadata()?.len();
        Ok::<_, std::io::Error>((file, size))
    });
    let (file, size) = match opened.await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return status(StatusCode::NOT_FOUND),
        Ok(Err(_)) | Err(_) => return status(StatusCode::INTERNAL_SERVER_ERROR),
    };
    let Some((from, length)) = range(request, size) else { return status(StatusCode::RANGE_NOT_SATISFIABLE) };
    let stream = blob_stream(&store, file, BlobReference { digest, size }, from, length);
    let paced = stream.and_then(move |piece| {
        let wait = on_served(&digest).map_or(Duration::ZERO, |rate| rate.wait(piece.len() as u64, Instant::now()));
        async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            Ok(Frame::data(piece))
        }
    });
    let body = StreamBody::new(paced).boxed_unsync();
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    if length < size {
        let last = (from + length).saturating_sub(1);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let value = format!("bytes {from}-{last}/{size}");
        response.headers_mut().insert(CONTENT_RANGE, value.try_into().expect("digits are a header's value"));
    }
    response
}

/// `bytes=FROM-` or `bytes=FROM-LAST`; everything without a range; `None` for one that makes no sense here.
fn range(request: &Request<hyper::body::Incoming>, size: u64) -> Option<(u64, u64)> {
    let Some(value) = request.headers().get(RANGE) else { return Some((0, size)) };
    let (from, last) = value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let from: u64 = from.parse().ok()?;
    let end = if last.is_empty() { size } else { last.parse::<u64>().ok()?.checked_add(1)?.min(size) };
    (from <= end).then(|| (from, end - from))
}
