//! Rows: aligned for people, or as CSV, lines of JSON, or one value a line.

use std::io::{self, Write};

use d3b::json::{ObjectKeys, Style};
use d3b::{Value, ValueRef, csv};
use unicode_width::UnicodeWidthStr as _;

use crate::cli::Format;

/// Rows that are measured together. Later rows that need more room get it, and stand out a little.
const BLOCK_ROWS: usize = 1_000;
/// Bytes of a BLOB that a table shows.
const BLOB_SHOWN_MAX: usize = 16;
/// What a NULL is written as, in grey where there are colours.
const NULL: &str = "NULL";

/// Rows under columns, on their way out.
#[derive(Debug)]
pub struct Sheet {
    format: Format,
    columns: Vec<String>,
    keys: ObjectKeys,
    color: bool,
    /// What a NULL is written as.
    null: &'static str,
    rows: u64,
    headed: bool,
    /// Rows of a table that are not measured yet.
    block: Vec<Vec<Value>>,
    widths: Vec<usize>,
    /// Columns of numbers, as the first block shows them: they stand on the right.
    numeric: Vec<bool>,
}

impl Sheet {
    /// No rows yet.
    pub(super) fn new(format: Format, columns: Vec<String>, color: bool) -> Sheet {
        let widths = columns.iter().map(|name| escaped(name, false).width()).collect();
        let keys = ObjectKeys::new(&columns);
        let numeric = vec![false; columns.len()];
        Sheet { format, columns, keys, color, null: NULL, rows: 0, headed: false, block: Vec::new(), widths, numeric }
    }

    /// Leaves places without a value blank: for our own lists, in which there is no NULL to be told from them.
    #[must_use]
    pub(super) fn blank(mut self) -> Sheet {
        self.null = "";
        self
    }

    fn cell(&self, value: &Value) -> String {
        if *value == Value::Null { self.null.to_owned() } else { cell(value) }
    }

    /// Takes a row.
    pub(super) fn row(&mut self, out: &mut impl Write, values: Vec<Value>) -> io::Result<()> {
        self.rows += 1;
        match self.format {
            Format::Table => {
                self.block.push(values);
                if self.block.len() >= BLOCK_ROWS { self.flush(out) } else { Ok(()) }
            }
            Format::Csv => {
                self.head(out)?;
                let mut line = Vec::new();
                csv::write_row(&mut line, &references(&values));
                out.write_all(&line)
            }
            Format::Json | Format::Ndjson => {
                let mut line = Vec::new();
                self.keys.write_object(&mut line, &references(&values), Style::default());
                line.push(b'\n');
                out.write_all(&line)
            }
            Format::Line => self.lines(out, &values),
        }
    }

    /// Ends the sheet; one without rows still shows its columns.
    pub(super) fn end(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.flush(out)?;
        self.head(out)
    }

    /// Writes the rows that are held back.
    pub(super) fn flush(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.block);
        let cells: Vec<Vec<String>> =
            block.iter().map(|row| row.iter().map(|value| self.cell(value)).collect()).collect();
        for row in &cells {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        if !self.headed {
            for (index, numeric) in self.numeric.iter_mut().enumerate() {
                let mut values = block.iter().filter_map(|row| row.get(index)).filter(|value| **value != Value::Null);
                let first = values.next();
                *numeric = first.is_some_and(is_number) && values.all(is_number);
            }
        }
        self.head(out)?;
        for (values, cells) in block.iter().zip(&cells) {
            self.aligned(out, cells, |index| values.get(index) == Some(&Value::Null))?;
        }
        Ok(())
    }

    /// The names of the columns, once.
    fn head(&mut self, out: &mut impl Write) -> io::Result<()> {
        if std::mem::replace(&mut self.headed, true) {
            return Ok(());
        }
        match self.format {
            Format::Table => {
                let names: Vec<String> = self.columns.iter().map(|name| escaped(name, false)).collect();
                self.aligned(out, &names, |_| false)?;
                let rules: Vec<String> = self.widths.iter().map(|width| "-".repeat(*width)).collect();
                self.aligned(out, &rules, |_| false)
            }
            Format::Csv => {
                let mut line = Vec::new();
                csv::write_header(&mut line, &self.columns);
                out.write_all(&line)
            }
            Format::Json | Format::Ndjson | Format::Line => Ok(()),
        }
    }

    fn aligned(&self, out: &mut impl Write, cells: &[String], is_null: impl Fn(usize) -> bool) -> io::Result<()> {
        let mut line = String::new();
        for (index, cell) in cells.iter().enumerate() {
            if index > 0 {
                line.push_str("  ");
            }
            let space = " ".repeat(self.widths[index].saturating_sub(cell.width()));
            let grey = self.color && is_null(index);
            let cell = if grey { format!("\x1b[2m{cell}\x1b[0m") } else { cell.clone() };
            if self.numeric[index] {
                line.push_str(&space);
                line.push_str(&cell);
            } else {
                line.push_str(&cell);
                line.push_str(&space);
            }
        }
        writeln!(out, "{}", line.trim_end_matches(' '))
    }

    /// `name = value`, the names aligned on their right, rows separated by an empty line.
    fn lines(&self, out: &mut impl Write, values: &[Value]) -> io::Result<()> {
        if self.rows > 1 {
            writeln!(out)?;
        }
        let names: Vec<String> = self.columns.iter().map(|name| escaped(name, false)).collect();
        let width = names.iter().map(|name| name.width()).max().unwrap_or_default();
        for (name, value) in names.iter().zip(values) {
            let space = " ".repeat(width - name.width());
            let text = match value {
                Value::Text(text) if text != NULL => escaped(text, true),
                Value::Blob(bytes) => hexadecimal(bytes),
                Value::Null | Value::Integer(_) | Value::Real(_) | Value::Text(_) => self.cell(value),
            };
            writeln!(out, "{space}{name} = {text}")?;
        }
        Ok(())
    }
}

fn references(values: &[Value]) -> Vec<ValueRef<'_>> {
    values.iter().map(Value::as_ref).collect()
}

fn is_number(value: &Value) -> bool {
    match value {
        Value::Integer(_) | Value::Real(_) => true,
        Value::Null | Value::Text(_) | Value::Blob(_) => false,
    }
}

/// A value on one line. NULL and the text `NULL` differ.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => NULL.to_owned(),
        Value::Integer(integer) => integer.to_string(),
        Value::Real(real) => format!("{real:?}"),
        Value::Text(text) if text == NULL => format!("'{NULL}'"),
        Value::Text(text) => escaped(text, false),
        Value::Blob(bytes) if bytes.len() <= BLOB_SHOWN_MAX => hexadecimal(bytes),
        Value::Blob(bytes) => format!("{}... ({} bytes)", hexadecimal(&bytes[..BLOB_SHOWN_MAX]), bytes.len()),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("x'{digits}'")
}

/// Text without control characters, which could move the cursor or worse. Line feeds and tabs stay if they may.
pub(super) fn escaped(text: &str, keep_lines: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' if keep_lines => out.push(c),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            // Those that change the direction of writing hide what follows, too.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                out.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn written(format: Format, color: bool, columns: &[&str], rows: &[Vec<Value>]) -> String {
        let mut out = Vec::new();
        let mut sheet = Sheet::new(format, columns.iter().map(|name| (*name).to_owned()).collect(), color);
        for row in rows {
            sheet.row(&mut out, row.clone()).unwrap();
        }
        sheet.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn rows() -> Vec<Vec<Value>> {
        vec![
            vec![Value::Integer(1), text("Ann"), Value::Null],
            vec![Value::Integer(9_223_372_036_854_775_807), text("\u{6f22}\u{5b57}"), text("NULL")],
        ]
    }

    #[test]
    fn tables_are_aligned_by_the_width_of_characters() {
        let expected = [
            "                 id  name  note",
            "-------------------  ----  ------",
            "                  1  Ann   NULL",
            "9223372036854775807  \u{6f22}\u{5b57}  'NULL'",
            "",
        ]
        .join("\n");
        assert_eq!(written(Format::Table, false, &["id", "name", "note"], &rows()), expected);
    }

    #[test]
    fn null_is_grey_and_the_text_null_is_not() {
        let table = written(Format::Table, true, &["id", "name", "note"], &rows());
        assert!(table.contains("\u{1b}[2mNULL\u{1b}[0m"), "{table}");
        assert!(table.contains("  'NULL'\n"), "{table}");
    }

    #[test]
    fn a_table_without_rows_has_its_columns() {
        assert_eq!(written(Format::Table, false, &["id"], &[]), "id\n--\n");
        assert_eq!(written(Format::Csv, false, &["id"], &[]), "id\r\n");
        assert_eq!(written(Format::Ndjson, false, &["id"], &[]), "");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let table = written(Format::Table, false, &["a\u{1b}[31m"], &[vec![text("x\u{1b}]0;boo\u{7}\r\n\ty\u{202e}")]]);
        assert!(!table.contains(['\u{1b}', '\u{7}', '\r', '\t', '\u{202e}']), "{table:?}");
        assert!(table.contains("x\\u{1b}]0;boo\\u{7}\\r\\n\\ty\\u{202e}"), "{table}");
    }

    #[test]
    fn blobs_are_hexadecimal_and_shortened() {
        assert_eq!(cell(&Value::Blob(vec![0, 255])), "x'00ff'");
        assert_eq!(cell(&Value::Blob(vec![1; 17])), format!("x'{}'... (17 bytes)", "01".repeat(16)));
        assert_eq!(cell(&Value::Blob(Vec::new())), "x''");
    }

    #[test]
    fn many_rows_are_written_in_blocks() {
        let rows: Vec<Vec<Value>> =
            (0..2_500).map(|n| vec![Value::Integer(n), text(&"x".repeat(n as usize / 1_000))]).collect();
        let table = written(Format::Table, false, &["n", "x"], &rows);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2_502);
        assert_eq!(lines[2], "  0");
        assert_eq!(lines[2_501], "2499  xx");
    }

    #[test]
    fn csv_and_lines_of_json_are_the_servers() {
        assert_eq!(
            written(
                Format::Csv,
                false,
                &["a", "b"],
                &[vec![Value::Null, text("")], vec![text("x,y"), Value::Real(1.0)]]
            ),
            "a,b\r\n,\"\"\r\n\"x,y\",1.0\r\n"
        );
        assert_eq!(
            written(Format::Ndjson, false, &["a", "b"], &[vec![Value::Integer(i64::MAX), Value::Blob(vec![0])]]),
            "{\"a\":9223372036854775807,\"b\":{\"$blob\":\"AA==\"}}\n"
        );
    }

    #[test]
    fn one_value_a_line() {
        assert_eq!(
            written(
                Format::Line,
                false,
                &["id", "name"],
                &[vec![Value::Integer(1), text("a\nb")], vec![Value::Null, text("")]]
            ),
            "  id = 1\nname = a\nb\n\n  id = NULL\nname = \n"
        );
    }
}
