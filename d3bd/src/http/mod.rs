//! The HTTP API: routes, bodies and encodings. It sees the vocabulary of the `d3b` crate and [`crate::handle`], and
//! nothing of Paxos, SQLite or peers.
//!
//! A request passes [`server`] (connections, their bounds, the drain), then the layer in `service` (hosts and
//! origins, request ids, problems), then the routes below, which are warp's, and ends in a handler of the module of its
//! noun.

mod admin;
mod backup;
mod body;
mod call;
mod cluster;
mod db;
mod encode;
mod io;
mod log;
mod media;
mod memory;
mod metrics;
mod multipart;
mod operations;
mod parameters;
mod problem;
mod query;
mod range;
mod raw;
mod results;
mod server;
mod service;
mod statement;
mod streams;

use std::convert::Infallible;
use std::sync::Arc;

use d3b::{Answer, Code, Problem, Slot};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use self::call::{Shared, call};

pub use self::server::{Options, serve};

/// An answer in the form in which a batch or a change of the catalogue is answered.
#[must_use]
pub fn answer_json(answer: &Answer, slot: Slot) -> serde_json::Value {
    let mut bytes = Vec::new();
    encode::write_answer(&mut bytes, answer, slot);
    serde_json::from_slice(&bytes).expect("what was just encoded is JSON")
}

/// Every route there is. Methods are told apart by the handlers, so that a wrong one is a 405 that names the right ones.
fn routes(shared: Arc<Shared>) -> BoxedFilter<(Response,)> {
    let call = || call(Arc::clone(&shared));
    let sql = warp::path!("v1" / "db" / String / "query")
        .and(call())
        .then(query::query)
        .or(warp::path!("v1" / "db" / String / "batch").and(call()).then(query::batch))
        .unify()
        .or(warp::path::end().and(call()).then(raw::root))
        .unify()
        .boxed();
    let media = warp::path!("v1" / "db" / String / "media" / String)
        .and(call())
        .then(media::item)
        .or(warp::path!("v1" / "db" / String / "media").and(call()).then(media::collection))
        .unify()
        .boxed();
    let databases = warp::path!("v1" / "db" / String)
        .and(call())
        .then(db::item)
        .or(warp::path!("v1" / "db").and(call()).then(db::collection))
        .unify()
        .or(warp::path!("v1" / "db" / String / "schema").and(call()).then(db::schema))
        .unify()
        .or(warp::path!("v1" / "db" / String / "file").and(call()).then(db::file))
        .unify()
        .or(warp::path!("v1" / "db" / String / "requests" / String).and(call()).then(db::request))
        .unify()
        .boxed();
    let log = warp::path!("v1" / "log")
        .and(call())
        .then(log::collection)
        .or(warp::path!("v1" / "log" / "follow").and(call()).then(log::follow))
        .unify()
        .or(warp::path!("v1" / "log" / String).and(call()).then(log::item))
        .unify()
        .boxed();
    let operations = warp::path!("v1" / "cluster")
        .and(call())
        .then(operations::cluster)
        .or(warp::path!("livez").and(call()).then(operations::livez))
        .unify()
        .or(warp::path!("readyz").and(call()).then(operations::readyz))
        .unify()
        .or(warp::path!("v1" / "cluster" / "replicas").and(call()).then(cluster::replicas))
        .unify()
        .or(warp::path!("v1" / "cluster" / "replicas" / String).and(call()).then(cluster::replica))
        .unify()
        .or(warp::path!("v1" / "cluster" / "transfer").and(call()).then(cluster::transfer))
        .unify()
        .or(warp::path!("metrics").and(call()).then(operations::metrics))
        .unify()
        .or(warp::path!("version").and(call()).then(operations::version))
        .unify()
        .boxed();
    let admin = warp::path!("v1" / "admin" / "rebuild")
        .and(call())
        .then(admin::rebuild)
        .or(warp::path!("v1" / "admin" / "snapshot").and(call()).then(admin::snapshot))
        .unify()
        .or(warp::path!("v1" / "admin" / "compact").and(call()).then(admin::compact))
        .unify()
        .or(warp::path!("v1" / "admin" / "verify").and(call()).then(admin::verify))
        .unify()
        .boxed();
    let backups = warp::path!("v1" / "backup")
        .and(call())
        .then(backup::backup)
        .or(warp::path!("v1" / "restore").and(call()).then(backup::restore))
        .unify()
        .boxed();
    let routes = sql
        .or(media)
        .unify()
        .or(databases)
        .unify()
        .or(log)
        .unify()
        .or(operations)
        .unify()
        .or(admin)
        .unify()
        .or(backups)
        .unify();
    routes.recover(unknown_route).unify().boxed()
}

/// Only paths reject: what is left over is an unknown one.
async fn unknown_route(_: warp::Rejection) -> Result<Response, Infallible> {
    let problem = Problem::new(Code::NotFound, "there is no such route").with_hint("d3b-http(7) lists the routes");
    Ok(problem::response(problem))
}
