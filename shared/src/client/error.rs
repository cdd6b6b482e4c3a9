//! Why there is no answer, and what that means for another attempt.

use std::io;

use super::{Endpoint, Failed, WriteKey};
use crate::{Code, Problem};

/// One attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Where.
    pub endpoint: Endpoint,
    /// Why, in a few words.
    pub cause: String,
}

fn listed(failures: &[Failure]) -> String {
    let texts = failures.iter().map(|failure| format!("{}: {}", failure.endpoint, failure.cause));
    texts.collect::<Vec<_>>().join("; ")
}

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A replica answered with a problem.
    #[error("{problem}")]
    Problem {
        /// Which one.
        endpoint: Endpoint,
        /// What it said.
        problem: Box<Problem>,
    },
    /// Nobody could be reached.
    #[error("no endpoint can be reached: {}", listed(.0))]
    Unreachable(Vec<Failure>),
    /// Somebody was reached, and nobody answered in time.
    #[error("there was no answer in time: {}", listed(.0))]
    Timeout(Vec<Failure>),
    /// A write was sent, and no answer tells what came of it.
    #[error("it is not known whether the write took effect: {}", listed(.failures))]
    OutcomeUnknown {
        /// How to ask for it.
        key: WriteKey,
        /// What went wrong.
        failures: Vec<Failure>,
    },
    /// Somebody else answers at that address.
    #[error("{endpoint} answers with status {status}, and not as d3bd does")]
    Foreign {
        /// Where.
        endpoint: Endpoint,
        /// The HTTP status.
        status: u16,
    },
    /// The beginning of an answer was received, its end was not.
    #[error("the answer of {endpoint} broke off: {cause}")]
    BrokenOff {
        /// Whose.
        endpoint: Endpoint,
        /// Why.
        cause: String,
    },
    /// An answer that is not what the route answers.
    #[error("the answer of {endpoint} cannot be read: {detail}")]
    Malformed {
        /// Whose.
        endpoint: Endpoint,
        /// What is wrong with it.
        detail: String,
    },
    /// What was to be sent could not be read.
    #[error("what is to be sent cannot be read")]
    Source(#[source] io::Error),
    /// The request cannot be put into HTTP.
    #[error("the request cannot be made")]
    Request(#[source] ureq::http::Error),
}

impl ClientError {
    /// The exit code of the command line.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            ClientError::Problem { problem, .. } => problem.code.exit_code(),
            ClientError::Unreachable(_) => 3,
            ClientError::Timeout(_) | ClientError::OutcomeUnknown { .. } | ClientError::BrokenOff { .. } => 8,
            ClientError::Foreign { .. }
            | ClientError::Malformed { .. }
            | ClientError::Source(_)
            | ClientError::Request(_) => 1,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            ClientError::Problem { problem, .. } => problem.hint.clone(),
            ClientError::Unreachable(_) => {
                Some("is d3bd running there? -e or D3B_ENDPOINTS names other endpoints".to_owned())
            }
            ClientError::Timeout(_) => Some("give it more time with --timeout".to_owned()),
            ClientError::OutcomeUnknown { key, failures } => {
                let endpoint = failures.first().map(|failure| failure.endpoint.as_str()).unwrap_or("ENDPOINT");
                let WriteKey { key, db } = key;
                Some(format!(
                    "curl {endpoint}/v1/db/{db}/requests/{key} tells; or run it again with --idempotency-key {key}, \
                     which does not execute it twice"
                ))
            }
            ClientError::Foreign { .. } => Some("is this the HTTP address of a d3bd? -e names another one".to_owned()),
            ClientError::BrokenOff { .. } => Some("try again; what was printed so far is incomplete".to_owned()),
            ClientError::Malformed { .. } => Some("d3bctl version tells whether the versions agree".to_owned()),
            ClientError::Source(_) | ClientError::Request(_) => None,
        }
    }
}

/// Whether a problem may be one of this replica, or of this moment, only: `None` when it is not, `Some(true)` when
/// asking again after a pause is worth it, `Some(false)` when only another replica can help.
pub(super) fn transience(code: Code) -> Option<bool> {
    match code {
        Code::NoQuorum | Code::NotReady | Code::Overloaded | Code::OutcomeUnknown => Some(true),
        Code::Quarantined | Code::DatabaseFenced | Code::DiskFull | Code::RequestTimeout => Some(false),
        Code::BadRequest
        | Code::SqlError
        | Code::Unauthorized
        | Code::Forbidden
        | Code::StatementDenied
        | Code::NotFound
        | Code::DatabaseNotFound
        | Code::MediaNotFound
        | Code::SlotCompacted
        | Code::MethodNotAllowed
        | Code::Constraint
        | Code::Exists
        | Code::ExpectationFailed
        | Code::KeyExpired
        | Code::Precondition
        | Code::TooLarge
        | Code::UnsupportedMediaType
        | Code::Range
        | Code::WrongHost
        | Code::NotADatabase
        | Code::KeyReused
        | Code::DigestMismatch
        | Code::Internal => None,
    }
}

/// The request may have been received, and no answer was.
pub(super) fn lost(cause: String) -> Failed {
    Failed { cause, sent: true, again: true, late: false, problem: None }
}

/// What an error of the transport means.
pub(super) fn failed(error: &ureq::Error) -> Failed {
    let not_sent = |late| Failed { cause: describe(error), sent: false, again: false, late, problem: None };
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::BadUri(_) => not_sent(false),
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => not_sent(false),
        // These come of connecting; an established connection is reset, or closed.
        ureq::Error::Io(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::NetworkDown
                    | io::ErrorKind::AddrNotAvailable
            ) =>
        {
            not_sent(false)
        }
        ureq::Error::Timeout(_) => Failed { late: true, ..lost(describe(error)) },
        // The type may grow: what is not known to have happened before sending may have happened after it.
        _ => lost(describe(error)),
    }
}

/// An error of the transport in a few words.
pub(super) fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => describe_io(error),
        ureq::Error::HostNotFound => "the host is not known".to_owned(),
        ureq::Error::Timeout(ureq::Timeout::Resolve) => "the host's name is not resolved in time".to_owned(),
        ureq::Error::Timeout(ureq::Timeout::Connect) => "no connection in time".to_owned(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        other => other.to_string(),
    }
}

/// An error of a connection in a few words.
pub(super) fn describe_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "the connection was reset".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionAborted => "the connection was closed".to_owned(),
        _ => error.get_ref().and_then(|inner| inner.downcast_ref()).map_or_else(|| error.to_string(), describe),
    }
}
