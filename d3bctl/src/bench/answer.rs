//! Answers of HTTP/1.1 servers, taken apart as they come.

/// Bytes that there is room for at first, and at least before each read.
const ROOM: usize = 16 << 10;
/// Headers of one answer.
const HEADERS_MAX: usize = 48;
/// Bytes of one answer; more is taken for a server gone wrong.
const ANSWER_MAX: usize = 256 << 20;

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The status.
    pub status: u16,
    /// The body, without its chunks' frames.
    pub body: &'a [u8],
}

/// Why bytes are no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// Not HTTP.
    #[error("the answer is not HTTP: {0}")]
    Http(httparse::Error),
    /// Not a length.
    #[error("the length of the answer is no number")]
    Length,
    /// Not a chunk.
    #[error("the answer's chunks are malformed")]
    Chunk,
    /// The connection was closed in its midst.
    #[error("the answer broke off")]
    Cut,
    /// Too much of it.
    #[error("the answer is too long")]
    TooLong,
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    status: u16,
    /// Where the body begins.
    end: usize,
    framing: Framing,
    close: bool,
}

/// What has come of one answer.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// All of it is initialized; `filled` bytes have come.
    bytes: Vec<u8>,
    filled: usize,
    head: Option<Head>,
    /// Of a chunked body: what was taken out of its chunks, and where the next one begins.
    chunks: Vec<u8>,
    next_chunk: usize,
    complete: bool,
}

impl Incoming {
    /// Room for what comes next.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let left = match &self.head {
            Some(Head { end, framing: Framing::Length(length), .. }) => (end + length).saturating_sub(self.filled),
            Some(_) | None => 0,
        };
        // One byte more than what is awaited: a read that leaves room has taken everything.
        let wanted = self.filled + left.max(ROOM) + 1;
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted.max(self.bytes.len() * 2), 0);
        }
        &mut self.bytes[self.filled..]
    }

    /// So many bytes have come into the room.
    pub(super) fn filled(&mut self, count: usize) {
        self.filled += count;
    }

    /// Whether nothing has come of an answer.
    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Whether the answer is complete; `ended` tells that no more will come.
    pub(super) fn look(&mut self, ended: bool) -> Result<bool, Malformed> {
        if self.complete {
            return Ok(true);
        }
        if self.filled > ANSWER_MAX {
            return Err(Malformed::TooLong);
        }
        while self.head.is_none() {
            let Some(head) = parse(&self.bytes[..self.filled])? else {
                return if ended { Err(Malformed::Cut) } else { Ok(false) };
            };
            if (100..200).contains(&head.status) {
                // An interim answer: the real one follows.
                self.bytes.copy_within(head.end..self.filled, 0);
                self.filled -= head.end;
                continue;
            }
            if let Framing::Length(length) = head.framing
                && length > ANSWER_MAX
            {
                return Err(Malformed::TooLong);
            }
            self.next_chunk = head.end;
            self.head = Some(head);
        }
        let head = self.head.expect("it was parsed just now");
        self.complete = match head.framing {
            Framing::Length(length) => self.filled - head.end >= length,
            Framing::Chunked => self.take_chunks()?,
            Framing::UntilClose => ended,
        };
        if ended && !self.complete { Err(Malformed::Cut) } else { Ok(self.complete) }
    }

    /// Takes complete chunks out of their frames; whether the last one has come.
    fn take_chunks(&mut self) -> Result<bool, Malformed> {
        loop {
            let rest = &self.bytes[self.next_chunk..self.filled];
            let (frame, size) = match httparse::parse_chunk_size(rest) {
                Ok(httparse::Status::Complete(parsed)) => parsed,
                Ok(httparse::Status::Partial) => return Ok(false),
                Err(_) => return Err(Malformed::Chunk),
            };
            let size = usize::try_from(size).ok().filter(|size| *size <= ANSWER_MAX).ok_or(Malformed::TooLong)?;
            let rest = &rest[frame..];
            if size == 0 {
                // Perhaps trailers, then an empty line.
                return Ok(rest.starts_with(b"\r\n") || rest.windows(4).any(|end| end == b"\r\n\r\n"));
            }
            if rest.len() < size + 2 {
                return Ok(false);
            }
            if &rest[size..size + 2] != b"\r\n" {
                return Err(Malformed::Chunk);
            }
            self.chunks.extend_from_slice(&rest[..size]);
            self.next_chunk += frame + size + 2;
        }
    }

    /// The complete answer.
    pub(super) fn answer(&self) -> Answer<'_> {
        let head = self.head.expect("asked for when it is complete");
        let body = match head.framing {
            Framing::Length(length) => &self.bytes[head.end..head.end + length],
            Framing::Chunked => &self.chunks,
            Framing::UntilClose => &self.bytes[head.end..self.filled],
        };
        Answer { status: head.status, body }
    }

    /// Whether the server closes the connection after this answer.
    pub(super) fn closes(&self) -> bool {
        self.head.is_some_and(|head| head.close || head.framing == Framing::UntilClose)
    }

    /// Makes ready for the next answer.
    pub(super) fn clear(&mut self) {
        (self.filled, self.head, self.next_chunk, self.complete) = (0, None, 0, false);
        self.chunks.clear();
    }
}

fn parse(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(end) = response.parse(bytes).map_err(Malformed::Http)? else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    let mut close = response.version == Some(0);
    let mut framing = Framing::UntilClose;
    for header in response.headers.iter() {
        let has = |word: &[u8]| header.value.trim_ascii().to_ascii_lowercase().ends_with(word);
        if header.name.eq_ignore_ascii_case("content-length") && framing != Framing::Chunked {
            let text = std::str::from_utf8(header.value).map_err(|_| Malformed::Length)?;
            framing = Framing::Length(text.trim().parse().map_err(|_| Malformed::Length)?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") && has(b"chunked") {
            framing = Framing::Chunked;
        } else if header.name.eq_ignore_ascii_case("connection") && has(b"close") {
            close = true;
        }
    }
    if matches!(status, 100..200 | 204 | 304) {
        framing = Framing::Length(0);
    }
    Ok(Some(Head { status, end, framing, close }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds an answer in pieces of some size.
    fn feed(text: &[u8], piece: usize, ended: bool) -> Result<Option<(u16, Vec<u8>, bool)>, Malformed> {
        let mut incoming = Incoming::default();
        for bytes in text.chunks(piece) {
            incoming.room()[..bytes.len()].copy_from_slice(bytes);
            incoming.filled(bytes.len());
            incoming.look(false)?;
        }
        if !incoming.look(ended)? {
            return Ok(None);
        }
        let closes = incoming.closes();
        let Answer { status, body } = incoming.answer();
        Ok(Some((status, body.to_vec(), closes)))
    }

    #[track_caller]
    fn check(text: &str, status: u16, body: &str, closes: bool) {
        for piece in [1, 2, 3, 7, text.len()] {
            assert_eq!(feed(text.as_bytes(), piece, false), Ok(Some((status, body.as_bytes().to_vec(), closes))));
        }
    }

    #[test]
    fn answers_come_in_any_pieces() {
        check("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nd3b-slot: 7\r\n\r\nhello", 200, "hello", false);
        check("HTTP/1.1 503 no\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno", 503, "no", true);
        check("HTTP/1.1 204 No Content\r\n\r\n", 204, "", false);
        check("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n", 201, "", false);
    }

    #[test]
    fn chunks_are_taken_out_of_their_frames() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(&format!("{head}4\r\nWiki\r\n6;x=y\r\npedia \r\n0\r\n\r\n"), 200, "Wikipedia ", false);
        check(&format!("{head}1\r\na\r\n0\r\nTrailer: x\r\n\r\n"), 200, "a", false);
        assert_eq!(feed(format!("{head}4\r\nWikix").as_bytes(), 100, false), Ok(None));
        assert_eq!(feed(format!("{head}4\r\nWikixx").as_bytes(), 100, false), Err(Malformed::Chunk));
    }

    #[test]
    fn a_body_without_a_length_ends_with_its_connection() {
        let text = b"HTTP/1.0 200 OK\r\n\r\nall of it";
        assert_eq!(feed(text, 4, false), Ok(None));
        assert_eq!(feed(text, 4, true), Ok(Some((200, b"all of it".to_vec(), true))));
    }

    #[test]
    fn what_breaks_off_or_is_no_http_is_no_answer() {
        assert_eq!(feed(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell", 100, true), Err(Malformed::Cut));
        assert_eq!(feed(b"HTTP/1.1 200", 100, true), Err(Malformed::Cut));
        assert_eq!(feed(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", 100, false), Err(Malformed::Length));
        assert!(matches!(feed(b"SSH-2.0-OpenSSH\r\n", 100, false), Err(Malformed::Http(_))));
    }

    #[test]
    fn the_next_answer_begins_anew() {
        let mut incoming = Incoming::default();
        for body in ["one", "and another"] {
            let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            incoming.room()[..text.len()].copy_from_slice(text.as_bytes());
            incoming.filled(text.len());
            assert_eq!(incoming.look(false), Ok(true));
            assert_eq!(incoming.answer(), Answer { status: 200, body: body.as_bytes() });
            incoming.clear();
            assert!(incoming.is_empty());
        }
    }
}
