//! Bringing the files of an archive to one slot, with an engine of their own.

use std::path::Path;

use d3b::{BlobReference, Code, Digest, Problem, Slot};
use d3b_engine::restore::{RestoreManifest, RestoredDatabase};
use d3b_engine::{Blobs as _, Engine, Fatal, LogEntry, SnapshotError};
use d3b_paxos::types::Record;

use super::{Unpacked, records};
use crate::entries::log_entry;
use crate::handle::io_problem;
use crate::media::{BlobStore, Kept};

/// Which state of an archive is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The last one that its log tells of: that of the first archive, if there are two.
    End,
    /// That after a slot.
    Slot(u64),
    /// The last one at a log time, in milliseconds since 1970.
    Time(u64),
}

/// Files that stand at one slot, in the blob store.
pub(crate) struct Restored {
    pub(crate) manifest: RestoreManifest,
    /// The blob that lists them.
    pub(crate) reference: BlobReference,
    /// The log time of the slot.
    pub(crate) time_ms: u64,
    /// All of them, the list included.
    pub(crate) kept: Vec<Kept>,
}

/// Applies the archive's log up to what is wanted, and makes blobs of what comes of it. Blocks.
///
/// # Errors
/// The archive does not reach there, or lacks what is needed on the way; or this replica has no room.
pub(crate) fn replay(unpacked: &Unpacked, wanted: Wanted, store: &BlobStore) -> Result<Restored, Problem> {
    let log = Log { unpacked };
    let (slot, time_ms) = log.find(wanted)?;
    let mut engine = Engine::open(&unpacked.databases(), d3b_engine::Options::default()).map_err(unusable)?;
    if engine.resume_after().0 != unpacked.header.from {
        return Err(damaged("its catalogue stands at another slot than its header says"));
    }
    log.each(slot, &mut |records| apply(&mut engine, records, unpacked))?;
    if engine.applied() != slot {
        return Err(damaged("its log has gaps"));
    }
    let mut media = std::collections::BTreeMap::new();
    let mut gather = |reference: BlobReference| {
        media.insert(reference.digest, reference);
    };
    engine.media(&mut gather).map_err(unusable)?;
    let media: Vec<BlobReference> = media.into_values().collect();
    let missing = media.iter().filter(|reference| unpacked.path(&reference.digest).is_none()).count();
    if missing > 0 {
        let detail = format!(
            "at slot {slot} there were {missing} media files which no archive has: they were deleted before the later \
             backup was taken"
        );
        return Err(Problem::new(Code::NotFound, detail).with_hint("another slot may have all of its files"));
    }
    Collecting { unpacked, store, kept: Vec::new() }.collect(&mut engine, media, slot, time_ms)
}

fn damaged(problem: &str) -> Problem {
    Problem::new(Code::DigestMismatch, format!("the backup is damaged: {problem}")).with_hint("nothing was restored")
}

/// The replica itself is fine: what failed worked on files of the archive only.
fn unusable(fatal: Fatal) -> Problem {
    match fatal {
        Fatal::Execution { slot, execution, .. } => Problem::new(
            Code::BadRequest,
            format!("the backup's log must be applied from slot {slot} on with execution version {execution}"),
        )
        .with_hint("restore it with the version of d3b that took it"),
        Fatal::Io { source, .. } => io_problem(source),
        other => {
            let text = crate::applier::describe(&other);
            Problem::new(Code::DigestMismatch, format!("the backup cannot be used: {text}"))
                .with_hint("nothing was restored")
        }
    }
}

fn apply(engine: &mut Engine, records: &[Record], unpacked: &Unpacked) -> Result<(), Problem> {
    let last = records.last().map_or(engine.applied(), |record| record.slot);
    while engine.applied() < last {
        let applied = engine.applied();
        let rest = records.iter().filter(|record| record.slot > applied);
        let entries: Vec<LogEntry<'_>> = rest.map(log_entry).collect();
        let progress = engine.apply(&entries, unpacked).map_err(unusable)?;
        if let Some((slot, blob)) = progress.needs_blob {
            let detail = format!(
                "slot {slot} needs a file that no archive has, of {} bytes, SHA-256 {}",
                blob.size, blob.digest
            );
            return Err(Problem::new(Code::NotFound, detail)
                .with_hint(format!("slots up to {} can be restored", slot.previous())));
        }
    }
    Ok(())
}

/// The records that were unpacked.
struct Log<'a> {
    unpacked: &'a Unpacked,
}

impl Log<'_> {
    /// Shows the records behind the files, in order and up to a slot, in stretches.
    fn each(&self, upto: Slot, visit: &mut dyn FnMut(&[Record]) -> Result<(), Problem>) -> Result<(), Problem> {
        let mut next = self.unpacked.header.from + 1;
        for (first, (last, path)) in &self.unpacked.log {
            if *last < next || *first > upto.0 {
                continue;
            }
            if *first > next {
                return Err(damaged("its log has gaps"));
            }
            let bytes = std::fs::read(path).map_err(io_problem)?;
            let mut records = records::decode(&bytes, *first, *last).map_err(|problem| damaged(&problem))?;
            records.retain(|record| (next..=upto.0).contains(&record.slot.0));
            visit(&records)?;
            next = last + 1;
        }
        Ok(())
    }

    fn last(&self) -> Slot {
        let lasts = self.unpacked.log.values().map(|(last, _)| *last);
        Slot(lasts.max().unwrap_or_default().max(self.unpacked.header.slot))
    }

    /// The slot that is wanted, and its log time.
    fn find(&self, wanted: Wanted) -> Result<(Slot, u64), Problem> {
        let header = &self.unpacked.header;
        let (least, last) = (header.slot_min(), self.last());
        let upto = match wanted {
            Wanted::End => Slot(header.slot),
            Wanted::Slot(slot) if (least..=last.0).contains(&slot) => Slot(slot),
            Wanted::Slot(slot) => {
                let detail = format!("slot {slot} cannot be restored: the archive reaches from slot {least} to {last}");
                return Err(Problem::new(Code::BadRequest, detail)
                    .with_hint("an earlier backup reaches further back, --log with a later one further on"));
            }
            Wanted::Time(_) => last,
        };
        // Log time rises, but for entries that have none.
        let (mut time_ms, mut found, mut least_ms) = (0, None, 0);
        self.each(upto, &mut |records| {
            for record in records {
                time_ms = record.entry.stamp.time_ms.max(time_ms);
                if record.slot.0 == least {
                    least_ms = time_ms;
                }
                if !matches!(wanted, Wanted::Time(wanted) if time_ms > wanted) {
                    found = Some((record.slot, time_ms));
                }
            }
            Ok(())
        })?;
        // Nothing lies behind the files where the archive was taken of a cluster at rest.
        if time_ms == 0 {
            (time_ms, least_ms) = (header.time_ms, header.time_ms);
            found =
                (!matches!(wanted, Wanted::Time(wanted) if wanted < time_ms)).then_some((Slot(header.slot), time_ms));
        }
        match found {
            Some((slot, time_ms)) if slot.0 >= least => Ok((slot, time_ms)),
            Some(_) | None => {
                let [from, to] = [least_ms, time_ms].map(crate::time::rfc3339);
                let detail = format!("that time cannot be restored: the archive reaches from {from} to {to}");
                Err(Problem::new(Code::BadRequest, detail).with_hint("an earlier backup reaches further back"))
            }
        }
    }
}

/// Makes blobs of files.
struct Collecting<'a> {
    unpacked: &'a Unpacked,
    store: &'a BlobStore,
    kept: Vec<Kept>,
}

impl Collecting<'_> {
    fn collect(
        mut self,
        engine: &mut Engine,
        media: Vec<BlobReference>,
        slot: Slot,
        time_ms: u64,
    ) -> Result<Restored, Problem> {
        let source = engine.begin_snapshot().map_err(unusable)?;
        let mut pace = |bytes| self.store.room()?.for_file(bytes);
        let copies = self.unpacked.copies();
        let path = copies.join("catalogue");
        let (_, listed) = source.copy_catalogue(&path, &mut pace).map_err(uncopied)?;
        let catalogue = self.import(&path)?;
        let mut databases = Vec::new();
        for one in listed {
            let path = copies.join(one.id().to_string());
            let mut pace = |bytes| self.store.room()?.for_file(bytes);
            let copied = source.copy(&one, &path, |_| false, &mut pace).map_err(uncopied)?;
            let file = self.import(&path)?;
            databases.push(RestoredDatabase { id: copied.id, name: copied.name, file });
        }
        for reference in &media {
            let path = self.unpacked.path(&reference.digest).expect("it was looked for");
            if self.import(&path)? != *reference {
                return Err(damaged("a media file has another size than its database says"));
            }
        }
        let cluster = self.unpacked.header.cluster.clone();
        let manifest = RestoreManifest { cluster, slot, catalogue, databases, media };
        let bytes = manifest.encode();
        self.kept.push(self.store.keep(&Digest::of(&bytes)));
        let write = || -> std::io::Result<BlobReference> {
            let mut writer = self.store.writer(bytes.len() as u64)?;
            writer.write(&bytes)?;
            writer.finish()
        };
        let reference = write().map_err(io_problem)?;
        Ok(Restored { manifest, reference, time_ms, kept: self.kept })
    }

    fn import(&mut self, path: &Path) -> Result<BlobReference, Problem> {
        let (reference, kept) = self.store.import(path, &mut |_| Ok(())).map_err(io_problem)?;
        self.kept.push(kept);
        Ok(reference)
    }
}

fn uncopied(error: SnapshotError) -> Problem {
    match error {
        SnapshotError::Io { source, .. } | SnapshotError::Abandoned(source) => io_problem(source),
        other => damaged(&crate::applier::describe(&other)),
    }
}
