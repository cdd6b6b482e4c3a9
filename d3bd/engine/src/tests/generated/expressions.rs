//! Expressions: shapes with gaps in them, filled until there is no depth left.
//!
//! `{e}` is a gap for any expression, `{c}` for a column, `{l}` for a literal, `{n}` for a small number, `{k}` for a
//! collation, `{y}` for a type, `{q}` for a query with one column.

use d3b::Value;

use super::Generator;
use super::schema::{Column, Schema};

/// What SQL may be about, and where in a statement it stands.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    /// The columns that can be named, as they are to be written.
    pub columns: &'a [String],
    /// What subqueries can select from; `None` where none are allowed.
    pub schema: Option<&'a Schema>,
    /// Whether what tells of time, chance or the connection may be used: not in what an index depends on.
    pub constant: bool,
}

impl<'a> Scope<'a> {
    /// The scope of a definition: columns and nothing else.
    pub fn definition(columns: &'a [String]) -> Scope<'a> {
        Scope { columns, schema: None, constant: true }
    }
}

const LITERALS: &[&str] = &[
    "NULL",
    "0",
    "1",
    "2",
    "3",
    "7",
    "-1",
    "42",
    "TRUE",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "4611686018427387904",
    "0x10",
    "1_000",
    "0.1",
    "2.5",
    "-0.0",
    "1e300",
    "9e999",
    "-9e999",
    "1e-320",
    "3.0",
    "9007199254740993.0",
    "''",
    "'a'",
    "'A'",
    "'b '",
    "'abc'",
    "'12'",
    "' 7'",
    "'1e2'",
    "'12abc'",
    "'0x1F'",
    "'nan'",
    "'inf'",
    "'it''s'",
    "'\u{e4}\u{df}\u{20ac}'",
    "'\u{1f600}\u{301}'",
    "'\u{c4}'",
    "'one two three'",
    "'two words'",
    "x''",
    "x'00'",
    "x'00ff41'",
    "x'c3'",
    "'{\"a\":[1,2.5,{\"b\":null}],\"c\":\"d\"}'",
    "'[1,\"x\",true]'",
    "'2024-02-29'",
    "'2024-12-31 23:59:59.999'",
];

const SHAPES: &[&str] = &[
    "({e} + {e})",
    "({e} - {e})",
    "({e} * {e})",
    "({e} / {e})",
    "({e} % {e})",
    "({e} || {e})",
    "({e} & {e})",
    "({e} | {e})",
    "({e} << {n})",
    "({e} >> {n})",
    "(- {e})",
    "(~{e})",
    "(NOT {e})",
    "({e} = {e})",
    "({e} < {e})",
    "({e} >= {e})",
    "({e} <> {e})",
    "({e} IS {e})",
    "({e} IS NOT DISTINCT FROM {e})",
    "({e} AND {e})",
    "({e} OR {e})",
    "({e} LIKE {e})",
    "({e} GLOB '*{n}*')",
    "({e} LIKE '%_{n}\\%' ESCAPE '\\')",
    "({e} BETWEEN {e} AND {e})",
    "({e} IN ({e}, {e}, {l}))",
    "({e} IN ({q}))",
    "({e} NOT IN ({q}))",
    "EXISTS ({q})",
    "({q})",
    "({c} < {e} COLLATE {k})",
    "({e} ISNULL)",
    "(({e}, {c}) < ({c}, {e}))",
    "CASE WHEN {e} THEN {e} ELSE {e} END",
    "CASE {e} WHEN {e} THEN {e} WHEN {l} THEN {e} END",
    "CAST({e} AS {y})",
    "abs({e})",
    "coalesce({e}, {e}, {e})",
    "nullif({e}, {e})",
    "iif({e}, {e}, {e})",
    "min({e}, {e})",
    "max({e}, {e}, {e})",
    "round({e}, {n})",
    "sign({e})",
    "length({e})",
    "octet_length({e})",
    "lower({e})",
    "upper({e})",
    "trim({e}, {e})",
    "substr({e}, {n}, {n})",
    "substr({e}, -{n})",
    "replace({e}, {e}, {e})",
    "instr({e}, {e})",
    "hex({e})",
    "unhex({e})",
    "quote({e})",
    "typeof({e})",
    "unicode({e})",
    "char({n}, 2{n}5)",
    "soundex({e})",
    "concat_ws('-', {e}, {e})",
    "printf('%d %s %.3f %q %x', {e}, {e}, {e}, {e}, {e})",
    "format('%+.10g|%8s|%!.20e|%,d', {e}, {e}, {e}, {e})",
    "zeroblob({n})",
    "likely({e})",
    "json_array({e}, {n})",
    "json_object('k', {e}, 'c', {l})",
    "json_valid({e})",
    "json_type('[1,{\"a\":2.5}]', '$[{n}]')",
    "json_extract(json_array({e}, {e}), '$[#-1]')",
    "json_set('{\"a\":{\"b\":1}}', '$.a.c', {e}, '$.d[0]', {e})",
    "json_remove(json_array({e}, {e}, {e}), '$[{n}]')",
    "json_patch('{\"a\":1,\"b\":{\"c\":2}}', json_object('b', {e}))",
    "json_quote({e})",
    "json(jsonb_array({e}, {e}))",
    "hex(jsonb_object('x', {e}))",
    "(json_array({e}, {e}) -> {n})",
    "(json_object('a', {e}) ->> 'a')",
    "json_array_length({e})",
    "date({e})",
    "datetime('2024-02-29 12:00', '+{n} months', 'weekday {n}')",
    "strftime('%Y-%j-%W-%s-%f', {e}, '+{n} hours')",
    "julianday({e})",
    "unixepoch({e}, 'subsec')",
    "timediff('2024-03-01', '2024-02-{n}1')",
];

/// What no two replicas would answer alike, if it were not for the engine.
const REPLICAS_OWN: &[&str] = &[
    "random()",
    "(random() % 10)",
    "abs(random() % {n})",
    "hex(randomblob({n}))",
    "randomblob(3)",
    "datetime('now')",
    "datetime()",
    "strftime('%Y-%m-%d %H:%M:%f', 'now', '-{n} days')",
    "julianday('now')",
    "unixepoch('subsec')",
    "CURRENT_TIMESTAMP",
    "CURRENT_DATE",
    "CURRENT_TIME",
    "(CURRENT_TIME > {e})",
];

/// What tells of the connection: of its statements before the operation, if it were not for the engine.
const CONNECTIONS_OWN: &[&str] = &["last_insert_rowid()", "changes()", "total_changes()"];

const TYPES: &[&str] = &["INTEGER", "TEXT", "REAL", "NUMERIC", "BLOB", "VARCHAR(3)", "FLOATING POINT", "NONE"];

pub(crate) const COLLATIONS: &[&str] = &["BINARY", "NOCASE", "RTRIM"];

impl Generator {
    /// An expression that is at most so deep.
    pub fn expression(&mut self, scope: Scope<'_>, depth: u64) -> String {
        if depth == 0 || self.dice.one_in(4) {
            return self.leaf(scope);
        }
        let shape = self.dice.one_of(SHAPES);
        if shape.contains("{q}") && scope.schema.is_none() {
            return self.leaf(scope);
        }
        self.fill(shape, scope, depth - 1)
    }

    /// Fills the gaps of a shape.
    pub fn fill(&mut self, shape: &str, scope: Scope<'_>, depth: u64) -> String {
        let mut text = String::new();
        let mut rest = shape;
        while let Some(at) = rest.find('{') {
            text.push_str(&rest[..at]);
            let Some(gap) = rest.get(at..at + 3) else { break };
            rest = &rest[at + 3..];
            match gap {
                "{e}" => text.push_str(&self.expression(scope, depth)),
                "{c}" => text.push_str(&self.column(scope)),
                "{l}" => text.push_str(&self.literal(scope)),
                "{n}" => text.push_str(&self.dice.below(6).to_string()),
                "{k}" => text.push_str(self.dice.one_of(COLLATIONS)),
                "{y}" => text.push_str(self.dice.one_of(TYPES)),
                "{q}" => match scope.schema {
                    Some(schema) => text.push_str(&self.subquery(schema)),
                    None => text.push_str("NULL"),
                },
                other => {
                    text.push_str(&other[..1]);
                    rest = &shape[shape.len() - rest.len() - 2..];
                }
            }
        }
        text + rest
    }

    fn leaf(&mut self, scope: Scope<'_>) -> String {
        match self.dice.below(12) {
            0..=5 => self.column(scope),
            6 if !scope.constant && !self.pure => {
                let shape = self.dice.one_of(REPLICAS_OWN);
                self.fill(shape, scope, 0)
            }
            7 if !scope.constant => self.dice.one_of(CONNECTIONS_OWN).to_owned(),
            _ => self.literal(scope),
        }
    }

    fn column(&mut self, scope: Scope<'_>) -> String {
        match self.dice.pick(scope.columns) {
            Some(column) => column.clone(),
            None => self.literal(scope),
        }
    }

    /// A constant, written into the text or bound to it.
    pub fn literal(&mut self, scope: Scope<'_>) -> String {
        if scope.constant || !self.dice.one_in(5) {
            return self.dice.one_of(LITERALS).to_owned();
        }
        let value = self.value();
        self.bind(value)
    }

    /// A value as it is bound.
    pub fn value(&mut self) -> Value {
        let number = self.dice.below(20);
        match self.dice.below(9) {
            0 => Value::Null,
            1 => Value::Real([0.5, -0.0, f64::INFINITY, f64::NAN, 1e17, 3.0][number as usize % 6]),
            2 => Value::Integer([i64::MAX, i64::MIN, i64::MAX - 1, 1 << 53][number as usize % 4]),
            3 => Value::Blob(vec![number as u8; number as usize % 4]),
            4 => {
                Value::Text(["", "\u{1f600}", "Stra\u{df}e", "a\0b", "12", "two words"][number as usize % 6].to_owned())
            }
            _ => Value::Integer(number as i64),
        }
    }

    /// Something that fits a column, mostly.
    pub fn fitting(&mut self, column: &Column, scope: Scope<'_>) -> String {
        if self.dice.one_in(6) {
            return self.expression(scope, 2);
        }
        let number = self.dice.below(40);
        let kind = column.kind.to_ascii_uppercase();
        if kind.contains("INT") {
            // Few numbers for a key, so that they meet; and rarely the one that no rowid may have.
            match self.dice.below(40) {
                0 => "9223372036854775807".to_owned(),
                _ if column.key => (number % 15).to_string(),
                _ => number.to_string(),
            }
        } else if kind.contains("CHAR") || kind.contains("TEXT") {
            let word = self.dice.one_of(&["one", "Two", "three words here", "\u{e4}", ""]);
            format!("'{word}{}'", number % 9)
        } else if kind.contains("BLOB") {
            format!("x'{number:02}'")
        } else if kind.contains("REAL") || kind.contains("NUM") || kind.contains("DEC") {
            format!("{number}.{}", number % 4)
        } else {
            self.literal(scope)
        }
    }
}
