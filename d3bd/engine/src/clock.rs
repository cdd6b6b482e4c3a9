//! See the crate's page; this module is being written.
