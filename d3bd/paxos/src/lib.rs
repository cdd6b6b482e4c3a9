//! The consensus core of d3b.

pub mod formation;
pub mod interface;
pub mod message;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod replica;
pub mod types;

pub use interface::{
    ConfirmedRead, Input, PeerStatus, PersistBatch, Proposal, Ready, Reply, Restored, Role, Settings, Status, Storage,
    StorageError,
};
#[cfg(feature = "planted-bugs")]
pub use planted::Planted;
pub use replica::Replica;
