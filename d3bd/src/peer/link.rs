//! The connection that a replica keeps to one other for what it says.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use d3b::ReplicaId;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::complaints::Who;
use super::handshake::{HandshakeError, Purpose};
use super::{PeerEvent, Shared};

/// How many messages are written at once, and about how many bytes of them: what waits for a peer that was away may be
/// much more, and must not be copied whole.
const WRITTEN_AT_ONCE: usize = 1_024;
const WRITTEN_BYTES: usize = 1 << 20;
/// A peer that takes not one byte for so long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a connection that failed is tried again: at first, and at most. The most is little, for nobody tells when the
/// peer is there again, and an attempt costs a few packets.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));

/// Keeps a connection to one peer and writes to it what waits.
pub(super) async fn keep_connected(
    shared: Arc<Shared>,
    to: ReplicaId,
    mut waiting: mpsc::UnboundedReceiver<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
) {
    let mut pause = RECONNECT.0;
    loop {
        match shared.connect(to, Purpose::Messages).await {
            Ok(stream) => {
                tracing::debug!(peer = %to, "connected");
                pause = RECONNECT.0;
                // What waited for a connection is stale; whoever cares has said it again since.
                drain(&mut waiting, &bytes);
                if !write_all(stream, &mut waiting, &bytes).await {
                    return;
                }
                tracing::debug!(peer = %to, "disconnected");
                (shared.events)(PeerEvent::Reset { replica: to });
            }
            Err(error) => {
                match &error {
                    HandshakeError::Frame(error) => tracing::debug!(peer = %to, %error, "cannot connect"),
                    error => shared.complain(Who::Replica(to), None, error),
                }
                if !error.is_silence() {
                    (shared.events)(PeerEvent::Reset { replica: to });
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = shared.came(to) => {}
        }
        drain(&mut waiting, &bytes);
        if waiting.is_closed() {
            return;
        }
        pause = (pause * 2).min(RECONNECT.1);
    }
}

/// Between half of it and all of it, so that those who lost a peer together do not come back to it all at once.
fn jittered(pause: Duration) -> Duration {
    let mut chance = [0];
    // Without chance it is the longest.
    let part = getrandom::fill(&mut chance).map_or(u32::from(u8::MAX), |()| u32::from(chance[0]));
    pause / 2 + pause / 2 * part / u32::from(u8::MAX)
}

fn drain(waiting: &mut mpsc::UnboundedReceiver<Vec<u8>>, bytes: &AtomicUsize) {
    while let Ok(frame) = waiting.try_recv() {
        bytes.fetch_sub(frame.len(), Ordering::Relaxed);
    }
}

/// Writes until the connection ends; false when there is nobody left to write for.
async fn write_all(stream: TcpStream, waiting: &mut mpsc::UnboundedReceiver<Vec<u8>>, bytes: &AtomicUsize) -> bool {
    let (mut incoming, mut outgoing) = stream.into_split();
    let mut frames = Vec::new();
    let mut buffer = Vec::new();
    loop {
        let mut nothing = [0; 1];
        tokio::select! {
            count = waiting.recv_many(&mut frames, WRITTEN_AT_ONCE) => {
                if count == 0 {
                    return false;
                }
            }
            // Nothing is ever sent this way: this tells at once when the peer's process has died.
            _ = incoming.read(&mut nothing) => return true,
        }
        let mut taken = frames.drain(..).peekable();
        while let Some(frame) = taken.next() {
            buffer.extend_from_slice(&frame);
            drop(frame);
            if buffer.len() < WRITTEN_BYTES && taken.peek().is_some() {
                continue;
            }
            let written = write_steadily(&mut outgoing, &buffer).await;
            bytes.fetch_sub(buffer.len(), Ordering::Relaxed);
            if !written {
                bytes.fetch_sub(taken.map(|frame| frame.len()).sum(), Ordering::Relaxed);
                return true;
            }
            buffer.clear();
        }
        if buffer.capacity() > 4 << 20 {
            buffer = Vec::new();
        }
    }
}

/// Writes everything, however long it takes, as long as the other side takes some of it now and then: what waits may be
/// more than a slow line carries within any timeout. False when the connection is of no use any more.
async fn write_steadily(stream: &mut (impl AsyncWrite + Unpin), mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match tokio::time::timeout(WRITE_TIMEOUT, stream.write(bytes)).await {
            Ok(Ok(written)) if written > 0 => bytes = &bytes[written..],
            Ok(Ok(_) | Err(_)) | Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_line_is_no_reason_to_disconnect_and_a_closed_one_is() {
        let (mut here, mut there) = tokio::io::duplex(1_000);
        let slow = async {
            let mut heard = 0;
            let mut piece = [0; 100];
            while heard < 10_000 {
                tokio::task::yield_now().await;
                heard += there.read(&mut piece).await.unwrap();
            }
            drop(there);
        };
        let (written, ()) = tokio::join!(write_steadily(&mut here, &[7; 10_000]), slow);
        assert!(written);
        assert!(!write_steadily(&mut here, &[7; 10_000]).await);
    }
}
