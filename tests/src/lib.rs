//! What the test binaries of this crate share: clusters of real daemons, a client, a load of keyed writers, sample files;
//! a simulator of whole clusters; a checker for histories.

pub mod build;
pub mod cluster;
pub mod http;
pub mod linearizability;
pub mod load;
pub mod process;
pub mod raw;
pub mod sample;
pub mod sim;
pub mod wait;

pub use cluster::{Cluster, Options, Replica};
pub use http::{Http, Response};
pub use wait::{wait_for, wait_until};
