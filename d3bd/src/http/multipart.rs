//! `multipart/form-data` with two parts, `json` and `file`, in either order. The file is streamed into the blob store
//! as it comes; it is made durable only when everything else is in order.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use d3b::{BlobReference, Code, Problem};
use futures_util::Stream;
use hyper::header::CONTENT_TYPE;
use multer::{Field, Multipart};

use super::body::{self, JSON_BYTES_MAX, announced_digest, arrival_problem, check_digest, too_large};
use super::call::Call;
use super::media::media_type;
use super::memory::Memory;
use super::problem::bad_request;
use crate::handle::{BlobUpload, Handle};

/// Bytes that the parser may take in without giving anything out: a boundary that does not come, or endless headers.
const UNPARSED_MAX: u64 = 1 << 20;

/// What a form held.
pub(crate) struct Received<T> {
    /// What the part `json` said.
    pub(crate) json: T,
    /// Its text, for digests.
    pub(crate) text: Bytes,
    /// The part `file`, in the blob store.
    pub(crate) blob: BlobReference,
    /// Its media type.
    pub(crate) media_type: String,
}

/// Whether a request has a form as its body.
pub(crate) fn is_form(call: &Call) -> bool {
    call.media_type() == "multipart/form-data"
}

/// Takes in a form. `read` judges the part `json` as soon as it is there, so that a file that follows it is not taken
/// in for nothing.
pub(crate) async fn receive<T>(
    call: &mut Call,
    read: impl Fn(&str) -> Result<T, Problem>,
) -> Result<Received<T>, Problem> {
    body::check_encoding(&call.headers)?;
    if announced_digest(&call.headers)?.is_some() {
        return Err(bad_request("with multipart, Repr-Digest is a header of the part \"file\""));
    }
    let bytes_max = call.shared.upload_max.saturating_add(JSON_BYTES_MAX);
    body::check_length(&call.headers, bytes_max)?;
    let boundary = call.header(CONTENT_TYPE.as_str())?.and_then(|value| multer::parse_boundary(value).ok());
    let boundary = boundary.ok_or_else(|| bad_request("the Content-Type has no valid boundary"))?;
    let unparsed = Arc::new(AtomicU64::new(0));
    let stream = Bounded { stream: call.take_body().into_stream(), unparsed: Arc::clone(&unparsed), pause: false };
    let mut parser = Parser { multipart: Multipart::new(stream, boundary), unparsed };
    let mut json: Option<(T, Bytes)> = None;
    let mut file: Option<(BlobUpload, Part)> = None;
    while let Some(mut field) = parser.next_field().await? {
        match field.name() {
            Some("json") if json.is_none() => {
                let text = parser.collect(&mut field, &mut call.body_memory).await?;
                json = Some((read(body::utf8(&text)?)?, text));
            }
            Some("file") if file.is_none() => {
                let part = Part::of(&field)?;
                file = Some((parser.store(&mut field, call.handle(), call.shared.upload_max).await?, part));
            }
            Some(name @ ("json" | "file")) => return Err(bad_request(format!("the part {name:?} is there twice"))),
            other => {
                let problem = bad_request(format!("the part {:?} is not known here", other.unwrap_or_default()));
                return Err(problem.with_hint("the parts are \"json\" and \"file\", in either order"));
            }
        }
    }
    let (json, text) = json.ok_or_else(|| bad_request("the part \"json\" is missing"))?;
    let (upload, part) = file.ok_or_else(|| bad_request("the part \"file\" is missing"))?;
    let blob = upload.finish().await?;
    check_digest(part.announced, blob.digest)?;
    Ok(Received { json, text, blob, media_type: part.media_type })
}

/// What the headers of the part `file` say.
struct Part {
    media_type: String,
    announced: Option<d3b::Digest>,
}

impl Part {
    fn of(field: &Field<'_>) -> Result<Part, Problem> {
        body::check_encoding(field.headers())?;
        Ok(Part { media_type: media_type(field.headers())?, announced: announced_digest(field.headers())? })
    }
}

/// The parser, with a bound on what it may swallow.
struct Parser {
    multipart: Multipart<'static>,
    unparsed: Arc<AtomicU64>,
}

impl Parser {
    async fn next_field(&mut self) -> Result<Option<Field<'static>>, Problem> {
        let field = self.multipart.next_field().await.map_err(|error| form_problem(&error))?;
        self.unparsed.store(0, Ordering::Relaxed);
        Ok(field)
    }

    async fn chunk(&self, field: &mut Field<'static>) -> Result<Option<Bytes>, Problem> {
        let chunk = field.chunk().await.map_err(|error| form_problem(&error))?;
        self.unparsed.store(0, Ordering::Relaxed);
        Ok(chunk)
    }

    async fn collect(&self, field: &mut Field<'static>, memory: &mut Memory) -> Result<Bytes, Problem> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.chunk(field).await? {
            if (whole.len() + chunk.len()) as u64 > JSON_BYTES_MAX {
                return Err(too_large(JSON_BYTES_MAX));
            }
            memory.grow(whole.len() + chunk.len())?;
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    async fn store(&self, field: &mut Field<'static>, handle: &Handle, bytes_max: u64) -> Result<BlobUpload, Problem> {
        let mut upload = handle.begin_blob(bytes_max).await?;
        let mut length = 0;
        while let Some(chunk) = self.chunk(field).await? {
            length += chunk.len() as u64;
            if length > bytes_max {
                return Err(too_large(bytes_max));
            }
            upload.write(chunk).await?;
        }
        Ok(upload)
    }
}

/// The request's body on its way into the parser. The parser takes whatever is ready before it gives anything out, so
/// it gets one piece at a time, and an error once it holds too much.
struct Bounded<S> {
    stream: S,
    unparsed: Arc<AtomicU64>,
    pause: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("no part of the form was found in {UNPARSED_MAX} bytes")]
struct Unparsed;

impl<S: Stream<Item = Result<Bytes, warp::Error>> + Unpin> Stream for Bounded<S> {
    type Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Poll::Ready(piece) = Pin::new(&mut self.stream).poll_next(cx) else { return Poll::Pending };
        self.pause = true;
        Poll::Ready(match piece {
            None => None,
            Some(Err(error)) => Some(Err(error.into())),
            Some(Ok(bytes)) => {
                let held = self.unparsed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Some(if held > UNPARSED_MAX { Err(Unparsed.into()) } else { Ok(bytes) })
            }
        })
    }
}

/// Says what is wrong with a form.
fn form_problem(error: &multer::Error) -> Problem {
    match error {
        multer::Error::StreamReadFailed(cause) if cause.is::<Unparsed>() => {
            Problem::new(Code::BadRequest, cause.to_string())
        }
        multer::Error::StreamReadFailed(cause) => arrival_problem(cause.as_ref()),
        multer::Error::IncompleteFieldData { .. }
        | multer::Error::IncompleteHeaders
        | multer::Error::IncompleteStream => {
            bad_request("the multipart body is cut short: its closing boundary is missing")
        }
        other => bad_request(format!("the multipart body cannot be read: {other}")),
    }
}
