//! The session file of the Spanner migration tool (its `internal/convert.go`): which Spanner table and
//! column came from which table and column of the source.
//!
//! `SpSchema`, `SrcSchema` and `SyntheticPKeys` are read; tables and columns are matched by their ids.

use std::collections::BTreeMap;
use std::path::Path;

use anabranch_core::{Error, Result};
use serde::Deserialize;

use crate::mapping::{Columns, Rules, TableRule};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Session {
    sp_schema: BTreeMap<String, Table>,
    src_schema: BTreeMap<String, Table>,
    #[serde(rename = "SyntheticPKeys")]
    synthetic_keys: BTreeMap<String, SyntheticKey>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Table {
    name: String,
    #[serde(default)]
    schema: String,
    #[serde(default)]
    shard_id_column: String,
    #[serde(default)]
    primary_keys: Option<Vec<KeyColumn>>,
    col_defs: BTreeMap<String, Column>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct KeyColumn {
    col_id: String,
    #[serde(default)]
    order: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Column {
    name: String,
    #[serde(default)]
    generated_column: Option<Generated>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Generated {
    #[serde(default)]
    is_present: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SyntheticKey {
    col_id: String,
}

/// The rules of a session file.
///
/// # Errors
/// [`Config`](anabranch_core::ErrorKind::Config), naming the file and what in it is wrong.
pub(crate) fn read(path: &Path) -> Result<Rules> {
    let wrong = |problem: String| Error::config("transform.file", format!("{}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong("cannot be read".to_owned()).because(e))?;
    parse(&text).map_err(|problem| {
        wrong(problem).hint("it must be a session file of the Spanner migration tool, \"....session.json\"")
    })
}

pub(crate) fn parse(text: &str) -> Result<Rules, String> {
    let session: Session = serde_json::from_str(text).map_err(|e| format!("line {}: {e}", e.line()))?;
    let mut tables = BTreeMap::new();
    for (id, spanner) in &session.sp_schema {
        if spanner.name.is_empty() {
            return Err(format!("SpSchema.{id}: Name is empty"));
        }
        let rule = match session.src_schema.get(id) {
            // A table that was made in Spanner: there is nothing to send it back to.
            None => None,
            Some(source) => Some(table(id, spanner, source, session.synthetic_keys.get(id))?),
        };
        if tables.insert(spanner.name.clone(), rule).is_some() {
            return Err(format!("SpSchema has two tables with the Name {}", spanner.name));
        }
    }
    Ok(Rules { tables: Some(tables), ..Rules::default() })
}

fn table(id: &str, spanner: &Table, source: &Table, synthetic: Option<&SyntheticKey>) -> Result<TableRule, String> {
    let mut names = BTreeMap::new();
    for (column, there) in &spanner.col_defs {
        let is_synthetic = synthetic.is_some_and(|s| s.col_id == *column);
        let generated = |c: &&Column| c.generated_column.as_ref().is_some_and(|g| g.is_present);
        let to = source.col_defs.get(column).filter(|c| !is_synthetic && !generated(c)).map(|c| c.name.clone());
        if names.insert(there.name.clone(), to).is_some() {
            return Err(format!("SpSchema.{id} ({}) has two columns with the Name {}", spanner.name, there.name));
        }
    }
    let shard = match spanner.shard_id_column.as_str() {
        "" => None,
        column => {
            let known = spanner.col_defs.get(column);
            Some(known.ok_or(format!("SpSchema.{id} ({}): ShardIdColumn {column} is no column of it", spanner.name))?)
        }
    };
    let mut keys: Vec<&KeyColumn> = source.primary_keys.iter().flatten().collect();
    keys.sort_by_key(|k| k.order);
    let mut key = Vec::with_capacity(keys.len());
    for k in keys {
        let column = source.col_defs.get(&k.col_id);
        let column = column.ok_or_else(|| {
            format!("SrcSchema.{id} ({}): the key column {} is no column of it", source.name, k.col_id)
        })?;
        if !spanner.col_defs.contains_key(&k.col_id) {
            return Err(format!(
                "SrcSchema.{id} ({}): the key column {} has no column in Spanner, so no row can be found by it",
                source.name, column.name
            ));
        }
        key.push(column.name.clone());
    }
    if key.is_empty() {
        return Err(format!("SrcSchema.{id} ({}) has no primary key: its rows cannot be told apart", source.name));
    }
    Ok(TableRule {
        schema: Some(source.schema.clone()).filter(|s| !s.is_empty()),
        name: source.name.clone(),
        columns: Columns::Listed(names),
        key: Some(key),
        shard: shard.map(|c| c.name.clone()),
    })
}
