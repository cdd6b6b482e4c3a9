//! Frames: a length, a version, a body. Whatever the bytes are, reading them neither panics nor takes more memory than
//! the bound.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The version of the bodies' encoding.
const VERSION: u8 = 1;
/// The largest body: a few of the largest commands.
pub(super) const BODY_MAX: usize = 64 << 20;
/// The largest body of a handshake, whose sender is not known yet.
pub(super) const HANDSHAKE_MAX: usize = 4 << 10;
/// A body is read in pieces of so many bytes, so that a length alone takes no memory.
const PIECE: usize = 256 << 10;

/// Why a frame is not one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed, or ended within a frame.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It is longer than allowed.
    #[error("a frame of {length} bytes is longer than {max}")]
    TooLong {
        /// Its length.
        length: usize,
        /// The bound.
        max: usize,
    },
    /// Another build's encoding.
    #[error("a frame has version {0}, and only version {VERSION} is known")]
    Version(u8),
    /// The body is not a message.
    #[error("a frame does not parse: {0}")]
    Malformed(postcard::Error),
    /// The body is a message and more.
    #[error("a frame ends with {0} stray bytes")]
    Trailing(usize),
}

/// The bytes of a frame.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_to(&mut frame, value);
    frame
}

/// Makes a frame behind what is there.
pub(super) fn encode_to<T: Serialize>(frames: &mut Vec<u8>, value: &T) {
    let at = frames.len();
    frames.extend_from_slice(&[0, 0, 0, 0, VERSION]);
    *frames = postcard::to_extend(value, std::mem::take(frames)).expect("plain data can be written");
    let length = u32::try_from(frames.len() - at - 4).unwrap_or(u32::MAX);
    frames[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

/// Reads a frame's body: version byte and message.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let (version, rest) = body.split_first().ok_or(FrameError::Version(0))?;
    if *version != VERSION {
        return Err(FrameError::Version(*version));
    }
    let (value, stray) = postcard::take_from_bytes(rest).map_err(FrameError::Malformed)?;
    if stray.is_empty() { Ok(value) } else { Err(FrameError::Trailing(stray.len())) }
}

/// Reads one frame from a connection.
pub(super) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    body_max: usize,
    body: &mut Vec<u8>,
) -> Result<T, FrameError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > body_max {
        return Err(FrameError::TooLong { length, max: body_max });
    }
    body.clear();
    while body.len() < length {
        let begin = body.len();
        body.resize(length.min(begin + PIECE), 0);
        stream.read_exact(&mut body[begin..]).await?;
    }
    let value = decode(body);
    // One large frame does not keep its memory for the life of the connection.
    if body.capacity() > 4 * PIECE {
        *body = Vec::new();
    }
    value
}

#[cfg(test)]
mod tests {
    use d3b::{Digest, Slot};

    use super::super::message::PeerMessage;
    use super::*;

    fn read_all(bytes: &[u8]) -> Result<PeerMessage, FrameError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut stream = bytes;
        runtime.block_on(read(&mut stream, BODY_MAX, &mut Vec::new()))
    }

    fn message() -> PeerMessage {
        PeerMessage::BlobRefused { digest: Digest::of(b"cat"), reason: "no".to_owned() }
    }

    #[test]
    fn a_frame_survives_its_bytes() {
        assert_eq!(read_all(&encode(&message())).unwrap(), message());
    }

    /// A replica of the first version is understood, and understands what is said to it in the same words.
    #[test]
    fn frames_of_the_first_version_are_read_and_written_as_then() {
        let lines: Vec<&str> = include_str!("../../../tests/fixtures/version-1/frames.txt").lines().collect();
        assert_eq!(lines.len(), 22, "one for each thing that could be said");
        for line in lines {
            let (hex, shown) = line.split_once(' ').unwrap();
            let pairs = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
            let frame: Vec<u8> = pairs.map(Result::unwrap).collect();
            let message = read_all(&frame).unwrap_or_else(|error| panic!("{shown}: {error}"));
            assert_eq!(message.version(), 1, "{shown}");
            assert!(encode(&message) == frame, "{shown} is now {message:?}");
            // What a configuration is made of has another name now.
            if !shown.contains("formed: Some") {
                assert_eq!(format!("{message:?}"), shown);
            }
        }
    }

    #[test]
    fn a_length_alone_takes_no_memory() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        assert!(matches!(read_all(&bytes), Err(FrameError::TooLong { .. })));
        bytes = u32::try_from(BODY_MAX).unwrap().to_le_bytes().to_vec();
        bytes.push(VERSION);
        assert!(matches!(read_all(&bytes), Err(FrameError::Io(_))));
    }

    #[test]
    fn mutated_frames_never_panic() {
        let good = encode(&PeerMessage::Gossip { applied: Slot(7), fingerprints: Vec::new() });
        let long = encode(&message());
        let mut random: u64 = 1;
        for round in 0..20_000 {
            let mut bytes = if round % 2 == 0 { good.clone() } else { long.clone() };
            for _ in 0..1 + round % 4 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let index = usize::try_from(random >> 33).unwrap() % bytes.len();
                bytes[index] = random.to_le_bytes()[3];
            }
            // Whatever it is, it is a message or an error.
            drop(decode::<PeerMessage>(&bytes[4..]));
        }
    }

    #[test]
    fn another_version_and_stray_bytes_are_refused() {
        let mut bytes = encode(&message());
        bytes[4] = 9;
        assert!(matches!(decode::<PeerMessage>(&bytes[4..]), Err(FrameError::Version(9))));
        let mut bytes = encode(&message());
        bytes.push(0);
        assert!(matches!(decode::<PeerMessage>(&bytes[4..]), Err(FrameError::Trailing(1))));
    }
}
