//! SHA-256, streaming: the name of every blob.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use crate::ids::hex_id;

hex_id! {
    /// A SHA-256 digest, written as 64 hexadecimal digits.
    Digest, 32, "sha256 digest"
}

impl Digest {
    /// The digest of bytes that are all at hand.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The value of a `Repr-Digest` header (RFC 9530) for a body with this digest.
    #[must_use]
    pub fn to_repr_digest(&self) -> String {
        format!("sha-256=:{}:", base64::engine::general_purpose::STANDARD.encode(self.0))
    }

    /// Reads the `sha-256` member of a `Repr-Digest` or `Content-Digest` header (RFC 9530); `None` where it has none.
    ///
    /// # Errors
    /// A `sha-256` member that is not 32 bytes of base64 between colons.
    pub fn from_repr_digest(header: &str) -> Result<Option<Digest>, crate::InvalidId> {
        let Some(member) = header.split(',').find_map(|member| member.trim().strip_prefix("sha-256=")) else {
            return Ok(None);
        };
        member
            .strip_prefix(':')
            .and_then(|rest| rest.strip_suffix(':'))
            .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .map(|bytes| Some(Digest(bytes)))
            .ok_or_else(|| crate::InvalidId {
                what: "Repr-Digest",
                problem: format!("must be sha-256=:BASE64: with 32 bytes, not {member:?}"),
            })
    }
}

/// Hashes a stream piece by piece, so that memory stays flat whatever its length.
#[derive(Clone, Default)]
pub struct Hasher {
    sha256: sha2::Sha256,
    length: u64,
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Hasher {
        Hasher::default()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// How many bytes it has seen.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The digest of everything seen.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.sha256.finalize().into())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("length", &self.length).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answer() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), expected);
    }

    #[test]
    fn pieces_and_whole_agree() {
        let mut hasher = Hasher::new();
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.length(), 3);
        assert_eq!(hasher.finish(), Digest::of(b"abc"));
    }

    #[test]
    fn repr_digest_round_trip() {
        let digest = Digest::of(b"abc");
        let header = format!("md5=:AA==:, {}", digest.to_repr_digest());
        assert_eq!(Digest::from_repr_digest(&header), Ok(Some(digest)));
        assert_eq!(Digest::from_repr_digest("md5=:AA==:"), Ok(None));
        assert!(Digest::from_repr_digest("sha-256=AA").is_err());
    }
}
