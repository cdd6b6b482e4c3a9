//! The upkeep of simulated replicas: syncing, cutting the log, and the blobs, which are fetched and dropped.

use std::collections::BTreeSet;

use d3b::{BlobReference, Digest, ReplicaId, Slot};
use d3bd::driver::Event;
use d3bd::entries::blob_of;

use super::machine::Machine;
use super::oracle::Violation;
use super::world::{Happening, World};

impl<M: Machine> World<'_, M> {
    pub(super) fn upkeep(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let time = self.time;
        let grace = if self.careless_sweep { 0 } else { self.scenario.grace_us };
        let (pinned, careless) = (self.pinned(id), self.careless_sweep);
        let node = self.node(id);
        let start = node.starts;
        let now = node.now(time).ticks;
        let Some(process) = &mut node.process else { return Ok(()) };
        if !process.paused {
            process.machine.checkpoint().map_err(Violation)?;
        }
        let paused = process.paused;
        if !paused {
            self.look_for_files(id)?;
            self.expire_offer(id);
            self.cut_if_due(id)?;
            self.scrub_if_due(id)?;
        }
        let node = self.node(id);
        let Some(process) = &mut node.process else { return Ok(()) };
        if !paused && process.driver.status().is_settled(now) {
            let referenced: BTreeSet<_> = process.machine.referenced().map_err(Violation)?.into_iter().collect();
            let mut logged = BTreeSet::new();
            node.disk.log.visit(process.machine.resume_after().next(), |record| {
                logged.extend(blob_of(record).map(|(_, reference)| reference.digest));
            });
            let needed = |digest: &Digest| {
                referenced.contains(digest) || !careless && (logged.contains(digest) || pinned.contains(digest))
            };
            node.disk.blobs.collect(needed, grace, time);
        }
        self.after(self.scenario.upkeep_us, Happening::Upkeep { at: id, start });
        Ok(())
    }

    /// Tells the driver how many files are missing here. After a start, and where a replica only learns, all of them are
    /// looked up; else those that are on their way are known.
    fn look_for_files(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let node = self.node(id);
        let Some(process) = &mut node.process else { return Ok(()) };
        let votes = process.driver.status().votes_here(id);
        // What was overwritten or deleted meanwhile is asked for in vain.
        let referenced: BTreeSet<Digest> = process.machine.referenced().map_err(Violation)?.into_iter().collect();
        process.wanted.retain(|digest| !node.disk.blobs.holds(digest) && referenced.contains(digest));
        let missing: Vec<Digest> = if process.look_up || !votes {
            referenced.into_iter().filter(|digest| !node.disk.blobs.holds(digest)).collect()
        } else {
            process.wanted.iter().copied().collect()
        };
        process.look_up &= !(missing.is_empty() && votes);
        let count = missing.len() as u64;
        let news = process.told_wanting.replace(count) != Some(count);
        for digest in missing {
            self.prefetch(id, BlobReference { digest, size: 8 })?;
        }
        if news { self.event(id, Event::Wanting(Some(count))) } else { Ok(()) }
    }

    /// Asks for a cut of the log, if it holds more than it has to.
    fn cut_if_due(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let Some(retain) = self.scenario.retain else { return Ok(()) };
        let offered = self.offered_slot(id);
        let Some(process) = &mut self.node(id).process else { return Ok(()) };
        let durable = process.machine.resume_after();
        let base = Slot(durable.0.saturating_sub(retain)).min(offered.unwrap_or(durable));
        if base <= process.cut {
            return Ok(());
        }
        process.cut = base;
        self.event(id, Event::CutDue(base))
    }

    /// Media that an applied entry names is fetched beside, from whoever has it.
    pub(super) fn prefetch(&mut self, id: ReplicaId, reference: BlobReference) -> Result<(), Violation> {
        let holders = self.nodes.values().filter(|node| node.id != id && node.disk.blobs.holds(&reference.digest));
        let holders: Vec<ReplicaId> = holders.map(|node| node.id).collect();
        if holders.is_empty() {
            return Ok(());
        }
        let from = *self.random.pick(&holders);
        self.fetch(id, from, reference, false)
    }

    pub(super) fn fetch(
        &mut self,
        id: ReplicaId,
        from: ReplicaId,
        reference: BlobReference,
        offered: bool,
    ) -> Result<(), Violation> {
        let time = self.time;
        let node = self.node(id);
        let start = node.starts;
        if offered && !node.full && node.disk.blobs.renew(&reference.digest, time) {
            return self.answer(id, Event::BlobFetched { from, reference, result: Ok(()) });
        }
        let Some(process) = &mut node.process else { return Ok(()) };
        if !process.fetching.insert((from, reference.digest)) {
            if offered {
                return self.answer(id, Event::BlobUnderWay { from, reference });
            }
        } else {
            let delay = 2 * self.network.delay() + self.random.around(2_000);
            self.after(delay, Happening::Fetched { at: id, start, from, reference, offered });
        }
        Ok(())
    }

    pub(super) fn fetched(
        &mut self,
        id: ReplicaId,
        from: ReplicaId,
        reference: BlobReference,
        offered: bool,
    ) -> Result<(), Violation> {
        let time = self.time;
        let flipped = self.flips_blobs && self.random.percent(30);
        let up = self.network.is_up((id, from), time) && self.network.is_up((from, id), time);
        let held = self.nodes[&from].process.is_some() && self.nodes[&from].disk.blobs.holds(&reference.digest);
        let node = self.node(id);
        let result = if !up || !held {
            Err("the connection failed".to_owned())
        } else if flipped {
            Err("the digest does not match".to_owned())
        } else if node.full {
            Err("the disk is full".to_owned())
        } else {
            node.disk.blobs.put(reference, time);
            Ok(())
        };
        if let Some(process) = &mut node.process {
            process.fetching.remove(&(from, reference.digest));
        }
        if offered { self.event(id, Event::BlobFetched { from, reference, result }) } else { Ok(()) }
    }
}
