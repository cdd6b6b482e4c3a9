//! Answers: small ones in memory, large ones as they come.

use std::io::{self, Cursor, Read};

use serde::de::DeserializeOwned;
use ureq::http;

use super::error::describe_io;
use super::{ClientError, Endpoint};
use crate::{Digest, Problem};

/// A body that says that it is no longer than this is taken in at once, as a part of the attempt: one that breaks off
/// is asked for again.
const SMALL_MAX: u64 = 1 << 20;
/// The most that a body which is wanted whole may have.
const WHOLE_MAX: u64 = 256 << 20;

/// An answer, whose body is read from it.
pub struct Response {
    endpoint: Endpoint,
    status: u16,
    headers: http::HeaderMap,
    body: ResponseBody,
}

enum ResponseBody {
    Whole(Cursor<Vec<u8>>),
    Stream(ureq::BodyReader<'static>),
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Response")
            .field("endpoint", &self.endpoint)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Response {
    /// Takes what came; the error is in a few words.
    pub(super) fn take(endpoint: &Endpoint, answer: http::Response<ureq::Body>) -> Result<Response, String> {
        let (parts, body) = answer.into_parts();
        let status = parts.status.as_u16();
        let length = body.content_length();
        let mut reader = body.into_reader();
        let small = length.is_some_and(|length| length <= SMALL_MAX) || status >= 400;
        let body = if small {
            let mut bytes = Vec::new();
            (&mut reader).take(SMALL_MAX).read_to_end(&mut bytes).map_err(|error| describe_io(&error))?;
            ResponseBody::Whole(Cursor::new(bytes))
        } else {
            ResponseBody::Stream(reader)
        };
        Ok(Response { endpoint: endpoint.clone(), status, headers: parts.headers, body })
    }

    /// Who answered.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// A header, if it is there and plain text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header that is a whole number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.parse().ok()
    }

    /// What `Repr-Digest` says of the whole representation.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        Digest::from_repr_digest(self.header("repr-digest")?).ok().flatten()
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        match &self.body {
            ResponseBody::Whole(bytes) => Problem::from_json(bytes.get_ref()),
            ResponseBody::Stream(_) => None,
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// It broke off, or is larger than anything that is wanted whole.
    pub fn bytes(mut self) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        let read = (&mut self).take(WHOLE_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.broken_off(&error))?;
        if bytes.len() as u64 > WHOLE_MAX {
            return Err(self.malformed(format!("it is larger than {} MiB", WHOLE_MAX >> 20)));
        }
        Ok(bytes)
    }

    /// The body as one of our types, and as it came.
    ///
    /// # Errors
    /// It broke off, or is not what it should be.
    pub fn json<T: DeserializeOwned>(self) -> Result<(T, Vec<u8>), ClientError> {
        let endpoint = self.endpoint.clone();
        let bytes = self.bytes()?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok((value, bytes)),
            Err(error) => Err(ClientError::Malformed { endpoint, detail: error.to_string() }),
        }
    }

    /// The error for a body that could not be read to its end.
    #[must_use]
    pub fn broken_off(&self, error: &io::Error) -> ClientError {
        ClientError::BrokenOff { endpoint: self.endpoint.clone(), cause: describe_io(error) }
    }

    /// The error for a body that is not what it should be.
    #[must_use]
    pub fn malformed(&self, detail: impl Into<String>) -> ClientError {
        ClientError::Malformed { endpoint: self.endpoint.clone(), detail: detail.into() }
    }
}

impl Read for Response {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.body {
            ResponseBody::Whole(bytes) => bytes.read(buffer),
            ResponseBody::Stream(reader) => reader.read(buffer),
        }
    }
}
