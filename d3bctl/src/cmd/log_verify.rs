//! `log verify`: every replica's log, read from end to end, and compared with the others'.

use std::time::Duration;

use d3b::Code;
use d3b::api::{ClusterInfo, LogEntry, LogPage, Verified};
use d3b::client::{Client, ClientError, Endpoint, Method, Request};
use serde::Serialize;

use super::log::page;
use crate::error::{CliError, Health};
use crate::output::{Column, Output, json, number, optional, text};
use crate::progress::Progress;
use crate::session::Session;

/// Entries that are asked for at once.
const PAGE: u64 = 1_000;

/// How long a replica may take to read its log, unless told.
const READ_MAX: Duration = Duration::from_secs(3_600);

/// The log of one replica.
#[derive(Debug, Serialize)]
struct Log {
    id: u32,
    /// The first slot that it holds.
    base: Option<u64>,
    /// The last one.
    last: Option<u64>,
    /// How many entries were found to be what the others have.
    compared: u64,
    /// What is wrong with it.
    damage: Option<String>,
    /// Why it could not be read.
    problem: Option<String>,
    #[serde(skip)]
    client: Option<Client>,
    /// Everything up to here is applied there.
    #[serde(skip)]
    applied: u64,
}

const COLUMNS: &[Column<Log>] = &[
    ("id", |log| number(log.id.into())),
    ("base", |log| optional(log.base, number)),
    ("last", |log| optional(log.last, number)),
    ("compared", |log| number(log.compared)),
    ("damage", |log| text(log.damage.as_deref().unwrap_or_default())),
    ("problem", |log| text(log.problem.as_deref().unwrap_or_default())),
];

/// Has every member read its log from end to end, and compares what they hold slot by slot.
pub(super) fn verify(session: &Session, output: &mut Output) -> Result<(), CliError> {
    let (cluster, _): (ClusterInfo, _) = session.send(&session.local(&["v1", "cluster"]))?.json()?;
    let progress = Progress::waiting(&session.settings, "the logs are read");
    let mut logs: Vec<Log> = std::thread::scope(|scope| {
        let ask = |(id, http): (u32, Option<String>)| scope.spawn(move || read(id, http.as_deref(), session));
        let members = cluster.replicas.into_iter().map(|replica| (replica.id, replica.http));
        let threads: Vec<_> = members.map(ask).collect();
        threads.into_iter().map(|thread| thread.join().expect("asking does not panic")).collect()
    });
    compare(&mut logs, session, &progress)?;
    drop(progress);
    output.list(&json(&logs), COLUMNS, &logs)?;
    output.flush()?;
    let damaged = logs.iter().filter(|log| log.damage.is_some()).count();
    if damaged > 0 {
        return Err(CliError::LogsDamaged(damaged));
    }
    let unread = logs.iter().filter(|log| log.problem.is_some()).count();
    if unread > 0 { Err(CliError::Unhealthy(Health::Some(unread))) } else { Ok(()) }
}

/// Has one replica compare each record of its log with its checksum.
fn read(id: u32, http: Option<&str>, session: &Session) -> Log {
    let mut log =
        Log { id, base: None, last: None, compared: 0, damage: None, problem: None, client: None, applied: 0 };
    let Some(endpoint) = http.and_then(|http| http.parse::<Endpoint>().ok()) else {
        log.problem = Some("its HTTP address is not known".to_owned());
        return log;
    };
    let client = session.client.only(&endpoint);
    let request = Request::new(Method::POST, &["v1", "admin", "verify"]).parameter("log", "true");
    let wait = session.settings.timeout.unwrap_or(READ_MAX);
    let asked = session.send_with(&client, &request.waiting(wait, false).once());
    match asked.and_then(|response| Ok(response.json::<Verified>()?.0)) {
        Ok(Verified { applied, log: Some(read), .. }) => {
            log.base = Some(read.base);
            log.last = Some(read.last);
            log.damage = read.damaged.map(|damage| format!("slot {}: {}", damage.slot, damage.problem));
            log.applied = applied;
            log.client = Some(client);
        }
        Ok(_) => log.problem = Some("it did not read its log".to_owned()),
        Err(error) => log.problem = Some(error.to_string()),
    }
    log
}

/// Walks through all logs that can be read, side by side, as far as all of them reach.
fn compare(logs: &mut [Log], session: &Session, progress: &Progress) -> Result<(), CliError> {
    let mut readable: Vec<&mut Log> = logs.iter_mut().filter(|log| log.client.is_some()).collect();
    let upto = readable.iter().map(|log| log.applied).min().unwrap_or(0);
    let mut next = readable.iter().filter_map(|log| log.base).max().unwrap_or(1).max(1);
    while next <= upto && readable.iter().all(|log| log.damage.is_none()) {
        progress.say(format!("slot {next} of {upto}"));
        let mut pages = Vec::new();
        let mut base = next;
        for log in &readable {
            let client = log.client.as_ref().expect("only those with one are here");
            let page = entries(client, next, session)?;
            base = base.max(page.base);
            pages.push(page.entries);
        }
        if base > next {
            // It was cut meanwhile.
            next = base;
            continue;
        }
        let shared = pages.iter().map(Vec::len).min().unwrap_or(0);
        if shared == 0 {
            let missing = readable.iter_mut().zip(&pages).filter(|(_, page)| page.is_empty());
            missing.for_each(|(log, _)| log.damage = Some(format!("slot {next}: it is missing")));
            return Ok(());
        }
        for index in 0..shared {
            let entries: Vec<&LogEntry> = pages.iter().map(|page| &page[index]).collect();
            for (log, difference) in readable.iter_mut().zip(differences(next, &entries)) {
                match difference {
                    Some(problem) if log.damage.is_none() => log.damage = Some(problem),
                    Some(_) => {}
                    None => log.compared += 1,
                }
            }
            next += 1;
            if next > upto {
                break;
            }
        }
    }
    Ok(())
}

/// A page of one replica's log; one without entries where the log was cut meanwhile.
fn entries(client: &Client, from: u64, session: &Session) -> Result<LogPage, CliError> {
    match page(client, Some(from), PAGE, None, session) {
        Err(CliError::Client(ClientError::Problem { problem, .. })) if problem.code == Code::SlotCompacted => {
            let (page, _) = page(client, None, 1, None, session)?;
            Ok(LogPage { entries: Vec::new(), ..page })
        }
        page => Ok(page?.0),
    }
}

/// What must be the same on every replica.
#[derive(Debug, Clone, PartialEq)]
struct Essence<'a> {
    kind: &'a str,
    db: Option<&'a str>,
    sql: &'a [String],
    change: Option<&'a str>,
    time: &'a str,
    key: Option<&'a str>,
    /// What is known of some replicas only is not compared.
    effect: Option<(&'a str, &'a str)>,
}

/// For each replica what is wrong with its entry of this slot: the odd ones are those that the fewest have.
fn differences(slot: u64, entries: &[&LogEntry]) -> Vec<Option<String>> {
    let effect = |entry: &LogEntry| entry.outcome.is_some() && entry.fingerprint.is_some();
    let known = entries.iter().all(|entry| effect(entry));
    let essences: Vec<Essence<'_>> = entries
        .iter()
        .map(|entry| Essence {
            kind: &entry.kind,
            db: entry.db.as_deref(),
            sql: &entry.sql,
            change: entry.change.as_deref(),
            time: &entry.time,
            key: entry.key.as_deref(),
            effect: entry.outcome.as_deref().zip(entry.fingerprint.as_deref()).filter(|_| known),
        })
        .collect();
    let alike = |one: &Essence<'_>| essences.iter().filter(|other| *other == one).count();
    let most = essences.iter().map(alike).max().unwrap_or(0);
    // Where no majority agrees, nobody knows who is right.
    let decided = most > entries.len() / 2;
    let check = |(entry, essence): (&&LogEntry, &Essence<'_>)| {
        if entry.slot != slot {
            return Some(format!("slot {slot}: it is missing"));
        }
        let odd = if decided { alike(essence) < most } else { most < entries.len() };
        odd.then(|| format!("slot {slot}: other replicas hold something else"))
    };
    entries.iter().zip(&essences).map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slot: u64, sql: &str, fingerprint: &str) -> LogEntry {
        LogEntry {
            slot,
            ballot: format!("{}.1", fingerprint.len()),
            state: "applied".to_owned(),
            kind: "sql".to_owned(),
            db: Some("shop".to_owned()),
            sql: vec![sql.to_owned()],
            change: None,
            time: "2026-01-01T00:00:00.000Z".to_owned(),
            key: None,
            outcome: Some("ok".to_owned()),
            fingerprint: (!fingerprint.is_empty()).then(|| fingerprint.to_owned()),
        }
    }

    #[track_caller]
    fn check(entries: &[(u64, &str, &str)], expected: &[bool]) {
        let entries: Vec<LogEntry> =
            entries.iter().map(|(slot, sql, fingerprint)| entry(*slot, sql, fingerprint)).collect();
        let found = differences(7, &entries.iter().collect::<Vec<_>>());
        assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), expected, "{found:?}");
    }

    #[test]
    fn the_odd_one_is_told() {
        check(&[(7, "a", "1"), (7, "a", "1"), (7, "a", "1")], &[false, false, false]);
        check(&[(7, "a", "1"), (7, "b", "1"), (7, "a", "1")], &[false, true, false]);
        check(&[(7, "a", "1"), (7, "a", "2"), (7, "a", "1")], &[false, true, false]);
        check(&[(8, "a", "1"), (7, "a", "1"), (7, "a", "1")], &[true, false, false]);
        check(&[(7, "a", "1"), (7, "b", "1")], &[true, true]);
        check(&[(7, "a", "1"), (7, "b", "1"), (7, "c", "1")], &[true, true, true]);
    }

    #[test]
    fn what_is_not_known_everywhere_is_not_compared() {
        check(&[(7, "a", ""), (7, "a", "22"), (7, "a", "333")], &[false, false, false]);
    }
}
