//! `POST /`: the original wire form, frozen. Clients that know nothing else keep working.

use d3b::{
    Arguments, Code, DatabaseName, FileId, MediaChange, Operation, Problem, RowSink, SinkClosed, Statement, Value,
    ValueRef,
};
use hyper::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use warp::reply::Response;

use super::body::utf8;
use super::call::{Call, request_digest};
use super::encode::Form;
use super::parameters::{RESULT_BYTES_MAX, Timeout};
use super::problem::{self, bad_request};
use super::results::{Run, written};
use super::{media, multipart, statement};
use crate::handle::{Level, ReadOptions, WriteOptions};
use crate::schema;

/// A request as it stands in JSON. Members that are not known are passed over, as they always were.
#[derive(Deserialize)]
struct RawBody<'a> {
    table: Option<String>,
    query: Option<String>,
    #[serde(default, borrow)]
    args: Option<&'a RawValue>,
    media_op: Option<String>,
    file_id: Option<String>,
}

/// A request that was read.
#[derive(Debug, PartialEq)]
struct Request {
    table: DatabaseName,
    /// `None` where `query` is empty.
    statement: Option<Statement>,
    media: Option<MediaRequest>,
}

#[derive(Debug, PartialEq)]
enum MediaRequest {
    Upload(FileId),
    Delete(FileId),
    Get(FileId),
}

/// `/`.
pub(crate) async fn root(call: Call) -> Response {
    if call.method != Method::POST {
        return call.other_method(&[Method::POST]);
    }
    post(call).await.unwrap_or_else(problem::response)
}

async fn post(mut call: Call) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let read = parameters.take_read()?;
    parameters.finish()?;
    if multipart::is_form(&call) {
        return upload(call, read.timeout).await;
    }
    let body = call.json_body().await?;
    let Request { table, statement, media } = read_request(utf8(&body)?)?;
    let request = request_digest(&[b"raw", &body]);
    match media {
        None => {
            let statement = statement.ok_or_else(|| bad_request("\"query\" is empty"))?;
            let write = Some(call.write_options(request, read.timeout)?);
            Run { db: table, statement, read, write, form: Form::Legacy }.run(&call).await
        }
        Some(MediaRequest::Get(file_id)) if table.is_catalogue() => {
            let db = database_of(&call, &file_id, read.timeout).await?;
            super::db::send_copy(&call, db, read.timeout).await
        }
        Some(MediaRequest::Get(file_id)) => {
            let media = call.handle().open_media(table, file_id).await?;
            media::serve(&call, &media).await
        }
        Some(MediaRequest::Delete(file_id)) => {
            let options = call.write_options(request, read.timeout)?;
            delete(&call, table, statement, file_id, options).await
        }
        Some(MediaRequest::Upload(_)) => Err(bad_request("\"media_op\":\"upload\" needs the file")
            .with_hint("send multipart/form-data with the parts \"json\" and \"file\"")),
    }
}

async fn upload(mut call: Call, timeout: Timeout) -> Result<Response, Problem> {
    let received = multipart::receive(&mut call, |text| {
        let request = read_request(text)?;
        match request.media {
            Some(MediaRequest::Upload(file_id)) => Ok((request.table, request.statement, file_id)),
            Some(MediaRequest::Delete(_) | MediaRequest::Get(_)) | None => {
                Err(bad_request("a form with a file needs \"media_op\":\"upload\" and \"file_id\""))
            }
        }
    })
    .await?;
    let (table, statement, file_id) = received.json;
    let parts = [&b"raw"[..], &received.text, received.media_type.as_bytes(), &received.blob.digest.0];
    let options = call.write_options(request_digest(&parts), timeout)?;
    let (handle, blob) = (call.handle(), received.blob);
    let answer = if table.is_catalogue() {
        let statement =
            statement.ok_or_else(|| catalogue_query("INSERT INTO tables (owner, name, fileid) VALUES (?,?,?)"))?;
        schema::raw_upload(handle, statement, file_id, blob, options).await?
    } else {
        let media = MediaChange::Upload { file_id, blob, media_type: received.media_type };
        handle.write(operation(table, statement, media), options).await?
    };
    Ok(written(Form::Legacy, &answer))
}

/// The database that was uploaded as this file, as far as this replica knows: media of the catalogue are databases.
async fn database_of(call: &Call, file_id: &FileId, timeout: Timeout) -> Result<DatabaseName, Problem> {
    let statement = Statement {
        sql: "SELECT name FROM tables WHERE fileid = ?".to_owned(),
        arguments: Arguments::Positional(vec![Value::Text(file_id.as_str().to_owned())]),
        expect: None,
    };
    let options = ReadOptions {
        level: Level::Stale { max_staleness: None },
        deadline: timeout.deadline(),
        result_bytes_max: Some(RESULT_BYTES_MAX),
    };
    let (Name(name), _) = call.handle().read(DatabaseName::catalogue(), statement, options, Name(None)).await?;
    let missing = || Problem::new(Code::MediaNotFound, format!("no database was uploaded as {:?}", file_id.as_str()));
    Ok(DatabaseName::new(name.ok_or_else(missing)?)?)
}

/// The first text of a result.
struct Name(Option<String>);

impl RowSink for Name {
    fn columns(&mut self, _: &[String], _: &[String]) -> Result<(), SinkClosed> {
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SinkClosed> {
        if let (None, Some(ValueRef::Text(text))) = (&self.0, values.first()) {
            self.0 = Some(text.to_string());
        }
        Ok(())
    }

    fn restart(&mut self) -> bool {
        self.0 = None;
        true
    }
}

async fn delete(
    call: &Call,
    table: DatabaseName,
    statement: Option<Statement>,
    file_id: FileId,
    options: WriteOptions,
) -> Result<Response, Problem> {
    let answer = if table.is_catalogue() {
        let statement = statement.ok_or_else(|| catalogue_query("DELETE FROM tables WHERE name = ?"))?;
        schema::raw_delete(call.handle(), statement, file_id, options).await?
    } else {
        call.handle().write(operation(table, statement, MediaChange::Delete { file_id }), options).await?
    };
    Ok(written(Form::Legacy, &answer))
}

fn catalogue_query(example: &str) -> Problem {
    bad_request("on \"schemas\", \"query\" must not be empty").with_hint(format!("it is {example}"))
}

fn operation(db: DatabaseName, statement: Option<Statement>, media: MediaChange) -> Operation {
    let statements = statement.into_iter().collect();
    Operation::Sql { db, statements, deferred_foreign_keys: false, media: Some(media) }
}

fn read_request(text: &str) -> Result<Request, Problem> {
    let body: RawBody<'_> = statement::read(text)?;
    let missing = |name: &str| bad_request(format!("{name:?} is missing"));
    let table = body.table.ok_or_else(|| missing("table"))?;
    let query = body.query.ok_or_else(|| missing("query"))?;
    let args = body.args.ok_or_else(|| missing("args"))?;
    let table = DatabaseName::new(table)?;
    let statement = if query.is_empty() { None } else { Some(statement::statement(query, Some(args))?) };
    let media = match body.media_op.as_deref() {
        None => None,
        Some(op @ ("upload" | "delete" | "get")) => {
            let file_id = FileId::new(body.file_id.ok_or_else(|| missing("file_id"))?)?;
            Some(match op {
                "upload" => MediaRequest::Upload(file_id),
                "delete" => MediaRequest::Delete(file_id),
                _ => MediaRequest::Get(file_id),
            })
        }
        Some(other) => {
            return Err(bad_request(format!("\"media_op\" must be upload, delete or get, not {other:?}")));
        }
    };
    Ok(Request { table, statement, media })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(text: &str, expected: &str) {
        let problem = read_request(text).expect_err(text);
        assert!(problem.detail.contains(expected), "{text}: {problem}");
    }

    #[test]
    fn requests_are_read() {
        let request = read_request(r#"{"table":"shop","query":"SELECT ?","args":[7],"extra":[[[]]]}"#).unwrap();
        assert_eq!(request.table.as_str(), "shop");
        assert_eq!(request.statement.unwrap().arguments, d3b::Arguments::Positional(vec![Value::Integer(7)]));
        assert_eq!(request.media, None);
        let get = r#"{"table":"shop","query":"","args":[],"media_op":"get","file_id":"cat.jpg"}"#;
        let request = read_request(get).unwrap();
        assert_eq!(
            (request.statement, request.media),
            (None, Some(MediaRequest::Get(FileId::new("cat.jpg").unwrap())))
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        check_refused(r#"{"query":"","args":[]}"#, "\"table\" is missing");
        check_refused(r#"{"table":"a","args":[]}"#, "\"query\" is missing");
        check_refused(r#"{"table":"a","query":""}"#, "\"args\" is missing");
        check_refused(r#"{"table":"a","query":"","args":[],"media_op":"get"}"#, "\"file_id\" is missing");
        check_refused(r#"{"table":"a","query":"","args":[],"media_op":"put","file_id":"x"}"#, "upload, delete or get");
        check_refused(r#"{"table":"../a","query":"","args":[]}"#, "database name");
        check_refused("[]", "not what this route takes");
    }
}
