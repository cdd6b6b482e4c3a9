//! The bytes of an entry: a command, versioned.
//!
//! They are encoded once, by the replica that took the request, and never again on their way through the log: every
//! replica decodes the same bytes.

use d3b::{KeyedOperation, ReplicaId};
use serde::{Deserialize, Serialize};

/// The first byte of every encoded command.
const VERSION: u8 = 1;

/// Which replica put a command into the log, so that it can find the request that waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The replica that took the request.
    pub replica: ReplicaId,
    /// Tells one run of its process from the next.
    pub incarnation: u64,
    /// Counts its requests.
    pub sequence: u64,
}

/// What an entry carries: an operation under its key, and where it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Who put it into the log.
    pub origin: Origin,
    /// What to do, and under which key.
    pub keyed: KeyedOperation,
}

/// Why bytes are not a command. An entry like that is refused the same way on every replica.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There is not even a version.
    #[error("the command is empty")]
    Empty,
    /// Another build's encoding.
    #[error("the command has version {0}, and only version {VERSION} is known")]
    Version(u8),
    /// The bytes behind the version are not what it promises.
    #[error("the command is malformed: {0}")]
    Malformed(postcard::Error),
    /// A command was read and bytes are left over.
    #[error("the command is followed by {0} stray bytes")]
    Trailing(usize),
}

/// The bytes of a command, for the log.
#[must_use]
pub fn encode(command: &Command) -> Vec<u8> {
    postcard::to_extend(command, vec![VERSION]).expect("a command is made of what postcard can write")
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// Anything else: another version, cut short, ids that are not well formed, bytes left over.
pub fn decode(bytes: &[u8]) -> Result<Command, DecodeError> {
    let (&version, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let (command, rest) = postcard::take_from_bytes(body).map_err(DecodeError::Malformed)?;
    if rest.is_empty() { Ok(command) } else { Err(DecodeError::Trailing(rest.len())) }
}

#[cfg(test)]
mod tests {
    use d3b::{Arguments, DatabaseName, Digest, IdempotencyKey, Operation, Statement, Value};

    use super::*;

    fn command() -> Command {
        Command {
            origin: Origin { replica: ReplicaId(2), incarnation: 7, sequence: 9 },
            keyed: KeyedOperation {
                key: IdempotencyKey::new("k1").unwrap(),
                request: Digest::of(b"request"),
                operation: Operation::Sql {
                    db: DatabaseName::new("shop").unwrap(),
                    statements: vec![Statement {
                        sql: "INSERT INTO t VALUES(?, ?)".to_owned(),
                        arguments: Arguments::Positional(vec![Value::Real(0.5), Value::Null]),
                        expect: None,
                    }],
                    deferred_foreign_keys: false,
                    media: None,
                },
            },
        }
    }

    #[test]
    fn a_command_survives_its_bytes() {
        assert_eq!(decode(&encode(&command())), Ok(command()));
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        let bytes = encode(&command());
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        assert_eq!(decode(&[]), Err(DecodeError::Empty));
        assert_eq!(decode(&[9, 1, 2]), Err(DecodeError::Version(9)));
        assert_eq!(decode(&[&bytes[..], b"x"].concat()), Err(DecodeError::Trailing(1)));
        for flip in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[flip] ^= 0xff;
            let _ = decode(&bytes);
        }
        assert!(decode(&[VERSION, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
