//! One node of hiqlite behind as little HTTP as will do. hiqlite is a library: this is the program that its user would
//! write, with one route for each thing that is compared.
//!
//! `hiqlite-peer ID HTTP DATA_DIR immediate|default RAFT1 API1 RAFT2 API2 RAFT3 API3`, all addresses as `127.0.0.1:PORT`.
//!
//! * `GET /ready`: 200 when there is a leader.
//! * `POST /setup` with `[rows, "text"]`: makes the tables, and rows to be read.
//! * `POST /write` with `[client, number, "text"]`: inserts a row.
//! * `POST /read` and `POST /stale` with `[id]`: a row's text, by a consistent query or by a local one.

use hiqlite::{Client, LogSync, Node, NodeConfig, Param, Row};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [id, http, data_dir, sync, addresses @ ..] = arguments.as_slice() else {
        panic!("hiqlite-peer ID HTTP DATA_DIR immediate|default RAFT1 API1 ...")
    };
    let nodes = addresses.chunks(2).zip(1..).map(|(pair, id)| Node {
        id,
        addr_raft: pair[0].clone(),
        addr_api: pair[1].clone(),
    });
    let mut config = NodeConfig {
        node_id: id.parse().expect("an id"),
        nodes: nodes.collect(),
        listen_addr_api: "127.0.0.1".into(),
        listen_addr_raft: "127.0.0.1".into(),
        data_dir: data_dir.clone().into(),
        secret_raft: "a secret of a benchmark".to_owned(),
        secret_api: "a secret of a benchmark".to_owned(),
        ..NodeConfig::default()
    };
    if sync == "immediate" {
        config.wal_sync = LogSync::Immediate;
    }
    std::fs::create_dir_all(data_dir).expect("a directory for data");
    let client = hiqlite::start_node(config).await.expect("the node starts");
    let listener = TcpListener::bind(http).await.expect("a free port");
    loop {
        let (stream, _) = listener.accept().await.expect("connections");
        tokio::spawn(serve(stream, client.clone()));
    }
}

/// Answers the requests of one connection, one after the other, until it ends or says something that is no request.
async fn serve(mut stream: TcpStream, client: Client) {
    let _ = stream.set_nodelay(true);
    let mut bytes = Vec::with_capacity(4096);
    loop {
        let Some((path, head, length)) = parse(&bytes) else {
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            }
        };
        while bytes.len() < head + length {
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        let body: Value = serde_json::from_slice(&bytes[head..head + length]).unwrap_or_default();
        let (status, text) = match answer(&client, &path, &body).await {
            Ok(text) => (200, text),
            Err(error) => (500, error.to_string()),
        };
        bytes.drain(..head + length);
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The path of a complete head, its length, and that of the body.
fn parse(bytes: &[u8]) -> Option<(String, usize, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else { return None };
    let path = request.path?.to_owned();
    let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    Some((path, head, length.unwrap_or(0)))
}

async fn answer(client: &Client, path: &str, body: &Value) -> Result<String, hiqlite::Error> {
    let number = |at: usize| body[at].as_i64().unwrap_or_default();
    let text = |at: usize| body[at].as_str().unwrap_or_default().to_owned();
    const SELECT: &str = "SELECT id, text FROM things WHERE id = $1";
    let texts = match path {
        "/ready" => {
            client.is_healthy_db().await?;
            return Ok("ready".to_owned());
        }
        "/setup" => {
            let entries = "CREATE TABLE entries(client INTEGER NOT NULL, number INTEGER NOT NULL, text TEXT NOT NULL)";
            client.execute(entries, vec![]).await?;
            client.execute("CREATE TABLE things(id INTEGER PRIMARY KEY, text TEXT NOT NULL)", vec![]).await?;
            let fill = "WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < $1) \
                INSERT INTO things SELECT id, $2 FROM ids";
            return Ok(client.execute(fill, vec![Param::from(number(0)), Param::from(text(1))]).await?.to_string());
        }
        "/write" => {
            let insert = "INSERT INTO entries VALUES($1, $2, $3)";
            return Ok(client
                .execute(insert, vec![Param::from(number(0)), Param::from(number(1)), Param::from(text(2))])
                .await?
                .to_string());
        }
        "/read" => client.query_consistent_map::<Text, _>(SELECT, vec![Param::from(number(0))]).await?,
        "/stale" => client.query_map::<Text, _>(SELECT, vec![Param::from(number(0))]).await?,
        _ => Vec::new(),
    };
    Ok(texts.into_iter().map(|text| text.0).collect())
}

/// The text of a row.
struct Text(String);

impl From<&mut Row<'_>> for Text {
    fn from(row: &mut Row<'_>) -> Text {
        Text(row.get("text"))
    }
}
