//! `d3bd demo`: a throw-away cluster on loopback, each replica a process of its own, with something in it to play with.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

/// How long the replicas may take to be ready.
const READY_MAX: Duration = Duration::from_secs(30);
/// How long a replica may take to stop when it is asked to.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(50);

/// What kind of demonstration.
#[derive(Debug, clap::Args)]
pub struct DemoArguments {
    /// How many replicas to start, 1 to 9
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
    pub replicas: u32,
    /// Stop as soon as everything was shown, instead of waiting for Ctrl-C
    #[arg(long)]
    pub once: bool,
}

/// Why there is no demonstration.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A directory, port, process or signal was not to be had.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A replica ended by itself.
    #[error("replica {id} has stopped ({status}); the end of its log:\n{log}")]
    Died {
        /// Which.
        id: u32,
        /// How.
        status: std::process::ExitStatus,
        /// Its last words.
        log: String,
    },
    /// The cluster was not ready in time.
    #[error("the cluster was not ready after {READY_MAX:?}; the end of replica 1's log:\n{0}")]
    NotReady(String),
    /// A request of the demonstration itself failed.
    #[error("the demonstration's own request failed: {0}")]
    Request(String),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> DemoError {
    move |source| DemoError::System { what, source }
}

/// One replica, killed when it is dropped.
struct Process {
    id: u32,
    http: u16,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the demonstration until Ctrl-C.
///
/// # Errors
/// See [`DemoError`]; everything that was started is stopped and removed in any case.
pub fn run(arguments: &DemoArguments) -> Result<(), DemoError> {
    let interrupted = catch_interrupts()?;
    let directory = tempfile::Builder::new().prefix("d3b-demo-").tempdir().map_err(system("make a directory"))?;
    say(&format!("starting {} replicas on loopback in {}", arguments.replicas, directory.path().display()));
    let mut processes = start(arguments.replicas, directory.path())?;
    let result = play(arguments, directory.path(), &mut processes, interrupted);
    say("\nstopping");
    stop(processes);
    result.and(directory.close().map_err(system("remove the directory")))
}

/// Tells how it goes. Where nobody can hear it any more, there is still a cluster to stop and a directory to remove.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Ctrl-C, SIGTERM and a terminal that is closed set a flag, so that everything is cleaned up whenever they come.
fn catch_interrupts() -> Result<&'static AtomicBool, DemoError> {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start a thread"))?;
    let (installed, ready) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let catch = || {
                let [interrupt, terminate, hang_up] =
                    [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
                std::io::Result::Ok((interrupt?, terminate?, hang_up?))
            };
            let (mut interrupt, mut terminate, mut hang_up) = match catch() {
                Ok(signals) => signals,
                Err(error) => return drop(installed.send(Err(error))),
            };
            drop(installed.send(Ok(())));
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            INTERRUPTED.store(true, Ordering::Release);
        });
    });
    match ready.recv() {
        Ok(result) => result.map_err(system("watch for Ctrl-C"))?,
        Err(_) => return Err(DemoError::Request("the thread that watches for Ctrl-C ended".to_owned())),
    }
    Ok(&INTERRUPTED)
}

/// Free ports, all held until every one is known, so that no two are the same.
fn free_ports(count: usize) -> Result<Vec<u16>, DemoError> {
    let listeners: Result<Vec<TcpListener>, _> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let ports = listeners.and_then(|listeners| {
        listeners.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect()
    });
    ports.map_err(system("find free ports"))
}

fn start(count: u32, directory: &Path) -> Result<Vec<Process>, DemoError> {
    let ports = free_ports(2 * count as usize)?;
    let (http, peer) = ports.split_at(count as usize);
    let replicas: Vec<String> = peer.iter().zip(1..).map(|(port, id)| format!("{id}=127.0.0.1:{port}")).collect();
    let replicas = replicas.join(",");
    let program = std::env::current_exe().map_err(system("find this program"))?;
    // Settings of this machine, in its environment or in a file, are not for the demonstration.
    let settings = directory.join("d3b.toml");
    File::create(&settings).map_err(system("write a file"))?;
    let mut processes = Vec::new();
    for (id, (http, peer)) in (1..).zip(http.iter().zip(peer)) {
        let log = File::create(log_path(directory, id)).map_err(system("write a log"))?;
        let mut command = Command::new(&program);
        command
            .arg("--config")
            .arg(&settings)
            .args(["--id", &id.to_string(), "--replicas", &replicas])
            .args(["--listen", &format!("127.0.0.1:{http}"), "--peer-listen", &format!("127.0.0.1:{peer}")])
            .arg("--data-dir")
            .arg(directory.join(format!("d{id}")))
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with(crate::config::VARIABLE) || name == "NOTIFY_SOCKET" {
                command.env_remove(name);
            }
        }
        separate(&mut command);
        let child = command.spawn().map_err(system("start a replica"))?;
        processes.push(Process { id, http: *http, child });
    }
    Ok(processes)
}

/// Ctrl-C on the terminal is for this process, which then stops the replicas in order; and they end with it.
fn separate(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        let demo = std::process::id().cast_signed();
        // SAFETY: prctl and getppid are async-signal-safe and touch nothing of the parent.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // It may have died before it was asked for.
                if libc::getppid() == demo { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
            });
        }
    }
}

fn log_path(directory: &Path, id: u32) -> std::path::PathBuf {
    directory.join(format!("replica-{id}.log"))
}

fn last_words(directory: &Path, id: u32) -> String {
    let text = std::fs::read_to_string(log_path(directory, id)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

fn play(
    arguments: &DemoArguments,
    directory: &Path,
    processes: &mut [Process],
    interrupted: &AtomicBool,
) -> Result<(), DemoError> {
    let Some(leader) = wait_until_ready(directory, processes, interrupted)? else { return Ok(()) };
    fill(&endpoint(&processes[0]))?;
    let mut out = std::io::stdout();
    match writeln!(out, "{}", explain(directory, processes, leader)).and_then(|()| out.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
        result => result.map_err(system("write"))?,
    }
    let mut noticed = vec![false; processes.len()];
    while !arguments.once && !interrupted.load(Ordering::Acquire) {
        for (process, noticed) in processes.iter_mut().zip(&mut noticed) {
            if !*noticed && let Ok(Some(status)) = process.child.try_wait() {
                *noticed = true;
                let id = process.id;
                say(&format!("replica {id} has ended ({status}); a majority of the others goes on without it"));
            }
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn endpoint(process: &Process) -> String {
    format!("http://127.0.0.1:{}", process.http)
}

/// Waits until every replica would answer a linearizable read; `None` when Ctrl-C came first.
fn wait_until_ready(
    directory: &Path,
    processes: &mut [Process],
    interrupted: &AtomicBool,
) -> Result<Option<u32>, DemoError> {
    let deadline = Instant::now() + READY_MAX;
    let agent = agent();
    for process in processes.iter_mut() {
        let url = format!("{}/readyz", endpoint(process));
        while agent.get(&url).call().is_err() {
            if interrupted.load(Ordering::Acquire) {
                return Ok(None);
            }
            if let Ok(Some(status)) = process.child.try_wait() {
                return Err(DemoError::Died { id: process.id, status, log: last_words(directory, process.id) });
            }
            if Instant::now() > deadline {
                return Err(DemoError::NotReady(last_words(directory, 1)));
            }
            std::thread::sleep(LOOK);
        }
    }
    let url = format!("{}/v1/cluster", endpoint(&processes[0]));
    let body = agent.get(&url).call().and_then(|mut response| response.body_mut().read_to_vec());
    let body = body.map_err(|error| DemoError::Request(error.to_string()))?;
    let cluster: d3b::api::ClusterInfo =
        serde_json::from_slice(&body).map_err(|error| DemoError::Request(error.to_string()))?;
    Ok(Some(cluster.leader.unwrap_or(1)))
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(15))).build().new_agent()
}

/// The sample: a database of birds, and a picture of each.
fn fill(endpoint: &str) -> Result<(), DemoError> {
    let agent = agent();
    let failed = |error: ureq::Error| DemoError::Request(error.to_string());
    agent.put(format!("{endpoint}/v1/db/birds/file")).send_empty().map_err(failed)?;
    let mut statements = vec![json!({"sql":
        "CREATE TABLE birds(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, wingspan_cm REAL, \
         picture TEXT, seen_at TEXT DEFAULT CURRENT_TIMESTAMP)"})];
    for (name, wingspan, _) in BIRDS {
        let picture = format!("{name}.svg");
        statements.push(json!({
            "sql": "INSERT INTO birds(name, wingspan_cm, picture) VALUES(?, ?, ?)",
            "args": [name, wingspan, picture],
        }));
    }
    let batch = serde_json::to_vec(&json!({ "statements": statements })).expect("JSON of texts and numbers");
    agent
        .post(format!("{endpoint}/v1/db/birds/batch"))
        .header("content-type", "application/json")
        .send(&batch[..])
        .map_err(failed)?;
    for (name, wingspan, colour) in BIRDS {
        agent
            .put(format!("{endpoint}/v1/db/birds/media/{name}.svg"))
            .header("content-type", "image/svg+xml")
            .send(picture(*wingspan, colour).as_bytes())
            .map_err(failed)?;
    }
    Ok(())
}

/// Name, wingspan in centimetres, colour.
const BIRDS: &[(&str, f64, &str)] = &[
    ("swift", 42.0, "#4b3f36"),
    ("heron", 185.0, "#8fa3ad"),
    ("kingfisher", 25.0, "#1f7a8c"),
    ("barn-owl", 89.0, "#d9b77e"),
];

/// A bird from afar, as wide as its wings.
fn picture(wingspan: f64, colour: &str) -> String {
    let half = wingspan / 2.0;
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='-100 -50 200 100'>\
         <path d='M {left} -10 Q {bend} -40 0 0 Q {other} -40 {half} -10' fill='none' stroke='{colour}' stroke-width='6'/></svg>\n",
        left = -half,
        bend = -half / 2.0,
        other = half / 2.0,
    )
}

fn explain(directory: &Path, processes: &[Process], leader: u32) -> String {
    let endpoints: Vec<String> = processes.iter().map(endpoint).collect();
    let first = &endpoints[0];
    let last = endpoints.last().unwrap_or(first);
    let mut text = format!("\nThe cluster is up: {} replicas, replica {leader} leads.\n\n", processes.len());
    for process in processes {
        text.push_str(&format!("  replica {}  {}  pid {}\n", process.id, endpoint(process), process.child.id()));
    }
    let all = endpoints.join(",");
    let victim = processes.iter().find(|process| process.id == leader).map_or(0, |process| process.child.id());
    text.push_str(&format!(
        "\nThe database `birds` has a table and {count} pictures. Ask any replica:\n\n\
         \x20 curl -s {first}/v1/db/birds/query -d '{{\"sql\":\"SELECT name, wingspan_cm FROM birds ORDER BY 2\"}}'\n\
         \x20 curl -s {last}/v1/db/birds/query -d '{{\"sql\":\"INSERT INTO birds(name) VALUES(?)\",\"args\":[\"wren\"]}}'\n\
         \x20 curl -s {last}/v1/db/birds/media/heron.svg\n\
         \x20 curl -s {first}/v1/cluster\n\n\
         With the command line (cargo run --release --bin d3bctl -- ..., or target/release/d3bctl):\n\n\
         \x20 export D3B_ENDPOINTS={all}\n\
         \x20 d3bctl query birds 'SELECT * FROM birds'\n\
         \x20 d3bctl media list birds\n\
         \x20 d3bctl upload shop FILE.sqlite3\n\
         \x20 d3bctl log list\n\
         \x20 d3bctl cluster status\n\n\
         Pull the plug: kill -9 {victim} ends the leader; the others go on, and nothing that was answered is lost.\n\
         Logs and data are in {directory}. Ctrl-C stops the cluster and removes them.",
        count = BIRDS.len(),
        directory = directory.display(),
    ));
    text
}

/// Asks every replica to stop, then makes sure.
fn stop(mut processes: Vec<Process>) {
    for process in &processes {
        if let Ok(pid) = i32::try_from(process.child.id()) {
            // SAFETY: the process is a child that was not waited for, so its id is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }
    let deadline = Instant::now() + STOP_MAX;
    for process in &mut processes {
        while matches!(process.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
    }
}
