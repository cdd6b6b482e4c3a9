//! Streams as response bodies.

use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use warp::reply::{Reply, Response};

/// A response whose body is produced while it is sent. An error breaks the connection off, which is the only way to tell
/// a client that a body with status 200 is not whole.
pub(crate) fn response(stream: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Response {
    warp::reply::stream(Shareable(Mutex::new(Box::pin(stream)))).into_response()
}

/// A response whose body is at hand, and let go of when it is sent.
pub(crate) fn whole(bytes: Bytes) -> Response {
    let length = bytes.len();
    let mut response = self::response(futures_util::stream::once(std::future::ready(Ok(bytes))));
    response.headers_mut().insert(hyper::header::CONTENT_LENGTH, length.into());
    response
}

/// A stream that may be shared between threads, as warp's bodies must be, although nobody shares it: it is polled
/// through an exclusive borrow, so that the lock is never taken.
struct Shareable<S>(Mutex<Pin<Box<S>>>);

impl<S: Stream> Stream for Shareable<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.0.get_mut().expect("a panic would have ended the body").as_mut().poll_next(cx)
    }
}
