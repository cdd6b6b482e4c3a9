//! `/v1/db/{db}/query` and `/v1/db/{db}/batch`: SQL.

use d3b::{Answer, Operation, Problem};
use hyper::{Method, StatusCode};
use warp::reply::Response;

use super::body::utf8;
use super::call::{Call, request_digest, respond, with_slot};
use super::encode;
use super::parameters;
use super::problem::{self, bad_request};
use super::results::{Run, with_key};
use super::statement;

/// `/v1/db/{db}/query`.
pub(crate) async fn query(db: String, call: Call) -> Response {
    let result = if call.is_get() {
        get(&db, &call).await
    } else if call.method == Method::POST {
        post(&db, call).await
    } else {
        return call.other_method(&[Method::GET, Method::POST]);
    };
    result.unwrap_or_else(problem::response)
}

async fn get(db: &str, call: &Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let mut parameters = call.parameters()?;
    let sql = parameters.take("sql").ok_or_else(|| bad_request("the parameter sql is missing"))?;
    let args = parameters.take("args");
    let read = parameters.take_read()?;
    let (rows, integers) = parameters.take_form()?;
    parameters.finish()?;
    let statement = statement::read_query_string(sql, args.as_deref())?;
    Run { db, statement, read, write: None, form: call.form(rows, integers) }.run(call).await
}

async fn post(db: &str, mut call: Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let mut parameters = call.parameters()?;
    let read = parameters.take_read()?;
    let (rows, integers) = parameters.take_form()?;
    parameters.finish()?;
    let body = call.json_body().await?;
    let statement = statement::read_query(utf8(&body)?)?;
    let request = request_digest(&[b"query", db.as_str().as_bytes(), &body]);
    let write = Some(call.write_options(request, read.timeout)?);
    Run { db, statement, read, write, form: call.form(rows, integers) }.run(&call).await
}

/// `/v1/db/{db}/batch`.
pub(crate) async fn batch(db: String, call: Call) -> Response {
    if call.method != Method::POST {
        return call.other_method(&[Method::POST]);
    }
    post_batch(&db, call).await.unwrap_or_else(problem::response)
}

async fn post_batch(db: &str, mut call: Call) -> Result<Response, Problem> {
    let db = parameters::database(db)?;
    let mut parameters = call.parameters()?;
    let timeout = parameters.take_timeout()?;
    let (rows, integers) = parameters.take_form()?;
    parameters.finish()?;
    let body = call.json_body().await?;
    let batch = statement::read_batch(utf8(&body)?)?;
    let options = call.write_options(request_digest(&[b"batch", db.as_str().as_bytes(), &body]), timeout)?;
    let operation = Operation::Sql {
        db,
        statements: batch.statements,
        deferred_foreign_keys: batch.deferred_foreign_keys,
        media: None,
    };
    let answer = call.handle().write(operation, options).await?;
    let mut out = Vec::new();
    match &answer.answer {
        Answer::Results(results) => encode::write_batch(&mut out, results, rows, integers, answer.slot),
        Answer::Catalogue { .. } => encode::write_answer(&mut out, &answer.answer, answer.slot),
    }
    out.push(b'\n');
    Ok(with_key(with_slot(respond(StatusCode::OK, "application/json", out), answer.slot), &answer))
}
