//! What d3b is measured against: servers of its own HTTP stack that do as little as can be behind it, each in a process
//! of its own, and a local SQLite.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use clap::Subcommand;
use d3b_tests::cluster::free_port;
use d3b_tests::measure::target;
use d3b_tests::process::Process;
use d3b_tests::wait::{PATIENCE, wait_until};
use d3bctl::bench::Target;
use d3bctl::bench::d3b::TABLES;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, params, params_from_iter};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// Writes of one transaction, at most.
const WRITES_MAX: usize = 1_024;

/// The servers, as this program is told to be one.
#[derive(Debug, Clone, Subcommand)]
pub enum Serve {
    /// Writes to one SQLite file, and commits together what came meanwhile
    #[command(hide = true)]
    ServeGroupCommit {
        /// Where it listens
        address: SocketAddr,
        /// Where the file goes
        directory: PathBuf,
    },
    /// Takes the body apart, and gives the same answer always
    #[command(hide = true)]
    ServeConstant {
        /// Where it listens
        address: SocketAddr,
    },
}

impl Serve {
    /// Serves until this process is killed.
    pub fn run(self) {
        let (address, routes) = match self {
            Serve::ServeGroupCommit { address, directory } => (address, group_commit(&directory)),
            Serve::ServeConstant { address } => (address, constant()),
        };
        // As d3bd has it.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
        runtime.block_on(async move {
            let listener = TcpListener::bind(address).await.expect("an address that is free");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("a connection has options");
                let service = TowerToHyperService::new(warp::service(routes.clone()));
                // A client that goes away is its own affair.
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
    }
}

/// The body of a request for one statement.
#[derive(Debug, Deserialize)]
struct Statement {
    sql: String,
    args: Vec<Value>,
}

/// The answer to one, as d3bd has it.
#[derive(Debug, Serialize)]
struct Answer {
    columns: Vec<&'static str>,
    types: Vec<&'static str>,
    rows: Vec<Value>,
    rows_affected: usize,
    slot: u64,
}

fn reply(answer: &Answer) -> Response {
    let bytes = serde_json::to_vec(answer).expect("an answer is JSON");
    let mut response = Response::new(bytes.into());
    let json = warp::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(warp::http::header::CONTENT_TYPE, json);
    response
}

fn refusal(why: &str) -> Response {
    let mut response = Response::new(why.to_owned().into());
    *response.status_mut() = warp::http::StatusCode::BAD_REQUEST;
    response
}

async fn no_route(_: warp::Rejection) -> Result<Response, Infallible> {
    Ok(refusal("there is no such route"))
}

/// A write on its way to the thread that writes.
struct Write {
    statement: Statement,
    /// Told the number of rows once they are durable.
    done: oneshot::Sender<usize>,
}

fn group_commit(directory: &Path) -> BoxedFilter<(Response,)> {
    let connection = open(directory);
    let (sender, receiver) = channel::<Write>();
    std::thread::spawn(move || write_all(&connection, &receiver).expect("SQLite takes what is written"));
    let route = warp::path!("v1" / "db" / String / "query").and(warp::body::bytes());
    let answer = move |_: String, body: bytes::Bytes| write(sender.clone(), body);
    route.then(answer).recover(no_route).unify().boxed()
}

async fn write(sender: Sender<Write>, body: bytes::Bytes) -> Response {
    let statement = match serde_json::from_slice(&body) {
        Ok(statement) => statement,
        Err(error) => return refusal(&error.to_string()),
    };
    let (done, written) = oneshot::channel();
    sender.send(Write { statement, done }).expect("the writer does not end");
    match written.await {
        Ok(rows_affected) => reply(&Answer { columns: vec![], types: vec![], rows: vec![], rows_affected, slot: 1 }),
        Err(_) => refusal("the writer has ended"),
    }
}

/// Commits what came while the last commit was under way.
fn write_all(connection: &Connection, receiver: &Receiver<Write>) -> rusqlite::Result<()> {
    while let Ok(first) = receiver.recv() {
        let mut written = Vec::new();
        connection.execute_batch("BEGIN IMMEDIATE")?;
        for Write { statement, done } in std::iter::once(first).chain(receiver.try_iter()).take(WRITES_MAX) {
            let args = statement.args.into_iter().map(sql_value);
            written.push((done, connection.prepare_cached(&statement.sql)?.execute(params_from_iter(args))?));
        }
        connection.execute_batch("COMMIT")?;
        for (done, rows) in written {
            // A client that is gone need not be told.
            let _ = done.send(rows);
        }
    }
    Ok(())
}

fn sql_value(value: Value) -> SqlValue {
    match value {
        Value::String(text) => SqlValue::Text(text),
        Value::Number(number) => number.as_i64().map_or(SqlValue::Null, SqlValue::Integer),
        other => SqlValue::Text(other.to_string()),
    }
}

fn constant() -> BoxedFilter<(Response,)> {
    let text = format!("500:{}", "x".repeat(100));
    let rows = vec![json!([500, text])];
    let answer =
        Answer { columns: vec!["id", "text"], types: vec!["INTEGER", "TEXT"], rows, rows_affected: 0, slot: 1 };
    let answer = Arc::new(answer);
    let route = warp::path!("v1" / "db" / String / "query").and(warp::body::bytes());
    let answer = move |_: String, body: bytes::Bytes| {
        let answer = Arc::clone(&answer);
        async move {
            match serde_json::from_slice::<Statement>(&body) {
                Ok(statement) if statement.args.len() == 1 && !statement.sql.is_empty() => reply(&answer),
                Ok(_) => refusal("a statement with one argument is wanted"),
                Err(error) => refusal(&error.to_string()),
            }
        }
    };
    route.then(answer).recover(no_route).unify().boxed()
}

/// A database file with the tables of a load, whose commits are durable.
fn open(directory: &Path) -> Connection {
    let connection = Connection::open(directory.join("local.db")).expect("a database of ours");
    let set_up = format!("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {};", TABLES.join(";"));
    connection.execute_batch(&set_up).expect("a fresh database takes tables");
    connection
}

/// One of the servers, running.
#[derive(Debug)]
pub struct Server {
    /// Where it is.
    pub target: Target,
    /// Dropped, and so killed, before the directory goes.
    _process: Process,
    _directory: tempfile::TempDir,
}

impl Server {
    /// Starts the one that commits writes in groups.
    pub fn group_commit() -> Server {
        Server::start("serve-group-commit", true)
    }

    /// Starts the one that always gives the same answer.
    pub fn constant() -> Server {
        Server::start("serve-constant", false)
    }

    fn start(subcommand: &str, writes: bool) -> Server {
        let directory = tempfile::Builder::new().prefix("d3b-targets-").tempdir().expect("a temporary directory");
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(std::env::current_exe().expect("a program knows its own path"));
        command.args([subcommand, &address]).args(writes.then(|| directory.path())).stdin(Stdio::null());
        let process = Process::spawn(&mut command);
        let target = target(&address);
        wait_until(&format!("{subcommand} listens"), PATIENCE, || {
            std::net::TcpStream::connect_timeout(&target.address, Duration::from_secs(1)).is_ok()
        });
        Server { target, _process: process, _directory: directory }
    }
}

/// Rows a second that a local SQLite writes in durable transactions of so many.
pub fn local_batches(batch: u64, duration: Duration) -> f64 {
    let directory = tempfile::Builder::new().prefix("d3b-targets-").tempdir().expect("a temporary directory");
    let connection = open(directory.path());
    let text = "x".repeat(100);
    let mut insert = connection.prepare("INSERT INTO entries VALUES(?,?,?)").expect("a statement");
    let began = Instant::now();
    let mut rows = 0;
    while began.elapsed() < duration {
        let written = connection.execute_batch("BEGIN IMMEDIATE").and_then(|()| {
            (rows..rows + batch).try_for_each(|row| insert.execute(params![1, row, text]).map(|_| ()))?;
            connection.execute_batch("COMMIT")
        });
        written.expect("SQLite takes what is written");
        rows += batch;
    }
    rows as f64 / began.elapsed().as_secs_f64()
}
