//! The SQL of applications as people build them: their schemas, and the statements that they send all day.
//!
//! Each is a schema and a function that draws one request from the dice. `{now}` and `{random}` stand for what tells
//! the time and rolls the dice, where a run has them, and for constants where plain SQLite must answer alike.

mod ledger;
mod queue;
mod series;
mod shop;
mod tracker;
mod wiki;

use d3b::{Arguments, Expectation, Statement, Value};

use super::dice::Dice;

/// An application.
pub(crate) struct Application {
    /// What it is called in messages.
    pub name: &'static str,
    /// Its migration, which is sent as one batch.
    pub schema: &'static [&'static str],
    /// One request of one of its users.
    pub request: fn(&mut Dice) -> Vec<Statement>,
}

pub(crate) const APPLICATIONS: [&Application; 6] =
    [&tracker::TRACKER, &shop::SHOP, &wiki::WIKI, &series::SERIES, &queue::QUEUE, &ledger::LEDGER];

/// Puts time and dice, or constants, into a text.
pub(crate) fn complete(sql: &str, pure: bool) -> String {
    let (now, random) = if pure { ("'2024-05-01 12:00:00'", "42") } else { ("CURRENT_TIMESTAMP", "random()") };
    sql.replace("{now}", now).replace("{random}", random)
}

/// A statement with arguments by position.
fn say(sql: &str, arguments: Vec<Value>) -> Statement {
    Statement { sql: sql.to_owned(), arguments: Arguments::Positional(arguments), expect: None }
}

/// A statement with arguments by name.
fn say_named(sql: &str, arguments: Vec<(&str, Value)>) -> Statement {
    let arguments = arguments.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Statement { sql: sql.to_owned(), arguments: Arguments::Named(arguments), expect: None }
}

/// The same statement, which must change so many rows.
fn affecting(statement: Statement, rows: u64) -> Statement {
    Statement { expect: Some(Expectation::RowsAffected(rows)), ..statement }
}

/// The same statement, which must return so many rows.
fn returning(statement: Statement, rows: u64) -> Statement {
    Statement { expect: Some(Expectation::RowsReturned(rows)), ..statement }
}

fn number(value: u64) -> Value {
    Value::Integer(value as i64)
}

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}
