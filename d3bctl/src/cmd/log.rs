//! `log`: the Paxos log, for people.

use std::io::{BufRead as _, BufReader};

use d3b::Value;
use d3b::api::{ClusterInfo, LogEntry, LogPage};
use d3b::client::{Client, ClientError, Response};

use crate::cli::{Format, LogList, LogTail};
use crate::error::CliError;
use crate::output::{Column, Listing, Output, json, number, optional, text};
use crate::session::Session;

/// Characters of what an entry does, in a table.
const WHAT_MAX: usize = 100;

const COLUMNS: &[Column<LogEntry>] = &[
    ("slot", |entry| number(entry.slot)),
    ("ballot", |entry| text(&entry.ballot)),
    ("state", |entry| text(&entry.state)),
    ("time", |entry| text(&entry.time)),
    ("kind", |entry| text(&entry.kind)),
    ("db", |entry| text(entry.db.as_deref().unwrap_or_default())),
    ("outcome", |entry| text(entry.outcome.as_deref().unwrap_or_default())),
    ("what", |entry| text(what(entry))),
];

/// The same for a table, in which a statement of many lines would stand in the way.
const TABLE_COLUMNS: &[Column<LogEntry>] = &[
    COLUMNS[0],
    COLUMNS[1],
    COLUMNS[2],
    COLUMNS[3],
    COLUMNS[4],
    COLUMNS[5],
    COLUMNS[6],
    ("what", |entry| text(shortened(&what(entry)))),
];

fn columns(output: &Output) -> &'static [Column<LogEntry>] {
    match output.format() {
        Format::Table => TABLE_COLUMNS,
        Format::Json | Format::Ndjson | Format::Csv | Format::Line => COLUMNS,
    }
}

/// What an entry does, in words.
fn what(entry: &LogEntry) -> String {
    let sql = entry.sql.join("; ");
    match &entry.change {
        Some(change) if sql.is_empty() => change.clone(),
        Some(change) => format!("{sql} + {change}"),
        None => sql,
    }
}

/// One line of bounded length.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WHAT_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// Lists entries.
pub(super) fn list(arguments: &LogList, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let (page, body) = read(session, arguments.from, arguments.limit, arguments.db.as_deref())?;
    let columns = columns(output);
    output.list(&body, columns, &page.entries)
}

fn read(session: &Session, from: Option<u64>, limit: u64, db: Option<&str>) -> Result<(LogPage, Vec<u8>), CliError> {
    page(&session.client, from, limit, db, session)
}

/// Some entries, and the answer as it came.
pub(super) fn page(
    client: &Client,
    from: Option<u64>,
    limit: u64,
    db: Option<&str>,
    session: &Session,
) -> Result<(LogPage, Vec<u8>), CliError> {
    let mut request = session.local(&["v1", "log"]).parameter("limit", limit.to_string());
    if let Some(from) = from {
        request = request.parameter("from", from.to_string());
    }
    if let Some(db) = db {
        request = request.parameter("db", db);
    }
    Ok(session.send_with(client, &request)?.json()?)
}

/// Shows one entry, with everything that is known of it.
pub(super) fn show(slot: u64, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let (entry, body): (LogEntry, _) = session.send(&session.local(&["v1", "log", &slot.to_string()]))?.json()?;
    let mut fields: Vec<(&str, Value)> = COLUMNS.iter().map(|(name, value)| (*name, value(&entry))).collect();
    fields.push(("key", optional(entry.key.as_deref(), text)));
    fields.push(("fingerprint", optional(entry.fingerprint.as_deref(), text)));
    output.object(&body, fields)
}

/// Shows the newest entries, and goes on with those that are applied.
pub(super) fn tail(arguments: &LogTail, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let LogTail { follow, limit, db } = arguments;
    let db = db.as_deref();
    // Even without entries to show, the page tells where the log ends.
    let (mut page, body) = read(session, None, (*limit).max(1), db)?;
    let skip = page.entries.len().saturating_sub(usize::try_from(*limit).unwrap_or(usize::MAX));
    page.entries.drain(..skip);
    let columns = columns(output);
    if !follow {
        return output.list(&body, columns, &page.entries);
    }
    // Following has no end, so its JSON is lines.
    let mut follower = Follower { next: page.commit + 1, db, session };
    let mut listing = Listing::new(output, "entries", columns).endless();
    for entry in page.entries.iter().filter(|entry| entry.state == "applied") {
        listing.add(entry)?;
        follower.next = entry.slot + 1;
    }
    listing.flush()?;
    loop {
        follower.follow(&mut listing)?;
    }
}

/// Reads along, from one replica or, when that goes away, from another one.
struct Follower<'a> {
    next: u64,
    db: Option<&'a str>,
    session: &'a Session,
}

impl Follower<'_> {
    /// Follows one replica as long as it lasts.
    fn follow(&mut self, listing: &mut Listing<'_, LogEntry>) -> Result<(), CliError> {
        let mut request =
            self.session.local(&["v1", "log", "follow"]).parameter("from", self.next.to_string()).endless();
        if let Some(db) = self.db {
            request = request.parameter("db", db);
        }
        let response = self.session.send(&request)?;
        let endpoint = response.endpoint().clone();
        let mut reader = BufReader::new(response);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(read) if read > 0 && line.ends_with(b"\n") => {}
                // The replica went away; the next one goes on.
                Ok(_) | Err(_) => {
                    self.session.note(&format!("{endpoint} went away; going on from slot {}", self.next));
                    return Ok(());
                }
            }
            if !self.take(&line, reader.get_ref(), listing)? {
                return Ok(());
            }
            // What came together is shown together.
            if reader.buffer().is_empty() {
                listing.flush()?;
            }
        }
    }

    /// Takes a line; false for the last one.
    fn take(
        &mut self,
        line: &[u8],
        response: &Response,
        listing: &mut Listing<'_, LogEntry>,
    ) -> Result<bool, CliError> {
        if let Ok(entry) = serde_json::from_slice::<LogEntry>(line) {
            self.next = entry.slot + 1;
            listing.add(&entry)?;
            return Ok(true);
        }
        let last: serde_json::Value =
            serde_json::from_slice(line).map_err(|error| response.malformed(error.to_string()))?;
        if let Some(next) = last.get("next").and_then(serde_json::Value::as_u64) {
            self.next = next;
            return Ok(false);
        }
        let problem = last.get("error").map(json);
        let problem = problem.and_then(|error| d3b::Problem::from_json(&error));
        let problem = problem.ok_or_else(|| response.malformed("a line is no entry of a log"))?;
        let endpoint = response.endpoint().clone();
        Err(ClientError::Problem { endpoint, problem: Box::new(problem) }.into())
    }
}

/// Tells how far the log reaches.
pub(super) fn status(session: &Session, output: &mut Output) -> Result<(), CliError> {
    let request = session.local(&["v1", "log"]).parameter("limit", "1");
    let response = session.send(&request)?;
    // Both answers are one replica's, so that they agree.
    let client = session.client.only(response.endpoint());
    let (page, _): (LogPage, _) = response.json()?;
    let (cluster, _): (ClusterInfo, _) = session.send_with(&client, &session.local(&["v1", "cluster"]))?.json()?;
    let status = serde_json::json!({
        "replica": cluster.replica,
        "base": page.base,
        "applied": cluster.applied,
        "commit": cluster.commit.max(page.commit),
        "ballot": cluster.ballot,
        "leader": cluster.leader,
    });
    let fields = vec![
        ("replica", number(cluster.replica.into())),
        ("base", number(page.base)),
        ("applied", number(cluster.applied)),
        ("commit", number(cluster.commit.max(page.commit))),
        ("ballot", text(&cluster.ballot)),
        ("leader", optional(cluster.leader, |leader| number(leader.into()))),
    ];
    output.object(&json(&status), fields)
}
