//! What differs between the two dialects, as far as a target is concerned.

use crate::client::{Kind, SpannerValue, Statement};

/// Which SQL a database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Dialect {
    Google,
    Postgres,
}

impl Dialect {
    /// By the option `database_dialect`.
    pub(crate) fn named(name: &str) -> Self {
        if name == "POSTGRESQL" { Self::Postgres } else { Self::Google }
    }

    /// A name as SQL. Names have letters, digits and underscores: nothing in them needs an escape.
    pub(crate) fn quoted(self, name: &str) -> String {
        match self {
            Self::Google => format!("`{}`", name.replace('`', "")),
            Self::Postgres => format!("\"{}\"", name.replace('"', "\"\"")),
        }
    }

    /// The schema of tables without one.
    pub(crate) fn default_schema(self) -> &'static str {
        match self {
            Self::Google => "",
            Self::Postgres => "public",
        }
    }

    /// A parameter by its number, from 1. Its name is `p1` in both.
    pub(crate) fn param(self, number: usize) -> String {
        match self {
            Self::Google => format!("@p{number}"),
            Self::Postgres => format!("${number}"),
        }
    }

    /// A statement whose question marks are parameters, in order.
    pub(crate) fn statement(self, sql: &str, values: Vec<(Kind, SpannerValue)>) -> Statement {
        let mut text = String::with_capacity(sql.len() + 8);
        let mut number = 0;
        for letter in sql.chars() {
            if letter == '?' {
                number += 1;
                text.push_str(&self.param(number));
            } else {
                text.push(letter);
            }
        }
        let bind = |s: Statement, (n, (kind, value))| s.bind(format!("p{}", n + 1), kind, value);
        values.into_iter().enumerate().fold(Statement::new(text), bind)
    }
}

/// A parameter of the type STRING.
pub(crate) fn string(text: &str) -> (Kind, SpannerValue) {
    (Kind::String, text.into())
}

/// A parameter of the type INT64.
pub(crate) fn int64(number: i64) -> (Kind, SpannerValue) {
    (Kind::Int64, number.into())
}
