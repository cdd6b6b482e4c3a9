//! One table of error codes: code, HTTP status, exit code of the CLI. Control flow goes by [`Code`]; text is made at
//! the edge, as `application/problem+json` (RFC 9457).

use serde::{Deserialize, Serialize};

use crate::Rejection;

/// Declares [`Code`] and its table.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $status:literal, $exit:literal, $title:literal;)*) => {
        /// What kind of thing went wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The name, as in `urn:d3b:problem:NAME`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name),* }
            }

            /// The HTTP status.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status),* }
            }

            /// The exit code of `d3bctl`.
            #[must_use]
            pub fn exit_code(self) -> u8 {
                match self { $(Code::$variant => $exit),* }
            }

            /// A few words for people, the same for every problem of this code.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title),* }
            }

            /// The code of that name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Code> {
                match name { $($name => Some(Code::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// The request is malformed.
    BadRequest = "bad-request", 400, 1, "The request is malformed";
    /// SQLite refused the statement.
    SqlError = "sql-error", 400, 1, "The SQL statement is in error";
    /// No or wrong credentials.
    Unauthorized = "unauthorized", 401, 4, "Credentials are missing or wrong";
    /// The credentials do not allow it.
    Forbidden = "forbidden", 403, 4, "This is not allowed";
    /// A statement that a replicated database cannot run.
    StatementDenied = "statement-denied", 403, 1, "This statement is not allowed here";
    /// No such route or thing.
    NotFound = "not-found", 404, 5, "There is no such resource";
    /// No such database.
    DatabaseNotFound = "db-not-found", 404, 5, "There is no such database";
    /// No such media file.
    MediaNotFound = "media-not-found", 404, 5, "There is no such media file";
    /// The log no longer reaches back to that slot.
    SlotCompacted = "slot-compacted", 410, 5, "The log no longer holds this slot";
    /// The route exists, with another method.
    MethodNotAllowed = "method-not-allowed", 405, 1, "The method is not allowed here";
    /// The client sent its request too slowly.
    RequestTimeout = "request-timeout", 408, 8, "The request came too slowly";
    /// A constraint of the database's schema.
    Constraint = "constraint", 409, 1, "A constraint was violated";
    /// It exists already.
    Exists = "exists", 409, 6, "It exists already";
    /// A statement of a batch did not do what it was expected to.
    ExpectationFailed = "expectation-failed", 409, 6, "An expectation was not met";
    /// The idempotency key is older than keys are kept, or dated ahead.
    KeyExpired = "key-expired", 409, 6, "The idempotency key has expired";
    /// A precondition header does not hold.
    Precondition = "precondition", 412, 6, "A precondition does not hold";
    /// A body, statement, batch or result is over its bound.
    TooLarge = "too-large", 413, 1, "It is too large";
    /// A content type that the route does not take.
    UnsupportedMediaType = "unsupported-media-type", 415, 1, "The content type is not supported here";
    /// A Range header that cannot be satisfied.
    Range = "range", 416, 1, "The range cannot be satisfied";
    /// A Host or Origin that is not this server's.
    WrongHost = "wrong-host", 421, 1, "The request names another host";
    /// The uploaded file is not a database that can be served.
    NotADatabase = "not-a-database", 422, 1, "The file is not a usable SQLite database";
    /// The key was used with another request.
    KeyReused = "key-reused", 422, 6, "The idempotency key belongs to another request";
    /// The bytes do not have the digest that was announced.
    DigestMismatch = "digest-mismatch", 422, 9, "The digest does not match";
    /// A queue or limit is full; try again later.
    Overloaded = "overloaded", 429, 7, "Too much is under way";
    /// A bug.
    Internal = "internal", 500, 10, "An internal error";
    /// No majority can be reached.
    NoQuorum = "no-quorum", 503, 7, "No majority of replicas can be reached";
    /// This replica is not ready (starting, forming, or foreign).
    NotReady = "not-ready", 503, 7, "This replica is not ready";
    /// This replica's data differs from the majority's.
    Quarantined = "quarantined", 503, 10, "This replica is quarantined";
    /// This database is damaged on this replica.
    DatabaseFenced = "database-fenced", 503, 10, "This database is fenced on this replica";
    /// The outcome of a write is not known; ask again with the same key.
    OutcomeUnknown = "outcome-unknown", 504, 8, "The outcome is unknown";
    /// The disk is full; nothing was proposed.
    DiskFull = "disk-full", 507, 10, "The disk is full";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An error as users meet it: RFC 9457 `application/problem+json`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// The kind.
    pub code: Code,
    /// The cause, as a sentence.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The database that it is about.
    pub db: Option<String>,
    /// SQLite's extended result code.
    pub sqlite_code: Option<i32>,
    /// Byte offset of the error in the statement.
    pub offset: Option<u32>,
    /// Which statement of a batch, from 0.
    pub statement: Option<u32>,
    /// Names the request in the server's log.
    pub request_id: Option<String>,
    /// The key under which the outcome can be asked for later.
    pub idempotency_key: Option<String>,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
}

impl Problem {
    /// A problem with a cause and nothing else; 429 and 503 get a `Retry-After` of one second.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Problem {
        Problem {
            code,
            detail: detail.into(),
            hint: None,
            db: None,
            sqlite_code: None,
            offset: None,
            statement: None,
            request_id: None,
            idempotency_key: None,
            retry_after: matches!(code.status(), 429 | 503).then_some(1),
        }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    /// The same, about a database.
    #[must_use]
    pub fn with_db(mut self, db: impl Into<String>) -> Problem {
        self.db = Some(db.into());
        self
    }

    /// The JSON body; absent members are left out.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(Body {
            r#type: format!("urn:d3b:problem:{}", self.code),
            title: self.code.title().to_owned(),
            status: self.code.status(),
            detail: self.detail.clone(),
            request_id: self.request_id.clone(),
            db: self.db.clone(),
            sqlite_code: self.sqlite_code,
            offset: self.offset,
            statement: self.statement,
            hint: self.hint.clone(),
            idempotency_key: self.idempotency_key.clone(),
        })
        .expect("a struct of strings and numbers is JSON")
    }

    /// Reads a body that [`Problem::to_json`] made; `None` where it is something else (a proxy's page, say).
    #[must_use]
    pub fn from_json(bytes: &[u8]) -> Option<Problem> {
        let body: Body = serde_json::from_slice(bytes).ok()?;
        let code = Code::from_name(body.r#type.strip_prefix("urn:d3b:problem:")?)?;
        Some(Problem {
            code,
            detail: body.detail,
            hint: body.hint,
            db: body.db,
            sqlite_code: body.sqlite_code,
            offset: body.offset,
            statement: body.statement,
            request_id: body.request_id,
            idempotency_key: body.idempotency_key,
            retry_after: None,
        })
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Problem {
        Problem {
            hint: rejection.hint,
            sqlite_code: rejection.sqlite_code,
            offset: rejection.offset,
            statement: rejection.statement,
            ..Problem::new(rejection.code, rejection.detail)
        }
    }
}

impl From<crate::InvalidId> for Problem {
    fn from(invalid: crate::InvalidId) -> Problem {
        Problem::new(Code::BadRequest, invalid.to_string())
    }
}

/// The members of a problem's JSON, in the order in which people read them.
#[derive(Serialize, Deserialize)]
struct Body {
    r#type: String,
    title: String,
    status: u16,
    detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    db: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sqlite_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    statement: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_serde_names_agree() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), serde_json::json!(code.name()));
            assert_eq!(Code::from_name(code.name()), Some(*code));
        }
    }

    #[test]
    fn a_problem_survives_its_json() {
        let mut problem =
            Problem::new(Code::SqlError, "near \"SELEC\": syntax error").with_hint("check it").with_db("shop");
        problem.sqlite_code = Some(1);
        problem.statement = Some(2);
        let bytes = serde_json::to_vec(&problem.to_json()).unwrap();
        assert_eq!(Problem::from_json(&bytes), Some(problem));
        assert_eq!(Problem::from_json(b"<html>"), None);
    }
}
