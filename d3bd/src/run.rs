//! Puts the parts of a replica together: threads, channels, sockets, signals. Decisions are the driver's; this file
//! only carries them out.
//!
//! * one thread runs the driver: events come in by a bounded channel, effects go out;
//! * one thread writes the log (`log/`), one applies entries (`applier.rs`);
//! * tokio serves HTTP and peers, and moves blobs.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use d3b::{DiskId, ReplicaId, Slot};
use d3b_engine::Engine;
use d3b_paxos::types::{Now, Ticks};
use tokio::sync::watch;

use crate::applier::{self, Applier, Retain};
use crate::catch_up::{Fetching, Taker};
use crate::config::Settings;
use crate::disk::sync_directory;
use crate::driver::{Driver, DriverStatus, Event, Phase, Process, Repair, Start};
use crate::driving::{Driving, EVENTS_MAX, Events};
use crate::executor::Executor;
use crate::handle::{Handle, Parts, Waiting};
use crate::log::{self, LogError};
use crate::media::{self, BlobStore, Fetcher, Prefetcher};
use crate::peer::{self, Patience, PeerConfig, PeerEvent, Peers};
use crate::quarantine;
use crate::rate::Rate;
use crate::scrub::{self, Scrubber};
use crate::snapshot::{self, Offer};
use crate::wanting::Wanting;

/// How many peers may wait for a snapshot.
const ORDERS_MAX: usize = 16;
/// How long a stopping replica waits for another one to take over the leadership.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);
/// How long it waits before it asks once more.
const HAND_OVER_AGAIN: Duration = Duration::from_millis(400);
/// How long a stopping replica waits for requests under way.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Log time keeps within this of the majority's clocks.
const CLOCK_AHEAD_MS_MAX: u64 = 10_000;
/// How many threads apply entries at most, beside the one that always does.
const APPLY_WORKERS_MAX: usize = 4;

/// Why a daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory could not be made.
    #[error("cannot make the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The log.
    #[error("the log: {0}")]
    Log(#[from] LogError),
    /// The databases.
    #[error("the databases: {0}")]
    Engine(#[from] d3b_engine::Fatal),
    /// A snapshot that is to take the place of both.
    #[error("the snapshot that was fetched: {0}")]
    Snapshot(#[from] snapshot::InstallError),
    /// The blobs.
    #[error("the blob store")]
    Blobs(#[source] std::io::Error),
    /// An address that cannot be listened on.
    #[error("cannot listen on {address} ({what})")]
    Listen {
        /// `HTTP` or `peers`.
        what: &'static str,
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A cluster that cannot be joined.
    #[error("cannot join the cluster at {url}: {problem}")]
    Join {
        /// Where it was asked.
        url: String,
        /// Why.
        problem: String,
    },
    /// Threads or signals are not to be had.
    #[error("the system refused {what}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The replica met something that it must not live with; it was logged in full.
    #[error("the replica stopped itself: {0}")]
    Poisoned(String),
}

/// Tells every thread to end, and why.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    asked: AtomicBool,
    /// Whether the replica is to start again in this same process.
    again: AtomicBool,
    fatal: Mutex<Option<String>>,
}

impl Stop {
    /// Whether it is time.
    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    fn ask(&self) {
        self.asked.store(true, Ordering::Release);
    }

    /// The replica is to start again.
    pub(crate) fn ask_again(&self) {
        self.again.store(true, Ordering::Release);
        self.ask();
    }

    fn is_again(&self) -> bool {
        self.again.load(Ordering::Acquire)
    }

    /// This process must not go on: the first cause is kept.
    pub(crate) fn fatal(&self, cause: String) {
        tracing::error!(cause, "this replica must stop");
        self.fatal.lock().expect("no panic while held").get_or_insert(cause);
        self.ask();
    }

    fn cause(&self) -> Option<String> {
        self.fatal.lock().expect("no panic while held").clone()
    }
}

/// The clocks of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    /// What they show.
    pub(crate) fn now(&self) -> Now {
        let ticks = Ticks(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { ticks, clock_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// Random bytes of the operating system.
fn random<const N: usize>() -> Result<[u8; N], RunError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| RunError::System { what: "random bytes", source: std::io::Error::other(error.to_string()) })?;
    Ok(bytes)
}

fn random_u64() -> Result<u64, RunError> {
    Ok(u64::from_le_bytes(random()?))
}

/// Runs a replica until it is told to stop, or must.
///
/// # Errors
/// It could not start, or stopped itself.
pub fn run(settings: &Settings) -> Result<(), RunError> {
    let mut settings = settings.clone();
    crate::join::prepare(&mut settings)?;
    // With a snapshot that was fetched it begins anew, as after a crash: there is one way in which databases are replaced.
    while run_once(&mut settings)? == End::Again {
        tracing::info!("starts again with the snapshot that was fetched");
    }
    Ok(())
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stopped,
    Again,
}

fn run_once(settings: &mut Settings) -> Result<End, RunError> {
    make_directory(&settings.data_dir)
        .map_err(|source| RunError::Directory { path: settings.data_dir.clone(), source })?;
    let events = Events::new(EVENTS_MAX);
    let stop = Arc::new(Stop::default());
    let opened = open_log(settings, &events, &stop)?;
    let directory = settings.data_dir.join("databases");
    let options =
        d3b_engine::Options { workers: apply_workers(), execution: execution(), ..d3b_engine::Options::default() };
    let engine = Engine::open(&directory, options)?;
    check_end(&opened, engine.newest_slot()?)?;
    let blobs = BlobStore::open(&settings.data_dir.join("blobs")).map_err(RunError::Blobs)?;
    let offer = Offer::open(&settings.data_dir, &blobs, Instant::now()).map_err(RunError::Blobs)?;
    // The directories of databases and blobs were made in it.
    sync_directory(&settings.data_dir)
        .map_err(|source| RunError::Directory { path: settings.data_dir.clone(), source })?;
    let http = listen("HTTP", settings.listen)?;
    let peers = listen("peers", settings.peer_listen)?;
    // Whoever let the system choose a port keeps it.
    settings.listen = http.local_addr().unwrap_or(settings.listen);
    settings.peer_listen = peers.local_addr().unwrap_or(settings.peer_listen);
    let settings = &*settings;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("d3bd-io")
        .build()
        .map_err(|source| RunError::System { what: "threads", source })?;
    let replica = Assembly { settings, events, stop, opened, engine, blobs, offer, http, peers };
    let result = replica.start(&runtime);
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// How many threads share the work of the one that applies entries. More of them would find little to do: the log, HTTP and
/// the peers want processors too.
fn apply_workers() -> usize {
    std::thread::available_parallelism().map_or(0, |cores| (cores.get() - 1).min(APPLY_WORKERS_MAX))
}

/// The newest execution version that this replica applies. A build with assertions believes a variable that says another
/// one: there is no newer build that a test could upgrade to.
fn execution() -> u32 {
    let told = if cfg!(debug_assertions) { std::env::var("D3B_TEST_EXECUTION").ok() } else { None };
    told.and_then(|told| told.parse().ok()).unwrap_or(d3b_engine::EXECUTION)
}

/// Makes a directory and those above it that are missing, so that they are there after a power cut: what is synced in a
/// directory is lost with it.
fn make_directory(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_directory(parent)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists || !path.is_dir() => Err(error),
        Ok(()) | Err(_) => sync_directory(parent),
    }
}

fn open_log(settings: &Settings, events: &Events, stop: &Arc<Stop>) -> Result<log::Opened, RunError> {
    let (events, stop) = (events.clone(), Arc::clone(stop));
    let on_durable = Box::new(move |result: Result<log::Durable, LogError>| match result {
        Ok(proof) => events.send(Event::Durable(proof)),
        Err(error) => stop.fatal(format!("the log cannot be written: {error}")),
    });
    let mut locked = log::lock(&settings.data_dir, settings.id, DiskId(random()?))?;
    // The directory is this process's own now, and nothing in it is in use yet.
    snapshot::install(&mut locked)?;
    Ok(locked.start(on_durable)?)
}

/// A log whose end cannot be read looks like one that ends earlier, and a replica that voted with it would have forgotten
/// what it accepted. Databases apply only what is durable in the log: one that is ahead tells. Those that came with a
/// snapshot may be, up to a slot that the log knows.
fn check_end(opened: &log::Opened, newest: Slot) -> Result<(), LogError> {
    if newest <= opened.last.max(opened.ahead) || newest.next() <= opened.base {
        return Ok(());
    }
    Err(LogError::Damaged {
        place: format!("after slot {}", opened.last),
        problem: format!("slot {newest} was applied, so that acknowledged entries are lost"),
    })
}

fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    let failed = |source| RunError::Listen { what, address: address.to_string(), source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Everything that was opened, before it is connected.
struct Assembly<'a> {
    settings: &'a Settings,
    events: Events,
    stop: Arc<Stop>,
    opened: log::Opened,
    engine: Engine,
    blobs: BlobStore,
    offer: Offer,
    http: TcpListener,
    peers: TcpListener,
}

impl Assembly<'_> {
    fn start(self, runtime: &tokio::runtime::Runtime) -> Result<End, RunError> {
        let Assembly { settings, events, stop, opened, engine, blobs, offer, http, peers } = self;
        let clock = Clock { started: Instant::now() };
        let bound = peers.local_addr().unwrap_or(settings.peer_listen).to_string();
        let peer_address = settings.replicas.get(&settings.id).cloned().unwrap_or(bound);
        let log::Opened { log, reader, disk, configuration, held, promised, base, last, ahead: _ } = opened;
        let (cluster, cluster_watch) = watch::channel(configuration.as_ref().map(|formed| formed.cluster));
        let http_address = http.local_addr().map_or(settings.listen, |address| address);
        // One for all that is done for the sake of snapshots.
        let rate = Arc::new(Rate::new(settings.snapshot_bytes_per_second));
        let peers = peer::start(
            PeerConfig {
                replica: settings.id,
                listener: peers,
                peers: configuration.as_ref().map_or_else(|| settings.replicas.clone(), crate::join::addresses),
                key: settings.cluster_key.clone(),
                http_address: format!("http://{http_address}"),
                cluster: cluster_watch,
                patience: Patience::for_elections(settings.election_timeout),
                on_stream: blob_streams(&blobs, &offer, &rate),
            },
            peer_events(&events),
            runtime.handle(),
        );
        let fetcher = Fetcher::new(blobs.clone(), connect(&peers));
        let taker = Taker {
            log: reader.clone(),
            blobs: blobs.clone(),
            offer: offer.clone(),
            events: events.clone(),
            stop: Arc::clone(&stop),
            configuration: configuration.clone(),
            busy: Arc::default(),
            rate,
        };
        let start = Start {
            settings: core_settings(settings, disk)?,
            execution: execution(),
            joins: settings.join.is_some(),
            replicas: settings.replicas.clone(),
            configuration,
            held,
            promised,
            base,
            last,
            applied: engine.resume_after(),
            repair: Repair {
                quarantined: quarantine::read(&settings.data_dir)
                    .map_err(|source| RunError::Directory { path: settings.data_dir.clone(), source })?,
                auto: settings.repair_auto,
            },
        };
        let driver =
            Driver::new(start, reader.clone(), clock.now()).map_err(|error| RunError::Poisoned(error.to_string()))?;
        let (status, status_watch) = watch::channel(Arc::new(driver.status()));
        let (applied, applied_watch) = watch::channel(engine.applied());
        let incarnation = random_u64()?;
        let waiting = Arc::new(Waiting::default());
        let readers = engine.readers();
        let sources = sources(settings.id, &status_watch);
        let (orders, ordered) = sync_channel(ORDERS_MAX);
        let (damages, damaged) = channel();
        let durable = Arc::new(AtomicU64::new(0));
        let scrubber = Scrubber {
            replica: settings.id,
            bytes_per_second: settings.scrub_bytes_per_second,
            log: reader.clone(),
            readers: readers.clone(),
            blobs: blobs.clone(),
            fetcher: fetcher.clone(),
            runtime: runtime.handle().clone(),
            events: events.clone(),
            status: status_watch.clone(),
            durable: Arc::clone(&durable),
            damages,
            stop: Arc::clone(&stop),
        };
        let applier = Applier {
            engine,
            log: reader.clone(),
            blobs: blobs.clone(),
            fetcher: fetcher.clone(),
            prefetcher: Prefetcher::start(fetcher.clone(), Arc::clone(&sources), runtime.handle()),
            runtime: runtime.handle().clone(),
            process: Process { replica: settings.id, incarnation },
            sources,
            orders: ordered,
            taker,
            wanting: Wanting::new(),
            grace: settings.blob_grace,
            offer,
            retain: Retain { bytes: settings.log_retain_bytes, age: settings.log_retain_age },
            clock,
            applied,
            events: events.clone(),
            status: status_watch.clone(),
            durable,
            damages: damaged,
            stop: Arc::clone(&stop),
        };
        let (ranges, applier_thread) =
            applier::spawn(applier).map_err(|source| RunError::System { what: "a thread", source })?;
        let handle = Handle::new(Parts {
            replica: settings.id,
            incarnation,
            started: clock.started,
            events: events.clone(),
            waiting: Arc::clone(&waiting),
            status: status_watch.clone(),
            applied: applied_watch,
            readers,
            log: reader,
            blobs: blobs.clone(),
            room: crate::disk::RecentRoom::new(&settings.data_dir),
            fetcher: fetcher.clone(),
            peers: peers.clone(),
            http_address: format!("http://{http_address}"),
            execution: execution(),
            orders: orders.clone(),
            backups: crate::handle::Places::default(),
            verifying: Arc::new(tokio::sync::Semaphore::new(1)),
        });
        let executor = Executor {
            data_dir: settings.data_dir.clone(),
            log,
            peers,
            ranges,
            waiting,
            cluster,
            events: events.clone(),
            snapshots: Fetching {
                data_dir: settings.data_dir.clone(),
                blobs: blobs.clone(),
                fetcher: fetcher.clone(),
                events: events.clone(),
                staged: Arc::default(),
                busy: Arc::default(),
            },
            orders,
            fetcher,
            blobs,
            fetching: Arc::default(),
            runtime: runtime.handle().clone(),
            stop: Arc::clone(&stop),
        };
        let published_at = clock.now().ticks;
        let driving = Driving { driver, executor, clock, status, stop: Arc::clone(&stop), published_at };
        let ended = Arc::clone(&stop);
        let driver_thread = events
            .start("d3bd-driver", driving, move || ended.asked())
            .map_err(|source| RunError::System { what: "a thread", source })?;

        let scrub_thread = (settings.scrub_bytes_per_second > 0).then(|| scrub::spawn(scrubber)).transpose();
        let scrub_thread = scrub_thread.map_err(|source| RunError::System { what: "a thread", source })?;

        crate::join::ask(settings, disk, peer_address, &stop)?;
        runtime.block_on(serve(settings, &handle, http, &events, &stop, status_watch))?;

        // HTTP is drained. The driver ends first: dropping its executor ends the applier, which syncs the databases.
        stop.ask();
        driver_thread.thread().unpark();
        let driving = driver_thread.join().ok().flatten();
        let Driving { executor, .. } = driving.ok_or_else(|| RunError::Poisoned("the driver panicked".to_owned()))?;
        // Nothing is decided any more: whoever waits is told so now, and not when his time is up.
        executor.waiting.close();
        if let Some(Err(_)) = scrub_thread.map(std::thread::JoinHandle::join) {
            tracing::error!("the thread that looks for damage panicked");
        }
        let Executor { log, ranges, .. } = executor;
        drop(ranges);
        applier_thread.join().map_err(|_| RunError::Poisoned("the applier panicked".to_owned()))?;
        log.close();
        match stop.cause() {
            Some(cause) => Err(RunError::Poisoned(cause)),
            None if stop.is_again() => Ok(End::Again),
            None => Ok(End::Stopped),
        }
    }
}

/// The other members, as they are at the moment of asking.
fn sources(me: ReplicaId, status: &watch::Receiver<Arc<DriverStatus>>) -> media::Sources {
    let status = status.clone();
    Arc::new(move || status.borrow().others(me))
}

fn core_settings(settings: &Settings, disk: DiskId) -> Result<d3b_paxos::Settings, RunError> {
    let ticks = |duration: Duration| Ticks(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1));
    Ok(d3b_paxos::Settings {
        id: settings.id,
        disk,
        heartbeat: ticks(settings.heartbeat),
        election_timeout_min: ticks(settings.election_timeout),
        election_timeout_max: ticks(settings.election_timeout * 2),
        seed: random_u64()?,
        inflight_bytes_max: 32 << 20,
        message_bytes_max: 4 << 20,
        clock_ahead_ms_max: CLOCK_AHEAD_MS_MAX,
    })
}

/// What peers say goes into the driver's queue; what does not fit is lost, which the protocol can bear.
fn peer_events(events: &Events) -> peer::OnEvent {
    let events = events.clone();
    Arc::new(move |event| {
        let event = match event {
            PeerEvent::Message { from, message } => Event::Peer { from, message },
            PeerEvent::Reset { replica } => Event::ConnectionReset(replica),
        };
        let _ = events.try_send(event);
    })
}

/// What a peer fetches comes from the blob store; a snapshot that is fetched is offered on, at its rate.
fn blob_streams(blobs: &BlobStore, offer: &Offer, rate: &Arc<Rate>) -> peer::OnStream {
    let (blobs, offer, rate) = (blobs.clone(), offer.clone(), Arc::clone(rate));
    let on_served: media::OnServed =
        Arc::new(move |digest| offer.fetched(digest, Instant::now()).then(|| Arc::clone(&rate)));
    Arc::new(move |stream| Box::pin(media::serve(stream, blobs.clone(), Arc::clone(&on_served))))
}

/// What this replica fetches comes on streams of the peer transport.
fn connect(peers: &Peers) -> media::Connect {
    let peers = peers.clone();
    Arc::new(move |replica| {
        let peers = peers.clone();
        Box::pin(async move { peers.open_stream(replica).await })
    })
}

/// Serves HTTP and tells systemd, until a signal comes or the replica must stop.
async fn serve(
    settings: &Settings,
    handle: &Handle,
    listener: TcpListener,
    events: &Events,
    stop: &Arc<Stop>,
    status: watch::Receiver<Arc<DriverStatus>>,
) -> Result<(), RunError> {
    let system = |what| move |source| RunError::System { what, source };
    let listener = tokio::net::TcpListener::from_std(listener).map_err(system("a socket"))?;
    let unix = match &settings.listen_unix {
        Some(path) => Some(listen_unix(path)?),
        None => None,
    };
    let (draining, drain) = watch::channel(false);
    let options = crate::http::Options { upload_max: settings.upload_max, hosts: settings.hosts.clone() };
    let server = tokio::spawn(crate::http::serve(listener, unix, handle.clone(), options, drain));
    tracing::info!(
        replica = %settings.id,
        http = %settings.listen,
        peers = %settings.peer_listen,
        data_dir = %settings.data_dir.display(),
        "d3bd {} is listening",
        env!("CARGO_PKG_VERSION"),
    );
    // Whoever learns that this replica is ready may tell it to stop at once.
    let signals = crate::supervisor::Signals::catch().map_err(system("signals"))?;
    crate::supervisor::ready();
    signals.wait_for_stop(stop, &status).await;
    crate::supervisor::stopping();
    if !stop.is_again() {
        tracing::info!("stopping: handing over, then draining");
        hand_over(settings.id, events, status).await;
    }
    let _ = draining.send(true);
    let abort = server.abort_handle();
    if tokio::time::timeout(DRAIN_MAX, server).await.is_err() {
        tracing::warn!("requests were still under way after {DRAIN_MAX:?}; their connections are closed");
        abort.abort();
    }
    if let Some(path) = &settings.listen_unix {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

fn listen_unix(path: &std::path::Path) -> Result<tokio::net::UnixListener, RunError> {
    let failed = |source| RunError::Listen { what: "HTTP", address: path.display().to_string(), source };
    // A socket that an earlier run left behind; anything else at that path is somebody's, and binding fails on it. A
    // connection is refused by a file of any kind.
    if is_socket(path)
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    {
        let _ = std::fs::remove_file(path);
    }
    tokio::net::UnixListener::bind(path).map_err(failed)
}

fn is_socket(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// A stopping leader lets another replica take over first, so that the group is not without a leader. It may win the
/// election that it called for itself, when others are slow: then it asks once more.
async fn hand_over(me: ReplicaId, events: &Events, mut status: watch::Receiver<Arc<DriverStatus>>) {
    let deadline = tokio::time::Instant::now() + HAND_OVER_MAX;
    let mut asked = false;
    while tokio::time::Instant::now() < deadline {
        let (leads, others) = {
            let status = status.borrow();
            let others = status.members.iter().any(|member| member.id != me && member.reachable);
            (status.phase == Phase::Leader, others)
        };
        if leads && others {
            asked |= events.try_send(Event::HandOver).is_ok();
        }
        // Where all stop together, nobody is left to take over.
        if !asked || !others {
            return;
        }
        let handed_over = status.wait_for(|status| status.leader.is_some_and(|leader| leader != me));
        if tokio::time::timeout(HAND_OVER_AGAIN, handed_over).await.is_ok() {
            return;
        }
    }
    tracing::warn!("no other replica took over in {HAND_OVER_MAX:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_on_makes_room() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("precious");
        std::fs::write(&file, b"precious").unwrap();
        assert!(listen_unix(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        let socket = directory.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let listening = listen_unix(&socket).unwrap();
        assert!(listen_unix(&socket).is_err(), "somebody listens there");
        drop(listening);
    }

    #[test]
    fn directories_are_made_with_those_above_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/c");
        make_directory(&path).unwrap();
        make_directory(&path).unwrap();
        assert!(path.is_dir());
        std::fs::write(directory.path().join("file"), b"").unwrap();
        assert!(make_directory(&directory.path().join("file")).is_err());
    }
}
