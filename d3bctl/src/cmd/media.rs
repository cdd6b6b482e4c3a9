//! `media`: files that belong to a database.

pub(super) mod get;
pub(super) mod put;

use d3b::api::{MediaInfo, MediaList};
use d3b::client::{ClientError, Method, Request, Response};
use d3b::{Code, Problem, Value};
use serde::Deserialize;

use super::confirm;
use crate::cli;
use crate::error::{CliError, UsageError};
use crate::output::{Column, Listing, Output, json, number, text};
use crate::session::Session;

/// Files in one page of a list.
const PAGE: &str = "1000";

const COLUMNS: &[Column<MediaInfo>] = &[
    ("file_id", |info| text(&info.file_id)),
    ("size", |info| number(info.size)),
    ("type", |info| text(&info.r#type)),
    ("slot", |info| number(info.slot)),
    ("sha256", |info| text(&info.sha256)),
];

fn fields(info: &MediaInfo) -> Vec<(&'static str, Value)> {
    COLUMNS.iter().map(|(name, value)| (*name, value(info))).collect()
}

/// Lists the files of a database, page after page.
pub(super) fn list(db: &str, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let mut listing = Listing::new(output, "media", COLUMNS);
    let mut after: Option<String> = None;
    loop {
        let mut request = session.read(&["v1", "db", db, "media"]).parameter("limit", PAGE);
        if let Some(after) = &after {
            request = request.parameter("after", after);
        }
        let (page, _): (MediaList, _) = session.send(&request)?.json()?;
        page.media.iter().try_for_each(|info| listing.add(info))?;
        match page.next {
            Some(next) => after = Some(next),
            None => return listing.end(),
        }
    }
}

/// The linearized look at what is known of a file, which brings that replica up to date.
fn look(db: &str, file_id: &str, session: &Session) -> Request {
    let request = session.read(&["v1", "db", db, "media", file_id]).head_only();
    match session.settings.level {
        // A plain HEAD would be answered by the replica's own state.
        crate::settings::ReadLevel::Linearizable => request.parameter("level", "linearizable"),
        crate::settings::ReadLevel::Stale | crate::settings::ReadLevel::AtLeast(_) => request,
    }
}

/// What the head of an answer says of a file.
fn described(file_id: &str, response: &Response) -> Result<MediaInfo, CliError> {
    let missing = |name: &str| CliError::from(response.malformed(format!("it has no {name}")));
    Ok(MediaInfo {
        file_id: file_id.to_owned(),
        size: response.number("content-length").ok_or_else(|| missing("Content-Length"))?,
        sha256: response.digest().ok_or_else(|| missing("Repr-Digest"))?.to_string(),
        r#type: response.header("content-type").unwrap_or_default().to_owned(),
        slot: response.number("d3b-slot").ok_or_else(|| missing("D3b-Slot"))?,
    })
}

/// Tells of one file.
pub(super) fn info(arguments: &cli::MediaInfo, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let response = session.send(&look(&arguments.db, &arguments.id, session))?;
    let info = described(&arguments.id, &response)?;
    output.object(&json(&info), fields(&info))
}

/// What a deletion answers.
#[derive(Deserialize)]
struct Deleted {
    slot: u64,
}

/// Deletes files, one after the other; the first failure ends it.
pub(super) fn delete(arguments: &cli::MediaDelete, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let cli::MediaDelete { db, ids } = arguments;
    if session.settings.key.is_some() && ids.len() > 1 {
        return Err(UsageError::OneKeyForSeveral.into());
    }
    let what = match ids.as_slice() {
        [id] => format!("the file {id} of {db}"),
        several => format!("{} files of {db}", several.len()),
    };
    confirm(session, &what)?;
    for id in ids {
        let request = session.change(Request::new(Method::DELETE, &["v1", "db", db, "media", id]), db);
        let Some(response) = session.write(&request, &[])? else { continue };
        let (Deleted { slot }, body) = response.json()?;
        output.change(
            &body,
            &format!("{id} deleted at slot {slot}"),
            vec![("file_id", text(id)), ("slot", number(slot))],
        )?;
    }
    Ok(())
}

/// Whether a file is not there.
fn is_missing(error: &CliError) -> bool {
    matches!(error, CliError::Client(ClientError::Problem { problem, .. })
        if matches!(**problem, Problem { code: Code::MediaNotFound, .. }))
}
