//! The connection that a replica keeps to one other for what it says.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use d3b::ReplicaId;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::complaints::Who;
use super::handshake::{HandshakeError, Purpose};
use super::{Line, PeerEvent, Shared};

/// How many messages are written at once, and about how many bytes of them: what waits for a peer that was away may be
/// much more, and must not be copied whole.
const WRITTEN_AT_ONCE: usize = 1_024;
const WRITTEN_BYTES: usize = 1 << 20;
/// A peer that takes not one byte for so long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a connection that failed is tried again: at first, and at most. The most is little, for nobody tells when the
/// peer is there again, and an attempt costs a few packets.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));

/// Where what is to be written comes out.
pub(super) struct End {
    pub(super) waiting: mpsc::UnboundedReceiver<Vec<u8>>,
    pub(super) bytes: Arc<AtomicUsize>,
    pub(super) line: Arc<Mutex<Line>>,
}

impl End {
    /// Whoever sends may write to this connection at once.
    fn open(&self, connection: Option<Arc<OwnedWriteHalf>>) {
        self.line.lock().expect("no panic while held").connection = connection;
    }

    fn drain(&mut self) {
        while let Ok(frames) = self.waiting.try_recv() {
            self.bytes.fetch_sub(frames.len(), Ordering::AcqRel);
        }
    }
}

/// Keeps a connection to one peer and writes to it what waits.
pub(super) async fn keep_connected(shared: Arc<Shared>, to: ReplicaId, mut end: End) {
    let mut pause = RECONNECT.0;
    loop {
        match shared.connect(to, Purpose::Messages).await {
            Ok(stream) => {
                tracing::debug!(peer = %to, "connected");
                pause = RECONNECT.0;
                // What waited for a connection is stale; whoever cares has said it again since.
                end.drain();
                if !write_all(stream, &mut end).await {
                    return;
                }
                tracing::debug!(peer = %to, "disconnected");
                // Whoever is there next may be of another version.
                shared.forget_version(to);
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
        end.drain();
        if end.waiting.is_closed() {
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

/// Writes until the connection ends; false when there is nobody left to write for.
async fn write_all(stream: TcpStream, end: &mut End) -> bool {
    let (incoming, outgoing) = stream.into_split();
    let outgoing = Arc::new(outgoing);
    end.open(Some(Arc::clone(&outgoing)));
    let anybody = write_what_waits(incoming, &outgoing, end).await;
    end.open(None);
    anybody
}

async fn write_what_waits(mut incoming: OwnedReadHalf, outgoing: &OwnedWriteHalf, end: &mut End) -> bool {
    let mut frames = Vec::new();
    let mut buffer = Vec::new();
    loop {
        let mut nothing = [0; 1];
        tokio::select! {
            count = end.waiting.recv_many(&mut frames, WRITTEN_AT_ONCE) => {
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
            let written = write_steadily(outgoing, &buffer).await;
            end.bytes.fetch_sub(buffer.len(), Ordering::AcqRel);
            if !written {
                end.bytes.fetch_sub(taken.map(|frame| frame.len()).sum(), Ordering::AcqRel);
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
async fn write_steadily(connection: &OwnedWriteHalf, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match tokio::time::timeout(WRITE_TIMEOUT, connection.writable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return false,
        }
        match connection.try_write(bytes) {
            Ok(written) if written > 0 => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_line_is_no_reason_to_disconnect_and_a_closed_one_is() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut there = listener.accept().await.unwrap().0;
        // More than any buffer of the kernel's holds.
        let bytes = vec![7; 32 << 20];
        let length = bytes.len();
        let slow = async move {
            let mut heard = 0;
            let mut piece = vec![0; 100_000];
            while heard < length {
                tokio::task::yield_now().await;
                heard += there.read(&mut piece).await.unwrap();
            }
            drop(there);
        };
        let (_incoming, outgoing) = here.into_split();
        let (written, ()) = tokio::join!(write_steadily(&outgoing, &bytes), slow);
        assert!(written);
        assert!(!write_steadily(&outgoing, &bytes).await);
    }
}
