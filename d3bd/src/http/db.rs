//! `/v1/db`: databases as a whole, their files, schemas, and the outcomes of their requests.

use std::time::{Duration, Instant};

use d3b::{Answer, Code, DatabaseName, IdempotencyKey, InsertMode, Problem};
use hyper::header::{HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::{Method, StatusCode};
use warp::reply::{Reply, Response};

use super::call::{Call, json, request_digest, respond, set_header, with_slot};
use super::problem::{self, bad_request};
use super::results::with_key;
use super::{encode, multipart, parameters, streams};
use crate::handle::{Level, ReadOptions, WriteAnswer};
use crate::schema;

/// How long a copy of a database may take to make, unless told.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(1800);
/// Characters of an owner.
const OWNER_MAX: usize = 255;

/// `/v1/db`.
pub(crate) async fn collection(call: Call) -> Response {
    if !call.is_get() {
        return call.other_method(&[Method::GET]);
    }
    list(&call).await.unwrap_or_else(problem::response)
}

async fn list(call: &Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let read = parameters.take_read()?;
    parameters.finish()?;
    let list = call.handle().databases(read.options()).await?;
    Ok(with_slot(json(StatusCode::OK, &list), call.applied()))
}

/// `/v1/db/{db}`.
pub(crate) async fn item(db: String, call: Call) -> Response {
    let result = if call.is_get() {
        info(&db, &call).await
    } else if call.method == Method::DELETE {
        delete(&db, &call).await
    } else {
        return call.other_method(&[Method::GET, Method::DELETE]);
    };
    result.unwrap_or_else(problem::response)
}

async fn info(db: &str, call: &Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let mut parameters = call.parameters()?;
    let read = parameters.take_read()?;
    parameters.finish()?;
    let info = call.handle().database(db, read.options()).await?;
    Ok(with_slot(json(StatusCode::OK, &info), call.applied()))
}

async fn delete(db: &str, call: &Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    parameters.finish()?;
    call.refuse_preconditions()?;
    let options = call.write_options(request_digest(&[b"drop", db.as_str().as_bytes()]), timeout)?;
    let answer = schema::delete_database(call.handle(), db, options).await?;
    Ok(changed(StatusCode::OK, &answer))
}

fn changed(status: StatusCode, answer: &WriteAnswer) -> Response {
    let mut body = Vec::new();
    encode::write_answer(&mut body, &answer.answer, answer.slot);
    body.push(b'\n');
    with_key(with_slot(respond(status, "application/json", body), answer.slot), answer)
}

/// `/v1/db/{db}/schema`.
pub(crate) async fn schema(db: String, call: Call) -> Response {
    if !call.is_get() {
        return call.other_method(&[Method::GET]);
    }
    get_schema(&db, &call).await.unwrap_or_else(problem::response)
}

async fn get_schema(db: &str, call: &Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let mut parameters = call.parameters()?;
    let read = parameters.take_read()?;
    parameters.finish()?;
    let schema = call.handle().schema(db, read.options()).await?;
    Ok(with_slot(json(StatusCode::OK, &schema), call.applied()))
}

/// `/v1/db/{db}/requests/{key}`.
pub(crate) async fn request(db: String, key: String, call: Call) -> Response {
    if !call.is_get() {
        return call.other_method(&[Method::GET]);
    }
    get_request(&db, &key, &call).await.unwrap_or_else(problem::response)
}

async fn get_request(db: &str, key: &str, call: &Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let key = IdempotencyKey::new(parameters::text(key)?)?;
    let mut parameters = call.parameters()?;
    let read = parameters.take_read()?;
    parameters.finish()?;
    let outcome = call.handle().request_outcome(db, key, read.options()).await?;
    Ok(with_slot(json(StatusCode::OK, &outcome), call.applied()))
}

/// `/v1/db/{db}/file`.
pub(crate) async fn file(db: String, call: Call) -> Response {
    let result = if call.is_get() {
        download(&db, &call).await
    } else if call.method == Method::PUT {
        upload(&db, call).await
    } else {
        return call.other_method(&[Method::PUT, Method::GET]);
    };
    result.unwrap_or_else(problem::response)
}

async fn download(db: &str, call: &Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let mut parameters = call.parameters()?;
    let read = parameters.take_read()?;
    parameters.finish()?;
    // The level is met within the usual time; the copy itself may take longer. The second look needs no leader.
    call.handle().database(db.clone(), read.options()).await?;
    send_copy(call, db, read.timeout).await
}

/// Answers with a copy of a database as it is here.
pub(crate) async fn send_copy(
    call: &Call,
    db: DatabaseName,
    timeout: parameters::Timeout,
) -> Result<Response, Problem> {
    let options = ReadOptions {
        level: Level::AtLeast(call.applied()),
        deadline: timeout.deadline_or(EXPORT_TIMEOUT),
        result_bytes_max: None,
    };
    let exported = call.handle().export(db.clone(), options).await?;
    let mut response = if call.method == Method::HEAD {
        StatusCode::OK.into_response()
    } else {
        streams::response(crate::media::file_stream(exported.file, 0, exported.size))
    };
    set_header(&mut response, "content-length", &exported.size.to_string());
    set_header(&mut response, "content-type", "application/vnd.sqlite3");
    set_header(&mut response, "content-disposition", &format!("attachment; filename=\"{db}.sqlite3\""));
    Ok(with_slot(response, exported.slot))
}

async fn upload(db: &str, mut call: Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    let owner = parameters.take("owner").unwrap_or_default();
    parameters.finish()?;
    if owner.chars().count() > OWNER_MAX || owner.contains('\0') {
        return Err(bad_request(format!("owner is text of at most {OWNER_MAX} characters")));
    }
    if multipart::is_form(&call) {
        return Err(Problem::new(Code::UnsupportedMediaType, "PUT takes the database file as its body, not a form")
            .with_hint("curl: --data-binary @FILE or -T FILE instead of -F"));
    }
    let mode = insert_mode(&call)?;
    refuse_existing(&call, &db, mode).await?;
    let body = call.take_body();
    let blob = body.store(&call.headers, call.handle(), call.shared.upload_max, false).await?;
    let digest = blob.map_or([0; 32], |blob| blob.digest.0);
    let mode_name = match mode {
        InsertMode::Replace => &b"replace"[..],
        InsertMode::CreateOnly => b"create",
    };
    let parts = [&b"upload"[..], db.as_str().as_bytes(), owner.as_bytes(), mode_name, &digest];
    let options = call.write_options(request_digest(&parts), timeout)?;
    let answer = schema::upload_database(call.handle(), db.clone(), owner, blob, mode, options).await?;
    let replaced = matches!(answer.answer, Answer::Catalogue { replaced: true, .. });
    let mut response = changed(if replaced { StatusCode::OK } else { StatusCode::CREATED }, &answer);
    set_header(&mut response, "location", &format!("/v1/db/{db}"));
    Ok(response)
}

fn insert_mode(call: &Call) -> Result<InsertMode, Problem> {
    if call.headers.contains_key(IF_MATCH) {
        return Err(Problem::new(Code::Precondition, "If-Match is not honoured here: databases have no entity tags"));
    }
    match call.headers.get(IF_NONE_MATCH).map(HeaderValue::as_bytes) {
        None => Ok(InsertMode::Replace),
        Some(b"*") => Ok(InsertMode::CreateOnly),
        Some(_) => Err(bad_request("If-None-Match takes * here, and nothing else")),
    }
}

/// Spares a client an upload in vain, as far as this replica knows. A request with a key may be a repeated one, whose
/// answer is not this.
async fn refuse_existing(call: &Call, db: &DatabaseName, mode: InsertMode) -> Result<(), Problem> {
    if mode == InsertMode::Replace || call.idempotency_key()?.is_some() {
        return Ok(());
    }
    let options = ReadOptions {
        level: Level::Stale { max_staleness: None },
        deadline: Instant::now() + Duration::from_secs(1),
        result_bytes_max: None,
    };
    match call.handle().database(db.clone(), options).await {
        Ok(_) => {
            // What this replica knows may be out of date: only the group says that a database exists.
            let options = ReadOptions { level: Level::Linearizable, ..options };
            match call.handle().database(db.clone(), options).await {
                Ok(_) => Err(Problem::new(Code::Exists, format!("the database {db} exists"))
                    .with_db(db.as_str())
                    .with_hint("without If-None-Match it would be replaced")),
                Err(_) => Ok(()),
            }
        }
        Err(_) => Ok(()),
    }
}
