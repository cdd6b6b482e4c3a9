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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use d3b::{ClusterId, ReplicaId};
use futures_util::future::BoxFuture;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use crate::log::Durable;
use complaints::{Complaints, Who};
use handshake::{HandshakeError, Myself, Peer, Purpose};
pub use message::{ForwardResult, PeerMessage};

/// How many bytes may wait for a peer; what comes on top is lost.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A peer that takes nothing of what has left this machine for so long is disconnected, by the kernel's clock.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MS_MAX: u32 = 30_000;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
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
    /// Takes the streams on which a peer wants to fetch blobs.
    pub on_stream: OnStream,
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
    /// A connection of a peer ended, or was refused: its process may be dead.
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
    addresses: BTreeMap<ReplicaId, String>,
    key: Vec<u8>,
    http_address: String,
    cluster: watch::Receiver<Option<ClusterId>>,
    outgoing: BTreeMap<ReplicaId, Outgoing>,
    https: Mutex<BTreeMap<ReplicaId, String>>,
    complaints: Mutex<Complaints>,
    events: OnEvent,
}

/// The queue to one peer.
struct Outgoing {
    queue: mpsc::UnboundedSender<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
}

/// Begins to listen and to connect.
pub fn start(config: PeerConfig, events: OnEvent, runtime: &tokio::runtime::Handle) -> Peers {
    let PeerConfig { replica, listener, peers, key, http_address, cluster, on_stream } = config;
    let mut outgoing = BTreeMap::new();
    let mut queues = Vec::new();
    for id in peers.keys().copied().filter(|id| *id != replica) {
        let (queue, waiting) = mpsc::unbounded_channel();
        let bytes = Arc::new(AtomicUsize::new(0));
        queues.push((id, waiting, Arc::clone(&bytes)));
        outgoing.insert(id, Outgoing { queue, bytes });
    }
    let shared = Arc::new(Shared {
        replica,
        addresses: peers,
        key,
        http_address,
        cluster,
        outgoing,
        https: Mutex::default(),
        complaints: Mutex::default(),
        events,
    });
    for (id, waiting, bytes) in queues {
        runtime.spawn(link::keep_connected(Arc::clone(&shared), id, waiting, bytes));
    }
    runtime.spawn(accept_all(Arc::clone(&shared), listener, on_stream));
    Peers { shared }
}

impl Peers {
    /// Sends a message, if its receiver is connected and takes what is sent; else it is lost.
    pub fn send(&self, to: ReplicaId, message: PeerMessage) {
        let Some(outgoing) = self.shared.outgoing.get(&to) else { return };
        let frame = frame::encode(&message);
        let length = frame.len();
        if length > frame::BODY_MAX || outgoing.bytes.load(Ordering::Relaxed) + length > QUEUE_BYTES_MAX {
            return;
        }
        outgoing.bytes.fetch_add(length, Ordering::Relaxed);
        if outgoing.queue.send(frame).is_err() {
            outgoing.bytes.fetch_sub(length, Ordering::Relaxed);
        }
    }

    /// Sends messages that say that something is on disk, for which there must be a proof.
    pub fn send_dependent(&self, _proof: &Durable, messages: Vec<(ReplicaId, PeerMessage)>) {
        for (to, message) in messages {
            self.send(to, message);
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
        let address = self.addresses.get(&to).ok_or(HandshakeError::Unexpected(to))?;
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
        let mut stream = connecting.await.map_err(|_| HandshakeError::TimedOut)??;
        prepare(&stream)?;
        let peer = handshake::connect(&mut stream, &self.myself(), purpose, to).await?;
        self.https.lock().expect("no panic while held").insert(peer.replica, peer.http);
        Ok(stream)
    }

    fn complain(&self, who: Who, address: Option<SocketAddr>, error: &HandshakeError) {
        self.complaints.lock().expect("no panic while held").complain(who, address, error);
    }
}

/// Messages leave at once, and a peer whose machine is gone, or that takes nothing, does not keep a connection for ever.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS_MAX)?;
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
    if let Err(error) = prepare(&stream) {
        return shared.complain(stranger, Some(address), &error.into());
    }
    let expected = |id: ReplicaId| id != shared.replica && shared.addresses.contains_key(&id);
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
            let result = listen_to(shared, peer.replica, stream).await;
            (shared.events)(PeerEvent::Reset { replica: peer.replica });
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

    fn side(id: u32, listener: TcpListener, peers: &BTreeMap<ReplicaId, String>, on: &tokio::runtime::Handle) -> Side {
        let (hear, heard) = mpsc::unbounded_channel();
        let (_, cluster) = watch::channel(None);
        let config = PeerConfig {
            replica: ReplicaId(id),
            listener,
            peers: peers.clone(),
            key: b"key".to_vec(),
            http_address: format!("http://h{id}"),
            cluster,
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
                _ = again.tick() => from.peers.send(to.peers.shared.replica, held()),
            }
        }
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
            first.peers.send(ReplicaId(2), PeerMessage::Forward { id, command: command.clone() });
        }
        let waiting = first.peers.shared.outgoing[&ReplicaId(2)].bytes.load(Ordering::Relaxed);
        assert!(waiting <= QUEUE_BYTES_MAX, "{waiting} bytes wait");
    }
}
