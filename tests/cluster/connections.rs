//! Connections that send nothing, or too slowly.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use d3b_tests::raw::{RawAnswer, connect, exchange, read_to_end};
use d3b_tests::{Cluster, Options};
use serde_json::json;

/// Longer than any patience of the daemon, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Sends one byte after the other, with pauses, until the server has had enough.
fn drip(address: SocketAddr, head: &[u8]) -> RawAnswer {
    let mut stream = connect(address);
    stream.write_all(head).expect("the replica reads");
    let began = Instant::now();
    let mut answer = RawAnswer { bytes: Vec::new(), closed: false };
    // Waiting for an answer that does not come is the pause between two bytes.
    while !answer.closed && began.elapsed() < LIMIT {
        if stream.write_all(b"x").is_err() {
            let rest = read_to_end(&mut stream, Duration::from_secs(1));
            answer.bytes.extend(rest.bytes);
            answer.closed = true;
            break;
        }
        let more = read_to_end(&mut stream, Duration::from_millis(500));
        answer.bytes.extend(more.bytes);
        answer.closed = more.closed;
    }
    answer
}

#[test]
fn slow_or_silent_connections_are_closed() {
    let cluster = Cluster::with(Options { replicas: 1, ..Options::default() });
    cluster.create("shop");
    let replica = cluster.replica(1);
    let address = replica.address();
    let head = |body: &str| format!("POST /v1/db/shop/query HTTP/1.1\r\nHost: {address}\r\n{body}");
    std::thread::scope(|scope| {
        let silent = scope.spawn(|| exchange(address, b"", false, LIMIT));
        let half_a_head = scope.spawn(|| exchange(address, head("Conte").as_bytes(), false, LIMIT));
        let slow_head = scope.spawn(|| drip(address, head("X: ").as_bytes()));
        let no_body = scope.spawn(|| exchange(address, head("Content-Length: 100\r\n\r\n").as_bytes(), false, LIMIT));
        let slow_body = scope.spawn(|| drip(address, head("Content-Length: 100000\r\n\r\n").as_bytes()));
        let slow_upload = scope.spawn(|| {
            let head = format!("PUT /v1/db/slow/file HTTP/1.1\r\nHost: {address}\r\nContent-Length: 100000\r\n\r\n");
            drip(address, head.as_bytes())
        });
        // A client that has asked and never reads its answer, and one that keeps its connection for later.
        let idle = scope.spawn(|| {
            let request = format!("GET /livez HTTP/1.1\r\nHost: {address}\r\n\r\n");
            exchange(address, request.as_bytes(), false, LIMIT)
        });
        let many: Vec<TcpStream> = (0..200).map(|_| connect(address)).collect();
        // Meanwhile everybody else is served.
        for n in 0..20 {
            assert_eq!(replica.sql("shop", "SELECT ?", json!([n])), json!([[n]]));
        }
        drop(many);
        let ended = |name: &str, answer: RawAnswer, allowed: &[Option<u16>]| {
            let text = String::from_utf8_lossy(&answer.bytes).into_owned();
            assert!(answer.closed, "{name}: still open: {text}");
            assert!(allowed.contains(&answer.status()), "{name}: {text}");
        };
        ended("silent", silent.join().expect("no panic"), &[None, Some(408)]);
        ended("half a head", half_a_head.join().expect("no panic"), &[None, Some(408)]);
        ended("slow head", slow_head.join().expect("no panic"), &[None, Some(408)]);
        ended("no body", no_body.join().expect("no panic"), &[Some(408)]);
        ended("slow body", slow_body.join().expect("no panic"), &[Some(408)]);
        ended("slow upload", slow_upload.join().expect("no panic"), &[Some(408)]);
        ended("idle", idle.join().expect("no panic"), &[Some(200)]);
    });
    assert!(replica.databases().iter().all(|info| info.name != "slow"));
}
