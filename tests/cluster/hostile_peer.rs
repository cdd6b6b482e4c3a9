//! Whoever connects to the port between replicas and says what no replica would say, with the cluster's key or without.
//!
//! The handshake and the frames are written down here once more, as they go over the wire: this is also the test that
//! they do not change unnoticed. `D3B_HOSTILE_ROUNDS` asks for more connections, `D3B_HOSTILE_SEED` for others.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use d3b::{ClusterId, ReplicaId, Slot};
use d3b_paxos::message::{Envelope, Message};
use d3b_paxos::types::{Ballot, Epoch};
use d3b_tests::load::Load;
use d3b_tests::process::{forget_peak, is_alive, peak_memory};
use d3b_tests::sim::random::Random;
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Options, wait_until};
use d3bd::peer::PeerMessage;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;

/// What the replicas share.
const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
/// How much a replica may grow by all this, in bytes: two of the largest frames, and some air.
const GROWTH_MAX: u64 = 192 << 20;

/// How many connections that say nothing two replicas have between them: more than there are places.
const CROWD: usize = 700;

#[derive(Debug, Clone, Serialize)]
enum Purpose {
    Messages,
}

#[derive(Debug, Clone, Serialize)]
struct Hello {
    magic: [u8; 4],
    purpose: Purpose,
    replica: ReplicaId,
    cluster: Option<ClusterId>,
    http: String,
    nonce: [u8; 32],
}

#[derive(Debug, Deserialize)]
enum Answer {
    Hello { replica: ReplicaId, cluster: Option<ClusterId>, http: String, nonce: [u8; 32], proof: [u8; 32] },
    Refused { reason: String },
}

#[derive(Debug, Deserialize)]
enum Verdict {
    Welcome,
    Refused { reason: String },
}

/// A frame around a body: length, version, body.
fn frame(version: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 1).expect("a small body");
    [&length.to_le_bytes()[..], &[version], body].concat()
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    frame(1, &postcard::to_allocvec(value).expect("plain data can be written"))
}

/// Reads one frame; nothing if the other side has had enough.
fn receive<T: for<'de> Deserialize<'de>>(stream: &mut TcpStream) -> Option<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; usize::try_from(u32::from_le_bytes(length)).ok()?];
    stream.read_exact(&mut body).ok()?;
    postcard::from_bytes(body.get(1..)?).ok()
}

/// Says something; the other side may have hung up already.
fn say(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

fn hello(replica: u32, cluster: Option<ClusterId>, random: &mut Random) -> Hello {
    let mut nonce = [0; 32];
    nonce[..8].copy_from_slice(&random.word().to_le_bytes());
    let http = "http://127.0.0.1:1".to_owned();
    Hello { magic: *b"d3bp", purpose: Purpose::Messages, replica: ReplicaId(replica), cluster, http, nonce }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the port between replicas takes connections");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket option");
    stream
}

/// What a handshake came to, and what was said in it.
struct Handshake {
    stream: TcpStream,
    cluster: Option<ClusterId>,
    refused: Option<String>,
    said: Vec<u8>,
}

/// Shakes hands as some replica with some key.
fn shake_hands(address: SocketAddr, hello: &Hello, key: &[u8]) -> Handshake {
    let mut stream = connect(address);
    let mut said = encode(hello);
    say(&mut stream, &said);
    let (replica, cluster, nonce) = match receive(&mut stream) {
        Some(Answer::Hello { replica, cluster, nonce, http, proof }) => {
            assert!(http.starts_with("http://"), "{http}");
            assert_ne!(proof, [0; 32], "it proves that it knows the key");
            (replica, cluster, nonce)
        }
        Some(Answer::Refused { reason }) => {
            return Handshake { stream, cluster: None, refused: Some(reason), said };
        }
        None => return Handshake { stream, cluster: None, refused: Some("no answer".to_owned()), said },
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    mac.update(b"d3b peer handshake v1\0connects");
    mac.update(&postcard::to_allocvec(&(hello, replica, cluster, nonce)).expect("plain data can be written"));
    let proof: [u8; 32] = mac.finalize().into_bytes().into();
    let proof = encode(&proof);
    say(&mut stream, &proof);
    said.extend(proof);
    let refused = match receive(&mut stream) {
        Some(Verdict::Welcome) => None,
        Some(Verdict::Refused { reason }) => Some(reason),
        None => Some("no verdict".to_owned()),
    };
    Handshake { stream, cluster, refused, said }
}

/// Three replicas that share the key.
fn cluster_with_key(directory: &Path) -> Cluster {
    let key = directory.join("key");
    std::fs::write(&key, KEY).expect("a file can be written");
    Cluster::with(Options::default().flag("--cluster-key-file", &key.display().to_string()))
}

fn peer_address(cluster: &Cluster, id: u32) -> SocketAddr {
    let info = cluster.replica(id).cluster_info();
    let member = info.replicas.into_iter().find(|member| member.id == id).expect("it knows itself");
    member.peer.parse().expect("an address")
}

fn log_says(cluster: &Cluster, id: u32, what: &[&str]) {
    wait_until(&format!("the log of replica {id} says {what:?}"), PATIENCE, || {
        let text = std::fs::read_to_string(&cluster.replica(id).log).unwrap_or_default();
        text.lines().any(|line| what.iter().all(|word| line.contains(word)))
    });
}

/// What a stranger may say before anybody knows who he is.
fn stranger(address: SocketAddr, random: &mut Random) {
    match random.below(7) {
        0 => {
            let length = usize::try_from(random.below(5_000)).expect("small");
            let garbage: Vec<u8> = (0..length).map(|_| random.word().to_le_bytes()[0]).collect();
            say(&mut connect(address), &garbage);
        }
        1 => {
            let length = *random.pick(&[0, 1, 4 << 10, (4 << 10) + 1, 64 << 20, u32::MAX]);
            say(&mut connect(address), &length.to_le_bytes());
        }
        2 => {
            let version = random.word().to_le_bytes()[0] | 2;
            let body = postcard::to_allocvec(&hello(2, None, random)).expect("plain data can be written");
            say(&mut connect(address), &frame(version, &body));
        }
        3 => {
            let mut bytes = encode(&hello(2, None, random));
            bytes.truncate(usize::try_from(random.below(bytes.len() as u64)).expect("small"));
            say(&mut connect(address), &bytes);
        }
        4 => {
            let mut bytes = encode(&hello(2, None, random));
            let index = usize::try_from(random.below(bytes.len() as u64)).expect("small");
            bytes[index] ^= random.word().to_le_bytes()[0] | 1;
            say(&mut connect(address), &bytes);
        }
        5 => say(&mut connect(address), b"GET /v1/cluster HTTP/1.1\r\nHost: d3b\r\n\r\n"),
        _ => {
            // One that joins is let in if it knows the key, whatever its id; what it says counts for nothing yet.
            let unknown = u32::try_from(random.below(100)).expect("small") + 4;
            let wrong = b"another key of the same length..";
            assert!(shake_hands(address, &hello(unknown, None, random), wrong).refused.is_some());
            let mut handshake = shake_hands(address, &hello(unknown, None, random), KEY);
            assert_eq!(handshake.refused, None);
            let cluster = handshake.cluster.expect("a cluster that is formed");
            traitor(&mut handshake.stream, cluster, random);
        }
    }
}

/// What one may say who has proved to know the key.
fn traitor(stream: &mut TcpStream, cluster: ClusterId, random: &mut Random) {
    let envelope = |random: &mut Random, ballot: Ballot| {
        let message = match random.below(3) {
            0 => Message::Prepare { ballot, from: Slot(1) },
            1 => Message::Nack { ballot, promised: ballot, want: Slot(u64::MAX), round: u64::MAX },
            _ => Message::Accept { ballot, start: Slot(u64::MAX), entries: Vec::new(), commit: Slot(0), round: 0 },
        };
        PeerMessage::Paxos(Envelope { cluster, epoch: Epoch(0), from: ReplicaId(2), to: ReplicaId(1), message })
    };
    match random.below(8) {
        0 => {
            let garbage: Vec<u8> = (0..200).map(|_| random.word().to_le_bytes()[0]).collect();
            say(stream, &frame(1, &garbage));
        }
        1 => say(stream, &frame(7, b"another build's")),
        2 => say(stream, &u32::MAX.to_le_bytes()),
        3 => {
            let mut bytes = encode(&envelope(random, Ballot { round: 1 << 60, replica: ReplicaId(2) }));
            bytes.truncate(bytes.len() - 1);
            say(stream, &bytes);
        }
        4 => {
            let message = envelope(random, Ballot { round: 1, replica: ReplicaId(2) });
            let body = postcard::to_allocvec(&message).expect("plain data can be written");
            say(stream, &frame(1, &[&body[..], b"more"].concat()));
        }
        5 => {
            // Every one of them is lost or answered, none is kept.
            for _ in 0..2_000 {
                let message = envelope(random, Ballot { round: u64::MAX, replica: ReplicaId(2) });
                say(stream, &encode(&message));
            }
        }
        6 => say(stream, &encode(&PeerMessage::Forward { id: 1, command: vec![0xaa; 1 << 20].into() })),
        _ => {
            // A frame that says how long it is, and then takes its time.
            say(stream, &(60_u32 << 20).to_le_bytes());
            say(stream, &[1; 1_000]);
        }
    }
}

#[test]
fn hostile_bytes_between_replicas_harm_nobody() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("D3B_HOSTILE_SEED").unwrap_or(1);
    let rounds = number("D3B_HOSTILE_ROUNDS").unwrap_or(300);
    println!("D3B_HOSTILE_SEED={seed}");
    let mut random = Random::new(seed);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let cluster = cluster_with_key(directory.path());
    let pids: Vec<u32> = cluster.ids().into_iter().map(|id| cluster.replica(id).pid()).collect();
    let load = Load::start(&cluster, 3);
    load.wait_for_more(20);
    let before: Vec<u64> = pids.iter().map(|pid| peak_memory(*pid)).collect();
    pids.iter().for_each(|pid| forget_peak(*pid));
    let address = peer_address(&cluster, 1);

    // Whoever knows the key is let in, and what he said then is worth nothing on another connection.
    let first = shake_hands(address, &hello(2, None, &mut random), KEY);
    assert_eq!(first.refused, None);
    let ours = first.cluster.expect("a cluster that is formed");
    let mut replayed = connect(address);
    say(&mut replayed, &first.said);
    assert!(matches!(receive(&mut replayed), Some(Answer::Hello { .. })));
    let verdict = receive(&mut replayed);
    assert!(matches!(verdict, Some(Verdict::Refused { .. })), "a replayed handshake: {verdict:?}");
    let wrong = shake_hands(address, &hello(3, Some(ours), &mut random), b"another key of the same length..");
    assert!(wrong.refused.is_some());
    let foreign = shake_hands(address, &hello(3, Some(ClusterId([9; 16])), &mut random), KEY);
    assert!(foreign.refused.is_some());

    for _ in 0..rounds {
        if random.percent(60) {
            stranger(address, &mut random);
        } else {
            let mut handshake = shake_hands(address, &hello(2, Some(ours), &mut random), KEY);
            assert_eq!(handshake.refused, None, "whoever knows the key is let in");
            traitor(&mut handshake.stream, ours, &mut random);
        }
    }

    // The others have noticed nothing.
    load.wait_for_more(20);
    let record = load.finish();
    record.verify_everywhere(&cluster);
    for (pid, before) in pids.iter().zip(before) {
        assert!(is_alive(*pid), "process {pid} has ended");
        let after = peak_memory(*pid);
        assert!(after < before + GROWTH_MAX, "process {pid} has grown from {before} to {after} bytes");
    }
    log_says(&cluster, 1, &["WARN", "127.0.0.1", "does not know this cluster's key"]);
    log_says(&cluster, 1, &["WARN", "127.0.0.1", "belongs to cluster"]);
    log_says(&cluster, 1, &["WARN", "replica 2", "a frame"]);
    log_says(&cluster, 1, &["WARN", "peer=2", "makes no sense"]);
}

/// Whether the other side has not hung up yet.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket option");
    stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Tells a thread to end when this is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn idle_connections_between_replicas_keep_nobody_out() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut cluster = cluster_with_key(directory.path());
    cluster.create("shop");
    let others: Vec<SocketAddr> = [1, 2].into_iter().map(|id| peer_address(&cluster, id)).collect();
    let (stop, crowded) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // More than there are places, and as soon as one is closed there is another.
        scope.spawn(|| {
            let mut idle: Vec<TcpStream> = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                if idle.len() >= CROWD {
                    crowded.store(true, Ordering::Relaxed);
                    idle.retain(is_open);
                }
                for address in &others {
                    idle.extend(TcpStream::connect_timeout(address, Duration::from_millis(20)).ok());
                }
            }
        });
        // Also when the test fails: the scope waits for the crowd.
        let _end = Ends(&stop);
        wait_until("both are crowded", PATIENCE, || crowded.load(Ordering::Relaxed));
        // One who was away gets in again, and all are served, also when one of the two others is gone.
        cluster.replica_mut(3).kill();
        cluster.replica_mut(3).start_ready();
        cluster.replica_mut(1).kill();
        for n in 0..10 {
            assert_eq!(cluster.replica(3).sql("shop", "SELECT ?", json!([n])), json!([[n]]));
        }
    });
}
