//! Values of users for the parameters of their statements.

use d3b::{Arguments, Code, Rejection, Value};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{ErrorCode, Statement};

/// Binds arguments to a statement's parameters.
///
/// # Errors
/// Too few or too many of them, names that the statement does not have, parameters without a value, values that are
/// too long.
pub(crate) fn bind(statement: &mut Statement<'_>, arguments: &Arguments) -> Result<(), Rejection> {
    let expected = statement.parameter_count();
    match arguments {
        Arguments::Positional(values) => {
            if values.len() != expected {
                return Err(Rejection::new(
                    Code::BadRequest,
                    format!("the statement has {expected} parameters, and {} arguments were given", values.len()),
                ));
            }
            values.iter().enumerate().try_for_each(|(index, value)| bind_one(statement, index + 1, value))
        }
        Arguments::Named(values) => bind_named(statement, values, expected),
    }
}

fn bind_named(statement: &mut Statement<'_>, values: &[(String, Value)], expected: usize) -> Result<(), Rejection> {
    let refuse = |detail: String| Err(Rejection::new(Code::BadRequest, detail));
    let mut bound = vec![false; expected];
    for (name, value) in values {
        // Names of parameters hold no NUL, which the search could not look for.
        let index = if name.contains('\0') { None } else { statement.parameter_index(name).ok().flatten() };
        let Some(index) = index else {
            return refuse(format!("the statement has no parameter {name:?}"));
        };
        if std::mem::replace(&mut bound[index - 1], true) {
            return refuse(format!("the argument {name:?} was given twice"));
        }
        bind_one(statement, index, value)?;
    }
    match bound.iter().position(|bound| !bound) {
        None => Ok(()),
        Some(index) => match statement.parameter_name(index + 1) {
            Some(name) => refuse(format!("no argument was given for the parameter {name}")),
            None => refuse("the statement has parameters without names, and the arguments have names".to_owned()),
        },
    }
}

fn bind_one(statement: &mut Statement<'_>, index: usize, value: &Value) -> Result<(), Rejection> {
    let value = match value {
        Value::Null => ValueRef::Null,
        Value::Integer(integer) => ValueRef::Integer(*integer),
        Value::Real(real) => ValueRef::Real(*real),
        Value::Text(text) => ValueRef::Text(text.as_bytes()),
        Value::Blob(bytes) => ValueRef::Blob(bytes),
    };
    statement.raw_bind_parameter(index, ToSqlOutput::Borrowed(value)).map_err(|error| {
        let too_big = error.sqlite_error_code() == Some(ErrorCode::TooBig);
        let code = if too_big { Code::TooLarge } else { Code::BadRequest };
        Rejection::new(code, format!("argument {index} cannot be bound: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn arguments_fit_their_parameters() {
        let connection = Connection::open_in_memory().unwrap();
        let try_bind = |sql: &str, arguments: Arguments| {
            let mut statement = connection.prepare(sql).unwrap();
            bind(&mut statement, &arguments).map_err(|rejection| rejection.detail)
        };
        let named = |names: &[&str]| {
            Arguments::Named(names.iter().map(|name| ((*name).to_owned(), Value::Integer(1))).collect())
        };
        let positional = |count| Arguments::Positional(vec![Value::Null; count]);
        assert_eq!(try_bind("SELECT ?, ?", positional(2)), Ok(()));
        assert_eq!(try_bind("SELECT ?2", positional(2)), Ok(()));
        assert_eq!(try_bind("SELECT :a, $b, @c, :a", named(&[":a", "@c", "$b"])), Ok(()));
        assert_eq!(try_bind("SELECT 1", named(&[])), Ok(()));
        for (sql, arguments, problem) in [
            ("SELECT ?", positional(2), "1 parameters, and 2 arguments"),
            ("SELECT ?", positional(0), "1 parameters, and 0 arguments"),
            ("SELECT :a", named(&[":a", ":b"]), "no parameter \":b\""),
            ("SELECT :a", named(&["a"]), "no parameter \"a\""),
            ("SELECT :a", named(&[":a", ":a"]), "given twice"),
            ("SELECT :a, :b", named(&[":a"]), "parameter :b"),
            ("SELECT :a, ?", named(&[":a"]), "without names"),
            ("SELECT :a", named(&[":a\0"]), "no parameter"),
        ] {
            let detail = try_bind(sql, arguments).unwrap_err();
            assert!(detail.contains(problem), "{detail}");
        }
    }
}
