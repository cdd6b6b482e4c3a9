//! Statements that change rows.

use super::Generator;
use super::definitions::{quoted, quoted_columns};
use super::expressions::Scope;
use super::schema::{Column, Kind, Schema, Table};

const OR: &[&str] = &["", "", "", "", "OR IGNORE ", "OR REPLACE ", "OR ABORT ", "OR FAIL ", "OR ROLLBACK "];

impl Generator {
    /// One statement that reads or writes rows.
    pub fn data(&mut self, schema: &Schema) -> String {
        // Few views have a trigger that makes them writable.
        let kinds: &[Kind] = if self.dice.one_in(3) { &[Kind::View, Kind::Virtual] } else { &[Kind::Table] };
        let mut tables = schema.of(kinds);
        if tables.is_empty() {
            tables = schema.of(&[Kind::Table]);
        }
        let Some(table) = self.dice.pick(&tables).copied() else { return self.query(schema, 1) };
        if table.kind == Kind::Virtual && !self.dice.one_in(3) {
            return self.maintenance(table);
        }
        match self.dice.below(20) {
            0..=8 => self.insert(schema, table),
            9..=11 => self.update(schema, table),
            12 | 13 => self.delete(schema, table),
            14 => self.bound_size(table),
            15 => Generator::again(self.dice.one_of(&["ROLLBACK", "ROLLBACK", "FAIL", "REPLACE"]), table),
            _ => self.query(schema, 2),
        }
    }

    fn insert(&mut self, schema: &Schema, table: &Table) -> String {
        let name = quoted(&table.name);
        let columns = self.writable(table);
        let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
        if names.is_empty() || self.dice.one_in(20) {
            return format!("INSERT INTO {name} DEFAULT VALUES{}", self.returning(table));
        }
        let or = self.dice.one_of(OR);
        let verb = if self.dice.one_in(12) { "REPLACE".to_owned() } else { format!("INSERT {or}") };
        let (source, alias) = self.rows(schema, &columns);
        let with = if self.dice.one_in(12) { "WITH w(p) AS (SELECT 5) " } else { "" };
        let upsert = if verb == "REPLACE" { String::new() } else { self.upsert(table, &names) };
        let returning = self.returning(table);
        format!("{with}{verb} INTO {name}{alias}({}) {source}{upsert}{returning}", names.join(", "))
    }

    /// The rows of an insertion, and the alias that an upsert may use.
    fn rows(&mut self, schema: &Schema, columns: &[&Column]) -> (String, &'static str) {
        let alias = self.dice.one_of(&["", "", " AS me"]);
        let scope = Scope { columns: &[], schema: Some(schema), constant: false };
        if self.dice.one_in(6) {
            let tables = schema.of(&[Kind::Table, Kind::View]);
            if let Some(other) = self.dice.pick(&tables).copied() {
                let others = quoted_columns(other);
                let scope = Scope { columns: &others, ..scope };
                let values: Vec<String> = columns.iter().map(|_| self.expression(scope, 1)).collect();
                let order = self.dice.one_of(&["", " ORDER BY {c}", " ORDER BY {e} DESC"]);
                let order = self.fill(order, scope, 1);
                let from = quoted(&other.name);
                let text = format!(
                    "SELECT {} FROM {from} WHERE true{order} LIMIT {}",
                    values.join(", "),
                    1 + self.dice.below(12)
                );
                return (text, alias);
            }
        }
        if self.dice.one_in(10) {
            let own = ["i".to_owned()];
            let scope = Scope { columns: &own, ..scope };
            let values: Vec<String> = columns
                .iter()
                .map(|column| if self.dice.one_in(2) { "i".to_owned() } else { self.fitting(column, scope) })
                .collect();
            let many = 5 + self.dice.below(20);
            let text = format!(
                "SELECT {} FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {many}) SELECT i FROM n) WHERE true",
                values.join(", ")
            );
            return (text, alias);
        }
        let rows: Vec<String> = (0..=self.dice.below(3))
            .map(|_| {
                let values: Vec<String> = columns.iter().map(|column| self.fitting(column, scope)).collect();
                format!("({})", values.join(", "))
            })
            .collect();
        (format!("VALUES {}", rows.join(", ")), alias)
    }

    fn upsert(&mut self, table: &Table, names: &[String]) -> String {
        if table.kind != Kind::Table || !self.dice.one_in(3) {
            return String::new();
        }
        let Some(column) = self.dice.pick(names).cloned() else { return String::new() };
        let columns: Vec<String> = names.iter().flat_map(|name| [format!("excluded.{name}"), name.clone()]).collect();
        let scope = Scope { columns: &columns, schema: None, constant: false };
        let (value, condition) = (self.expression(scope, 2), self.expression(scope, 1));
        match self.dice.below(5) {
            0 => " ON CONFLICT DO NOTHING".to_owned(),
            1 => format!(" ON CONFLICT({column}) DO NOTHING"),
            2 => format!(" ON CONFLICT({column}) DO UPDATE SET {column} = {value} WHERE {condition}"),
            3 => format!(" ON CONFLICT({column}) DO UPDATE SET {column} = {value} ON CONFLICT DO NOTHING"),
            _ => format!(" ON CONFLICT DO UPDATE SET {column} = {value}"),
        }
    }

    fn update(&mut self, schema: &Schema, table: &Table) -> String {
        let (name, columns) = (quoted(&table.name), quoted_columns(table));
        let scope = Scope { columns: &columns, schema: Some(schema), constant: false };
        let mut sets = Vec::new();
        for column in self.writable(table).into_iter().take(2) {
            let value = if self.dice.one_in(2) { self.fitting(column, scope) } else { self.expression(scope, 2) };
            sets.push(format!("{} = {value}", quoted(&column.name)));
        }
        if sets.is_empty() || self.dice.one_in(25) {
            sets = vec![format!("rowid = {}", self.dice.one_of(&["rowid + 100", "9223372036854775807", "-5"]))];
        }
        let or = self.dice.one_of(OR);
        let condition = self.condition(scope);
        let from = match self.dice.below(8) {
            0 => format!(" FROM (SELECT {} AS z LIMIT 1) AS s", self.expression(Scope { columns: &[], ..scope }, 1)),
            _ => String::new(),
        };
        format!("UPDATE {or}{name} SET {}{from}{condition}{}", sets.join(", "), self.returning(table))
    }

    fn delete(&mut self, schema: &Schema, table: &Table) -> String {
        let columns = quoted_columns(table);
        let scope = Scope { columns: &columns, schema: Some(schema), constant: false };
        let condition = self.condition(scope);
        format!("DELETE FROM {}{condition}{}", quoted(&table.name), self.returning(table))
    }

    /// Rows that are there already, which mostly ends the transaction.
    fn again(or: &str, table: &Table) -> String {
        let name = quoted(&table.name);
        let all = table.columns.iter().filter(|column| !column.generated);
        let columns = all.map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ");
        format!("INSERT OR {or} INTO {name}({columns}) SELECT {columns} FROM {name} LIMIT 2")
    }

    /// Keeps tables small: what is generated here may meet itself in a join.
    fn bound_size(&mut self, table: &Table) -> String {
        let column = self.dice.pick(&table.columns).map_or("rowid".to_owned(), |column| quoted(&column.name));
        let name = quoted(&table.name);
        format!("DELETE FROM {name} WHERE {column} IN (SELECT {column} FROM {name} LIMIT -1 OFFSET 30)")
    }

    fn condition(&mut self, scope: Scope<'_>) -> String {
        match self.dice.below(6) {
            0 => String::new(),
            1 | 2 => self.fill(" WHERE {c} = {e}", scope, 1),
            3 => self.fill(" WHERE {c} > {l} AND {e}", scope, 1),
            _ => format!(" WHERE {}", self.expression(scope, 2)),
        }
    }

    fn returning(&mut self, table: &Table) -> String {
        if !self.dice.one_in(4) {
            return String::new();
        }
        let columns = quoted_columns(table);
        let scope = Scope { columns: &columns, schema: None, constant: false };
        match self.dice.below(3) {
            0 => " RETURNING *".to_owned(),
            1 => format!(" RETURNING {} AS p", self.expression(scope, 2)),
            _ => self.fill(" RETURNING {c}, {e} AS p", scope, 1),
        }
    }

    /// Some of the columns that can be written to; mostly all of them.
    fn writable<'t>(&mut self, table: &'t Table) -> Vec<&'t Column> {
        let all: Vec<&Column> = table.columns.iter().filter(|column| !column.generated).collect();
        if self.dice.one_in(2) { all } else { all.into_iter().filter(|_| !self.dice.one_in(3)).collect() }
    }

    /// What a virtual table can be told to do with itself.
    fn maintenance(&mut self, table: &Table) -> String {
        let name = &table.name;
        if name.starts_with('r') {
            let (low, high) = (self.dice.below(20), self.dice.below(25));
            return format!("INSERT OR REPLACE INTO {name} VALUES({}, {low}, {high}, 'x')", self.dice.below(30));
        }
        let words = self.dice.one_of(&["one two three", "three words here", "tw\u{e4}in one", "two two two one"]);
        let rowid = self.dice.below(30);
        match self.dice.below(10) {
            0 => format!("INSERT INTO {name}({name}) VALUES('optimize')"),
            1 => format!("INSERT INTO {name}({name}) VALUES('rebuild')"),
            2 => format!("INSERT INTO {name}({name}) VALUES('integrity-check')"),
            3 => format!("INSERT INTO {name}({name}, rank) VALUES('merge', {rowid})"),
            4 => format!("DELETE FROM {name} WHERE rowid = {rowid}"),
            5 => format!("INSERT INTO {name}({name}, rank) VALUES('crisismerge', 3)"),
            _ => format!("INSERT INTO {name}(rowid, x) VALUES({rowid}, '{words}')"),
        }
    }
}
