//! Results as bytes: JSON, newline-delimited JSON, CSV, and the original wire form. Rows are written as SQLite gives
//! them, without a copy of the values in between.

mod sink;

use d3b::csv;
use d3b::json::{Exotics, Integers, ObjectKeys, Style, write_array, write_integer, write_string, write_strings};
use d3b::operation::StatementResult;
use d3b::{Answer, Problem, Slot, Value, ValueRef};

pub(crate) use sink::{BufferSink, StreamSink, Streamed, stream};

/// Whether rows are arrays or objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Duplicate column names survive.
    #[default]
    Arrays,
    /// Of columns with equal names the last one wins.
    Objects,
}

/// The form of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One JSON object with columns, types, rows and counts.
    Json(Rows, Integers),
    /// A line for the columns (unless rows are objects), one for each row, and one that tells the end.
    Lines(Rows, Integers),
    /// RFC 4180 with a header line.
    Csv,
    /// An array of objects: the original wire form.
    Legacy,
}

impl Form {
    /// The `Content-Type` of a result in this form.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Form::Json(..) | Form::Legacy => "application/json",
            Form::Lines(..) => "application/x-ndjson",
            Form::Csv => "text/csv; charset=utf-8; header=present",
        }
    }

    /// Whether results are sent while they are produced, so that their size has no bound.
    pub(crate) fn is_streamed(self) -> bool {
        match self {
            Form::Json(..) | Form::Legacy => false,
            Form::Lines(..) | Form::Csv => true,
        }
    }

    fn style(self) -> Style {
        match self {
            Form::Json(_, integers) | Form::Lines(_, integers) => Style { integers, exotics: Exotics::Tagged },
            Form::Csv | Form::Legacy => Style::LEGACY,
        }
    }
}

/// What is known only when a statement has ended.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct End {
    /// The slot of a write, or the one up to which a read saw everything; not told inside a batch.
    pub(crate) slot: Option<Slot>,
    /// Rows inserted, updated or deleted.
    pub(crate) rows_affected: u64,
    /// Set by the last INSERT; 0 where there was none.
    pub(crate) last_insert_rowid: i64,
}

/// Writes one result, piece by piece: [`Encoder::columns`], any number of [`Encoder::row`], [`Encoder::end`].
#[derive(Debug)]
pub(crate) struct Encoder {
    form: Form,
    keys: ObjectKeys,
    rows: u64,
}

impl Encoder {
    pub(crate) fn new(form: Form) -> Encoder {
        Encoder { form, keys: ObjectKeys::default(), rows: 0 }
    }

    /// Everything before the first row. A statement without rows has no columns.
    pub(crate) fn columns(&mut self, out: &mut Vec<u8>, names: &[String], types: &[String]) {
        match self.form {
            Form::Json(Rows::Objects, _) | Form::Lines(Rows::Objects, _) | Form::Legacy => {
                self.keys = ObjectKeys::new(names);
            }
            Form::Json(Rows::Arrays, _) | Form::Lines(Rows::Arrays, _) | Form::Csv => {}
        }
        match self.form {
            Form::Json(..) => {
                write_columns(out, names, types);
                out.extend_from_slice(b",\"rows\":[");
            }
            Form::Lines(Rows::Arrays, _) => {
                write_columns(out, names, types);
                out.extend_from_slice(b"}\n");
            }
            Form::Lines(Rows::Objects, _) => {}
            Form::Csv => csv::write_header(out, names),
            Form::Legacy => out.push(b'['),
        }
    }

    /// One row.
    pub(crate) fn row(&mut self, out: &mut Vec<u8>, values: &[ValueRef<'_>]) {
        let style = self.form.style();
        if self.rows > 0 && !self.form.is_streamed() {
            out.push(b',');
        }
        match self.form {
            Form::Json(Rows::Arrays, _) | Form::Lines(Rows::Arrays, _) => write_array(out, values, style),
            Form::Json(Rows::Objects, _) | Form::Lines(Rows::Objects, _) | Form::Legacy => {
                self.keys.write_object(out, values, style);
            }
            Form::Csv => csv::write_row(out, values),
        }
        if matches!(self.form, Form::Lines(..)) {
            out.push(b'\n');
        }
        self.rows += 1;
    }

    /// Everything after the last row.
    pub(crate) fn end(&self, out: &mut Vec<u8>, end: End) {
        match self.form {
            Form::Json(_, integers) => {
                out.extend_from_slice(b"],");
                write_end(out, end, integers);
                out.push(b'}');
            }
            Form::Lines(_, integers) => {
                out.extend_from_slice(b"{\"end\":true,\"rows\":");
                out.extend_from_slice(self.rows.to_string().as_bytes());
                out.push(b',');
                write_end(out, end, integers);
                out.extend_from_slice(b"}\n");
            }
            Form::Csv => {}
            Form::Legacy => out.push(b']'),
        }
    }

    /// What ends a result that broke off when its beginning was already sent; `None` where the form has no place for
    /// it, so that only breaking off the connection can tell.
    pub(crate) fn broken_off(&self, problem: &Problem) -> Option<Vec<u8>> {
        match self.form {
            Form::Lines(..) => {
                let mut line = serde_json::json!({ "error": problem.to_json() }).to_string().into_bytes();
                line.push(b'\n');
                Some(line)
            }
            Form::Json(..) | Form::Csv | Form::Legacy => None,
        }
    }
}

/// `{"columns":[...],"types":[...]`, left open.
fn write_columns(out: &mut Vec<u8>, names: &[String], types: &[String]) {
    out.extend_from_slice(b"{\"columns\":");
    write_strings(out, names);
    out.extend_from_slice(b",\"types\":");
    write_strings(out, types);
}

/// The members that tell of the end, without braces.
fn write_end(out: &mut Vec<u8>, end: End, integers: Integers) {
    out.extend_from_slice(b"\"rows_affected\":");
    out.extend_from_slice(end.rows_affected.to_string().as_bytes());
    out.extend_from_slice(b",\"last_insert_rowid\":");
    write_integer(out, end.last_insert_rowid, integers);
    if let Some(slot) = end.slot {
        out.extend_from_slice(b",\"slot\":");
        out.extend_from_slice(slot.0.to_string().as_bytes());
    }
}

/// Writes the result of a statement that is all at hand.
pub(crate) fn write_result(out: &mut Vec<u8>, result: &StatementResult, form: Form, slot: Option<Slot>) {
    let mut encoder = Encoder::new(form);
    encoder.columns(out, &result.columns, &result.types);
    for row in &result.rows {
        let values: Vec<ValueRef<'_>> = row.iter().map(Value::as_ref).collect();
        encoder.row(out, &values);
    }
    encoder.end(out, End { slot, rows_affected: result.rows_affected, last_insert_rowid: result.last_insert_rowid });
}

/// Writes the results of a batch.
pub(crate) fn write_batch(out: &mut Vec<u8>, results: &[StatementResult], rows: Rows, integers: Integers, slot: Slot) {
    out.extend_from_slice(b"{\"results\":[");
    for (index, result) in results.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_result(out, result, Form::Json(rows, integers), None);
    }
    out.extend_from_slice(b"],\"slot\":");
    out.extend_from_slice(slot.0.to_string().as_bytes());
    out.push(b'}');
}

/// Writes an answer in the form in which a batch or a change of the catalogue is answered.
pub(crate) fn write_answer(out: &mut Vec<u8>, answer: &Answer, slot: Slot) {
    match answer {
        Answer::Results(results) => write_batch(out, results, Rows::Arrays, Integers::Numbers, slot),
        Answer::Catalogue { id, name, replaced } => {
            out.extend_from_slice(b"{\"name\":");
            write_string(out, name.as_str());
            out.extend_from_slice(format!(",\"id\":\"{id}\",\"replaced\":{replaced},\"slot\":{slot}}}").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use d3b::{Code, RowSink};

    use super::*;

    fn result() -> StatementResult {
        StatementResult {
            columns: vec!["id".to_owned(), "n".to_owned(), "id".to_owned()],
            types: vec!["INTEGER".to_owned(), String::new(), String::new()],
            rows: vec![
                vec![Value::Integer(1), Value::Text("a,\"b\"\n".to_owned()), Value::Blob(vec![0, 1, 2])],
                vec![Value::Null, Value::Text(String::new()), Value::Real(f64::INFINITY)],
            ],
            rows_affected: 2,
            last_insert_rowid: 8,
        }
    }

    #[track_caller]
    fn check(form: Form, expected: &str) {
        let mut out = Vec::new();
        write_result(&mut out, &result(), form, Some(Slot(42)));
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn json_rows_are_arrays() {
        check(
            Form::Json(Rows::Arrays, Integers::Numbers),
            r#"{"columns":["id","n","id"],"types":["INTEGER","",""],"rows":[[1,"a,\"b\"\n",{"$blob":"AAEC"}],[null,"",{"$real":"inf"}]],"rows_affected":2,"last_insert_rowid":8,"slot":42}"#,
        );
    }

    #[test]
    fn json_rows_are_objects_on_request() {
        check(
            Form::Json(Rows::Objects, Integers::Strings),
            r#"{"columns":["id","n","id"],"types":["INTEGER","",""],"rows":[{"n":"a,\"b\"\n","id":{"$blob":"AAEC"}},{"n":"","id":{"$real":"inf"}}],"rows_affected":2,"last_insert_rowid":"8","slot":42}"#,
        );
    }

    #[test]
    fn the_original_form_is_an_array_of_objects() {
        check(Form::Legacy, r#"[{"n":"a,\"b\"\n","id":"AAEC"},{"n":"","id":null}]"#);
    }

    #[test]
    fn lines_begin_with_columns_and_end_with_an_end() {
        check(
            Form::Lines(Rows::Arrays, Integers::Numbers),
            "{\"columns\":[\"id\",\"n\",\"id\"],\"types\":[\"INTEGER\",\"\",\"\"]}\n\
             [1,\"a,\\\"b\\\"\\n\",{\"$blob\":\"AAEC\"}]\n[null,\"\",{\"$real\":\"inf\"}]\n\
             {\"end\":true,\"rows\":2,\"rows_affected\":2,\"last_insert_rowid\":8,\"slot\":42}\n",
        );
        check(
            Form::Lines(Rows::Objects, Integers::Numbers),
            "{\"n\":\"a,\\\"b\\\"\\n\",\"id\":{\"$blob\":\"AAEC\"}}\n{\"n\":\"\",\"id\":{\"$real\":\"inf\"}}\n\
             {\"end\":true,\"rows\":2,\"rows_affected\":2,\"last_insert_rowid\":8,\"slot\":42}\n",
        );
    }

    #[test]
    fn csv_tells_null_from_empty_text() {
        check(Form::Csv, "id,n,id\r\n1,\"a,\"\"b\"\"\n\",AAEC\r\n,\"\",inf\r\n");
    }

    #[test]
    fn statements_without_rows() {
        let encode = |form| {
            let mut out = Vec::new();
            write_result(&mut out, &StatementResult::default(), form, Some(Slot(1)));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(encode(Form::Legacy), "[]");
        assert_eq!(encode(Form::Csv), "");
        assert_eq!(
            encode(Form::Json(Rows::Arrays, Integers::Numbers)),
            r#"{"columns":[],"types":[],"rows":[],"rows_affected":0,"last_insert_rowid":0,"slot":1}"#
        );
    }

    #[test]
    fn batches_and_catalogue_answers_are_json() {
        let mut out = Vec::new();
        write_answer(&mut out, &Answer::Results(vec![result(), StatementResult::default()]), Slot(7));
        let batch: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(batch["slot"], 7);
        assert_eq!(batch["results"][0]["last_insert_rowid"], 8);
        assert_eq!(batch["results"][1].get("slot"), None);

        let name = d3b::DatabaseName::new("shop").unwrap();
        let id = d3b::DatabaseId::derive(&name, "k");
        out.clear();
        write_answer(&mut out, &Answer::Catalogue { id, name, replaced: true }, Slot(7));
        let change: d3b::api::DatabaseChange = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            change,
            d3b::api::DatabaseChange { name: "shop".into(), id: id.to_string(), replaced: true, slot: 7 }
        );
    }

    #[test]
    fn a_result_that_grows_too_large_is_given_up() {
        let memory = super::super::memory::Memory::new(std::sync::Arc::new(tokio::sync::Semaphore::new(64)));
        let mut sink = BufferSink::new(Form::Legacy, 100, memory);
        let flag = sink.overflow();
        sink.columns(&["a".to_owned()], &[String::new()]).unwrap();
        let row = [ValueRef::Text("0123456789".into())];
        let rows = (0..20).take_while(|_| sink.row(&row).is_ok()).count();
        assert!(rows < 10);
        assert!(flag.exceeded() && !flag.overloaded());
        let memory = super::super::memory::Memory::new(std::sync::Arc::new(tokio::sync::Semaphore::new(64)));
        let mut sink = BufferSink::new(Form::Legacy, 1 << 20, memory);
        let flag = sink.overflow();
        sink.columns(&["a".to_owned()], &[String::new()]).unwrap();
        while sink.row(&row).is_ok() {}
        assert!(flag.overloaded() && !flag.exceeded());
    }

    #[test]
    fn only_lines_have_a_place_for_errors() {
        let problem = Problem::new(Code::SqlError, "no");
        assert_eq!(Encoder::new(Form::Csv).broken_off(&problem), None);
        let line = Encoder::new(Form::Lines(Rows::Arrays, Integers::Numbers)).broken_off(&problem).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(line["error"]["status"], 400);
    }
}
