//! The real engine on files in memory, as the state machine of a simulated replica.
//!
//! A killed process leaves its files as they are. A power cut takes from each write-ahead log an end of any length that
//! was not synced, be it in the middle of a page, and leaves noise there; it does so to every database by itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use d3b::{Arguments, DatabaseId, Digest, RowSink, SinkClosed, Slot, Statement, ValueRef};
use d3b_engine::scrub::{Pace, Scrubbed};
use d3b_engine::{Blobs, EXECUTION, Engine, LogEntry, Options, Progress, SnapshotSource};
use tempfile::TempDir;

use super::machine::{Audit, Content, Machine, file_value};
use super::random::Random;
use super::workload::{self, DATABASE, Register, TEMPORARY};

/// The files of one replica's databases.
#[derive(Debug)]
pub struct Files {
    directory: TempDir,
    generation: u32,
    synced: Synced,
}

/// The write-ahead logs, by their names, as they were when they were synced last.
type Synced = BTreeMap<String, Vec<u8>>;

impl Files {
    fn current(&self) -> PathBuf {
        self.directory.path().join(self.generation.to_string())
    }
}

/// The engine.
#[derive(Debug)]
pub struct Real {
    engine: Engine,
    directory: PathBuf,
    synced: Synced,
    /// How far everything was applied when it was last synced.
    synced_at: Option<Slot>,
    /// What the state referred to when so much of the log was applied.
    referenced: RefCell<Option<(Slot, Vec<Digest>)>>,
}

/// A directory in memory where there is one.
fn temporary_directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made =
        if memory.is_dir() { TempDir::with_prefix_in("d3b-sim-", memory) } else { TempDir::with_prefix("d3b-sim-") };
    made.expect("a temporary directory")
}

impl Machine for Real {
    type Image = Files;
    type Taking = SnapshotSource;
    type Copy = TempDir;
    const DATABASES: bool = true;

    fn blank() -> Files {
        Files { directory: temporary_directory(), generation: 0, synced: BTreeMap::new() }
    }

    fn open(image: &mut Files, execution: u32, lane_order: u64) -> Result<Real, String> {
        if execution != EXECUTION {
            return Err(format!("the engine has execution version {EXECUTION} only, not {execution}"));
        }
        let directory = image.current();
        let options = Options { connections_max: 2, lane_order: Some(lane_order), ..Options::default() };
        let engine = Engine::open(&directory, options).map_err(|fatal| fatal.to_string())?;
        let synced = std::mem::take(&mut image.synced);
        Ok(Real { engine, directory, synced, synced_at: None, referenced: RefCell::default() })
    }

    fn resume_after(&self) -> Slot {
        self.engine.resume_after()
    }

    fn applied(&self) -> Slot {
        self.engine.applied()
    }

    fn apply(&mut self, entries: &[LogEntry<'_>], blobs: &dyn Blobs) -> Result<Progress, String> {
        self.engine.apply(entries, blobs).map_err(|fatal| format!("{fatal}: {:?}", std::error::Error::source(&fatal)))
    }

    fn checkpoint(&mut self) -> Result<(), String> {
        if self.synced_at == Some(self.engine.applied()) {
            return Ok(());
        }
        self.synced_at = Some(self.engine.applied());
        self.engine.checkpoint().map_err(|fatal| fatal.to_string())?;
        self.synced = logs(&self.directory);
        Ok(())
    }

    fn begin_snapshot(&mut self) -> Result<(Slot, SnapshotSource), String> {
        let source = self.engine.begin_snapshot().map_err(|fatal| fatal.to_string())?;
        self.synced = logs(&self.directory);
        Ok((source.slot(), source))
    }

    fn copy(&self, source: SnapshotSource) -> Result<TempDir, String> {
        let directory = temporary_directory();
        let place = |id: d3b::DatabaseId| directory.path().join(format!("{id}.sqlite3"));
        let mut pace = |_: u64| Ok(());
        let catalogue = place(d3b::DatabaseId::catalogue());
        let (_, listed) = source.copy_catalogue(&catalogue, &mut pace).map_err(|error| error.to_string())?;
        for one in listed {
            source.copy(&one, &place(one.id()), |_| false, &mut pace).map_err(|error| error.to_string())?;
        }
        Ok(directory)
    }

    fn install(image: &mut Files, _slot: Slot, copy: &TempDir) {
        let before = image.current();
        image.generation += 1;
        let after = image.current();
        std::fs::create_dir_all(&after).expect("a directory in memory");
        for path in files(copy.path()) {
            let name = path.file_name().expect("a file has a name");
            std::fs::copy(&path, after.join(name)).expect("a file in memory");
        }
        if before.exists() {
            std::fs::remove_dir_all(&before).expect("a directory in memory");
        }
        image.synced = logs(&after);
    }

    fn rot(&mut self, registers: u64, random: &mut Random) -> Result<bool, String> {
        let (value, row, seen) = (random.between(1 << 40, 1 << 50), random.below(registers), random.percent(70));
        let ids = self.engine.readers().ids().map_err(|rejection| rejection.detail)?;
        let mut rotten = false;
        for id in ids.into_iter().filter(|id| *id != DatabaseId::catalogue()) {
            let path = self.directory.join(format!("{id}.sqlite3"));
            let connection = rusqlite::Connection::open(path).map_err(|error| error.to_string())?;
            // Nothing that is written later makes the first row right again. Another database has no such table.
            let put = |row: i64, value: u64| {
                let value = i64::try_from(value).unwrap_or(1);
                connection.execute("INSERT OR REPLACE INTO kv(k, v) VALUES(?1, ?2)", [row, value]).is_ok()
            };
            if put(-1, value) {
                rotten = true;
                let _ = seen && put(i64::try_from(row).unwrap_or(0), value);
            }
        }
        self.synced = logs(&self.directory);
        Ok(rotten)
    }

    fn scrub(&self) -> Vec<Content> {
        let pace: Arc<dyn Pace> = Arc::new(Unhurried);
        let readers = self.engine.readers();
        let read = |database: DatabaseId| match readers.scrub(database, &pace) {
            Scrubbed::Sound { slot, chain, digest } => Some(Content { database, slot, chain: chain.0, digest }),
            Scrubbed::Damaged(_) | Scrubbed::Unread(_) => None,
        };
        readers.ids().unwrap_or_default().into_iter().filter_map(read).collect()
    }

    fn crash(self, image: &mut Files, power_cut: bool, random: &mut Random) {
        let before = image.current();
        image.generation += 1;
        let after = image.current();
        std::fs::create_dir_all(&after).expect("a directory in memory");
        for path in files(&before) {
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            // The shared memory of the processes before is not on the disk.
            if name.ends_with("-shm") {
                continue;
            }
            let mut bytes = std::fs::read(&path).expect("a file in memory");
            if power_cut && name.ends_with("-wal") {
                tear(&mut bytes, self.synced.get(&name).map_or(&[], Vec::as_slice), random);
            }
            std::fs::write(after.join(name), bytes).expect("a file in memory");
        }
        // What the engine does on its way out goes to files that nobody looks at any more.
        drop(self.engine);
        std::fs::remove_dir_all(&before).expect("a directory in memory");
        image.synced = logs(&after);
    }

    fn look(&self, register: Register) -> Result<u64, String> {
        let number = |sql: &str, db: &str| -> Result<u64, String> {
            let rows = self.rows(db, sql)?;
            Ok(rows.first().and_then(|row| row.parse().ok()).unwrap_or(0))
        };
        match register {
            Register::Row(row) => number(&format!("SELECT v FROM kv WHERE k = {row}"), DATABASE),
            Register::File(file) => {
                let file_id = workload::file_id(file);
                let found = self.engine.readers().media(&workload::name(DATABASE), &file_id);
                let found = found.map_err(|rejection| rejection.detail)?;
                Ok(found.map_or(0, |(_, digest)| file_value(&digest)))
            }
            Register::Database => number(&format!("SELECT owner FROM tables WHERE name = '{TEMPORARY}'"), "schemas"),
            Register::SetUp(_) => Ok(0),
        }
    }

    fn referenced(&self) -> Result<Vec<Digest>, String> {
        let applied = self.engine.applied();
        if let Some((_, digests)) = self.referenced.borrow().as_ref().filter(|(slot, _)| *slot == applied) {
            return Ok(digests.clone());
        }
        let mut digests = Vec::new();
        self.engine.referenced_blobs(&mut |digest| digests.push(digest)).map_err(|fatal| fatal.to_string())?;
        *self.referenced.borrow_mut() = Some((applied, digests.clone()));
        Ok(digests)
    }

    fn audit(&self) -> Result<Audit, String> {
        let mut tokens = BTreeMap::new();
        for row in self.rows(DATABASE, "SELECT token FROM done")? {
            *tokens.entry(row.parse().map_err(|_| format!("{row} is no token"))?).or_default() += 1;
        }
        let mut contents = String::new();
        for (db, sql) in [
            (DATABASE, "SELECT * FROM kv ORDER BY 1"),
            (DATABASE, "SELECT rowid, * FROM done ORDER BY 1"),
            (DATABASE, "SELECT rowid, * FROM seen ORDER BY 1"),
            ("schemas", "SELECT * FROM tables ORDER BY 1"),
        ] {
            contents.push_str(&self.rows(db, sql)?.join("\n"));
        }
        let media = self.engine.readers().media_list(&workload::name(DATABASE), None, 1_000);
        contents.push_str(&format!("{:?}", media.map_err(|rejection| rejection.detail)?));
        Ok(Audit { tokens, contents })
    }
}

impl Real {
    /// The rows of a query, each as a line.
    fn rows(&self, db: &str, sql: &str) -> Result<Vec<String>, String> {
        let statement = Statement { sql: sql.to_owned(), arguments: Arguments::default(), expect: None };
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut lines = Lines(Vec::new());
        self.engine
            .readers()
            .query(&workload::name(db), &statement, deadline, None, &mut lines)
            .map_err(|rejection| rejection.detail)?;
        Ok(lines.0)
    }
}

/// Reading may take as long as it takes.
struct Unhurried;

impl Pace for Unhurried {
    fn read(&self, _bytes: u64) -> bool {
        true
    }
}

/// Keeps rows as lines of text.
struct Lines(Vec<String>);

impl RowSink for Lines {
    fn columns(&mut self, _names: &[String], _types: &[String]) -> Result<(), SinkClosed> {
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SinkClosed> {
        let value = |value: &ValueRef<'_>| match value {
            ValueRef::Null => "NULL".to_owned(),
            ValueRef::Integer(integer) => integer.to_string(),
            ValueRef::Real(real) => real.to_string(),
            ValueRef::Text(text) => text.clone().into_owned(),
            ValueRef::Blob(bytes) => format!("{bytes:02x?}"),
        };
        self.0.push(values.iter().map(value).collect::<Vec<_>>().join(" | "));
        Ok(())
    }
}

/// The files of a directory, in order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory in memory");
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths
}

fn logs(directory: &Path) -> Synced {
    let logs = files(directory).into_iter().filter_map(|path| {
        let name = path.file_name()?.to_str()?.to_owned();
        name.ends_with("-wal").then(|| (name, std::fs::read(&path).expect("a file in memory")))
    });
    logs.collect()
}

/// Takes back a random part of what was written since the last sync: behind it stands what was there before, or noise.
fn tear(bytes: &mut Vec<u8>, synced: &[u8], random: &mut Random) {
    let same = bytes.iter().zip(synced).take_while(|(now, then)| now == then).count();
    let kept = same + usize::try_from(random.below((bytes.len() - same) as u64 + 1)).expect("within a length");
    let under_way = if random.percent(30) { bytes.len().min(kept + 600) } else { kept };
    bytes[kept..under_way].fill_with(|| random.word().to_le_bytes()[0]);
    bytes.truncate(under_way);
    bytes.extend(synced.iter().skip(under_way));
}
