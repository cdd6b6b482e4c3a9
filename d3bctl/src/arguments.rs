//! Statements and their arguments as they stand on a command line.

use std::io::Read as _;
use std::path::Path;

use d3b::json::{Style, parse_arguments, parse_value, write_array, write_string};
use d3b::{Value, ValueRef};
use serde_json::value::RawValue;

use crate::error::{CliError, UsageError, at};

/// The text of a statement: itself, `@FILE`, or `-` for standard input.
///
/// # Errors
/// The file cannot be read, or is not text.
pub fn statement(text: &str) -> Result<String, CliError> {
    match text.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).map_err(at(file)),
        None if text == "-" => std::io::read_to_string(std::io::stdin()).map_err(CliError::Input),
        None => Ok(text.to_owned()),
    }
}

/// A file's bytes; `-` is standard input.
///
/// # Errors
/// It cannot be read.
pub fn contents(path: &Path) -> Result<Vec<u8>, CliError> {
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map_err(CliError::Input)?;
        return Ok(bytes);
    }
    std::fs::read(path).map_err(at(path))
}

/// One argument: a number as JSON writes it, `null`, `text:TEXT`, `blob:@FILE`, `blob:HEX`, or any other text.
///
/// # Errors
/// A number that does not fit, a file that cannot be read, digits that are none.
pub fn value(argument: &str) -> Result<Value, CliError> {
    let wrong = |problem: String| UsageError::Argument { argument: argument.to_owned(), problem };
    if let Some(text) = argument.strip_prefix("text:") {
        return Ok(Value::Text(text.to_owned()));
    }
    if let Some(file) = argument.strip_prefix("blob:@") {
        return Ok(Value::Blob(contents(Path::new(file))?));
    }
    if let Some(digits) = argument.strip_prefix("blob:") {
        let bytes =
            from_hex(digits).ok_or_else(|| wrong("blob: takes @FILE or pairs of hexadecimal digits".to_owned()))?;
        return Ok(Value::Blob(bytes));
    }
    if argument == "null" {
        return Ok(Value::Null);
    }
    if is_number(argument)
        && let Ok(number) = serde_json::from_str::<&RawValue>(argument)
    {
        return Ok(parse_value(number).map_err(|error| wrong(error.to_string()))?);
    }
    Ok(Value::Text(argument.to_owned()))
}

/// Whether a text consists of what numbers consist of; JSON says whether it is one.
fn is_number(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E'))
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = digits.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    let bytes = digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok());
    bytes.collect()
}

/// Arguments as the body of a request has them: an array of values, or what `--args-json` says.
///
/// # Errors
/// What [`value`] says, or JSON that is not made of SQL values.
pub fn arguments(args: &[String], json: Option<&str>) -> Result<Vec<u8>, CliError> {
    if let Some(text) = json {
        let raw: &RawValue =
            serde_json::from_str(text.trim()).map_err(|error| UsageError::ArgumentsJson(error.to_string()))?;
        parse_arguments(Some(raw)).map_err(|error| UsageError::ArgumentsJson(error.to_string()))?;
        return Ok(raw.get().into());
    }
    let values = args.iter().map(|argument| value(argument)).collect::<Result<Vec<Value>, _>>()?;
    let values: Vec<ValueRef<'_>> = values.iter().map(Value::as_ref).collect();
    let mut out = Vec::new();
    write_array(&mut out, &values, Style::default());
    Ok(out)
}

/// The body of a request with a statement, its members in front of `sql` included.
#[must_use]
pub fn body(members: &[(&str, &str)], sql: Option<&str>, args: &[u8]) -> Vec<u8> {
    let mut out = vec![b'{'];
    let sql = sql.map(|sql| ("sql", sql));
    for (index, (name, text)) in members.iter().copied().chain(sql).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(&mut out, name);
        out.push(b':');
        write_string(&mut out, text);
    }
    if sql.is_some() {
        out.extend_from_slice(b",\"args\":");
        out.extend_from_slice(args);
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(argument: &str, expected: Value) {
        assert_eq!(value(argument).unwrap(), expected, "{argument:?}");
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn numbers_are_exact() {
        check("0", Value::Integer(0));
        check("-7", Value::Integer(-7));
        check("9007199254740993", Value::Integer(9_007_199_254_740_993));
        check("-9223372036854775808", Value::Integer(i64::MIN));
        check("1.5", Value::Real(1.5));
        check("2.0", Value::Real(2.0));
        check("-1e3", Value::Real(-1000.0));
    }

    #[test]
    fn what_only_looks_like_a_number_is_text() {
        for argument in ["007", "+5", ".5", "5.", "1-2", "0x10", "e", "-", "", "1.2.3", "inf", "NaN", " 1", "1_000"] {
            check(argument, text(argument));
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_rather_than_changed() {
        for argument in ["9223372036854775808", "-9223372036854775809", "1e999"] {
            let error = value(argument).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{argument}: {error}");
        }
    }

    #[test]
    fn types_can_be_told() {
        check("null", Value::Null);
        check("NULL", text("NULL"));
        check("text:7", text("7"));
        check("text:", text(""));
        check("text:null", text("null"));
        check("blob:00fF", Value::Blob(vec![0, 255]));
        check("blob:", Value::Blob(Vec::new()));
        check("true", text("true"));
        assert_eq!(value("blob:0").unwrap_err().exit_code(), 2);
        assert_eq!(value("blob:xy").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_blob_comes_from_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\x00\xff").unwrap();
        check(&format!("blob:@{}", file.path().display()), Value::Blob(vec![0, 255]));
        let missing = value("blob:@/no/such/file").unwrap_err();
        assert_eq!(missing.exit_code(), 1);
    }

    #[test]
    fn arguments_become_json() {
        let args = ["1", "null", "text:1", "a\"b", "blob:00"].map(str::to_owned);
        let json = String::from_utf8(arguments(&args, None).unwrap()).unwrap();
        assert_eq!(json, r#"[1,null,"1","a\"b",{"$blob":"AA=="}]"#);
        assert_eq!(arguments(&[], Some(" {\":a\":[]} ")).unwrap_err().exit_code(), 2);
        assert_eq!(arguments(&[], Some("{\":a\":9007199254740993}")).unwrap(), b"{\":a\":9007199254740993}");
        assert_eq!(arguments(&[], Some("[1")).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn bodies() {
        assert_eq!(body(&[], Some("SELECT ?"), b"[1]"), br#"{"sql":"SELECT ?","args":[1]}"#);
        assert_eq!(body(&[("file_id", "a\"b")], None, b"[]"), br#"{"file_id":"a\"b"}"#);
    }
}
