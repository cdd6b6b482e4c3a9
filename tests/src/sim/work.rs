//! What a replica's disk and state machine do: writing the log, applying what was chosen.

use d3b::{ReplicaId, Slot};
use d3b_paxos::Storage;
use d3bd::driver::{ApplyReport, Event};
use d3bd::entries::{blob_of, log_entry};

use super::machine::Machine;
use super::oracle::{Violation, demand};
use super::snapshots::configuration_of;
use super::world::{Happening, World};

impl<M: Machine> World<'_, M> {
    // The log.

    pub(super) fn written(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let node = self.node(id);
        if node.fails_next_sync || node.full {
            // What a failed sync leaves is unknown; the process must not try again, and ends.
            let why = if node.full { "its disk is full" } else { "a sync failed" };
            node.fails_next_sync = false;
            self.note(500 + u64::from(id.0), |_| format!("{id} poisons itself: {why}"));
            self.crash(id, false)?;
            let delay = self.random.between(10_000, 1_000_000);
            self.after(delay, Happening::Start { at: id });
            return Ok(());
        }
        let Some(process) = &mut node.process else { return Ok(()) };
        let Some(batch) = process.writing.take() else { return Ok(()) };
        let proof = node.disk.log.write(&batch);
        let chosen = self.oracle.written(id, &batch)?;
        if let Some(ballot) = chosen.filter(|_| std::mem::take(&mut self.ambush)) {
            self.spring_ambush(ballot.replica)?;
        }
        self.event(id, Event::Durable(proof))
    }

    // The state machine.

    pub(super) fn apply_later(&mut self, id: ReplicaId) {
        let delay = self.random.around(self.scenario.apply_us);
        let start = self.node(id).starts;
        self.after(delay, Happening::Apply { at: id, start });
    }

    pub(super) fn apply(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let count = self.random.between(1, 20);
        let node = self.nodes.get_mut(&id).expect("a replica of this world");
        let Some(process) = node.process.as_mut().filter(|process| !process.paused) else {
            // It goes on where it was stopped.
            self.after(20_000, Happening::Apply { at: id, start: self.nodes[&id].starts });
            return Ok(());
        };
        let Some(end) = process.to_apply else { return Ok(()) };
        let next = process.machine.applied().next();
        let upto = end.min(Slot(next.0 + count - 1));
        let records = match node.disk.log.read(next, upto, usize::MAX) {
            Ok(records) => records,
            Err(error) => return self.lose(id, &error.message),
        };
        demand!(records.len() as u64 == upto.0 + 1 - next.0, "{id} is to apply {next} to {upto}, and lacks some of it");
        for record in &records {
            self.oracle.applies(id, record)?;
        }
        let entries: Vec<_> = records.iter().map(log_entry).collect();
        let progress = match process.machine.apply(&entries, &node.disk.blobs) {
            Ok(progress) => progress,
            Err(why) => return self.refuse_to_apply(id, &why),
        };
        let applied = process.machine.applied();
        let newest = entries.iter().filter(|entry| entry.command.is_some() && entry.slot <= applied);
        let newest = newest.map(|entry| entry.execution).max().unwrap_or(0);
        demand!(newest <= node.execution, "{id} applies an entry of version {newest}, and has {} only", node.execution);
        records.iter().filter_map(configuration_of).filter(|it| it.slot <= applied).for_each(|it| process.learn(&it));
        let finished = applied >= end;
        if finished {
            process.to_apply = None;
        }
        let report = ApplyReport::new(process.identity, applied, progress.applied, finished);
        let rotten = node.rotten;
        for (database, slot, chain) in report.fingerprints.iter().filter(|_| !rotten) {
            self.oracle.fingerprint(id, (*database, *slot), *chain)?;
        }
        let missing =
            records.iter().filter(|record| record.slot <= applied).filter_map(blob_of).map(|(_, reference)| reference);
        let missing: Vec<_> = missing.filter(|reference| !node.disk.blobs.holds(&reference.digest)).collect();
        process.wanted.extend(missing.iter().map(|reference| reference.digest));
        for reference in missing {
            self.prefetch(id, reference)?;
        }
        self.event(id, Event::Applied(report))?;
        if !finished {
            self.apply_later(id);
        }
        Ok(())
    }

    /// An entry that this build cannot apply stops it; the next process is a newer build.
    fn refuse_to_apply(&mut self, id: ReplicaId, why: &str) -> Result<(), Violation> {
        let newest = self.nodes.values().map(|node| node.execution).max().unwrap_or(1);
        demand!(self.node(id).execution < newest, "{id} cannot apply what was chosen: {why}");
        let why = why.to_owned();
        self.note(600 + u64::from(id.0), |_| format!("{id} stops: {why}"));
        self.crash(id, false)?;
        self.node(id).execution = newest;
        let delay = self.random.between(10_000, 500_000);
        self.after(delay, Happening::Start { at: id });
        Ok(())
    }
}
