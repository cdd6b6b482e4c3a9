//! What is logged of connections that are refused: who, and why, and not again and again.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use d3b::ReplicaId;

use super::handshake::HandshakeError;

/// How often the same complaint is logged.
const INTERVAL: Duration = Duration::from_secs(10);
/// How many complaints about strangers are logged within that time. They can come from anywhere, and must neither fill the
/// log nor keep a replica's name out of it.
const STRANGERS_MAX: usize = 32;

/// Whom a complaint is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    /// Somebody who has not proved to be a replica, at an address.
    Stranger(IpAddr),
    /// Nobody in particular.
    Anybody,
    /// A replica.
    Replica(ReplicaId),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Stranger(address) => write!(f, "a stranger at {address}"),
            Who::Anybody => write!(f, "anybody"),
            Who::Replica(id) => write!(f, "replica {id}"),
        }
    }
}

/// The complaints of the last few seconds.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    recent: BTreeMap<(Who, &'static str), Instant>,
}

impl Complaints {
    /// Logs a complaint, unless it was logged a moment ago.
    pub(super) fn complain(&mut self, who: Who, address: Option<SocketAddr>, error: &HandshakeError) {
        if !self.is_due(who, error.kind(), Instant::now()) {
            return;
        }
        match address {
            Some(address) => tracing::warn!(peer = %who, %address, %error, "a connection between replicas was refused"),
            None => tracing::warn!(peer = %who, %error, "a connection between replicas was refused"),
        }
    }

    fn is_due(&mut self, who: Who, kind: &'static str, now: Instant) -> bool {
        self.recent.retain(|_, at| now.duration_since(*at) < INTERVAL);
        let is_stranger = |who: &Who| matches!(who, Who::Stranger(_));
        let strangers = self.recent.keys().filter(|(who, _)| is_stranger(who)).count();
        if is_stranger(&who) && strangers >= STRANGERS_MAX {
            return false;
        }
        // Of replicas there are a few, and of kinds too.
        match self.recent.entry((who, kind)) {
            std::collections::btree_map::Entry::Occupied(_) => false,
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_fill_neither_the_log_nor_the_place_of_a_replica() {
        let mut complaints = Complaints::default();
        let now = Instant::now();
        let logged = |n: u8| complaints.is_due(Who::Stranger(IpAddr::from([10, 0, 0, n])), "key", now);
        assert_eq!((0..=255).map(logged).filter(|due| *due).count(), STRANGERS_MAX);
        let replica = Who::Replica(ReplicaId(2));
        assert!(complaints.is_due(replica, "key", now));
        assert!(!complaints.is_due(replica, "key", now + INTERVAL / 2));
        assert!(complaints.is_due(replica, "length", now));
        assert!(complaints.is_due(replica, "key", now + INTERVAL));
    }
}
