//! Runs a statement and turns what it gives into a response.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d3b::operation::StatementResult;
use d3b::{Answer, Code, DatabaseName, Problem, Slot, Statement};
use futures_util::Stream;
use hyper::StatusCode;
use tokio::sync::mpsc;
use warp::reply::Response;

use super::call::{Call, respond, set_header, with_slot};
use super::encode::{self, BufferSink, End, Form, Streamed};
use super::memory::{self, Memory};
use super::parameters::{RESULT_BYTES_MAX, ReadParameters};
use super::streams;
use crate::handle::{Executed, Handle, Level, ReadOptions, WriteAnswer, WriteOptions};

/// How long a streamed read may take unless it says so. What it waits for before its first row is bounded as usual,
/// and a client that stops reading ends it much sooner.
const STREAM_TIMEOUT: Duration = Duration::from_secs(3600);

/// What to run, and how to answer.
pub(crate) struct Run {
    pub(crate) db: DatabaseName,
    pub(crate) statement: Statement,
    pub(crate) read: ReadParameters,
    /// `None` where only reads are taken.
    pub(crate) write: Option<WriteOptions>,
    pub(crate) form: Form,
}

impl Run {
    /// Runs it.
    pub(crate) async fn run(self, call: &Call) -> Result<Response, Problem> {
        if self.form.is_streamed() { self.run_streamed(call).await } else { self.run_buffered(call).await }
    }

    async fn run_buffered(self, call: &Call) -> Result<Response, Problem> {
        let (form, handle) = (self.form, call.handle());
        let memory = Memory::new(Arc::clone(&call.shared.result_memory));
        let sink = BufferSink::new(form, usize::try_from(RESULT_BYTES_MAX).expect("64 MiB fit"), memory);
        let overflow = sink.overflow();
        let options = self.read.options();
        let executed = match self.write {
            Some(write) => handle.execute(self.db, self.statement, options, write, sink).await,
            None => {
                let read = handle.read(self.db, self.statement, options, sink).await;
                read.map(|(sink, slot)| Executed::Read { sink, slot })
            }
        };
        match executed {
            Ok(Executed::Read { sink, slot }) => {
                let (mut bytes, memory) = sink.finish(ended(slot));
                end_line(form, &mut bytes);
                let mut response = streams::whole(memory::held(bytes, memory));
                set_header(&mut response, "content-type", form.content_type());
                Ok(with_slot(response, slot))
            }
            Ok(Executed::Write(answer)) => Ok(written(form, &answer)),
            Err(_) if overflow.exceeded() => Err(too_large()),
            Err(_) if overflow.overloaded() => {
                Err(Problem::new(Code::Overloaded, "too many large results are under way")
                    .with_hint("ask for a streamed form: Accept: application/x-ndjson or text/csv"))
            }
            Err(problem) => Err(problem),
        }
    }

    async fn run_streamed(self, call: &Call) -> Result<Response, Problem> {
        let handle = call.handle();
        self.wait_for_group(handle).await?;
        let form = self.form;
        let Streamed { sink, sender, mut receiver } = encode::stream(form);
        let mut work: Work = Box::pin(self.work(handle.clone(), sink));
        // Whatever ends before its first piece is full is answered whole, with its slot; a failure with its status.
        let first = tokio::select! {
            biased;
            piece = receiver.recv() => piece,
            result = &mut work => match receiver.try_recv() {
                Err(_) => return result.map(|ended| ended.into_response(form)),
                Ok(piece) => {
                    work = Box::pin(std::future::ready(result));
                    Some(piece)
                }
            },
        };
        let encoder = encode::Encoder::new(form);
        let rest =
            Rest { first, receiver, work: Some(work), encoder, request_id: call.request_id.clone(), _sender: sender };
        let mut response = streams::response(rest.into_stream());
        set_header(&mut response, "content-type", form.content_type());
        Ok(response)
    }

    /// Meets the read's level within the usual time, so that the long time of a stream is for its rows only.
    async fn wait_for_group(&self, handle: &Handle) -> Result<(), Problem> {
        match self.read.level {
            Level::Linearizable => handle.read_index(self.read.timeout.deadline()).await.map(|_| ()),
            Level::AtLeast(_) => handle.database(self.db.clone(), self.read.options()).await.map(|_| ()),
            Level::Stale { .. } => Ok(()),
        }
    }

    async fn work(self, handle: Handle, sink: encode::StreamSink) -> Result<Ended, Problem> {
        let options = ReadOptions {
            level: self.read.level,
            deadline: self.read.timeout.deadline_or(STREAM_TIMEOUT),
            result_bytes_max: None,
        };
        let executed = match self.write {
            Some(write) => handle.execute(self.db, self.statement, options, write, sink).await?,
            None => {
                let (sink, slot) = handle.read(self.db, self.statement, options, sink).await?;
                Executed::Read { sink, slot }
            }
        };
        Ok(match executed {
            Executed::Read { sink, slot } => Ended::Read { rest: sink.finish(ended(slot)), slot },
            Executed::Write(answer) => Ended::Write(answer),
        })
    }
}

/// A statement that ran to its end.
enum Ended {
    /// A read, with what was not sent yet.
    Read { rest: Vec<u8>, slot: Slot },
    /// A write; nothing of it was sent.
    Write(WriteAnswer),
}

impl Ended {
    fn into_response(self, form: Form) -> Response {
        match self {
            Ended::Read { rest, slot } => whole(form, rest, slot),
            Ended::Write(answer) => written(form, &answer),
        }
    }

    fn into_rest(self) -> Vec<u8> {
        match self {
            Ended::Read { rest, .. } => rest,
            Ended::Write(_) => Vec::new(),
        }
    }
}

type Work = Pin<Box<dyn Future<Output = Result<Ended, Problem>> + Send>>;

/// What follows the first piece of a streamed result. Dropping it, when the client goes away, ends the read: its pieces
/// find no receiver any more.
struct Rest {
    first: Option<std::io::Result<Bytes>>,
    receiver: mpsc::Receiver<std::io::Result<Bytes>>,
    /// `None` once the last piece was given out.
    work: Option<Work>,
    encoder: encode::Encoder,
    request_id: String,
    /// Keeps the channel open, so that the end is told by `work` alone.
    _sender: mpsc::Sender<std::io::Result<Bytes>>,
}

impl Rest {
    fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
        futures_util::stream::unfold(self, |mut rest| async move {
            let piece = rest.next().await?;
            Some((piece, rest))
        })
    }

    async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let work = self.work.as_mut()?;
        let result = tokio::select! {
            biased;
            Some(piece) = self.receiver.recv() => return Some(piece),
            result = work => result,
        };
        // Pieces that were sent between the two looks come before the last words.
        if let Ok(piece) = self.receiver.try_recv() {
            self.work = Some(Box::pin(std::future::ready(result)));
            return Some(piece);
        }
        self.work = None;
        match result {
            Ok(ended) => Some(Ok(ended.into_rest().into())),
            Err(mut problem) => {
                problem.request_id = Some(std::mem::take(&mut self.request_id));
                match self.encoder.broken_off(&problem) {
                    Some(line) => Some(Ok(line.into())),
                    None => Some(Err(std::io::Error::other(problem))),
                }
            }
        }
    }
}

fn ended(slot: Slot) -> End {
    End { slot: Some(slot), ..End::default() }
}

/// A JSON object ends with its line; the original form never did.
fn end_line(form: Form, bytes: &mut Vec<u8>) {
    if matches!(form, Form::Json(..)) {
        bytes.push(b'\n');
    }
}

fn whole(form: Form, mut bytes: Vec<u8>, slot: Slot) -> Response {
    end_line(form, &mut bytes);
    with_slot(respond(StatusCode::OK, form.content_type(), bytes), slot)
}

/// The response to a write of one statement.
pub(crate) fn written(form: Form, answer: &WriteAnswer) -> Response {
    let mut out = Vec::new();
    let none = StatementResult::default();
    let result = match &answer.answer {
        Answer::Results(results) => results.first().unwrap_or(&none),
        // A change of the catalogue has no rows.
        Answer::Catalogue { .. } => &none,
    };
    encode::write_result(&mut out, result, form, Some(answer.slot));
    with_key(whole(form, out, answer.slot), answer)
}

/// Says under which key a write was executed.
pub(crate) fn with_key(mut response: Response, answer: &WriteAnswer) -> Response {
    set_header(&mut response, "idempotency-key", answer.key.as_str());
    response
}

fn too_large() -> Problem {
    Problem::new(Code::TooLarge, format!("the result is larger than {} MiB", RESULT_BYTES_MAX >> 20))
        .with_hint("ask for less with LIMIT, or for a streamed form: Accept: application/x-ndjson or text/csv")
}
