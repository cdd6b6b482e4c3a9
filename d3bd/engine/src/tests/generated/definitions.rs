//! Statements that define: tables of all kinds, indexes, triggers, views, full-text search, and what alters them.

use super::Generator;
use super::expressions::{COLLATIONS, Scope};
use super::schema::{Column, Kind, Schema, Table};

const COLUMN_TYPES: &[&str] = &[
    "",
    "INTEGER",
    "INT",
    "TEXT",
    "REAL",
    "NUMERIC",
    "BLOB",
    "VARCHAR(10)",
    "DECIMAL(5, 2)",
    "BOOLEAN",
    "DATETIME",
    "FLOATING POINT",
    "CHARINT",
];

const STRICT_TYPES: &[&str] = &["INTEGER", "INT", "TEXT", "REAL", "BLOB", "ANY"];

const CONFLICTS: &[&str] =
    &["", "", "", "", " ON CONFLICT IGNORE", " ON CONFLICT REPLACE", " ON CONFLICT FAIL", " ON CONFLICT ROLLBACK"];

const ACTIONS: &[&str] = &["NO ACTION", "RESTRICT", "SET NULL", "SET DEFAULT", "CASCADE"];

const COLUMNS: &[&str] = &["a", "b", "c", "d", "e", "f", "\"g h\"", "\u{fc}"];

/// The names that tables of generated databases can have: few, so that they meet.
const TABLES: &[&str] = &["t0", "t1", "t2", "t3", "t4", "t5", "\"t 6\""];

impl Generator {
    /// One statement that changes the schema.
    pub fn definition(&mut self, schema: &Schema) -> String {
        let number = self.dice.below(5);
        let tables = schema.of(&[Kind::Table]);
        let Some(table) = self.dice.pick(&tables).copied() else { return self.create_table(schema) };
        let name = quoted(&table.name);
        match self.dice.below(24) {
            0..=3 => self.create_table(schema),
            4..=6 => self.create_index(table),
            7..=9 => self.create_trigger(schema, table),
            10 => self.create_instead_of(schema),
            11 | 12 => {
                let query = self.query(schema, 1);
                let columns = self.view_columns();
                format!("CREATE VIEW IF NOT EXISTS v{number}{columns} AS {query}")
            }
            13 => self.create_virtual(table),
            14 => {
                let query = self.query(schema, 1);
                format!("CREATE TABLE {} AS {query}", self.dice.one_of(TABLES))
            }
            15 | 16 => self.add_column(table),
            17 => {
                let column = self.dice.pick(&table.columns).map_or("a".to_owned(), |column| quoted(&column.name));
                match self.dice.below(3) {
                    0 => format!("ALTER TABLE {name} DROP COLUMN {column}"),
                    1 => format!("ALTER TABLE {name} RENAME {column} TO {}", self.dice.one_of(COLUMNS)),
                    _ => format!("ALTER TABLE {name} RENAME TO {}", self.dice.one_of(TABLES)),
                }
            }
            18 => format!("DROP TABLE {name}"),
            19 => match self.dice.pick(&schema.indexes) {
                Some(index) => format!("DROP INDEX {}", quoted(index)),
                None => "REINDEX NOCASE".to_owned(),
            },
            20 => match self.dice.pick(&schema.triggers) {
                Some(trigger) => format!("DROP TRIGGER {}", quoted(trigger)),
                None => "ANALYZE".to_owned(),
            },
            21 => format!("DROP VIEW IF EXISTS v{number}"),
            22 => match self.dice.below(4) {
                0 => format!("ANALYZE {name}"),
                1 => format!("REINDEX {name}"),
                2 => format!("PRAGMA user_version = {number}"),
                _ => "REINDEX".to_owned(),
            },
            _ => "ANALYZE".to_owned(),
        }
    }

    pub fn create_table(&mut self, schema: &Schema) -> String {
        let name = self.dice.one_of(TABLES);
        let strict = self.dice.one_in(5);
        let without_rowid = self.dice.one_in(5);
        let columns: Vec<String> = self.dice.some(COLUMNS, 5).iter().map(|column| (*column).to_owned()).collect();
        let mut parts = Vec::new();
        let mut has_key = false;
        for column in &columns {
            let mut part = column.clone();
            if !has_key && self.dice.one_in(3) {
                has_key = true;
                part += self.dice.one_of(&[
                    " INTEGER PRIMARY KEY",
                    " INTEGER PRIMARY KEY",
                    " INTEGER PRIMARY KEY AUTOINCREMENT",
                    " INTEGER PRIMARY KEY DESC",
                    " INT PRIMARY KEY",
                    " TEXT PRIMARY KEY ON CONFLICT REPLACE",
                    " TEXT NOT NULL PRIMARY KEY COLLATE NOCASE",
                ]);
            } else {
                part += " ";
                part += self.dice.one_of(if strict { STRICT_TYPES } else { COLUMN_TYPES });
                part += &self.column_constraints(schema, &columns);
            }
            parts.push(part);
        }
        if !has_key && (without_rowid || self.dice.one_in(4)) {
            let names: Vec<&str> = columns.iter().map(String::as_str).collect();
            let key = self.dice.some(&names, 3).join(", ");
            parts.push(format!("PRIMARY KEY({key})"));
        }
        self.table_constraints(schema, &columns, &mut parts);
        let options = match (strict, without_rowid) {
            (true, true) => " STRICT, WITHOUT ROWID",
            (true, false) => " STRICT",
            (false, true) => " WITHOUT ROWID",
            (false, false) => "",
        };
        format!("CREATE TABLE IF NOT EXISTS {name}({}){options}", parts.join(", "))
    }

    fn column_constraints(&mut self, schema: &Schema, columns: &[String]) -> String {
        let scope = Scope::definition(columns);
        let conflict = self.dice.one_of(CONFLICTS);
        match self.dice.below(14) {
            0 => format!(" NOT NULL{conflict} DEFAULT {}", self.dice.below(9)),
            1 => format!(" UNIQUE{conflict}"),
            2 if self.pure => format!(" DEFAULT ({})", self.expression(Scope::definition(&[]), 2)),
            2 | 3 => {
                let scope = Scope { columns: &[], schema: None, constant: false };
                // What is bound has no place in a definition.
                let unbound = std::mem::replace(&mut self.binds, false);
                let text = format!(" DEFAULT ({})", self.expression(scope, 2));
                self.binds = unbound;
                text
            }
            4 => format!(" CHECK({})", self.fill("{c} IS NULL OR typeof({e}) <> 'blob'", scope, 1)),
            5 => format!(" COLLATE {}", self.dice.one_of(COLLATIONS)),
            6 | 7 => format!(" {}", self.references(schema)),
            8 => format!(" GENERATED ALWAYS AS ({}) STORED", self.expression(scope, 2)),
            9 => format!(" AS ({})", self.expression(scope, 2)),
            _ => String::new(),
        }
    }

    fn references(&mut self, schema: &Schema) -> String {
        let tables = schema.of(&[Kind::Table]);
        let keyed: Vec<(&Table, &Column)> = tables.iter().filter_map(|table| Some((*table, key_of(table)?))).collect();
        let target = match (self.dice.pick(&keyed), self.dice.pick(&tables)) {
            (Some((table, _)), _) if self.dice.one_in(2) => quoted(&table.name),
            (Some((table, key)), _) if !self.dice.one_in(8) => {
                format!("{}({})", quoted(&table.name), quoted(&key.name))
            }
            // Mostly these do not fit, and every write then fails.
            (_, Some(table)) if self.dice.one_in(4) => quoted(&table.name),
            (_, Some(_) | None) => self.dice.one_of(TABLES).to_owned(),
        };
        let (on_delete, on_update) = (self.dice.one_of(ACTIONS), self.dice.one_of(ACTIONS));
        let deferred = self.dice.one_of(&["", "", " DEFERRABLE INITIALLY DEFERRED", " NOT DEFERRABLE"]);
        format!("REFERENCES {target} ON DELETE {on_delete} ON UPDATE {on_update}{deferred}")
    }

    fn table_constraints(&mut self, schema: &Schema, columns: &[String], parts: &mut Vec<String>) {
        let names: Vec<&str> = columns.iter().map(String::as_str).collect();
        if self.dice.one_in(5) {
            let conflict = self.dice.one_of(CONFLICTS);
            parts.push(format!("UNIQUE({}){conflict}", self.dice.some(&names, 2).join(", ")));
        }
        if self.dice.one_in(8) {
            let scope = Scope::definition(columns);
            parts.push(format!("CONSTRAINT small CHECK({})", self.fill("length({c}) < 40 OR {e}", scope, 1)));
        }
        if self.dice.one_in(6) {
            let column = self.dice.one_of(&names);
            parts.push(format!("FOREIGN KEY({column}) {}", self.references(schema)));
        }
    }

    pub fn create_index(&mut self, table: &Table) -> String {
        let columns = quoted_columns(table);
        let scope = Scope::definition(&columns);
        let unique = self.dice.one_of(&["", "", "", "UNIQUE "]);
        let mut terms = Vec::new();
        for _ in 0..=self.dice.below(2) {
            let term = self.dice.one_of(&["{c}", "{c}", "{c} DESC", "{c} COLLATE {k}", "{e}", "lower({c}) || {c}"]);
            terms.push(self.fill(term, scope, 1));
        }
        let partial = match self.dice.below(4) {
            0 => format!(" WHERE {}", self.fill("{c} IS NOT NULL AND {c} > {l}", scope, 1)),
            1 => format!(" WHERE {}", self.expression(scope, 1)),
            _ => String::new(),
        };
        let number = self.dice.below(9);
        format!(
            "CREATE {unique}INDEX IF NOT EXISTS i{number} ON {}({}){partial}",
            quoted(&table.name),
            terms.join(", ")
        )
    }

    pub fn create_trigger(&mut self, schema: &Schema, table: &Table) -> String {
        let time = self.dice.one_of(&["BEFORE", "AFTER", "AFTER"]);
        self.trigger(schema, table, time)
    }

    fn create_instead_of(&mut self, schema: &Schema) -> String {
        let views = schema.of(&[Kind::View]);
        match self.dice.pick(&views).copied() {
            Some(view) => self.trigger(schema, view, "INSTEAD OF"),
            None => "CREATE VIEW IF NOT EXISTS v0(p, q) AS SELECT 1, 2 UNION ALL SELECT 3, 4".to_owned(),
        }
    }

    fn trigger(&mut self, schema: &Schema, on: &Table, time: &str) -> String {
        let mut columns = Vec::new();
        let event = match self.dice.below(4) {
            0 => "DELETE".to_owned(),
            1 => "INSERT".to_owned(),
            2 => "UPDATE".to_owned(),
            _ => match self.dice.pick(&on.columns) {
                Some(column) => format!("UPDATE OF {}", quoted(&column.name)),
                None => "UPDATE".to_owned(),
            },
        };
        for side in ["new", "old"] {
            let there = if side == "new" { event != "DELETE" } else { event != "INSERT" };
            if there {
                columns.extend(on.columns.iter().map(|column| format!("{side}.{}", quoted(&column.name))));
            }
        }
        let unbound = std::mem::replace(&mut self.binds, false);
        let scope = Scope { columns: &columns, schema: None, constant: false };
        let when = if self.dice.one_in(3) { format!(" WHEN {}", self.expression(scope, 2)) } else { String::new() };
        let mut body = String::new();
        for _ in 0..=self.dice.below(2) {
            body += &self.trigger_step(schema, scope);
            body += "; ";
        }
        self.binds = unbound;
        let number = self.dice.below(6);
        format!("CREATE TRIGGER IF NOT EXISTS g{number} {time} {event} ON {}{when} BEGIN {body}END", quoted(&on.name))
    }

    fn trigger_step(&mut self, schema: &Schema, scope: Scope<'_>) -> String {
        let tables = schema.of(&[Kind::Table, Kind::Virtual]);
        let Some(table) = self.dice.pick(&tables).copied() else { return "SELECT 1".to_owned() };
        let name = quoted(&table.name);
        let column = self.dice.pick(&table.columns).map_or("rowid".to_owned(), |column| quoted(&column.name));
        let (value, condition) = (self.expression(scope, 2), self.expression(scope, 1));
        match self.dice.below(9) {
            0..=2 => {
                let conflict = self.dice.one_of(&["", "OR IGNORE ", "OR REPLACE "]);
                format!("INSERT {conflict}INTO {name}({column}) VALUES({value})")
            }
            3 => {
                format!("INSERT INTO {name}({column}) VALUES({value}) ON CONFLICT DO UPDATE SET {column} = {condition}")
            }
            4 | 5 => format!("UPDATE {name} SET {column} = {value} WHERE {column} IS {condition}"),
            6 => format!("DELETE FROM {name} WHERE {column} = {value}"),
            7 => {
                let raise = self.dice.one_of(&[
                    "RAISE(IGNORE)",
                    "RAISE(ABORT, 'no')",
                    "RAISE(FAIL, 'stop')",
                    "RAISE(ROLLBACK, 'back')",
                ]);
                format!("SELECT {raise} WHERE {condition}")
            }
            _ => format!("UPDATE {name} SET {column} = {value} FROM (SELECT {condition} AS z) WHERE {column} < z"),
        }
    }

    fn create_virtual(&mut self, table: &Table) -> String {
        let number = self.dice.below(3);
        let content = match table.columns.as_slice() {
            [first, second, ..] if !first.name.contains(' ') && !table.name.contains(' ') => {
                format!("{}, {}, content='{}'", first.name, second.name, table.name)
            }
            _ => "x, content=''".to_owned(),
        };
        match self.dice.below(9) {
            0..=2 => format!("CREATE VIRTUAL TABLE IF NOT EXISTS f{number} USING fts5(x, y)"),
            3 => format!(
                "CREATE VIRTUAL TABLE IF NOT EXISTS f{number} USING fts5(x, y, tokenize='porter', prefix='1 2')"
            ),
            4 => {
                format!("CREATE VIRTUAL TABLE IF NOT EXISTS f{number} USING fts5(x, tokenize='trigram', detail=column)")
            }
            5 => format!("CREATE VIRTUAL TABLE IF NOT EXISTS f{number} USING fts5({content})"),
            6 => {
                format!("CREATE VIRTUAL TABLE IF NOT EXISTS f{number} USING fts5(x, content='', contentless_delete=1)")
            }
            7 => format!("CREATE VIRTUAL TABLE IF NOT EXISTS f{number} USING fts4(x, y)"),
            _ => format!("CREATE VIRTUAL TABLE IF NOT EXISTS r{number} USING rtree(id, low, high, +x)"),
        }
    }

    fn add_column(&mut self, table: &Table) -> String {
        let name = self.dice.one_of(COLUMNS);
        let kind = self.dice.one_of(COLUMN_TYPES);
        let rest = match self.dice.below(5) {
            0 => " DEFAULT 'late'".to_owned(),
            1 => " NOT NULL DEFAULT 5 CHECK(1)".to_owned(),
            2 => format!(" AS ({})", self.expression(Scope::definition(&quoted_columns(table)), 1)),
            3 => format!(" COLLATE {}", self.dice.one_of(COLLATIONS)),
            _ => String::new(),
        };
        format!("ALTER TABLE {} ADD COLUMN {name} {kind}{rest}", quoted(&table.name))
    }

    fn view_columns(&mut self) -> &'static str {
        self.dice.one_of(&["", "", "(p)", "(p, q)", "(p, q, r)"])
    }
}

/// The primary key, where it is one column.
fn key_of(table: &Table) -> Option<&Column> {
    let mut keys = table.columns.iter().filter(|column| column.key);
    keys.next().filter(|_| keys.next().is_none())
}

/// A name as it can stand anywhere.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(crate) fn quoted_columns(table: &Table) -> Vec<String> {
    table.columns.iter().map(|column| quoted(&column.name)).collect()
}
