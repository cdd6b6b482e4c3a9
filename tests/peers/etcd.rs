//! etcd, by its JSON gateway.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use d3b_tests::Http;
use d3bctl::bench::{Answer, Kind, Lost, Verdict, Work};
use serde_json::{Value, json};

use super::system::{Ask, JSON, Processes, ROWS, Running, SIZE, Started, System, post};

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
        Box::new(Started::new(processes, leader, load))
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

fn leader(processes: &Processes) -> Option<usize> {
    let http = Http::new();
    processes.ports.iter().position(|port| {
        let url = format!("http://127.0.0.1:{port}/v3/maintenance/status");
        let status: Value = http.post(&url, &json!({})).expect(200).json();
        status["leader"] == status["header"]["member_id"]
    })
}

fn load(ask: Ask, run: u64, clients: usize) -> Box<dyn Work> {
    let value = STANDARD.encode("x".repeat(SIZE));
    Box::new(Load { ask, run, value, next: vec![0; clients], body: Vec::new() })
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
        written.expect("a buffer takes everything");
        post(out, host, &format!("/v3/kv/{path}"), JSON, &self.body);
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
