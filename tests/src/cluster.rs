//! Clusters of real daemons on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use d3b::Code;
use d3b::api::{ClusterInfo, DatabaseInfo, DatabaseList};
use serde_json::{Value, json};

use crate::build::programs;
use crate::faults::network::Host;
use crate::http::{Http, Response};
use crate::process::{Process, connections, last_lines};
use crate::wait::{PATIENCE, wait_for, wait_until};

/// How many clusters may run at once in one test process.
const CLUSTERS_MAX: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// The right to run a cluster, given back when it is dropped.
#[derive(Debug)]
pub struct Permit(());

impl Permit {
    /// Waits until there is room for one more cluster.
    #[must_use]
    pub fn wait() -> Permit {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running =
            ENDED.wait_while(running, |running| *running >= CLUSTERS_MAX).unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Permit(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// A port of loopback that nobody has. Ports are below those that the kernel hands out by itself, and no two calls of
/// this process give the same one, so that a replica that is down finds its port free when it comes back.
///
/// # Panics
/// When every port is taken.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = u16::try_from(std::process::id() * 64 % 20_000).expect("below 20,000");
    for _ in 0..20_000 {
        let port = 11_000 + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of loopback is free");
}

/// What kind of cluster to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many replicas.
    pub replicas: u32,
    /// Flags for every replica.
    pub flags: Vec<String>,
    /// Where they run, in the order of their ids; on loopback where there are none.
    pub hosts: Vec<Host>,
    /// Where their peers reach them, in the order of their ids, where that was settled before.
    pub peers: Vec<SocketAddr>,
}

impl Default for Options {
    fn default() -> Options {
        Options { replicas: 3, flags: Vec::new(), hosts: Vec::new(), peers: Vec::new() }
    }
}

impl Options {
    /// The same with one more flag and its value.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Options {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// The same on the hosts of a network.
    #[must_use]
    pub fn on(mut self, hosts: Vec<Host>) -> Options {
        self.hosts = hosts;
        self
    }

    /// Where a replica serves HTTP, and where it talks with its peers.
    fn addresses(&self, id: u32) -> (SocketAddr, SocketAddr) {
        match self.host(id) {
            Some(host) => ((host.address, HTTP_PORT).into(), (host.address, PEER_PORT).into()),
            None => {
                let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
                let peer = self.peers.get(id as usize - 1).copied();
                ((loopback, free_port()).into(), peer.unwrap_or_else(|| (loopback, free_port()).into()))
            }
        }
    }

    fn host(&self, id: u32) -> Option<&Host> {
        self.hosts.get(id as usize - 1)
    }
}

/// Where a replica serves HTTP on a host that it has for itself.
const HTTP_PORT: u16 = 8055;
/// Where the others reach it there.
const PEER_PORT: u16 = 8124;

/// Some replicas in a temporary directory. Dropping it kills them; the directory stays when the test has failed.
#[derive(Debug)]
pub struct Cluster {
    replicas: BTreeMap<u32, Replica>,
    directory: Option<tempfile::TempDir>,
    /// For requests of the test itself.
    pub http: Http,
    /// The flags that every replica has.
    flags: Vec<String>,
    _permit: Permit,
}

impl Cluster {
    /// Three replicas that are ready.
    #[must_use]
    pub fn start() -> Cluster {
        Cluster::with(Options::default())
    }

    /// Replicas that are ready.
    #[must_use]
    pub fn with(options: Options) -> Cluster {
        let mut cluster = Cluster::prepare(options);
        for id in cluster.ids() {
            cluster.replica_mut(id).start();
        }
        cluster.wait_ready();
        cluster
    }

    /// Replicas that were not started.
    ///
    /// # Panics
    /// When there is no place for them.
    #[must_use]
    pub fn prepare(options: Options) -> Cluster {
        programs();
        let permit = Permit::wait();
        let directory = tempfile::Builder::new().prefix("d3b-test-").tempdir().expect("a temporary directory");
        let addresses: BTreeMap<u32, (SocketAddr, SocketAddr)> =
            (1..=options.replicas).map(|id| (id, options.addresses(id))).collect();
        let all: Vec<String> = addresses.iter().map(|(id, (_, peer))| format!("{id}={peer}")).collect();
        let mut common = vec!["--replicas".to_owned(), all.join(",")];
        if !options.hosts.is_empty() {
            let key = directory.path().join("cluster.key");
            std::fs::write(&key, "a secret of this test's only, of some length").expect("room for a key");
            std::fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("a file of ours");
            let path = key.to_string_lossy().into_owned();
            common.extend(["--insecure".to_owned(), "--cluster-key-file".to_owned(), path]);
        }
        let replicas = addresses.iter().map(|(id, (http, peer))| {
            let mut flags = common.clone();
            flags.extend(["--peer-listen".to_owned(), peer.to_string()]);
            flags.extend(options.flags.iter().cloned());
            (*id, Replica::new(*id, *http, flags, options.host(*id).cloned(), directory.path()))
        });
        let replicas = replicas.collect();
        Cluster { replicas, directory: Some(directory), http: Http::new(), flags: options.flags, _permit: permit }
    }

    /// Starts a fresh replica on loopback that asks to join, and gives its id; it need not be a member yet.
    pub fn join(&mut self) -> u32 {
        let id = self.replicas.keys().next_back().map_or(1, |last| last + 1);
        let at = self.replica(self.live()[0]).url("");
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let (http, peer) = ((loopback, free_port()), (loopback, free_port()));
        let mut flags = vec!["--join".to_owned(), at, "--peer-listen".to_owned(), SocketAddr::from(peer).to_string()];
        flags.extend(self.flags.iter().cloned());
        let mut replica = Replica::new(id, http.into(), flags, None, self.directory());
        replica.start();
        self.replicas.insert(id, replica);
        id
    }

    /// Starts a fresh replica on loopback that knows the others and waits to be added; gives its id.
    pub fn prepare_spare(&mut self) -> u32 {
        let id = self.replicas.keys().next_back().map_or(1, |last| last + 1);
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let (http, peer) = ((loopback, free_port()), SocketAddr::from((loopback, free_port())));
        let seen = self.replica(self.live()[0]).cluster_info();
        let mut all: Vec<String> = seen.replicas.iter().map(|other| format!("{}={}", other.id, other.peer)).collect();
        all.push(format!("{id}={peer}"));
        let mut flags = vec!["--replicas".to_owned(), all.join(","), "--peer-listen".to_owned(), peer.to_string()];
        flags.extend(self.flags.iter().cloned());
        let mut replica = Replica::new(id, http.into(), flags, None, self.directory());
        replica.start();
        let url = replica.url("/livez");
        wait_until(&format!("replica {id} listens"), PATIENCE, || {
            self.http.try_send("GET", &url, &[], ureq::SendBody::none()).is_ok_and(|answer| answer.status == 200)
        });
        self.replicas.insert(id, replica);
        id
    }

    /// Waits until a replica votes, as another one sees it.
    #[track_caller]
    pub fn wait_until_votes(&self, id: u32, seen_by: u32) {
        wait_until(&format!("replica {id} votes"), PATIENCE, || {
            let seen = self.replica(seen_by).cluster_info();
            seen.replicas.iter().any(|replica| replica.id == id && replica.role == "voter")
        });
    }

    /// Ends a replica for good, which is no member any more.
    pub fn forget(&mut self, id: u32) {
        if let Some(mut replica) = self.replicas.remove(&id) {
            replica.kill();
        }
    }

    /// Where everything of this cluster is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().expect("held until the cluster is dropped").path()
    }

    /// Every replica's id.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        self.replicas.keys().copied().collect()
    }

    /// The ids of those that run.
    #[must_use]
    pub fn live(&self) -> Vec<u32> {
        self.replicas.values().filter(|replica| replica.is_running()).map(|replica| replica.id).collect()
    }

    /// The ids of those that run, but one.
    #[must_use]
    pub fn others(&self, than: u32) -> Vec<u32> {
        self.live().into_iter().filter(|id| *id != than).collect()
    }

    /// A replica.
    #[must_use]
    pub fn replica(&self, id: u32) -> &Replica {
        &self.replicas[&id]
    }

    /// A replica, to do something to.
    pub fn replica_mut(&mut self, id: u32) -> &mut Replica {
        self.replicas.get_mut(&id).expect("a replica of this cluster")
    }

    /// Every replica's HTTP address.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.replicas.values().map(|replica| replica.url("")).collect()
    }

    /// Waits until every running replica would answer a linearizable read.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        for replica in self.replicas.values_mut().filter(|replica| replica.process.is_some()) {
            replica.wait_ready();
        }
    }

    /// Starts a replica again if it does not run, or has stopped itself, and waits until it is ready.
    ///
    /// # Panics
    /// When it stops in another way than in order.
    #[track_caller]
    pub fn revive(&mut self, id: u32) {
        let replica = self.replica_mut(id);
        wait_until(&format!("replica {id} is ready again"), PATIENCE, || {
            if replica.is_running()
                && let Some(status) = replica.has_ended()
            {
                println!("replica {id} has stopped itself: {status}");
                // It may have been killed, by what the test planted; it must not have crashed.
                let in_order = status.signal().is_none_or(|signal| signal == libc::SIGKILL);
                assert!(in_order && !replica.said().contains("panicked"), "it stops in order: {status}");
            }
            if !replica.is_running() {
                replica.start();
            }
            replica.is_ready()
        });
    }

    /// Waits until the running replicas agree on a leader that runs, and tells it.
    #[track_caller]
    pub fn leader(&self) -> u32 {
        self.leader_among(&self.live())
    }

    /// Waits until some replicas agree on a leader that is one of them, and tells it.
    #[track_caller]
    pub fn leader_among(&self, ids: &[u32]) -> u32 {
        wait_for(&format!("replicas {ids:?} agree on a leader"), PATIENCE, || {
            let leaders: BTreeSet<Option<u32>> = ids.iter().map(|id| self.replica(*id).leader()).collect();
            match leaders.into_iter().collect::<Vec<_>>()[..] {
                [Some(leader)] if ids.contains(&leader) => Some(leader),
                _ => None,
            }
        })
    }

    /// A running replica that does not lead.
    #[track_caller]
    pub fn follower(&self) -> u32 {
        let leader = self.leader();
        self.live().into_iter().find(|id| *id != leader).expect("a cluster of more than one")
    }

    /// Creates an empty database.
    #[track_caller]
    pub fn create(&self, db: &str) {
        let id = self.leader();
        self.replica(id).put(&format!("/v1/db/{db}/file"), b"").expect(201);
    }

    /// Demands that all running replicas hold the same databases with the same content, media and fingerprints. No
    /// write may be under way.
    ///
    /// # Panics
    /// When they differ.
    #[track_caller]
    pub fn assert_same_everywhere(&self) {
        let mut first: Option<Vec<DatabaseInfo>> = None;
        for id in self.live() {
            let databases = self.replica(id).databases();
            match &first {
                None => first = Some(databases),
                Some(first) => {
                    let seen = |list: &[DatabaseInfo]| -> Vec<_> {
                        let parts = |info: &DatabaseInfo| {
                            (info.name.clone(), info.id.clone(), info.slot, info.fingerprint.clone(), info.media)
                        };
                        list.iter().map(parts).collect()
                    };
                    assert_eq!(seen(first), seen(&databases), "replica {id} differs");
                }
            }
            let divergent = self.replica(id).cluster_info().divergent;
            assert!(divergent.is_empty(), "replica {id} sees {divergent:?}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        for replica in self.replicas.values_mut() {
            replica.kill();
            if failed {
                eprintln!("---- the end of replica {}'s log:\n{}", replica.id, last_lines(&replica.log, 40));
            }
        }
        if failed && let Some(directory) = self.directory.take() {
            eprintln!("---- data and logs are kept in {}", directory.keep().display());
        }
    }
}

/// One daemon.
#[derive(Debug)]
pub struct Replica {
    /// Its id.
    pub id: u32,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its log, of all its lives.
    pub log: PathBuf,
    address: SocketAddr,
    flags: Vec<String>,
    host: Option<Host>,
    environment: Vec<(OsString, OsString)>,
    process: Option<Process>,
    http: Http,
}

impl Replica {
    fn new(id: u32, address: SocketAddr, flags: Vec<String>, host: Option<Host>, directory: &Path) -> Replica {
        Replica {
            id,
            data_dir: directory.join(format!("replica-{id}")),
            log: directory.join(format!("replica-{id}.log")),
            address,
            flags,
            host,
            environment: Vec::new(),
            process: None,
            http: Http::new(),
        }
    }

    /// The command that starts this replica.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = d3bd(self.log.parent().expect("it lies in the cluster's directory"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(host) = self.host.clone() {
            // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
            unsafe { command.pre_exec(move || host.enter()) };
        }
        command.arg("--id").arg(self.id.to_string()).arg("--data-dir").arg(&self.data_dir);
        command.args(["--listen", &self.address().to_string(), "--log-level", "info"]).args(&self.flags);
        command
    }

    /// Gives it a variable in its environment when it is started next.
    pub fn set_environment(&mut self, name: &str, value: &OsStr) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.into(), value.into()));
    }

    /// Starts it, without waiting for anything.
    ///
    /// # Panics
    /// When it runs already.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "replica {} runs already", self.id);
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        self.process = Some(Process::spawn(&mut command));
    }

    /// Waits until it would answer a linearizable read.
    ///
    /// # Panics
    /// When it ends instead, or takes too long.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let (id, url, log) = (self.id, self.url("/readyz"), self.log.clone());
        let process = self.process.as_mut().expect("a replica that was started");
        let http = self.http.clone();
        wait_until(&format!("replica {id} is ready"), PATIENCE, || {
            if let Some(status) = process.ended() {
                panic!("replica {id} has ended ({status}):\n{}", last_lines(&log, 20));
            }
            http.try_send("GET", &url, &[], ureq::SendBody::none()).is_ok_and(|answer| answer.status == 200)
        });
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub fn start_ready(&mut self) {
        self.start();
        self.wait_ready();
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.process().signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process().signal(libc::SIGCONT);
    }

    /// SIGTERM, without waiting for anything.
    pub fn ask_to_stop(&self) {
        self.process().signal(libc::SIGTERM);
    }

    /// Waits until it ends by itself, and tells how.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let status = self.process.as_mut().expect("a replica that runs").wait_for_end(PATIENCE);
        self.process = None;
        status
    }

    /// Whether it was started, and nobody knows yet that it has ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Whether it has ended by itself.
    #[track_caller]
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut().expect("a replica that was started").ended();
        if status.is_some() {
            self.process = None;
        }
        status
    }

    /// Its process.
    #[must_use]
    #[track_caller]
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("a replica that runs")
    }

    /// What it has said in all of its lives.
    #[must_use]
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its process id.
    #[must_use]
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Where it serves HTTP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it has an open connection to another one that it has made itself. Only of replicas on hosts of their own.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    #[track_caller]
    pub fn speaks_to(&self, other: &Replica) -> bool {
        connections(self.pid()).contains(&SocketAddr::new(other.address.ip(), PEER_PORT))
    }

    /// The URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// GET of a path.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.http.get(&self.url(path))
    }

    /// PUT to a path.
    #[track_caller]
    pub fn put(&self, path: &str, body: &[u8]) -> Response {
        self.http.put(&self.url(path), body)
    }

    /// POST of JSON to a path.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.http.post(&self.url(path), body)
    }

    /// DELETE of a path.
    #[track_caller]
    pub fn delete(&self, path: &str) -> Response {
        self.http.delete(&self.url(path))
    }

    /// Runs one statement, whatever comes of it.
    #[track_caller]
    pub fn try_sql(&self, db: &str, sql: &str, args: Value) -> Response {
        self.post(&format!("/v1/db/{db}/query"), &json!({ "sql": sql, "args": args }))
    }

    /// Runs one statement that must succeed, and gives its rows.
    #[track_caller]
    pub fn sql(&self, db: &str, sql: &str, args: Value) -> Value {
        self.try_sql(db, sql, args).expect(200).json::<Value>()["rows"].take()
    }

    /// Runs one statement that must give one value.
    #[track_caller]
    pub fn value(&self, db: &str, sql: &str) -> Value {
        self.sql(db, sql, json!([]))[0][0].take()
    }

    /// The cluster as this replica sees it.
    #[must_use]
    #[track_caller]
    pub fn cluster_info(&self) -> ClusterInfo {
        self.get("/v1/cluster").expect(200).json()
    }

    /// The leader that it knows of; `None` also while it does not answer.
    #[must_use]
    pub fn leader(&self) -> Option<u32> {
        let answer = self.http.try_send("GET", &self.url("/v1/cluster"), &[], ureq::SendBody::none()).ok()?;
        (answer.status == 200).then(|| answer.json::<ClusterInfo>().leader)?
    }

    /// Every database, linearized.
    #[must_use]
    #[track_caller]
    pub fn databases(&self) -> Vec<DatabaseInfo> {
        self.get("/v1/db").expect(200).json::<DatabaseList>().databases
    }

    /// Every file below its data directory.
    ///
    /// # Panics
    /// When the directory cannot be read.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        list(&self.data_dir, &mut files);
        files.sort();
        files
    }

    /// The file of a blob in its store, whether it is there or not.
    #[must_use]
    pub fn blob(&self, digest: &d3b::Digest) -> PathBuf {
        let name = digest.to_string();
        self.data_dir.join("blobs").join(&name[..2]).join(name)
    }

    /// Waits until it has the bytes of a blob.
    #[track_caller]
    pub fn wait_for_blob(&self, digest: &d3b::Digest) {
        wait_until(&format!("replica {} has blob {digest}", self.id), PATIENCE, || self.blob(digest).exists());
    }

    /// Whether it would answer a linearizable read now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let answer = self.http.try_send("GET", &self.url("/readyz"), &[], ureq::SendBody::none());
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// Waits until it refuses a linearizable read because there is no majority; it may have been started just now.
    #[track_caller]
    pub fn wait_no_quorum(&self) {
        wait_until(&format!("replica {} sees no quorum", self.id), PATIENCE, || {
            let answer = self.http.try_send("GET", &self.url("/readyz"), &[], ureq::SendBody::none());
            answer.is_ok_and(|answer| answer.status == 503 && answer.problem().code == Code::NoQuorum)
        });
    }
}

/// Files may come and go while they are listed.
fn list(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            list(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// `d3bd` without settings from the environment, in a directory without a configuration file.
#[must_use]
pub fn d3bd(directory: &Path) -> Command {
    without_settings(Command::new(&programs().d3bd), directory)
}

/// `d3bctl` without settings from the environment, in a directory.
#[must_use]
pub fn d3bctl(directory: &Path) -> Command {
    without_settings(Command::new(&programs().d3bctl), directory)
}

/// A command without settings of d3b from the environment.
#[must_use]
pub fn without_settings(mut command: Command, directory: &Path) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("D3B")) {
        command.env_remove(name);
    }
    command.current_dir(directory).env("XDG_CONFIG_HOME", directory.join("no-configuration"));
    command
}
