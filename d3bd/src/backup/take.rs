//! Taking a backup: copies first, then one stream.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::time::{Instant, SystemTime};

use d3b::archive::{self, ArchiveWriter, Header, LogRange};
use d3b::{BlobReference, Code, Digest, Hasher, Problem, Slot};
use d3b_engine::snapshot::Copied;
use d3b_engine::{SnapshotError, command};
use d3b_paxos::types::{Payload, Record};

use super::records;
use crate::catch_up::{Begun, PAUSE_MAX};
use crate::entries::blobs_of;
use crate::handle::io_problem;
use crate::log::{LogError, LogReader};
use crate::media::{BlobStore, Kept};
use crate::snapshot::Temporary;

/// How much of the log is in one entry of the archive, unless one record is larger.
const LOG_BYTES: usize = 4 << 20;
/// Bytes that are digested at a time.
const PIECE: usize = 1 << 20;

/// Whose backup it is.
pub(crate) struct About {
    pub(crate) cluster: String,
    pub(crate) members: Vec<archive::Member>,
}

/// What a backup needs of the world.
pub(crate) struct World<'a> {
    pub(crate) log: &'a LogReader,
    pub(crate) blobs: &'a BlobStore,
    /// Gets a file that is not here from a peer.
    pub(crate) fetch: &'a dyn Fn(BlobReference) -> Result<(), String>,
    /// What is applied by now.
    pub(crate) applied: &'a dyn Fn() -> Slot,
    /// Whether nobody wants it any more.
    pub(crate) abandoned: &'a dyn Fn() -> bool,
}

/// A backup that is ready to be streamed. As long as it lives its files and the log stay.
pub(crate) struct Prepared {
    pub(crate) header: Header,
    files: Vec<Temporary>,
    _kept: Vec<Kept>,
    _begun: Begun,
    log: LogReader,
    blobs: BlobStore,
}

/// Makes all copies. Blocks.
///
/// # Errors
/// This replica does not have everything whole, has no room for it, or nobody wants it any more.
pub(crate) fn prepare(begun: Begun, about: About, world: &World<'_>) -> Result<Prepared, Problem> {
    let source = &begun.source;
    let mut copies = Copies { world, since: Instant::now(), files: Vec::new(), databases: Vec::new() };
    let listed = copies.add(|to, pace| source.copy_catalogue(to, pace))?;
    for one in &listed {
        copies.add(|to, pace| source.copy(one, to, |_| false, pace).map(|copied| (copied, ())))?;
    }
    let Copies { files, databases, .. } = copies;
    // Everything that was copied is applied, and what is applied is in the log.
    let from = source.slot();
    let slot = (world.applied)();
    let mut media = BTreeMap::new();
    for (file, database) in files.iter().zip(&databases) {
        let gathered = d3b_engine::media_of_file(&file.0, &mut |reference| {
            media.insert(reference.digest, reference.size);
        });
        gathered.map_err(|error| internal(format!("the media of {} cannot be listed: {error}", database.name)))?;
    }
    let mut kept = Vec::new();
    let mut blobs = Vec::new();
    for (digest, size) in &media {
        kept.push(world.blobs.keep(digest));
        let reference = BlobReference { digest: *digest, size: *size };
        if !world.blobs.contains(digest) {
            (world.fetch)(reference).map_err(|error| {
                Problem::new(Code::NotReady, format!("a media file is on no replica in reach: {error}"))
                    .with_hint("see GET /v1/cluster for who is reachable")
            })?;
        }
        blobs.push(reference.into());
    }
    let scanned = scan(world, from, slot, |reference| {
        if media.insert(reference.digest, reference.size).is_none() {
            kept.push(world.blobs.keep(&reference.digest));
            if world.blobs.contains(&reference.digest) {
                blobs.push(reference.into());
            }
        }
    })?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let header = Header {
        format: archive::FORMAT,
        d3b: env!("CARGO_PKG_VERSION").to_owned(),
        execution: d3b_engine::EXECUTION,
        cluster: about.cluster,
        time: crate::time::rfc3339(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        slot: slot.0,
        time_ms: scanned.time_ms,
        from: from.0,
        members: about.members,
        databases,
        blobs,
        log: LogRange { first: scanned.first.0, last: slot.0 },
    };
    let (log, blobs) = (world.log.clone(), world.blobs.clone());
    Ok(Prepared { header, files, _kept: kept, _begun: begun, log, blobs })
}

fn internal(detail: String) -> Problem {
    Problem::new(Code::NotReady, detail).with_hint("ask another replica")
}

/// The copies that have been made so far.
struct Copies<'a> {
    world: &'a World<'a>,
    since: Instant,
    files: Vec<Temporary>,
    databases: Vec<archive::Database>,
}

impl Copies<'_> {
    fn add<T>(
        &mut self,
        copy: impl FnOnce(&Path, d3b_engine::snapshot::Pace<'_>) -> Result<(Copied, T), SnapshotError>,
    ) -> Result<T, Problem> {
        let to = Temporary::new(self.world.blobs);
        let (world, since) = (self.world, &mut self.since);
        let mut pace = |bytes| {
            world.blobs.room()?.for_file(bytes)?;
            if (world.abandoned)() {
                return Err(io::Error::other("nobody waits for the backup any more"));
            }
            std::thread::sleep(since.elapsed().min(PAUSE_MAX));
            *since = Instant::now();
            Ok(())
        };
        let (copied, rest) = copy(&to.0, &mut pace).map_err(|error| match error {
            SnapshotError::Abandoned(error) | SnapshotError::Io { source: error, .. } => io_problem(error),
            other => internal(crate::applier::describe(&other)),
        })?;
        let file = digest(&to.0, &mut pace).map_err(io_problem)?;
        self.databases.push(archive::Database {
            name: copied.name.to_string(),
            id: copied.id.to_string(),
            slot: copied.slot.0,
            fingerprint: copied.fingerprint.to_string(),
            file,
        });
        self.files.push(to);
        Ok(rest)
    }
}

fn digest(path: &Path, pace: &mut dyn FnMut(u64) -> io::Result<()>) -> io::Result<archive::File> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            let size = hasher.length();
            return Ok(archive::File { sha256: hasher.finish(), size });
        }
        hasher.update(&piece[..read]);
        pace(0)?;
    }
}

struct Scanned {
    first: Slot,
    time_ms: u64,
}

/// Looks through the log for files that it names.
fn scan(world: &World<'_>, from: Slot, slot: Slot, mut named: impl FnMut(BlobReference)) -> Result<Scanned, Problem> {
    let mut scanned = Scanned { first: world.log.base().max(Slot(1)).min(from.next()), time_ms: 0 };
    let mut next = scanned.first;
    while next <= slot {
        let records = match world.log.records(next, slot, LOG_BYTES) {
            Ok(records) => records,
            // It was being cut when the backup began.
            Err(LogError::Compacted { base, .. }) if base <= from.next() => {
                scanned.first = base;
                next = base;
                continue;
            }
            Err(error) => return Err(internal(format!("the log cannot be read: {error}"))),
        };
        for record in &records {
            scanned.time_ms = scanned.time_ms.max(record.entry.stamp.time_ms);
            // Most records name no file, and to know that is cheap.
            if names_files(record) {
                blobs_of(record, world.blobs).into_iter().for_each(|(_, reference)| named(reference));
            }
        }
        let Some(last) = records.last() else {
            return Err(internal(format!("the log does not have slot {next}")));
        };
        next = last.slot.next();
    }
    Ok(scanned)
}

fn names_files(record: &Record) -> bool {
    match &record.entry.payload {
        Payload::Noop | Payload::Configuration(_) => false,
        Payload::Command(bytes) => command::decode(bytes).is_ok_and(|command| command.keyed.operation.blob().is_some()),
    }
}

impl Prepared {
    /// Writes the archive. Blocks.
    ///
    /// # Errors
    /// Something cannot be read or written; what was written has no end then.
    pub(crate) fn stream(mut self, to: impl Write) -> io::Result<()> {
        let mut writer = ArchiveWriter::begin(to, &self.header)?;
        // Each copy goes as soon as it is sent.
        for (database, file) in self.header.databases.iter().zip(self.files.drain(..)) {
            writer.database(database, &mut File::open(&file.0)?)?;
        }
        for file in &self.header.blobs {
            self.blob(&mut writer, file)?;
        }
        let mut next = Slot(self.header.log.first);
        let last = Slot(self.header.log.last);
        while next <= last {
            let records =
                self.log.records(next, last, LOG_BYTES).map_err(|error| io::Error::other(error.to_string()))?;
            let Some(end) = records.last().map(|record| record.slot) else {
                return Err(io::Error::other(format!("the log does not have slot {next}")));
            };
            writer.log(next.0, end.0, &records::encode(&records))?;
            next = end.next();
        }
        writer.finish()?.flush()
    }

    fn blob(&self, writer: &mut ArchiveWriter<impl Write>, file: &archive::File) -> io::Result<()> {
        let digest: Digest = file.sha256;
        let written = writer.blob(file, &mut self.blobs.open_file(&digest)?);
        if let Err(error) = &written
            && matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        {
            self.blobs.set_aside(&digest);
        }
        written
    }
}
