//! `query`: one statement, or a batch. Results are written while they come.

use std::io::{BufRead as _, BufReader};

use d3b::client::{Body, ClientError, Method, Request, Response};
use d3b::json::parse_value;
use d3b::{Problem, Value};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::arguments::{arguments, body, contents, statement};
use crate::cli::{Format, Query};
use crate::error::{CliError, UsageError};
use crate::output::{Output, Sheet};
use crate::session::Session;
use crate::settings::TIMEOUT_DEFAULT;

/// Runs a statement or a batch.
pub(super) fn run(query: &Query, session: &Session, output: &mut Output) -> Result<(), CliError> {
    if let Some(file) = &query.batch {
        return batch(&query.db, &contents(file)?, session, output);
    }
    let sql = statement(query.sql.as_deref().unwrap_or_default())?;
    let args = arguments(&query.args, query.args_json.as_deref())?;
    let request = request(&query.db, &sql, &args, session).header("accept", accepted(output.format()));
    let request = request.write(&session.key(), &query.db);
    let Some(response) = session.write(&request, &[])? else { return Ok(()) };
    match output.format() {
        Format::Csv => copy(response, output),
        Format::Json => document(response, output),
        Format::Table | Format::Ndjson | Format::Line => rows(response, session, output),
    }
}

/// A request for one statement, which may take long.
pub(super) fn request(db: &str, sql: &str, args: &[u8], session: &Session) -> Request {
    let request = Request::new(Method::POST, &["v1", "db", db, "query"])
        .body("application/json", Body::bytes(body(&[], Some(sql), args)));
    session.long(request, TIMEOUT_DEFAULT)
}

/// What is asked for: what comes as it is produced, and tells whether it is whole.
fn accepted(format: Format) -> &'static str {
    match format {
        Format::Csv => "text/csv",
        Format::Table | Format::Json | Format::Ndjson | Format::Line => "application/x-ndjson",
    }
}

/// CSV goes through as the server makes it. The server breaks the connection off when it cannot go on.
fn copy(mut response: Response, output: &mut Output) -> Result<(), CliError> {
    use std::io::Read as _;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match response.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => output.raw(&buffer[..read])?,
            Err(error) => return Err(response.broken_off(&error).into()),
        }
    }
}

/// A line of a result.
pub(super) enum Line<'a> {
    /// The first one.
    Columns(Columns),
    /// A row: an array.
    Row(&'a str),
    /// The last one.
    End(End),
}

/// The columns of a result.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Columns {
    pub(super) columns: Vec<String>,
    types: Vec<String>,
}

/// What is known when a result has ended.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    end: bool,
    rows: u64,
    rows_affected: u64,
    last_insert_rowid: i64,
    slot: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ErrorLine {
    error: Box<RawValue>,
}

/// Reads the lines of a result, which must end with an end.
pub(super) struct Lines {
    reader: BufReader<Response>,
    line: Vec<u8>,
    rows: u64,
    ended: bool,
}

impl Lines {
    pub(super) fn new(response: Response) -> Lines {
        Lines { reader: BufReader::with_capacity(64 << 10, response), line: Vec::new(), rows: 0, ended: false }
    }

    /// The next line; `None` after the end.
    pub(super) fn next(&mut self) -> Result<Option<Line<'_>>, CliError> {
        if self.ended {
            return Ok(None);
        }
        self.line.clear();
        let read = self.reader.read_until(b'\n', &mut self.line);
        let response = self.reader.get_ref();
        read.map_err(|error| response.broken_off(&error))?;
        let malformed = |detail: String| CliError::from(response.malformed(detail));
        if self.line.last() != Some(&b'\n') {
            // Without a last line this is as good as a broken connection, whatever its framing says.
            return Err(response.broken_off(&std::io::ErrorKind::UnexpectedEof.into()).into());
        }
        let text = std::str::from_utf8(&self.line).map_err(|error| malformed(error.to_string()))?.trim_end();
        if text.starts_with('[') {
            self.rows += 1;
            return Ok(Some(Line::Row(text)));
        }
        if let Ok(columns) = serde_json::from_str(text) {
            return Ok(Some(Line::Columns(columns)));
        }
        if let Ok(ErrorLine { error }) = serde_json::from_str(text) {
            let problem = Problem::from_json(error.get().as_bytes())
                .ok_or_else(|| malformed("its last line is no problem of d3b".to_owned()))?;
            let endpoint = response.endpoint().clone();
            return Err(ClientError::Problem { endpoint, problem: Box::new(problem) }.into());
        }
        let end: End = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        if !end.end || end.rows != self.rows {
            return Err(malformed(format!("it ends after {} rows, and says {}", self.rows, end.rows)));
        }
        self.ended = true;
        Ok(Some(Line::End(end)))
    }
}

/// The values of a row, exactly.
pub(super) fn values(row: &str) -> Result<Vec<Value>, String> {
    let raw: Vec<&RawValue> = serde_json::from_str(row).map_err(|error| error.to_string())?;
    raw.into_iter().map(|value| parse_value(value).map_err(|error| error.to_string())).collect()
}

fn rows(response: Response, session: &Session, output: &mut Output) -> Result<(), CliError> {
    let endpoint = response.endpoint().clone();
    let mut lines = Lines::new(response);
    let mut sheet: Option<Sheet> = None;
    while let Some(line) = lines.next()? {
        match line {
            Line::Columns(Columns { columns, .. }) => {
                // A statement without rows has none.
                sheet = Some(output.sheet(columns.clone())).filter(|_| !columns.is_empty());
            }
            Line::Row(row) => {
                let malformed = |detail| CliError::from(ClientError::Malformed { endpoint: endpoint.clone(), detail });
                let sheet = sheet.as_mut().ok_or_else(|| malformed("rows without columns".to_owned()))?;
                let values = values(row).map_err(malformed)?;
                output.row(sheet, values)?;
            }
            Line::End(end) => {
                if let Some(sheet) = &mut sheet {
                    output.end(sheet)?;
                }
                output.flush()?;
                session.note(&summary(&end, sheet.is_some(), session.settings.verbose));
            }
        }
    }
    Ok(())
}

/// What a result comes to, for people.
fn summary(end: &End, has_columns: bool, verbose: bool) -> String {
    let count = |number: u64, what: &str| format!("{number} row{}{what}", if number == 1 { "" } else { "s" });
    let mut parts = Vec::new();
    if has_columns {
        parts.push(count(end.rows, ""));
    }
    if end.rows_affected > 0 || !has_columns {
        parts.push(count(end.rows_affected, " affected"));
    }
    if end.last_insert_rowid != 0 {
        parts.push(format!("last rowid {}", end.last_insert_rowid));
    }
    if verbose || end.rows_affected > 0 {
        parts.push(format!("slot {}", end.slot));
    }
    format!("({})", parts.join(", "))
}

/// The JSON document of a result, in the form in which the server would send it whole, put together from lines so that
/// it may be of any length.
fn document(response: Response, output: &mut Output) -> Result<(), CliError> {
    let mut lines = Lines::new(response);
    let mut rows = 0;
    while let Some(line) = lines.next()? {
        match line {
            Line::Columns(columns) => {
                let names = crate::output::json(&columns);
                output.raw(names.strip_suffix(b"}").unwrap_or(&names))?;
                output.raw(b",\"rows\":[")?;
            }
            Line::Row(row) => {
                if rows > 0 {
                    output.raw(b",")?;
                }
                output.raw(row.as_bytes())?;
                rows += 1;
            }
            Line::End(End { rows_affected, last_insert_rowid, slot, .. }) => {
                let rest = format!(
                    "],\"rows_affected\":{rows_affected},\"last_insert_rowid\":{last_insert_rowid},\"slot\":{slot}}}"
                );
                output.line(rest.as_bytes())?;
            }
        }
    }
    Ok(())
}

/// The answer to a batch.
#[derive(Deserialize)]
struct BatchAnswer<'a> {
    #[serde(borrow)]
    results: Vec<BatchResult<'a>>,
    slot: u64,
}

#[derive(Deserialize)]
struct BatchResult<'a> {
    columns: Vec<String>,
    #[serde(borrow)]
    rows: Vec<&'a RawValue>,
    rows_affected: u64,
    last_insert_rowid: i64,
}

/// Runs a batch: the body as it stands, or an array of its statements.
fn batch(db: &str, body: &[u8], session: &Session, output: &mut Output) -> Result<(), CliError> {
    let raw: &RawValue = serde_json::from_slice(body).map_err(|error| UsageError::Batch(error.to_string()))?;
    let text = raw.get();
    let text = if text.starts_with('[') { format!("{{\"statements\":{text}}}") } else { text.to_owned() };
    let request = Request::new(Method::POST, &["v1", "db", db, "batch"]).body("application/json", Body::bytes(text));
    let Some(response) = session.write(&session.change(request, db), &[])? else { return Ok(()) };
    let endpoint = response.endpoint().clone();
    let body = response.bytes()?;
    if output.format() == Format::Json {
        return output.line(&body);
    }
    let malformed = |detail| CliError::from(ClientError::Malformed { endpoint: endpoint.clone(), detail });
    let answer: BatchAnswer<'_> = serde_json::from_slice(&body).map_err(|error| malformed(error.to_string()))?;
    let mut shown = 0;
    for result in answer.results {
        if !result.columns.is_empty() {
            // Results with columns of their own are told apart by an empty line; lines of JSON need none.
            if shown > 0 && output.format() != Format::Ndjson {
                output.raw(b"\n")?;
            }
            shown += 1;
            let mut sheet = output.sheet(result.columns.clone());
            for row in &result.rows {
                output.row(&mut sheet, values(row.get()).map_err(malformed)?)?;
            }
            output.end(&mut sheet)?;
        }
        output.flush()?;
        let end = End {
            end: true,
            rows: result.rows.len() as u64,
            rows_affected: result.rows_affected,
            last_insert_rowid: result.last_insert_rowid,
            slot: answer.slot,
        };
        session.note(&summary(&end, !result.columns.is_empty(), session.settings.verbose));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::server::{chunked, response};

    const COLUMNS: &str = "{\"columns\":[\"id\"],\"types\":[\"INTEGER\"]}\n";
    const END: &str = "{\"end\":true,\"rows\":1,\"rows_affected\":0,\"last_insert_rowid\":0,\"slot\":7}\n";

    /// Reads all lines; gives the rows, or the error.
    fn read(text: &str, cut: bool) -> Result<Vec<Vec<Value>>, CliError> {
        let mut lines = Lines::new(response(chunked(text.as_bytes(), cut)));
        let mut rows = Vec::new();
        while let Some(line) = lines.next()? {
            match line {
                Line::Row(row) => rows.push(values(row).unwrap()),
                Line::Columns(columns) => assert_eq!(columns.columns, ["id"]),
                Line::End(end) => assert_eq!(end.slot, 7),
            }
        }
        Ok(rows)
    }

    #[track_caller]
    fn check_fails(text: &str, cut: bool, code: u8) {
        let error = read(text, cut).expect_err(text);
        assert_eq!(error.exit_code(), code, "{text}: {error}");
    }

    #[test]
    fn rows_are_exact() {
        let rows = read(&format!("{COLUMNS}[-9223372036854775808]\n{END}"), false).unwrap();
        assert_eq!(rows, [[Value::Integer(i64::MIN)]]);
    }

    #[test]
    fn a_result_without_its_end_is_an_error() {
        check_fails(&format!("{COLUMNS}[1]\n"), false, 8);
        check_fails(&format!("{COLUMNS}[1]\n"), true, 8);
        check_fails(&format!("{COLUMNS}[1"), false, 8);
        check_fails("", false, 8);
        // Rows that were lost on the way are missed.
        check_fails(&format!("{COLUMNS}{END}"), false, 1);
    }

    #[test]
    fn a_result_that_ends_in_a_problem_is_that_problem() {
        let problem = Problem::new(d3b::Code::NotReady, "it stops").to_json();
        check_fails(&format!("{COLUMNS}[1]\n{{\"error\":{problem}}}\n"), false, 7);
        check_fails(&format!("{COLUMNS}[1]\n{{\"error\":{{}}}}\n"), false, 1);
    }

    #[test]
    fn summaries() {
        let end = End { end: true, rows: 0, rows_affected: 1, last_insert_rowid: 8, slot: 7 };
        assert_eq!(summary(&end, false, false), "(1 row affected, last rowid 8, slot 7)");
        let end = End { rows: 3, rows_affected: 0, last_insert_rowid: 0, ..end };
        assert_eq!(summary(&end, true, false), "(3 rows)");
        assert_eq!(summary(&End { rows: 0, ..end }, false, false), "(0 rows affected)");
    }
}
