//! The client against servers of a few lines, which break off where it hurts.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::IdempotencyKey;

/// What a server does with one request.
#[derive(Clone)]
enum Act {
    /// Answers with a status and a body.
    Answer(u16, String),
    /// Answers with a head that promises more bytes than follow.
    Cut(u64, String),
    /// Reads the request and closes the connection.
    Close,
    /// Reads the request and says nothing until the test ends.
    Hang,
}

/// A request as it came in.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    line: String,
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
    }
}

struct Server {
    endpoint: Endpoint,
    seen: Receiver<Seen>,
    /// Hanging connections end with it.
    _open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Server {
    /// Serves these acts, one request each; the last one again and again.
    fn start(acts: &[Act]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        let (sender, seen) = channel();
        let open = Arc::new(Mutex::new(Vec::new()));
        let (acts, kept) = (acts.to_vec(), Arc::clone(&open));
        std::thread::spawn(move || {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept() else { return };
                let act = acts[usize::min(number, acts.len() - 1)].clone();
                if serve(stream, act, &sender, &kept).is_none() {
                    return;
                }
            }
        });
        Server { endpoint, seen, _open: open }
    }

    fn answering(status: u16, body: &str) -> Server {
        Server::start(&[Act::Answer(status, body.to_owned())])
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.try_iter().collect()
    }
}

/// One request; `None` when the test has ended.
fn serve(stream: TcpStream, act: Act, seen: &Sender<Seen>, open: &Mutex<Vec<TcpStream>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return Some(());
        }
    }
    let head = head.replace("\r\n", "\n");
    let line = head.lines().next().unwrap().to_owned();
    let mut request = Seen { line, head, body: Vec::new() };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut stream = stream;
    if request.header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    }
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    seen.send(request).ok()?;
    match act {
        Act::Answer(status, body) => {
            let length = body.len();
            let text = format!(
                "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\nD3b-Slot: 7\r\n\r\n{body}"
            );
            stream.write_all(text.as_bytes()).ok();
        }
        Act::Cut(length, body) => {
            let text = format!("HTTP/1.1 200 X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(text.as_bytes()).ok();
        }
        Act::Close => {}
        Act::Hang => open.lock().unwrap().push(stream),
    }
    Some(())
}

/// An endpoint at which nobody listens.
fn nobody() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string().parse().unwrap()
}

fn client(endpoints: &[&Endpoint]) -> Client {
    Client::new(endpoints.iter().map(|endpoint| (*endpoint).clone()).collect(), "test", Arc::new(Unobserved))
}

fn problem(code: Code) -> Act {
    Act::Answer(code.status(), Problem::new(code, "so it is").to_json().to_string())
}

fn read(wait: u64) -> Request {
    Request::get(&["v1", "db"]).waiting(Duration::from_millis(wait), false)
}

fn write(wait: u64) -> Request {
    Request::new(Method::POST, &["v1", "db", "shop", "query"])
        .body("application/json", Body::bytes("{}"))
        .write(&IdempotencyKey::new("key-1").unwrap(), "shop")
        .waiting(Duration::from_millis(wait), true)
}

fn body(response: Result<Response, ClientError>) -> String {
    String::from_utf8(response.unwrap().bytes().unwrap()).unwrap()
}

#[test]
fn endpoints_have_a_scheme_a_host_and_a_port() {
    let check = |text: &str, expected: &str| assert_eq!(text.parse::<Endpoint>().unwrap().as_str(), expected, "{text}");
    check("127.0.0.1:1", "http://127.0.0.1:1");
    check("http://localhost:1/", "http://localhost:1");
    check(" [::1] ", "http://[::1]:8055");
    check("db.example", "http://db.example:8055");
    for bad in
        ["", "http://", "https://a:1", "a:0", "a:99999", "a:", "http://a/b", "http://u@a:1", "a b", "ftp://a:1", "a?b"]
    {
        assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
    }
}

#[test]
fn paths_and_parameters_are_encoded() {
    let request = Request::get(&["v1", "db", "a/b", "media", ".."]).parameter("sql", "a=1&b").parameter("n", "2");
    assert_eq!(request.target, "/v1/db/a%2Fb/media/%2E%2E?sql=a%3D1%26b&n=2");
}

#[test]
fn a_dead_endpoint_is_passed_over() {
    let server = Server::answering(200, "[]");
    let response = client(&[&nobody(), &server.endpoint]).send(&read(5_000)).unwrap();
    assert_eq!(response.endpoint(), &server.endpoint);
    assert_eq!(response.number("d3b-slot"), Some(7));
    assert_eq!(body(Ok(response)), "[]");
}

#[test]
fn when_all_are_dead_it_ends_at_once() {
    let (first, second) = (nobody(), nobody());
    let began = Instant::now();
    let error = client(&[&first, &second]).send(&write(60_000)).unwrap_err();
    let ClientError::Unreachable(failures) = &error else { panic!("{error}") };
    assert_eq!(failures.iter().map(|failure| &failure.endpoint).collect::<Vec<_>>(), [&first, &second]);
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("connection refused"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30), "nothing was worth waiting for");
}

#[test]
fn a_write_whose_answer_is_lost_is_sent_again_with_its_key() {
    let (first, second) = (Server::start(&[Act::Close]), Server::answering(200, "done"));
    assert_eq!(body(client(&[&first.endpoint, &second.endpoint]).send(&write(5_000))), "done");
    let (first, second) = (first.seen(), second.seen());
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_eq!(first[0].header("idempotency-key"), Some("key-1"));
    assert_eq!(second[0].header("idempotency-key"), Some("key-1"));
    assert_eq!((&*first[0].body, &*second[0].body), (&b"{}"[..], &b"{}"[..]));
}

#[test]
fn a_write_of_which_nothing_is_heard_is_unknown() {
    let server = Server::start(&[Act::Close]);
    let error = client(&[&server.endpoint]).send(&write(400)).unwrap_err();
    let ClientError::OutcomeUnknown { key, .. } = &error else { panic!("{error}") };
    assert_eq!((key.key.as_str(), key.db.as_str()), ("key-1", "shop"));
    assert_eq!(error.exit_code(), 8);
    let hint = error.hint().unwrap();
    assert!(hint.contains("/v1/db/shop/requests/key-1") && hint.contains("--idempotency-key key-1"), "{hint}");
    assert!(server.seen().len() > 1, "it was asked for again");
}

#[test]
fn what_is_unknown_stays_so_when_others_cannot_serve() {
    let (first, second) = (Server::start(&[Act::Close]), Server::start(&[problem(Code::NoQuorum)]));
    let error = client(&[&first.endpoint, &second.endpoint]).send(&write(300)).unwrap_err();
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error}");
    let unknown = Server::start(&[problem(Code::OutcomeUnknown)]);
    let error = client(&[&unknown.endpoint]).send(&write(300)).unwrap_err();
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error}");
}

#[test]
fn a_write_that_nobody_could_take_is_not_unknown() {
    let server = Server::start(&[problem(Code::NoQuorum)]);
    let error = client(&[&nobody(), &server.endpoint]).send(&write(300)).unwrap_err();
    assert_eq!(error.exit_code(), 7, "{error}");
}

#[test]
fn what_may_pass_is_tried_elsewhere_and_again() {
    for code in [Code::NoQuorum, Code::NotReady, Code::Overloaded, Code::Quarantined, Code::DiskFull] {
        let (first, second) = (Server::start(&[problem(code)]), Server::answering(200, "done"));
        assert_eq!(body(client(&[&first.endpoint, &second.endpoint]).send(&write(5_000))), "done", "{code}");
    }
    let server = Server::start(&[problem(Code::NotReady), problem(Code::NoQuorum), Act::Answer(200, "done".into())]);
    assert_eq!(body(client(&[&server.endpoint]).send(&write(5_000))), "done");
}

#[test]
fn what_only_another_replica_can_do_is_not_waited_for() {
    let server = Server::start(&[problem(Code::Quarantined)]);
    let error = client(&[&server.endpoint]).send(&write(60_000)).unwrap_err();
    assert_eq!(error.exit_code(), 10);
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn an_answer_is_an_answer() {
    let (first, second) = (Server::start(&[problem(Code::Constraint)]), Server::answering(200, "done"));
    let error = client(&[&first.endpoint, &second.endpoint]).send(&write(5_000)).unwrap_err();
    let ClientError::Problem { endpoint, problem } = &error else { panic!("{error}") };
    assert_eq!((endpoint, problem.code), (&first.endpoint, Code::Constraint));
    assert_eq!((error.exit_code(), error.to_string().as_str()), (1, "so it is"));
    assert!(second.seen().is_empty());
}

#[test]
fn who_says_nothing_gets_a_part_of_the_time() {
    let (first, second) = (Server::start(&[Act::Hang]), Server::answering(200, "done"));
    assert_eq!(body(client(&[&first.endpoint, &second.endpoint]).send(&read(1_000))), "done");
    let error = client(&[&first.endpoint]).send(&read(200)).unwrap_err();
    assert!(matches!(error, ClientError::Timeout(_)), "{error}");
    assert_eq!(error.exit_code(), 8);
}

#[test]
fn a_replica_that_cannot_serve_does_not_get_a_long_request() {
    let (first, second) = (Server::start(&[problem(Code::NoQuorum)]), Server::answering(200, "done"));
    let request = write(5_000).probing("readyz");
    assert_eq!(body(client(&[&first.endpoint, &second.endpoint]).send(&request)), "done");
    let lines = |server: &Server| server.seen().into_iter().map(|seen| seen.line).collect::<Vec<_>>();
    assert_eq!(lines(&first), ["GET /readyz HTTP/1.1"]);
    // Nobody is left to turn to: it gets the request without a question, and is told how long it may take.
    let second = lines(&second);
    assert!(second.len() == 1 && second[0].starts_with("POST /v1/db/shop/query?timeout="), "{second:?}");
}

#[test]
fn a_failed_question_leaves_a_write_undone() {
    let (first, second) = (Server::start(&[Act::Close]), nobody());
    let error = client(&[&first.endpoint, &second]).send(&write(300).probing("readyz").once()).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(_)), "{error}");
}

#[test]
fn small_answers_that_break_off_are_asked_for_again() {
    let (first, second) = (Server::start(&[Act::Cut(100, "do".into())]), Server::answering(200, "done"));
    assert_eq!(body(client(&[&first.endpoint, &second.endpoint]).send(&write(5_000))), "done");
}

#[test]
fn large_answers_that_break_off_are_told() {
    let server = Server::start(&[Act::Cut(10 << 20, "do".into())]);
    let error = client(&[&server.endpoint]).send(&read(5_000)).unwrap().bytes().unwrap_err();
    assert!(matches!(&error, ClientError::BrokenOff { endpoint, .. } if *endpoint == server.endpoint), "{error}");
}

#[test]
fn a_file_is_sent_whole_each_time() {
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let path = std::env::temp_dir().join(format!("d3b-client-test-{}", std::process::id()));
    std::fs::write(&path, &content).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (first, second) = (Server::start(&[Act::Close]), Server::answering(200, "done"));
    let sent = Arc::new(Mutex::new(0));
    let progress = Arc::clone(&sent);
    let data = Body::bytes("<").then(Body::file(file, content.len() as u64)).then(Body::bytes(">"));
    let request = Request::new(Method::PUT, &["file"])
        .body("application/octet-stream", data)
        .write(&IdempotencyKey::new("k").unwrap(), "schemas")
        .waiting(Duration::from_secs(5), true)
        .reporting(Arc::new(move |position| *progress.lock().unwrap() = position));
    assert_eq!(body(client(&[&first.endpoint, &second.endpoint]).send(&request)), "done");
    let expected = [b"<", &content[..], b">"].concat();
    for server in [first, second] {
        let seen = server.seen();
        assert!(seen[0].body == expected, "{} bytes instead of {}", seen[0].body.len(), expected.len());
        assert_eq!(seen[0].header("expect"), Some("100-continue"));
    }
    assert_eq!(*sent.lock().unwrap(), expected.len() as u64);
}

#[test]
fn a_file_that_became_shorter_is_an_error_of_this_side() {
    let server = Server::answering(200, "done");
    let path = std::env::temp_dir().join(format!("d3b-client-test-short-{}", std::process::id()));
    std::fs::write(&path, b"short").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let request = Request::new(Method::PUT, &["file"]).body("application/octet-stream", Body::file(file, 6));
    let error = client(&[&server.endpoint]).send(&request).unwrap_err();
    assert!(matches!(error, ClientError::Source(_)), "{error}");
}

#[test]
fn an_empty_body_has_a_length() {
    let server = Server::answering(200, "done");
    let request = Request::new(Method::PUT, &["file"]).body("application/octet-stream", Body::bytes(""));
    assert_eq!(body(client(&[&server.endpoint]).send(&request)), "done");
    assert_eq!(server.seen()[0].header("content-length"), Some("0"));
}

#[test]
fn the_problem_of_a_head_is_fetched() {
    let server = Server::start(&[Act::Answer(404, String::new()), problem(Code::MediaNotFound)]);
    let error = client(&[&server.endpoint]).send(&read(5_000).head_only()).unwrap_err();
    assert!(matches!(&error, ClientError::Problem { problem, .. } if problem.code == Code::MediaNotFound), "{error}");
    let lines: Vec<String> = server.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines, ["HEAD /v1/db HTTP/1.1", "GET /v1/db HTTP/1.1"]);
}

#[test]
fn somebody_else_is_told_from_d3bd() {
    let (first, second) = (Server::answering(404, "<html>"), Server::answering(200, "done"));
    let error = client(&[&first.endpoint, &second.endpoint]).send(&read(5_000)).unwrap_err();
    assert!(matches!(&error, ClientError::Foreign { status: 404, .. }), "{error}");
    // A proxy may only say that the replica behind it is gone.
    let proxy = Server::answering(502, "<html>");
    assert_eq!(body(client(&[&proxy.endpoint, &second.endpoint]).send(&read(5_000))), "done");
    let error = Server::answering(200, "<html>");
    let error = client(&[&error.endpoint]).send(&read(5_000)).unwrap().json::<crate::api::Version>().unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
}
