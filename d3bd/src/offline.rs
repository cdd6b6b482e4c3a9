//! Reads the log of a replica that need not run.

use std::io::Write;

use d3b::Slot;
use d3b_paxos::{Storage, StorageError};

use crate::config::Settings;
use crate::inspect;
use crate::log::{self, LogError};

/// How many bytes of records are read at once.
const READ_BYTES: usize = 4 << 20;

/// Why the log could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is no log, or it is not readable.
    #[error("the log of this data directory cannot be opened: {0}")]
    Open(#[from] LogError),
    /// A record is damaged.
    #[error("the log cannot be read")]
    Read(#[from] StorageError),
    /// The output failed.
    #[error("cannot write")]
    Write(#[from] std::io::Error),
}

/// Writes entries as JSON, one a line.
///
/// # Errors
/// See [`OfflineError`].
pub fn print_log(settings: &Settings, from: u64, limit: u64, out: &mut dyn Write) -> Result<(), OfflineError> {
    let log = log::open_offline(&settings.data_dir)?;
    let mut next = Slot(from.max(1));
    let mut left = limit;
    while left > 0 {
        let records = log.read(next, Slot(u64::MAX), READ_BYTES)?;
        let Some(last) = records.last().map(|record| record.slot) else { break };
        for record in records.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            serde_json::to_writer(&mut *out, &inspect::describe_record(record)).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        }
        left = left.saturating_sub(records.len() as u64);
        next = last.next();
    }
    Ok(())
}
