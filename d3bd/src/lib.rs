//! The d3b daemon: one replica. [`run`] puts it together; [`driver`] decides; the other modules each do one thing and
//! know little of one another:
//!
//! * [`log`] keeps the Paxos log on disk, [`peer`] talks to the other replicas, [`media`] keeps and moves blobs;
//! * [`snapshot`] takes a replica past what no log holds any more; `backup` makes one file of everything, and back;
//! * [`http`] answers clients through [`handle`]; [`schema`] is the service for whole databases;
//! * [`config`] and [`cli`] are what people say when they start it; [`demo`] is a cluster to play with;
//! * [`recover`] makes a new cluster of what is left of one.

mod applier;
mod backup;
mod catch_up;
pub mod cli;
pub mod config;
pub mod demo;
mod disk;
pub mod driver;
mod driving;
pub mod entries;
mod executor;
pub mod handle;
pub mod http;
pub mod inspect;
mod join;
pub mod log;
pub mod media;
pub mod offline;
pub mod peer;
mod quarantine;
pub mod rate;
pub mod recover;
pub mod run;
pub mod schema;
mod scrub;
pub mod snapshot;
mod supervisor;
pub mod time;
mod turns;
mod wanting;
