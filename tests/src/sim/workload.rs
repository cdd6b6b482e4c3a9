//! What the clients of a simulated cluster ask for: registers, each of which is a row, a media file or a database, so
//! that one checker judges them all.

use d3b::{
    Arguments, BlobReference, CatalogueChange, DatabaseName, Digest, Expectation, FileId, InsertMode, MediaChange,
    Operation, Statement, Value,
};

use crate::linearizability::Action;

/// The database of rows and media.
pub const DATABASE: &str = "kv";
/// The database that comes and goes.
pub const TEMPORARY: &str = "temporary";
/// The tables of [`DATABASE`]: what differs between replicas if anything can is in their defaults and triggers.
pub const SCHEMA: [&str; 5] = [
    "CREATE TABLE kv(k INTEGER PRIMARY KEY, v INTEGER NOT NULL, at DEFAULT CURRENT_TIMESTAMP, dice DEFAULT (random()))",
    "CREATE TABLE done(token INTEGER, at DEFAULT (strftime('%s %f', 'now')), noise DEFAULT (hex(randomblob(4))))",
    "CREATE TABLE seen(k INTEGER, old, new, dice)",
    "CREATE TRIGGER look AFTER UPDATE ON kv BEGIN INSERT INTO seen VALUES(new.k, old.v, new.v, random()); END",
    "CREATE INDEX done_by_noise ON done(noise)",
];
/// Notes that a request took effect; doing so twice shows.
pub const TOKEN: &str = "INSERT INTO done(token) VALUES(?1)";
/// [`Action::Write`] on a row.
pub const WRITE: &str = "INSERT INTO kv(k, v) VALUES(?1, ?2) ON CONFLICT(k) DO UPDATE SET v = excluded.v";
/// [`Action::Swap`] on a row.
pub const SWAP: &str = "UPDATE kv SET v = ?3 WHERE k = ?1 AND v = ?2";
/// [`Action::Delete`] on a row.
pub const DELETE: &str = "DELETE FROM kv WHERE k = ?1";

/// Something that has a value, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Register {
    /// A row of `kv`.
    Row(u64),
    /// A media file.
    File(u64),
    /// The database [`TEMPORARY`], by its owner.
    Database,
    /// No register: a step of making [`DATABASE`] what clients expect.
    SetUp(usize),
}

/// The name of a media file.
///
/// # Panics
/// Never: the name is well formed.
#[must_use]
pub fn file_id(file: u64) -> FileId {
    FileId::new(format!("file/{file}.jpg")).expect("a file id that is well formed")
}

/// A database's name as a type.
///
/// # Panics
/// When the name is not one.
#[must_use]
pub fn name(text: &str) -> DatabaseName {
    DatabaseName::new(text).expect("a name that is well formed")
}

/// The bytes of a media file that has a value.
#[must_use]
pub fn contents(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

/// The blob of a media file that has a value.
#[must_use]
pub fn blob(value: u64) -> BlobReference {
    BlobReference { digest: Digest::of(&contents(value)), size: 8 }
}

fn integer(value: u64) -> Value {
    Value::Integer(i64::try_from(value).expect("values are small"))
}

/// A statement with positional arguments.
#[must_use]
pub fn statement(sql: &str, arguments: &[u64], expect: Option<Expectation>) -> Statement {
    let arguments = Arguments::Positional(arguments.iter().copied().map(integer).collect());
    Statement { sql: sql.to_owned(), arguments, expect }
}

/// The operation that carries out an action under a token.
///
/// # Panics
/// For reads, and for what a register cannot do.
#[must_use]
pub fn operation(register: Register, action: Action, token: u64) -> Operation {
    let done = statement(TOKEN, &[token], None);
    let sql =
        |statements, media| Operation::Sql { db: name(DATABASE), statements, deferred_foreign_keys: false, media };
    let one = Some(Expectation::RowsAffected(1));
    match (register, action) {
        (Register::Row(row), Action::Write(value)) => sql(vec![done, statement(WRITE, &[row, value], None)], None),
        (Register::Row(row), Action::Swap { from, to }) => {
            sql(vec![done, statement(SWAP, &[row, from, to], one)], None)
        }
        (Register::Row(row), Action::Delete) => sql(vec![done, statement(DELETE, &[row], one)], None),
        (Register::File(file), Action::Write(value)) => {
            let media_type = "image/jpeg".to_owned();
            let upload = MediaChange::Upload { file_id: file_id(file), blob: blob(value), media_type };
            sql(vec![done], Some(upload))
        }
        (Register::File(file), Action::Delete) => sql(vec![done], Some(MediaChange::Delete { file_id: file_id(file) })),
        (Register::Database, Action::Write(value)) => Operation::Catalogue(CatalogueChange::Upload {
            name: name(TEMPORARY),
            owner: value.to_string(),
            file_id: FileId::new(format!("image {value}")).expect("a file id that is well formed"),
            blob: None,
            mode: InsertMode::Replace,
        }),
        (Register::Database, Action::Delete) => Operation::Catalogue(CatalogueChange::Delete { name: name(TEMPORARY) }),
        (Register::SetUp(step), Action::Write(_)) => set_up(step),
        (Register::File(_) | Register::Database | Register::SetUp(_), Action::Swap { .. })
        | (Register::SetUp(_), Action::Delete)
        | (_, Action::Read) => panic!("{action:?} is no operation on {register:?}"),
    }
}

/// A step of making [`DATABASE`] what clients expect.
fn set_up(step: usize) -> Operation {
    if step > 0 {
        return Operation::Sql {
            db: name(DATABASE),
            statements: SCHEMA.iter().map(|sql| statement(sql, &[], None)).collect(),
            deferred_foreign_keys: false,
            media: None,
        };
    }
    Operation::Catalogue(CatalogueChange::Upload {
        name: name(DATABASE),
        owner: "1".to_owned(),
        file_id: FileId::new("kv").expect("a file id that is well formed"),
        blob: None,
        mode: InsertMode::Replace,
    })
}
