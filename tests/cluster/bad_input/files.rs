//! Files that are no databases, names that are no names.

use d3b::Code::{self, *};
use d3b_tests::sample::{Noise, SHOP, database_bytes};
use serde_json::json;

use super::Case;

fn upload(name: &str, file: Vec<u8>, expected: Code) -> Case {
    Case::new(format!("upload of a file that {name}"), "PUT", "/v1/db/fresh/file", expected).body(file)
}

fn named(path: &str, expected: Code) -> Case {
    Case::new(format!("a database named {path}"), "PUT", format!("/v1/db/{path}/file"), expected)
}

/// An upload in the original wire form.
fn raw(name: &str, table: &str, sql: &str, file_id: &str, expected: Code) -> Case {
    let request = json!({"table": table, "query": sql, "args": [], "media_op": "upload", "file_id": file_id});
    let file = database_bytes("CREATE TABLE t(n)");
    Case::new(format!("raw upload: {name}"), "POST", "/", expected)
        .form(&[("json", request.to_string().as_bytes()), ("file", &file)])
}

pub fn cases() -> Vec<Case> {
    let shop = database_bytes(SHOP);
    let page_size = 4096;
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = shop.clone();
        change(&mut file);
        file
    };
    let mut cases = vec![
        upload("is noise", Noise::new(1, 100_000).bytes(), NotADatabase),
        upload("is one byte", vec![b'S'], NotADatabase),
        upload("is text", b"id,name\n1,Ann\n".to_vec(), NotADatabase),
        upload("is a header and nothing else", shop[..100].to_vec(), NotADatabase),
        upload("ends within the header", shop[..50].to_vec(), NotADatabase),
        upload("is truncated to half", shop[..shop.len() / 2].to_vec(), NotADatabase),
        upload("is truncated within a page", shop[..shop.len() - 100].to_vec(), NotADatabase),
        upload("has a wrong page size", with(&|file| file[16..18].copy_from_slice(&[0, 3])), NotADatabase),
        upload(
            "has a page of noise inside",
            with(&|file| {
                let noise = Noise::new(2, page_size).bytes();
                file[page_size as usize..2 * page_size as usize].copy_from_slice(&noise);
            }),
            NotADatabase,
        ),
        upload("has a schema of noise", with(&|file| file[200..4000].fill(0xa5)), NotADatabase),
        upload("holds _d3b_ tables", database_bytes("CREATE TABLE t(n); CREATE TABLE _d3b_state(n)"), NotADatabase),
        upload("holds a _D3B_ view", database_bytes("CREATE VIEW _D3B_v AS SELECT 1"), NotADatabase),
        upload(
            "holds the last rowid there is",
            database_bytes("CREATE TABLE t(n); INSERT INTO t(rowid, n) VALUES(9223372036854775807, 1)"),
            NotADatabase,
        ),
        upload("is too large", vec![0; (4 << 20) + 1], TooLarge),
        Case::new("upload with a wrong digest", "PUT", "/v1/db/fresh/file", DigestMismatch)
            .header("repr-digest", &d3b::Digest::of(b"another").to_repr_digest())
            .body(shop.clone()),
        Case::new("upload with a digest that is none", "PUT", "/v1/db/fresh/file", BadRequest)
            .header("repr-digest", "sha-256=:AAAA:")
            .body(shop.clone()),
        Case::new("compressed upload", "PUT", "/v1/db/fresh/file", UnsupportedMediaType)
            .header("content-encoding", "gzip")
            .body(shop.clone()),
        Case::new("upload of a form", "PUT", "/v1/db/fresh/file", UnsupportedMediaType).form(&[("file", &shop)]),
        Case::new("creation of a database that exists", "PUT", "/v1/db/shop/file", Exists)
            .header("if-none-match", "*")
            .body(shop.clone()),
        Case::new("creation with an odd precondition", "PUT", "/v1/db/shop/file", BadRequest)
            .header("if-none-match", "\"x\"")
            .body(shop.clone()),
        Case::new("replacement by what is no database", "PUT", "/v1/db/shop/file", NotADatabase).body("nonsense"),
        Case::new(
            "upload with an owner of 1,000 letters",
            "PUT",
            format!("/v1/db/fresh/file?owner={}", "a".repeat(1000)),
            BadRequest,
        ),
        Case::new("media that is too large", "PUT", "/v1/db/shop/media/cat.jpg", TooLarge).body(vec![0; (4 << 20) + 1]),
        Case::new("media with a wrong digest", "PUT", "/v1/db/shop/media/cat.jpg", DigestMismatch)
            .header("content-digest", &d3b::Digest::of(b"another").to_repr_digest())
            .body("a dog"),
        Case::new("media with an odd type", "PUT", "/v1/db/shop/media/cat.jpg", BadRequest)
            .header("content-type", "picture")
            .body("a dog"),
        Case::new("media of a database that does not exist", "PUT", "/v1/db/nowhere/media/cat.jpg", DatabaseNotFound)
            .body("a dog"),
        Case::new("media with SQL that fails", "POST", "/v1/db/shop/media", Constraint).form(&[
            ("json", br#"{"file_id":"dog.jpg","sql":"INSERT INTO users(name) VALUES('Ann')"}"#),
            ("file", b"a dog"),
        ]),
    ];
    let names = [
        "..%2Fetc",
        "a%2Fb",
        "a%5Cb",
        ".",
        "%2e",
        ".hidden",
        "%2e%2e",
        "a%0Ab",
        "a%00b",
        "a%20b",
        "caf%C3%A9",
        "%ff",
        "a'b",
        "a%22b",
    ];
    cases.extend(names.map(|name| named(name, BadRequest)));
    cases.push(named(&"a".repeat(65), BadRequest));
    cases.push(named(&"a".repeat(300), BadRequest));
    cases.push(named("", NotFound));
    cases.push(named("a/b", NotFound));
    cases.push(named("schemas", Forbidden));
    cases.extend([
        Case::new("deletion of the catalogue", "DELETE", "/v1/db/schemas", Forbidden),
        Case::new("deletion of what does not exist", "DELETE", "/v1/db/nowhere", DatabaseNotFound),
        Case::new("download of what does not exist", "GET", "/v1/db/nowhere/file", DatabaseNotFound),
        Case::new("info of what does not exist", "GET", "/v1/db/nowhere", DatabaseNotFound),
        Case::new("schema of what does not exist", "GET", "/v1/db/nowhere/schema", DatabaseNotFound),
    ]);
    let insert = |name: &str| format!("INSERT INTO tables(owner, name, fileid) VALUES('me', '{name}', 'f')");
    cases.extend([
        raw("a name with slashes", "schemas", &insert("../x"), "f", BadRequest),
        raw("a name with a newline", "schemas", &insert("x\ny"), "f", BadRequest),
        raw("a name that is too long", "schemas", &insert(&"x".repeat(300)), "f", BadRequest),
        raw("the catalogue's name", "schemas", &insert("schemas"), "f", StatementDenied),
        raw("a name that exists", "schemas", &insert("shop"), "f", Constraint),
        raw("another fileid", "schemas", &insert("fresh"), "g", BadRequest),
        raw(
            "no row",
            "schemas",
            "INSERT INTO tables(owner, name, fileid) SELECT 'me', 'fresh', 'f' WHERE 0",
            "f",
            BadRequest,
        ),
        raw(
            "two rows",
            "schemas",
            "INSERT INTO tables(owner, name, fileid) VALUES('me', 'fresh', 'f'), ('me', 'fresh2', 'f')",
            "f",
            BadRequest,
        ),
        raw("a deletion", "schemas", "DELETE FROM tables WHERE name = 'shop'", "f", BadRequest),
        raw("an update", "schemas", "UPDATE tables SET name = 'fresh' WHERE name = 'shop'", "f", StatementDenied),
        raw("of users", "schemas", "INSERT INTO users(name) VALUES('me')", "f", StatementDenied),
        raw("no query", "schemas", "", "f", BadRequest),
        raw("into what does not exist", "nowhere", "", "f", DatabaseNotFound),
    ]);
    let delete = |name: &str, sql: &str, file_id: &str, expected| {
        let body = json!({"table": "schemas", "query": sql, "args": [], "media_op": "delete", "file_id": file_id});
        Case::new(format!("raw deletion: {name}"), "POST", "/", expected).json(&body)
    };
    cases.extend([
        delete("another fileid", "DELETE FROM tables WHERE name = 'shop'", "f", BadRequest),
        delete("no row", "DELETE FROM tables WHERE name = 'nowhere'", "f", BadRequest),
        delete("all rows", "DELETE FROM tables", "shop.sqlite3", BadRequest),
    ]);
    cases
}
