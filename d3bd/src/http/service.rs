//! What happens to every request, whatever its route: who it is for and where it comes from, its id, and how its
//! problem is told.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d3b::{Code, Problem};
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue, ORIGIN};
use hyper::service::Service as _;
use hyper::{HeaderMap, Request, Uri};
use hyper_util::service::TowerToHyperService;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::body::Patient;
use super::call::{RequestId, Shared};
use super::{problem, routes};

/// Answers requests; shared by all connections.
pub(crate) struct Layer {
    routes: BoxedFilter<(Response,)>,
    hosts: Vec<String>,
    replica: HeaderValue,
    /// Makes the request ids of this process differ from those of others.
    process: u32,
    requests: AtomicU64,
}

impl Layer {
    pub(crate) fn new(shared: Shared, hosts: Vec<String>) -> Layer {
        let replica = shared.handle.replica();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Layer {
            routes: routes(Arc::new(shared)),
            hosts,
            replica: HeaderValue::from(replica.0),
            process: now.subsec_nanos() ^ std::process::id().rotate_left(16),
            requests: AtomicU64::new(1),
        }
    }

    /// Answers one request. `local` is a client that a web page cannot be: one on a unix socket.
    pub(crate) async fn answer(&self, mut request: Request<Incoming>, local: bool) -> Response {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let request_id = format!("{}-{:08x}-{number}", self.replica.to_str().unwrap_or_default(), self.process);
        request.extensions_mut().insert(RequestId(request_id.clone()));
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let started = std::time::Instant::now();
        let checked = if local { Ok(()) } else { check_sender(request.uri(), request.headers(), &self.hosts) };
        let response = match checked {
            Ok(()) => self.route(request).await,
            Err(problem) => problem::response(problem),
        };
        let mut response = problem::write_out(response, &request_id);
        tracing::debug!(
            request_id,
            %method,
            path,
            status = response.status().as_u16(),
            microseconds = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            "request"
        );
        let headers = response.headers_mut();
        headers.insert("d3b-replica", self.replica.clone());
        if let Ok(request_id) = HeaderValue::from_str(&request_id) {
            headers.insert("d3b-request-id", request_id);
        }
        response
    }

    async fn route(&self, request: Request<Incoming>) -> Response {
        let service = TowerToHyperService::new(warp::service(self.routes.clone()));
        let answer = service.call(request.map(Patient::new));
        match std::panic::AssertUnwindSafe(answer).catch_unwind().await {
            Ok(Ok(response)) => response,
            Ok(Err(impossible)) => match impossible {},
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                tracing::error!(panic = text, "a handler panicked");
                problem::response(Problem::new(Code::Internal, "the server met a bug"))
            }
        }
    }
}

/// A web page that a user of this machine looks at must not reach a local server: its requests carry its own origin, or,
/// when it lets its name resolve to this machine, its own host.
fn check_sender(uri: &Uri, headers: &HeaderMap, hosts: &[String]) -> Result<(), Problem> {
    let header = |name: hyper::header::HeaderName| match headers.get(&name).map(HeaderValue::to_str) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(Problem::new(Code::BadRequest, format!("the header {name} is not plain text"))),
    };
    let host = header(HOST)?;
    for authority in [host, uri.authority().map(|authority| authority.as_str())].into_iter().flatten() {
        if !is_ours(authority, hosts) {
            return Err(Problem::new(Code::WrongHost, format!("{authority:?} is not a name of this server"))
                .with_hint("use its address or localhost, or list the name with --hosts"));
        }
    }
    if let Some(origin) = header(ORIGIN)? {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        if authority.is_none() || authority != host {
            return Err(Problem::new(Code::Forbidden, format!("requests of the web page {origin:?} are refused")));
        }
    }
    // A page that embeds an image, a script or a frame sends no origin, but browsers tell where it came from. A link
    // that a person follows is another matter.
    let fetch = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    let foreign = matches!(fetch("sec-fetch-site"), Some(b"cross-site" | b"same-site"));
    let followed = fetch("sec-fetch-mode") == Some(b"navigate") && fetch("sec-fetch-dest") == Some(b"document");
    if foreign && !followed {
        return Err(Problem::new(Code::Forbidden, "requests of other web pages are refused"));
    }
    Ok(())
}

/// Whether a host, with or without a port, is an address, localhost, or listed.
fn is_ours(authority: &str, hosts: &[String]) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) if port.is_empty() || port.starts_with(':') => host,
            Some(_) | None => return false,
        },
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    host.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|known| host.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: Option<&str>, origin: Option<&str>, expected: Option<Code>) {
        let mut headers = HeaderMap::new();
        for (name, value) in [(HOST, host), (ORIGIN, origin)] {
            if let Some(value) = value {
                headers.insert(name, HeaderValue::from_str(value).unwrap());
            }
        }
        let hosts = ["db.example".to_owned()];
        let found = check_sender(&Uri::from_static("/"), &headers, &hosts).err().map(|problem| problem.code);
        assert_eq!(found, expected, "{host:?} {origin:?}");
    }

    #[test]
    fn hosts() {
        for host in [
            "127.0.0.1:8055",
            "[::1]:8055",
            "[::1]",
            "localhost:8055",
            "LOCALHOST",
            "db.example:1",
            "10.0.0.1",
            "localhost.",
        ] {
            check(Some(host), None, None);
        }
        check(None, None, None);
        for host in ["evil.example", "localhost.evil.example:8055", "127.0.0.1.evil.example", "[::1", "[::1]x", ""] {
            check(Some(host), None, Some(Code::WrongHost));
        }
    }

    #[test]
    fn origins() {
        check(Some("127.0.0.1:8055"), Some("http://127.0.0.1:8055"), None);
        check(Some("127.0.0.1:8055"), Some("http://127.0.0.1:9999"), Some(Code::Forbidden));
        check(Some("127.0.0.1:8055"), Some("https://evil.example"), Some(Code::Forbidden));
        check(Some("127.0.0.1:8055"), Some("null"), Some(Code::Forbidden));
        check(None, Some("null"), Some(Code::Forbidden));
    }

    #[test]
    fn what_other_pages_embed_is_refused_and_links_are_not() {
        let check = |fields: &[(&'static str, &'static str)], expected: Option<Code>| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            let found = check_sender(&Uri::from_static("/"), &headers, &[]).err().map(|problem| problem.code);
            assert_eq!(found, expected, "{fields:?}");
        };
        let (site, mode, dest) = ("sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest");
        check(&[(site, "cross-site"), (mode, "no-cors"), (dest, "image")], Some(Code::Forbidden));
        check(&[(site, "same-site"), (mode, "navigate"), (dest, "iframe")], Some(Code::Forbidden));
        check(&[(site, "cross-site"), (mode, "navigate"), (dest, "document")], None);
        check(&[(site, "same-origin"), (mode, "cors"), (dest, "empty")], None);
        check(&[(site, "none"), (mode, "navigate"), (dest, "document")], None);
    }

    #[test]
    fn a_host_in_the_request_line_counts_too() {
        let uri = Uri::from_static("http://evil.example/v1/db");
        let problem = check_sender(&uri, &HeaderMap::new(), &[]).unwrap_err();
        assert_eq!(problem.code, Code::WrongHost);
    }
}
