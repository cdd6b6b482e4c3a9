//! Request bodies: bounded in size, and in how slowly they may come.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use d3b::{BlobReference, Code, Digest, Problem};
use futures_util::{Stream, StreamExt};
use hyper::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use tokio::time::{Instant, Sleep};

use super::memory::Memory;
use super::problem::bad_request;
use crate::handle::{BlobUpload, Handle};

/// JSON bodies.
pub(crate) const JSON_BYTES_MAX: u64 = 8 << 20;
/// The longest pause of a client within a body.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The slowest rate at which a body may come, over all its pauses, once it has used up one `PAUSE_MAX`.
const BYTES_PER_SECOND_MIN: u64 = 1 << 10;

/// Why a body did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the request's body came too slowly: nothing for {} s, or less than {BYTES_PER_SECOND_MIN} bytes a second", PAUSE_MAX.as_secs())]
    TooSlow,
    #[error("the request's body broke off")]
    BrokenOff(#[source] hyper::Error),
}

/// A body that fails when its client is too slow. Only the time in which the client is waited for counts.
pub(crate) struct Patient {
    body: Incoming,
    received: u64,
    waited: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Patient {
    pub(crate) fn new(body: Incoming) -> Patient {
        Patient { body, received: 0, waited: Duration::ZERO, waiting: None }
    }

    /// How long the next piece may take.
    fn patience(&self) -> Duration {
        let earned = Duration::from_secs(self.received / BYTES_PER_SECOND_MIN);
        (PAUSE_MAX + earned).saturating_sub(self.waited).min(PAUSE_MAX)
    }
}

impl Body for Patient {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some((since, _)) = self.waiting.take() {
                    self.waited += since.elapsed();
                }
                if let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref)) {
                    self.received += data.map_or(0, |data| data.len() as u64);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::BrokenOff)))
            }
            Poll::Pending => {
                let patience = self.patience();
                let now = Instant::now();
                let (_, sleep) =
                    self.waiting.get_or_insert_with(|| (now, Box::pin(tokio::time::sleep_until(now + patience))));
                match sleep.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Some(Err(BodyError::TooSlow))),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body as handlers read it.
pub(crate) struct RequestBody {
    stream: Pin<Box<dyn Stream<Item = Result<Bytes, warp::Error>> + Send + Sync>>,
}

impl RequestBody {
    pub(crate) fn new<B: Buf>(
        stream: impl Stream<Item = Result<B, warp::Error>> + Send + Sync + 'static,
    ) -> RequestBody {
        let bytes = |mut buffer: B| buffer.copy_to_bytes(buffer.remaining());
        RequestBody { stream: Box::pin(stream.map(move |piece| piece.map(bytes))) }
    }

    /// A body without bytes.
    pub(crate) fn empty() -> RequestBody {
        RequestBody { stream: Box::pin(futures_util::stream::empty()) }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// `request-timeout`, or `bad-request` for a body that was cut short.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        self.stream.next().await.transpose().map_err(|error| arrival_problem(&error))
    }

    /// The whole body, if it has at most `bytes_max` bytes.
    pub(crate) async fn collect(
        mut self,
        headers: &HeaderMap,
        bytes_max: u64,
        memory: &mut Memory,
    ) -> Result<Bytes, Problem> {
        check_encoding(headers)?;
        let announced = check_length(headers, bytes_max)?;
        let whole = self.gather(announced, bytes_max, memory).await?;
        if let Some(digest) = announced_digest(headers)? {
            check_digest(Some(digest), Digest::of(&whole))?;
        }
        Ok(whole)
    }

    async fn gather(&mut self, announced: Option<u64>, bytes_max: u64, memory: &mut Memory) -> Result<Bytes, Problem> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        memory.grow(first.len())?;
        if announced == Some(first.len() as u64) {
            return Ok(first);
        }
        let mut whole = BytesMut::from(first);
        while let Some(piece) = self.next().await? {
            if (whole.len() + piece.len()) as u64 > bytes_max {
                return Err(too_large(bytes_max));
            }
            memory.grow(whole.len() + piece.len())?;
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// Streams the body into the blob store, and verifies a digest that came with it. `None` for an empty body, which is
    /// not stored unless `keep_empty`.
    pub(crate) async fn store(
        mut self,
        headers: &HeaderMap,
        handle: &Handle,
        bytes_max: u64,
        keep_empty: bool,
    ) -> Result<Option<BlobReference>, Problem> {
        check_encoding(headers)?;
        check_length(headers, bytes_max)?;
        let announced = announced_digest(headers)?;
        let mut upload: Option<BlobUpload> = None;
        let mut length = 0;
        while let Some(piece) = self.next().await? {
            length += piece.len() as u64;
            if length > bytes_max {
                return Err(too_large(bytes_max));
            }
            let writer = match &mut upload {
                Some(writer) => writer,
                None => upload.insert(handle.begin_blob(bytes_max).await?),
            };
            writer.write(piece).await?;
        }
        if upload.is_none() && keep_empty {
            upload = Some(handle.begin_blob(bytes_max).await?);
        }
        let blob = match upload {
            Some(upload) => Some(upload.finish().await?),
            None => None,
        };
        let digest = blob.map_or_else(|| Digest::of(b""), |blob| blob.digest);
        check_digest(announced, digest)?;
        Ok(blob)
    }

    /// The pieces as a stream, for parsers.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Bytes, warp::Error>> + Send {
        self.stream
    }
}

/// Says why a body did not arrive.
pub(crate) fn arrival_problem(error: &(dyn std::error::Error + 'static)) -> Problem {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<BodyError>() {
            Some(BodyError::TooSlow) => return Problem::new(Code::RequestTimeout, BodyError::TooSlow.to_string()),
            Some(error @ BodyError::BrokenOff(source)) => return bad_request(format!("{error}: {source}")),
            None => cause = error.source(),
        }
    }
    bad_request(format!("the request's body cannot be read: {error}"))
}

/// The announced length, if there is one and it is within bounds.
pub(crate) fn check_length(headers: &HeaderMap, bytes_max: u64) -> Result<Option<u64>, Problem> {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > bytes_max) { Err(too_large(bytes_max)) } else { Ok(length) }
}

pub(crate) fn too_large(bytes_max: u64) -> Problem {
    Problem::new(Code::TooLarge, format!("the body is larger than {bytes_max} bytes, the most that is taken here"))
}

/// Bodies are taken as they are: a compressed one would be stored compressed, which nobody means.
pub(crate) fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            let detail = format!("Content-Encoding {encoding:?} is not supported; send the bytes themselves");
            Err(Problem::new(Code::UnsupportedMediaType, detail))
        }
        Some(_) | None => Ok(()),
    }
}

/// The SHA-256 that a request says its body has (`Repr-Digest` or `Content-Digest`, RFC 9530).
pub(crate) fn announced_digest(headers: &HeaderMap) -> Result<Option<Digest>, Problem> {
    for name in ["repr-digest", "content-digest"] {
        for value in headers.get_all(name) {
            let value = value.to_str().map_err(|_| bad_request(format!("the header {name} is not plain text")))?;
            if let Some(digest) = Digest::from_repr_digest(value)? {
                return Ok(Some(digest));
            }
        }
    }
    Ok(None)
}

/// Compares what was announced with what came.
pub(crate) fn check_digest(announced: Option<Digest>, found: Digest) -> Result<(), Problem> {
    match announced {
        Some(announced) if announced != found => {
            let detail = format!("the body has the SHA-256 {found}, not {announced} as its header says");
            Err(Problem::new(Code::DigestMismatch, detail).with_hint("it was damaged on the way; send it again"))
        }
        Some(_) | None => Ok(()),
    }
}

/// The body's text.
pub(crate) fn utf8(body: &Bytes) -> Result<&str, Problem> {
    if body.is_empty() {
        return Err(bad_request("the body is empty; a JSON object is expected"));
    }
    std::str::from_utf8(body)
        .map_err(|error| bad_request(format!("the body is not UTF-8: byte {} is out of place", error.valid_up_to())))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn digests_are_read_and_compared() {
        let digest = Digest::of(b"abc");
        let mut headers = HeaderMap::new();
        assert_eq!(announced_digest(&headers).unwrap(), None);
        headers.insert("repr-digest", HeaderValue::from_str(&digest.to_repr_digest()).unwrap());
        assert_eq!(announced_digest(&headers).unwrap(), Some(digest));
        assert_eq!(check_digest(Some(digest), Digest::of(b"abd")).unwrap_err().code, Code::DigestMismatch);
        assert!(check_digest(Some(digest), digest).is_ok());
        headers.insert("repr-digest", HeaderValue::from_static("sha-256=:AAAA:"));
        assert_eq!(announced_digest(&headers).unwrap_err().code, Code::BadRequest);
    }

    #[test]
    fn lengths_and_encodings_are_checked_before_a_byte_is_read() {
        let mut headers = HeaderMap::new();
        assert_eq!(check_length(&headers, 10).unwrap(), None);
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("11"));
        assert_eq!(check_length(&headers, 10).unwrap_err().code, Code::TooLarge);
        assert_eq!(check_length(&headers, 11).unwrap(), Some(11));
        assert!(check_encoding(&headers).is_ok());
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(check_encoding(&headers).unwrap_err().code, Code::UnsupportedMediaType);
    }

    #[test]
    fn bodies_are_text() {
        assert!(utf8(&Bytes::new()).unwrap_err().detail.contains("empty"));
        assert!(utf8(&Bytes::from_static(b"ab\xff")).unwrap_err().detail.contains("byte 2"));
    }
}
