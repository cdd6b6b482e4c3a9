//! Requests that no client library would send, over a bare socket.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What came back over a connection.
#[derive(Debug, Clone)]
pub struct RawAnswer {
    /// Everything that was received.
    pub bytes: Vec<u8>,
    /// Whether the server closed the connection within the time.
    pub closed: bool,
}

impl RawAnswer {
    /// The status of the first answer; `None` where nothing came.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        let text = String::from_utf8_lossy(&self.bytes);
        text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
    }

    /// The problem's code in the first answer, by name.
    #[must_use]
    pub fn code(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.bytes).into_owned();
        let (_, rest) = text.split_once("urn:d3b:problem:")?;
        Some(rest.split('"').next()?.to_owned())
    }
}

/// Opens a connection.
///
/// # Panics
/// When it cannot be opened.
#[must_use]
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the replica takes connections");
    stream.set_nodelay(true).expect("a socket option");
    stream
}

/// Sends bytes, ends the sending side if asked to, and reads until the server closes or the time is over.
///
/// # Panics
/// When there is no connection.
#[must_use]
pub fn exchange(address: SocketAddr, request: &[u8], end: bool, limit: Duration) -> RawAnswer {
    let mut stream = connect(address);
    // The server may have closed already: then its answer tells why.
    let _ = stream.write_all(request);
    if end {
        let _ = stream.shutdown(Shutdown::Write);
    }
    read_to_end(&mut stream, limit)
}

/// Reads until the server closes or the time is over.
///
/// # Panics
/// When the socket has no timeouts.
#[must_use]
pub fn read_to_end(stream: &mut TcpStream, limit: Duration) -> RawAnswer {
    let deadline = Instant::now() + limit;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return RawAnswer { bytes, closed: false };
        }
        stream.set_read_timeout(Some(left)).expect("a timeout above zero");
        match stream.read(&mut buffer) {
            Ok(0) => return RawAnswer { bytes, closed: true },
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // A reset closes too.
            Err(_) => return RawAnswer { bytes, closed: true },
        }
    }
}
