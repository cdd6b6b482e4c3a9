//! `/v1/db/{db}/media`: files that belong to a database.

use d3b::api::MediaInfo;
use d3b::operation::StatementResult;
use d3b::{
    Answer, BlobReference, Code, DatabaseName, Digest, FileId, MediaChange, Operation, Problem, Slot, Statement,
};
use hyper::header::{CONTENT_TYPE, IF_NONE_MATCH, IF_RANGE, RANGE};
use hyper::{HeaderMap, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;
use warp::reply::{Reply, Response};

use super::call::{Call, json, request_digest, respond, set_header, with_slot};
use super::encode::{self, Form, Rows};
use super::multipart;
use super::parameters::{self, ReadParameters};
use super::problem::{self, bad_request};
use super::range::{self, Selected};
use super::results::with_key;
use super::{statement, streams};
use crate::handle::{Handle, MediaFile, ReadOptions, WriteAnswer};
use d3b::json::Integers;

/// Files in one page of a list, unless told.
const PAGE_DEFAULT: u64 = 1_000;
/// The most that may be told.
const PAGE_MAX: u64 = 10_000;
/// Bytes of a media type.
const MEDIA_TYPE_MAX: usize = 255;
/// What a path keeps of a file id.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `/v1/db/{db}/media`.
pub(crate) async fn collection(db: String, call: Call) -> Response {
    let result = if call.is_get() {
        list(&db, &call).await
    } else if call.method == Method::POST {
        post(&db, call).await
    } else {
        return call.other_method(&[Method::GET, Method::POST]);
    };
    result.unwrap_or_else(problem::response)
}

/// `/v1/db/{db}/media/{file_id}`.
pub(crate) async fn item(db: String, file_id: String, call: Call) -> Response {
    let result = if call.is_get() {
        get(&db, &file_id, &call).await
    } else if call.method == Method::PUT {
        put(&db, &file_id, call).await
    } else if call.method == Method::DELETE {
        delete(&db, &file_id, &call).await
    } else {
        return call.other_method(&[Method::PUT, Method::GET, Method::DELETE]);
    };
    result.unwrap_or_else(problem::response)
}

async fn list(db: &str, call: &Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let mut parameters = call.parameters()?;
    let after = parameters.take("after");
    let limit = parameters.take_number("limit")?.unwrap_or(PAGE_DEFAULT);
    let read = parameters.take_read()?;
    parameters.finish()?;
    let limit = match u32::try_from(limit) {
        Ok(limit) if (1..=PAGE_MAX).contains(&u64::from(limit)) => limit,
        Ok(_) | Err(_) => return Err(bad_request(format!("limit must be between 1 and {PAGE_MAX}"))),
    };
    let list = call.handle().media_list(db, after, limit, read.options()).await?;
    Ok(with_slot(json(StatusCode::OK, &list), call.applied()))
}

/// A plain GET is served by this replica's own state. With `level` it is preceded by the metadata fetch that brings
/// this replica up to date.
async fn get(db: &str, file_id: &str, call: &Call) -> Result<Response, Problem> {
    let (db, file_id) = (parameters::database(db)?, parameters::file_id(file_id)?);
    let mut parameters = call.parameters()?;
    let level = parameters.take_level()?;
    let timeout = parameters.take_timeout()?;
    parameters.finish()?;
    let media = match level {
        Some(level) => {
            let options: ReadOptions = ReadParameters { level, timeout }.options();
            call.handle().media_info(db, file_id, options).await?
        }
        None => call.handle().open_media(db, file_id).await?,
    };
    serve(call, &media).await
}

/// Answers with a file's bytes, or with as much as `Range`, `If-None-Match` and `HEAD` leave of them.
pub(crate) async fn serve(call: &Call, media: &MediaFile) -> Result<Response, Problem> {
    let (tag, size) = (entity_tag(&media.digest), media.info.size);
    if let Some(tags) = call.header(IF_NONE_MATCH.as_str())?
        && range::matches(tags, &tag)
    {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        set_header(&mut response, "etag", &tag);
        return Ok(with_slot(response, Slot(media.info.slot)));
    }
    let unchanged = call.header(IF_RANGE.as_str())?.is_none_or(|if_range| if_range.trim() == tag);
    let range = call.header(RANGE.as_str())?.filter(|_| unchanged && call.method != Method::HEAD);
    let (status, offset, length) = match range::select(range, size) {
        Selected::Whole => (StatusCode::OK, 0, size),
        Selected::Part { offset, length } => (StatusCode::PARTIAL_CONTENT, offset, length),
        Selected::Unsatisfiable => {
            let problem = Problem::new(Code::Range, format!("the file has {size} bytes"));
            let mut response = problem::response(problem);
            set_header(&mut response, "content-range", &format!("bytes */{size}"));
            return Ok(response);
        }
    };
    let mut response = if call.method == Method::HEAD || length == 0 {
        status.into_response()
    } else {
        let mut response = streams::response(call.handle().media_bytes(media, offset, length).await?);
        *response.status_mut() = status;
        response
    };
    if status == StatusCode::PARTIAL_CONTENT {
        set_header(&mut response, "content-range", &format!("bytes {offset}-{}/{size}", offset + length - 1));
    }
    set_header(&mut response, "content-length", &length.to_string());
    set_header(&mut response, "accept-ranges", "bytes");
    set_header(&mut response, "content-type", &media.info.r#type);
    // The bytes are whatever clients stored: a browser must neither guess what they are nor run them as ours.
    set_header(&mut response, "x-content-type-options", "nosniff");
    set_header(&mut response, "content-security-policy", "sandbox");
    set_header(&mut response, "etag", &tag);
    set_digest(&mut response, &media.digest);
    Ok(with_slot(response, Slot(media.info.slot)))
}

async fn put(db: &str, file_id: &str, mut call: Call) -> Result<Response, Problem> {
    let (db, file_id) = (parameters::database(db)?, parameters::file_id(file_id)?);
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    parameters.finish()?;
    call.refuse_preconditions()?;
    if multipart::is_form(&call) {
        return Err(Problem::new(Code::UnsupportedMediaType, "PUT takes the file's bytes as its body, not a form")
            .with_hint(format!("send the form to POST /v1/db/{db}/media")));
    }
    let media_type = media_type(&call.headers)?;
    let existed = existed(call.handle(), &db, &file_id, timeout).await?;
    let body = call.take_body();
    let blob = body.store(&call.headers, call.handle(), call.shared.upload_max, true).await?;
    let blob = blob.expect("an empty body is kept");
    let parts =
        [&b"media"[..], db.as_str().as_bytes(), file_id.as_str().as_bytes(), media_type.as_bytes(), &blob.digest.0];
    let options = call.write_options(request_digest(&parts), timeout)?;
    let stored = Stored { db, file_id, blob, media_type };
    let answer = call.handle().write(stored.operation(Vec::new()), options).await?;
    let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
    Ok(stored.respond(json(status, &stored.info(answer.slot)), &answer))
}

/// Whether a file of that id is there, as far as this replica knows; a database that does not exist is told before the
/// file is taken in.
async fn existed(
    handle: &Handle,
    db: &DatabaseName,
    file_id: &FileId,
    timeout: parameters::Timeout,
) -> Result<bool, Problem> {
    match handle.open_media(db.clone(), file_id.clone()).await {
        Ok(_) => Ok(true),
        Err(problem) if problem.code == Code::DatabaseNotFound => {
            // It may have been made just now, on another replica.
            let read = ReadParameters { level: crate::handle::Level::Linearizable, timeout };
            handle.database(db.clone(), read.options()).await.map(|_| false)
        }
        Err(problem) if problem.code == Code::MediaNotFound => Ok(false),
        Err(problem) => Err(problem),
    }
}

/// The part `json` of `POST /v1/db/{db}/media`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PostBody<'a> {
    file_id: FileId,
    #[serde(default)]
    sql: Option<String>,
    #[serde(default, borrow)]
    args: Option<&'a RawValue>,
}

async fn post(db: &str, mut call: Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    let (rows, integers) = parameters.take_form()?;
    parameters.finish()?;
    if !multipart::is_form(&call) {
        return Err(Problem::new(Code::UnsupportedMediaType, "this route takes multipart/form-data")
            .with_hint("with the parts \"json\" and \"file\"; a file without SQL goes to PUT .../media/FILE_ID"));
    }
    let received = multipart::receive(&mut call, read_post).await?;
    let (file_id, statements) = received.json;
    let (text, digest) = (&received.text[..], &received.blob.digest.0);
    let parts = [&b"media"[..], db.as_str().as_bytes(), text, received.media_type.as_bytes(), digest];
    let options = call.write_options(request_digest(&parts), timeout)?;
    let stored = Stored { db, file_id, blob: received.blob, media_type: received.media_type };
    let answer = call.handle().write(stored.operation(statements), options).await?;
    let body = stored.info_with_results(&answer, rows, integers);
    Ok(stored.respond(respond(StatusCode::CREATED, "application/json", body), &answer))
}

fn read_post(text: &str) -> Result<(FileId, Vec<Statement>), Problem> {
    let body: PostBody<'_> = statement::read(text)?;
    let statements = match body.sql {
        Some(sql) => vec![statement::statement(sql, body.args)?],
        None if body.args.is_some() => return Err(bad_request("args without sql")),
        None => Vec::new(),
    };
    Ok((body.file_id, statements))
}

async fn delete(db: &str, file_id: &str, call: &Call) -> Result<Response, Problem> {
    let (db, file_id) = (parameters::database(db)?, parameters::file_id(file_id)?);
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    parameters.finish()?;
    call.refuse_preconditions()?;
    let parts = [&b"media delete"[..], db.as_str().as_bytes(), file_id.as_str().as_bytes()];
    let options = call.write_options(request_digest(&parts), timeout)?;
    let body = serde_json::json!({ "file_id": file_id.as_str() });
    let media = Some(MediaChange::Delete { file_id });
    let operation = Operation::Sql { db, statements: Vec::new(), deferred_foreign_keys: false, media };
    let answer = call.handle().write(operation, options).await?;
    let mut body = body;
    body["slot"] = answer.slot.0.into();
    Ok(with_key(with_slot(json(StatusCode::OK, &body), answer.slot), &answer))
}

/// A file that is being stored.
struct Stored {
    db: DatabaseName,
    file_id: FileId,
    blob: BlobReference,
    media_type: String,
}

impl Stored {
    fn operation(&self, statements: Vec<Statement>) -> Operation {
        let media =
            MediaChange::Upload { file_id: self.file_id.clone(), blob: self.blob, media_type: self.media_type.clone() };
        Operation::Sql { db: self.db.clone(), statements, deferred_foreign_keys: false, media: Some(media) }
    }

    fn info(&self, slot: Slot) -> MediaInfo {
        MediaInfo {
            file_id: self.file_id.as_str().to_owned(),
            size: self.blob.size,
            sha256: self.blob.digest.to_string(),
            r#type: self.media_type.clone(),
            slot: slot.0,
        }
    }

    /// The file's description with what the SQL gave.
    fn info_with_results(&self, answer: &WriteAnswer, rows: Rows, integers: Integers) -> Vec<u8> {
        let mut body = serde_json::to_vec(&self.info(answer.slot)).expect("our own types are JSON");
        let results: &[StatementResult] = match &answer.answer {
            Answer::Results(results) => results,
            Answer::Catalogue { .. } => &[],
        };
        body.pop();
        body.extend_from_slice(b",\"results\":[");
        for (index, result) in results.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            encode::write_result(&mut body, result, Form::Json(rows, integers), None);
        }
        body.extend_from_slice(b"]}\n");
        body
    }

    fn respond(&self, mut response: Response, answer: &WriteAnswer) -> Response {
        let path = utf8_percent_encode(self.file_id.as_str(), PATH);
        set_header(&mut response, "location", &format!("/v1/db/{}/media/{path}", self.db));
        set_header(&mut response, "etag", &entity_tag(&self.blob.digest));
        set_digest(&mut response, &self.blob.digest);
        with_key(with_slot(response, answer.slot), answer)
    }
}

fn entity_tag(digest: &Digest) -> String {
    format!("\"sha256-{digest}\"")
}

fn set_digest(response: &mut Response, digest: &Digest) {
    set_header(response, "repr-digest", &digest.to_repr_digest());
}

/// The media type of a body or part, as it will be served.
pub(crate) fn media_type(headers: &HeaderMap) -> Result<String, Problem> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Ok("application/octet-stream".to_owned());
    };
    match value.to_str() {
        Ok(text) if text.len() <= MEDIA_TYPE_MAX && text.contains('/') => Ok(text.trim().to_owned()),
        Ok(_) | Err(_) => {
            Err(bad_request(format!("the Content-Type {value:?} is not a media type such as image/jpeg")))
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn media_types_are_checked() {
        let mut headers = HeaderMap::new();
        assert_eq!(media_type(&headers).unwrap(), "application/octet-stream");
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("image/jpeg"));
        assert_eq!(media_type(&headers).unwrap(), "image/jpeg");
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("jpeg"));
        assert!(media_type(&headers).is_err());
    }

    #[test]
    fn the_json_part_is_read() {
        let (file_id, statements) = read_post(r#"{"file_id":"a/b","sql":"INSERT","args":[1]}"#).unwrap();
        assert_eq!((file_id.as_str(), statements.len()), ("a/b", 1));
        assert!(read_post(r#"{"file_id":"a"}"#).unwrap().1.is_empty());
        assert!(read_post(r#"{"file_id":"a","args":[1]}"#).unwrap_err().detail.contains("args without sql"));
        assert!(read_post(r#"{"file_id":"a\nb"}"#).unwrap_err().detail.contains("control"));
    }
}
