//! Snapshots: a replica that needs what a peer's log does not hold any more asks that peer for one, fetches it, and
//! starts again with it; whoever is asked takes one.

use d3b::api::CatchingUp;
use d3b::{BlobReference, Digest, ReplicaId, Slot};
use d3b_paxos::Storage;
use d3b_paxos::types::Ticks;

use super::{Driver, Effect, Stage};
use crate::log::Proof;
use crate::peer::PeerMessage;

/// Whoever was asked for a snapshot, or fetches one and gets nowhere, is given so long.
const SNAPSHOT_PATIENCE: Ticks = Ticks(30_000);

/// A request that was not answered by a snapshot is made again after so long.
const ASK_INTERVAL: Ticks = Ticks(1_000);

/// How far a replica has come with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatchUp {
    /// Who gives it.
    pub from: ReplicaId,
    /// Bytes that are here, and of how many; zero while it is being taken.
    pub progress: (u64, u64),
    /// When to begin anew, if nothing moves.
    deadline: Ticks,
    /// When to ask again, if there is no answer, or one that says "not now".
    ask_at: Ticks,
    /// What is being fetched.
    manifest: Option<Digest>,
    /// Whether it replaces what this replica has, however far that is.
    rebuild: bool,
}

impl CatchUp {
    /// The same in the words of the API.
    #[must_use]
    pub fn told(&self) -> CatchingUp {
        CatchingUp { from: self.from.0, bytes: self.progress.0, of: self.progress.1 }
    }
}

impl<S: Storage + Clone, D: Proof> Driver<S, D> {
    /// This replica needs a snapshot.
    pub(super) fn begin_catch_up(&mut self, from: ReplicaId, rebuild: bool) {
        let now = self.now.ticks;
        let ask_at = Ticks(now.0 + ASK_INTERVAL.0);
        // One that was begun for want of the log says nothing of a rebuild, and would not be gone on with.
        if let Some(under_way) = self.catch_up.as_mut().filter(|it| now < it.deadline && (it.rebuild || !rebuild)) {
            let waits = under_way.from == from && under_way.manifest.is_none() && now >= under_way.ask_at;
            if waits {
                under_way.ask_at = ask_at;
                self.effects.push(Effect::Send { to: from, message: PeerMessage::SnapshotRequest });
            }
            return;
        }
        tracing::info!(peer = %from, "asks for a snapshot");
        let deadline = Ticks(now.0 + SNAPSHOT_PATIENCE.0);
        self.catch_up = Some(CatchUp { from, progress: (0, 0), deadline, ask_at, manifest: None, rebuild });
        self.effects.push(Effect::Send { to: from, message: PeerMessage::SnapshotRequest });
    }

    /// A peer needs a snapshot.
    pub(super) fn handle_snapshot_request(&mut self, from: ReplicaId) {
        #[cfg(feature = "planted-bugs")]
        if let Stage::Quarantined(quarantine) = &self.stage
            && self.breaks(super::Planted::QuarantinedGives)
        {
            let configuration = quarantine.configuration.clone();
            return self.effects.push(Effect::TakeSnapshot { to: from, configuration });
        }
        let Some(replica) = self.replica().filter(|_| self.removed.is_none()) else {
            let message = PeerMessage::SnapshotRefused { reason: "this replica takes no part".to_owned() };
            self.effects.push(Effect::Send { to: from, message });
            return;
        };
        let configuration = replica.configuration().clone();
        self.effects.push(Effect::TakeSnapshot { to: from, configuration });
    }

    /// A snapshot that a peer asked for is there, or not.
    pub(super) fn answer_snapshot_request(&mut self, to: ReplicaId, result: Result<(Slot, BlobReference), String>) {
        let message = match result {
            // What was found wrong with this replica while the copies were made is in the copies.
            Ok(_) if !matches!(self.stage, Stage::Running(_)) => {
                PeerMessage::SnapshotRefused { reason: "this replica takes no part".to_owned() }
            }
            Ok((slot, manifest)) => PeerMessage::SnapshotReady { slot, digest: manifest.digest, size: manifest.size },
            Err(reason) => PeerMessage::SnapshotRefused { reason },
        };
        self.effects.push(Effect::Send { to, message });
    }

    /// A peer has a snapshot for this replica.
    pub(super) fn handle_snapshot_ready(&mut self, from: ReplicaId, slot: Slot, manifest: BlobReference) {
        let now = self.now.ticks;
        let applied = self.applied;
        let Some(catch_up) = self.catch_up.as_mut().filter(|it| it.from == from && it.manifest.is_none()) else {
            return;
        };
        if slot <= applied && !catch_up.rebuild {
            // The log has brought this replica on meanwhile.
            self.catch_up = None;
            return;
        }
        if let Stage::Quarantined(quarantine) = &self.stage
            && slot < quarantine.base
        {
            // The log goes on with records behind a gap then. A later one is taken when nobody uses this one any more.
            tracing::warn!(peer = %from, %slot, base = %quarantine.base, "a snapshot ends before the log begins");
            return self.fail_rebuild();
        }
        catch_up.manifest = Some(manifest.digest);
        catch_up.deadline = Ticks(now.0 + SNAPSHOT_PATIENCE.0);
        self.effects.push(Effect::FetchSnapshot { from, manifest });
    }

    /// A peer cannot give one.
    pub(super) fn handle_snapshot_refused(&mut self, from: ReplicaId, reason: &str) {
        let Some(refused) = self.catch_up.as_ref().filter(|it| it.from == from && it.manifest.is_none()) else {
            return;
        };
        tracing::warn!(peer = %from, reason, "a peer cannot give a snapshot");
        // The leader says again and again that this replica is behind, and is asked again, though not as often.
        if refused.rebuild {
            // It may be no member any more; if it is one, it tells again what it holds.
            self.applied_by.remove(&from);
            self.fail_rebuild();
        }
    }

    /// Whoever was asked gives nothing that a replica can be rebuilt from. The next one is asked when the time that this
    /// one had to answer is over: where all refuse, they are not asked more often than that.
    fn fail_rebuild(&mut self) {
        if let Some(catch_up) = &mut self.catch_up {
            catch_up.manifest = None;
            catch_up.deadline = catch_up.ask_at;
        }
    }

    /// Some more of it is here.
    pub(super) fn handle_snapshot_progress(&mut self, manifest: Digest, progress: (u64, u64)) {
        let now = self.now.ticks;
        if let Some(catch_up) = self.catch_up.as_mut().filter(|it| it.manifest == Some(manifest)) {
            catch_up.progress = progress;
            catch_up.deadline = Ticks(now.0 + SNAPSHOT_PATIENCE.0);
        }
    }

    /// All of it is here and can be installed, or it could not be fetched.
    pub(super) fn handle_snapshot_staged(&mut self, manifest: Digest, result: Result<Slot, String>) {
        let Some(catch_up) = self.catch_up.as_ref().filter(|it| it.manifest == Some(manifest)) else { return };
        match result {
            Ok(slot) if slot > self.applied || catch_up.rebuild => {
                tracing::info!(%slot, peer = %catch_up.from, "a snapshot is here; starts again with it");
                self.effects.push(Effect::InstallSnapshot { manifest });
            }
            Ok(_) => self.catch_up = None,
            Err(reason) => {
                tracing::warn!(peer = %catch_up.from, reason, "a snapshot could not be fetched");
                if catch_up.rebuild { self.fail_rebuild() } else { self.end_catch_up() }
            }
        }
    }

    /// It has failed; a replica that is behind its leader hears so again, one that is to be rebuilt asks the next peer.
    fn end_catch_up(&mut self) {
        let Some(failed) = self.catch_up.take() else { return };
        if failed.rebuild {
            self.rebuild_from_after(failed.from);
        }
    }

    /// Asks the member after this one for a snapshot, whose data the majority agrees with as far as is known.
    pub(super) fn rebuild_from_after(&mut self, after: ReplicaId) {
        let others = self.healthy_members();
        let next = others.iter().find(|id| **id > after).or(others.first()).copied();
        if let Some(from) = next {
            self.begin_catch_up(from, true);
        }
    }

    /// Gives up on whoever does not move.
    pub(super) fn expire_catch_up(&mut self) {
        if self.catch_up.as_ref().is_some_and(|it| self.now.ticks >= it.deadline) {
            self.end_catch_up();
        }
    }
}
