//! The HTTP client: one request, several endpoints.
//!
//! Any replica takes any request, so a request goes to the first endpoint, and to the next one when that one cannot be
//! reached, does not answer, or says that it cannot serve now. What makes this safe for writes is their idempotency
//! key, which stays the same over all attempts: the group executes the write once, and a later attempt gets the first
//! one's answer.
//!
//! How an attempt fails decides what follows:
//!
//! * *not sent* (refused, unknown host, no connection in time): the next endpoint; when all are like that, the end;
//! * *sent, no answer* (reset, timeout): the next endpoint, and round again while there is time. Of a write it is not
//!   known whether it took effect until some replica says so;
//! * *refused for now* (`no-quorum`, `not-ready`, `overloaded`, `outcome-unknown`): likewise;
//! * *refused by this replica* (`quarantined`, `database-fenced`, `disk-full`): the next endpoint, once;
//! * any other answer is the answer.
//!
//! Time is a budget for waiting: for connections and for answers to begin. Sending a body does not use it up, reading
//! one neither; both are bounded by how long nothing may move.

mod error;
mod request;
mod response;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http;

use crate::{Code, InvalidId, Problem};

pub use error::{ClientError, Failure};
pub use request::{Body, Method, Request, WriteKey};
pub use response::Response;

/// The port of d3bd, where an endpoint names none.
const PORT: u16 = 8055;
/// The longest wait for a connection to one endpoint.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How much longer than a server takes at most its answer may be on its way.
const GRACE: Duration = Duration::from_secs(2);
/// How long nothing may move while a body is sent.
const SEND_STALL_MAX: Duration = Duration::from_secs(30);
/// How long nothing may move while a body is received.
const RECEIVE_STALL_MAX: Duration = Duration::from_secs(60);
/// Pauses between rounds over all endpoints.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Less time than this is none.
const LEFT_MIN: Duration = Duration::from_millis(20);
/// Idle connections are given up before d3bd, which waits ten seconds, closes them.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// Where a replica serves HTTP: `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint(String);

impl Endpoint {
    /// The address with its scheme and without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Endpoint {
    type Err = InvalidId;

    /// Reads `http://HOST:PORT`; the scheme may be left out, and the port, which is 8055 then.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = |problem: String| InvalidId { what: "endpoint", problem };
        let address = text.trim();
        let address = address.strip_prefix("http://").unwrap_or(address);
        if address.starts_with("https://") {
            return Err(invalid(format!("must begin with http://, not {text:?}: this version has no TLS")));
        }
        let address = address.strip_suffix('/').unwrap_or(address);
        let form = || invalid(format!("must have the form http://HOST:PORT, not {text:?}"));
        let authority: http::uri::Authority = address.parse().map_err(|_| form())?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(form());
        }
        match &authority.as_str()[authority.host().len()..] {
            "" => Ok(Endpoint(format!("http://{authority}:{PORT}"))),
            port => match port.trim_start_matches(':').parse::<u16>() {
                Ok(port) if port > 0 => Ok(Endpoint(format!("http://{authority}"))),
                Ok(_) | Err(_) => Err(form()),
            },
        }
    }
}

/// Is told of what happens on the way to an answer.
pub trait Observer: Send + Sync {
    /// A request is about to be sent.
    fn sending(&self, endpoint: &Endpoint, request: &Request);

    /// An attempt failed, and another one follows.
    fn failed(&self, failure: &Failure);
}

/// An observer that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn sending(&self, _: &Endpoint, _: &Request) {}

    fn failed(&self, _: &Failure) {}
}

/// A client of one cluster. Clones share their idle connections.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    /// Never empty.
    endpoints: Vec<Endpoint>,
    observer: Arc<dyn Observer>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// Why one attempt did not bring the answer.
enum Attempt {
    /// Another attempt may.
    Failed(Failed),
    /// No other attempt would.
    Final(ClientError),
}

struct Failed {
    cause: String,
    /// Whether the request may have been received and executed.
    sent: bool,
    /// Whether asking again, after a pause, is worth it.
    again: bool,
    /// Whether it was time that ran out.
    late: bool,
    /// What the replica said, if it said something.
    problem: Option<Box<Problem>>,
}

impl Client {
    /// A client that tries the endpoints in this order.
    ///
    /// # Panics
    /// Without endpoints.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>, user_agent: &str, observer: Arc<dyn Observer>) -> Client {
        assert!(!endpoints.is_empty(), "a client has at least one endpoint");
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // Replicas are addressed directly; a proxy's errors could not be told from theirs.
            .proxy(None)
            .user_agent(user_agent)
            .max_idle_age(IDLE_MAX)
            .max_idle_connections_per_host(8)
            .timeout_per_write(Some(SEND_STALL_MAX))
            .build();
        Client { agent: config.new_agent(), endpoints, observer }
    }

    /// The endpoints in the order in which they are tried.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The same client with one endpoint only: for requests that follow up on an answer of that very replica.
    #[must_use]
    pub fn only(&self, endpoint: &Endpoint) -> Client {
        Client { endpoints: vec![endpoint.clone()], ..self.clone() }
    }

    /// The same client with an endpoint put last.
    #[must_use]
    pub fn avoiding(&self, endpoint: &Endpoint) -> Client {
        let mut endpoints = self.endpoints.clone();
        endpoints.sort_by_key(|other| other == endpoint);
        Client { endpoints, ..self.clone() }
    }

    /// Sends a request until there is an answer, or no more time.
    ///
    /// # Errors
    /// The answer, if it is a problem; else why there is none.
    pub fn send(&self, request: &Request) -> Result<Response, ClientError> {
        let mut left = request.wait;
        let mut failures = Failures::default();
        let mut pause = PAUSE_MIN;
        loop {
            let mut again = false;
            for (place, endpoint) in self.endpoints.iter().enumerate() {
                // In the first round everybody is asked, however little time is left.
                if left < LEFT_MIN && failures.rounds > 0 {
                    break;
                }
                let others = self.endpoints.len() - place - 1;
                let mut time = Time { left, moved: Duration::ZERO };
                let began = Instant::now();
                match self.attempt(endpoint, request, others, &mut time) {
                    Ok(response) => return Ok(response),
                    Err(Attempt::Final(error)) => return Err(error),
                    Err(Attempt::Failed(failed)) => {
                        left = left.saturating_sub(began.elapsed().saturating_sub(time.moved));
                        again |= failed.again;
                        self.observer.failed(failures.add(endpoint, failed));
                    }
                }
            }
            failures.rounds += 1;
            if !again || request.once || left < LEFT_MIN + pause {
                return Err(failures.conclude(request));
            }
            std::thread::sleep(pause);
            left -= pause;
            pause = PAUSE_MAX.min(pause * 2);
        }
    }

    /// One attempt at one endpoint, while `others` are left in this round.
    fn attempt(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        others: usize,
        time: &mut Time,
    ) -> Result<Response, Attempt> {
        let divisor = u32::try_from(others + 1).unwrap_or(u32::MAX);
        let share = (time.left / divisor).max(LEFT_MIN);
        let Some(probe) = request.probe.filter(|_| others > 0) else {
            let wait = if request.probe.is_some() { request.long_wait(time.left) } else { share };
            return self.exchange(endpoint, request, wait.max(LEFT_MIN), time);
        };
        // A short question first: this replica gets all the time that is left only if it can serve.
        let began = Instant::now();
        let question = Request::get(&[probe]).waiting(share, false);
        match self.exchange(endpoint, &question, share, time) {
            Ok(_) => {}
            Err(Attempt::Failed(failed)) => return Err(Attempt::Failed(Failed { sent: false, ..failed })),
            Err(Attempt::Final(error)) => return Err(Attempt::Final(error)),
        }
        let wait = request.long_wait(time.left.saturating_sub(began.elapsed()));
        self.exchange(endpoint, request, wait.max(LEFT_MIN), time)
    }

    /// Sends a request once and takes the head of the answer in; all of it, if it is small.
    fn exchange(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        wait: Duration,
        time: &mut Time,
    ) -> Result<Response, Attempt> {
        self.observer.sending(endpoint, request);
        let mut reader = request.body.reader(request.progress.as_deref());
        let head = request.head(endpoint, wait).map_err(|error| Attempt::Final(ClientError::Request(error)))?;
        let connect = wait.min(CONNECT_MAX);
        let answer = if request.is_timed_by_the_server() { wait + GRACE } else { wait };
        let stall = if request.endless { None } else { Some(RECEIVE_STALL_MAX.max(answer)) };
        let configured = self
            .agent
            .configure_request(head)
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_await_100(Some(answer))
            .timeout_recv_response(Some(answer))
            .timeout_per_read(stall)
            .build();
        let answer = if request.has_body() {
            self.agent.run(configured.map(|()| ureq::SendBody::from_reader(&mut reader)))
        } else {
            self.agent.run(configured)
        };
        time.moved += reader.moved();
        if let Some(error) = reader.take_error() {
            return Err(Attempt::Final(ClientError::Source(error)));
        }
        let answer = answer.map_err(|error| Attempt::Failed(error::failed(&error)))?;
        let response = Response::take(endpoint, answer).map_err(|cause| Attempt::Failed(error::lost(cause)))?;
        self.judge(endpoint, request, response, wait)
    }

    /// Tells an answer from a problem, and a problem for good from one for now.
    fn judge(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        response: Response,
        wait: Duration,
    ) -> Result<Response, Attempt> {
        let status = response.status();
        if status < 400 {
            return Ok(response);
        }
        let problem = match response.problem() {
            Some(problem) => problem,
            // A HEAD has no place for the problem: the same GET tells it.
            None if request.method == Method::HEAD && status < 500 => {
                let get = Request { method: Method::GET, once: true, ..request.clone() };
                return match self.exchange(endpoint, &get, wait, &mut Time { left: wait, moved: Duration::ZERO }) {
                    Ok(_) => Err(Attempt::Failed(error::lost("the answer changed meanwhile".to_owned()))),
                    Err(attempt) => Err(attempt),
                };
            }
            None if request.method == Method::HEAD => {
                let code = Code::ALL.iter().copied().find(|code| code.status() == status);
                Problem::new(
                    code.unwrap_or(Code::Internal),
                    format!("the replica cannot serve this now: status {status}"),
                )
            }
            // A proxy before a replica that does not answer, perhaps: the request may have gone through.
            None if status >= 500 => {
                return Err(Attempt::Failed(error::lost(format!("status {status} without a problem of d3b"))));
            }
            None => return Err(Attempt::Final(ClientError::Foreign { endpoint: endpoint.clone(), status })),
        };
        Err(match error::transience(problem.code) {
            Some(again) => Attempt::Failed(Failed {
                cause: problem.detail.clone(),
                sent: problem.code == Code::OutcomeUnknown,
                again,
                late: false,
                problem: Some(Box::new(problem)),
            }),
            None => Attempt::Final(ClientError::Problem { endpoint: endpoint.clone(), problem: Box::new(problem) }),
        })
    }
}

/// The time of one attempt.
struct Time {
    /// For waiting.
    left: Duration,
    /// That passed while a body was sent, which is not waiting.
    moved: Duration,
}

/// What went wrong on the way.
#[derive(Default)]
struct Failures {
    /// The last one at each endpoint.
    list: Vec<Failure>,
    rounds: u32,
    sent: bool,
    late: bool,
    problem: Option<(Endpoint, Box<Problem>)>,
}

impl Failures {
    fn add(&mut self, endpoint: &Endpoint, failed: Failed) -> &Failure {
        self.sent |= failed.sent;
        self.late |= failed.late;
        // That the outcome is unknown is told by `sent`.
        if let Some(problem) = failed.problem.filter(|problem| problem.code != Code::OutcomeUnknown) {
            self.problem = Some((endpoint.clone(), problem));
        }
        self.list.retain(|failure| failure.endpoint != *endpoint);
        self.list.push(Failure { endpoint: endpoint.clone(), cause: failed.cause });
        self.list.last().expect("one was just added")
    }

    fn conclude(self, request: &Request) -> ClientError {
        if self.sent
            && let Some(key) = request.key.clone()
        {
            return ClientError::OutcomeUnknown { key, failures: self.list };
        }
        match self.problem {
            Some((endpoint, problem)) => ClientError::Problem { endpoint, problem },
            None if self.late => ClientError::Timeout(self.list),
            None => ClientError::Unreachable(self.list),
        }
    }
}

#[cfg(test)]
mod tests;
