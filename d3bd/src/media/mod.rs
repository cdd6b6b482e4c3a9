//! Blobs: all bytes that are too large for the log. A blob is immutable and named by its SHA-256; uploaded databases
//! and media files are blobs, equal content is kept once, and there is one way to move one from replica to replica.

use std::sync::Arc;

use d3b::ReplicaId;

mod buffers;
mod fetcher;
mod prefetch;
mod server;
mod sound;
mod store;
mod stream;
mod writeback;

pub use fetcher::{Connect, FetchError, Fetcher};
pub use prefetch::Prefetcher;
pub use server::{OnServed, serve};
pub use store::{BlobStore, BlobWriter, Collected, Kept};
pub use stream::{blob_stream, file_stream};

/// Whom to ask for a blob, in this order.
pub type Sources = Arc<dyn Fn() -> Vec<ReplicaId> + Send + Sync>;
