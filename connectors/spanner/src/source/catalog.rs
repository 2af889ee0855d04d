//! What the information schema tells: the dialect, the change stream, the tables that it watches.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use anabranch_core::{Column, Error, Result, TableName, TableSchema};

use crate::client::{Client, Instant, Kind, ReadAt, Row, SpannerResult, SpannerValue, Statement};
use crate::decode::{Capture, Form};
use crate::types::{data_type, kind_of_column};

/// Which SQL a database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Spanner's own.
    GoogleSql,
    /// PostgreSQL's.
    PostgreSql,
}

impl Dialect {
    /// An identifier, quoted exactly.
    pub(crate) fn quoted(self, name: &str) -> String {
        match self {
            Self::GoogleSql => format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`")),
            Self::PostgreSql => format!("\"{}\"", name.replace('"', "\"\"")),
        }
    }

    /// A table, quoted exactly.
    pub(crate) fn table(self, table: &TableName) -> String {
        match table.schema.as_str() {
            "" => self.quoted(&table.name),
            schema => format!("{}.{}", self.quoted(schema), self.quoted(&table.name)),
        }
    }

    /// The placeholder of the parameter `pN`.
    pub(crate) fn param(self, number: usize) -> String {
        match self {
            Self::GoogleSql => format!("@p{number}"),
            Self::PostgreSql => format!("${number}"),
        }
    }

    /// The schema of tables whose schema is not written.
    pub(crate) fn default_schema(self) -> &'static str {
        match self {
            Self::GoogleSql => "",
            Self::PostgreSql => "public",
        }
    }

    /// A table as change records and configurations write it: `name`, or `schema.name`.
    pub(crate) fn table_name(self, written: &str) -> TableName {
        match written.split_once('.') {
            Some((schema, name)) => TableName::new(schema, name),
            None => TableName::new(self.default_schema(), written),
        }
    }
}

/// A change stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stream {
    pub(crate) all: bool,
    pub(crate) capture: Capture,
    /// Seconds.
    pub(crate) retention: i64,
    pub(crate) mutable: bool,
    /// Options by which it leaves changes out.
    pub(crate) excludes: Vec<String>,
    watched: Vec<(TableName, Watch)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Watch {
    All,
    Columns(HashSet<String>),
}

/// Spanner's default `retention_period` is one day.
const RETENTION: i64 = 24 * 3600;

impl Stream {
    /// One that is about to be created.
    pub(crate) fn planned(tables: Vec<TableName>, retention: i64) -> Self {
        Self {
            all: tables.is_empty(),
            capture: Capture::NewRowAndOldValues,
            retention,
            mutable: false,
            excludes: Vec::new(),
            watched: tables.into_iter().map(|t| (t, Watch::All)).collect(),
        }
    }

    pub(crate) fn form(&self, dialect: Dialect) -> Form {
        match dialect {
            _ if self.mutable => Form::Proto,
            Dialect::GoogleSql => Form::Structs,
            Dialect::PostgreSql => Form::Json,
        }
    }

    fn watches(&self, table: &TableName, column: &str, key: bool) -> bool {
        self.all
            || self.watched.iter().any(|(t, watch)| match watch {
                _ if t != table => false,
                Watch::All => true,
                Watch::Columns(columns) => key || columns.contains(column),
            })
    }
}

/// A watched table.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) schema: Arc<TableSchema>,
    /// The types of its columns, in the schema's order.
    pub(crate) kinds: Arc<[Kind]>,
}

/// Tables that the sink, the checkpointer and the dead letters of this crate keep in a database for
/// themselves. A change stream for all tables has them, and a pipeline in the other direction must not
/// carry them back.
const OWN: [&str; 4] = ["anabranch_lane", "anabranch_position", "anabranch_checkpoint", "anabranch_dead_letter"];

/// Whether the table is one of this crate's own.
pub(crate) fn is_own(table: &TableName) -> bool {
    OWN.contains(&table.name.as_str()) && matches!(table.schema.as_str(), "" | "public")
}

/// Asks one database.
pub(crate) struct Catalog<'a> {
    client: &'a dyn Client,
    pub(crate) dialect: Dialect,
}

impl<'a> Catalog<'a> {
    pub(crate) async fn open(client: &'a dyn Client) -> Result<Self> {
        let sql = "SELECT option_value FROM information_schema.database_options \
                   WHERE option_name = 'database_dialect'";
        let rows =
            all(client, Statement::new(sql)).await.map_err(|e| e.into_core("cannot read the database's dialect"))?;
        let dialect = match rows.first().and_then(|r| r.first()).and_then(SpannerValue::as_text) {
            Some("POSTGRESQL") => Dialect::PostgreSql,
            _ => Dialect::GoogleSql,
        };
        Ok(Self { client, dialect })
    }

    /// Spanner's clock.
    pub(crate) async fn now(&self) -> Result<Instant> {
        now(self.client).await
    }

    /// The change stream of this name, if there is one.
    pub(crate) async fn stream(&self, name: &str) -> Result<Option<Stream>> {
        let of = |table: &str, columns: &str| {
            let sql = format!(
                "SELECT {columns} FROM information_schema.{table} WHERE change_stream_name = {}",
                self.dialect.param(1)
            );
            Statement::new(sql).bind("p1", Kind::String, name.into())
        };
        let found = self.rows(of("change_streams", &self.dialect.quoted("all"))).await?;
        let Some(found) = found.first() else { return Ok(None) };
        let all = match found.first() {
            Some(SpannerValue::Bool(all)) => *all,
            other => other.and_then(SpannerValue::as_text) == Some("YES"),
        };
        let mut columns: HashMap<TableName, HashSet<String>> = HashMap::new();
        for row in self.rows(of("change_stream_columns", "table_schema, table_name, column_name")).await? {
            let [schema, table, column] = texts(&row)?;
            columns.entry(TableName::new(schema, table)).or_default().insert(column.to_owned());
        }
        let mut watched = Vec::new();
        for row in self.rows(of("change_stream_tables", "table_schema, table_name, all_columns")).await? {
            let table = TableName::new(text(&row, 0)?, text(&row, 1)?);
            let whole = row.get(2).is_some_and(|v| v.as_bool() == Some(true) || v.as_text() == Some("YES"));
            let watch = if whole { Watch::All } else { Watch::Columns(columns.remove(&table).unwrap_or_default()) };
            watched.push((table, watch));
        }
        // Spanner's default; every option that is not written has its default.
        let (capture, retention, mutable) = (Capture::OldAndNewValues, RETENTION, false);
        let mut stream = Stream { all, capture, retention, mutable, excludes: Vec::new(), watched };
        for row in self.rows(of("change_stream_options", "option_name, option_value")).await? {
            let [option, value] = texts(&row)?;
            let unknown = || Error::fatal(format!("the change stream {name} has the unknown {option} {value:?}"));
            match option {
                "value_capture_type" => stream.capture = Capture::parse(value).ok_or_else(unknown)?,
                "retention_period" => stream.retention = seconds(value).ok_or_else(unknown)?,
                "partition_mode" => stream.mutable = value == "MUTABLE_KEY_RANGE",
                _ if option.starts_with("exclude_") && value.eq_ignore_ascii_case("true") => {
                    stream.excludes.push(option.to_owned());
                }
                _ => {}
            }
        }
        Ok(Some(stream))
    }

    /// The watched tables, by name, with the columns that are captured: those of the key, and what
    /// the database does not compute.
    pub(crate) async fn tables(&self, stream: &Stream) -> Result<BTreeMap<TableName, Table>> {
        let keys = self.keys().await?;
        let sql = format!(
            "SELECT table_schema, table_name, column_name, spanner_type, is_nullable, is_generated \
             FROM information_schema.columns WHERE {} ORDER BY table_schema, table_name, ordinal_position",
            self.users_own()
        );
        let mut tables: BTreeMap<TableName, (Vec<Column>, Vec<Kind>)> = BTreeMap::new();
        for row in self.rows(Statement::new(sql)).await? {
            let [schema, table, name, native] = texts(&row)?;
            let table = TableName::new(schema, table);
            let Some(key) = keys.get(&table).filter(|_| !is_own(&table)) else { continue };
            let is_key = key.iter().any(|k| k == name);
            let generated = text(&row, 5).unwrap_or("NEVER") != "NEVER";
            if (generated && !is_key) || !stream.watches(&table, name, is_key) {
                continue;
            }
            let (kind, limit) = kind_of_column(native).map_err(|problem| {
                Error::config(format!("the column {name} of {table}"), format!("has {problem}"))
                    .hint("watch the other columns of the table only")
            })?;
            let data_type = data_type(&kind, limit);
            let nullable = text(&row, 4)? == "YES";
            let column = Column { name: name.to_owned(), data_type, native: native.to_owned(), nullable, generated };
            let entry = tables.entry(table).or_default();
            entry.0.push(column);
            entry.1.push(kind);
        }
        let table = |(name, (columns, kinds)): (TableName, (Vec<Column>, Vec<Kind>))| {
            let place = |key: &String| columns.iter().position(|c| c.name == *key).map(|at| at as u16);
            let key = keys.get(&name).into_iter().flatten().filter_map(place).collect();
            let schema = Arc::new(TableSchema { name: name.clone(), columns, key });
            (name, Table { schema, kinds: kinds.into() })
        };
        Ok(tables.into_iter().map(table).collect())
    }

    /// The columns of each base table's primary key, in order.
    async fn keys(&self) -> Result<HashMap<TableName, Vec<String>>> {
        let sql = format!(
            "SELECT table_schema, table_name, column_name FROM information_schema.index_columns \
             WHERE index_type = 'PRIMARY_KEY' AND {} ORDER BY table_schema, table_name, ordinal_position",
            self.users_own()
        );
        let mut keys: HashMap<TableName, Vec<String>> = HashMap::new();
        for row in self.rows(Statement::new(sql)).await? {
            let [schema, table, column] = texts(&row)?;
            keys.entry(TableName::new(schema, table)).or_default().push(column.to_owned());
        }
        Ok(keys)
    }

    fn users_own(&self) -> &'static str {
        match self.dialect {
            Dialect::GoogleSql => "table_schema NOT IN ('INFORMATION_SCHEMA', 'SPANNER_SYS')",
            Dialect::PostgreSql => "table_schema NOT IN ('information_schema', 'spanner_sys', 'pg_catalog', 'spanner')",
        }
    }

    async fn rows(&self, statement: Statement) -> Result<Vec<Row>> {
        all(self.client, statement).await.map_err(|e| e.into_core("cannot read the information schema"))
    }
}

/// Spanner's clock.
pub(crate) async fn now(client: &dyn Client) -> Result<Instant> {
    let rows = all(client, Statement::new("SELECT CURRENT_TIMESTAMP")).await;
    let rows = rows.map_err(|e| e.into_core("cannot read Spanner's clock"))?;
    let text = rows.first().and_then(|r| r.first()).and_then(SpannerValue::as_text).unwrap_or_default();
    text.parse().map_err(|e| Error::fatal(format!("cannot read Spanner's clock: {e}")))
}

async fn all(client: &dyn Client, statement: Statement) -> SpannerResult<Vec<Row>> {
    let mut reader = client.query(statement, ReadAt::Strong).await?;
    let mut rows = Vec::new();
    while let Some(row) = reader.next().await? {
        rows.push(row);
    }
    Ok(rows)
}

fn text(row: &Row, at: usize) -> Result<&str> {
    let value = row.get(at).and_then(SpannerValue::as_text);
    value.ok_or_else(|| Error::fatal(format!("the information schema gave {row:?}")))
}

fn texts<const N: usize>(row: &Row) -> Result<[&str; N]> {
    let mut texts = [""; N];
    for (at, out) in texts.iter_mut().enumerate() {
        *out = text(row, at)?;
    }
    Ok(texts)
}

/// A period as Spanner's options write it: `36h`, `7d`.
pub(crate) fn seconds(text: &str) -> Option<i64> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read() {
        assert_eq!(seconds("36h"), Some(36 * 3600));
        assert_eq!(seconds("7d"), Some(7 * 86_400));
        for bad in ["", "7", "d", "7w", "-1d"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_quoted_exactly() {
        assert_eq!(Dialect::GoogleSql.table(&TableName::new("", "a`b")), "`a\\`b`");
        assert_eq!(Dialect::PostgreSql.table(&TableName::new("s", "a\"b")), "\"s\".\"a\"\"b\"");
        assert_eq!(Dialect::PostgreSql.table_name("t"), TableName::new("public", "t"));
        assert_eq!(Dialect::GoogleSql.table_name("s.t"), TableName::new("s", "t"));
    }
}
