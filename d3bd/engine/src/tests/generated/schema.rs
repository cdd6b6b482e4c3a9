//! What a database holds when a statement is made for it. It is read from the file, so that most statements fit.

use rusqlite::Connection;

/// A column of a table or view.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub name: String,
    /// Its declared type, which may be anything.
    pub kind: String,
    /// Whether it cannot be written to.
    pub generated: bool,
    /// Whether it is in the primary key.
    pub key: bool,
}

/// What a table is to those who write to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Table,
    View,
    /// Full-text search and R*Trees.
    Virtual,
}

/// A table, view or virtual table.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub name: String,
    pub kind: Kind,
    pub columns: Vec<Column>,
}

/// Everything that has a name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schema {
    pub tables: Vec<Table>,
    pub indexes: Vec<String>,
    pub triggers: Vec<String>,
}

impl Schema {
    /// Reads what is there, in an order that depends on the names alone.
    pub fn read(connection: &Connection) -> rusqlite::Result<Schema> {
        let names = |sql: &str| -> rusqlite::Result<Vec<String>> {
            connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
        };
        let listed: Vec<(String, String)> = connection
            .prepare(
                "SELECT name, type FROM pragma_table_list WHERE schema = 'main' AND type <> 'shadow' \
                 AND name NOT LIKE 'sqlite_%' AND substr(name, 1, 5) <> '_d3b_' ORDER BY name",
            )?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut tables = Vec::new();
        for (name, kind) in listed {
            let kind = match kind.as_str() {
                "view" => Kind::View,
                "virtual" => Kind::Virtual,
                _ => Kind::Table,
            };
            // The columns of a view that does not fit its tables any more cannot be told.
            let columns = Schema::columns(connection, &name).unwrap_or_default();
            tables.push(Table { name, kind, columns });
        }
        Ok(Schema {
            tables,
            indexes: names("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY name")?
                .into_iter()
                .filter(|name| !name.starts_with("_d3b_"))
                .collect(),
            triggers: names("SELECT name FROM sqlite_schema WHERE type = 'trigger' ORDER BY name")?,
        })
    }

    fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<Column>> {
        connection
            .prepare("SELECT name, type, hidden, pk FROM pragma_table_xinfo(?) WHERE hidden <> 1 ORDER BY cid")?
            .query_map([table], |row| {
                Ok(Column {
                    name: row.get(0)?,
                    kind: row.get(1)?,
                    generated: row.get::<_, i64>(2)? != 0,
                    key: row.get::<_, i64>(3)? != 0,
                })
            })?
            .collect()
    }

    /// Those of some kinds.
    pub fn of(&self, kinds: &[Kind]) -> Vec<&Table> {
        self.tables.iter().filter(|table| kinds.contains(&table.kind)).collect()
    }
}
