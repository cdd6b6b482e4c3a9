//! rqlite, by its HTTP API.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use d3b_tests::Http;
use d3bctl::bench::{Answer, Kind, Lost, Verdict, Work};
use serde_json::json;

use super::system::{Ask, JSON, Processes, ROWS, Running, SIZE, Started, System, post};

/// rqlite.
pub struct Rqlite {
    /// Its program.
    pub program: PathBuf,
}

impl System for Rqlite {
    fn name(&self) -> &'static str {
        "rqlite"
    }

    fn terms(&self) -> &'static str {
        "defaults; the Raft log is fsynced on a majority before a write is answered; one SQL statement over HTTP; \
         reads at level linearizable, stale ones at level none"
    }

    fn start(&self) -> Box<dyn Running> {
        let processes =
            Processes::start("rqlite", |at, ports, peer_ports, data| self.command(at, ports, peer_ports, data));
        processes.wait_ready("/readyz", |answer| answer.status == 200);
        let http = Http::new();
        let statements = json!([
            "CREATE TABLE entries(client INTEGER NOT NULL, number INTEGER NOT NULL, text TEXT NOT NULL)",
            "CREATE TABLE things(id INTEGER PRIMARY KEY, changes INTEGER NOT NULL, text TEXT NOT NULL)",
            [
                "WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < ?) \
              INSERT INTO things SELECT id, 0, ? FROM ids",
                ROWS,
                "x".repeat(SIZE)
            ],
        ]);
        let answer = http.post(&format!("http://127.0.0.1:{}/db/execute", processes.ports[0]), &statements).expect(200);
        assert!(!answer.text().contains("error"), "{}", answer.text());
        Box::new(Started::new(processes, |_| None, load))
    }
}

impl Rqlite {
    fn command(&self, at: usize, ports: &[u16], peer_ports: &[u16], data_dir: &Path) -> Command {
        let peers: Vec<String> = peer_ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut command = Command::new(&self.program);
        command.args(["-node-id", &format!("n{at}"), "-http-addr", &format!("127.0.0.1:{}", ports[at])]);
        command.args(["-raft-addr", &peers[at], "-bootstrap-expect", "3", "-join", &peers.join(",")]);
        command.arg(data_dir);
        command
    }
}

fn load(ask: Ask, run: u64, clients: usize) -> Box<dyn Work> {
    Box::new(Load { ask, run, text: "x".repeat(SIZE), next: vec![0; clients], body: Vec::new() })
}

/// Inserts and selects.
struct Load {
    ask: Ask,
    /// Which work of this cluster.
    run: u64,
    text: String,
    next: Vec<u64>,
    body: Vec<u8>,
}

impl Work for Load {
    fn kinds(&self) -> &[Kind] {
        match self.ask {
            Ask::Write => &[Kind { name: "insert", writes: true }],
            Ask::Read => &[Kind { name: "linearizable select", writes: false }],
            Ask::StaleRead => &[Kind { name: "select at level none", writes: false }],
        }
    }

    fn begin(&mut self, client: usize) -> usize {
        self.next[client] += 1;
        0
    }

    fn request(&mut self, client: usize, host: &str, out: &mut Vec<u8>) {
        let number = self.next[client];
        let id = (number * 31 + client as u64 * 17) % ROWS + 1;
        self.body.clear();
        let select = r#"[["SELECT id, text FROM things WHERE id=?","#;
        let (path, written) = match self.ask {
            Ask::Write => {
                let client = self.run * 10_000 + client as u64;
                let insert = r#"[["INSERT INTO entries VALUES(?,?,?)","#;
                ("execute", write!(self.body, r#"{insert}{client},{number},"{}"]]"#, self.text))
            }
            Ask::Read => ("query?level=linearizable", write!(self.body, "{select}{id}]]")),
            Ask::StaleRead => ("query?level=none", write!(self.body, "{select}{id}]]")),
        };
        written.expect("a buffer takes everything");
        post(out, host, &format!("/db/{path}"), JSON, &self.body);
    }

    fn judge(&mut self, _: usize, answer: &Answer<'_>) -> Verdict {
        let text = String::from_utf8_lossy(answer.body);
        let right = match self.ask {
            Ask::Write => text.contains(r#""rows_affected":1"#),
            Ask::Read | Ask::StaleRead => text.contains(r#""values":[["#),
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
