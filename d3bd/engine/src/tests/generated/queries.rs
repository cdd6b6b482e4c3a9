//! Queries: joins, aggregates, windows, compounds, common table expressions, recursion, JSON, full-text search, and
//! what SQLite tells of its schema.

use super::Generator;
use super::definitions::{quoted, quoted_columns};
use super::expressions::Scope;
use super::schema::{Kind, Schema, Table};

const AGGREGATES: &[&str] = &[
    "count(*)",
    "count(DISTINCT {e})",
    "sum({e})",
    "total({e})",
    "avg({e})",
    "min({e})",
    "max({e})",
    "group_concat({e}, '|' ORDER BY {e})",
    "group_concat(DISTINCT {c})",
    "string_agg({c}, '-')",
    "json_group_array({e})",
    "json_group_object(coalesce({c}, 'none'), {c})",
    "sum({e}) FILTER (WHERE {e})",
    "count(*) FILTER (WHERE {c} IS NOT NULL)",
];

const WINDOWS: &[&str] = &[
    "row_number() OVER (PARTITION BY {e} ORDER BY {c}, {e})",
    "rank() OVER (ORDER BY {c})",
    "dense_rank() OVER (PARTITION BY {c} ORDER BY {e} DESC)",
    "ntile({n}1) OVER (ORDER BY {c}, {c})",
    "lag({e}, {n}, {l}) OVER (ORDER BY {c} NULLS LAST)",
    "lead({c}) OVER (PARTITION BY {e} ORDER BY {c})",
    "first_value({e}) OVER (ORDER BY {c} ROWS BETWEEN {n} PRECEDING AND CURRENT ROW)",
    "nth_value({c}, 2) OVER (ORDER BY {c} GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING EXCLUDE TIES)",
    "sum({e}) OVER (ORDER BY {c} RANGE BETWEEN {n} PRECEDING AND {n} FOLLOWING)",
    "group_concat({c}) OVER (PARTITION BY {e} ORDER BY {c} ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW)",
    "count(*) FILTER (WHERE {e}) OVER (ORDER BY {c})",
    "percent_rank() OVER (ORDER BY {e})",
    "cume_dist() OVER (ORDER BY {c})",
];

/// Where a query can take rows from, and what it can call their columns.
struct Source {
    from: String,
    columns: Vec<String>,
}

impl Generator {
    /// A query whose rows are few.
    pub fn query(&mut self, schema: &Schema, depth: u64) -> String {
        match self.dice.below(if depth == 0 { 7 } else { 14 }) {
            0..=2 => self.simple(schema, depth),
            3 | 4 => self.aggregate(schema, depth),
            5 => self.window(schema, depth),
            6 => self.values(schema),
            7 => {
                let (left, right) = (self.one_column(schema), self.one_column(schema));
                let operator = self.dice.one_of(&["UNION", "UNION ALL", "INTERSECT", "EXCEPT"]);
                let order = self.dice.one_of(&["", " ORDER BY 1", " ORDER BY 1 COLLATE NOCASE DESC LIMIT 9"]);
                format!("{left} {operator} {right}{order}")
            }
            8 => {
                let inner = self.query(schema, depth - 1);
                let hint = self.dice.one_of(&["", "", "MATERIALIZED ", "NOT MATERIALIZED "]);
                format!("WITH w AS {hint}({inner}) SELECT *, count(*) OVER () AS n FROM w LIMIT 20")
            }
            9 | 10 => self.recursive(schema, depth),
            11 => self.json(schema),
            12 => self.full_text(schema),
            _ => self.about_schema(schema),
        }
    }

    /// A query with one column and at most one row.
    pub fn subquery(&mut self, schema: &Schema) -> String {
        format!("{} LIMIT 1", self.one_column(schema))
    }

    fn one_column(&mut self, schema: &Schema) -> String {
        let Some(source) = self.single(schema) else { return "SELECT 1".to_owned() };
        let scope = Scope { columns: &source.columns, schema: None, constant: false };
        let (value, condition) = (self.expression(scope, 1), self.expression(scope, 1));
        format!("SELECT {value} FROM {} WHERE {condition}", source.from)
    }

    fn any_table<'s>(&mut self, schema: &'s Schema) -> Option<&'s Table> {
        let tables = schema.of(&[Kind::Table, Kind::View, Kind::Virtual]);
        self.dice.pick(&tables).copied()
    }

    fn single(&mut self, schema: &Schema) -> Option<Source> {
        let table = self.any_table(schema)?;
        let mut columns = quoted_columns(table);
        if table.kind == Kind::Table && self.dice.one_in(6) {
            columns.push("rowid".to_owned());
        }
        Some(Source { from: quoted(&table.name), columns })
    }

    fn joined(&mut self, schema: &Schema) -> Option<Source> {
        let (left, right) = (self.any_table(schema)?, self.any_table(schema)?);
        let mut columns: Vec<String> = quoted_columns(left).iter().map(|column| format!("l.{column}")).collect();
        columns.extend(quoted_columns(right).iter().map(|column| format!("r.{column}")));
        let scope = Scope { columns: &columns, schema: None, constant: false };
        let kind = self.dice.one_of(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "CROSS JOIN"]);
        let condition = self.dice.one_of(&["{c} = {c}", "{c} = {c}", "{c} < {c} AND {c} IS {e}", "{e}"]);
        let condition = self.fill(condition, scope, 1);
        let from = if self.dice.one_in(8) {
            format!("{} AS l NATURAL JOIN {} AS r", quoted(&left.name), quoted(&right.name))
        } else {
            format!("{} AS l {kind} {} AS r ON {condition}", quoted(&left.name), quoted(&right.name))
        };
        Some(Source { from, columns })
    }

    fn source(&mut self, schema: &Schema) -> Option<Source> {
        if self.dice.one_in(3) { self.joined(schema) } else { self.single(schema) }
    }

    fn simple(&mut self, schema: &Schema, depth: u64) -> String {
        let Some(source) = self.source(schema) else { return "SELECT 1 AS one".to_owned() };
        let inner = if depth > 0 { Some(schema) } else { None };
        let scope = Scope { columns: &source.columns, schema: inner, constant: false };
        let distinct = self.dice.one_of(&["", "", "", "DISTINCT "]);
        let chosen = match self.dice.below(4) {
            0 => "*".to_owned(),
            1 => format!("{} AS p, {} AS q", self.expression(scope, 2), self.expression(scope, 1)),
            2 => self.fill("{c}, {c} AS other, {e} AS p", scope, 2),
            _ => format!("{} AS p", self.expression(scope, 3)),
        };
        let mut text = format!("SELECT {distinct}{chosen} FROM {}", source.from);
        if self.dice.one_in(2) {
            text += &format!(" WHERE {}", self.expression(scope, 2));
        }
        let order = self.dice.one_of(&["", "", " ORDER BY {c}", " ORDER BY {e} DESC, {c}", " ORDER BY 1 COLLATE {k}"]);
        text += &self.fill(order, scope, 1);
        text + &format!(" LIMIT {}", 1 + self.dice.below(40))
    }

    fn aggregate(&mut self, schema: &Schema, depth: u64) -> String {
        let Some(source) = self.source(schema) else { return "SELECT count(*) AS n".to_owned() };
        let scope = Scope { columns: &source.columns, schema: None, constant: false };
        let (one, other) = (self.dice.one_of(AGGREGATES), self.dice.one_of(AGGREGATES));
        let (one, other) = (self.fill(one, scope, depth.min(1)), self.fill(other, scope, 1));
        let key = self.expression(scope, 1);
        let having = self.dice.one_of(&["", "", " HAVING count(*) > 1", " HAVING max({c}) IS NOT NULL"]);
        let having = self.fill(having, scope, 0);
        match self.dice.below(3) {
            0 => format!("SELECT {one} AS p, {other} AS q FROM {}", source.from),
            1 => format!("SELECT {key} AS k, {one} AS p FROM {} GROUP BY 1{having} LIMIT 30", source.from),
            // The bare column comes from the row that has the extreme.
            _ => {
                self.fill("SELECT {c} AS bare, max({c}) AS p", scope, 0)
                    + &format!(" FROM {} GROUP BY {key}", source.from)
            }
        }
    }

    fn window(&mut self, schema: &Schema, depth: u64) -> String {
        let Some(source) = self.single(schema) else { return "SELECT rank() OVER () AS n".to_owned() };
        let scope = Scope { columns: &source.columns, schema: None, constant: false };
        let (one, other) = (self.dice.one_of(WINDOWS), self.dice.one_of(WINDOWS));
        let (one, other) = (self.fill(one, scope, depth.min(1)), self.fill(other, scope, 0));
        let column = self.fill("{c}", scope, 0);
        format!("SELECT {column} AS k, {one} AS p, {other} AS q FROM {} ORDER BY 1, 2 LIMIT 30", source.from)
    }

    fn values(&mut self, schema: &Schema) -> String {
        let scope = Scope { columns: &[], schema: Some(schema), constant: false };
        let rows: Vec<String> = (0..=self.dice.below(3))
            .map(|_| format!("({}, {})", self.expression(scope, 2), self.expression(scope, 3)))
            .collect();
        format!("VALUES {}", rows.join(", "))
    }

    fn recursive(&mut self, schema: &Schema, depth: u64) -> String {
        let columns = ["i".to_owned(), "x".to_owned()];
        let scope = Scope { columns: &columns, schema: None, constant: false };
        let outside = Scope { columns: &[], ..scope };
        let (start, step) = (self.expression(outside, 1), self.expression(scope, 2));
        let all = self.dice.one_of(&["UNION ALL", "UNION"]);
        let limit = 1 + self.dice.below(30);
        let order = self.dice.one_of(&["", "", " ORDER BY 2 DESC"]);
        let chosen = match depth {
            0 => self.fill("i, x", scope, 0),
            _ => self.fill("i AS p, {e} AS q", scope, 1),
        };
        let from = match self.single(schema) {
            Some(source) if self.dice.one_in(3) => format!("n LEFT JOIN {} ON i = rowid", source.from),
            Some(_) | None => "n".to_owned(),
        };
        format!(
            "WITH RECURSIVE n(i, x) AS (VALUES(1, {start}) {all} SELECT i + 1, {step} FROM n WHERE i < {limit}{order}) \
             SELECT {chosen} FROM {from} LIMIT 40"
        )
    }

    fn json(&mut self, schema: &Schema) -> String {
        let scope = Scope { columns: &[], schema: Some(schema), constant: false };
        let document = self.dice.one_of(&[
            "json_array({e}, {e}, json_object('a', {e}))",
            "'{\"a\":[1,2,{\"b\":null}],\"c\":1.5}'",
            "(SELECT json_group_array(name) FROM sqlite_schema WHERE name LIKE 't%' ORDER BY 1)",
            "jsonb('[[1],[2,[3]]]')",
        ]);
        let document = self.fill(document, scope, 1);
        let walk = self.dice.one_of(&["json_each", "json_tree"]);
        format!("SELECT key, value, type, path FROM {walk}({document}) LIMIT 30")
    }

    fn full_text(&mut self, schema: &Schema) -> String {
        let tables = schema.of(&[Kind::Virtual]);
        let Some(table) = self.dice.pick(&tables).copied() else { return self.simple(schema, 0) };
        let name = quoted(&table.name);
        if table.name.starts_with('r') {
            return format!("SELECT * FROM {name} WHERE low > {} AND high <= 30", self.dice.below(9));
        }
        let words = self.dice.one_of(&[
            "one",
            "tw*",
            "one OR two",
            "\"words here\"",
            "NEAR(three here)",
            "three NOT two",
            "\u{e4}*",
            "x : one",
            "(",
        ]);
        match self.dice.below(3) {
            0 => format!("SELECT rowid, * FROM {name} WHERE {name} MATCH '{words}' ORDER BY rank LIMIT 20"),
            1 => format!(
                "SELECT rowid, highlight({name}, 0, '[', ']') AS h, snippet({name}, -1, '<', '>', '..', 3) AS s, \
                 bm25({name}) AS b FROM {name}('{words}') ORDER BY b, rowid LIMIT 20"
            ),
            _ => format!("SELECT count(*) AS n FROM {name} WHERE {name} MATCH '{words}'"),
        }
    }

    /// What is in memory of the schema must be what is on the disk.
    fn about_schema(&mut self, schema: &Schema) -> String {
        let query = if self.dice.one_in(2) { self.simple(schema, 0) } else { self.aggregate(schema, 0) };
        let name = self.any_table(schema).map_or("t0".to_owned(), |table| table.name.clone());
        let name = name.replace('\'', "''");
        match self.dice.below(9) {
            0 => format!("EXPLAIN QUERY PLAN {query}"),
            1 => format!("SELECT * FROM pragma_table_xinfo('{name}')"),
            2 => format!("PRAGMA index_list('{name}')"),
            3 => "PRAGMA foreign_key_check".to_owned(),
            4 => format!("SELECT * FROM pragma_foreign_key_list('{name}')"),
            // d3b's own tables are not hidden from here: only what a query says of them is refused.
            5 if !self.pure => "PRAGMA table_list".to_owned(),
            6 if !self.pure => "SELECT type, name, tbl_name FROM sqlite_schema".to_owned(),
            // In which order ANALYZE went through the tables depends on d3b's own among them, and what it saw of those
            // that keep a virtual table on when they were written.
            7 if self.pure => {
                "SELECT * FROM sqlite_stat1 WHERE tbl NOT GLOB '[fr][0-9]_*' ORDER BY tbl, idx".to_owned()
            }
            7 => "SELECT * FROM sqlite_stat1".to_owned(),
            8 => "SELECT * FROM sqlite_sequence".to_owned(),
            _ => "SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE '\\_d3b\\_%' ESCAPE '\\' AND sql IS NOT NULL"
                .to_owned(),
        }
    }
}
