//! Events in the digest and in the story of a run.

use d3bd::driver::Event;
use d3bd::peer::PeerMessage;

use super::disk::Written;

/// Tells events apart in the digest.
pub(super) fn fact(event: &Event<Written>) -> u64 {
    match event {
        Event::Peer { from, .. } => u64::from(from.0) << 4,
        Event::ConnectionReset(_) => 1,
        Event::Durable(_) => 2,
        Event::ConfigurationPersisted(_) => 3,
        Event::Applied(report) => 4 | report.applied.0 << 8,
        Event::BlobFetched { .. } => 5,
        Event::BlobUnderWay { .. } => 9,
        Event::Write(_) => 6,
        Event::Read(_) => 7,
        Event::HandOver => 8,
        Event::MemberRequest { .. } => 10,
        Event::Wanting(_) => 11,
        Event::SnapshotTaken { .. } => 12,
        Event::SnapshotProgress { .. } => 13,
        Event::SnapshotStaged { .. } => 14,
        Event::Rebuild { .. } => 15,
        Event::ContentRead { .. } => 16 | 1 << 8,
        Event::CutDue(base) => 17 | base.0 << 8,
    }
}

/// An event in a line.
pub(super) fn describe(event: &Event<Written>) -> String {
    match event {
        Event::Peer { from, message: PeerMessage::Paxos(envelope) } => {
            format!("{from}: {}", shortened(&format!("{:?}", envelope.message)))
        }
        Event::Peer { from, message } => format!("{from}: {}", shortened(&format!("{message:?}"))),
        Event::Applied(report) => format!("applied up to {}", report.applied),
        Event::Write(request) => format!("write {:?}", request.ticket),
        Event::ConnectionReset(_)
        | Event::Durable(_)
        | Event::ConfigurationPersisted(_)
        | Event::BlobFetched { .. }
        | Event::BlobUnderWay { .. }
        | Event::Read(_)
        | Event::HandOver
        | Event::MemberRequest { .. }
        | Event::Wanting(_)
        | Event::SnapshotTaken { .. }
        | Event::SnapshotProgress { .. }
        | Event::SnapshotStaged { .. }
        | Event::Rebuild { .. }
        | Event::ContentRead { .. }
        | Event::CutDue(_) => shortened(&format!("{event:?}")),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(240) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
