//! What the test binaries of this crate share: clusters of real daemons, a client, a load of keyed writers, sample files.

pub mod build;
pub mod cluster;
pub mod http;
pub mod load;
pub mod process;
pub mod raw;
pub mod sample;
pub mod wait;

pub use cluster::{Cluster, Options, Replica};
pub use http::{Http, Response};
pub use wait::{wait_for, wait_until};
