//! One statement of a user: prepared, bound, stepped, and its result collected within bounds.

use std::collections::HashSet;
use std::sync::Arc;

use d3b::{Code, Expectation, Rejection, Statement, StatementResult, Value};
use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, StatementStatus};

use crate::apply::Refusal;
use crate::arguments;
use crate::database::{Database, OWN};
use crate::guard::{self, Created, Guard, Mode};
use crate::planted::{self, Planted};
use crate::text::Kind;

/// How many texts are remembered as worth a place in the cache of prepared statements.
const ADMITTED_MAX: usize = 1024;

/// The longest text that is kept prepared, in bytes.
const CACHED_TEXT_MAX: usize = 16 * 1024;

/// The names that SQLite makes up end with a number: the first ones with 1, 2 and 3, all others with a random one of 32
/// bits, which is rarely shorter than this.
const RANDOM_DIGITS_MIN: usize = 5;

/// What a value costs in a result beside its bytes, so that a billion empty texts are bounded too.
const VALUE_OVERHEAD: u64 = 8;

/// Which texts are kept prepared: those that come a second time, so that texts with values in them do not drive out
/// the others.
#[derive(Debug, Default)]
pub(crate) struct Admitted(HashSet<Arc<str>>);

impl Admitted {
    /// Forgets all texts, because the schema that they were prepared against has changed.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// A user's statement, prepared in the mode that is set.
    pub fn prepare<'c>(
        &mut self,
        connection: &'c Connection,
        guard: &Guard,
        sql: &str,
    ) -> Result<Prepared<'c>, Refusal> {
        // A text that begins like d3b's own statements could meet one of them in the cache, and run with its rights.
        let cacheable = Kind::of(sql) == Kind::Data && sql.len() <= CACHED_TEXT_MAX && !sql.trim().starts_with(OWN);
        if cacheable && self.0.contains(sql) {
            guard.announce(sql);
            return match connection.prepare_cached(sql) {
                Ok(statement) => Ok(Prepared::Cached(statement)),
                Err(error) => Err(guard::rejection(error, guard)?.into()),
            };
        }
        let statement = guard::prepare_single(connection, guard, sql)??;
        if cacheable {
            if self.0.len() == ADMITTED_MAX {
                self.0.clear();
            }
            self.0.insert(sql.into());
        }
        Ok(Prepared::Once(statement))
    }
}

/// A prepared statement of a user.
pub(crate) enum Prepared<'c> {
    /// It goes back to the cache when it is dropped.
    Cached(CachedStatement<'c>),
    /// It is finalized when it is dropped.
    Once(rusqlite::Statement<'c>),
}

impl<'c> std::ops::Deref for Prepared<'c> {
    type Target = rusqlite::Statement<'c>;

    fn deref(&self) -> &rusqlite::Statement<'c> {
        match self {
            Prepared::Cached(statement) => statement,
            Prepared::Once(statement) => statement,
        }
    }
}

impl<'c> std::ops::DerefMut for Prepared<'c> {
    fn deref_mut(&mut self) -> &mut rusqlite::Statement<'c> {
        match self {
            Prepared::Cached(statement) => statement,
            Prepared::Once(statement) => statement,
        }
    }
}

/// Runs one statement to its end, and checks what it was expected to do. `budget` is what the operation's result may
/// still take, in bytes.
pub(crate) fn run(
    database: &mut Database,
    statement: &Statement,
    mode: Mode,
    budget: &mut u64,
) -> Result<StatementResult, Refusal> {
    let kind = Kind::of(&statement.sql);
    let mut version = None;
    database.has_virtual_tables()?;
    if kind == Kind::Other {
        database.touched_schema = true;
        version = Some(database.schema_version()?);
    }
    database.guard.set(mode);
    let result = step(database, statement, kind, budget);
    database.guard.set_running(false);
    database.guard.set(Mode::Internal);
    if kind == Kind::Other {
        database.schema_changed();
    }
    let result = result?;
    if database.recorder.saw_greatest_rowid() {
        return Err(greatest_rowid().into());
    }
    if let Some(version) = version {
        check_hidden(database)?;
        // With IF NOT EXISTS it may have created nothing.
        if database.schema_version()? != version {
            check_created(database, &statement.sql)?;
        }
    }
    expect(statement, &result)?;
    Ok(result)
}

fn step(
    database: &mut Database,
    statement: &Statement,
    kind: Kind,
    budget: &mut u64,
) -> Result<StatementResult, Refusal> {
    let (connection, guard, admitted) = database.parts();
    let mut prepared = admitted.prepare(connection, guard, &statement.sql)?;
    check_answer(&prepared, &statement.sql)?;
    arguments::bind(&mut prepared, &statement.arguments)?;
    // SQLite calls the progress handler at multiples of this counter: a kept statement must begin where a new one does.
    if !planted::breaks(Planted::StepsOfKeptStatements) {
        prepared.reset_status(StatementStatus::VmStep);
    }
    let writes_rows = kind == Kind::Data && !prepared.readonly() && prepared.is_explain() == 0;
    let mut result = StatementResult::default();
    for column in prepared.columns() {
        result.columns.push(column.name().to_owned());
        result.types.push(column.decl_type().unwrap_or_default().to_owned());
    }
    let width = result.columns.len();
    let mut rows = prepared.raw_query();
    guard.set_running(true);
    loop {
        match rows.next() {
            Ok(None) => break,
            Ok(Some(row)) => {
                let mut values = Vec::with_capacity(width);
                for column in 0..width {
                    let value = row.get_ref(column)?;
                    *budget = budget.checked_sub(size(value)).ok_or_else(too_large)?;
                    values.push(owned(value));
                }
                result.rows.push(values);
            }
            Err(error) => return Err(guard::rejection(error, guard)?.into()),
        }
    }
    drop(rows);
    drop(prepared);
    result.rows_affected = if writes_rows { connection.changes() } else { 0 };
    result.last_insert_rowid = connection.last_insert_rowid();
    Ok(result)
}

fn size(value: ValueRef<'_>) -> u64 {
    VALUE_OVERHEAD
        + match value {
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => 0,
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len() as u64,
        }
}

fn owned(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::Integer(integer),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(bytes) => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}

/// After that rowid SQLite would draw the next one at random.
pub(crate) fn greatest_rowid() -> Rejection {
    Rejection::new(Code::Constraint, format!("the rowid {} cannot be used: the next one would be random", i64::MAX))
}

/// Refuses what the authorizer is not told of: something new among d3b's own tables, and a trigger that is made in the
/// temporary schema by its name alone.
fn check_hidden(database: &Database) -> Result<(), Refusal> {
    if database.count_hidden()? != database.hidden {
        return Err(Rejection::new(Code::StatementDenied, "names that begin with _d3b_ are d3b's own").into());
    }
    if database.own("/*d3b*/SELECT 1 FROM sqlite_temp_schema LIMIT 1")?.exists([])? {
        return Err(Rejection::new(Code::StatementDenied, guard::TEMPORARY).into());
    }
    Ok(())
}

/// Refuses tables and views whose columns SQLite had to name itself, because a query gave several of them one name: of
/// the fifth on, the names would be random. What rows a query has put into a new table is folded into the chain: the
/// hook does not hear of them.
fn check_created(database: &Database, sql: &str) -> Result<(), Refusal> {
    for created in database.guard.take_created() {
        let (Created::Table(name) | Created::View(name)) = &created;
        let columns = match columns_of(database, name) {
            Ok(columns) => columns,
            // A view may refer to what does not exist yet, or not fit together at all. SQLite finds out when it is used.
            Err(error) => {
                guard::rejection(error, &database.guard)?;
                continue;
            }
        };
        if let Some(column) = columns.iter().find(|column| is_made_up(column, sql, 1)) {
            let detail = format!("{name} would have several columns with one name, one of them called {column:?}");
            return Err(Rejection::new(Code::StatementDenied, detail).with_hint("name every column with AS").into());
        }
        match &created {
            Created::Table(name) => database.fold_rows(name)?,
            Created::View(_) => {}
        }
    }
    Ok(())
}

/// The columns of a table or view.
fn columns_of(database: &Database, table: &str) -> rusqlite::Result<Vec<String>> {
    database
        .own("/*d3b*/SELECT name FROM pragma_table_xinfo(?, 'main')")?
        .query_map([table], |row| row.get(0))?
        .collect()
}

/// Whether a column has a name that SQLite made up where another column had taken the one that it should have: with a
/// number of at least so many digits behind it, and not said in the statement.
fn is_made_up(column: &str, sql: &str, digits_min: usize) -> bool {
    column.rsplit_once(':').is_some_and(|(_, digits)| {
        digits.len() >= digits_min && digits.bytes().all(|digit| digit.is_ascii_digit()) && !sql.contains(column)
    })
}

/// Refuses what would be answered differently by each replica.
fn check_answer(prepared: &Prepared<'_>, sql: &str) -> Result<(), Rejection> {
    if prepared.is_explain() == 1 {
        return Err(Rejection::new(Code::StatementDenied, "a program of SQLite shows addresses of one process")
            .with_hint("send EXPLAIN as a query of its own, or use EXPLAIN QUERY PLAN"));
    }
    if prepared.columns().any(|column| is_made_up(column.name(), sql, RANDOM_DIGITS_MIN)) {
        return Err(Rejection::new(Code::StatementDenied, "so many columns with one name get random names")
            .with_hint("name every column with AS"));
    }
    Ok(())
}

fn too_large() -> Refusal {
    let bound = crate::apply::RESULT_BYTES_MAX / (1024 * 1024);
    Rejection::new(Code::TooLarge, format!("the result is larger than {bound} MiB, so nothing was done"))
        .with_hint("return fewer rows from a write; large reads are streamed when they are not part of a batch")
        .into()
}

fn expect(statement: &Statement, result: &StatementResult) -> Result<(), Rejection> {
    let (expected, found, what) = match statement.expect {
        None => return Ok(()),
        Some(Expectation::RowsAffected(expected)) => (expected, result.rows_affected, "affect"),
        Some(Expectation::RowsReturned(expected)) => (expected, result.rows.len() as u64, "return"),
    };
    if expected == found {
        return Ok(());
    }
    Err(Rejection::new(
        Code::ExpectationFailed,
        format!("the statement was expected to {what} {expected} rows, and did so with {found}"),
    ))
}
