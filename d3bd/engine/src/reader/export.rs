//! Copies of databases for users.

use std::path::Path;
use std::time::Instant;

use d3b::{Code, Rejection};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::pool;
use crate::apply::Refusal;
use crate::clock;

/// How many pages are copied between two looks at the clock.
const PAGES_PER_STEP: i32 = 1_024;

/// Copies a database as it is at this moment, then takes d3b's own tables out of the copy.
pub(super) fn copy(source: &Connection, to: &Path, deadline: Instant) -> Result<(), Refusal> {
    clock::register();
    // With a transaction of its own the source stands still, and the copy never has to begin again.
    source.execute_batch("BEGIN; SELECT 1 FROM _d3b_state")?;
    let copied = copy_pages(source, to, deadline);
    source.execute_batch("COMMIT")?;
    let copy = copied?;
    strip(&copy).and_then(|()| copy.close().map_err(|(_, error)| error)).map_err(|error| unwritten(&error))?;
    Ok(())
}

fn copy_pages(source: &Connection, to: &Path, deadline: Instant) -> Result<Connection, Refusal> {
    let flags = rusqlite::OpenFlags::default();
    let mut target = Connection::open_with_flags_and_vfs(to, flags, clock::VFS).map_err(|error| unwritten(&error))?;
    let backup = Backup::new(source, &mut target)?;
    loop {
        match backup.step(PAGES_PER_STEP).map_err(|error| unwritten(&error))? {
            StepResult::Done => break,
            _ if Instant::now() >= deadline => return Err(pool::timed_out().into()),
            _ => {}
        }
    }
    drop(backup);
    Ok(target)
}

/// Removes d3b's own tables, and overwrites the pages that they had: others' keys and answers stood there.
fn strip(copy: &Connection) -> rusqlite::Result<()> {
    copy.execute_batch(
        "PRAGMA journal_mode=DELETE; PRAGMA synchronous=OFF; PRAGMA secure_delete=ON; PRAGMA foreign_keys=OFF; BEGIN",
    )?;
    let mut tables: Vec<String> = copy
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, 5) = '_d3b_'")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    tables.sort();
    for table in tables {
        copy.execute_batch(&format!("DROP TABLE \"{}\"", table.replace('"', "\"\"")))?;
    }
    copy.execute_batch("COMMIT")
}

fn unwritten(error: &rusqlite::Error) -> Rejection {
    let full = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
    let code = if full { Code::DiskFull } else { Code::Internal };
    Rejection::new(code, format!("the copy of the database cannot be written: {error}"))
}
