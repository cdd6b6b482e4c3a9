//! Replica to replica: messages that may be lost, and streams on which blobs are fetched.
//!
//! Each replica keeps one connection to each other one for what it says; what it hears comes on the connections that
//! the others keep. A connection begins with a handshake that proves the cluster's key.

mod complaints;
mod frame;
mod handshake;
mod link;
mod message;

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use d3b::{ClusterId, ReplicaId};
use futures_util::future::BoxFuture;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use crate::log::Durable;
use complaints::{Complaints, Who};
use handshake::{HandshakeError, Myself, Peer, Purpose};
pub use message::{ForwardResult, MemberFailure, MemberRequest, PeerMessage};

/// The version of the protocol between replicas: the first one knew neither changes of the configuration nor snapshots, the
/// second one no questions for reads that confirm themselves.
const VERSION: u8 = 3;
const FIRST_VERSION: u8 = 1;
/// How many bytes may wait for a peer; what comes on top is lost.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What was sent on a connection and is not acknowledged for so long ends it, by the kernel's clock; one that carries
/// messages has [`Patience::silence`] instead.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// A buffer that grew beyond this is not kept.
const LINE_BYTES_KEPT: usize = 1 << 20;
/// How many connections may be open from peers, blobs' streams included.
const ACCEPTED_MAX: usize = 256;
/// How many may have connected without having said yet who they are.
const HANDSHAKES_MAX: usize = 64;

/// What the transport needs to know.
pub struct PeerConfig {
    /// This replica.
    pub replica: ReplicaId,
    /// Where the others connect to; non-blocking.
    pub listener: TcpListener,
    /// Every replica of the cluster with its peer address; this one's own is not used.
    pub peers: BTreeMap<ReplicaId, String>,
    /// What all of them know and nobody else; may be empty on loopback.
    pub key: Vec<u8>,
    /// Where this replica serves HTTP, for the others to tell.
    pub http_address: String,
    /// The cluster, once it is known.
    pub cluster: watch::Receiver<Option<ClusterId>>,
    /// When a peer that does not answer is given up.
    pub patience: Patience,
    /// Takes the streams on which a peer wants to fetch blobs.
    pub on_stream: OnStream,
}

/// When a connection is given up and made anew, because a peer that should answer does not.
///
/// TCP asks a silent peer again after twice the time each time. When a line that was cut is whole again, a connection from
/// before would stay silent for as long as the cut has lasted, and one that is being made for seconds. A fresh one
/// works at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long it may take until a peer's machine answers that it takes the connection.
    pub dial: Duration,
    /// How long a message may stay unacknowledged by the peer's machine.
    pub silence: Duration,
}

impl Patience {
    /// What goes well with an election timeout: a line that takes longer than that carries no leadership anyway.
    #[must_use]
    pub fn for_elections(timeout: Duration) -> Patience {
        let between = |least: u64, most: u64, duration: Duration| {
            duration.clamp(Duration::from_millis(least), Duration::from_millis(most))
        };
        // Even on a good line something gets lost, and TCP needs a moment to notice.
        Patience { dial: between(500, 3_000, timeout), silence: between(1_000, 30_000, timeout * 3) }
    }
}

/// Something happened between replicas.
#[derive(Debug)]
pub enum PeerEvent {
    /// A peer said something.
    Message {
        /// Who.
        from: ReplicaId,
        /// What.
        message: PeerMessage,
    },
    /// A connection of a peer ended, or was refused: its process may be dead. Silence alone is not told; whoever waits for
    /// the peer hears it as well.
    Reset {
        /// Whose.
        replica: ReplicaId,
    },
}

/// Serves a stream on which a peer wants to fetch blobs, until it ends.
pub type OnStream = Arc<dyn Fn(TcpStream) -> BoxFuture<'static, ()> + Send + Sync>;

/// Takes what happens; it must not block.
pub type OnEvent = Arc<dyn Fn(PeerEvent) + Send + Sync>;

/// The way to the other replicas; clones share it.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    replica: ReplicaId,
    key: Vec<u8>,
    http_address: String,
    cluster: watch::Receiver<Option<ClusterId>>,
    patience: Patience,
    /// The links to the replicas that are members, or were named at the start.
    outgoing: Mutex<BTreeMap<ReplicaId, Arc<Outgoing>>>,
    runtime: tokio::runtime::Handle,
    https: Mutex<BTreeMap<ReplicaId, String>>,
    /// How many connections each peer has made for its messages. It speaks on the latest only.
    heard_on: Mutex<BTreeMap<ReplicaId, u64>>,
    complaints: Mutex<Complaints>,
    events: OnEvent,
}

/// The way to one peer.
struct Outgoing {
    address: String,
    /// The version of the protocol that the peer speaks, as far as is known.
    version: AtomicU8,
    queue: mpsc::UnboundedSender<Vec<u8>>,
    /// What stands in the queue, or is on its way from there to the connection.
    bytes: Arc<AtomicUsize>,
    line: Arc<Mutex<Line>>,
    /// Wakes who wants to reach the peer and waits: it has just connected itself, so it is there.
    came: Notify,
}

/// The end of a connection at which it can be written to without waiting, and without waking anybody for it.
#[derive(Default)]
struct Line {
    /// Frames that are to be written together.
    frames: Vec<u8>,
    connection: Option<Arc<OwnedWriteHalf>>,
}

impl Outgoing {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().expect("no panic while held")
    }

    /// Writes what was put together, as far as the connection takes it now; the rest waits in the queue.
    fn flush(&self) {
        let mut line = self.line();
        if line.frames.is_empty() {
            return;
        }
        let mut frames = std::mem::take(&mut line.frames);
        // What waits in the queue comes first.
        let direct = line.connection.as_ref().filter(|_| self.bytes.load(Ordering::Acquire) == 0);
        // An error is noticed by whoever keeps the connection.
        let written = direct.and_then(|connection| connection.try_write(&frames).ok()).unwrap_or(0);
        if written == frames.len() {
            if frames.capacity() <= LINE_BYTES_KEPT {
                frames.clear();
                line.frames = frames;
            }
            return;
        }
        frames.drain(..written);
        let length = frames.len();
        self.bytes.fetch_add(length, Ordering::AcqRel);
        if self.queue.send(frames).is_err() {
            self.bytes.fetch_sub(length, Ordering::AcqRel);
        }
    }
}

/// Begins to listen and to connect.
pub fn start(config: PeerConfig, events: OnEvent, runtime: &tokio::runtime::Handle) -> Peers {
    let PeerConfig { replica, listener, peers, key, http_address, cluster, patience, on_stream } = config;
    let shared = Arc::new(Shared {
        replica,
        key,
        http_address,
        cluster,
        patience,
        outgoing: Mutex::default(),
        runtime: runtime.clone(),
        https: Mutex::default(),
        heard_on: Mutex::default(),
        complaints: Mutex::default(),
        events,
    });
    runtime.spawn(accept_all(Arc::clone(&shared), listener, on_stream));
    let transport = Peers { shared };
    transport.connect_with(&peers);
    transport
}

impl Peers {
    /// From here on these are the other replicas: links to them are made or kept, all others end.
    pub fn connect_with(&self, peers: &BTreeMap<ReplicaId, String>) {
        let mut outgoing = self.shared.outgoing.lock().expect("no panic while held");
        // A link ends when its queue is dropped.
        outgoing.retain(|id, link| peers.get(id) == Some(&link.address));
        for (id, address) in peers.iter().filter(|(id, _)| **id != self.shared.replica) {
            if outgoing.contains_key(id) {
                continue;
            }
            let (queue, waiting) = mpsc::unbounded_channel();
            let link = Outgoing {
                address: address.clone(),
                version: AtomicU8::new(VERSION),
                queue,
                bytes: Arc::default(),
                line: Arc::default(),
                came: Notify::new(),
            };
            let link_end = link::End { waiting, bytes: Arc::clone(&link.bytes), line: Arc::clone(&link.line) };
            outgoing.insert(*id, Arc::new(link));
            self.shared.runtime.spawn(link::keep_connected(Arc::clone(&self.shared), *id, link_end));
        }
    }

    /// Sends a message, if its receiver is connected and takes what is sent; else it is lost. It leaves with the next
    /// [`Peers::flush`], together with all that was sent before.
    pub fn send(&self, to: ReplicaId, message: &PeerMessage) {
        let Some(outgoing) = self.shared.link(to) else { return };
        let version = outgoing.version.load(Ordering::Relaxed);
        let Some(message) = message.in_words_of(version) else { return };
        let mut line = outgoing.line();
        let before = line.frames.len();
        frame::encode_to(&mut line.frames, &*message);
        let length = line.frames.len() - before;
        let waiting = outgoing.bytes.load(Ordering::Relaxed) + before;
        if length > frame::BODY_MAX || waiting + length > QUEUE_BYTES_MAX {
            line.frames.truncate(before);
        }
    }

    /// Sends messages that say that something is on disk, for which there must be a proof.
    pub fn send_dependent(&self, _proof: &Durable, messages: Vec<(ReplicaId, PeerMessage)>) {
        for (to, message) in messages {
            self.send(to, &message);
        }
    }

    /// Lets everything leave that was sent.
    pub fn flush(&self) {
        for link in self.shared.outgoing.lock().expect("no panic while held").values() {
            link.flush();
        }
    }

    /// Where a peer serves HTTP, as it said when it connected.
    #[must_use]
    pub fn http_of(&self, replica: ReplicaId) -> Option<String> {
        self.shared.https.lock().expect("no panic while held").get(&replica).cloned()
    }

    /// Opens a stream to a peer on which it serves its blobs by HTTP.
    ///
    /// # Errors
    /// It cannot be reached, or is not who it should be.
    pub async fn open_stream(&self, to: ReplicaId) -> std::io::Result<TcpStream> {
        self.shared.connect(to, Purpose::Http).await.map_err(|error| std::io::Error::other(error.to_string()))
    }
}

/// The version to speak next with a peer that has refused this one.
fn version_to_try_after(refused: u8) -> u8 {
    if refused == FIRST_VERSION { VERSION } else { refused - 1 }
}

impl Shared {
    fn myself(&self) -> Myself {
        Myself {
            replica: self.replica,
            cluster: *self.cluster.borrow(),
            http: self.http_address.clone(),
            key: self.key.clone(),
        }
    }

    async fn connect(&self, to: ReplicaId, purpose: Purpose) -> Result<TcpStream, HandshakeError> {
        let link = self.link(to).ok_or(HandshakeError::Unexpected(to))?;
        let Patience { dial, silence } = self.patience;
        let mut stream = loop {
            tokio::select! {
                // A connection that is there is not thrown away.
                biased;
                stream = tokio::time::timeout(dial, TcpStream::connect(&link.address)) => {
                    break stream.map_err(|_| HandshakeError::Silent)??;
                }
                // What was sent to it before was lost, most likely, and is not sent again soon.
                () = self.came(to) => {}
            }
        };
        prepare(&stream, silence)?;
        // Twice there and back.
        let version = link.version.load(Ordering::Relaxed);
        let met = handshake::connect(&mut stream, &self.myself(), version, purpose, to, silence * 2).await;
        if purpose == Purpose::Messages && met.as_ref().is_err_and(HandshakeError::is_about_versions) {
            // The next attempts show of which one it is.
            link.version.store(version_to_try_after(version), Ordering::Relaxed);
        }
        let peer = met?;
        if purpose == Purpose::Http {
            give_up_after(&stream, UNACKNOWLEDGED_MAX)?;
        }
        self.https.lock().expect("no panic while held").insert(peer.replica, peer.http);
        Ok(stream)
    }

    fn link(&self, to: ReplicaId) -> Option<Arc<Outgoing>> {
        self.outgoing.lock().expect("no panic while held").get(&to).cloned()
    }

    /// The next connection to a peer begins with the newest version.
    fn forget_version(&self, peer: ReplicaId) {
        if let Some(link) = self.link(peer) {
            link.version.store(VERSION, Ordering::Relaxed);
        }
    }

    /// Waits until a peer connects.
    async fn came(&self, peer: ReplicaId) {
        match self.link(peer) {
            Some(link) => link.came.notified().await,
            None => std::future::pending().await,
        }
    }

    /// The number of a new connection on which a peer speaks.
    fn count_connection(&self, of: ReplicaId) -> u64 {
        let mut counts = self.heard_on.lock().expect("no panic while held");
        let count = counts.entry(of).or_default();
        *count += 1;
        *count
    }

    fn complain(&self, who: Who, address: Option<SocketAddr>, error: &HandshakeError) {
        self.complaints.lock().expect("no panic while held").complain(who, address, error);
    }
}

/// Messages leave at once, and a peer whose machine is gone, or that takes nothing, does not keep a connection for ever.
fn prepare(stream: &TcpStream, unacknowledged_max: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    give_up_after(stream, unacknowledged_max)
}

/// Ends a connection when what was sent is not acknowledged for so long. Only Linux can be told so; elsewhere a peer is
/// given up when nothing more can be written to it.
fn give_up_after(stream: &TcpStream, unacknowledged: Duration) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, u32::try_from(unacknowledged.as_millis()).unwrap_or(u32::MAX))?;
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, unacknowledged);
    Ok(())
}

async fn accept_all(shared: Arc<Shared>, listener: TcpListener, on_stream: OnStream) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "peers cannot be listened to"),
    };
    let places = Arc::new(Semaphore::new(ACCEPTED_MAX));
    let mut strangers = Strangers::default();
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                if let Some(gone) = strangers.make_place() {
                    shared.complain(Who::Stranger(gone.ip()), Some(gone), &HandshakeError::GaveWay);
                }
                let (shared, on_stream) = (Arc::clone(&shared), Arc::clone(&on_stream));
                let welcoming = tokio::spawn(welcome(shared, stream, address, Arc::clone(&places), on_stream));
                strangers.shaking.push_back((address, welcoming.abort_handle()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: others must close first.
                shared.complain(Who::Anybody, None, &error.into());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Those who have connected and not proved yet to be replicas, in the order in which they came.
#[derive(Default)]
struct Strangers {
    shaking: VecDeque<(SocketAddr, AbortHandle)>,
}

impl Strangers {
    /// Makes a place for one more. Who came first has had the most time, and gives way: a crowd that says nothing keeps
    /// nobody out.
    fn make_place(&mut self) -> Option<SocketAddr> {
        self.shaking.retain(|(_, handshake)| !handshake.is_finished());
        if self.shaking.len() < HANDSHAKES_MAX {
            return None;
        }
        let (address, handshake) = self.shaking.pop_front()?;
        handshake.abort();
        Some(address)
    }
}

/// Shakes hands, and hands a replica's connection on to a task of its own.
async fn welcome(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    address: SocketAddr,
    places: Arc<Semaphore>,
    on_stream: OnStream,
) {
    let stranger = Who::Stranger(address.ip());
    if let Err(error) = prepare(&stream, UNACKNOWLEDGED_MAX) {
        return shared.complain(stranger, Some(address), &error.into());
    }
    // A member may be newer than what this replica knows of, and one that joins belongs to no cluster yet. What they say
    // counts for as much as their configuration, or none, lets it.
    let ours = *shared.cluster.borrow();
    let expected = |id: ReplicaId, theirs: Option<ClusterId>| {
        id != shared.replica
            && (shared.link(id).is_some() || (ours.is_some() && theirs.is_none_or(|it| ours == Some(it))))
    };
    let (peer, purpose) = match handshake::accept(&mut stream, &shared.myself(), expected).await {
        Ok(known) => known,
        Err(error) => return shared.complain(stranger, Some(address), &error),
    };
    let who = Who::Replica(peer.replica);
    let Ok(place) = places.try_acquire_owned() else {
        return shared.complain(who, Some(address), &HandshakeError::Crowded);
    };
    tokio::spawn(async move {
        if let Err(error) = converse(&shared, stream, peer, purpose, &on_stream).await {
            shared.complain(who, Some(address), &error);
        }
        drop(place);
    });
}

/// Takes what a replica says, or serves it blobs, until its connection ends.
async fn converse(
    shared: &Shared,
    stream: TcpStream,
    peer: Peer,
    purpose: Purpose,
    on_stream: &OnStream,
) -> Result<(), HandshakeError> {
    shared.https.lock().expect("no panic while held").insert(peer.replica, peer.http);
    match purpose {
        Purpose::Http => {
            on_stream(stream).await;
            Ok(())
        }
        Purpose::Messages => {
            let number = shared.count_connection(peer.replica);
            if let Some(outgoing) = shared.link(peer.replica) {
                outgoing.came.notify_waiters();
            }
            let result = listen_to(shared, peer.replica, stream).await;
            // One that the peer gave up itself, and that is noticed here only now, says nothing about the peer.
            if shared.heard_on.lock().expect("no panic while held").get(&peer.replica) == Some(&number) {
                (shared.events)(PeerEvent::Reset { replica: peer.replica });
            }
            result
        }
    }
}

/// Hears a peer out. The end of its connection is no error; a frame that is none is.
async fn listen_to(shared: &Shared, from: ReplicaId, stream: TcpStream) -> Result<(), HandshakeError> {
    let mut stream = tokio::io::BufReader::with_capacity(64 << 10, stream);
    let mut body = Vec::new();
    loop {
        match frame::read(&mut stream, frame::BODY_MAX, &mut body).await {
            Ok(message) => (shared.events)(PeerEvent::Message { from, message }),
            Err(frame::FrameError::Io(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    struct Side {
        peers: Peers,
        heard: mpsc::UnboundedReceiver<PeerEvent>,
    }

    /// Two listeners are bound first, so that each side knows the other's port.
    fn listeners() -> (TcpListener, TcpListener, BTreeMap<ReplicaId, String>) {
        let bind = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let (one, two) = (bind(), bind());
        let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
        let peers = BTreeMap::from([(ReplicaId(1), address(&one)), (ReplicaId(2), address(&two))]);
        (one, two, peers)
    }

    /// As for elections that take a moment on a busy machine.
    const PATIENCE: Patience = Patience { dial: Duration::from_secs(1), silence: Duration::from_secs(1) };

    fn side(id: u32, listener: TcpListener, peers: &BTreeMap<ReplicaId, String>, on: &tokio::runtime::Handle) -> Side {
        patient_side(id, listener, peers, on, PATIENCE)
    }

    fn patient_side(
        id: u32,
        listener: TcpListener,
        peers: &BTreeMap<ReplicaId, String>,
        on: &tokio::runtime::Handle,
        patience: Patience,
    ) -> Side {
        let (hear, heard) = mpsc::unbounded_channel();
        let (_, cluster) = watch::channel(None);
        let config = PeerConfig {
            replica: ReplicaId(id),
            listener,
            peers: peers.clone(),
            key: b"key".to_vec(),
            http_address: format!("http://h{id}"),
            cluster,
            patience,
            on_stream: Arc::new(|_| Box::pin(std::future::ready(()))),
        };
        let peers = start(config, Arc::new(move |event| drop(hear.send(event))), on);
        Side { peers, heard }
    }

    fn held() -> PeerMessage {
        PeerMessage::BlobHeld { digest: d3b::Digest::of(b"cat") }
    }

    async fn hears_a_message(side: &mut Side) -> ReplicaId {
        loop {
            if let PeerEvent::Message { from, .. } = side.heard.recv().await.unwrap() {
                return from;
            }
        }
    }

    async fn says_until_heard(from: &Side, to: &mut Side) -> ReplicaId {
        let mut again = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                heard = hears_a_message(to) => return heard,
                _ = again.tick() => {
                    from.peers.send(to.peers.shared.replica, &held());
                    from.peers.flush();
                }
            }
        }
    }

    #[test]
    fn every_version_is_tried_in_turn() {
        let versions: Vec<u8> = std::iter::successors(Some(VERSION), |version| Some(version_to_try_after(*version)))
            .take(1 + usize::from(VERSION))
            .collect();
        assert_eq!(versions, [3, 2, 1, 3]);
    }

    #[test]
    fn messages_arrive_and_a_death_is_noticed_at_once() {
        let (one, two, peers) = listeners();
        let address: std::net::SocketAddr = peers[&ReplicaId(2)].parse().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut first = side(1, one, &peers, runtime.handle());
        let other = tokio::runtime::Runtime::new().unwrap();
        let mut second = side(2, two, &peers, other.handle());
        runtime.block_on(async {
            assert_eq!(says_until_heard(&first, &mut second).await, ReplicaId(1));
            assert_eq!(says_until_heard(&second, &mut first).await, ReplicaId(2));
            assert_eq!(first.peers.http_of(ReplicaId(2)).as_deref(), Some("http://h2"));
        });
        drop(second);
        other.shutdown_background();
        runtime.block_on(async {
            while !matches!(first.heard.recv().await.unwrap(), PeerEvent::Reset { replica: ReplicaId(2) }) {}
        });
        // It comes back at the same address, and is heard again.
        let listener = loop {
            match TcpListener::bind(address) {
                Ok(listener) => break listener,
                Err(_) => std::thread::yield_now(),
            }
        };
        listener.set_nonblocking(true).unwrap();
        let mut second = side(2, listener, &peers, runtime.handle());
        runtime.block_on(async {
            assert_eq!(says_until_heard(&first, &mut second).await, ReplicaId(1));
        });
    }

    #[test]
    fn a_peer_that_takes_a_connection_and_says_nothing_is_dialled_anew() {
        let (one, two, peers) = listeners();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let patience = Patience { dial: Duration::from_secs(1), silence: Duration::from_millis(20) };
        let mut first = patient_side(1, one, &peers, runtime.handle(), patience);
        // It is there, as a process is that sleeps: the kernel takes connections for it.
        two.set_nonblocking(false).unwrap();
        let silent: Vec<_> = (0..3).map(|_| two.accept().unwrap()).collect();
        // Which is not the same as being refused.
        assert!(first.heard.try_recv().is_err(), "silence was told as the end of a process");
        drop(silent);
    }

    /// As a peer is that has given a connection up, while the packets that say so were lost.
    #[test]
    fn the_end_of_an_older_connection_says_nothing_about_a_peer_that_has_a_newer_one() {
        let (one, two, peers) = listeners();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut first = side(1, one, &peers, runtime.handle());
        let two_says = Myself { replica: ReplicaId(2), cluster: None, http: String::new(), key: b"key".to_vec() };
        let connect = async || {
            let mut stream = TcpStream::connect(&peers[&ReplicaId(1)]).await.unwrap();
            let limit = Duration::from_secs(60);
            handshake::connect(&mut stream, &two_says, VERSION, Purpose::Messages, ReplicaId(1), limit).await.unwrap();
            stream.write_all(&frame::encode(&held())).await.unwrap();
            stream
        };
        runtime.block_on(async {
            // Each is heard before the next is made.
            let mut older = connect().await;
            assert_eq!(hears_a_message(&mut first).await, ReplicaId(2));
            let mut newer = connect().await;
            assert_eq!(hears_a_message(&mut first).await, ReplicaId(2));
            older.shutdown().await.unwrap();
            // The other side closes it when it has noticed.
            assert_eq!(older.read(&mut [0]).await.unwrap(), 0);
            newer.write_all(&frame::encode(&held())).await.unwrap();
            let next = first.heard.recv().await.unwrap();
            assert!(matches!(next, PeerEvent::Message { .. }), "{next:?}");
            drop(newer);
            let next = first.heard.recv().await.unwrap();
            assert!(matches!(next, PeerEvent::Reset { .. }), "{next:?}");
        });
        drop(two);
    }

    #[test]
    fn a_crowd_that_says_nothing_keeps_no_replica_out() {
        let (one, two, peers) = listeners();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut first = side(1, one, &peers, runtime.handle());
        let connect = || std::net::TcpStream::connect(&peers[&ReplicaId(1)]).unwrap();
        let crowd: Vec<_> = (0..2 * ACCEPTED_MAX).map(|_| connect()).collect();
        let second = side(2, two, &peers, runtime.handle());
        runtime.block_on(async {
            assert_eq!(says_until_heard(&second, &mut first).await, ReplicaId(2));
        });
        // It was not the end of their patience that made a place: who came last is still there.
        let youngest = crowd.last().unwrap();
        youngest.set_nonblocking(true).unwrap();
        assert_eq!(youngest.peek(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_peer_that_is_not_there_costs_no_memory() {
        let (one, two, peers) = listeners();
        drop(two);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let first = side(1, one, &peers, runtime.handle());
        let command = bytes::Bytes::from(vec![0; 1 << 20]);
        for id in 0..200 {
            first.peers.send(ReplicaId(2), &PeerMessage::Forward { id, command: command.clone() });
            first.peers.flush();
        }
        let waiting = first.peers.shared.link(ReplicaId(2)).expect("it is a member").bytes.load(Ordering::Relaxed);
        assert!(waiting <= QUEUE_BYTES_MAX, "{waiting} bytes wait");
    }
}
