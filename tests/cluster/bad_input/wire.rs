//! Routes, methods, parameters, headers, forms, and bytes that are hardly HTTP.

use std::time::Duration;

use d3b::Code::{self, *};
use d3b_tests::Replica;
use d3b_tests::raw::exchange;
use serde_json::json;

use super::Case;

fn get(path: &str, expected: Code) -> Case {
    Case::new(format!("GET {path}"), "GET", path, expected)
}

fn root(name: &str, body: serde_json::Value, expected: Code) -> Case {
    Case::new(format!("raw: {name}"), "POST", "/", expected).json(&body)
}

fn query() -> Case {
    // It would change something if it were taken.
    Case::new("", "POST", "/v1/db/shop/query", BadRequest).json(&json!({"sql": "DELETE FROM orders"}))
}

fn with_header(name: &str, value: &str, expected: Code) -> Case {
    let title = format!("header {name}: {}", value.chars().take(60).collect::<String>());
    Case { name: title, expected, ..query() }.header(name, value)
}

fn form(name: &str, parts: &[(&str, &[u8])], expected: Code) -> Case {
    Case::new(format!("form: {name}"), "POST", "/", expected).form(parts)
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        get("/nowhere", NotFound),
        get("/v1", NotFound),
        get("/v2/db", NotFound),
        get("/v1/db/shop/query/more?sql=SELECT+1", NotFound),
        get("/v1/log/one", BadRequest),
        get("/v1/log/0", BadRequest),
        get("/v1/log/999999999", NotFound),
        get("/v1/log?limit=0", BadRequest),
        get("/v1/log?limit=1001", BadRequest),
        get("/v1/log?from=first", BadRequest),
        get("/v1/db/shop/requests/never-used", NotFound),
        get("/v1/db/shop/requests/a%00b", BadRequest),
        get("/v1/db/shop/media/dog.jpg", MediaNotFound),
        get("/v1/db/shop/media/..%2F..%2Fetc%2Fpasswd", MediaNotFound),
        get("/v1/db/shop/media/a%0Ab", BadRequest),
        get("/v1/db/shop/media/%ff", BadRequest),
        get(&format!("/v1/db/shop/media/{}", "x".repeat(256)), BadRequest),
        get("/v1/db/nowhere/media/cat.jpg", DatabaseNotFound),
        get("/v1/db/shop/media?limit=0", BadRequest),
        get("/v1/db?level=fresh", BadRequest),
        get("/v1/db?colour=blue", BadRequest),
        get("/v1/db/shop/query?sql=SELECT+1&level=at-least", BadRequest),
        get("/v1/db/shop/query?sql=SELECT+1&timeout=soon", BadRequest),
        get("/v1/db/shop/query?sql=SELECT+1&format=xml", BadRequest),
        get("/v1/db/shop/query?sql=SELECT+1&sql=SELECT+2", BadRequest),
        get("/v1/db/shop/query?sql=%ff", BadRequest),
        get("/", MethodNotAllowed),
        get("/v1/db/shop/batch", MethodNotAllowed),
        Case::new("DELETE /", "DELETE", "/", MethodNotAllowed),
        Case::new("PATCH /v1/db", "PATCH", "/v1/db", MethodNotAllowed),
        Case::new("POST /v1/log", "POST", "/v1/log", MethodNotAllowed),
        Case::new("DELETE the file", "DELETE", "/v1/db/shop/file", MethodNotAllowed),
        Case::new("PUT of a query", "PUT", "/v1/db/shop/query", MethodNotAllowed),
        Case::new("deletion of media that is not there", "DELETE", "/v1/db/shop/media/dog.jpg", MediaNotFound),
        Case::new("media by POST without a form", "POST", "/v1/db/shop/media", UnsupportedMediaType).body("a dog"),
        Case::new("query with an unknown parameter", "POST", "/v1/db/shop/query?tiemout=5s", BadRequest)
            .json(&json!({"sql": "DELETE FROM orders"})),
    ];
    cases.extend([
        with_header("host", "evil.example", WrongHost),
        with_header("origin", "http://evil.example", Forbidden),
        with_header("idempotency-key", &"k".repeat(129), BadRequest),
        with_header("idempotency-key", "", BadRequest),
        with_header("idempotency-key", "taken", KeyReused),
        // UUIDv7 keys of 1970 and of the year 10889.
        with_header("idempotency-key", "00000000-0001-7000-8000-000000000001", KeyExpired),
        with_header("idempotency-key", "ffffffff-ffff-7000-8000-000000000001", KeyExpired),
        with_header("content-encoding", "gzip", UnsupportedMediaType),
    ]);
    let full = json!({"table": "shop", "query": "DELETE FROM orders", "args": []});
    let without = |member: &str| {
        let mut body = full.clone();
        body.as_object_mut().expect("an object").remove(member);
        body
    };
    let with = |member: &str, value: serde_json::Value| {
        let mut body = full.clone();
        body[member] = value;
        body
    };
    cases.extend(["table", "query", "args"].map(|member| root(&format!("no {member}"), without(member), BadRequest)));
    cases.extend([
        root("a table that is a number", with("table", json!(7)), BadRequest),
        root("a table that is no name", with("table", json!("../shop")), BadRequest),
        root("a table that is not there", with("table", json!("nowhere")), DatabaseNotFound),
        root("an empty query", with("query", json!("")), BadRequest),
        root("args that are a text", with("args", json!("7")), BadRequest),
        root("too many args", with("args", json!([1])), BadRequest),
        root("an unknown media_op", with("media_op", json!("steal")), BadRequest),
        root("media_op without file_id", with("media_op", json!("delete")), BadRequest),
        root("an upload without a file", json!({"table": "shop", "query": "", "args": [], "media_op": "upload", "file_id": "x"}), BadRequest),
        root("a file_id with a newline", json!({"table": "shop", "query": "", "args": [], "media_op": "get", "file_id": "a\nb"}), BadRequest),
        root("get of what is not there", json!({"table": "shop", "query": "", "args": [], "media_op": "get", "file_id": "../cat.jpg"}), MediaNotFound),
        root("delete of what is not there", json!({"table": "shop", "query": "DELETE FROM orders", "args": [], "media_op": "delete", "file_id": "dog.jpg"}), MediaNotFound),
        root("delete whose SQL fails", json!({"table": "shop", "query": "DELETE FROM users", "args": [], "media_op": "delete", "file_id": "cat.jpg"}), Constraint),
        root("a list", json!([full]), BadRequest),
        Case::new("raw: no JSON", "POST", "/", BadRequest).body("table=shop&query=SELECT+1&args="),
        Case::new("raw: empty", "POST", "/", BadRequest),
    ]);
    let json =
        json!({"table": "shop", "query": "DELETE FROM orders", "args": [], "media_op": "upload", "file_id": "dog.jpg"})
            .to_string();
    let json = ("json", json.as_bytes());
    let file = ("file", &b"a dog"[..]);
    cases.extend([
        form("no file", &[json], BadRequest),
        form("no json", &[file], BadRequest),
        form("nothing", &[], BadRequest),
        form("json twice", &[json, json, file], BadRequest),
        form("file twice", &[json, file, file], BadRequest),
        form("an unknown part", &[json, file, ("more", b"x")], BadRequest),
        form("json that is none, first", &[("json", b"{"), file], BadRequest),
        form("json that is none, last", &[file, ("json", b"{")], BadRequest),
        form("json that is not UTF-8", &[file, ("json", b"\xff")], BadRequest),
        form("json that gets", &[("json", br#"{"table":"shop","query":"","args":[],"media_op":"get","file_id":"cat.jpg"}"#), file], BadRequest),
        form("json without media_op", &[("json", br#"{"table":"shop","query":"DELETE FROM orders","args":[]}"#), file], BadRequest),
        form("json with a file_id of 256 bytes", &[("json", format!(r#"{{"table":"shop","query":"","args":[],"media_op":"upload","file_id":"{}"}}"#, "x".repeat(256)).as_bytes()), file], BadRequest),
        form("SQL that fails", &[("json", br#"{"table":"shop","query":"DELETE FROM users","args":[],"media_op":"upload","file_id":"dog.jpg"}"#), file], Constraint),
        form("SQL that is wrong", &[file, ("json", br#"{"table":"shop","query":"DELETE FROM nowhere","args":[],"media_op":"upload","file_id":"dog.jpg"}"#)], SqlError),
        form("a file that is too large", &[json, ("file", &vec![0; (4 << 20) + 1])], TooLarge),
        Case::new("form: no boundary", "POST", "/", BadRequest).header("content-type", "multipart/form-data").body("--x"),
        Case::new("form: another boundary", "POST", "/", BadRequest)
            .header("content-type", "multipart/form-data; boundary=other")
            .body(d3b_tests::http::form(&[json, file]).1),
        Case::new("form: cut short", "POST", "/", BadRequest)
            .header("content-type", &d3b_tests::http::form(&[]).0)
            .body({
                let (_, mut body) = d3b_tests::http::form(&[json, file]);
                body.truncate(body.len() - 10);
                body
            }),
    ]);
    cases
}

/// A request as bytes, whether the sending side is then closed, and what may come back: a status, or nothing (0).
struct Bytes<'a>(&'a str, Vec<u8>, bool, &'a [u16]);

/// Requests that no client library sends. Each gets an answer or a closed connection, soon.
pub fn check_raw_connections(replica: &Replica) -> Vec<String> {
    let post = |headers: &str, body: &[u8]| {
        let mut bytes =
            format!("POST /v1/db/shop/query HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", replica.address()).into_bytes();
        bytes.extend_from_slice(body);
        bytes
    };
    let put = |headers: &str, body: &[u8]| {
        let mut bytes =
            format!("PUT /v1/db/fresh/file HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", replica.address()).into_bytes();
        bytes.extend_from_slice(body);
        bytes
    };
    let delete = br#"{"sql":"DELETE FROM orders"}"#;
    let image = d3b_tests::sample::database_bytes("CREATE TABLE t(n)");
    let chunk = |body: &[u8]| [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n"].concat();
    let cases = [
        Bytes("no length at all", post("Connection: close\r\n", b""), false, &[400]),
        Bytes("a body without a length", post("", delete), true, &[400]),
        Bytes("a body that is cut short", post("Content-Length: 100\r\n", delete), true, &[0, 400]),
        Bytes(
            "a chunked body that is cut short",
            post("Transfer-Encoding: chunked\r\n", &chunk(delete)),
            true,
            &[0, 400],
        ),
        Bytes("chunks that are none", post("Transfer-Encoding: chunked\r\n", b"zz\r\n"), true, &[0, 400]),
        Bytes(
            "an upload that is cut short",
            put(&format!("Content-Length: {}\r\n", image.len() + 1), &image),
            true,
            &[0, 400],
        ),
        Bytes(
            "a chunked upload that is cut short",
            put("Transfer-Encoding: chunked\r\n", &chunk(&image)),
            true,
            &[0, 400],
        ),
        Bytes("a length that is no number", post("Content-Length: ten\r\n", delete), true, &[0, 400]),
        Bytes("two lengths", post("Content-Length: 28\r\nContent-Length: 29\r\n", delete), true, &[0, 400]),
        Bytes("a length beyond all bounds", put("Content-Length: 99999999999999\r\n", b"x"), true, &[413]),
        Bytes(
            "a length of more than 64 bit",
            put("Content-Length: 99999999999999999999\r\n", b"x"),
            true,
            &[0, 400, 413],
        ),
        Bytes("an announced body beyond the bound", post("Content-Length: 8388609\r\n", b"x"), true, &[413]),
        Bytes(
            "an expectation that nobody knows",
            post("Expect: a miracle\r\nContent-Length: 100\r\n", b""),
            true,
            &[0, 400, 417],
        ),
        Bytes("headers of a megabyte", post(&format!("X: {}\r\n", "x".repeat(1 << 20)), b""), true, &[0, 400, 431]),
        Bytes("a thousand headers", post(&"X: y\r\n".repeat(1000), b""), true, &[0, 400, 431]),
        Bytes("a header that is no header", post("nonsense\r\n", delete), true, &[0, 400]),
        Bytes("no HTTP at all", b"SSH-2.0-OpenSSH_9.9\r\n\r\n".to_vec(), true, &[0, 400]),
        Bytes("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), true, &[0, 400, 505]),
        Bytes("TLS", vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00], true, &[0, 400]),
        Bytes(
            "a path of a megabyte",
            format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)).into_bytes(),
            true,
            &[0, 400, 414, 431],
        ),
        Bytes("nothing", Vec::new(), true, &[0]),
    ];
    cases.into_iter().filter_map(|case| complaint(replica, &case)).collect()
}

fn complaint(replica: &Replica, Bytes(name, request, end, allowed): &Bytes<'_>) -> Option<String> {
    let answer = exchange(replica.address(), request, *end, Duration::from_secs(30));
    let status = answer.status().unwrap_or(0);
    let text = String::from_utf8_lossy(&answer.bytes[..answer.bytes.len().min(300)]).into_owned();
    if !answer.closed {
        Some(format!("raw bytes: {name}: the connection stays open: {text}"))
    } else if !allowed.contains(&status) {
        Some(format!("raw bytes: {name}: one of {allowed:?} was expected: {text}"))
    } else {
        None
    }
}
