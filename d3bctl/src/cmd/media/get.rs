//! `media get`: one linearized look, then plain GETs at the same replica, which that look brought up to date.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use d3b::client::{Client, ClientError, Endpoint};
use d3b::{Digest, Hasher, Value};

use super::super::query::{self, Line, Lines};
use super::{described, is_missing, look};
use crate::arguments::statement;
use crate::cli::MediaGet;
use crate::error::{CliError, Damage, UsageError, at};
use crate::names::file_name;
use crate::progress::Progress;
use crate::session::{Session, tell};
use crate::transfer::{Expected, Target};

/// Files that are fetched at a time.
const PARALLEL: usize = 4;
/// How long a file that the replica has yet to fetch from a peer may take to begin.
const GET_WAIT: Duration = Duration::from_secs(30);

/// Fetches a file, or all that a query names.
pub(in crate::cmd) fn run(get: &MediaGet, session: &Session) -> Result<(), CliError> {
    if let Some(sql) = &get.all {
        let directory = get.dir.as_ref().ok_or(UsageError::NeedsDirectory)?;
        return all(get, &statement(sql)?, directory, session);
    }
    let id = get.id.as_deref().unwrap_or_default();
    let path = get.file.clone().unwrap_or_else(|| PathBuf::from(file_name(id)));
    let path = get.dir.as_ref().map_or(path.clone(), |directory| directory.join(file_name(id)));
    if get.resume && path.as_os_str() == "-" {
        return Err(UsageError::ContinueToOutput.into());
    }
    if get.file.is_none() && get.dir.is_none() && !get.resume && path.exists() {
        // Only a file that was named is replaced.
        return Err(CliError::FileExists(path));
    }
    if let Some(directory) = &get.dir {
        std::fs::create_dir_all(directory).map_err(at(directory))?;
    }
    let mut client = session.client.clone();
    let mut others = client.endpoints().len() - 1;
    loop {
        let attempt = one(&get.db, id, &path, get.resume, &client, session);
        match attempt {
            Ok(length) => {
                session.note(&format!("{id}: {length} bytes in {}", path.display()));
                return Ok(());
            }
            // Another replica has the same bytes; it is looked at anew.
            Err((Some(endpoint), error)) if others > 0 && path.as_os_str() != "-" && is_of_the_way(&error) => {
                others -= 1;
                client = client.avoiding(&endpoint);
            }
            Err((_, error)) => return Err(error),
        }
    }
}

/// Whether it was the way to a replica that failed, so that another replica may do better.
fn is_of_the_way(error: &CliError) -> bool {
    matches!(
        error,
        CliError::Client(ClientError::BrokenOff { .. } | ClientError::Unreachable(_) | ClientError::Timeout(_))
    )
}

/// One file from one replica: the look, and the GET at whoever answered it. An error comes with who that was.
fn one(
    db: &str,
    id: &str,
    path: &Path,
    resume: bool,
    client: &Client,
    session: &Session,
) -> Result<u64, (Option<Endpoint>, CliError)> {
    let response = session.send_with(client, &look(db, id, session)).map_err(|error| (None, error))?;
    let endpoint = response.endpoint().clone();
    let here = |error| (Some(endpoint.clone()), error);
    let expected = described(id, &response).map_err(here)?;
    let expected = Expected { size: Some(expected.size), digest: response.digest() };
    let progress = Progress::bytes(&session.settings, format!("fetching {id}"), expected.size);
    let file = File { db, id, path, resume, expected: Some(expected) };
    file.fetch(&client.only(&endpoint), session, &progress).map_err(here)
}

/// A file that is to be fetched from a replica that is up to date.
struct File<'a> {
    db: &'a str,
    id: &'a str,
    path: &'a Path,
    /// Whether to go on with what is there.
    resume: bool,
    /// What it must be, where that is known; else what the GET says.
    expected: Option<Expected>,
}

impl File<'_> {
    /// Fetches it; gives its length.
    fn fetch(&self, client: &Client, session: &Session, progress: &Progress) -> Result<u64, CliError> {
        if !self.resume {
            return self.fetch_into(Target::create(self.path)?, Hasher::new(), client, session, progress);
        }
        if let Some(expected) = self.expected
            && self.is_there(&expected)?
        {
            return Ok(expected.size.unwrap_or_default());
        }
        let (target, hasher) = Target::resume(self.path, progress)?;
        self.fetch_into(target, hasher, client, session, progress)
    }

    /// Whether the target is the whole file already.
    fn is_there(&self, expected: &Expected) -> Result<bool, CliError> {
        let length = std::fs::metadata(self.path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
        if length.is_none() || length != expected.size {
            return Ok(false);
        }
        let mut hasher = Hasher::new();
        let mut file = std::fs::File::open(self.path).map_err(at(self.path))?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match std::io::Read::read(&mut file, &mut buffer).map_err(at(self.path))? {
                0 => return Ok(expected.check(hasher).is_ok()),
                read => hasher.update(&buffer[..read]),
            }
        }
    }

    /// Fetches what is missing after what the hasher has seen.
    fn fetch_into(
        &self,
        mut target: Target,
        mut hasher: Hasher,
        client: &Client,
        session: &Session,
        progress: &Progress,
    ) -> Result<u64, CliError> {
        let size = self.expected.and_then(|expected| expected.size);
        if size.is_some_and(|size| hasher.length() > size) {
            hasher = target.restart()?;
        }
        let begun = hasher.length();
        // A beginning that is the whole needs no bytes; its digest is still to be looked at.
        if begun > 0 && size == Some(begun) {
            let length = hasher.length();
            target.finish(hasher, &self.expected.unwrap_or_default())?;
            return Ok(length);
        }
        let mut request = session
            .local(&["v1", "db", self.db, "media", self.id])
            .waiting(session.settings.timeout.unwrap_or(GET_WAIT), false);
        if begun > 0 {
            request = request.header("range", format!("bytes={begun}-"));
            if let Some(digest) = self.expected.and_then(|expected| expected.digest) {
                request = request.header("if-range", format!("\"sha256-{digest}\""));
            }
        }
        let mut response = session.send_with(client, &request)?;
        let digest = response.digest();
        let expected = self.expected.unwrap_or(Expected { size: response.number("content-length"), digest });
        if digest.is_some() && digest != expected.digest {
            return Err(CliError::Damaged(Damage::Replaced));
        }
        if begun > 0 && response.status() != 206 {
            hasher = target.restart()?;
        }
        target.receive(&mut response, &mut hasher, progress)?;
        let length = hasher.length();
        target.finish(hasher, &expected)?;
        Ok(length)
    }
}

/// Fetches all files that a query names: one look, which is the query, and then all GETs side by side.
fn all(get: &MediaGet, sql: &str, directory: &Path, session: &Session) -> Result<(), CliError> {
    let (ids, endpoint) = named(&get.db, sql, session)?;
    std::fs::create_dir_all(directory).map_err(at(directory))?;
    let client = session.client.only(&endpoint);
    let count = ids.len();
    let progress = Progress::items(&session.settings, format!("fetching files of {}", get.db), count as u64);
    let queue = Mutex::new(VecDeque::from(ids));
    let failures: Mutex<Vec<(String, CliError)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(count) {
            scope.spawn(|| {
                while let Some(id) = next(&queue) {
                    let path = directory.join(file_name(&id));
                    if let Err(error) = fetch_one_of_all(get, &id, &path, &client, session) {
                        failures.lock().expect("no panic while held").push((id, error));
                    }
                    progress.add(1);
                }
            });
        }
    });
    drop(progress);
    let failures = failures.into_inner().expect("no panic while held");
    for (id, error) in &failures {
        tell(&format!("{id}: {error}"));
    }
    session.note(&format!("{} of {count} files in {}", count - failures.len(), directory.display()));
    match failures.first() {
        None => Ok(()),
        Some((_, error)) => Err(CliError::SomeFiles { failed: failures.len(), all: count, code: error.exit_code() }),
    }
}

fn next(queue: &Mutex<VecDeque<String>>) -> Option<String> {
    queue.lock().expect("no panic while held").pop_front()
}

fn fetch_one_of_all(get: &MediaGet, id: &str, path: &Path, client: &Client, session: &Session) -> Result<(), CliError> {
    // The bar counts files; bytes are not shown.
    let quiet = crate::settings::Settings { quiet: true, ..session.settings.clone() };
    let progress = Progress::bytes(&quiet, "", None);
    let file = File { db: &get.db, id, path, resume: get.resume, expected: None };
    let fetched = if get.resume {
        // What is there can only be judged by what it must be: a plain look at the same replica.
        let head = session.local(&["v1", "db", &get.db, "media", id]).head_only();
        let response = session.send_with(client, &head)?;
        let info = described(id, &response)?;
        let expected = Expected { size: Some(info.size), digest: response.digest() };
        File { expected: Some(expected), ..file }.fetch(client, session, &progress)
    } else {
        file.fetch(client, session, &progress)
    };
    match fetched {
        Err(error) if is_missing(&error) => Err(error),
        other => other.map(|_| ()),
    }
}

/// The ids in the first column of a query's result, each once, and the replica that answered.
fn named(db: &str, sql: &str, session: &Session) -> Result<(Vec<String>, Endpoint), CliError> {
    let request = query::request(db, sql, b"[]", session).header("accept", "application/x-ndjson");
    let response = session.send(&request)?;
    let endpoint = response.endpoint().clone();
    let malformed = |detail| CliError::from(ClientError::Malformed { endpoint: endpoint.clone(), detail });
    let mut lines = Lines::new(response);
    let mut seen = std::collections::BTreeSet::<Digest>::new();
    let mut ids = Vec::new();
    while let Some(line) = lines.next()? {
        let row = match line {
            Line::Row(row) => row,
            Line::Columns(_) | Line::End(_) => continue,
        };
        let id = match query::values(row).map_err(malformed)?.into_iter().next() {
            None | Some(Value::Null) => continue,
            Some(Value::Text(text)) => text,
            Some(Value::Integer(integer)) => integer.to_string(),
            Some(Value::Real(real)) => format!("{real:?}"),
            Some(Value::Blob(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        };
        if seen.insert(Digest::of(id.as_bytes())) {
            ids.push(id);
        }
    }
    Ok((ids, endpoint))
}
