//! Requests, and bodies that can be sent more than once.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http;

use super::Endpoint;
use crate::IdempotencyKey;

pub use ureq::http::Method;

/// What stays as it is in paths and query strings.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// From this size on a body is sent only when the server has seen the head and wants it.
const EXPECT_BYTES_MIN: u64 = 1 << 20;

/// Is told how many bytes of a body have been sent so far.
pub type SendProgress = dyn Fn(u64) + Send + Sync;

/// The key of a write, and the database in which its outcome is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteKey {
    /// The key.
    pub key: String,
    /// The database's name; the catalogue's for changes of databases as a whole.
    pub db: String,
}

/// One request, to be sent to any replica, more than once if need be.
#[derive(Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query, encoded.
    pub target: String,
    /// Headers besides those that the client sets itself.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Arc<Body>,
    /// The key under which it is executed, if it writes.
    pub key: Option<WriteKey>,
    pub(super) wait: Duration,
    pub(super) tell: bool,
    pub(super) probe: Option<&'static str>,
    pub(super) once: bool,
    pub(super) endless: bool,
    pub(super) progress: Option<Arc<SendProgress>>,
}

impl Request {
    /// A request for a path, given in segments that are not encoded yet.
    #[must_use]
    pub fn new(method: Method, segments: &[&str]) -> Request {
        let target: String = segments.iter().map(|segment| format!("/{}", encode_segment(segment))).collect();
        Request {
            method,
            target,
            headers: Vec::new(),
            body: Arc::default(),
            key: None,
            wait: Duration::from_secs(10),
            tell: false,
            probe: None,
            once: false,
            endless: false,
            progress: None,
        }
    }

    /// A GET.
    #[must_use]
    pub fn get(segments: &[&str]) -> Request {
        Request::new(Method::GET, segments)
    }

    /// The same request for the head of its answer only.
    #[must_use]
    pub fn head_only(mut self) -> Request {
        self.method = Method::HEAD;
        self
    }

    /// Adds a parameter to the query string.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: impl AsRef<str>) -> Request {
        let sign = if self.target.contains('?') { '&' } else { '?' };
        self.target.push_str(&format!("{sign}{name}={}", utf8_percent_encode(value.as_ref(), PLAIN)));
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Request {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets the body and its media type.
    #[must_use]
    pub fn body(mut self, media_type: &str, body: Body) -> Request {
        self.body = Arc::new(body);
        self.header("content-type", media_type)
    }

    /// Makes it a write under a key, whose outcome is kept in a database.
    #[must_use]
    pub fn write(mut self, key: &IdempotencyKey, db: &str) -> Request {
        self.key = Some(WriteKey { key: key.as_str().to_owned(), db: db.to_owned() });
        self.header("idempotency-key", key.as_str())
    }

    /// How long to wait for an answer, over all attempts; `tell` makes each attempt tell its replica its part of it.
    #[must_use]
    pub fn waiting(mut self, wait: Duration, tell: bool) -> Request {
        (self.wait, self.tell) = (wait, tell);
        self
    }

    /// Asks a route whether a replica can serve before it gets the request, as long as there are other replicas. For
    /// requests that may take long: without this, each replica would get its part of the time only.
    #[must_use]
    pub fn probing(mut self, route: &'static str) -> Request {
        self.probe = Some(route);
        self
    }

    /// Goes over the endpoints once.
    #[must_use]
    pub fn once(mut self) -> Request {
        self.once = true;
        self
    }

    /// The answer's body may pause for any time.
    #[must_use]
    pub fn endless(mut self) -> Request {
        self.endless = true;
        self
    }

    /// Reports how much of the body was sent.
    #[must_use]
    pub fn reporting(mut self, progress: Arc<SendProgress>) -> Request {
        self.progress = Some(progress);
        self
    }

    /// Whether the server ends the wait by itself, with an answer that says why.
    pub(super) fn is_timed_by_the_server(&self) -> bool {
        self.tell || self.probe.is_some()
    }

    /// How long a replica that can serve gets, of the time that is `left`: what it was not told to hurry for, it does in
    /// a time of its own, which is the whole wait.
    pub(super) fn long_wait(&self, left: Duration) -> Duration {
        if self.tell { left } else { self.wait }
    }

    pub(super) fn has_body(&self) -> bool {
        self.method == Method::PUT || self.method == Method::POST
    }

    /// Everything but the body, for one endpoint.
    pub(super) fn head(&self, endpoint: &Endpoint, wait: Duration) -> Result<http::Request<()>, http::Error> {
        let mut target = self.target.clone();
        if self.tell {
            let sign = if target.contains('?') { '&' } else { '?' };
            target.push_str(&format!("{sign}timeout={}ms", wait.as_millis().max(1)));
        }
        let mut builder = http::Request::builder().method(self.method.clone()).uri(format!("{endpoint}{target}"));
        for (name, value) in &self.headers {
            builder = builder.header(*name, value);
        }
        if self.has_body() {
            let length = self.body.length();
            builder = builder.header("content-length", length);
            if length >= EXPECT_BYTES_MIN {
                builder = builder.header("expect", "100-continue");
            }
        }
        builder.body(())
    }
}

/// Encodes one segment of a path. Dots alone would be taken for directories on the way.
fn encode_segment(segment: &str) -> String {
    match segment {
        "." | ".." => segment.replace('.', "%2E"),
        _ => utf8_percent_encode(segment, PLAIN).to_string(),
    }
}

/// A body of known length that can be sent again. Files are read as they are sent, so that memory stays flat.
#[derive(Debug, Default)]
pub struct Body {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    File { file: File, length: u64 },
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::File { length, .. } => *length,
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Piece::Bytes(bytes) => {
                bytes.as_slice().split_at(usize::try_from(offset).unwrap_or(bytes.len())).1.read(buffer)
            }
            Piece::File { file, .. } => match file.read_at(buffer, offset)? {
                0 if !buffer.is_empty() => {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent"))
                }
                read => Ok(read),
            },
        }
    }
}

impl Body {
    /// Bytes that are at hand.
    #[must_use]
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Body {
        Body { pieces: vec![Piece::Bytes(bytes.into())] }
    }

    /// The first `length` bytes of a file.
    #[must_use]
    pub fn file(file: File, length: u64) -> Body {
        Body { pieces: vec![Piece::File { file, length }] }
    }

    /// This body and then another one.
    #[must_use]
    pub fn then(mut self, other: Body) -> Body {
        self.pieces.extend(other.pieces);
        self
    }

    /// In bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.pieces.iter().map(Piece::length).sum()
    }

    /// The bytes, if all of them are at hand.
    #[must_use]
    pub fn at_hand(&self) -> Option<Vec<u8>> {
        let pieces = self.pieces.iter().map(|piece| match piece {
            Piece::Bytes(bytes) => Some(bytes.as_slice()),
            Piece::File { .. } => None,
        });
        pieces.collect::<Option<Vec<_>>>().map(|pieces| pieces.concat())
    }

    pub(super) fn reader<'a>(&'a self, progress: Option<&'a SendProgress>) -> BodyReader<'a> {
        BodyReader { body: self, piece: 0, offset: 0, sent: 0, first: None, last: None, error: None, progress }
    }
}

/// One way through a body.
pub(super) struct BodyReader<'a> {
    body: &'a Body,
    piece: usize,
    offset: u64,
    sent: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    error: Option<io::Error>,
    progress: Option<&'a SendProgress>,
}

impl BodyReader<'_> {
    /// How long the body was under way.
    pub(super) fn moved(&self) -> Duration {
        self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last.duration_since(first))
    }

    /// Why the body could not be read: an error of this machine, not of the connection.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }
}

impl Read for BodyReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        while let Some(piece) = self.body.pieces.get(self.piece) {
            let left = piece.length() - self.offset;
            if left == 0 {
                (self.piece, self.offset) = (self.piece + 1, 0);
                continue;
            }
            let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match piece.read_at(&mut buffer[..length], self.offset) {
                Ok(read) => read,
                Err(error) => {
                    let copy = io::Error::new(error.kind(), error.to_string());
                    self.error = Some(error);
                    return Err(copy);
                }
            };
            self.offset += read as u64;
            self.sent += read as u64;
            if let Some(progress) = self.progress {
                progress(self.sent);
            }
            return Ok(read);
        }
        Ok(0)
    }
}
