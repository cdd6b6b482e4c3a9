//! etcd, by its JSON gateway.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use d3b_tests::Http;
use d3bctl::bench::{Answer, Kind, Lost, Target, Verdict, Work};
use serde_json::{Value, json};

use super::system::{Ask, Processes, ROWS, Running, SIZE, System};

/// etcd.
pub struct Etcd {
    /// Its program.
    pub program: PathBuf,
}

impl System for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn terms(&self) -> &'static str {
        "defaults; a write is fsynced on a majority before it is answered; one key over HTTP, by its JSON gateway, \
         which costs more than gRPC"
    }

    fn start(&self) -> Box<dyn Running> {
        let processes =
            Processes::start("etcd", |at, ports, peer_ports, data_dir| self.command(at, ports, peer_ports, data_dir));
        processes.wait_ready("/health", |answer| answer.status == 200 && answer.text().contains("true"));
        let http = Http::new();
        for row in 0..ROWS {
            let put = json!({ "key": STANDARD.encode(row_key(row)), "value": STANDARD.encode("x".repeat(SIZE)) });
            http.post(&format!("http://127.0.0.1:{}/v3/kv/put", processes.ports[0]), &put).expect(200);
        }
        Box::new(Started { processes, works: AtomicU64::new(0) })
    }
}

impl Etcd {
    fn command(&self, at: usize, ports: &[u16], peer_ports: &[u16], data_dir: &Path) -> Command {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> =
            peer_ports.iter().enumerate().map(|(at, port)| format!("n{at}={}", url(*port))).collect();
        let mut command = Command::new(&self.program);
        command.arg("--data-dir").arg(data_dir).args(["--name", &format!("n{at}")]);
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            command.args([flag, &url(ports[at])]);
        }
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            command.args([flag, &url(peer_ports[at])]);
        }
        command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"]);
        command.args(["--log-level", "warn"]);
        command
    }
}

fn row_key(row: u64) -> String {
    format!("row-{row}")
}

struct Started {
    processes: Processes,
    works: AtomicU64,
}

impl Running for Started {
    fn targets(&self) -> Vec<Target> {
        self.processes.targets()
    }

    fn pids(&self) -> Vec<u32> {
        self.processes.pids()
    }

    fn leader(&self) -> Option<usize> {
        let http = Http::new();
        self.processes.ports.iter().position(|port| {
            let url = format!("http://127.0.0.1:{port}/v3/maintenance/status");
            let status: Value = http.post(&url, &json!({})).expect(200).json();
            status["leader"] == status["header"]["member_id"]
        })
    }

    fn work(&self, ask: Ask, clients: usize) -> Box<dyn Work> {
        Box::new(Load {
            ask,
            run: self.works.fetch_add(1, Ordering::Relaxed),
            value: STANDARD.encode("x".repeat(SIZE)),
            next: vec![0; clients],
            body: Vec::new(),
        })
    }
}

/// Puts and ranges.
struct Load {
    ask: Ask,
    /// Which work of this cluster, for keys that nobody else has.
    run: u64,
    value: String,
    next: Vec<u64>,
    body: Vec<u8>,
}

impl Work for Load {
    fn kinds(&self) -> &[Kind] {
        match self.ask {
            Ask::Write => &[Kind { name: "put", writes: true }],
            Ask::Read => &[Kind { name: "range", writes: false }],
            Ask::StaleRead => &[Kind { name: "serializable range", writes: false }],
        }
    }

    fn begin(&mut self, client: usize) -> usize {
        self.next[client] += 1;
        0
    }

    fn request(&mut self, client: usize, host: &str, out: &mut Vec<u8>) {
        let number = self.next[client];
        let row = || STANDARD.encode(row_key((number * 31 + client as u64 * 17) % ROWS));
        self.body.clear();
        let (path, written) = match self.ask {
            Ask::Write => {
                let key = STANDARD.encode(format!("{}-{client}-{number}", self.run));
                ("put", write!(self.body, r#"{{"key":"{key}","value":"{}"}}"#, self.value))
            }
            Ask::Read => ("range", write!(self.body, r#"{{"key":"{}"}}"#, row())),
            Ask::StaleRead => ("range", write!(self.body, r#"{{"key":"{}","serializable":true}}"#, row())),
        };
        let length = self.body.len();
        let head = write!(
            out,
            "POST /v3/kv/{path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        written.and(head).expect("a buffer takes everything");
        out.extend_from_slice(&self.body);
    }

    fn judge(&mut self, _: usize, answer: &Answer<'_>) -> Verdict {
        let text = String::from_utf8_lossy(answer.body);
        let right = match self.ask {
            Ask::Write => text.contains(r#""revision""#),
            Ask::Read | Ask::StaleRead => text.contains(r#""count":"1""#),
        };
        match answer.status {
            200 if right => Verdict::Done(1),
            status => Verdict::Wrong(format!("{status} {text}")),
        }
    }

    fn lost(&mut self, _: usize, _: bool) -> Lost {
        Lost::Unknown
    }
}
