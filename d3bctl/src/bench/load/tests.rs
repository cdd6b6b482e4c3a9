//! The loop against servers that answer, stall, refuse and hang up.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::bench::{Answer, Kind};

/// What a server does with a request.
enum Reply {
    Status(u16),
    HangUp,
    StallThenStatus(Duration, u16),
}

/// A server that counts requests over all its connections, and does with each what `decide` says; it ends with the
/// test's process.
fn server(decide: impl Fn(u64) -> Reply + Send + Sync + 'static) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (decide, count) = (Arc::new(decide), Arc::new(AtomicU64::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (decide, count) = (Arc::clone(&decide), Arc::clone(&count));
            std::thread::spawn(move || serve(stream.unwrap(), &*decide, &count));
        }
    });
    Target { address, host: address.to_string() }
}

fn serve(mut stream: TcpStream, decide: &dyn Fn(u64) -> Reply, count: &AtomicU64) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(size) => bytes.extend_from_slice(&buffer[..size]),
        }
        if !bytes.ends_with(b"\r\n\r\n") {
            continue;
        }
        bytes.clear();
        let status = match decide(count.fetch_add(1, Ordering::SeqCst)) {
            Reply::Status(status) => status,
            Reply::HangUp => return,
            Reply::StallThenStatus(time, status) => {
                std::thread::sleep(time);
                status
            }
        };
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\n\r\nok");
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Asks for nothing in particular, and remembers what came of it.
struct Plain {
    lost: Lost,
    begun: u64,
    done: u64,
    forgotten: u64,
}

impl Work for Plain {
    fn kinds(&self) -> &[Kind] {
        &[Kind { name: "plain", writes: true }]
    }

    fn begin(&mut self, _: usize) -> usize {
        self.begun += 1;
        0
    }

    fn request(&mut self, _: usize, host: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes());
    }

    fn judge(&mut self, _: usize, answer: &Answer<'_>) -> Verdict {
        assert_eq!(answer.body, b"ok");
        match answer.status {
            200 => {
                self.done += 1;
                Verdict::Done(1)
            }
            503 => Verdict::Refused,
            status => Verdict::Wrong(status.to_string()),
        }
    }

    fn lost(&mut self, _: usize, finally: bool) -> Lost {
        if finally || self.lost == Lost::Unknown {
            self.forgotten += 1;
        }
        self.lost
    }
}

fn plan(clients: usize, milliseconds: u64) -> Plan {
    Plan {
        clients,
        threads: 1,
        rate: None,
        warm_up: Duration::ZERO,
        duration: Duration::from_millis(milliseconds),
        patience: Duration::from_secs(30),
        spread: true,
    }
}

fn drive(plan: &Plan, targets: &[Target], lost: Lost) -> (Outcome, Vec<Plain>) {
    let works = (0..plan.threads).map(|_| Plain { lost, begun: 0, done: 0, forgotten: 0 }).collect();
    run(plan, targets, works, &AtomicBool::new(false), |_| ()).unwrap()
}

#[test]
fn clients_are_shared_out() {
    assert_eq!(shares(10, 3), [4, 3, 3]);
    assert_eq!(shares(2, 2), [1, 1]);
}

#[test]
fn every_operation_of_a_closed_loop_ends_and_is_counted() {
    let target = server(|_| Reply::Status(200));
    for threads in [1, 2] {
        let plan = Plan { threads, ..plan(5, 300) };
        let (outcome, works) = drive(&plan, std::slice::from_ref(&target), Lost::Unknown);
        let (begun, done) = works.iter().fold((0, 0), |sum, work| (sum.0 + work.begun, sum.1 + work.done));
        assert!(done > 0 && begun == done, "{begun} were begun, and {done} done");
        // Those that were under way at the end were done after it.
        assert!(outcome.done() <= done && outcome.done() + 5 >= done, "{} of {done}", outcome.done());
        assert_eq!((outcome.errors, outcome.unknown, outcome.reconnects, outcome.interrupted), (0, 0, 0, false));
        assert_eq!(outcome.timeline.iter().map(|moment| moment.done).sum::<u64>(), outcome.done());
        assert!(outcome.cpu > Duration::ZERO);
    }
}

#[test]
fn a_stall_is_charged_for_everything_that_was_due_meanwhile() {
    let stall = Duration::from_millis(400);
    let decide = move |number| if number == 20 { Reply::StallThenStatus(stall, 200) } else { Reply::Status(200) };
    let plan = Plan { rate: Some(200.0), ..plan(1, 1_000) };
    let (outcome, _) = drive(&plan, &[server(decide)], Lost::Unknown);
    let latency = outcome.latency();
    // Of 200 requests, 80 were due during the stall, the average one in the middle of it; a loop that waits for answers
    // would tell of one slow request.
    assert!(latency.max() >= 390_000, "{}", latency.max());
    assert!(latency.quantile(0.75) >= 100_000, "{}", latency.quantile(0.75));
    assert!(outcome.backlog_max >= 60, "{}", outcome.backlog_max);
    assert!(outcome.gap.unwrap() >= Duration::from_millis(390));
}

#[test]
fn what_an_open_loop_cannot_send_is_told_with_its_age() {
    let plan = Plan { rate: Some(100.0), ..plan(1, 500) };
    let slow = server(|_| Reply::StallThenStatus(Duration::from_millis(100), 200));
    let (outcome, works) = drive(&plan, &[slow], Lost::Unknown);
    assert!(outcome.unsent > 30, "{}", outcome.unsent);
    assert_eq!(outcome.latency().count(), outcome.unsent + works[0].done);
}

#[test]
fn operations_whose_answer_is_lost_are_unknown_or_sent_again() {
    let decide = |number| if number % 10 == 3 { Reply::HangUp } else { Reply::Status(200) };
    let targets = [server(decide), server(decide)];
    let (outcome, works) = drive(&plan(4, 300), &targets, Lost::Unknown);
    assert!(outcome.unknown > 0 && outcome.reconnects > 0);
    assert_eq!(works[0].begun, works[0].done + works[0].forgotten);
    assert_eq!(outcome.unknown, works[0].forgotten);

    let (outcome, works) = drive(&plan(4, 300), &targets, Lost::Repeat);
    assert!(outcome.reconnects > 0 && works[0].done > 0);
    // Only what was lost at the very end stays unknown.
    assert_eq!(works[0].begun, works[0].done + works[0].forgotten);
    assert!(works[0].forgotten <= 4);
}

#[test]
fn errors_are_counted_and_told_and_refusals_are_asked_again() {
    let decide = |number| Reply::Status(if number % 7 == 3 { 500 } else { 503 - 303 * u16::from(number % 2 == 0) });
    let (outcome, works) = drive(&plan(2, 400), &[server(decide)], Lost::Unknown);
    assert!(outcome.errors > 0 && outcome.refused > 0 && works[0].done > 0);
    assert!(outcome.examples.contains(&"500".to_owned()), "{:?}", outcome.examples);
}

#[test]
fn nobody_listening_is_told_and_not_waited_for() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let target = Target { address: free, host: free.to_string() };
    let (outcome, _) = drive(&plan(2, 200), &[target], Lost::Repeat);
    assert!(outcome.done() == 0 && outcome.reconnects > 0 && !outcome.examples.is_empty());
}

#[test]
fn a_load_ends_when_it_is_told_to() {
    let target = server(|_| Reply::Status(200));
    let stop = AtomicBool::new(false);
    let works = vec![Plain { lost: Lost::Unknown, begun: 0, done: 0, forgotten: 0 }];
    let (outcome, works) = run(&plan(2, 60_000), &[target], works, &stop, |progress| {
        if progress.done > 10 {
            stop.store(true, Ordering::Relaxed);
        }
    })
    .unwrap();
    assert!(outcome.interrupted && works[0].done > 10 && outcome.measured < Duration::from_secs(30));
}
