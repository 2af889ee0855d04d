//! Answers to questions about the schema.

use prost_types::{Struct, Value};

use crate::database::State;
use crate::encode::Dialect;

/// Columns by name and type code, and rows.
pub(crate) type Found = (Vec<(String, String)>, Vec<Vec<Value>>);

/// The answer to a query of the information schema, of those that are known.
pub(crate) fn answer(_: &State, _: Dialect, _: &str, _: Option<&Struct>) -> Option<Found> {
    None
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
