//! Clusters of real processes: what must hold when replicas are killed, paused, stopped, wiped, and lied to.
//!
//! Every test is named by what it demands, starts a cluster of its own and waits on conditions. On failure the data and
//! the logs are kept, and their place is printed.

mod admin;
mod backup;
mod bad_input;
mod bench;
mod blobs;
mod clients;
mod connections;
mod consistency;
mod demo;
mod failures;
mod hostile_peer;
mod large;
mod lifecycle;
mod media;
mod membership;
mod repair;
mod schema;
mod upgrade;
