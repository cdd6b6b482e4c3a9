//! `upload`, `download`, `delete`, `list`, `info`, `schema`: databases as a whole.

use std::path::{Path, PathBuf};
use std::time::Duration;

use d3b::api::{DatabaseChange, DatabaseInfo, DatabaseList, Schema, SchemaObject};
use d3b::client::{Client, ClientError, Method, Request};
use d3b::{Code, Hasher, Value};

use super::confirm;
use crate::cli::{self, Download, Format, Upload};
use crate::error::{CliError, at};
use crate::output::{Column, Output, json, number, optional, printable, text};
use crate::progress::Progress;
use crate::session::{CATALOGUE, Session};
use crate::transfer::{Expected, Source, Target};

/// How every SQLite 3 database begins.
const HEADER: &[u8] = b"SQLite format 3\0";
/// What an upload needs to be checked and copied to a majority: this, and a second for so many bytes.
const UPLOAD_WAIT: Duration = Duration::from_secs(10);
const UPLOAD_BYTES_PER_SECOND: u64 = 4 << 20;
/// The most that a server can be told to wait.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long a server takes at most to make a copy of a database, unless it is told.
const EXPORT_WAIT: Duration = Duration::from_secs(1800);

/// How long the group may take with a file of this length, unless the user tells.
pub(super) fn upload_wait(session: &Session, length: u64) -> Duration {
    let default = UPLOAD_WAIT + Duration::from_secs(length / UPLOAD_BYTES_PER_SECOND);
    session.settings.timeout.unwrap_or(default.min(WAIT_MAX))
}

/// Uploads a file as a database.
pub(super) fn upload(arguments: &Upload, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let Upload { db, file, replace, owner } = arguments;
    if let Some(journal) = journal_beside(file) {
        return Err(CliError::JournalBeside(journal));
    }
    let source = Source::open(file)?;
    let beginning = source.beginning(HEADER.len()).map_err(at(file))?;
    if !beginning.is_empty() && beginning != HEADER {
        return Err(CliError::NotADatabase(file.clone()));
    }
    // With a key of the user's this may be a repetition, whose answer is the first one's.
    if !replace && session.settings.key.is_none() && !session.settings.dry_run {
        refuse_existing(session, db)?;
    }
    let length = source.length;
    let progress = Progress::bytes(&session.settings, format!("reading {}", file.display()), Some(length));
    let digest = source.digest(&progress).map_err(at(file))?;
    drop(progress);
    let progress = Progress::bytes(&session.settings, format!("uploading {}", file.display()), Some(length));
    let mut request = Request::new(Method::PUT, &["v1", "db", db, "file"])
        .header("repr-digest", digest.to_repr_digest())
        .body("application/vnd.sqlite3", source.into_body());
    if let Some(owner) = owner {
        request = request.parameter("owner", owner);
    }
    if !replace {
        request = request.header("if-none-match", "*");
    }
    let request = session
        .change(request, CATALOGUE)
        .waiting(upload_wait(session, length), true)
        .probing("readyz")
        .reporting(progress.setter());
    let curl = ["-T".to_owned(), file.display().to_string()];
    let Some(response) = session.write(&request, &curl)? else { return Ok(()) };
    drop(progress);
    let (change, body): (DatabaseChange, _) = response.json()?;
    let what = if change.replaced { "replaced" } else { "created" };
    changed(&change, &body, what, output)
}

/// A file beside a database that holds what is not in the database yet.
fn journal_beside(file: &Path) -> Option<PathBuf> {
    ["-wal", "-journal"].into_iter().find_map(|suffix| {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        let path = PathBuf::from(name);
        let holds = std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0);
        holds.then_some(path)
    })
}

/// Spares an upload in vain. The upload itself says the same, should the database be made meanwhile.
fn refuse_existing(session: &Session, db: &str) -> Result<(), CliError> {
    let request = Request::get(&["v1", "db", db]).waiting(session.settings.wait(), true);
    match session.client.send(&request) {
        Ok(_) => Err(CliError::DatabaseExists(db.to_owned())),
        Err(ClientError::Problem { problem, .. }) if problem.code == Code::DatabaseNotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn changed(change: &DatabaseChange, body: &[u8], what: &str, output: &mut Output) -> Result<(), CliError> {
    let sentence = format!("{} {what} at slot {}", change.name, change.slot);
    let fields = vec![
        ("name", text(&change.name)),
        ("id", text(&change.id)),
        ("replaced", Value::Integer(change.replaced.into())),
        ("slot", number(change.slot)),
    ];
    output.change(body, &sentence, fields)
}

/// Downloads a copy of a database.
pub(super) fn download(arguments: &Download, session: &Session) -> Result<(), CliError> {
    let Download { db, file } = arguments;
    let path = match file {
        Some(path) => path.clone(),
        None => {
            let path = PathBuf::from(format!("{}.sqlite3", crate::names::file_name(db)));
            // Only a file that was named is replaced.
            if path.exists() {
                return Err(CliError::FileExists(path));
            }
            path
        }
    };
    if let Some(journal) = journal_beside(&path) {
        return Err(CliError::JournalBesideTarget(journal));
    }
    let mut client = session.client.clone();
    let mut others = client.endpoints().len() - 1;
    let mut target = Target::create(&path)?;
    loop {
        match fetch(db, &client, session, &mut target) {
            Ok(copy) => {
                let length = copy.hasher.length();
                target.finish(copy.hasher, &copy.expected)?;
                let slot = copy.slot.map(|slot| format!(" as of slot {slot}")).unwrap_or_default();
                session.note(&format!("{db}: {length} bytes{slot} in {}", path.display()));
                return Ok(());
            }
            // What was received is thrown away, and another replica gets to make its copy.
            Err(CliError::Client(ClientError::BrokenOff { endpoint, .. })) if others > 0 && target.can_restart() => {
                others -= 1;
                client = client.avoiding(&endpoint);
            }
            Err(error) => return Err(error),
        }
    }
}

/// A copy of a database as it was received.
struct Copy {
    hasher: Hasher,
    expected: Expected,
    slot: Option<u64>,
}

fn fetch(db: &str, client: &Client, session: &Session, target: &mut Target) -> Result<Copy, CliError> {
    let progress = Progress::waiting(&session.settings, format!("waiting for a copy of {db}"));
    let request = session.long(Request::get(&["v1", "db", db, "file"]), EXPORT_WAIT);
    let mut response = session.send_with(client, &request)?;
    drop(progress);
    let expected = Expected { size: response.number("content-length"), digest: response.digest() };
    let mut hasher = target.restart()?;
    let progress = Progress::bytes(&session.settings, format!("downloading {db}"), expected.size);
    target.receive(&mut response, &mut hasher, &progress)?;
    Ok(Copy { hasher, expected, slot: response.number("d3b-slot") })
}

/// Drops a database.
pub(super) fn delete(db: &str, session: &Session, output: &mut Output) -> Result<(), CliError> {
    confirm(session, &format!("the database {db} with its media"))?;
    let request = session.change(Request::new(Method::DELETE, &["v1", "db", db]), CATALOGUE);
    let Some(response) = session.write(&request, &[])? else { return Ok(()) };
    let (change, body): (DatabaseChange, _) = response.json()?;
    changed(&change, &body, "deleted", output)
}

const COLUMNS: &[Column<DatabaseInfo>] = &[
    ("name", |info| text(&info.name)),
    ("size", |info| number(info.size)),
    ("media", |info| number(info.media)),
    ("slot", |info| number(info.slot)),
    ("created", |info| text(&info.created)),
    ("owner", |info| text(&info.owner)),
];

/// Lists the databases.
pub(super) fn list(session: &Session, output: &mut Output) -> Result<(), CliError> {
    let (list, body): (DatabaseList, _) = session.send(&session.read(&["v1", "db"]))?.json()?;
    output.list(&body, COLUMNS, &list.databases)
}

/// Tells of one database.
pub(super) fn info(db: &str, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let (info, body): (DatabaseInfo, _) = session.send(&session.read(&["v1", "db", db]))?.json()?;
    let mut fields: Vec<_> = COLUMNS.iter().map(|(name, value)| (*name, value(&info))).collect();
    fields.push(("id", text(&info.id)));
    fields.push(("fingerprint", text(&info.fingerprint)));
    output.object(&body, fields)
}

const SCHEMA_COLUMNS: &[Column<SchemaObject>] = &[
    ("type", |object| text(&object.r#type)),
    ("name", |object| text(&object.name)),
    ("table", |object| text(&object.table)),
    ("sql", |object| optional(object.sql.as_deref(), text)),
];

/// Shows a schema: for people, as the SQL that makes it.
pub(super) fn schema(arguments: &cli::Schema, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let cli::Schema { db, table } = arguments;
    let (mut schema, _): (Schema, _) = session.send(&session.read(&["v1", "db", db, "schema"]))?.json()?;
    if let Some(table) = table {
        // Names in SQL are the same in either case.
        schema.objects.retain(|object| object.table.eq_ignore_ascii_case(table));
        if schema.objects.is_empty() {
            return Err(CliError::NoSuchTable { db: db.clone(), table: table.clone() });
        }
    }
    if output.format() != Format::Table {
        return output.list(&json(&schema), SCHEMA_COLUMNS, &schema.objects);
    }
    for sql in schema.objects.iter().filter_map(|object| object.sql.as_deref()) {
        output.line(format!("{};", printable(sql)).as_bytes())?;
    }
    Ok(())
}
