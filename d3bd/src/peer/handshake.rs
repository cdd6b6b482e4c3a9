//! The first words on a connection between replicas: who is there, of which cluster, and what the connection is for.
//! Both sides prove that they know the cluster's key before either believes the other; the key itself is never sent,
//! and fresh nonces on both sides make an overheard handshake useless.

use std::time::Duration;

use d3b::{ClusterId, ReplicaId};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::frame::{self, FrameError, HANDSHAKE_MAX};

/// How long the side that is connected to waits for the whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// What every connection begins with, by the version of the protocol.
const MAGICS: [(u8, [u8; 4]); 3] = [(1, *b"d3bp"), (2, *b"d3b2"), (3, *b"d3b3")];

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// Messages from the one who connects.
    Messages,
    /// HTTP requests from the one who connects, for blobs.
    Http,
}

/// What this replica says of itself.
#[derive(Debug, Clone)]
pub(super) struct Myself {
    pub(super) replica: ReplicaId,
    pub(super) cluster: Option<ClusterId>,
    pub(super) http: String,
    pub(super) key: Vec<u8>,
}

/// What a peer proved to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) replica: ReplicaId,
    pub(super) http: String,
}

/// Why a connection is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Nobody answers at its address, not even to refuse.
    #[error("nothing answers there")]
    Silent,
    /// The other side took too long.
    #[error("the handshake took longer than {0:?}")]
    TimedOut(Duration),
    /// Not a replica of d3b, or of another version.
    #[error("the other side does not speak this version of d3b's peer protocol")]
    Magic,
    /// It does not know the key.
    #[error("the other side does not know this cluster's key")]
    Key,
    /// It belongs elsewhere.
    #[error("the other side belongs to cluster {theirs}, and this replica to {ours}")]
    Cluster {
        /// Its cluster.
        theirs: ClusterId,
        /// This one.
        ours: ClusterId,
    },
    /// It is not who was expected, or not in the list.
    #[error("the other side is replica {0}, which is not expected here")]
    Unexpected(ReplicaId),
    /// It refused this replica.
    #[error("the other side refused: {0}")]
    Refused(String),
    /// It had not said who it is when too many others came.
    #[error("the other side had to give way: too many connect and do not say who they are")]
    GaveWay,
    /// Its replicas have too many connections.
    #[error("too many connections between replicas are open")]
    Crowded,
}

impl HandshakeError {
    /// Whether nothing at all was heard: as from a line that is cut, which tells nothing of the process behind it.
    pub(super) fn is_silence(&self) -> bool {
        use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        match self {
            HandshakeError::Silent | HandshakeError::TimedOut(_) => true,
            HandshakeError::Frame(FrameError::Io(error)) => {
                matches!(error.kind(), HostUnreachable | NetworkUnreachable | TimedOut)
            }
            HandshakeError::Frame(_)
            | HandshakeError::Magic
            | HandshakeError::Key
            | HandshakeError::Cluster { .. }
            | HandshakeError::Unexpected(_)
            | HandshakeError::Refused(_)
            | HandshakeError::GaveWay
            | HandshakeError::Crowded => false,
        }
    }

    /// Whether the other side does not know the version that it was spoken to in. It says so in the same words since the
    /// first version.
    pub(super) fn is_about_versions(&self) -> bool {
        matches!(self, HandshakeError::Refused(reason) if *reason == HandshakeError::Magic.to_string())
    }

    /// The error without what the other side chose: it could make up any number of texts.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            HandshakeError::Frame(FrameError::Io(_)) => "io",
            HandshakeError::Frame(FrameError::TooLong { .. }) => "length",
            HandshakeError::Frame(FrameError::Version(_)) => "version",
            HandshakeError::Frame(FrameError::Malformed(_)) => "malformed",
            HandshakeError::Frame(FrameError::Trailing(_)) => "trailing",
            HandshakeError::Silent => "silent",
            HandshakeError::TimedOut(_) => "time",
            HandshakeError::Magic => "magic",
            HandshakeError::Key => "key",
            HandshakeError::Cluster { .. } => "cluster",
            HandshakeError::Unexpected(_) => "unexpected",
            HandshakeError::Refused(_) => "refused",
            HandshakeError::GaveWay => "gave way",
            HandshakeError::Crowded => "crowded",
        }
    }
}

impl From<std::io::Error> for HandshakeError {
    fn from(error: std::io::Error) -> HandshakeError {
        HandshakeError::Frame(error.into())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    magic: [u8; 4],
    purpose: Purpose,
    replica: ReplicaId,
    cluster: Option<ClusterId>,
    http: String,
    nonce: [u8; 32],
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Hello { replica: ReplicaId, cluster: Option<ClusterId>, http: String, nonce: [u8; 32], proof: [u8; 32] },
    Refused { reason: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Proof {
    proof: [u8; 32],
}

#[derive(Debug, Serialize, Deserialize)]
enum Verdict {
    Welcome,
    Refused { reason: String },
}

/// What both sides prove to know the key over.
struct Transcript<'a> {
    hello: &'a Hello,
    replica: ReplicaId,
    cluster: Option<ClusterId>,
    nonce: &'a [u8; 32],
}

impl Transcript<'_> {
    fn mac(&self, key: &[u8], side: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
        mac.update(b"d3b peer handshake v1\0");
        mac.update(side);
        let said = (self.hello, self.replica, self.cluster, self.nonce);
        mac.update(&postcard::to_allocvec(&said).expect("plain data can be written"));
        mac
    }

    fn proof(&self, key: &[u8], side: &[u8]) -> [u8; 32] {
        self.mac(key, side).finalize().into_bytes().into()
    }

    fn check(&self, key: &[u8], side: &[u8], proof: &[u8; 32]) -> Result<(), HandshakeError> {
        self.mac(key, side).verify_slice(proof).map_err(|_| HandshakeError::Key)
    }
}

fn nonce() -> Result<[u8; 32], HandshakeError> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(nonce)
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, HandshakeError>>,
) -> Result<T, HandshakeError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(HandshakeError::TimedOut(limit)))
}

fn same_cluster(ours: Option<ClusterId>, theirs: Option<ClusterId>) -> Result<(), HandshakeError> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(HandshakeError::Cluster { theirs, ours }),
        // A replica that has not met its cluster yet may ask whoever is in its list.
        _ => Ok(()),
    }
}

/// The side that connects, and waits for so long.
pub(super) async fn connect(
    stream: &mut TcpStream,
    myself: &Myself,
    version: u8,
    purpose: Purpose,
    expected: ReplicaId,
    limit: Duration,
) -> Result<Peer, HandshakeError> {
    within(limit, async {
        let Myself { replica, cluster, http, key } = myself.clone();
        let magic = MAGICS.iter().find(|(known, _)| *known == version).ok_or(HandshakeError::Magic)?.1;
        let hello = Hello { magic, purpose, replica, cluster, http, nonce: nonce()? };
        stream.write_all(&frame::encode(&hello)).await?;
        let mut body = Vec::new();
        let (replica, cluster, http, nonce, proof) = match frame::read(stream, HANDSHAKE_MAX, &mut body).await? {
            Answer::Hello { replica, cluster, http, nonce, proof } => (replica, cluster, http, nonce, proof),
            Answer::Refused { reason } => return Err(HandshakeError::Refused(reason)),
        };
        let transcript = Transcript { hello: &hello, replica, cluster, nonce: &nonce };
        transcript.check(&key, b"accepts", &proof)?;
        if replica != expected {
            return Err(HandshakeError::Unexpected(replica));
        }
        same_cluster(myself.cluster, cluster)?;
        let proof = Proof { proof: transcript.proof(&key, b"connects") };
        stream.write_all(&frame::encode(&proof)).await?;
        match frame::read(stream, HANDSHAKE_MAX, &mut body).await? {
            Verdict::Welcome => Ok(Peer { replica, http }),
            Verdict::Refused { reason } => Err(HandshakeError::Refused(reason)),
        }
    })
    .await
}

/// The side that is connected to. A refusal is told to the other side in a word, and to the caller in full.
pub(super) async fn accept(
    stream: &mut TcpStream,
    myself: &Myself,
    expected: impl Fn(ReplicaId, Option<ClusterId>) -> bool,
) -> Result<(Peer, Purpose), HandshakeError> {
    within(HANDSHAKE_TIMEOUT, async {
        let mut body = Vec::new();
        let hello: Hello = frame::read(stream, HANDSHAKE_MAX, &mut body).await?;
        let objection = if !MAGICS.iter().any(|(_, magic)| *magic == hello.magic) {
            Err(HandshakeError::Magic)
        } else if !expected(hello.replica, hello.cluster) {
            Err(HandshakeError::Unexpected(hello.replica))
        } else {
            same_cluster(myself.cluster, hello.cluster)
        };
        if let Err(error) = objection {
            stream.write_all(&frame::encode(&Answer::Refused { reason: error.to_string() })).await?;
            return Err(error);
        }
        let nonce = nonce()?;
        let Myself { replica, cluster, http, key } = myself.clone();
        let transcript = Transcript { hello: &hello, replica, cluster, nonce: &nonce };
        let proof = transcript.proof(&key, b"accepts");
        stream.write_all(&frame::encode(&Answer::Hello { replica, cluster, http, nonce, proof })).await?;
        let Proof { proof } = frame::read(stream, HANDSHAKE_MAX, &mut body).await?;
        if let Err(error) = transcript.check(&key, b"connects", &proof) {
            stream.write_all(&frame::encode(&Verdict::Refused { reason: error.to_string() })).await?;
            return Err(error);
        }
        stream.write_all(&frame::encode(&Verdict::Welcome)).await?;
        Ok((Peer { replica: hello.replica, http: hello.http }, hello.purpose))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn myself(replica: u32, cluster: u8, key: &[u8]) -> Myself {
        Myself {
            replica: ReplicaId(replica),
            cluster: (cluster > 0).then_some(ClusterId([cluster; 16])),
            http: format!("http://replica-{replica}"),
            key: key.to_vec(),
        }
    }

    async fn meet(
        one: Myself,
        other: Myself,
        expected: u32,
    ) -> (Result<Peer, HandshakeError>, Result<(Peer, Purpose), HandshakeError>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            accept(&mut stream, &other, |id, _| id.0 < 4).await
        };
        let connecting = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            connect(&mut stream, &one, 2, Purpose::Messages, ReplicaId(expected), HANDSHAKE_TIMEOUT).await
        };
        tokio::join!(connecting, accepting)
    }

    #[tokio::test]
    async fn two_of_one_cluster_meet() {
        let (connected, accepted) = meet(myself(1, 7, b"key"), myself(2, 7, b"key"), 2).await;
        assert_eq!(connected.unwrap().http, "http://replica-2");
        assert_eq!(accepted.unwrap().0.replica, ReplicaId(1));
    }

    #[tokio::test]
    async fn a_replica_without_a_cluster_meets_one_that_has_it() {
        let (connected, accepted) = meet(myself(1, 0, b"key"), myself(2, 7, b"key"), 2).await;
        assert!(connected.is_ok() && accepted.is_ok());
    }

    #[tokio::test]
    async fn another_key_another_cluster_and_strangers_are_refused() {
        let (connected, accepted) = meet(myself(1, 7, b"key"), myself(2, 7, b"other"), 2).await;
        assert!(matches!(connected, Err(HandshakeError::Key)) && accepted.is_err());
        let (connected, accepted) = meet(myself(1, 7, b"key"), myself(2, 8, b"key"), 2).await;
        assert!(matches!(connected, Err(HandshakeError::Refused(_))));
        assert!(matches!(accepted, Err(HandshakeError::Cluster { .. })));
        let (_, accepted) = meet(myself(9, 7, b"key"), myself(2, 7, b"key"), 2).await;
        assert!(matches!(accepted, Err(HandshakeError::Unexpected(ReplicaId(9)))));
        let (connected, _) = meet(myself(1, 7, b"key"), myself(2, 7, b"key"), 3).await;
        assert!(matches!(connected, Err(HandshakeError::Unexpected(ReplicaId(2)))));
    }

    #[tokio::test]
    async fn something_else_that_connects_is_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            accept(&mut stream, &myself(2, 7, b"key"), |_, _| true).await
        };
        let connecting = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        };
        let ((), accepted) = tokio::join!(connecting, accepting);
        assert!(matches!(accepted, Err(HandshakeError::Frame(FrameError::TooLong { .. }))));
    }
}
