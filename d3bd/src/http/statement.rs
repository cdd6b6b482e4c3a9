//! Statements in JSON bodies.

use d3b::json::{JsonError, parse_arguments};
use d3b::{Arguments, Code, Expectation, Problem, Statement, Value};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::problem::bad_request;

/// Bytes of a statement's text and arguments together.
const STATEMENT_BYTES_MAX: usize = 1 << 20;
/// Statements in a batch.
const STATEMENTS_MAX: usize = 10_000;

/// The body of `POST /v1/db/{db}/query`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueryBody<'a> {
    sql: String,
    #[serde(default, borrow)]
    args: Option<&'a RawValue>,
}

/// The body of `POST /v1/db/{db}/batch`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody<'a> {
    #[serde(borrow)]
    statements: Vec<Object<BatchStatement<'a>>>,
    #[serde(default)]
    deferred_foreign_keys: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchStatement<'a> {
    sql: String,
    #[serde(default, borrow)]
    args: Option<&'a RawValue>,
    #[serde(default)]
    expect: Option<Object<ExpectBody>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectBody {
    rows_affected: Option<u64>,
    rows_returned: Option<u64>,
}

/// A batch that was read.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) statements: Vec<Statement>,
    pub(crate) deferred_foreign_keys: bool,
}

/// A JSON object that is read into a struct. By itself serde takes an array for a struct as well, its elements for the
/// members in their order; a client that sends one means something else.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMaps<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMaps<T> {
            type Value = T;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(OnlyMaps(std::marker::PhantomData)).map(Object)
    }
}

/// Reads a JSON body, an object, into a type of ours.
pub(crate) fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Problem> {
    match serde_json::from_str(text) {
        Ok(Object(body)) => Ok(body),
        Err(error) => Err(bad_request(format!("the body is not what this route takes: {error}"))),
    }
}

fn json_problem(error: &JsonError) -> Problem {
    bad_request(error.to_string())
}

/// Makes a statement of its text and its arguments in JSON.
pub(crate) fn statement(sql: String, args: Option<&RawValue>) -> Result<Statement, Problem> {
    let arguments = parse_arguments(args).map_err(|error| json_problem(&error))?;
    let statement = Statement { sql, arguments, expect: None };
    let size = statement_size(&statement);
    if size > STATEMENT_BYTES_MAX {
        let detail = format!("the statement and its arguments have {size} bytes, more than {STATEMENT_BYTES_MAX}");
        return Err(Problem::new(Code::TooLarge, detail)
            .with_hint("store large contents as media, and their ids in rows; split large inserts into a batch"));
    }
    Ok(statement)
}

fn statement_size(statement: &Statement) -> usize {
    let size = |value: &Value| value.as_ref().size();
    statement.sql.len()
        + match &statement.arguments {
            Arguments::Positional(values) => values.iter().map(size).sum::<usize>(),
            Arguments::Named(values) => values.iter().map(|(name, value)| name.len() + size(value)).sum(),
        }
}

/// Reads the body of a query.
pub(crate) fn read_query(text: &str) -> Result<Statement, Problem> {
    let body: QueryBody<'_> = read(text)?;
    statement(body.sql, body.args)
}

/// Reads arguments that stand alone, as in a query string.
pub(crate) fn read_query_string(sql: String, args: Option<&str>) -> Result<Statement, Problem> {
    let args: Option<&RawValue> = match args {
        Some(text) => Some(
            serde_json::from_str(text)
                .map_err(|error| bad_request(format!("args must be a JSON array or object: {error}")))?,
        ),
        None => None,
    };
    statement(sql, args)
}

/// Reads the body of a batch.
pub(crate) fn read_batch(text: &str) -> Result<Batch, Problem> {
    let body: BatchBody<'_> = read(text)?;
    if body.statements.is_empty() {
        return Err(bad_request("the batch has no statements"));
    }
    if body.statements.len() > STATEMENTS_MAX {
        let detail = format!("the batch has {} statements, more than {STATEMENTS_MAX}", body.statements.len());
        return Err(Problem::new(Code::TooLarge, detail).with_hint("send it as several batches"));
    }
    let statements = body.statements.into_iter().enumerate().map(|(index, Object(statement))| {
        batch_statement(statement).map_err(|mut problem| {
            problem.statement = u32::try_from(index).ok();
            problem
        })
    });
    Ok(Batch { statements: statements.collect::<Result<_, _>>()?, deferred_foreign_keys: body.deferred_foreign_keys })
}

fn batch_statement(body: BatchStatement<'_>) -> Result<Statement, Problem> {
    let expect = match body.expect.map(|Object(expect)| expect) {
        None => None,
        Some(ExpectBody { rows_affected: Some(rows), rows_returned: None }) => Some(Expectation::RowsAffected(rows)),
        Some(ExpectBody { rows_affected: None, rows_returned: Some(rows) }) => Some(Expectation::RowsReturned(rows)),
        Some(ExpectBody { .. }) => {
            return Err(bad_request("expect takes either rows_affected or rows_returned"));
        }
    };
    Ok(Statement { expect, ..statement(body.sql, body.args)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused<T>(result: Result<T, Problem>, code: Code, detail: &str) {
        let Err(problem) = result else { panic!("{detail}: accepted") };
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.detail.contains(detail), "{problem}");
    }

    #[test]
    fn queries_are_read() {
        let query = read_query(r#"{"sql":"SELECT ?","args":[9007199254740993]}"#).unwrap();
        assert_eq!(query.arguments, Arguments::Positional(vec![Value::Integer(9_007_199_254_740_993)]));
        assert_eq!(read_query(r#"{"sql":"SELECT 1","args":null}"#).unwrap().arguments, Arguments::default());
        assert_eq!(
            read_query_string("SELECT 1".into(), Some("[1]")).unwrap(),
            read_query(r#"{"sql":"SELECT 1","args":[1]}"#).unwrap()
        );
    }

    #[test]
    fn malformed_queries_are_refused() {
        check_refused(read_query("{"), Code::BadRequest, "EOF");
        check_refused(read_query("{}"), Code::BadRequest, "missing field `sql`");
        check_refused(read_query(r#"{"sql":"x","arg":[]}"#), Code::BadRequest, "unknown field `arg`");
        check_refused(read_query(r#"{"sql":"x","sql":"y"}"#), Code::BadRequest, "duplicate field");
        check_refused(read_query(r#"{"sql":"x","args":[[1]]}"#), Code::BadRequest, "argument 1");
        check_refused(read_query(r#"{"sql":7}"#), Code::BadRequest, "expected a string");
        check_refused(read_query(r#"["SELECT 1"]"#), Code::BadRequest, "expected an object");
        check_refused(read_query_string("x".into(), Some("[1")), Code::BadRequest, "args must be");
        let long = format!(r#"{{"sql":"{}"}}"#, "x".repeat(STATEMENT_BYTES_MAX + 1));
        check_refused(read_query(&long), Code::TooLarge, "1048577 bytes");
    }

    #[test]
    fn batches_are_read() {
        let text = r#"{"statements":[{"sql":"a"},{"sql":"b","args":[1],"expect":{"rows_affected":1}}]}"#;
        let batch = read_batch(text).unwrap();
        assert_eq!(batch.statements[1].expect, Some(Expectation::RowsAffected(1)));
        assert!(!batch.deferred_foreign_keys);
    }

    #[test]
    fn malformed_batches_are_refused() {
        check_refused(read_batch(r#"{"statements":[]}"#), Code::BadRequest, "no statements");
        check_refused(read_batch(r#"{"statements":[{"sql":"a","expect":{}}]}"#), Code::BadRequest, "either");
        check_refused(read_batch(r#"[[{"sql":"a"}]]"#), Code::BadRequest, "expected an object");
        check_refused(read_batch(r#"{"statements":[["a"]]}"#), Code::BadRequest, "expected an object");
        let listed = r#"{"statements":[{"sql":"a","expect":[1,null]}]}"#;
        check_refused(read_batch(listed), Code::BadRequest, "expected an object");
        let many = format!(r#"{{"statements":[{}]}}"#, vec![r#"{"sql":"a"}"#; STATEMENTS_MAX + 1].join(","));
        check_refused(read_batch(&many), Code::TooLarge, "10001 statements");
        let problem = read_batch(r#"{"statements":[{"sql":"a"},{"sql":"b","args":{"n":1}}]}"#).unwrap_err();
        assert_eq!(problem.statement, Some(1));
    }
}
