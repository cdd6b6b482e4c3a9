//! Results in the form that was asked for. Rows are written as they come, whatever their number.

mod sheet;

use std::io::{BufWriter, Stdout, Write};

use d3b::Value;
use serde::Serialize;

use crate::cli::Format;
use crate::error::CliError;
use crate::settings::Settings;

pub use sheet::Sheet;

/// A column of a list: its name, and what an item has there.
pub type Column<T> = (&'static str, fn(&T) -> Value);

/// Standard output.
#[derive(Debug)]
pub struct Output {
    out: BufWriter<Stdout>,
    format: Format,
    color: bool,
}

impl Output {
    /// Standard output in the form that was asked for.
    #[must_use]
    pub fn new(settings: &Settings) -> Output {
        let out = BufWriter::with_capacity(64 << 10, std::io::stdout());
        Output { out, format: settings.format, color: settings.color }
    }

    /// The form.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.out.write_all(bytes).map_err(CliError::Output)
    }

    /// Writes bytes, and a line feed unless they end with one.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn line(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.raw(bytes)?;
        if bytes.ends_with(b"\n") { Ok(()) } else { self.raw(b"\n") }
    }

    /// Makes everything that was written visible. To be called at the end: what is dropped may be lost silently.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn flush(&mut self) -> Result<(), CliError> {
        self.out.flush().map_err(CliError::Output)
    }

    /// Rows with these columns, in any form but JSON.
    #[must_use]
    pub fn sheet(&self, columns: Vec<String>) -> Sheet {
        Sheet::new(self.format, columns, self.color)
    }

    /// Writes a row of a sheet.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn row(&mut self, sheet: &mut Sheet, values: Vec<Value>) -> Result<(), CliError> {
        sheet.row(&mut self.out, values).map_err(CliError::Output)
    }

    /// Writes what a sheet still holds back.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn end(&mut self, sheet: &mut Sheet) -> Result<(), CliError> {
        sheet.end(&mut self.out).map_err(CliError::Output)
    }

    /// One object: names and values below each other for people, JSON as the server sent it.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn object(&mut self, json: &[u8], fields: Vec<(&str, Value)>) -> Result<(), CliError> {
        match self.format {
            Format::Json | Format::Ndjson => self.line(json),
            Format::Table => {
                let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
                for (name, value) in fields {
                    let text = if value == Value::Null { String::new() } else { sheet::cell(&value) };
                    self.line(format!("{name:width$}  {text}").trim_end().as_bytes())?;
                }
                Ok(())
            }
            Format::Csv | Format::Line => {
                let (names, values): (Vec<&str>, Vec<Value>) = fields.into_iter().unzip();
                let mut sheet = self.sheet(names.into_iter().map(str::to_owned).collect()).blank();
                self.row(&mut sheet, values)?;
                self.end(&mut sheet)
            }
        }
    }

    /// What came of a change: a sentence for people, else an object.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn change(&mut self, json: &[u8], sentence: &str, fields: Vec<(&str, Value)>) -> Result<(), CliError> {
        match self.format {
            Format::Table => self.line(sentence.as_bytes()),
            Format::Json | Format::Ndjson | Format::Csv | Format::Line => self.object(json, fields),
        }
    }

    /// A list that is at hand, whose JSON is the server's.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn list<T: Serialize>(&mut self, json: &[u8], columns: &[Column<T>], items: &[T]) -> Result<(), CliError> {
        if self.format == Format::Json {
            return self.line(json);
        }
        let mut listing = Listing::new(self, "", columns);
        items.iter().try_for_each(|item| listing.add(item))?;
        listing.end()
    }
}

/// A list that comes piece by piece.
pub struct Listing<'o, T> {
    output: &'o mut Output,
    columns: Vec<Column<T>>,
    sheet: Sheet,
    member: &'static str,
    /// Whether JSON is a line an item, too.
    endless: bool,
    items: u64,
}

impl<'o, T: Serialize> Listing<'o, T> {
    /// A list that is the member of that name of a JSON object.
    pub fn new(output: &'o mut Output, member: &'static str, columns: &[Column<T>]) -> Listing<'o, T> {
        let sheet = output.sheet(columns.iter().map(|(name, _)| (*name).to_owned()).collect()).blank();
        Listing { output, columns: columns.to_vec(), sheet, member, endless: false, items: 0 }
    }

    /// The same list, which may never end: its JSON is lines, one an item.
    #[must_use]
    pub fn endless(mut self) -> Listing<'o, T> {
        self.endless = true;
        self
    }

    /// Adds an item.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn add(&mut self, item: &T) -> Result<(), CliError> {
        match self.output.format {
            Format::Table | Format::Csv | Format::Line => {
                let values = self.columns.iter().map(|(_, value)| value(item)).collect();
                self.output.row(&mut self.sheet, values)?;
            }
            Format::Ndjson => self.output.line(&json(item))?,
            Format::Json if self.endless => self.output.line(&json(item))?,
            Format::Json => {
                if self.items == 0 {
                    self.output.raw(format!("{{\"{}\":[", self.member).as_bytes())?;
                } else {
                    self.output.raw(b",")?;
                }
                self.output.raw(&json(item))?;
            }
        }
        self.items += 1;
        Ok(())
    }

    /// Makes the items so far visible.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn flush(&mut self) -> Result<(), CliError> {
        self.sheet.flush(&mut self.output.out).map_err(CliError::Output)?;
        self.output.flush()
    }

    /// Ends the list.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn end(mut self) -> Result<(), CliError> {
        match self.output.format {
            Format::Table | Format::Csv | Format::Line => self.output.end(&mut self.sheet),
            Format::Ndjson => Ok(()),
            Format::Json if self.endless => Ok(()),
            Format::Json if self.items == 0 => self.output.line(format!("{{\"{}\":[]}}", self.member).as_bytes()),
            Format::Json => self.output.line(b"]}"),
        }
    }
}

/// A type of ours as JSON.
pub fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types are JSON")
}

/// Text of several lines that may go to a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    sheet::escaped(text, true)
}

/// A number as a value; none of ours goes beyond 63 bits.
#[must_use]
pub fn number(number: u64) -> Value {
    i64::try_from(number).map_or_else(|_| Value::Text(number.to_string()), Value::Integer)
}

/// A text as a value.
#[must_use]
pub fn text(text: impl Into<String>) -> Value {
    Value::Text(text.into())
}

/// What may be missing as a value.
#[must_use]
pub fn optional<T>(value: Option<T>, make: impl FnOnce(T) -> Value) -> Value {
    value.map_or(Value::Null, make)
}
