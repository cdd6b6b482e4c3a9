//! A small HTTP client that tells everything as it is: no retries, no redirects, no status as an error.

use std::io::Read;
use std::time::Duration;

use d3b::{Code, Hasher, Problem};
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{HeaderMap, Request};
use ureq::{Agent, AsSendBody, Body, SendBody};

/// How long any request may take; a daemon answers sooner, if only with a refusal.
const TIMEOUT: Duration = Duration::from_secs(90);

/// The client.
#[derive(Debug, Clone)]
pub struct Http {
    agent: Agent,
}

impl Default for Http {
    fn default() -> Http {
        Http::new()
    }
}

impl Http {
    /// A client that opens a connection for every request, so that a replica that was restarted is met afresh.
    #[must_use]
    pub fn new() -> Http {
        Http::with(0, TIMEOUT)
    }

    /// A client that keeps its connection, for load; it gives up early, because it will ask again.
    #[must_use]
    pub fn persistent(timeout: Duration) -> Http {
        Http::with(1, timeout)
    }

    fn with(idle: usize, timeout: Duration) -> Http {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(idle)
            .max_idle_connections_per_host(idle)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(timeout))
            .allow_non_standard_methods(true)
            .build();
        Http { agent: config.new_agent() }
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// The connection failed: nothing is known of the request.
    pub fn try_send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<Response, ureq::Error> {
        let mut answer = self.run(method, url, headers, body)?;
        let body = answer.body_mut().with_config().limit(1 << 30).read_to_vec()?;
        Ok(Response {
            what: format!("{method} {url}"),
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            body,
        })
    }

    /// The same for a replica that must be there.
    ///
    /// # Panics
    /// When the connection failed.
    #[track_caller]
    pub fn send(&self, method: &str, url: &str, headers: &[(&str, &str)], body: impl AsSendBody) -> Response {
        self.try_send(method, url, headers, body).unwrap_or_else(|error| panic!("{method} {url}: {error}"))
    }

    /// GET.
    #[track_caller]
    pub fn get(&self, url: &str) -> Response {
        self.send("GET", url, &[], SendBody::none())
    }

    /// DELETE.
    #[track_caller]
    pub fn delete(&self, url: &str) -> Response {
        self.send("DELETE", url, &[], SendBody::none())
    }

    /// PUT of bytes.
    #[track_caller]
    pub fn put(&self, url: &str, body: &[u8]) -> Response {
        self.send("PUT", url, &[], body)
    }

    /// POST of JSON.
    #[track_caller]
    pub fn post(&self, url: &str, body: &Value) -> Response {
        self.send("POST", url, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// PUT of bytes that need not fit into memory.
    ///
    /// # Panics
    /// When the connection failed.
    #[track_caller]
    pub fn put_reader(&self, url: &str, length: u64, mut reader: impl Read) -> Response {
        let length = length.to_string();
        self.send("PUT", url, &[("content-length", &length)], SendBody::from_reader(&mut reader))
    }

    /// GET of a body that need not fit into memory: its status, length and digest.
    ///
    /// # Panics
    /// When the connection failed.
    #[track_caller]
    pub fn get_digest(&self, url: &str) -> (u16, Hasher) {
        let mut answer =
            self.run("GET", url, &[], SendBody::none()).unwrap_or_else(|error| panic!("GET {url}: {error}"));
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        let mut reader = answer.body_mut().as_reader();
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return (answer.status().as_u16(), hasher),
                Ok(length) => hasher.update(&buffer[..length]),
                Err(error) => panic!("GET {url}: {error} after {} bytes", hasher.length()),
            }
        }
    }

    fn run(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<ureq::http::Response<Body>, ureq::Error> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.agent.run(request.body(body)?)
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The request, for messages.
    what: String,
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// Demands a status.
    ///
    /// # Panics
    /// When it is another one; the message holds the body.
    #[track_caller]
    pub fn expect(self, status: u16) -> Response {
        assert_eq!(self.status, status, "{}: {}", self.what, self.text());
        self
    }

    /// Demands a problem.
    ///
    /// # Panics
    /// When it is something else.
    #[track_caller]
    pub fn expect_problem(&self, code: Code) -> Problem {
        let problem = self.problem();
        assert_eq!((self.status, problem.code), (code.status(), code), "{}: {}", self.what, self.text());
        problem
    }

    /// The problem in the body.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn problem(&self) -> Problem {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{}: {} {}",
            self.what,
            self.status,
            self.text()
        );
        Problem::from_json(&self.body).unwrap_or_else(|| panic!("{}: not a problem: {}", self.what, self.text()))
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON of that kind.
    #[must_use]
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{}: {error}: {}", self.what, self.text()))
    }

    /// The body as text, shortened where it is long.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(4_000)]).into_owned()
    }

    /// A header's text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// `D3b-Slot`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn slot(&self) -> u64 {
        let slot = self.header("d3b-slot").unwrap_or_else(|| panic!("{}: no D3b-Slot", self.what));
        slot.parse().unwrap_or_else(|_| panic!("{}: D3b-Slot: {slot}", self.what))
    }
}

/// A form as curl's `-F` sends it: its content type and its body.
#[must_use]
pub fn form(parts: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    const BOUNDARY: &str = "----d3b-tests-4711";
    let mut body = Vec::new();
    for (name, bytes) in parts {
        let file = if *name == "file" { "; filename=\"file\"\r\nContent-Type: image/jpeg" } else { "" };
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}
