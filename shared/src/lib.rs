//! The vocabulary of d3b: what the daemon, its core, its engine, the CLI and the tests all speak of.
//!
//! Nothing here does I/O, except [`client`] and [`archive`] (behind the features of those names).

#[cfg(feature = "archive")]
pub mod archive;
#[cfg(feature = "client")]
pub mod client;

pub mod api;
pub mod chance;
pub mod csv;
pub mod digest;
pub mod error;
pub mod ids;
pub mod json;
pub mod operation;
pub mod rows;

pub use chance::splitmix64;
pub use digest::{Digest, Hasher};
pub use error::{Code, Problem};
pub use ids::{ClusterId, DatabaseId, DatabaseName, DiskId, FileId, IdempotencyKey, InvalidId, ReplicaId, Slot};
pub use operation::{
    Answer, Arguments, BlobReference, CatalogueChange, Expectation, InsertMode, KeyedOperation, MediaChange, Operation,
    Outcome, Rejection, Statement, StatementResult,
};
pub use rows::{RowSink, SinkClosed, Value, ValueRef};
