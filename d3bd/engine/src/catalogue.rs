//! The catalogue: which databases there are, and which name meant which of them at which slot.
//!
//! It is a database like the others, called `schemas`, in every cluster from the start. `users` and `tables` are open
//! to every query; only the schema service writes them, through the operations of this module. Beside them stands the
//! history of names: after a crash the catalogue may be ahead of another database, and an entry that is applied again
//! must find the database that its name meant then.

use std::collections::BTreeMap;

use d3b::{
    CatalogueChange, Code, DatabaseId, DatabaseName, FileId, InsertMode, KeyedOperation, Rejection, Slot, Statement,
    StatementResult,
};
use rusqlite::{Connection, OptionalExtension, params};

use crate::apply::{RESULT_BYTES_MAX, Refusal};
use crate::database::Database;
use crate::guard::Mode;
use crate::{requests, statement};

/// The tables of the catalogue beside those that every database has ([`crate::database::TABLES`]).
///
/// * `_d3b_history`: from and until which slot a name meant a database; both slots are those of the changes
///   themselves. `until_slot` is NULL for a database that exists. Rows of dropped databases go with their files.
/// * `_d3b_mark`: everything up to `slot` is durable in every database.
/// * `_d3b_fenced`: databases that this replica does not serve, because their files are damaged.
pub const TABLES: &str = "
    CREATE TABLE users(
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    );
    CREATE TABLE tables(
        id TEXT,
        owner TEXT,
        name TEXT NOT NULL UNIQUE,
        fileid TEXT NOT NULL,
        created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    );
    CREATE TABLE _d3b_history(
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        from_slot INTEGER NOT NULL,
        until_slot INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX _d3b_history_name ON _d3b_history(name, from_slot);
    CREATE INDEX _d3b_history_until ON _d3b_history(until_slot) WHERE until_slot IS NOT NULL;
    CREATE TABLE _d3b_mark(
        id INTEGER PRIMARY KEY CHECK(id = 1),
        slot INTEGER NOT NULL
    );
    INSERT INTO _d3b_mark(id, slot) VALUES(1, 0);
    CREATE TABLE _d3b_fenced(
        id TEXT PRIMARY KEY,
        slot INTEGER NOT NULL,
        detail TEXT NOT NULL
    ) WITHOUT ROWID;
";

/// Whether a definition is one of [`TABLES`], or that of an index that comes with one.
pub(crate) fn is_own(sql: &str) -> bool {
    sql.is_empty() || TABLES.split(';').any(|made| made.trim() == sql)
}

/// What a change of the catalogue did to its rows, and has yet to do to files.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Changed {
    /// The database that was made or dropped.
    pub id: DatabaseId,
    /// Its name.
    pub name: DatabaseName,
    /// The database that had the name before.
    pub replaced: Option<DatabaseId>,
    /// Whether `id` is new, and its file must be brought into place.
    pub made: bool,
    /// What a raw client's statement returned.
    pub result: Option<StatementResult>,
}

/// Makes the catalogue's own tables.
pub(crate) fn create_tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(TABLES)
}

/// The database that a name means to an entry at that slot, if any.
pub(crate) fn resolve(
    catalogue: &Database,
    name: &DatabaseName,
    at: Slot,
) -> rusqlite::Result<Option<(DatabaseId, Lifetime)>> {
    let sql = "/*d3b*/SELECT id, from_slot, until_slot FROM _d3b_history \
               WHERE name = ?1 AND from_slot < ?2 AND (until_slot IS NULL OR until_slot > ?2)";
    catalogue
        .own(sql)?
        .query_row(params![name.as_str(), at.0], |row| {
            let lifetime = Lifetime { from: Slot(row.get(1)?), until: row.get::<_, Option<u64>>(2)?.map(Slot) };
            Ok((id_of(row, 0)?, lifetime))
        })
        .optional()
}

/// The slots between which a name means a database; both changes themselves are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime {
    /// The slot that made it.
    pub from: Slot,
    /// The slot that dropped or replaced it.
    pub until: Option<Slot>,
}

impl Lifetime {
    /// Whether an entry at that slot means it.
    pub fn covers(&self, at: Slot) -> bool {
        self.from < at && self.until.is_none_or(|until| at < until)
    }
}

/// The database that has the name now.
fn live(catalogue: &Database, name: &DatabaseName) -> rusqlite::Result<Option<DatabaseId>> {
    catalogue
        .own("/*d3b*/SELECT id FROM _d3b_history WHERE name = ? AND until_slot IS NULL")?
        .query_row([name.as_str()], |row| id_of(row, 0))
        .optional()
}

fn id_of(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<DatabaseId> {
    row.get_ref(column)?.as_str()?.parse().map_err(|error: d3b::InvalidId| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
    })
}

/// Carries a change out on the rows of the catalogue.
pub(crate) fn change(
    catalogue: &mut Database,
    keyed: &KeyedOperation,
    change: &CatalogueChange,
    slot: Slot,
) -> Result<Changed, Refusal> {
    match change {
        CatalogueChange::Upload { name, owner, file_id, mode, .. } => {
            check_reserved(name)?;
            let replaced = live(catalogue, name)?;
            match (mode, replaced) {
                (InsertMode::CreateOnly, Some(_)) => {
                    return Err(Rejection::new(Code::Exists, format!("there is a database {name} already"))
                        .with_hint("replace it explicitly, or choose another name")
                        .into());
                }
                (InsertMode::CreateOnly | InsertMode::Replace, None) | (InsertMode::Replace, Some(_)) => {}
            }
            let id = new_id(name, keyed.key.as_str(), slot);
            if replaced.is_some() {
                catalogue.own("/*d3b*/DELETE FROM tables WHERE name = ?")?.execute([name.as_str()])?;
            }
            catalogue
                .own("/*d3b*/INSERT INTO tables(id, owner, name, fileid) VALUES(?, ?, ?, ?)")?
                .execute(params![id.to_string(), owner, name.as_str(), file_id.as_str()])?;
            record_made(catalogue, name, id, replaced, slot)?;
            Ok(Changed { id, name: name.clone(), replaced, made: true, result: None })
        }
        CatalogueChange::Delete { name } => {
            check_reserved(name)?;
            let Some(id) = live(catalogue, name)? else {
                return Err(not_found(name).into());
            };
            catalogue.own("/*d3b*/DELETE FROM tables WHERE name = ?")?.execute([name.as_str()])?;
            record_dropped(catalogue, id, slot)?;
            Ok(Changed { id, name: name.clone(), replaced: Some(id), made: false, result: None })
        }
        CatalogueChange::RawUpload { statement, file_id, .. } => raw_upload(catalogue, statement, file_id, slot),
        CatalogueChange::RawDelete { statement, file_id } => raw_delete(catalogue, statement, file_id, slot),
        CatalogueChange::Restore { .. } => {
            Err(Rejection::new(Code::Internal, "a backup is not restored by a change of rows").into())
        }
    }
}

/// The refusal of an operation on a database that does not exist.
pub(crate) fn not_found(name: &DatabaseName) -> Rejection {
    Rejection::new(Code::DatabaseNotFound, format!("there is no database {name}"))
}

fn check_reserved(name: &DatabaseName) -> Result<(), Rejection> {
    if name.is_catalogue() {
        return Err(Rejection::new(Code::StatementDenied, format!("the name {name} is reserved for the catalogue")));
    }
    Ok(())
}

/// The slot is part of it: a raw client may use the same file id again after a deletion, and anyone an expired key.
fn new_id(name: &DatabaseName, unique: &str, slot: Slot) -> DatabaseId {
    DatabaseId::derive(name, &format!("{unique}\0{slot}"))
}

fn record_made(
    catalogue: &Database,
    name: &DatabaseName,
    id: DatabaseId,
    replaced: Option<DatabaseId>,
    slot: Slot,
) -> rusqlite::Result<()> {
    if let Some(replaced) = replaced {
        record_dropped(catalogue, replaced, slot)?;
    }
    catalogue
        .own("/*d3b*/INSERT INTO _d3b_history(id, name, from_slot, until_slot) VALUES(?, ?, ?, NULL)")?
        .execute(params![id.to_string(), name.as_str(), slot.0])
        .map(|_| ())
}

fn record_dropped(catalogue: &Database, id: DatabaseId, slot: Slot) -> rusqlite::Result<()> {
    catalogue
        .own("/*d3b*/UPDATE _d3b_history SET until_slot = ? WHERE id = ?")?
        .execute(params![slot.0, id.to_string()])
        .map(|_| ())
}

/// Refuses a catalogue that has a database or a user. Databases that were dropped do not count: each replica forgets
/// them at a moment of its own.
pub(crate) fn check_empty(catalogue: &Database) -> Result<(), Refusal> {
    let sql = "/*d3b*/SELECT (SELECT count(*) FROM tables), (SELECT count(*) FROM users)";
    let (tables, users) =
        catalogue.own(sql)?.query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
    if tables == 0 && users == 0 {
        return Ok(());
    }
    let detail = format!("this cluster is not empty: it has {tables} databases and {users} users");
    Err(Rejection::new(Code::Exists, detail).with_hint("a backup is restored into a new cluster").into())
}

/// Takes over the rows of a backup's catalogue. `files` are the databases that the backup has the files of, by the ids
/// that they had; told are the ids that they get, in the order of the rows.
pub(crate) fn restore(
    catalogue: &mut Database,
    from: &Connection,
    files: &BTreeMap<DatabaseId, DatabaseName>,
    unique: &str,
    slot: Slot,
) -> Result<Vec<(DatabaseId, DatabaseId)>, Refusal> {
    check_empty(catalogue)?;
    let foreign = |detail: String| Rejection::new(Code::BadRequest, detail);
    let value = |row: &rusqlite::Row<'_>, column| row.get::<_, rusqlite::types::Value>(column);
    let mut users = from.prepare("SELECT id, name, created FROM users ORDER BY id")?;
    let mut rows = users.query([])?;
    while let Some(row) = rows.next()? {
        let sql = "/*d3b*/INSERT INTO users(id, name, created) VALUES(?, ?, ?)";
        catalogue.own(sql)?.execute(params![value(row, 0)?, value(row, 1)?, value(row, 2)?])?;
    }
    let mut tables = from.prepare("SELECT id, name, owner, fileid, created FROM tables ORDER BY rowid")?;
    let mut rows = tables.query([])?;
    let mut made = Vec::new();
    while let Some(row) = rows.next()? {
        let (old, name) = (id_of(row, 0), row.get::<_, String>(1));
        let name = name.ok().and_then(|name| DatabaseName::new(name).ok());
        let (Ok(old), Some(name)) = (old, name) else {
            return Err(foreign("a row of the backup's catalogue is none of d3b's".to_owned()).into());
        };
        check_reserved(&name)?;
        if files.get(&old) != Some(&name) {
            return Err(foreign(format!("the backup has no file of the database {name}")).into());
        }
        let id = new_id(&name, unique, slot);
        let sql = "/*d3b*/INSERT INTO tables(id, owner, name, fileid, created) VALUES(?, ?, ?, ?, ?)";
        let (owner, file_id, created) = (value(row, 2)?, value(row, 3)?, value(row, 4)?);
        catalogue.own(sql)?.execute(params![id.to_string(), owner, name.as_str(), file_id, created])?;
        record_made(catalogue, &name, id, None, slot)?;
        made.push((old, id));
    }
    if made.len() != files.len() {
        return Err(foreign("the backup has a file of a database that its catalogue does not know".to_owned()).into());
    }
    requests::take_over(from, catalogue)?;
    Ok(made)
}

/// What a raw client's change must look like.
fn raw_rule(what: &str, file_id: &FileId, problem: &str) -> Refusal {
    Rejection::new(
        Code::BadRequest,
        format!(
            "the statement must {what} exactly one row of tables, with the fileid {:?}: {problem}",
            file_id.as_str()
        ),
    )
    .with_hint("nothing was done")
    .into()
}

fn row_count(catalogue: &Database) -> rusqlite::Result<i64> {
    catalogue.own("/*d3b*/SELECT count(*) FROM tables")?.query_row([], |row| row.get(0))
}

fn raw_upload(
    catalogue: &mut Database,
    statement: &Statement,
    file_id: &FileId,
    slot: Slot,
) -> Result<Changed, Refusal> {
    let broken = |problem: &str| raw_rule("insert", file_id, problem);
    let before = row_count(catalogue)?;
    let mut budget = RESULT_BYTES_MAX;
    let result = statement::run(catalogue, statement, Mode::CatalogueWrite, &mut budget)?;
    if result.rows_affected != 1 {
        return Err(broken(&format!("it changed {}", result.rows_affected)));
    }
    let row = catalogue
        .own("/*d3b*/SELECT name, fileid FROM tables WHERE rowid = ? AND typeof(name) = 'text' AND typeof(fileid) = 'text'")?
        .query_row([result.last_insert_rowid], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .optional()?;
    let Some((name, found)) = row else {
        return Err(broken("it inserted no text for name or fileid"));
    };
    if found != file_id.as_str() {
        return Err(broken(&format!("it inserted {found:?}")));
    }
    let name = DatabaseName::new(name).map_err(|error| Rejection::new(Code::BadRequest, error.to_string()))?;
    check_reserved(&name)?;
    let replaced = live(catalogue, &name)?;
    // REPLACE can remove rows silently, and only the one with the same name may go.
    if row_count(catalogue)? != before + i64::from(replaced.is_none()) {
        return Err(broken("it removed another row"));
    }
    let id = new_id(&name, file_id.as_str(), slot);
    catalogue
        .own("/*d3b*/UPDATE tables SET id = ? WHERE rowid = ?")?
        .execute(params![id.to_string(), result.last_insert_rowid])?;
    record_made(catalogue, &name, id, replaced, slot)?;
    Ok(Changed { id, name, replaced, made: true, result: Some(result) })
}

fn raw_delete(
    catalogue: &mut Database,
    statement: &Statement,
    file_id: &FileId,
    slot: Slot,
) -> Result<Changed, Refusal> {
    let broken = |problem: &str| raw_rule("delete", file_id, problem);
    let names = |catalogue: &Database| -> rusqlite::Result<Vec<String>> {
        catalogue
            .own("/*d3b*/SELECT name FROM tables WHERE fileid = ? ORDER BY name")?
            .query_map([file_id.as_str()], |row| row.get(0))?
            .collect()
    };
    let before = names(catalogue)?;
    let mut budget = RESULT_BYTES_MAX;
    let result = statement::run(catalogue, statement, Mode::CatalogueWrite, &mut budget)?;
    if result.rows_affected != 1 {
        return Err(broken(&format!("it changed {}", result.rows_affected)));
    }
    let after = names(catalogue)?;
    let Some(name) = before.into_iter().find(|name| !after.contains(name)) else {
        return Err(broken("it deleted another one"));
    };
    let name = DatabaseName::new(name).map_err(|error| Rejection::new(Code::Internal, error.to_string()))?;
    let id = live(catalogue, &name)?.ok_or_else(|| not_found(&name))?;
    record_dropped(catalogue, id, slot)?;
    Ok(Changed { id, name, replaced: Some(id), made: false, result: Some(result) })
}

/// The slot up to which every database is durable.
pub(crate) fn mark(catalogue: &Database) -> rusqlite::Result<Slot> {
    catalogue.own("/*d3b*/SELECT slot FROM _d3b_mark")?.query_row([], |row| row.get(0).map(Slot))
}

/// Moves the mark, in the open transaction.
pub(crate) fn set_mark(catalogue: &Database, slot: Slot) -> rusqlite::Result<()> {
    catalogue.own("/*d3b*/UPDATE _d3b_mark SET slot = ?")?.execute([slot.0]).map(|_| ())
}

/// Databases that are not served here, and why.
pub(crate) fn fenced(catalogue: &Database) -> rusqlite::Result<Vec<(DatabaseId, String)>> {
    catalogue
        .own("/*d3b*/SELECT id, detail FROM _d3b_fenced")?
        .query_map([], |row| Ok((id_of(row, 0)?, row.get(1)?)))?
        .collect()
}

/// Remembers that a database is not served here, in the open transaction.
pub(crate) fn set_fenced(catalogue: &Database, id: DatabaseId, slot: Slot, detail: &str) -> rusqlite::Result<()> {
    catalogue
        .own("/*d3b*/INSERT OR IGNORE INTO _d3b_fenced(id, slot, detail) VALUES(?, ?, ?)")?
        .execute(params![id.to_string(), slot.0, detail])
        .map(|_| ())
}

/// Databases that were dropped or replaced at or before a slot, and whose files may still be there.
pub(crate) fn dropped(catalogue: &Database, upto: Slot) -> rusqlite::Result<Vec<DatabaseId>> {
    catalogue
        .own("/*d3b*/SELECT id FROM _d3b_history WHERE until_slot IS NOT NULL AND until_slot <= ?")?
        .query_map([upto.0], |row| id_of(row, 0))?
        .collect()
}

/// Every database that existed at a slot or was made later, with its name.
pub(crate) fn not_dropped_by(connection: &Connection, slot: Slot) -> rusqlite::Result<Vec<(DatabaseId, DatabaseName)>> {
    connection
        .prepare("SELECT id, name FROM _d3b_history WHERE until_slot IS NULL OR until_slot > ? ORDER BY id")?
        .query_map([slot.0], |row| {
            let name = DatabaseName::new(row.get::<_, String>(1)?).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error.into())
            })?;
            Ok((id_of(row, 0)?, name))
        })?
        .collect()
}

/// Forgets a dropped database whose files are gone, in the open transaction.
pub(crate) fn forget(catalogue: &Database, id: DatabaseId) -> rusqlite::Result<()> {
    catalogue.own("/*d3b*/DELETE FROM _d3b_history WHERE id = ?")?.execute([id.to_string()])?;
    catalogue.own("/*d3b*/DELETE FROM _d3b_fenced WHERE id = ?")?.execute([id.to_string()]).map(|_| ())
}

/// The first databases that exist, behind one of them, in the order of their ids.
pub(crate) fn live_ids_behind(
    catalogue: &Database,
    behind: Option<DatabaseId>,
    limit: u32,
) -> rusqlite::Result<Vec<DatabaseId>> {
    let behind = behind.map(|id| id.to_string()).unwrap_or_default();
    catalogue
        .own("/*d3b*/SELECT id FROM _d3b_history WHERE until_slot IS NULL AND id > ? ORDER BY id LIMIT ?")?
        .query_map(params![behind, limit], |row| id_of(row, 0))?
        .collect()
}
