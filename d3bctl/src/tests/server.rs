//! A server of a few lines, for tests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use d3b::client::{Client, Endpoint, Request, Response, Unobserved};

/// Serves these answers, head and body, one request each.
pub(crate) fn serving(answers: Vec<Vec<u8>>) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::from("?");
            while !matches!(line.as_str(), "\r\n" | "") {
                line.clear();
                reader.read_line(&mut line).unwrap();
            }
            // A client that has seen enough closes early.
            let _ = stream.write_all(&answer);
        }
    });
    endpoint
}

/// An answer of `length` bytes, of which only `body` is sent.
pub(crate) fn answer(headers: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

/// A chunked answer; one that is cut has no last chunk.
pub(crate) fn chunked(body: &[u8], cut: bool) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let end: &[u8] = if cut { b"" } else { b"0\r\n\r\n" };
    [head.as_bytes(), format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n", end].concat()
}

/// The response to a request that gets this answer.
pub(crate) fn response(answer: Vec<u8>) -> Response {
    let client = Client::new(vec![serving(vec![answer])], "test", Arc::new(Unobserved));
    client.send(&Request::get(&["x"]).waiting(Duration::from_secs(10), false).once()).unwrap()
}
