//! `media put`: a file, alone or in one atomic step with a statement.

use std::path::Path;

use d3b::api::MediaInfo;
use d3b::client::{Body, Method, Request};

use super::super::database::upload_wait;
use super::fields;
use crate::arguments::{arguments, body, statement};
use crate::cli::MediaPut;
use crate::error::{CliError, UsageError, at};
use crate::output::Output;
use crate::progress::Progress;
use crate::session::Session;
use crate::transfer::Source;

/// Media types by the ends of names; anything else is bytes.
const TYPES: &[(&str, &str)] = &[
    ("avif", "image/avif"),
    ("css", "text/css"),
    ("csv", "text/csv"),
    ("gif", "image/gif"),
    ("htm", "text/html"),
    ("html", "text/html"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript"),
    ("json", "application/json"),
    ("md", "text/markdown"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("ogg", "audio/ogg"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("txt", "text/plain"),
    ("wav", "audio/wav"),
    ("webm", "video/webm"),
    ("webp", "image/webp"),
    ("xml", "application/xml"),
    ("zip", "application/zip"),
];

/// Stores a file.
pub(in crate::cmd) fn run(put: &MediaPut, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let id = file_id(put)?;
    let media_type = put.media_type.clone().unwrap_or_else(|| media_type(&put.file).to_owned());
    let source = Source::open(&put.file)?;
    let length = source.length;
    let progress = Progress::bytes(&session.settings, format!("reading {}", put.file.display()), Some(length));
    let digest = source.digest(&progress).map_err(at(&put.file))?.to_repr_digest();
    drop(progress);
    let progress = Progress::bytes(&session.settings, format!("storing {id}"), Some(length));
    let file = put.file.display();
    let (request, curl) = match &put.sql {
        None => {
            let request = Request::new(Method::PUT, &["v1", "db", &put.db, "media", &id]);
            let request = request.header("repr-digest", digest).body(&media_type, source.into_body());
            (request, vec!["-T".to_owned(), file.to_string()])
        }
        Some(sql) => {
            let json = body(&[("file_id", &id)], Some(&statement(sql)?), &arguments(&put.args, None)?);
            let curl = vec![
                "--form-string".to_owned(),
                format!("json={}", String::from_utf8_lossy(&json)),
                "-F".to_owned(),
                format!("file=@{file};type={media_type}"),
            ];
            let form = Form { json, media_type: &media_type, digest: &digest };
            let request = Request::new(Method::POST, &["v1", "db", &put.db, "media"]);
            (form.put_into(request, source), curl)
        }
    };
    let request = session
        .change(request, &put.db)
        .waiting(upload_wait(session, length), true)
        .probing("readyz")
        .reporting(progress.setter());
    let Some(response) = session.write(&request, &curl)? else { return Ok(()) };
    drop(progress);
    let (info, body): (MediaInfo, _) = response.json()?;
    output.change(&body, &format!("{id}: {} bytes stored at slot {}", info.size, info.slot), fields(&info))
}

/// The id that was told, or the file's name.
fn file_id(put: &MediaPut) -> Result<String, CliError> {
    if let Some(id) = &put.id {
        return Ok(id.clone());
    }
    let name = put.file.file_name().filter(|_| put.file.as_os_str() != "-");
    Ok(name.ok_or(UsageError::NeedsId)?.to_string_lossy().into_owned())
}

fn media_type(file: &Path) -> &'static str {
    let end = file.extension().and_then(|end| end.to_str()).unwrap_or_default().to_ascii_lowercase();
    TYPES.iter().find(|(known, _)| *known == end).map_or("application/octet-stream", |(_, media_type)| media_type)
}

/// A form with the parts `json` and `file`.
struct Form<'a> {
    json: Vec<u8>,
    media_type: &'a str,
    digest: &'a str,
}

impl Form<'_> {
    fn put_into(self, request: Request, source: Source) -> Request {
        // Too long to stand in any file by chance, and never the same twice.
        let boundary = format!("d3b-{}-{}", uuid::Uuid::now_v7(), uuid::Uuid::now_v7());
        // A line feed in a type would begin another header; the server judges the rest.
        let media_type = self.media_type.replace(['\r', '\n'], " ");
        let mut head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"json\"\r\nContent-Type: application/json\r\n\r\n"
        )
        .into_bytes();
        head.extend_from_slice(&self.json);
        head.extend_from_slice(
            format!(
                "\r\n--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\n\
                 Content-Type: {media_type}\r\nRepr-Digest: {}\r\n\r\n",
                self.digest
            )
            .as_bytes(),
        );
        let body = Body::bytes(head).then(source.into_body()).then(Body::bytes(format!("\r\n--{boundary}--\r\n")));
        request.body(&format!("multipart/form-data; boundary={boundary}"), body)
    }
}
