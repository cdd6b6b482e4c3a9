//! What the test binaries of this crate share: clusters of real daemons, a client, a load of keyed writers, sample files;
//! networks, disks and clocks that fail; a simulator of whole clusters; a recorder and a checker of histories; what the
//! benchmarks measure with.

pub mod build;
pub mod cluster;
pub mod durability;
pub mod faults;
pub mod http;
pub mod linearizability;
pub mod load;
pub mod measure;
pub mod process;
pub mod raw;
pub mod recorder;
pub mod sample;
pub mod sim;
pub mod wait;

pub use cluster::{Cluster, Options, Replica};
pub use http::{Http, Response};
pub use wait::{wait_for, wait_until};
