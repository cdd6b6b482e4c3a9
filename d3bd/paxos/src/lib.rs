//! The consensus core of d3b.

mod acceptor;
mod candidate;
mod core;
mod follower;
pub mod formation;
pub mod interface;
mod leader;
pub mod message;
mod peer;
mod planted;
mod quorum;
mod reads;
pub mod replica;
pub mod types;

pub use interface::{
    ConfirmedRead, Input, PeerStatus, PersistBatch, Proposal, Ready, Reply, Restored, Role, Settings, Status, Storage,
    StorageError,
};
#[cfg(feature = "planted-bugs")]
pub use planted::Planted;
pub use replica::Replica;
