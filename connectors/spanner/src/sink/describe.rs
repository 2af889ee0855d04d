//! Tables of the target, from the information schema.

use anabranch_core::{Error, Result};

use super::Shared;
use super::dialect::{Dialect, string};
use crate::client::{Row, SpannerValue};

/// A table as it is now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Described {
    pub(crate) name: String,
    pub(crate) columns: Vec<DescribedColumn>,
    /// The primary key's columns, in its order.
    pub(crate) key: Vec<String>,
    /// Unique indexes, by their columns.
    pub(crate) unique: Vec<Vec<String>>,
    /// The table that it is interleaved in.
    pub(crate) parent: Option<String>,
    /// Whether rows go with their parent's.
    pub(crate) cascades: bool,
    /// Tables that its foreign keys refer to.
    pub(crate) references: Vec<String>,
}

/// A column as it is now.
#[derive(Debug, Clone)]
pub(crate) struct DescribedColumn {
    pub(crate) name: String,
    /// `spanner_type`.
    pub(crate) native: String,
    pub(crate) nullable: bool,
    pub(crate) generated: bool,
    pub(crate) has_default: bool,
    pub(crate) commit_timestamp: bool,
}

const TABLE: &str = "SELECT parent_table_name, on_delete_action FROM information_schema.tables WHERE table_schema = ? AND table_name = ?";
const COLUMNS: &str = "SELECT column_name, spanner_type, is_nullable, is_generated, column_default \
     FROM information_schema.columns WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position";
const OPTIONS: &str = "SELECT column_name, option_value FROM information_schema.column_options \
     WHERE table_schema = ? AND table_name = ? AND option_name = ?";
const INDEXES: &str =
    "SELECT index_name, is_unique FROM information_schema.indexes WHERE table_schema = ? AND table_name = ?";
const INDEX_COLUMNS: &str = "SELECT index_name, column_name, ordinal_position FROM information_schema.index_columns \
     WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position";
const CONSTRAINTS: &str = "SELECT constraint_name FROM information_schema.table_constraints \
     WHERE table_schema = ? AND table_name = ? AND constraint_type = ?";
const USAGE: &str = "SELECT table_name FROM information_schema.constraint_table_usage WHERE constraint_schema = ? AND constraint_name = ?";

/// The table of this name; `None` if there is none.
pub(crate) async fn table(shared: &Shared, name: &str) -> Result<Option<Described>> {
    let dialect = shared.dialect().await?;
    let ask = async |sql: &str, more: &[&str]| {
        let values = [dialect.default_schema(), name].iter().chain(more).map(|t| string(t)).collect();
        shared.query(dialect.statement(sql, values), "cannot read the information schema").await
    };
    let Some(row) = ask(TABLE, &[]).await?.into_iter().next() else { return Ok(None) };
    let mut table = Described {
        name: name.to_owned(),
        parent: text(&row, 0).filter(|p| !p.is_empty()),
        cascades: text(&row, 1).as_deref() == Some("CASCADE"),
        ..Described::default()
    };
    table.columns = ask(COLUMNS, &[]).await?.iter().map(column).collect();
    for row in ask(OPTIONS, &["allow_commit_timestamp"]).await? {
        let named = text(&row, 0).filter(|_| text(&row, 1).is_some_and(|v| v.eq_ignore_ascii_case("true")));
        if let Some(column) = table.columns.iter_mut().find(|c| Some(&c.name) == named.as_ref()) {
            column.commit_timestamp = true;
        }
    }
    let indexes = ask(INDEXES, &[]).await?;
    let parts = ask(INDEX_COLUMNS, &[]).await?;
    for index in &indexes {
        let name = text(index, 0);
        // Stored columns have no place.
        let columns = parts.iter().filter(|r| text(r, 0) == name && !r.get(2).is_none_or(SpannerValue::is_null));
        let columns: Vec<String> = columns.filter_map(|r| text(r, 1)).collect();
        if name.as_deref() == Some("PRIMARY_KEY") {
            table.key = columns;
        } else if yes(index, 1) {
            table.unique.push(columns);
        }
    }
    let foreign = ask(CONSTRAINTS, &["FOREIGN KEY"]).await?;
    for constraint in foreign.iter().filter_map(|row| text(row, 0)) {
        let values = vec![string(dialect.default_schema()), string(&constraint)];
        let usage = shared.query(dialect.statement(USAGE, values), "cannot read the information schema").await?;
        table.references.extend(usage.iter().filter_map(|row| text(row, 0)));
    }
    table.references.extend(table.parent.clone());
    table.references.sort();
    table.references.dedup();
    Ok(Some(table))
}

/// Whether there is a table of this name.
pub(crate) async fn exists(shared: &Shared, name: &str) -> Result<bool> {
    let dialect = shared.dialect().await?;
    let values = vec![string(dialect.default_schema()), string(name)];
    let rows = shared.query(dialect.statement(TABLE, values), "cannot read the information schema").await?;
    Ok(!rows.is_empty())
}

fn column(row: &Row) -> DescribedColumn {
    DescribedColumn {
        name: text(row, 0).unwrap_or_default(),
        native: text(row, 1).unwrap_or_default(),
        nullable: yes(row, 2),
        generated: text(row, 3).is_some_and(|g| g.eq_ignore_ascii_case("ALWAYS")),
        has_default: row.get(4).is_some_and(|d| !d.is_null()),
        // In the PostgreSQL dialect it is a type of its own.
        commit_timestamp: text(row, 1).as_deref() == Some("spanner.commit_timestamp"),
    }
}

fn text(row: &Row, at: usize) -> Option<String> {
    row.get(at).and_then(SpannerValue::as_text).map(str::to_owned)
}

/// A truth value: BOOL in one dialect, `YES` in the other.
fn yes(row: &Row, at: usize) -> bool {
    match row.get(at) {
        Some(SpannerValue::Bool(value)) => *value,
        Some(SpannerValue::Text(text)) => text == "YES" || text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

impl Described {
    pub(crate) fn column(&self, name: &str) -> Option<&DescribedColumn> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// How many tables it lies in: a parent's rows are written before its children's.
    pub(crate) async fn depth(&self, shared: &Shared) -> Result<usize> {
        let mut depth = 0;
        let mut parent = self.parent.clone();
        while let Some(name) = parent {
            depth += 1;
            if depth > 16 {
                return Err(Error::fatal(format!("{}: the information schema has a circle of parents", self.name)));
            }
            let dialect = shared.dialect().await?;
            let values = vec![string(dialect.default_schema()), string(&name)];
            let rows = shared.query(dialect.statement(TABLE, values), "cannot read the information schema").await?;
            parent = rows.first().and_then(|row| text(row, 0)).filter(|p| !p.is_empty());
        }
        Ok(depth)
    }
}

/// How to create the tables that the sink keeps for itself: columns by name and GoogleSQL type, and
/// how many of them are the key.
pub(crate) fn bookkeeping(dialect: Dialect, table: &str, columns: &[(&str, &str)], key: usize) -> String {
    let name_of = |n: &str| match (dialect, n) {
        (Dialect::Google, n) => n.to_owned(),
        (Dialect::Postgres, "INT64 NOT NULL") => "bigint NOT NULL".to_owned(),
        (Dialect::Postgres, "INT64") => "bigint".to_owned(),
        (Dialect::Postgres, "TIMESTAMP NOT NULL") => "timestamptz NOT NULL".to_owned(),
        (Dialect::Postgres, n) => n.replace("STRING(MAX)", "varchar"),
    };
    let lines: Vec<String> = columns.iter().map(|(name, kind)| format!("{name} {}", name_of(kind))).collect();
    let keys: Vec<&str> = columns.iter().take(key).map(|(name, _)| *name).collect();
    let (lines, keys) = (lines.join(", "), keys.join(", "));
    match dialect {
        Dialect::Google => format!("CREATE TABLE IF NOT EXISTS {table} ({lines}) PRIMARY KEY ({keys})"),
        Dialect::Postgres => format!("CREATE TABLE IF NOT EXISTS {table} ({lines}, PRIMARY KEY ({keys}))"),
    }
}
