//! The three targets: how a value of a type is read from each, and what it must be.

use std::path::PathBuf;

use anabranch::{MySql, Pipeline, PipelineBuilder, PostgresSink, Sqlite};
use anabranch_servers::{MariaServer, PgServer, PgVersion};
use rusqlite::types::ValueRef;
use tempfile::TempDir;

use super::DB;
use super::values::TYPES;
use crate::pipelines::Tested;

/// A row: the text of each value, `None` for NULL.
pub(super) type Row = Vec<Option<String>>;

/// Where a pipeline writes to.
pub(super) enum Side {
    Postgres(PgServer),
    MySql(MariaServer),
    Sqlite(TempDir),
}

/// What the session of a source prints canonical text with.
const CANONICAL: &str = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET lc_monetary = 'C'; SET bytea_output = 'hex'; \
                         SET search_path = pg_catalog; SET extra_float_digits = 3;";

/// The rows of a table in PostgreSQL, canonical.
pub(super) fn postgres_rows(server: &PgServer, table: &str, columns: &[Column]) -> Tested<Vec<Row>> {
    let names: Vec<&str> = columns.iter().map(|c| c.name).collect();
    Ok(server.exec(DB, &format!("{CANONICAL} SELECT {} FROM public.{table}", names.join(", ")))?)
}

/// A column, by its name and its type in the source.
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) native: &'static str,
}

/// What tells how a type is represented outside PostgreSQL.
enum Shape {
    Bool,
    Float,
    /// A number that the target may show with more zeros.
    Decimal,
    Bytes,
    /// Digits of the second are filled up.
    Time,
    Bits,
    Text,
}

fn shape(native: &str) -> Shape {
    if native.ends_with("[]") {
        return Shape::Text;
    }
    match native.split('(').next().unwrap_or(native) {
        "boolean" => Shape::Bool,
        "real" | "double precision" => Shape::Float,
        "numeric" | "public.price" => Shape::Decimal,
        "bytea" => Shape::Bytes,
        "time" | "timestamp" | "timestamptz" => Shape::Time,
        "bit" if native != "bit(70)" => Shape::Bits,
        _ => Shape::Text,
    }
}

impl Side {
    /// The sides whose servers are there; a missing one has said so.
    pub(super) fn all() -> Tested<Vec<Self>> {
        let mut sides = vec![Self::Sqlite(tempfile::tempdir()?)];
        if let Some(server) = anabranch_servers::mariadb() {
            server.create_db(DB)?;
            sides.insert(0, Self::MySql(server));
        }
        if let Some(server) = anabranch_servers::postgres(PgVersion::Any) {
            server.create_db(DB)?;
            server.exec(DB, TYPES)?;
            sides.insert(0, Self::Postgres(server));
        }
        Ok(sides)
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "PostgreSQL",
            Self::MySql(_) => "MySQL",
            Self::Sqlite(_) => "SQLite",
        }
    }

    /// Word for a slot or a pipeline.
    pub(super) fn word(&self) -> String {
        self.name().to_ascii_lowercase()
    }

    /// A pipeline to it that creates tables.
    pub(super) fn pipeline(&self, name: &str) -> PipelineBuilder {
        let builder = Pipeline::builder(name).create_tables(true);
        match self {
            Self::Postgres(server) => builder.sink(PostgresSink::new(server.url(DB))),
            Self::MySql(server) => builder.sink(MySql::new(server.url(DB))),
            Self::Sqlite(_) => builder.sink(Sqlite::open(self.file())),
        }
    }

    fn file(&self) -> PathBuf {
        match self {
            Self::Sqlite(folder) => folder.path().join("target.db"),
            _ => PathBuf::new(),
        }
    }

    /// The rows of a table, each value in a form that [`Side::expected`] gives too.
    pub(super) fn rows(&self, table: &str, columns: &[Column]) -> Tested<Vec<Row>> {
        match self {
            Self::Postgres(server) => postgres_rows(server, table, columns),
            Self::MySql(server) => mysql_rows(server, table, columns),
            Self::Sqlite(_) => sqlite_rows(self.file(), table, columns),
        }
    }

    /// What becomes of a canonical text of the source.
    pub(super) fn expected(&self, native: &str, text: &str) -> Tested<String> {
        Ok(match (self, shape(native)) {
            (Self::Postgres(_), _) => text.to_owned(),
            (_, Shape::Bool) => if text == "t" { "1" } else { "0" }.to_owned(),
            (Self::MySql(_), Shape::Float) => format!("{:?}", text.parse::<f64>()? + 0.0),
            (_, Shape::Float) if text == "NaN" => text.to_owned(),
            (_, Shape::Float) => format!("{:?}", text.parse::<f64>()?),
            (Self::MySql(_), Shape::Decimal) => without_zeros(text),
            (Self::MySql(_), Shape::Time) => micros(text.trim_end_matches("+00")),
            (Self::MySql(_), Shape::Bits) => u64::from_str_radix(text, 2)?.to_string(),
            _ => text.to_owned(),
        })
    }
}

/// The number without the zeros that change nothing.
fn without_zeros(text: &str) -> String {
    if !text.contains('.') {
        return text.to_owned();
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// With six digits after the second.
fn micros(text: &str) -> String {
    match text.split_once('.') {
        Some((head, digits)) => format!("{head}.{digits:0<6}"),
        None => format!("{text}.000000"),
    }
}

fn mysql_rows(server: &MariaServer, table: &str, columns: &[Column]) -> Tested<Vec<Row>> {
    let read: Vec<String> = columns
        .iter()
        .map(|c| match shape(c.native) {
            Shape::Bytes => format!("HEX({})", c.name),
            Shape::Bits => format!("HEX(CAST({}+0 AS CHAR))", c.name),
            _ => format!("HEX(CAST({} AS CHAR))", c.name),
        })
        .collect();
    let found = server.exec(DB, &format!("SELECT {} FROM {table}", read.join(", ")))?;
    let value = |(hex, column): (Option<String>, &Column)| -> Tested<Option<String>> {
        let Some(hex) = hex else { return Ok(None) };
        let text = match shape(column.native) {
            Shape::Bytes => return Ok(Some(format!("\\x{}", hex.to_lowercase()))),
            _ => String::from_utf8(unhex(&hex)?)?,
        };
        Ok(Some(match shape(column.native) {
            Shape::Float => format!("{:?}", text.parse::<f64>()?),
            Shape::Decimal => without_zeros(&text),
            _ => text,
        }))
    };
    found.into_iter().map(|row| row.into_iter().zip(columns).map(value).collect()).collect()
}

fn unhex(hex: &str) -> Tested<Vec<u8>> {
    (0..hex.len() / 2).map(|i| Ok(u8::from_str_radix(&hex[2 * i..2 * i + 2], 16)?)).collect()
}

fn sqlite_rows(file: PathBuf, table: &str, columns: &[Column]) -> Tested<Vec<Row>> {
    let db = rusqlite::Connection::open(file)?;
    let names: Vec<&str> = columns.iter().map(|c| c.name).collect();
    let mut statement = db.prepare(&format!("SELECT {} FROM {table}", names.join(", ")))?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let value = |i| -> Tested<Option<String>> {
            Ok(match row.get_ref(i)? {
                ValueRef::Null => None,
                ValueRef::Integer(v) => Some(v.to_string()),
                ValueRef::Real(v) => Some(format!("{v:?}")),
                ValueRef::Text(v) => Some(String::from_utf8(v.to_vec())?),
                ValueRef::Blob(v) => Some(v.iter().fold(String::from("\\x"), |s, b| format!("{s}{b:02x}"))),
            })
        };
        found.push((0..columns.len()).map(value).collect::<Tested<Row>>()?);
    }
    Ok(found)
}
