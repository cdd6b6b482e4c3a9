//! One run of a command: the client, what it goes by, and what it tells on the way.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use d3b::IdempotencyKey;
use d3b::client::{Client, Endpoint, Failure, Method, Observer, Request, Response};

use crate::error::CliError;
use crate::settings::{ReadLevel, Settings};
use crate::signals;

/// The catalogue keeps the outcomes of changes to databases as a whole.
pub const CATALOGUE: &str = d3b::DatabaseName::CATALOGUE;

/// What a command works with.
#[derive(Debug)]
pub struct Session {
    /// What it goes by.
    pub settings: Settings,
    /// The way to the cluster.
    pub client: Client,
}

/// Tells what the client does, if somebody wants to know.
struct Narrator {
    verbose: bool,
}

impl Observer for Narrator {
    fn sending(&self, endpoint: &Endpoint, request: &Request) {
        if self.verbose {
            tell(&format!("> {} {endpoint}{}", request.method, request.target));
        }
    }

    fn failed(&self, failure: &Failure) {
        if self.verbose {
            tell(&format!("< {}: {}", failure.endpoint, failure.cause));
        }
    }
}

/// Writes a line to standard error.
pub fn tell(line: &str) {
    // Where nobody reads it any more, nobody misses it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Session {
    /// A session with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Session {
        let agent = concat!("d3bctl/", env!("CARGO_PKG_VERSION"));
        let narrator = Narrator { verbose: settings.verbose };
        let client = Client::new(settings.endpoints.clone(), agent, Arc::new(narrator));
        Session { settings, client }
    }

    /// How long to wait, where that is not told, `default`; the server is told what the user told.
    fn waiting(&self, request: Request, default: Duration) -> Request {
        request.waiting(self.settings.timeout.unwrap_or(default), self.settings.timeout.is_some())
    }

    /// A read of a route that takes a level, and answers soon.
    #[must_use]
    pub fn read(&self, segments: &[&str]) -> Request {
        self.at_level(Request::get(segments)).waiting(self.settings.wait(), true)
    }

    /// A read of a route that takes a level, and may take long: `default` is how long, unless the user tells.
    #[must_use]
    pub fn long(&self, request: Request, default: Duration) -> Request {
        let probe = match self.settings.level {
            ReadLevel::Linearizable => "readyz",
            ReadLevel::Stale | ReadLevel::AtLeast(_) => "livez",
        };
        self.waiting(self.at_level(request), default).probing(probe)
    }

    /// A question that a replica answers by itself, without the group.
    #[must_use]
    pub fn local(&self, segments: &[&str]) -> Request {
        Request::get(segments).waiting(self.settings.wait(), false)
    }

    /// A write, under a key; `db` is where its outcome is kept.
    #[must_use]
    pub fn change(&self, request: Request, db: &str) -> Request {
        request.write(&self.key(), db).waiting(self.settings.wait(), true)
    }

    /// Adds how fresh a read must be.
    fn at_level(&self, request: Request) -> Request {
        match self.settings.level {
            ReadLevel::Linearizable => request,
            ReadLevel::Stale => request.parameter("level", "stale"),
            ReadLevel::AtLeast(slot) => request.parameter("level", "at-least").parameter("slot", slot.to_string()),
        }
    }

    /// The user's key, or a new one.
    #[must_use]
    pub fn key(&self) -> IdempotencyKey {
        self.settings.key.clone().unwrap_or_else(|| {
            IdempotencyKey::new(uuid::Uuid::now_v7().to_string()).expect("a UUID is printable ASCII")
        })
    }

    /// Sends a read.
    ///
    /// # Errors
    /// The problem, or why there is no answer.
    pub fn send(&self, request: &Request) -> Result<Response, CliError> {
        self.send_with(&self.client, request)
    }

    /// Sends a read with a client of this one's kin.
    ///
    /// # Errors
    /// The problem, or why there is no answer.
    pub fn send_with(&self, client: &Client, request: &Request) -> Result<Response, CliError> {
        self.show(request, &[]);
        Ok(client.send(request)?)
    }

    /// Sends a write, unless nothing is to be written. `curl` is how curl is told its body, if that is not at hand.
    ///
    /// # Errors
    /// The problem, or why there is no answer.
    pub fn write(&self, request: &Request, curl: &[String]) -> Result<Option<Response>, CliError> {
        self.show(request, curl);
        if self.settings.dry_run {
            let endpoint = &self.client.endpoints()[0];
            let length = request.body.length();
            let line = format!("would send: {} {endpoint}{} ({length} bytes)\n", request.method, request.target);
            std::io::stdout().write_all(line.as_bytes()).map_err(CliError::Output)?;
            return Ok(None);
        }
        signals::writing(request.key.clone().map(|key| (key, self.client.endpoints()[0].clone())));
        let answer = self.client.send(request);
        signals::writing(None);
        Ok(Some(answer?))
    }

    fn show(&self, request: &Request, curl: &[String]) {
        if self.settings.show_curl {
            tell(&curl_command(&self.client.endpoints()[0], request, curl));
        }
    }

    /// Tells people something that is no data.
    pub fn note(&self, text: &str) {
        if !self.settings.quiet && (self.settings.interactive || self.settings.verbose) {
            tell(text);
        }
    }
}

/// A request as a command of curl.
fn curl_command(endpoint: &Endpoint, request: &Request, body: &[String]) -> String {
    let mut words = vec!["curl".to_owned()];
    if request.method == Method::HEAD {
        words.push("-I".to_owned());
    } else if request.method != Method::GET {
        words.extend(["-X".to_owned(), request.method.to_string()]);
    }
    for (name, value) in &request.headers {
        // curl makes the boundary of a form itself.
        if !value.starts_with("multipart/form-data") {
            words.extend(["-H".to_owned(), format!("{name}: {value}")]);
        }
    }
    if body.is_empty() {
        if let Some(bytes) = request.body.at_hand().filter(|bytes| !bytes.is_empty()) {
            words.extend(["--data-binary".to_owned(), String::from_utf8_lossy(&bytes).into_owned()]);
        }
    } else {
        words.extend(body.iter().cloned());
    }
    words.push(format!("{endpoint}{}", request.target));
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@' | '%' | '+' | ',');
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use d3b::client::Body;

    use super::*;

    #[test]
    fn requests_are_told_as_curl_commands() {
        let endpoint: Endpoint = "127.0.0.1:1".parse().unwrap();
        let key = IdempotencyKey::new("k 1").unwrap();
        let request = Request::new(Method::POST, &["v1", "db", "a b", "query"])
            .body("application/json", Body::bytes(br#"{"sql":"SELECT 'x'"}"#))
            .write(&key, "a b");
        assert_eq!(
            curl_command(&endpoint, &request, &[]),
            r#"curl -X POST -H 'content-type: application/json' -H 'idempotency-key: k 1' --data-binary '{"sql":"SELECT '\''x'\''"}' http://127.0.0.1:1/v1/db/a%20b/query"#
        );
        let request = Request::get(&["v1", "db"]).parameter("level", "stale");
        assert_eq!(curl_command(&endpoint, &request, &[]), "curl 'http://127.0.0.1:1/v1/db?level=stale'");
    }
}
