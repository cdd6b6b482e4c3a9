//! Problems as responses. A handler that fails attaches its [`Problem`] to an empty response; the outermost layer writes
//! it out, because only that layer knows the request's id.

use d3b::{Code, Problem};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, StatusCode};
use warp::reply::{Reply, Response};

/// A response that stands for a problem until [`write_out`].
pub(crate) fn response(problem: Problem) -> Response {
    let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
    response.extensions_mut().insert(Attached(problem));
    response
}

#[derive(Debug, Clone)]
struct Attached(Problem);

/// Puts an attached problem into status, headers and body.
pub(crate) fn write_out(mut response: Response, request_id: &str) -> Response {
    let Some(Attached(mut problem)) = response.extensions_mut().remove() else {
        return response;
    };
    problem.request_id = Some(request_id.to_owned());
    if problem.code == Code::Internal {
        tracing::error!(request_id, detail = problem.detail, "internal error");
    }
    let (mut parts, _) = response.into_parts();
    parts.status = StatusCode::from_u16(problem.code.status()).expect("the table of codes has valid statuses");
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = problem.retry_after {
        parts.headers.insert(RETRY_AFTER, seconds.into());
    }
    let mut body = problem.to_json().to_string();
    body.push('\n');
    let mut response = body.into_response();
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response
}

/// 405 with the methods that the route has.
pub(crate) fn method_not_allowed(method: &Method, path: &str, allowed: &[Method]) -> Response {
    let allowed = allow(allowed);
    let problem = Problem::new(Code::MethodNotAllowed, format!("{path} does not take {method}"))
        .with_hint(format!("it takes {allowed}"));
    let mut response = response(problem);
    response.headers_mut().insert(ALLOW, HeaderValue::from_str(&allowed).expect("methods are plain text"));
    response
}

/// The value of an `Allow` header. What answers GET answers HEAD, and OPTIONS asks for this very header.
pub(crate) fn allow(allowed: &[Method]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for method in allowed {
        names.push(method.as_str());
        if method == Method::GET && !allowed.contains(&Method::HEAD) {
            names.push("HEAD");
        }
    }
    names.push("OPTIONS");
    names.join(", ")
}

/// A request that makes no sense.
pub(crate) fn bad_request(detail: impl Into<String>) -> Problem {
    Problem::new(Code::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_is_written_out_with_its_request_id() {
        let response = write_out(response(Problem::new(Code::NoQuorum, "nobody is there")), "r-1");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        let problem = Problem::from_json(&body).unwrap();
        assert_eq!(problem.request_id.as_deref(), Some("r-1"));
        assert_eq!(problem.code, Code::NoQuorum);
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        let response = method_not_allowed(&Method::PATCH, "/v1/db", &[Method::GET, Method::POST]);
        assert_eq!(response.headers()[ALLOW], "GET, HEAD, POST, OPTIONS");
    }
}
