//! Asks every replica what it holds, as of the same slot.

use std::collections::BTreeMap;

use d3b::api::{ClusterInfo, DatabaseInfo, MediaInfo, MediaList};
use d3b::client::{Body, Client, Endpoint, Method, Request};
use serde::Serialize;
use serde_json::{Value, json};

use super::STEP_WAIT;
use crate::bench::d3b::{Spec, content};
use crate::bench::ledger::Number;
use crate::bench::verify::{ENTRIES, Found, Given, THINGS, compare, present_query};
use crate::bench::{Ledger, Tally};
use crate::error::CliError;
use crate::progress::Progress;
use crate::session::Session;

/// Rows that one question names, at most.
const NAMED_MAX: usize = 200;
/// Files of one page.
const PAGE: usize = 10_000;
/// Files of one database that are fetched and compared, byte by byte.
const FETCHED_MAX: usize = 16;
/// Complaints of one replica that are told.
const TOLD_MAX: usize = 10;

/// What a replica has to say.
#[derive(Debug, Serialize)]
pub(super) struct ReplicaReport {
    /// Its id.
    pub id: u32,
    /// Where it was asked.
    pub endpoint: Option<String>,
    /// Why it could not be asked.
    pub unasked: Option<String>,
    /// The chain of each database's effects.
    #[serde(skip)]
    pub fingerprints: Vec<String>,
}

/// Whether the replicas hold what was acknowledged.
#[derive(Debug, Serialize)]
pub(super) struct Verification {
    /// As of which slot.
    pub slot: u64,
    /// Rows that were acknowledged, in all databases.
    pub rows: u64,
    /// Changes of rows that were acknowledged.
    pub changes: u64,
    /// Files that were acknowledged.
    pub files: u64,
    /// Every replica.
    pub replicas: Vec<ReplicaReport>,
    /// What is not as it should be; empty if all is well.
    pub problems: Vec<String>,
}

impl Verification {
    /// Replicas that could not be asked.
    pub(super) fn unasked(&self) -> usize {
        self.replicas.iter().filter(|replica| replica.unasked.is_some()).count()
    }
}

/// Verifies every database on every replica.
pub(super) fn verify(spec: &Spec, ledgers: &[Ledger], session: &Session) -> Result<Verification, CliError> {
    let progress = Progress::waiting(&session.settings, "verifying");
    let slot = current_slot(&spec.databases[0], session)?;
    let (cluster, _): (ClusterInfo, _) = session.send(&session.local(&["v1", "cluster"]))?.json()?;
    let mut problems: Vec<String> = Vec::new();
    let mut replicas = Vec::new();
    for replica in &cluster.replicas {
        progress.say(format!("verifying replica {}", replica.id));
        let endpoint = replica.http.as_deref().and_then(|http| http.parse::<Endpoint>().ok());
        let mut report = ReplicaReport {
            id: replica.id,
            endpoint: endpoint.as_ref().map(ToString::to_string),
            unasked: None,
            fingerprints: Vec::new(),
        };
        let asked = match &endpoint {
            Some(endpoint) => Asked { client: session.client.only(endpoint), slot, session }.all(spec, ledgers),
            None => Err(CliError::NotYet("its HTTP address is not known".to_owned())),
        };
        match asked {
            Ok((fingerprints, complaints)) => {
                let all = complaints.len();
                let told = complaints.into_iter().take(TOLD_MAX);
                problems.extend(told.map(|complaint| format!("replica {}: {complaint}", replica.id)));
                if all > TOLD_MAX {
                    problems.push(format!("replica {}: and {} more", replica.id, all - TOLD_MAX));
                }
                report.fingerprints = fingerprints;
            }
            Err(error) => report.unasked = Some(error.to_string()),
        }
        replicas.push(report);
    }
    problems.extend(different(spec, &replicas));
    let rows = ledgers.iter().flat_map(|ledger| ledger.inserted.values()).map(|tally| tally.count).sum();
    let changes = ledgers.iter().map(|ledger| ledger.updated.count).sum();
    let files = ledgers.iter().map(|ledger| ledger.media.acknowledged.len() as u64).sum();
    Ok(Verification { slot, rows, changes, files, replicas, problems })
}

/// Databases whose fingerprints differ between replicas.
fn different(spec: &Spec, replicas: &[ReplicaReport]) -> Vec<String> {
    let asked: Vec<&ReplicaReport> = replicas.iter().filter(|replica| replica.unasked.is_none()).collect();
    let [first, others @ ..] = asked.as_slice() else { return Vec::new() };
    let differ = |(at, db): (usize, &String)| {
        let other = others.iter().find(|other| other.fingerprints[at] != first.fingerprints[at])?;
        Some(format!("{db} has other fingerprints on replicas {} and {}", first.id, other.id))
    };
    spec.databases.iter().enumerate().filter_map(differ).collect()
}

fn query(db: &str, sql: &str) -> Request {
    let body = json!({ "sql": sql }).to_string();
    Request::new(Method::POST, &["v1", "db", db, "query"]).body("application/json", Body::bytes(body))
}

/// A slot that is not before any write that was acknowledged.
pub(super) fn current_slot(db: &str, session: &Session) -> Result<u64, CliError> {
    let wait = session.settings.wait().max(STEP_WAIT);
    let response = session.send(&query(db, "SELECT 1").waiting(wait, true))?;
    match response.number("d3b-slot") {
        Some(slot) => Ok(slot),
        None => Err(response.malformed("it does not tell its slot").into()),
    }
}

/// One replica that is asked, as of a slot.
pub(super) struct Asked<'a> {
    /// Knows that replica only.
    pub client: Client,
    /// The slot that it must have applied.
    pub slot: u64,
    /// What it goes by.
    pub session: &'a Session,
}

impl Asked<'_> {
    fn ask(&self, request: Request) -> Result<d3b::client::Response, CliError> {
        let wait = self.session.settings.wait().max(STEP_WAIT);
        let request = request.parameter("level", "at-least").parameter("slot", self.slot.to_string());
        self.session.send_with(&self.client, &request.waiting(wait, true).once())
    }

    /// Waits until it has applied the slot.
    pub(super) fn has_caught_up(&self, db: &str) -> Result<(), CliError> {
        self.ask(query(db, "SELECT 1")).map(|_| ())
    }

    /// The databases' fingerprints, and what is wrong.
    fn all(&self, spec: &Spec, ledgers: &[Ledger]) -> Result<(Vec<String>, Vec<String>), CliError> {
        let given = Given { rows: spec.rows, files: spec.files, media_size: spec.media_size };
        let (mut fingerprints, mut complaints) = (Vec::new(), Vec::new());
        for (db, ledger) in spec.databases.iter().zip(ledgers) {
            let found = self.found(db, ledger)?;
            complaints.extend(compare(given, ledger, &found).into_iter().map(|complaint| format!("{db}: {complaint}")));
            complaints.extend(self.other_contents(db, &found.media, spec.media_size)?);
            let (info, _): (DatabaseInfo, _) = self.ask(Request::get(&["v1", "db", db]))?.json()?;
            fingerprints.push(info.fingerprint);
        }
        Ok((fingerprints, complaints))
    }

    fn found(&self, db: &str, ledger: &Ledger) -> Result<Found, CliError> {
        let mut found = Found::default();
        for row in self.rows(db, ENTRIES)? {
            let [client, count, sum, squares] = row[..] else { continue };
            found.inserted.insert(client, Tally { count, sum, squares });
        }
        if let [[rows, count, sum, squares]] = self.rows(db, THINGS)?.iter().map(Vec::as_slice).collect::<Vec<_>>()[..]
        {
            found.rows = *rows;
            found.updated = Tally { count: *count, sum: *sum, squares: *squares };
        }
        let unknown = ledger.inserted_unknown.iter();
        let unknown: Vec<Number> =
            unknown.flat_map(|(client, numbers)| numbers.clone().map(|number| (*client, number))).collect();
        for rows in unknown.chunks(NAMED_MAX) {
            for row in self.rows(db, &present_query(rows))? {
                let [client, number, times] = row[..] else { continue };
                found.present.insert((client, number), times);
            }
        }
        found.media = self.media(db)?;
        Ok(found)
    }

    /// The rows of a query that gives numbers only.
    fn rows(&self, db: &str, sql: &str) -> Result<Vec<Vec<u64>>, CliError> {
        let response = self.ask(query(db, sql))?;
        let malformed = response.malformed("its rows are not numbers");
        let (answer, _): (BTreeMap<String, Value>, _) = response.json()?;
        let rows = answer.get("rows").cloned().unwrap_or_default();
        serde_json::from_value(rows).map_err(|_| malformed.into())
    }

    /// Every file.
    fn media(&self, db: &str) -> Result<Vec<MediaInfo>, CliError> {
        let mut files = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut request = Request::get(&["v1", "db", db, "media"]).parameter("limit", PAGE.to_string());
            if let Some(after) = &after {
                request = request.parameter("after", after);
            }
            let (page, _): (MediaList, _) = self.ask(request)?.json()?;
            files.extend(page.media);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(files),
            }
        }
    }

    /// Fetches some of the files, and tells those whose bytes are not what they should be.
    fn other_contents(&self, db: &str, files: &[MediaInfo], size: usize) -> Result<Vec<String>, CliError> {
        let mut complaints = Vec::new();
        let step = files.len().div_ceil(FETCHED_MAX).max(1);
        for file in files.iter().step_by(step) {
            let bytes = self.ask(Request::get(&["v1", "db", db, "media", &file.file_id]))?.bytes()?;
            if bytes != content(&file.file_id, size) {
                complaints.push(format!("{db}: the file {} is not what was stored", file.file_id));
            }
        }
        Ok(complaints)
    }
}
