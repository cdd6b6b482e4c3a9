//! Where SQLite's rows go: into memory with a bound, or piece by piece to a client that reads along.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use d3b::{RowSink, SinkClosed, ValueRef};
use tokio::sync::mpsc;

use super::super::memory::Memory;
use super::{Encoder, End, Form};

/// Bytes that are gathered before they are sent on.
const PIECE: usize = 64 << 10;
/// Pieces that may wait for the client.
const PIECES_MAX: usize = 4;
/// How long a client may leave its pieces waiting before the read is given up for its sake.
const STALL_MAX: Duration = Duration::from_secs(10);

/// Tells, also when the sink itself is lost with an error, that it was the sink that ended the read, and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overflow {
    exceeded: Arc<AtomicBool>,
    overloaded: Arc<AtomicBool>,
}

impl Overflow {
    /// The result is larger than its bound.
    pub(crate) fn exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Acquire)
    }

    /// All results together would be larger than theirs.
    pub(crate) fn overloaded(&self) -> bool {
        self.overloaded.load(Ordering::Acquire)
    }
}

/// Gathers a whole result in memory.
#[derive(Debug)]
pub(crate) struct BufferSink {
    form: Form,
    encoder: Encoder,
    out: Vec<u8>,
    bytes_max: usize,
    memory: Memory,
    overflow: Overflow,
}

impl BufferSink {
    /// A sink that gives up past `bytes_max` encoded bytes, or when there is no memory for them.
    pub(crate) fn new(form: Form, bytes_max: usize, memory: Memory) -> BufferSink {
        let (encoder, out, overflow) = (Encoder::new(form), Vec::new(), Overflow::default());
        BufferSink { form, encoder, out, bytes_max, memory, overflow }
    }

    /// To ask, after a failure, whether the bound was the cause.
    pub(crate) fn overflow(&self) -> Overflow {
        self.overflow.clone()
    }

    /// The encoded result, with the memory that it takes.
    pub(crate) fn finish(mut self, end: End) -> (Vec<u8>, Memory) {
        self.encoder.end(&mut self.out, end);
        (self.out, self.memory)
    }
}

impl RowSink for BufferSink {
    fn columns(&mut self, names: &[String], types: &[String]) -> Result<(), SinkClosed> {
        self.encoder.columns(&mut self.out, names, types);
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SinkClosed> {
        self.encoder.row(&mut self.out, values);
        if self.out.len() > self.bytes_max {
            self.overflow.exceeded.store(true, Ordering::Release);
            return Err(SinkClosed);
        }
        self.memory.grow(self.out.len()).map_err(|_| {
            self.overflow.overloaded.store(true, Ordering::Release);
            SinkClosed
        })
    }

    fn restart(&mut self) -> bool {
        self.encoder = Encoder::new(self.form);
        self.out.clear();
        true
    }
}

/// Sends a result on while it is produced.
#[derive(Debug)]
pub(crate) struct StreamSink {
    encoder: Encoder,
    out: Vec<u8>,
    pieces: mpsc::Sender<std::io::Result<Bytes>>,
    runtime: tokio::runtime::Handle,
}

impl StreamSink {
    fn flush(&mut self) -> Result<(), SinkClosed> {
        let piece = Bytes::from(std::mem::replace(&mut self.out, Vec::with_capacity(PIECE + PIECE / 4)));
        // This runs on a thread that may block. A client that hangs must not hold it for long.
        self.runtime.block_on(self.pieces.send_timeout(Ok(piece), STALL_MAX)).map_err(|_| SinkClosed)
    }

    /// What was not sent yet, with the end of the result.
    pub(crate) fn finish(mut self, end: End) -> Vec<u8> {
        self.encoder.end(&mut self.out, end);
        self.out
    }
}

impl RowSink for StreamSink {
    fn columns(&mut self, names: &[String], types: &[String]) -> Result<(), SinkClosed> {
        self.encoder.columns(&mut self.out, names, types);
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SinkClosed> {
        self.encoder.row(&mut self.out, values);
        if self.out.len() >= PIECE { self.flush() } else { Ok(()) }
    }
}

/// The two ends of a streamed result.
pub(crate) struct Streamed {
    /// For the read.
    pub(crate) sink: StreamSink,
    /// For the last words, after the read.
    pub(crate) sender: mpsc::Sender<std::io::Result<Bytes>>,
    /// For the response's body.
    pub(crate) receiver: mpsc::Receiver<std::io::Result<Bytes>>,
}

/// A streamed result in the making; must be called within the runtime.
pub(crate) fn stream(form: Form) -> Streamed {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let sink = StreamSink {
        encoder: Encoder::new(form),
        out: Vec::new(),
        pieces: sender.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    Streamed { sink, sender, receiver }
}
