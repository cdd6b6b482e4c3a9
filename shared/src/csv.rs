//! Rows as comma-separated values (RFC 4180). NULL is an empty field and empty text a quoted one, so that they differ;
//! BLOBs are base64.

use std::io::Write as _;

use crate::ValueRef;
use crate::json::write_base64;

/// The line with the columns' names; nothing for a statement without rows.
pub fn write_header(out: &mut Vec<u8>, names: &[String]) {
    if names.is_empty() {
        return;
    }
    for (index, name) in names.iter().enumerate() {
        separate(out, index);
        write_text(out, name);
    }
    out.extend_from_slice(b"\r\n");
}

/// The line of a row.
pub fn write_row(out: &mut Vec<u8>, values: &[ValueRef<'_>]) {
    for (index, value) in values.iter().enumerate() {
        separate(out, index);
        match value {
            ValueRef::Null => {}
            ValueRef::Integer(integer) => write!(out, "{integer}").expect("writing into memory does not fail"),
            // The shortest text that reads back as the same number; infinities are `inf` and `-inf`.
            ValueRef::Real(real) => write!(out, "{real:?}").expect("writing into memory does not fail"),
            ValueRef::Text(text) => write_text(out, text),
            ValueRef::Blob(bytes) => write_base64(out, bytes),
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn separate(out: &mut Vec<u8>, index: usize) {
    if index > 0 {
        out.push(b',');
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    let plain = !text.is_empty()
        && !text.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\r' | b'\n'))
        && !text.starts_with(' ')
        && !text.ends_with(' ');
    if plain {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.push(b'"');
    for byte in text.bytes() {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}
