//! What a system has to have to be compared.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use d3b_tests::cluster::free_port;
use d3b_tests::measure::target;
use d3b_tests::process::Process;
use d3b_tests::wait::{PATIENCE, wait_until};
use d3b_tests::{Http, Response};
use d3bctl::bench::{Target, Work};

/// Bytes of a value.
pub const SIZE: usize = 100;
/// Rows or keys that are there to be read.
pub const ROWS: u64 = 1_000;

/// What clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// One new row or key, durable on a majority.
    Write,
    /// One row or key, as a linearizable read.
    Read,
    /// One row or key, as the replica that is asked has it.
    StaleRead,
}

/// So many clients that ask for the same.
#[derive(Debug)]
pub struct Scenario {
    /// What it is called.
    pub name: &'static str,
    /// What they ask for.
    pub ask: Ask,
    /// How many they are, spread over the three replicas.
    pub clients: usize,
}

/// What is compared.
pub const SCENARIOS: [Scenario; 5] = [
    Scenario { name: "write-1", ask: Ask::Write, clients: 1 },
    Scenario { name: "write-64", ask: Ask::Write, clients: 64 },
    Scenario { name: "write-256", ask: Ask::Write, clients: 256 },
    Scenario { name: "read-64", ask: Ask::Read, clients: 64 },
    Scenario { name: "stale-read-64", ask: Ask::StaleRead, clients: 64 },
];

/// A system that can be started.
pub trait System {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// How it is run, what its writes survive, and how it is asked.
    fn terms(&self) -> &'static str;

    /// Starts three replicas on loopback, with [`ROWS`] to be read.
    fn start(&self) -> Box<dyn Running>;
}

/// Three replicas that run until this is dropped.
pub trait Running {
    /// Where they are.
    fn targets(&self) -> Vec<Target>;

    /// Their processes.
    fn pids(&self) -> Vec<u32>;

    /// The index of the one that leads, where that can be asked: one client alone asks that one.
    fn leader(&self) -> Option<usize>;

    /// What clients ask for; two works of the same cluster never write the same row or key.
    fn work(&self, ask: Ask, clients: usize) -> Box<dyn Work>;
}

/// Some processes of a foreign system, each with a port for clients and one for its peers, below one directory.
#[derive(Debug)]
pub struct Processes {
    /// Dropped, and so killed, before the directory goes.
    processes: Vec<Process>,
    /// Ports for clients, on loopback.
    pub ports: Vec<u16>,
    _directory: tempfile::TempDir,
}

impl Processes {
    /// Starts three; `command` gives the command of one by its index, the ports of all for clients and for peers, and
    /// its data directory.
    pub fn start(name: &str, command: impl Fn(usize, &[u16], &[u16], &Path) -> Command) -> Processes {
        let directory = tempfile::Builder::new().prefix("d3b-peers-").tempdir().expect("a temporary directory");
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let peer_ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let start = |at: usize| {
            let log = File::create(directory.path().join(format!("{name}-{at}.log"))).expect("a file for its log");
            let mut command = command(at, &ports, &peer_ports, &directory.path().join(format!("{name}-{at}")));
            command.stdin(std::process::Stdio::null());
            command.stdout(log.try_clone().expect("a file can be shared")).stderr(log);
            Process::spawn(&mut command)
        };
        Processes { processes: (0..3).map(start).collect(), ports, _directory: directory }
    }

    /// Waits until every one answers a GET of a path as it should.
    pub fn wait_ready(&self, path: &str, good: impl Fn(&Response) -> bool) {
        let http = Http::new();
        for port in &self.ports {
            let url = format!("http://127.0.0.1:{port}{path}");
            wait_until(&format!("{url} is ready"), PATIENCE, || {
                http.try_send("GET", &url, &[], ureq::SendBody::none()).is_ok_and(|answer| good(&answer))
            });
        }
    }

    /// Where they are.
    pub fn targets(&self) -> Vec<Target> {
        self.ports.iter().map(|port| target(&format!("127.0.0.1:{port}"))).collect()
    }

    /// Their processes.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }
}

/// A system of [`Processes`] that runs.
pub struct Started {
    processes: Processes,
    /// Works so far: each has a number of its own, for rows and keys that nobody else writes.
    works: AtomicU64,
    leader: fn(&Processes) -> Option<usize>,
    load: fn(Ask, u64, usize) -> Box<dyn Work>,
}

impl Started {
    /// `leader` finds who leads, if that can be known; `load` makes a work of what clients ask for, its number, and how many
    /// clients there are.
    pub fn new(
        processes: Processes,
        leader: fn(&Processes) -> Option<usize>,
        load: fn(Ask, u64, usize) -> Box<dyn Work>,
    ) -> Started {
        Started { processes, works: AtomicU64::new(0), leader, load }
    }
}

impl Running for Started {
    fn targets(&self) -> Vec<Target> {
        self.processes.targets()
    }

    fn pids(&self) -> Vec<u32> {
        self.processes.pids()
    }

    fn leader(&self) -> Option<usize> {
        (self.leader)(&self.processes)
    }

    fn work(&self, ask: Ask, clients: usize) -> Box<dyn Work> {
        (self.load)(ask, self.works.fetch_add(1, Ordering::Relaxed), clients)
    }
}

/// Appends a POST; `fields` are further lines of its head, each with its end.
pub fn post(out: &mut Vec<u8>, host: &str, path: &str, fields: &str, body: &[u8]) {
    let length = body.len();
    write!(out, "POST {path} HTTP/1.1\r\nhost: {host}\r\n{fields}content-length: {length}\r\n\r\n")
        .expect("a buffer takes everything");
    out.extend_from_slice(body);
}

/// The line that says that a body is JSON.
pub const JSON: &str = "content-type: application/json\r\n";
