//! SQL values as JSON, both ways, and exact: integers keep their 64 bits, duplicate column names their places.
//!
//! JSON has no bytes and no infinities, so a BLOB is `{"$blob":"BASE64"}` and an infinity `{"$real":"inf"}`. What is
//! read is never nested deeper than that: arrays and other objects are no SQL values, and are refused before anybody
//! descends into them, however deep they are.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{Arguments, Value, ValueRef};

/// Why JSON cannot be taken for SQL values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// An integer that a 64-bit signed integer cannot hold.
    #[error("the integer {0} does not fit 64 bits; write it as text, or with a decimal point as an inexact number")]
    IntegerTooLarge(String),
    /// A number that a 64-bit float cannot hold.
    #[error("the number {0} is beyond 64-bit floats; an infinity is {{\"$real\":\"inf\"}}")]
    RealTooLarge(String),
    /// NaN.
    #[error("SQLite has no NaN: it would become NULL; use null")]
    NotANumber,
    /// `$real` with something else than an infinity.
    #[error("\"$real\" takes \"inf\" or \"-inf\", not {0}; other numbers are written as such")]
    Real(String),
    /// `$blob` with something that is not base64.
    #[error("\"$blob\" takes a string of padded base64: {0}")]
    Blob(String),
    /// An array where a value is expected.
    #[error("an array is not an SQL value; pass JSON as a string")]
    Array,
    /// An object where a value is expected.
    #[error(
        "an object is not an SQL value, other than {{\"$blob\":BASE64}} and {{\"$real\":\"inf\"}}; pass JSON as a string"
    )]
    Object,
    /// Arguments that are neither an array nor an object.
    #[error("arguments are an array of values, or an object of names and values")]
    NotArguments,
    /// A name without the sign that it has in the statement.
    #[error("the name {0:?} must begin with the sign that it has in the statement: \":\", \"@\" or \"$\"")]
    NameWithoutSign(String),
    /// A name that stands twice.
    #[error("the argument {0:?} is given twice")]
    NameTwice(String),
    /// One argument is in error.
    #[error("argument {place}: {problem}")]
    Argument {
        /// `1` and up, or the name.
        place: String,
        /// What is wrong with it.
        problem: Box<JsonError>,
    },
    /// Not JSON at all.
    #[error("this is not JSON: {0}")]
    Syntax(String),
}

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> JsonError {
        JsonError::Syntax(error.to_string())
    }
}

/// Reads one value. `true` and `false` are 1 and 0, as in SQLite.
///
/// # Errors
/// What is not an SQL value, or does not fit one.
pub fn parse_value(raw: &RawValue) -> Result<Value, JsonError> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'n') => Ok(Value::Null),
        Some(b't') => Ok(Value::Integer(1)),
        Some(b'f') => Ok(Value::Integer(0)),
        Some(b'"') => Ok(Value::Text(serde_json::from_str(text)?)),
        Some(b'[') => Err(JsonError::Array),
        Some(b'{') => parse_tagged(text),
        _ => parse_number(text),
    }
}

fn parse_number(text: &str) -> Result<Value, JsonError> {
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        return text.parse().map(Value::Integer).map_err(|_| JsonError::IntegerTooLarge(shortened(text)));
    }
    let real: f64 = text.parse().map_err(|_| JsonError::Syntax(shortened(text)))?;
    if real.is_finite() { Ok(Value::Real(real)) } else { Err(JsonError::RealTooLarge(shortened(text))) }
}

fn parse_tagged(text: &str) -> Result<Value, JsonError> {
    let Members(members) = serde_json::from_str(text)?;
    let [(tag, inner)] = members.as_slice() else {
        return Err(JsonError::Object);
    };
    let inner = inner.get();
    match tag.as_str() {
        "$blob" => {
            let text: String = serde_json::from_str(inner).map_err(|_| JsonError::Blob(shortened(inner)))?;
            STANDARD.decode(text).map(Value::Blob).map_err(|error| JsonError::Blob(error.to_string()))
        }
        "$real" => match inner {
            "\"inf\"" => Ok(Value::Real(f64::INFINITY)),
            "\"-inf\"" => Ok(Value::Real(f64::NEG_INFINITY)),
            "\"nan\"" => Err(JsonError::NotANumber),
            other => Err(JsonError::Real(shortened(other))),
        },
        _ => Err(JsonError::Object),
    }
}

/// The beginning of a text that a client sent, for an error message.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Reads the arguments of a statement: an array binds to `?1`, `?2`, ..., an object by name. `None` and `null` are none.
///
/// # Errors
/// Which argument is in error, and why.
pub fn parse_arguments(raw: Option<&RawValue>) -> Result<Arguments, JsonError> {
    let Some(text) = raw.map(RawValue::get).filter(|text| *text != "null") else {
        return Ok(Arguments::default());
    };
    match text.as_bytes().first() {
        Some(b'[') => {
            let values: Vec<&RawValue> = serde_json::from_str(text)?;
            let values = values.iter().enumerate();
            let values = values.map(|(index, value)| parse_argument(&(index + 1).to_string(), value));
            values.collect::<Result<_, _>>().map(Arguments::Positional)
        }
        Some(b'{') => {
            let Members(members) = serde_json::from_str(text)?;
            let mut names = std::collections::BTreeSet::new();
            for (name, _) in &members {
                if !name.starts_with([':', '@', '$']) {
                    return Err(JsonError::NameWithoutSign(shortened(name)));
                }
                if !names.insert(name.as_str()) {
                    return Err(JsonError::NameTwice(shortened(name)));
                }
            }
            let values = members.iter().map(|(name, value)| Ok((name.clone(), parse_argument(name, value)?)));
            values.collect::<Result<_, _>>().map(Arguments::Named)
        }
        _ => Err(JsonError::NotArguments),
    }
}

fn parse_argument(place: &str, value: &RawValue) -> Result<Value, JsonError> {
    parse_value(value).map_err(|problem| JsonError::Argument { place: shortened(place), problem: Box::new(problem) })
}

/// An object's members in their order, equal names included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// How integers are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Integers {
    /// As numbers, all 64 bits of them.
    #[default]
    Numbers,
    /// As strings, for readers whose numbers have 53 bits.
    Strings,
}

/// How values that JSON has no form for are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Exotics {
    /// `{"$blob":"BASE64"}` and `{"$real":"inf"}`: what is written can be read back.
    #[default]
    Tagged,
    /// A BLOB is a base64 string and an infinity null: the original wire form.
    Legacy,
}

/// How values are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// Integers.
    pub integers: Integers,
    /// BLOBs and infinities.
    pub exotics: Exotics,
}

impl Style {
    /// The original wire form.
    pub const LEGACY: Style = Style { integers: Integers::Numbers, exotics: Exotics::Legacy };
}

/// Writes a string with its quotes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing a string into memory does not fail");
}

/// Writes an integer.
pub fn write_integer(out: &mut Vec<u8>, integer: i64, integers: Integers) {
    use std::io::Write as _;
    match integers {
        Integers::Numbers => write!(out, "{integer}"),
        Integers::Strings => write!(out, "\"{integer}\""),
    }
    .expect("writing into memory does not fail");
}

/// Writes one value.
pub fn write_value(out: &mut Vec<u8>, value: &ValueRef<'_>, style: Style) {
    match value {
        ValueRef::Null => out.extend_from_slice(b"null"),
        ValueRef::Integer(integer) => write_integer(out, *integer, style.integers),
        ValueRef::Real(real) => write_real(out, *real, style.exotics),
        ValueRef::Text(text) => write_string(out, text),
        ValueRef::Blob(bytes) => match style.exotics {
            Exotics::Tagged => {
                out.extend_from_slice(b"{\"$blob\":\"");
                write_base64(out, bytes);
                out.extend_from_slice(b"\"}");
            }
            Exotics::Legacy => {
                out.push(b'"');
                write_base64(out, bytes);
                out.push(b'"');
            }
        },
    }
}

fn write_real(out: &mut Vec<u8>, real: f64, exotics: Exotics) {
    if real.is_finite() {
        serde_json::to_writer(out, &real).expect("writing a number into memory does not fail");
    } else if real.is_infinite() && exotics == Exotics::Tagged {
        out.extend_from_slice(if real > 0.0 { b"{\"$real\":\"inf\"}" } else { b"{\"$real\":\"-inf\"}" });
    } else {
        out.extend_from_slice(b"null");
    }
}

/// Writes bytes as padded base64, without quotes.
pub fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    let length = base64::encoded_len(bytes.len(), true).expect("a value that is in memory has a base64 that fits it");
    out.resize(start + length, 0);
    STANDARD.encode_slice(bytes, &mut out[start..]).expect("the space was measured");
}

/// Writes a row as an array.
pub fn write_array(out: &mut Vec<u8>, values: &[ValueRef<'_>], style: Style) {
    out.push(b'[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_value(out, value, style);
    }
    out.push(b']');
}

/// Writes an array of strings.
pub fn write_strings(out: &mut Vec<u8>, texts: &[String]) {
    serde_json::to_writer(out, texts).expect("writing strings into memory does not fail");
}

/// The names of a result's columns, encoded once, to write many rows as objects. Of equal names the last one wins.
#[derive(Debug, Clone, Default)]
pub struct ObjectKeys {
    /// `"name":`, or `None` where a later column has the same name.
    keys: Vec<Option<Vec<u8>>>,
}

impl ObjectKeys {
    /// Encodes the names.
    #[must_use]
    pub fn new(names: &[String]) -> ObjectKeys {
        let mut last = std::collections::BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            last.insert(name, index);
        }
        let keys = names.iter().enumerate().map(|(index, name)| {
            (last.get(name) == Some(&index)).then(|| {
                let mut key = Vec::with_capacity(name.len() + 3);
                write_string(&mut key, name);
                key.push(b':');
                key
            })
        });
        ObjectKeys { keys: keys.collect() }
    }

    /// Writes a row as an object.
    pub fn write_object(&self, out: &mut Vec<u8>, values: &[ValueRef<'_>], style: Style) {
        out.push(b'{');
        let mut first = true;
        for (key, value) in self.keys.iter().zip(values) {
            let Some(key) = key else { continue };
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(key);
            write_value(out, value, style);
        }
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[track_caller]
    fn check_parse(text: &str, expected: Value) {
        assert_eq!(parse_value(&raw(text)), Ok(expected), "{text}");
    }

    #[track_caller]
    fn check_refused(text: &str, expected: &str) {
        let error = parse_value(&raw(text)).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }

    #[track_caller]
    fn check_write(value: Value, tagged: &str, legacy: &str) {
        let write = |style| {
            let mut out = Vec::new();
            write_value(&mut out, &value.as_ref(), style);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(write(Style::default()), tagged);
        assert_eq!(write(Style::LEGACY), legacy);
    }

    #[test]
    fn values_are_read_exactly() {
        check_parse("null", Value::Null);
        check_parse("true", Value::Integer(1));
        check_parse("false", Value::Integer(0));
        check_parse("9223372036854775807", Value::Integer(i64::MAX));
        check_parse("-9223372036854775808", Value::Integer(i64::MIN));
        check_parse("9007199254740993", Value::Integer(9_007_199_254_740_993));
        check_parse("1.0", Value::Real(1.0));
        check_parse("1e3", Value::Real(1000.0));
        check_parse("\"a\\u0000\\ud83d\\ude00\"", Value::Text("a\0\u{1f600}".to_owned()));
        check_parse("{\"$blob\":\"AAEC\"}", Value::Blob(vec![0, 1, 2]));
        check_parse("{\"$blob\":\"\"}", Value::Blob(Vec::new()));
        check_parse("{ \"$real\" : \"-inf\" }", Value::Real(f64::NEG_INFINITY));
    }

    #[test]
    fn what_is_no_value_is_refused_with_a_reason() {
        check_refused("9223372036854775808", "does not fit 64 bits");
        check_refused("-9223372036854775809", "does not fit 64 bits");
        check_refused("1e999", "beyond 64-bit floats");
        check_refused("[1]", "an array is not an SQL value");
        check_refused("{}", "an object is not an SQL value");
        check_refused("{\"$blob\":\"AA==\",\"x\":1}", "an object is not an SQL value");
        check_refused("{\"$blob\":\"A\"}", "base64");
        check_refused("{\"$blob\":7}", "base64");
        check_refused("{\"$real\":\"nan\"}", "no NaN");
        check_refused("{\"$real\":1}", "\"inf\" or \"-inf\"");
        check_refused("\"\\ud800\"", "not JSON");
    }

    #[test]
    fn deep_json_is_refused_without_descending() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        check_refused(&deep, "an array is not an SQL value");
        let tagged = "{\"$blob\":".repeat(200_000) + "1" + &"}".repeat(200_000);
        check_refused(&tagged, "base64");
        let arguments = parse_arguments(Some(&raw(&deep)));
        assert!(matches!(arguments, Err(JsonError::Argument { .. })), "{arguments:?}");
    }

    #[test]
    fn arguments_by_place_and_by_name() {
        let integers = |integers: &[i64]| integers.iter().copied().map(Value::Integer).collect();
        assert_eq!(parse_arguments(None), Ok(Arguments::Positional(Vec::new())));
        assert_eq!(parse_arguments(Some(&raw("null"))), Ok(Arguments::Positional(Vec::new())));
        assert_eq!(parse_arguments(Some(&raw("[1,2]"))), Ok(Arguments::Positional(integers(&[1, 2]))));
        let named = Arguments::Named(vec![(":n".to_owned(), Value::Integer(1)), ("$b".to_owned(), Value::Null)]);
        assert_eq!(parse_arguments(Some(&raw("{\":n\":1,\"$b\":null}"))), Ok(named));
    }

    #[track_caller]
    fn check_arguments_refused(text: &str, expected: &str) {
        let error = parse_arguments(Some(&raw(text))).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }

    #[test]
    fn arguments_in_error_are_named() {
        check_arguments_refused("[1,[]]", "argument 2: an array");
        check_arguments_refused("{\":n\":{}}", "argument :n: an object");
        check_arguments_refused("{\"n\":1}", "must begin with the sign");
        check_arguments_refused("{\":n\":1,\":n\":2}", "given twice");
        check_arguments_refused("7", "an array of values");
        check_arguments_refused("\"[1]\"", "an array of values");
    }

    #[test]
    fn values_are_written_exactly() {
        check_write(Value::Null, "null", "null");
        check_write(Value::Integer(i64::MIN), "-9223372036854775808", "-9223372036854775808");
        check_write(Value::Real(1.0), "1.0", "1.0");
        check_write(Value::Real(f64::INFINITY), "{\"$real\":\"inf\"}", "null");
        check_write(Value::Real(f64::NEG_INFINITY), "{\"$real\":\"-inf\"}", "null");
        check_write(Value::Text("a\"\n\0".to_owned()), "\"a\\\"\\n\\u0000\"", "\"a\\\"\\n\\u0000\"");
        check_write(Value::Blob(vec![0, 1, 2]), "{\"$blob\":\"AAEC\"}", "\"AAEC\"");
    }

    #[test]
    fn what_is_written_can_be_read_back() {
        let values = [
            Value::Null,
            Value::Integer(-1),
            Value::Real(0.1 + 0.2),
            Value::Real(5e-324),
            Value::Real(1e300),
            Value::Real(f64::INFINITY),
            Value::Text("\u{7f}\u{1f600}\\".to_owned()),
            Value::Blob(vec![255; 100]),
        ];
        for value in values {
            let mut out = Vec::new();
            write_value(&mut out, &value.as_ref(), Style::default());
            assert_eq!(parse_value(&raw(std::str::from_utf8(&out).unwrap())), Ok(value));
        }
    }

    #[test]
    fn integers_as_strings() {
        let mut out = Vec::new();
        let style = Style { integers: Integers::Strings, exotics: Exotics::Tagged };
        write_array(&mut out, &[ValueRef::Integer(9_007_199_254_740_993), ValueRef::Real(2.0)], style);
        assert_eq!(out, b"[\"9007199254740993\",2.0]");
    }

    #[test]
    fn of_equal_names_the_last_wins() {
        let keys = ObjectKeys::new(&["id".to_owned(), "n".to_owned(), "id".to_owned()]);
        let mut out = Vec::new();
        keys.write_object(
            &mut out,
            &[ValueRef::Integer(1), ValueRef::Integer(2), ValueRef::Integer(3)],
            Style::default(),
        );
        assert_eq!(out, b"{\"n\":2,\"id\":3}");
    }
}
