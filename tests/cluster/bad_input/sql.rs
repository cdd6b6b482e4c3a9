//! Statements that are wrong, forbidden, or have the wrong arguments.

use d3b::Code::{self, *};
use serde_json::json;

use super::Case;

fn sql(text: &str, expected: Code) -> Case {
    let name: String = text.chars().take(100).collect();
    Case::new(name, "POST", "/v1/db/shop/query", expected).json(&json!({ "sql": text }))
}

/// A body as it stands, for JSON that `json!` cannot make.
fn body(name: &str, text: impl Into<Vec<u8>>, expected: Code) -> Case {
    Case::new(name, "POST", "/v1/db/shop/query", expected).header("content-type", "application/json").body(text)
}

fn arguments(sql: &str, args: &str, expected: Code) -> Case {
    let text = format!(r#"{{"sql":"{sql}","args":{args}}}"#);
    let name: String = text.chars().take(100).collect();
    body(&name, text, expected)
}

fn batch(name: &str, statements: serde_json::Value, expected: Code) -> Case {
    Case::new(format!("batch: {name}"), "POST", "/v1/db/shop/batch", expected)
        .json(&json!({ "statements": statements }))
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(["", " \n ", ";", "-- nothing but a comment", "/* the same */"].map(|text| sql(text, BadRequest)));
    cases.extend(
        [
            "SELECT 1; SELECT 2",
            "DELETE FROM users; DELETE FROM orders",
            "INSERT INTO users(name) VALUES('x'); -- c\n SELECT 1",
        ]
        .map(|text| sql(text, BadRequest)),
    );
    cases.extend(
        [
            "SELEC 1",
            "SELECT * FROM nowhere",
            "SELECT nothing FROM users",
            "INSERT INTO users VALUES(1)",
            "SELECT readfile('x')",
            "SELECT 'open",
            "UPDATE spending SET total = 0",
        ]
        .map(|text| sql(text, SqlError)),
    );
    cases.extend(
        [
            "ATTACH 'x.db' AS x",
            "DETACH main",
            "PRAGMA journal_mode = DELETE",
            "PRAGMA writable_schema = 1",
            "PRAGMA foreign_keys = OFF",
            "PRAGMA synchronous = 0",
            "PRAGMA wal_checkpoint",
            "PRAGMA trusted_schema = 1",
            "PRAGMA recursive_triggers = 1",
            "PRAGMA temp_store_directory = 'x'",
            "VACUUM",
            "VACUUM INTO 'x.db'",
            "BEGIN",
            "BEGIN IMMEDIATE",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT s",
            "RELEASE s",
            "CREATE TEMP TABLE t(n)",
            "CREATE TEMPORARY VIEW v AS SELECT 1",
            "CREATE TABLE temp.t(n)",
            "SELECT * FROM _d3b_requests",
            "SELECT count(*) FROM _d3b_state",
            "INSERT INTO _d3b_media SELECT * FROM _d3b_media",
            "UPDATE _d3b_state SET slot = 0",
            "DELETE FROM _d3b_requests",
            "DROP TABLE _d3b_state",
            "CREATE TABLE _d3b_more(n)",
            "CREATE TABLE _D3B_More(n)",
            "ALTER TABLE users RENAME TO _d3b_users",
            "CREATE INDEX i ON _d3b_requests(slot)",
            "CREATE VIEW v AS SELECT * FROM _d3b_requests",
            "INSERT INTO users(name) VALUES(sqlite_version())",
            "INSERT INTO users(name) VALUES(sqlite_source_id())",
        ]
        .map(|text| sql(text, StatementDenied)),
    );
    cases.push(sql("SELECT load_extension('x')", StatementDenied));
    // Where SQLite itself refuses, its word is kept.
    cases.push(sql("UPDATE sqlite_schema SET sql = ''", SqlError));
    cases.push(sql("SELECT datetime('now', 'localtime')", SqlError));
    cases.push(sql("INSERT INTO users(name) VALUES(datetime('now', 'localtime'))", SqlError));
    cases.push(sql("CREATE TABLE t AS SELECT 1 AS n, 2 AS n", StatementDenied));
    cases.push(sql("CREATE VIEW v AS SELECT 1 AS n, 2 AS n", StatementDenied));
    cases.extend(
        [
            "INSERT INTO users(id, name) VALUES(9223372036854775807, 'last')",
            "INSERT INTO users(name) VALUES('Ann')",
            "INSERT INTO users(name) VALUES(NULL)",
            "INSERT INTO users(id, name) VALUES(1, 'x')",
            "INSERT INTO users(id, name) VALUES('one', 'x')",
            "INSERT INTO orders(user, total) VALUES(99, 1)",
            "DELETE FROM users WHERE id = 1",
            "INSERT INTO orders(user, total) VALUES(1, 0)",
            "INSERT OR ROLLBACK INTO users(name) VALUES('Ann')",
            "INSERT OR FAIL INTO users(name) VALUES('new'), ('Ann')",
            "INSERT OR ABORT INTO users(name) VALUES('new'), ('Ann')",
        ]
        .map(|text| sql(text, Constraint)),
    );
    cases.push(sql(&format!("SELECT '{}'", "x".repeat(1 << 20)), TooLarge));
    cases.extend([
        arguments("SELECT ?", "[]", BadRequest),
        arguments("SELECT ?, ?", "[1]", BadRequest),
        arguments("SELECT ?", "[1,2]", BadRequest),
        arguments("SELECT 1", "[1]", BadRequest),
        arguments("SELECT :a", "{\":b\":1}", BadRequest),
        arguments("SELECT :a", "{}", BadRequest),
        arguments("SELECT :a", "{\":a\":1,\":b\":2}", BadRequest),
        arguments("SELECT :a", "{\"a\":1}", BadRequest),
        arguments("SELECT :a", "{\":a\":1,\":a\":2}", BadRequest),
        arguments("INSERT INTO users(name) VALUES(?)", "[]", BadRequest),
        arguments("INSERT INTO users(name) VALUES(?)", "[\\\"x\\\",1]", BadRequest),
        arguments("INSERT INTO users(name) VALUES(:n)", "{\":m\":1}", BadRequest),
        arguments("SELECT ?", "7", BadRequest),
        arguments("SELECT ?", "\"[1]\"", BadRequest),
        arguments("SELECT ?", "[[1]]", BadRequest),
        arguments("SELECT ?", "[{\"a\":1}]", BadRequest),
        arguments("SELECT ?", "[{\"$blob\":\"?\"}]", BadRequest),
        arguments("SELECT ?", "[{\"$real\":\"nan\"}]", BadRequest),
        arguments("SELECT ?", "[NaN]", BadRequest),
        arguments("SELECT ?", "[Infinity]", BadRequest),
        arguments("SELECT ?", "[1e999]", BadRequest),
        arguments("SELECT ?", "[9223372036854775808]", BadRequest),
        arguments("SELECT ?", "[-9223372036854775809]", BadRequest),
        arguments("SELECT ?", "[\\ud800]", BadRequest),
        arguments("SELECT ?", &format!("[{}{}]", "[".repeat(100_000), "]".repeat(100_000)), BadRequest),
        arguments("SELECT ?", &format!("[{}1{}]", "{\"a\":".repeat(50_000), "}".repeat(50_000)), BadRequest),
    ]);
    cases.extend([
        body("a body that is empty", "", BadRequest),
        body("a body that is no JSON", "SELECT 1", BadRequest),
        body("a body that ends early", r#"{"sql":"SELECT 1""#, BadRequest),
        body("a body with more behind it", r#"{"sql":"SELECT 1"} {}"#, BadRequest),
        body("a body that is a list", r#"["SELECT 1"]"#, BadRequest),
        body("a body without sql", r#"{"args":[]}"#, BadRequest),
        body("a body with an unknown member", r#"{"sql":"SELECT 1","arg":[]}"#, BadRequest),
        body("a body with a member twice", r#"{"sql":"SELECT 1","sql":"SELECT 2"}"#, BadRequest),
        body("a body with sql that is a number", r#"{"sql":1}"#, BadRequest),
        body("a body that is not UTF-8", b"{\"sql\":\"SELECT '\xff'\"}".to_vec(), BadRequest),
        body("an argument that is not UTF-8", b"{\"sql\":\"SELECT ?\",\"args\":[\"\xc3\"]}".to_vec(), BadRequest),
        body("SQL with a NUL", r#"{"sql":"SELECT 1\u0000; DELETE FROM users"}"#, BadRequest),
        body("a body that is too large", vec![b' '; (8 << 20) + 1], TooLarge),
        body("a body that is deep", "[".repeat(1 << 20), BadRequest),
    ]);
    cases.extend([
        batch("no statements", json!([]), BadRequest),
        batch("the second is wrong", json!([{"sql": "DELETE FROM orders"}, {"sql": "DELETE FROM nowhere"}]), SqlError),
        batch(
            "the second violates",
            json!([{"sql": "DELETE FROM orders"}, {"sql": "INSERT INTO users(name) VALUES('Ann')"}]),
            Constraint,
        ),
        batch(
            "the second rolls back",
            json!([{"sql": "DELETE FROM orders"}, {"sql": "INSERT OR ROLLBACK INTO users(name) VALUES('Ann')"}]),
            Constraint,
        ),
        batch("the second commits", json!([{"sql": "DELETE FROM orders"}, {"sql": "COMMIT"}]), StatementDenied),
        batch(
            "unmet expectation",
            json!([{"sql": "DELETE FROM orders", "expect": {"rows_affected": 1}}]),
            ExpectationFailed,
        ),
        batch(
            "unmet rows",
            json!([{"sql": "DELETE FROM orders"}, {"sql": "SELECT * FROM users", "expect": {"rows_returned": 4}}]),
            ExpectationFailed,
        ),
        batch("odd expectation", json!([{"sql": "SELECT 1", "expect": {"rows": 1}}]), BadRequest),
        batch(
            "two expectations",
            json!([{"sql": "SELECT 1", "expect": {"rows_affected": 0, "rows_returned": 1}}]),
            BadRequest,
        ),
        batch("wrong arguments", json!([{"sql": "DELETE FROM orders"}, {"sql": "SELECT ?", "args": []}]), BadRequest),
        batch("two in one", json!([{"sql": "DELETE FROM orders; DELETE FROM users"}]), BadRequest),
        batch("10,001 statements", json!(vec![json!({"sql": "DELETE FROM orders"}); 10_001]), TooLarge),
        Case::new("batch: no list", "POST", "/v1/db/shop/batch", BadRequest).json(&json!({"statements": {}})),
        Case::new("batch in a database that does not exist", "POST", "/v1/db/nowhere/batch", DatabaseNotFound)
            .json(&json!({"statements": [{"sql": "SELECT 1"}]})),
        Case::new("query of a database that does not exist", "POST", "/v1/db/nowhere/query", DatabaseNotFound)
            .json(&json!({"sql": "SELECT 1"})),
        Case::new("write to a database that does not exist", "POST", "/v1/db/nowhere/query", DatabaseNotFound)
            .json(&json!({"sql": "CREATE TABLE t(n)"})),
        Case::new("write to the catalogue", "POST", "/v1/db/schemas/query", StatementDenied)
            .json(&json!({"sql": "DELETE FROM tables"})),
        Case::new("batch on the catalogue", "POST", "/v1/db/schemas/batch", StatementDenied)
            .json(&json!({"statements": [{"sql": "INSERT INTO tables(owner, name, fileid) VALUES('me', 'x', 'x')"}]})),
        Case::new("write by GET", "GET", "/v1/db/shop/query?sql=DELETE+FROM+orders", MethodNotAllowed),
        Case::new("GET without sql", "GET", "/v1/db/shop/query", BadRequest),
        Case::new("GET with args that are no JSON", "GET", "/v1/db/shop/query?sql=SELECT+?&args=1,2", BadRequest),
    ]);
    cases
}
