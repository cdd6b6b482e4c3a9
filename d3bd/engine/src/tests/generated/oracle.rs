//! Plain SQLite beside the engine: without clock and dice in a log, it must give the same answers and hold the same
//! rows. What the engine refuses by a rule of its own is left out, since it leaves no trace.

use std::collections::BTreeMap;
use std::path::PathBuf;

use d3b::{
    Answer, Arguments, CatalogueChange, Code, Expectation, Operation, Rejection, Statement, StatementResult, Value,
};
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};

use super::log::Making;
use super::ways::same_lines;
use crate::tests::crash::{read_rows, rows_of};
use crate::tests::*;
use crate::text::Kind;

/// The databases of a log, as plain SQLite has them.
pub(crate) struct Oracle {
    directory: TempDir,
    /// The file of each database that exists.
    files: BTreeMap<DatabaseName, PathBuf>,
    made: usize,
    /// How many operations it has carried out.
    pub compared: u64,
}

/// Why plain SQLite does not do something: which statement, and the extended code where SQLite has one.
#[derive(Debug, PartialEq)]
struct Failure {
    statement: Option<u32>,
    sqlite_code: Option<i32>,
}

impl Oracle {
    pub fn new() -> Oracle {
        Oracle { directory: directory_in_memory(), files: BTreeMap::new(), made: 0, compared: 0 }
    }

    /// Does what a log has done, and compares.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&mut self, making: &Making<'_>) -> Result<(), String> {
        for (applied, operation) in making.applied.iter().zip(&making.operations) {
            let (Some(operation), Some(outcome)) = (operation, &applied.outcome) else { continue };
            if applied.executed_at != applied.slot {
                continue;
            }
            let compared = match operation {
                Operation::Sql { db, .. } => match self.files.get(db) {
                    None => Ok(()),
                    Some(file) => compare(&open(file), operation, outcome),
                },
                Operation::Catalogue(change) => {
                    if outcome.is_ok() {
                        self.follow(change, &making.lab.files);
                    }
                    Ok(())
                }
            };
            compared.map_err(|problem| format!("slot {}: {problem}\n{operation:#?}", applied.slot))?;
            self.compared += 1;
        }
        self.check_content(making)
    }

    /// Makes and drops files as the catalogue does.
    fn follow(&mut self, change: &CatalogueChange, files: &Files) {
        let (name, blob) = match change {
            CatalogueChange::Upload { name, blob, .. } => (name.clone(), *blob),
            CatalogueChange::Delete { name } => {
                self.files.remove(name);
                return;
            }
            CatalogueChange::RawUpload { statement, blob, .. } => {
                (name(statement.sql.split('\'').nth(1).unwrap()), Some(*blob))
            }
            CatalogueChange::Restore { .. } => unreachable!("no generated log restores a backup"),
            // Plain SQLite does not know whose file it was; the database is simply not compared any more.
            CatalogueChange::RawDelete { .. } => {
                self.files.clear();
                return;
            }
        };
        self.made += 1;
        let path = self.directory.path().join(format!("{}.sqlite3", self.made));
        match blob {
            Some(blob) => drop(fs::copy(&files.0[&blob.digest], &path).unwrap()),
            None => drop(fs::File::create(&path).unwrap()),
        }
        self.files.insert(name, path);
    }

    fn check_content(&self, making: &Making<'_>) -> Result<(), String> {
        let catalogue = format!("{}.sqlite3", DatabaseId::catalogue());
        for (name, file) in &self.files {
            let id: String = Connection::open(making.lab.databases().join(&catalogue))
                .unwrap()
                .query_row("SELECT id FROM tables WHERE name = ?", [name.as_str()], |row| row.get(0))
                .unwrap();
            let engines = Connection::open(making.lab.databases().join(format!("{id}.sqlite3"))).unwrap();
            same_lines(&visible(&engines), &visible(&open(file)))
                .map_err(|problem| format!("database {name}: {problem}"))?;
        }
        Ok(())
    }
}

/// The rows of all tables but d3b's own and those that keep a virtual table: how an index is cut into segments depends
/// on when it was written out, and what is found with it does not.
fn visible(connection: &Connection) -> Vec<String> {
    let sql = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'virtual') ORDER BY name";
    let tables: Vec<String> =
        connection.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mut lines = Vec::new();
    for table in tables.iter().filter(|name| !name.starts_with("_d3b_") && *name != "sqlite_schema") {
        let rows = if table.starts_with("sqlite_stat") {
            // ANALYZE gives rowids in an order that depends on d3b's own tables.
            let shadows = "SELECT name FROM pragma_table_list WHERE type = 'shadow'";
            read_rows(connection, &format!("SELECT * FROM {table} WHERE tbl NOT IN ({shadows})")).unwrap()
        } else {
            rows_of(connection, table)
        };
        lines.extend(rows.into_iter().map(|row| format!("{table} {row}")));
    }
    lines
}

/// A new connection for each operation has nothing in memory of those before it, as it should be.
fn open(path: &std::path::Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    for (setting, value) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DML, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DDL, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true),
    ] {
        connection.set_db_config(setting, value).unwrap();
    }
    connection.execute_batch("PRAGMA synchronous = OFF").unwrap();
    connection
}

/// Whether a refusal is one of the engine's own rules.
fn is_rule(rejection: &Rejection) -> bool {
    matches!(
        rejection.code,
        Code::StatementDenied
            | Code::BadRequest
            | Code::TooLarge
            | Code::MediaNotFound
            | Code::KeyReused
            | Code::KeyExpired
    ) || rejection.detail.contains("the next one would be random")
        || rejection.detail.contains("has used up its AUTOINCREMENT")
}

/// Carries out an operation and compares what came of it.
fn compare(connection: &Connection, operation: &Operation, outcome: &d3b::Outcome) -> Result<(), String> {
    let Operation::Sql { statements, deferred_foreign_keys, .. } = operation else { return Ok(()) };
    if outcome.as_ref().is_err_and(is_rule) {
        return Ok(());
    }
    let found = execute(connection, statements, *deferred_foreign_keys);
    match (outcome, found) {
        (Ok(Answer::Results(results)), Ok(found)) if equal(results, &found) => Ok(()),
        (Err(rejection), Err(failure)) => {
            let engines = Failure { statement: rejection.statement, sqlite_code: rejection.sqlite_code };
            if engines == failure { Ok(()) } else { Err(format!("{rejection:?} where plain SQLite says {failure:?}")) }
        }
        (_, found) => Err(format!("{outcome:?}\nwhere plain SQLite says\n{found:?}")),
    }
}

/// NaN does not come out of SQLite, so that results can be compared by what they look like.
fn equal(some: &[StatementResult], others: &[StatementResult]) -> bool {
    format!("{some:?}") == format!("{others:?}")
}

/// Runs statements in one transaction.
fn execute(
    connection: &Connection,
    statements: &[Statement],
    deferred_foreign_keys: bool,
) -> Result<Vec<StatementResult>, Failure> {
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    if deferred_foreign_keys {
        connection.execute_batch("PRAGMA defer_foreign_keys = ON").unwrap();
    }
    let mut results = Vec::new();
    for (index, statement) in statements.iter().enumerate() {
        match run(connection, statement) {
            Ok(result) => results.push(result),
            Err(sqlite_code) => {
                if !connection.is_autocommit() {
                    connection.execute_batch("ROLLBACK").unwrap();
                }
                return Err(Failure { statement: Some(index as u32), sqlite_code });
            }
        }
    }
    connection.execute_batch("COMMIT").map(|()| results).map_err(|error| {
        connection.execute_batch("ROLLBACK").unwrap();
        Failure { statement: None, sqlite_code: code(&error) }
    })
}

fn code(error: &rusqlite::Error) -> Option<i32> {
    crate::database::sqlite_error(error).map(|error| error.extended_code)
}

fn run(connection: &Connection, statement: &Statement) -> Result<StatementResult, Option<i32>> {
    let failed = |error: rusqlite::Error| code(&error);
    let mut prepared = connection.prepare(&statement.sql).map_err(failed)?;
    bind(&mut prepared, &statement.arguments);
    let writes = Kind::of(&statement.sql) == Kind::Data && !prepared.readonly();
    let mut result = StatementResult::default();
    for column in prepared.columns() {
        result.columns.push(column.name().to_owned());
        result.types.push(column.decl_type().unwrap_or_default().to_owned());
    }
    let width = result.columns.len();
    let mut rows = prepared.raw_query();
    while let Some(row) = rows.next().map_err(failed)? {
        result.rows.push((0..width).map(|column| owned(row.get_ref(column).unwrap())).collect());
    }
    drop(rows);
    drop(prepared);
    result.rows_affected = if writes { connection.changes() } else { 0 };
    result.last_insert_rowid = connection.last_insert_rowid();
    let (expected, found) = match statement.expect {
        None => return Ok(result),
        Some(Expectation::RowsAffected(expected)) => (expected, result.rows_affected),
        Some(Expectation::RowsReturned(expected)) => (expected, result.rows.len() as u64),
    };
    if expected == found { Ok(result) } else { Err(None) }
}

fn bind(prepared: &mut rusqlite::Statement<'_>, arguments: &Arguments) {
    match arguments {
        Arguments::Positional(values) => {
            values.iter().enumerate().for_each(|(index, value)| bind_one(prepared, index + 1, value));
        }
        Arguments::Named(values) => {
            for (name, value) in values {
                let index = prepared.parameter_index(name).unwrap().unwrap();
                bind_one(prepared, index, value);
            }
        }
    }
}

fn bind_one(prepared: &mut rusqlite::Statement<'_>, index: usize, value: &Value) {
    let value = match value {
        Value::Null => ValueRef::Null,
        Value::Integer(integer) => ValueRef::Integer(*integer),
        Value::Real(real) => ValueRef::Real(*real),
        Value::Text(text) => ValueRef::Text(text.as_bytes()),
        Value::Blob(bytes) => ValueRef::Blob(bytes),
    };
    prepared.raw_bind_parameter(index, ToSqlOutput::Borrowed(value)).unwrap();
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
