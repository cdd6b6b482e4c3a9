//! What can be told of a statement by its text, before SQLite sees it.

/// What a statement can do, by its first word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It reads or writes rows; the schema stays as it is.
    Data,
    /// It may change the schema or the statistics (or is nothing that SQLite knows).
    Other,
}

impl Kind {
    /// Reads the first word of a text.
    pub fn of(sql: &str) -> Kind {
        let word = first_word(sql);
        let data = ["INSERT", "UPDATE", "DELETE", "REPLACE", "SELECT", "WITH", "VALUES"];
        if data.iter().any(|known| word.eq_ignore_ascii_case(known)) { Kind::Data } else { Kind::Other }
    }
}

/// Whether a statement may return rows. That it does not is said only of what surely does not.
pub(crate) fn may_return_rows(sql: &str) -> bool {
    let word = first_word(sql);
    let is_one_of = |words: &[&str]| words.iter().any(|known| word.eq_ignore_ascii_case(known));
    if is_one_of(&["INSERT", "UPDATE", "DELETE", "REPLACE"]) {
        return sql.as_bytes().windows(RETURNING.len()).any(|part| part.eq_ignore_ascii_case(RETURNING));
    }
    !is_one_of(&["CREATE", "ALTER", "DROP", "ANALYZE", "REINDEX"])
}

const RETURNING: &[u8] = b"RETURNING";

/// The first word behind white space, comments and empty statements, as SQLite's tokenizer sees them.
pub(crate) fn first_word(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\x0c', '\r', '\u{feff}', ';']);
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.find('\n').map_or("", |end| &comment[end + 1..]);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.find("*/").map_or("", |end| &comment[end + 2..]);
        } else {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            return &rest[..end];
        }
    }
}

/// What the names of d3b's own tables begin with.
const HIDDEN: &str = "_d3b_";

/// Whether a name is one of d3b's own.
pub(crate) fn is_hidden(name: &str) -> bool {
    starts_with(name, HIDDEN) || starts_with(name, "sqlite_autoindex__d3b_")
}

/// Whether a text says a name of d3b's own anywhere, quoted or not; comments do not count.
///
/// The authorizer hears of such names when they are used. In the definition of a view, a trigger, a foreign key or a
/// virtual table they are only written down, to be used later, perhaps by d3b's own statements with their rights.
pub(crate) fn mentions_hidden(sql: &str) -> bool {
    let mut rest = sql;
    let mut within_word = false;
    while let Some(next) = rest.chars().next() {
        // Within quotes two dashes are no comment. To read on there as if they were one would hide what follows it.
        if let Some(quoted) = quoted(rest) {
            if words(quoted).any(is_hidden) {
                return true;
            }
            rest = &rest[quoted.len()..];
            within_word = false;
        } else if let Some(comment) = comment(rest) {
            rest = &rest[comment..];
            within_word = false;
        } else {
            if !within_word && is_hidden(rest) {
                return true;
            }
            within_word = is_of_word(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    false
}

/// The quoted text, quotes included, that a text begins with.
fn quoted(text: &str) -> Option<&str> {
    let open = text.chars().next()?;
    let close = match open {
        '\'' | '"' | '`' => open,
        '[' => ']',
        _ => return None,
    };
    let length = text[1..].find(close).map_or(text.len(), |at| at + 2);
    Some(&text[..length])
}

/// The length of the comment that a text begins with.
fn comment(text: &str) -> Option<usize> {
    let (body, end) = match text.strip_prefix("--") {
        Some(body) => (body, "\n"),
        None => (text.strip_prefix("/*")?, "*/"),
    };
    Some(body.find(end).map_or(text.len(), |at| "--".len() + at + end.len()))
}

/// What could be names in a quoted text, which virtual tables take apart by rules of their own.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_of_word(c))
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// Whether a name begins like that, in upper or lower case.
pub(crate) fn starts_with(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sql: &str, expected: Kind) {
        assert_eq!(Kind::of(sql), expected, "{sql:?}");
    }

    #[test]
    fn the_first_word_tells_data_from_schema() {
        check("INSERT INTO t VALUES(1)", Kind::Data);
        check(" -- a comment\n /* another */ select 1", Kind::Data);
        check("\u{feff}with a as (select 1) delete from t", Kind::Data);
        check("VALUES(1)", Kind::Data);
        check("CREATE TABLE t(x)", Kind::Other);
        check("INSERTED", Kind::Other);
        check("EXPLAIN INSERT INTO t VALUES(1)", Kind::Other);
        check("analyze", Kind::Other);
        check("", Kind::Other);
        check("/* unfinished", Kind::Other);
        check("-- INSERT", Kind::Other);
        check(";INSERT INTO t VALUES(1)", Kind::Data);
        check(" ; -- c\n ;DROP TABLE t", Kind::Other);
        check(";", Kind::Other);
    }

    #[test]
    fn what_surely_returns_no_rows_is_known() {
        for text in ["insert into t values(1)", "/* c */UPDATE t SET x = 1", "DELETE FROM t", "DROP TABLE t", "REINDEX"]
        {
            assert!(!may_return_rows(text), "{text}");
        }
        for text in [
            "SELECT 1",
            "VALUES(1)",
            "WITH n AS (SELECT 1) DELETE FROM t",
            "INSERT INTO t VALUES(1) Returning *",
            "DELETE FROM t/**/RETURNING(x)",
            "EXPLAIN DELETE FROM t",
            "PRAGMA user_version",
            "",
        ] {
            assert!(may_return_rows(text), "{text}");
        }
    }

    #[test]
    fn names_of_d3bs_own_are_found_wherever_they_stand() {
        for text in [
            "_d3b_state",
            "SELECT * FROM _D3B_state",
            "CREATE VIEW v AS SELECT * FROM main._d3b_state",
            "CREATE VIEW v AS SELECT * FROM \"_d3b_state\"",
            "CREATE VIEW v AS SELECT * FROM [_d3b_state]",
            "CREATE VIEW v AS SELECT * FROM `_d3b_state`",
            "CREATE TABLE c(k REFERENCES '_d3b_requests')",
            "CREATE VIRTUAL TABLE f USING fts5(x, content=_d3b_requests)",
            "CREATE VIRTUAL TABLE f USING fts5(x, \"content='_d3b_requests'\")",
            "CREATE VIEW v AS SELECT '--' FROM _d3b_state",
            "CREATE VIEW v AS SELECT \"/*\" FROM _d3b_state",
            "CREATE VIEW v AS SELECT 1 -- '\n FROM _d3b_state",
            "CREATE VIEW v AS SELECT 1 /* \" */FROM/**/_d3b_state",
            "CREATE VIEW v AS SELECT 1 FROM [a'b], _d3b_state",
            "PRAGMA index_info(sqlite_autoindex__d3b_requests_1)",
        ] {
            assert!(mentions_hidden(text), "{text}");
        }
        for text in [
            "CREATE TABLE t(x)",
            "CREATE TABLE my_d3b_table(x)",
            "CREATE TABLE \u{e4}_d3b_table(x)",
            "-- not _d3b_state\nCREATE TABLE t(x /* nor _d3b_media */)",
            "CREATE TABLE t(x DEFAULT 'my_d3b_')",
            "CREATE TABLE t(x DEFAULT 'open",
            "/* open _d3b_state",
            "",
        ] {
            assert!(!mentions_hidden(text), "{text}");
        }
    }
}
