//! One client's connection: kept alive, never blocking.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::answer::Incoming;

/// Servers close idle connections at some time, d3bd after ten seconds; one that was idle for this long is made anew.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// A connection, or none, with what is on its way out and in.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Option<TcpStream>,
    /// Whether the connection stands.
    connected: bool,
    /// The request.
    pub(super) out: Vec<u8>,
    /// How much of it was sent.
    pub(super) sent: usize,
    /// The answer.
    pub(super) incoming: Incoming,
    used: Instant,
}

impl Connection {
    /// None yet.
    pub(super) fn new(now: Instant) -> Connection {
        Connection {
            stream: None,
            connected: false,
            out: Vec::new(),
            sent: 0,
            incoming: Incoming::default(),
            used: now,
        }
    }

    /// Whether a request can be sent on the connection that there is.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        self.stream.is_some() && now.saturating_duration_since(self.used) < IDLE_MAX
    }

    /// Begins a connection in place of the old one.
    pub(super) fn connect(&mut self, address: SocketAddr, registry: &Registry, token: Token) -> io::Result<()> {
        self.close();
        let mut stream = TcpStream::connect(address)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Closes it; an answer that was on its way is lost.
    pub(super) fn close(&mut self) {
        // Closing takes it out of the poll, too.
        self.stream = None;
        self.connected = false;
        self.sent = 0;
        self.incoming.clear();
    }

    /// Whether it stands now; `false` while it is being made.
    fn stands(&mut self) -> io::Result<bool> {
        let Some(stream) = &self.stream else { return Ok(false) };
        if self.connected {
            return Ok(true);
        }
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(_) => {
                stream.set_nodelay(true)?;
                self.connected = true;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends as much of the request as goes.
    pub(super) fn send(&mut self) -> io::Result<()> {
        if !self.stands()? {
            return Ok(());
        }
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while self.sent < self.out.len() {
            match stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes in what has come. Whether the answer is complete; if the server has closed the connection before, an
    /// error.
    pub(super) fn receive(&mut self, now: Instant) -> io::Result<bool> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        if !self.connected {
            return Ok(false);
        }
        loop {
            let room = self.incoming.room();
            let size = room.len();
            let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            match stream.read(room) {
                Ok(0) if self.incoming.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => return self.incoming.look(true).map_err(malformed),
                Ok(count) => {
                    self.used = now;
                    self.incoming.filled(count);
                    if self.incoming.look(false).map_err(malformed)? {
                        return Ok(true);
                    }
                    if count < size {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes ready for the next request.
    pub(super) fn answered(&mut self) {
        if self.incoming.closes() {
            self.close();
        } else {
            self.incoming.clear();
        }
        self.sent = 0;
    }
}
