//! The information schema, made of the tables and streams that a script has.

use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::database::State;
use crate::encode::{Dialect, of_kind, text};
use crate::rows::{Row, select};
use crate::stream::Mode;
use crate::table::Table;

/// Columns by name and type code, and rows.
pub(crate) type Found = (Vec<(String, String)>, Vec<Vec<Value>>);

/// The answer to `SELECT columns FROM information_schema.x WHERE ..`, of the views that are known.
pub(crate) fn answer(state: &State, dialect: Dialect, sql: &str, params: Option<&Struct>) -> Option<Found> {
    let lower = lower(&sql.replace(['`', '"'], ""));
    let at = lower.find("information_schema.")? + "information_schema.".len();
    let view: String = lower[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    let rows = view_rows(state, dialect, &view)?;
    let plain = lower.replacen(&format!("information_schema.{view}"), &view, 1);
    let (names, rows) = select(&plain, params, dialect, |table, _| (table == view).then_some(rows))?;
    Some((names.into_iter().map(|name| (name, "STRING".to_owned())).collect(), rows))
}

/// In lower case, but for literals.
fn lower(sql: &str) -> String {
    let part = |(at, part): (usize, &str)| if at % 2 == 0 { part.to_lowercase() } else { part.to_owned() };
    sql.split('\'').enumerate().map(part).collect::<Vec<_>>().join("'")
}

fn view_rows(state: &State, dialect: Dialect, view: &str) -> Option<Vec<Row>> {
    let schema = if dialect == Dialect::GoogleSql { "" } else { "public" };
    let tables = || state.tables.schemas.values();
    let row = |cells: &[(&str, Option<&str>)]| -> Row {
        cells.iter().map(|(name, value)| ((*name).to_owned(), value.map_or_else(null, text))).collect()
    };
    let of_table = |table: &Table, cells: &[(&str, Option<&str>)]| {
        let mut all = vec![("table_schema", Some(schema)), ("table_name", Some(table.name.as_str()))];
        all.extend_from_slice(cells);
        row(&all)
    };
    Some(match view {
        "database_options" => {
            let name = if dialect == Dialect::GoogleSql { "GOOGLE_STANDARD_SQL" } else { "POSTGRESQL" };
            vec![
                row(&[
                    ("option_name", Some("database_dialect")),
                    ("option_value", Some(name)),
                    ("schema_name", Some("")),
                ]),
                row(&[
                    ("option_name", Some("version_retention_period")),
                    ("option_value", Some("1h")),
                    ("schema_name", Some("")),
                ]),
            ]
        }
        "tables" => {
            let cells = [("parent_table_name", None), ("on_delete_action", None), ("table_type", Some("BASE TABLE"))];
            tables().map(|t| of_table(t, &cells)).collect()
        }
        "columns" => tables().flat_map(|t| columns(t, schema)).collect(),
        "indexes" => {
            let cells =
                [("index_name", Some("PRIMARY_KEY")), ("index_type", Some("PRIMARY_KEY")), ("is_unique", Some("YES"))];
            tables().map(|t| of_table(t, &cells)).collect()
        }
        "index_columns" => {
            let key = |t: &Table| t.columns.iter().filter(|c| c.key).cloned().collect::<Vec<_>>();
            let one = |t: &Table, at: usize, name: &str| {
                let place = (at + 1).to_string();
                let cells = [
                    ("index_name", Some("PRIMARY_KEY")),
                    ("column_name", Some(name)),
                    ("ordinal_position", Some(place.as_str())),
                ];
                let mut all = of_table(t, &cells);
                all.insert("index_type".to_owned(), text("PRIMARY_KEY"));
                all
            };
            tables()
                .flat_map(|t| {
                    key(t).into_iter().enumerate().map(move |(at, c)| one(t, at, &c.name)).collect::<Vec<_>>()
                })
                .collect()
        }
        "change_streams" => {
            let cells = |name: &str| {
                row(&[("change_stream_schema", Some(schema)), ("change_stream_name", Some(name)), ("all", Some("YES"))])
            };
            state.streams.keys().map(|name| cells(name)).collect()
        }
        "change_stream_options" => {
            let options = |stream: &crate::stream::Stream| {
                let mode = match stream.mode {
                    Mode::Immutable => "IMMUTABLE_KEY_RANGE",
                    Mode::MutableKeyRange => "MUTABLE_KEY_RANGE",
                };
                let option = |name: &str, value: &str| {
                    row(&[
                        ("change_stream_schema", Some(schema)),
                        ("change_stream_name", Some(&stream.name)),
                        ("option_name", Some(name)),
                        ("option_value", Some(value)),
                    ])
                };
                let more = stream.options.iter().map(|(name, value)| option(name, value)).collect::<Vec<_>>();
                [
                    option("value_capture_type", stream.capture.name()),
                    option("retention_period", "7d"),
                    option("partition_mode", mode),
                    option("allow_txn_exclusion", if stream.allow_exclusion { "true" } else { "false" }),
                ]
                .into_iter()
                .chain(more)
                .collect::<Vec<_>>()
            };
            state.streams.values().flat_map(options).collect()
        }
        "column_options"
        | "table_constraints"
        | "constraint_table_usage"
        | "change_stream_tables"
        | "change_stream_columns"
        | "referential_constraints"
        | "key_column_usage"
        | "constraint_column_usage" => Vec::new(),
        _ => return None,
    })
}

fn columns(table: &Table, schema: &str) -> Vec<Row> {
    let one = |(at, column): (usize, &crate::table::Column)| -> Row {
        let nullable = if column.key { "NO" } else { "YES" };
        let place = (at + 1).to_string();
        let cells = [
            ("table_schema", schema),
            ("table_name", &table.name),
            ("column_name", &column.name),
            ("ordinal_position", &place),
            ("spanner_type", &column.ddl),
            ("is_nullable", nullable),
            ("is_generated", "NEVER"),
        ];
        let mut row: Row = cells.iter().map(|(name, value)| ((*name).to_owned(), text(*value))).collect();
        for name in ["column_default", "generation_expression", "is_stored"] {
            row.insert(name.to_owned(), null());
        }
        row
    };
    table.columns.iter().enumerate().map(one).collect()
}

fn null() -> Value {
    of_kind(Kind::NullValue(0))
}

/// The columns of a `SELECT`, with the types that the tables give them.
pub(crate) fn typed(state: &State, sql: &str, names: Vec<String>) -> Vec<(String, String)> {
    let plain = sql.replace(['`', '"', '\n'], " ");
    let table = plain.split(" FROM ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    let schema = state.tables.schemas.get(table);
    let code = |name: &str| {
        let column = schema.and_then(|s| s.find(name)).map(|(_, c)| &c.kind);
        let code = |kind: &serde_json::Value| kind["code"].as_str().unwrap_or("STRING").to_owned();
        match column {
            Some(kind) if code(kind) == "ARRAY" => format!("ARRAY<{}>", code(&kind["array_element_type"])),
            Some(kind) => code(kind),
            None => "STRING".to_owned(),
        }
    };
    names.into_iter().map(|name| (name.clone(), code(&name))).collect()
}
