//! The rows that name a database's attached files. Their bytes are blobs, and none of this module's business.

use std::path::Path;

use d3b::{BlobReference, Code, Digest, FileId, MediaChange, Rejection, Slot};
use rusqlite::{Connection, params};

use crate::clock;
use crate::database::Database;
use crate::reader::open_immutable;

/// Carries out what an operation does to the media of its database. `None` is success.
pub(crate) fn apply(database: &Database, change: &MediaChange, slot: Slot) -> rusqlite::Result<Option<Rejection>> {
    match change {
        MediaChange::Upload { file_id, blob, media_type } => {
            // SQLite counts to 2^63 - 1; a size beyond it is a lie, and must not stop the replica.
            let Ok(size) = i64::try_from(blob.size) else {
                return Ok(Some(Rejection::new(Code::TooLarge, format!("a file cannot have {} bytes", blob.size))));
            };
            let sql = "/*d3b*/INSERT OR REPLACE INTO _d3b_media(file_id, sha256, size, type, slot) \
                       VALUES(?, ?, ?, ?, ?)";
            database.own(sql)?.execute(params![file_id.as_str(), blob.digest.0, size, media_type, slot.0])?;
            Ok(None)
        }
        MediaChange::Delete { file_id } => {
            let deleted =
                database.own("/*d3b*/DELETE FROM _d3b_media WHERE file_id = ?")?.execute([file_id.as_str()])?;
            Ok((deleted == 0).then(|| not_found(file_id)))
        }
    }
}

fn not_found(file_id: &FileId) -> Rejection {
    Rejection::new(Code::MediaNotFound, format!("the database has no media file {:?}", file_id.as_str()))
}

/// What goes into the fingerprint beside the rows that the operation's own SQL changed.
pub(crate) fn describe(change: &MediaChange) -> String {
    match change {
        MediaChange::Upload { file_id, blob, media_type } => {
            format!("upload {} {} {} {media_type}", file_id.as_str(), blob.digest, blob.size)
        }
        MediaChange::Delete { file_id } => format!("delete {}", file_id.as_str()),
    }
}

/// Shows the blob of every media file that a database's file names; the file is whole, and nobody writes to it.
///
/// # Errors
/// It cannot be read.
pub fn media_of_file(path: &Path, show: &mut dyn FnMut(BlobReference)) -> rusqlite::Result<()> {
    clock::register();
    visit(&open_immutable(path)?, show)
}

/// Shows the blob of every media file.
pub(crate) fn visit(connection: &Connection, visit: &mut dyn FnMut(BlobReference)) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT sha256, size FROM _d3b_media")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let size: i64 = row.get(1)?;
        visit(BlobReference { digest: Digest(row.get(0)?), size: size.unsigned_abs() });
    }
    Ok(())
}
