//! hiqlite, by the small program in `tests/peers/hiqlite`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use d3b_tests::Http;
use d3b_tests::cluster::free_port;
use d3bctl::bench::{Answer, Kind, Lost, Verdict, Work};
use serde_json::json;

use super::system::{Ask, Processes, ROWS, Running, SIZE, Started, System, post};

/// hiqlite.
pub struct Hiqlite {
    /// Its program.
    pub program: PathBuf,
    /// Whether a write is fsynced before it is answered, which is not its default.
    pub immediate: bool,
}

impl System for Hiqlite {
    fn name(&self) -> &'static str {
        if self.immediate { "hiqlite" } else { "hiqlite-default" }
    }

    fn terms(&self) -> &'static str {
        if self.immediate {
            "log_sync=immediate: a write is fsynced before it is answered; one prepared SQL statement behind as little HTTP \
             as will do, which flatters its stale reads; reads by consistent queries"
        } else {
            "defaults: NOT durable when it is answered, but fsynced every 200 ms"
        }
    }

    fn start(&self) -> Box<dyn Running> {
        let api_ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let processes = Processes::start("hiqlite", |at, ports, peer_ports, data| {
            self.command(at, ports, peer_ports, &api_ports, data)
        });
        processes.wait_ready("/ready", |answer| answer.status == 200);
        let setup = json!([ROWS, "x".repeat(SIZE)]);
        Http::new().post(&format!("http://127.0.0.1:{}/setup", processes.ports[0]), &setup).expect(200);
        Box::new(Started::new(processes, |_| None, load))
    }
}

impl Hiqlite {
    fn command(&self, at: usize, ports: &[u16], peer_ports: &[u16], api_ports: &[u16], data_dir: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args([(at + 1).to_string(), format!("127.0.0.1:{}", ports[at])]).arg(data_dir);
        command.arg(if self.immediate { "immediate" } else { "default" });
        for (raft, api) in peer_ports.iter().zip(api_ports) {
            command.args([format!("127.0.0.1:{raft}"), format!("127.0.0.1:{api}")]);
        }
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
            Ask::Write => &[Kind { name: "execute", writes: true }],
            Ask::Read => &[Kind { name: "query_consistent", writes: false }],
            Ask::StaleRead => &[Kind { name: "query", writes: false }],
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
        let (path, written) = match self.ask {
            Ask::Write => {
                let client = self.run * 10_000 + client as u64;
                ("write", write!(self.body, r#"[{client},{number},"{}"]"#, self.text))
            }
            Ask::Read => ("read", write!(self.body, "[{id}]")),
            Ask::StaleRead => ("stale", write!(self.body, "[{id}]")),
        };
        written.expect("a buffer takes everything");
        post(out, host, &format!("/{path}"), "", &self.body);
    }

    fn judge(&mut self, _: usize, answer: &Answer<'_>) -> Verdict {
        let right = match self.ask {
            Ask::Write => answer.body == b"1",
            Ask::Read | Ask::StaleRead => answer.body == self.text.as_bytes(),
        };
        match answer.status {
            200 if right => Verdict::Done(1),
            status => Verdict::Wrong(format!("{status} {}", String::from_utf8_lossy(answer.body))),
        }
    }

    fn lost(&mut self, _: usize, _: bool) -> Lost {
        Lost::Unknown
    }
}
