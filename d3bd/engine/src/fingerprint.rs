//! The chain of effects that replicas compare.

/// A database's chain of effects so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);
