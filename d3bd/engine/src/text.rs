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

/// The first word behind white space and comments, as SQLite's tokenizer sees them.
pub(crate) fn first_word(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\x0c', '\r', '\u{feff}']);
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
        check(";INSERT INTO t VALUES(1)", Kind::Other);
    }
}
