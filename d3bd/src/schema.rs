//! The schema service: database files in and out of the catalogue.

use d3b::{BlobReference, CatalogueChange, Code, DatabaseName, FileId, InsertMode, Operation, Problem, Statement};

use crate::handle::{Handle, WriteAnswer, WriteOptions};

/// Makes `name` exist with the contents of a database file that was taken in as a blob, or empty.
///
/// # Errors
/// `not-a-database` for a file that cannot be served, `exists` where the mode says so, or why the group cannot answer.
pub async fn upload_database(
    handle: &Handle,
    name: DatabaseName,
    owner: String,
    blob: Option<BlobReference>,
    mode: InsertMode,
    options: WriteOptions,
) -> Result<WriteAnswer, Problem> {
    refuse_catalogue(&name)?;
    // A large file takes long to check.
    let _kept = blob.as_ref().map(|blob| handle.keep_blob(blob)).transpose()?;
    if let Some(blob) = &blob {
        check(handle, blob).await.map_err(|problem| problem.with_db(name.as_str()))?;
    }
    let file_id = FileId::new(format!("{name}.sqlite3")).expect("a database name is a valid file id");
    let change = CatalogueChange::Upload { name, owner, file_id, blob, mode };
    handle.write(Operation::Catalogue(change), options).await
}

/// Drops a database, its media and its files.
///
/// # Errors
/// `db-not-found`, or why the group cannot answer.
pub async fn delete_database(
    handle: &Handle,
    name: DatabaseName,
    options: WriteOptions,
) -> Result<WriteAnswer, Problem> {
    refuse_catalogue(&name)?;
    handle.write(Operation::Catalogue(CatalogueChange::Delete { name }), options).await
}

/// A raw client's `INSERT INTO tables ...` with a database file.
///
/// # Errors
/// As [`upload_database`]; `bad-request` for a statement that does not insert exactly one row with this file id.
pub async fn raw_upload(
    handle: &Handle,
    statement: Statement,
    file_id: FileId,
    blob: BlobReference,
    options: WriteOptions,
) -> Result<WriteAnswer, Problem> {
    let _kept = handle.keep_blob(&blob)?;
    check(handle, &blob).await?;
    handle.write(Operation::Catalogue(CatalogueChange::RawUpload { statement, file_id, blob }), options).await
}

/// A raw client's `DELETE FROM tables ...`.
///
/// # Errors
/// As [`delete_database`]; `bad-request` for a statement that does not delete exactly one row with this file id.
pub async fn raw_delete(
    handle: &Handle,
    statement: Statement,
    file_id: FileId,
    options: WriteOptions,
) -> Result<WriteAnswer, Problem> {
    handle.write(Operation::Catalogue(CatalogueChange::RawDelete { statement, file_id }), options).await
}

fn refuse_catalogue(name: &DatabaseName) -> Result<(), Problem> {
    if name.is_catalogue() {
        return Err(Problem::new(
            Code::Forbidden,
            "schemas is the catalogue: it cannot be uploaded, replaced or dropped",
        )
        .with_hint("upload under another name")
        .with_db(name.as_str()));
    }
    Ok(())
}

/// Looks into an uploaded file before it is proposed; a file that fails is dropped by collection, nothing refers to it.
async fn check(handle: &Handle, blob: &BlobReference) -> Result<(), Problem> {
    let Some(path) = handle.blob_path(blob) else {
        return Err(Problem::new(Code::Internal, "the uploaded file is not in the blob store"));
    };
    tokio::task::spawn_blocking(move || d3b_engine::reader::check_upload(&path))
        .await
        .map_err(|panic| Problem::new(Code::Internal, panic.to_string()))?
        .map_err(Problem::from)
}
