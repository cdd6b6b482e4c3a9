//! Clients that are not ours: curl, and shell scripts around d3bctl.

use std::path::Path;
use std::process::Command;

use d3b_tests::build::{fixture, programs};
use d3b_tests::cluster::without_settings;
use d3b_tests::sample::{SHOP, make_database};
use d3b_tests::{Cluster, Options};
use serde_json::{Value, json};

/// Runs curl; gives the status and the body.
#[track_caller]
fn curl(directory: &Path, arguments: &[&str]) -> (u16, Vec<u8>) {
    let body = directory.join("curl-body");
    let _ = std::fs::remove_file(&body);
    let mut command = Command::new("curl");
    command.current_dir(directory).args(["-sS", "-w", "%{http_code}", "-o"]).arg(&body).args(arguments);
    let output = command.output().expect("curl is installed");
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let status = String::from_utf8_lossy(&output.stdout).parse().expect("a status");
    (status, std::fs::read(&body).unwrap_or_default())
}

#[test]
fn the_raw_clients_flow_with_curl_alone() {
    let cluster = Cluster::start();
    let directory = cluster.directory().to_owned();
    make_database(&directory.join("shop.sqlite3"), SHOP);
    std::fs::write(directory.join("cat.jpg"), b"\xff\xd8 a cat").expect("a file");
    std::fs::write(directory.join("dog.jpg"), b"\xff\xd8 a dog").expect("a file");
    let urls: Vec<String> = cluster.ids().iter().map(|id| cluster.replica(*id).url("/")).collect();
    let rows = |url: &str, body: Value| -> Value {
        let (status, answer) = curl(&directory, &[url, "-d", &body.to_string()]);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).expect("JSON")
    };
    let query = |table: &str, sql: &str, args: Value| json!({"table": table, "query": sql, "args": args});

    // A database comes in as the media of an insert into `tables`.
    let insert = json!({"table": "schemas", "query": "INSERT INTO tables (owner, name, fileid) VALUES (?,?,?)",
        "args": ["me", "shop", "shop-1"], "media_op": "upload", "file_id": "shop-1"});
    let (status, answer) = curl(&directory, &[&urls[0], "-F", &format!("json={insert}"), "-F", "file=@shop.sqlite3"]);
    assert_eq!((status, answer.trim_ascii()), (200, &b"[]"[..]), "{}", String::from_utf8_lossy(&answer));
    for url in &urls {
        assert_eq!(
            rows(url, query("schemas", "SELECT owner, name, fileid FROM tables", json!([]))),
            json!([{"owner": "me", "name": "shop", "fileid": "shop-1"}])
        );
        assert_eq!(
            rows(url, query("shop", "SELECT id, name FROM users WHERE id = ?", json!([1]))),
            json!([{"id": 1, "name": "Ann"}])
        );
    }
    assert_eq!(rows(&urls[1], query("shop", "INSERT INTO users(name) VALUES(?)", json!(["Di"]))), json!([]));
    assert_eq!(rows(&urls[2], query("shop", "SELECT count(*) AS n FROM users", json!([]))), json!([{"n": 4}]));
    assert_eq!(rows(&urls[0], query("shop", "CREATE TABLE pics(fileid TEXT PRIMARY KEY)", json!([]))), json!([]));

    // Files with rows, the parts in either order.
    let picture = |file_id: &str| {
        let request = json!({"table": "shop", "query": "INSERT INTO pics(fileid) VALUES(?)", "args": [file_id],
            "media_op": "upload", "file_id": file_id});
        format!("json={request}")
    };
    let first = curl(&directory, &[&urls[1], "-F", &picture("cat.jpg"), "-F", "file=@cat.jpg"]);
    assert_eq!((first.0, first.1.trim_ascii()), (200, &b"[]"[..]));
    let second = curl(&directory, &[&urls[2], "-F", "file=@dog.jpg", "-F", &picture("dog.jpg")]);
    assert_eq!((second.0, second.1.trim_ascii()), (200, &b"[]"[..]));
    let get = |file_id: &str| {
        json!({"table": "shop", "query": "", "args": [], "media_op": "get", "file_id": file_id}).to_string()
    };
    for url in &urls {
        // The metadata fetch, then the plain GETs.
        assert_eq!(
            rows(url, query("shop", "SELECT fileid FROM pics ORDER BY 1", json!([]))),
            json!([{"fileid": "cat.jpg"}, {"fileid": "dog.jpg"}])
        );
        assert_eq!(curl(&directory, &[url, "-d", &get("cat.jpg")]), (200, b"\xff\xd8 a cat".to_vec()));
        assert_eq!(curl(&directory, &[url, "-d", &get("dog.jpg")]), (200, b"\xff\xd8 a dog".to_vec()));
    }
    // Uploading over a file replaces it; a failing statement takes its file with it.
    let replace = json!({"table": "shop", "query": "", "args": [], "media_op": "upload", "file_id": "cat.jpg"});
    assert_eq!(curl(&directory, &[&urls[0], "-F", &format!("json={replace}"), "-F", "file=@dog.jpg"]).0, 200);
    assert_eq!(curl(&directory, &[&urls[0], "-d", &get("cat.jpg")]).1, b"\xff\xd8 a dog");
    assert_eq!(curl(&directory, &[&urls[0], "-F", &picture("cat.jpg"), "-F", "file=@cat.jpg"]).0, 409);
    assert_eq!(curl(&directory, &[&urls[0], "-d", &get("cat.jpg")]).1, b"\xff\xd8 a dog");

    let delete = json!({"table": "shop", "query": "DELETE FROM pics WHERE fileid=?", "args": ["cat.jpg"],
        "media_op": "delete", "file_id": "cat.jpg"});
    assert_eq!(rows(&urls[1], delete), json!([]));
    for url in &urls {
        assert_eq!(rows(url, query("shop", "SELECT fileid FROM pics", json!([]))), json!([{"fileid": "dog.jpg"}]));
        assert_eq!(curl(&directory, &[url, "-d", &get("cat.jpg")]).0, 404);
    }
    let drop_table = json!({"table": "schemas", "query": "DELETE FROM tables WHERE name=?", "args": ["shop"],
        "media_op": "delete", "file_id": "shop-1"});
    assert_eq!(rows(&urls[2], drop_table), json!([]));
    for url in &urls {
        assert_eq!(rows(url, query("schemas", "SELECT name FROM tables", json!([]))), json!([]));
        assert_eq!(curl(&directory, &[url, "-d", &query("shop", "SELECT 1", json!([])).to_string()]).0, 404);
    }
    cluster.assert_same_everywhere();
}

#[test]
fn a_shell_script_with_d3bctl_and_its_exit_codes() {
    let mut cluster = Cluster::with(Options::default());
    let directory = cluster.directory().to_owned();
    make_database(&directory.join("shop.sqlite3"), SHOP);
    std::fs::write(directory.join("cat.jpg"), b"\xff\xd8 a cat").expect("a file");
    let run = |script: &str, endpoints: &[String]| {
        let mut command = without_settings(Command::new("bash"), &directory);
        command.arg(fixture(script)).env("D3BCTL", &programs().d3bctl).env("D3B_ENDPOINTS", endpoints.join(","));
        let output = command.output().expect("bash can be run");
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{script}: {}\n{out}\n{errors}", output.status);
    };
    run("session.sh", &cluster.endpoints());
    // With the first endpoint dead, the others are tried.
    cluster.replica_mut(1).kill();
    run("failover.sh", &cluster.endpoints());
    // With two dead there is no majority; with all dead there is nobody.
    cluster.replica_mut(2).kill();
    cluster.replica(3).wait_no_quorum();
    run("no-quorum.sh", &cluster.endpoints());
    cluster.replica_mut(3).kill();
    run("nobody.sh", &cluster.endpoints());
}
