//! Bad input gets a clear error and changes nothing.
//!
//! Three long tables of requests, each with the problem that it must meet; afterwards everything that a client can see
//! of the cluster, and what lies in the blob stores, is as before.

mod files;
mod sql;
mod wire;

use std::collections::BTreeMap;

use d3b::api::{DatabaseInfo, MediaList};
use d3b::{Code, Problem};
use d3b_tests::process::last_lines;
use d3b_tests::sample::{SHOP, database_bytes, dump};
use d3b_tests::wait::PATIENCE;
use d3b_tests::{Cluster, Http, Options, Replica, wait_until};
use serde_json::{Value, json};

/// One request and the problem that it must meet.
struct Case {
    name: String,
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    expected: Code,
}

impl Case {
    fn new(name: impl Into<String>, method: &'static str, path: impl Into<String>, expected: Code) -> Case {
        Case { name: name.into(), method, path: path.into(), headers: Vec::new(), body: Vec::new(), expected }
    }

    fn header(mut self, name: &str, value: &str) -> Case {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Case {
        self.body = body.into();
        self
    }

    fn json(self, body: &Value) -> Case {
        self.header("content-type", "application/json").body(body.to_string())
    }

    fn form(self, parts: &[(&str, &[u8])]) -> Case {
        let (content_type, body) = d3b_tests::http::form(parts);
        self.header("content-type", &content_type).body(body)
    }

    /// What is wrong with the answer; `None` when it is as it must be.
    fn complaint(&self, replica: &Replica) -> Option<String> {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let url = replica.url(&self.path);
        let answer = match Http::new().try_send(self.method, &url, &headers, self.body.as_slice()) {
            Ok(answer) => answer,
            Err(error) => return Some(format!("{}: no answer: {error}", self.name)),
        };
        let found = Problem::from_json(&answer.body);
        let wrong = |what: &str| Some(format!("{}: {what}: {} {}", self.name, answer.status, answer.text().trim()));
        match found {
            None => wrong(&format!("{} was expected, not something else than a problem", self.expected)),
            Some(problem) if problem.code != self.expected => wrong(&format!("{} was expected", self.expected)),
            Some(problem) if answer.status != problem.code.status() => wrong("the status is not the code's"),
            Some(problem) if problem.detail.len() < 8 => wrong("the detail says nothing"),
            Some(problem) if problem.request_id.is_none() => wrong("there is no request_id"),
            Some(_) => None,
        }
    }
}

/// Everything that a client can see, by replica; all replicas show the same.
#[derive(Debug, PartialEq)]
struct Seen {
    databases: Vec<(String, String, String, u64)>,
    contents: BTreeMap<String, String>,
    media: BTreeMap<String, MediaList>,
}

fn look(replica: &Replica) -> Seen {
    let databases = replica.databases();
    let mut seen = Seen { databases: Vec::new(), contents: BTreeMap::new(), media: BTreeMap::new() };
    for DatabaseInfo { name, id, owner, media, .. } in databases {
        let file = replica.get(&format!("/v1/db/{name}/file")).expect(200);
        seen.contents.insert(name.clone(), dump(&file.body));
        seen.media.insert(name.clone(), replica.get(&format!("/v1/db/{name}/media")).expect(200).json());
        seen.databases.push((name, id, owner, media));
    }
    seen
}

fn blobs(replica: &Replica) -> Vec<String> {
    let root = replica.data_dir.join("blobs");
    let files = replica.files().into_iter().filter(|path| path.starts_with(&root));
    files.map(|path| path.strip_prefix(&root).expect("below it").to_string_lossy().into_owned()).collect()
}

#[test]
fn bad_input_changes_nothing() {
    let cluster = Cluster::with(Options::default().flag("--upload-max", "4MiB").flag("--blob-grace", "1s"));
    cluster.replica(1).put("/v1/db/shop/file", &database_bytes(SHOP)).expect(201);
    cluster.replica(2).put("/v1/db/shop/media/cat.jpg", b"a cat").expect(201);
    cluster.create("empty");
    // A key that is taken, for requests that try to take it again.
    let taken = json!({"sql": "UPDATE users SET name = 'Ann' WHERE id = 1"}).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", "taken")];
    cluster.http.send("POST", &cluster.replica(1).url("/v1/db/shop/query"), &headers, taken.as_bytes()).expect(200);
    // Uploaded images are not kept beyond the grace period.
    let cat = d3b::Digest::of(b"a cat").to_string();
    let only_the_cat = |what: &str| {
        for id in cluster.ids() {
            wait_until(
                &format!("replica {id} keeps one blob, {what}"),
                PATIENCE,
                || matches!(blobs(cluster.replica(id)).as_slice(), [one] if one.ends_with(&cat)),
            );
        }
    };
    only_the_cat("before");
    let before: Vec<Seen> = cluster.ids().iter().map(|id| look(cluster.replica(*id))).collect();
    assert!(before.iter().all(|seen| *seen == before[0]));
    let pids: Vec<u32> = cluster.ids().iter().map(|id| cluster.replica(*id).pid()).collect();

    let cases: Vec<Case> = [files::cases(), sql::cases(), wire::cases()].into_iter().flatten().collect();
    let mut complaints = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let replica = cluster.replica(u32::try_from(number % 3).expect("below 3") + 1);
        complaints.extend(case.complaint(replica));
    }
    complaints.extend(wire::check_raw_connections(cluster.replica(1)));
    assert!(complaints.is_empty(), "{} of {} cases:\n{}", complaints.len(), cases.len(), complaints.join("\n"));

    for id in cluster.ids() {
        let replica = cluster.replica(id);
        assert_eq!(look(replica), before[0], "replica {id}");
        assert_eq!(pids[id as usize - 1], replica.pid());
        let log = last_lines(&replica.log, usize::MAX);
        assert!(!log.contains("panicked"), "replica {id} panicked");
    }
    only_the_cat("after");
    cluster.assert_same_everywhere();
}

#[test]
fn odd_but_right_input_is_taken() {
    let cluster = Cluster::start();
    let replica = cluster.replica(1);
    replica.put("/v1/db/shop/file", b"").expect(201);
    replica.put("/v1/db/shop/file", b"").expect(200);
    let name = format!("A.b_c-{}", "9".repeat(58));
    replica.put(&format!("/v1/db/{name}/file"), b"").expect(201);
    replica.sql(&name, "CREATE TABLE t(a, b)", json!([]));
    for sql in ["SELECT 1 -- a comment", "SELECT 1; /* a comment */", " SELECT 1 ; ; ", "/* a comment */ SELECT 1"] {
        assert_eq!(replica.sql(&name, sql, json!([])), json!([[1]]), "{sql}");
    }
    let exact = json!([i64::MAX, i64::MIN, 0.1, 1e300, "caf\u{e9} \u{1f600} \u{1}", null, {"$blob": "AAEC"}, {"$real": "-inf"}]);
    let row = replica.sql(&name, "SELECT ?, ?, ?, ?, ?, ?, ?, ?", exact.clone());
    assert_eq!(row[0], exact);
    let named = json!({":a": 1, "@b": 2, "$c": 3});
    assert_eq!(replica.sql(&name, "SELECT :a, @b, $c", named), json!([[1, 2, 3]]));
    assert_eq!(replica.sql(&name, "SELECT 1 AS n, 2 AS n", json!([])), json!([[1, 2]]));
    let raw = json!({"table": name, "query": "SELECT 1 AS n, 2 AS n, x'0001' AS b", "args": []});
    assert_eq!(replica.post("/", &raw).expect(200).json::<Value>(), json!([{"n": 2, "b": "AAE="}]));
    // A file id is a key, never a path.
    let tricks = ["..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "..", "a%5Cb", "%F0%9F%98%80", "con", &"x".repeat(255)];
    for trick in tricks.iter().filter(|trick| **trick != "..") {
        replica.put(&format!("/v1/db/shop/media/{trick}"), trick.as_bytes()).expect(201);
        assert_eq!(replica.get(&format!("/v1/db/shop/media/{trick}")).expect(200).body, trick.as_bytes());
    }
    let (content_type, body) = d3b_tests::http::form(&[("json", br#"{"file_id":".."}"#), ("file", b"dots")]);
    let url = replica.url("/v1/db/shop/media");
    cluster.http.send("POST", &url, &[("content-type", &content_type)], body.as_slice()).expect(201);
    assert_eq!(replica.get("/v1/db/shop/media").expect(200).json::<MediaList>().media.len(), tricks.len());
    // An empty file is a file.
    replica.put("/v1/db/shop/media/nothing", b"").expect(201);
    assert_eq!(cluster.replica(2).get("/v1/db/shop/media/nothing?level=linearizable").expect(200).body, b"");
}
