//! Validated identifiers. A value of one of these types is well formed wherever it is met: the only ways to make one
//! check it.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Hasher;

/// Why a text is not an identifier of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {problem}")]
pub struct InvalidId {
    /// The kind of identifier, as a user would call it ("database name").
    pub what: &'static str,
    /// What is wrong with it, as the end of a sentence.
    pub problem: String,
}

/// A position in the replicated log; the first entry has slot 1, and 0 stands for "before every entry".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u64);

impl Slot {
    /// Before every entry.
    pub const ZERO: Slot = Slot(0);

    /// The slot after this one.
    #[must_use]
    pub fn next(self) -> Slot {
        Slot(self.0 + 1)
    }

    /// The slot before this one; [`Slot::ZERO`] stays where it is.
    #[must_use]
    pub fn previous(self) -> Slot {
        Slot(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a replica within its cluster: 1 and up, never reused within one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(pub u32);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ReplicaId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text.parse::<u32>() {
            Ok(id) if id > 0 => Ok(ReplicaId(id)),
            _ => Err(InvalidId { what: "replica id", problem: format!("must be a number from 1 up, not {text:?}") }),
        }
    }
}

/// Writes bytes as lower-case hexadecimal digits: many at once, for ids name files, and are written with every write.
pub(crate) fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for piece in bytes.chunks(32) {
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(piece) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        f.write_str(std::str::from_utf8(&text[..2 * piece.len()]).expect("hexadecimal digits are ASCII"))?;
    }
    Ok(())
}

/// Reads exactly `N` bytes of lower- or upper-case hexadecimal digits.
pub(crate) fn parse_hex<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], InvalidId> {
    let invalid = || InvalidId { what, problem: format!("must be {} hexadecimal digits, not {text:?}", 2 * N) };
    if text.len() != 2 * N || !text.is_ascii() {
        return Err(invalid());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).ok_or_else(invalid);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).expect("two hexadecimal digits fit a byte");
    }
    Ok(bytes)
}

/// Declares an identifier made of `$n` bytes: hexadecimal for people and in JSON, plain bytes in binary formats.
macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $n:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $n]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $crate::ids::write_hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = $crate::ids::InvalidId;

            fn from_str(text: &str) -> Result<Self, $crate::ids::InvalidId> {
                $crate::ids::parse_hex::<$n>($what, text).map($name)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; $n]>::deserialize(deserializer).map($name)
                }
            }
        }
    };
}
pub(crate) use hex_id;

hex_id! {
    /// Minted once, when a cluster is formed; frames and files of another cluster are refused by it.
    ClusterId, 16, "cluster id"
}

hex_id! {
    /// Made when a data directory is formatted. A replica whose disk was swapped has another one and may not vote.
    DiskId, 16, "disk id"
}

/// The hashed id of a database: the only name of it on disk and between replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatabaseId(pub crate::Digest);

impl DatabaseId {
    /// The id of the catalogue, which exists from the start in every cluster.
    #[must_use]
    pub fn catalogue() -> DatabaseId {
        static CATALOGUE: LazyLock<DatabaseId> = LazyLock::new(|| DatabaseId::derive(&DatabaseName::catalogue(), ""));
        *CATALOGUE
    }

    /// SHA-256 over a domain tag, the name, and what makes the creating request unique (its idempotency key, or the
    /// file id that a raw client chose), so that a name that is dropped and made again has a new id.
    #[must_use]
    pub fn derive(name: &DatabaseName, unique: &str) -> DatabaseId {
        let mut hasher = Hasher::new();
        hasher.update(b"d3b database id v1\0");
        hasher.update(name.as_str().as_bytes());
        hasher.update(b"\0");
        hasher.update(unique.as_bytes());
        DatabaseId(hasher.finish())
    }
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DatabaseId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse().map(DatabaseId)
    }
}

/// Declares an identifier that is a validated text.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks the text.
            ///
            /// # Errors
            /// Says which rule the text breaks.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                $check(&text)?;
                Ok($name(text))
            }

            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                $name::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $name::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id! {
    /// A user-chosen database name: 1 to 64 of letters, digits, `.`, `_`, `-`, not starting with `.`.
    DatabaseName, check_database_name
}

impl DatabaseName {
    /// The reserved name of the catalogue.
    pub const CATALOGUE: &'static str = "schemas";

    /// The name of the catalogue database.
    #[must_use]
    pub fn catalogue() -> DatabaseName {
        DatabaseName(Self::CATALOGUE.to_owned())
    }

    /// Whether this is the catalogue.
    #[must_use]
    pub fn is_catalogue(&self) -> bool {
        self.0 == Self::CATALOGUE
    }
}

fn check_database_name(text: &str) -> Result<(), InvalidId> {
    let invalid = |problem: String| Err(InvalidId { what: "database name", problem });
    if text.is_empty() {
        return invalid("must not be empty".to_owned());
    }
    if text.len() > 64 {
        return invalid(format!("must have at most 64 characters, not {}", text.chars().count()));
    }
    if text.starts_with('.') {
        return invalid("must not start with a dot".to_owned());
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        Some(c) => invalid(format!("may hold ASCII letters, digits, '.', '_' and '-' only, not {c:?}")),
        None => Ok(()),
    }
}

text_id! {
    /// Names a media file within its database: 1 to 255 bytes of UTF-8 without control characters.
    ///
    /// It is a key in a table, never a path: on disk a file is named by its digest.
    FileId, check_file_id
}

fn check_file_id(text: &str) -> Result<(), InvalidId> {
    let invalid = |problem: String| Err(InvalidId { what: "file_id", problem });
    if text.is_empty() {
        return invalid("must not be empty".to_owned());
    }
    if text.len() > 255 {
        return invalid(format!("must have at most 255 bytes, not {}", text.len()));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => invalid(format!("must not hold control characters such as {c:?}")),
        None => Ok(()),
    }
}

text_id! {
    /// Names one request for exactly-once execution: 1 to 128 printable ASCII characters; a UUIDv7 is advised.
    IdempotencyKey, check_idempotency_key
}

impl IdempotencyKey {
    /// The moment that a UUIDv7 key carries, in milliseconds since 1970; `None` for keys of any other form.
    #[must_use]
    pub fn uuid_v7_time_ms(&self) -> Option<u64> {
        let uuid = uuid::Uuid::try_parse(&self.0).ok()?;
        if uuid.get_version_num() != 7 {
            return None;
        }
        let bytes = uuid.as_bytes();
        Some(bytes[..6].iter().fold(0, |time, byte| (time << 8) | u64::from(*byte)))
    }
}

fn check_idempotency_key(text: &str) -> Result<(), InvalidId> {
    let invalid = |problem: &str| Err(InvalidId { what: "idempotency key", problem: problem.to_owned() });
    if text.is_empty() {
        return invalid("must not be empty");
    }
    if text.len() > 128 {
        return invalid("must have at most 128 characters");
    }
    if !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return invalid("may hold printable ASCII characters only");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_name(text: &str, expected: bool) {
        assert_eq!(DatabaseName::new(text).is_ok(), expected, "{text:?}");
    }

    #[test]
    fn database_names() {
        check_name("shop", true);
        check_name("a.b_c-9", true);
        check_name(&"a".repeat(64), true);
        check_name(&"a".repeat(65), false);
        for bad in ["", ".hidden", "..", "a/b", "a\\b", "a b", "a\n", "caf\u{e9}", "a\0"] {
            check_name(bad, false);
        }
    }

    #[test]
    fn file_ids_are_text_without_controls() {
        assert!(FileId::new("../../etc/passwd").is_ok(), "a file id is a key, not a path");
        assert!(FileId::new("k\u{e4}tzchen.jpg").is_ok());
        for bad in ["", "a\nb", "a\u{7f}", &"x".repeat(256)] {
            assert!(FileId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_uuid_v7_tells_its_time() {
        let key = IdempotencyKey::new("0199f0c2-0000-7000-8000-000000000000").unwrap();
        assert_eq!(key.uuid_v7_time_ms(), Some(0x0199_f0c2_0000));
        assert_eq!(IdempotencyKey::new("order 17").unwrap().uuid_v7_time_ms(), None);
    }

    #[test]
    fn hexadecimal_round_trip() {
        let id = ClusterId([0xab; 16]);
        assert_eq!(id.to_string().parse::<ClusterId>().unwrap(), id);
        for bad in ["", "ab", "zz".repeat(16).as_str(), "ab".repeat(17).as_str()] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_id_of_a_database_depends_on_name_and_request() {
        let shop = DatabaseName::new("shop").unwrap();
        assert_eq!(DatabaseId::derive(&shop, "k1"), DatabaseId::derive(&shop, "k1"));
        assert_ne!(DatabaseId::derive(&shop, "k1"), DatabaseId::derive(&shop, "k2"));
    }
}
