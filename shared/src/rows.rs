//! SQL values and rows of them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A value as SQLite stores it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// A 64-bit signed integer.
    Integer(i64),
    /// A 64-bit float; SQLite turns NaN into NULL, so NaN never stands here.
    Real(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

impl Value {
    /// A view of this value.
    #[must_use]
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Value::Null => ValueRef::Null,
            Value::Integer(integer) => ValueRef::Integer(*integer),
            Value::Real(real) => ValueRef::Real(*real),
            Value::Text(text) => ValueRef::Text(Cow::Borrowed(text)),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }
    }
}

/// A value that is read in place.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueRef<'a> {
    /// SQL NULL.
    Null,
    /// A 64-bit signed integer.
    Integer(i64),
    /// A 64-bit float.
    Real(f64),
    /// Text; bytes that are not UTF-8 are replaced, which is the only case that owns its text.
    Text(Cow<'a, str>),
    /// Bytes.
    Blob(&'a [u8]),
}

impl ValueRef<'_> {
    /// A copy that stands alone.
    #[must_use]
    pub fn to_owned(&self) -> Value {
        match self {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(integer) => Value::Integer(*integer),
            ValueRef::Real(real) => Value::Real(*real),
            ValueRef::Text(text) => Value::Text(text.clone().into_owned()),
            ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
        }
    }

    /// How many bytes the value takes, for bounds on results.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            ValueRef::Null => 1,
            ValueRef::Integer(_) | ValueRef::Real(_) => 8,
            ValueRef::Text(text) => text.len(),
            ValueRef::Blob(bytes) => bytes.len(),
        }
    }
}

/// The receiver of a result does not want more of it: it hung up, or its bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the receiver of the rows has closed")]
pub struct SinkClosed;

/// Where a read puts its rows as SQLite produces them, so that a result of any size needs little memory.
pub trait RowSink: Send {
    /// Called once, before any row: the names of the columns, and their declared types ("" where there is none).
    ///
    /// # Errors
    /// [`SinkClosed`] ends the read.
    fn columns(&mut self, names: &[String], types: &[String]) -> Result<(), SinkClosed>;

    /// Called for every row, with as many values as there are columns.
    ///
    /// # Errors
    /// [`SinkClosed`] ends the read.
    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SinkClosed>;

    /// Forgets what it was given, for the read begins anew; false if it cannot.
    fn restart(&mut self) -> bool {
        false
    }
}
