//! Fetching a snapshot until it can be decided on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d3b::{BlobReference, ReplicaId};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Manifest, Staging, StagingError};
use crate::media::{BlobStore, FetchError, Fetcher};

/// How many files are fetched at once.
const CONCURRENT_MAX: usize = 4;

/// Why a snapshot is not here. What is here of it stays, and another try goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// A file could not be fetched.
    #[error("a file of the snapshot cannot be fetched")]
    Fetch(#[from] FetchError),
    /// It could not be put beside the others.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The process stops.
    #[error("the fetch was given up")]
    GivenUp,
}

/// Fetches a snapshot by the blob of its manifest, from replicas that offer it, and decides on it. When this is done, the
/// process must end without writing anything more that is to last; the next one installs it.
///
/// # Errors
/// See [`ReceiveError`].
pub async fn receive(
    data_directory: &Path,
    blobs: &BlobStore,
    fetcher: &Fetcher,
    reference: BlobReference,
    sources: &[ReplicaId],
) -> Result<(), ReceiveError> {
    Manifest::check_size(&reference).map_err(StagingError::from)?;
    let staging = {
        let _kept = blobs.keep(&reference.digest);
        fetcher.fetch(reference, sources).await?;
        let (data_directory, blobs) = (PathBuf::from(data_directory), blobs.clone());
        Arc::new(blocking(move || Staging::begin(&data_directory, &reference, &blobs)).await??)
    };
    let missing = blocking({
        let staging = Arc::clone(&staging);
        move || staging.missing()
    })
    .await?;
    let one = |file: BlobReference| {
        let (staging, blobs) = (Arc::clone(&staging), blobs.clone());
        async move {
            let _kept = blobs.keep(&file.digest);
            fetcher.fetch(file, sources).await?;
            let store = blobs.clone();
            blocking(move || staging.stage(&file.digest, &store)).await??;
            Ok::<(), ReceiveError>(())
        }
    };
    stream::iter(missing.into_iter().map(one)).buffer_unordered(CONCURRENT_MAX).try_collect::<()>().await?;
    blocking(move || staging.decide()).await??;
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ReceiveError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ReceiveError::GivenUp)
}
