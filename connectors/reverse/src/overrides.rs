//! The other forms of a mapping: everything keeps its name, except for what is named.

use std::collections::BTreeMap;
use std::path::Path;

use anabranch_core::{Error, Result};
use serde::Deserialize;

use crate::mapping::{Columns, Rules, TableRule};

/// `schemaOverridesFilePath` of the template: from a source's name to the name in Spanner.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    /// Source table to Spanner table.
    #[serde(default)]
    renamed_tables: BTreeMap<String, String>,
    /// Source table to source column to Spanner column.
    #[serde(default)]
    renamed_columns: BTreeMap<String, BTreeMap<String, String>>,
}

/// The rules of an overrides file.
pub(crate) fn read(path: &Path) -> Result<Rules> {
    let wrong = |problem: String| Error::config("transform.overrides_file", format!("{}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong("cannot be read".to_owned()).because(e))?;
    let file: File = serde_json::from_str(&text).map_err(|e| {
        wrong(format!("line {}: {e}", e.line()))
            .hint("the form is {\"renamedTables\": {\"source\": \"spanner\"}, \"renamedColumns\": {\"source\": {\"a\": \"b\"}}}")
    })?;
    rules(file.renamed_tables, file.renamed_columns).map_err(wrong)
}

/// `tableOverrides=[{Source, Spanner}]` and `columnOverrides=[{Source.a, Source.b}]` of the template.
pub(crate) fn parse(tables: &str, columns: &str) -> Result<Rules> {
    let mut renamed: BTreeMap<String, String> = BTreeMap::new();
    for (from, to) in pairs("transform.table_overrides", tables)? {
        renamed.insert(from, to);
    }
    let key = "transform.column_overrides";
    let mut renamed_columns: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (from, to) in pairs(key, columns)? {
        let dotted = |name: &str| name.split_once('.').map(|(t, c)| (t.trim().to_owned(), c.trim().to_owned()));
        let (Some((table, column)), Some((same, new))) = (dotted(&from), dotted(&to)) else {
            return Err(Error::config(key, format!("{{{from}, {to}}} does not name table.column twice")));
        };
        if table != same {
            return Err(Error::config(key, format!("{{{from}, {to}}} names two tables: a column stays in its own")));
        }
        renamed_columns.entry(table).or_default().insert(column, new);
    }
    rules(renamed, renamed_columns).map_err(|problem| Error::config("transform.table_overrides", problem))
}

/// The pairs of `[{a, b}, {c, d}]`.
fn pairs(key: &str, text: &str) -> Result<Vec<(String, String)>> {
    let wrong = || Error::config(key, "must be written [{Source, Spanner}, {Source2, Spanner2}]");
    let text = text.trim();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or_else(wrong)?;
    let mut pairs = Vec::new();
    let mut rest = inner.trim();
    while !rest.is_empty() {
        let open = rest.strip_prefix('{').ok_or_else(wrong)?;
        let (pair, after) = open.split_once('}').ok_or_else(wrong)?;
        let (from, to) = pair.split_once(',').ok_or_else(wrong)?;
        let (from, to) = (from.trim(), to.trim());
        if from.is_empty() || to.is_empty() {
            return Err(wrong());
        }
        pairs.push((from.to_owned(), to.to_owned()));
        rest = after.trim().trim_start_matches(',').trim();
    }
    Ok(pairs)
}

/// The files and keys go from the source to Spanner; the rules go back.
fn rules(
    tables: BTreeMap<String, String>,
    mut columns: BTreeMap<String, BTreeMap<String, String>>,
) -> Result<Rules, String> {
    let mut back: BTreeMap<String, TableRule> = BTreeMap::new();
    let unnamed = columns.keys().filter(|t| !tables.contains_key(*t)).map(|t| (t.clone(), t.clone()));
    let all: Vec<(String, String)> = tables.clone().into_iter().chain(unnamed.collect::<Vec<_>>()).collect();
    for (source, spanner) in all {
        let mut renamed = BTreeMap::new();
        for (from, to) in columns.remove(&source).unwrap_or_default() {
            if renamed.insert(to.clone(), from).is_some() {
                return Err(format!("two columns of {source} are renamed to {to}"));
            }
        }
        let columns = Columns::Renamed(renamed);
        let rule = TableRule { schema: None, name: source, columns, key: None, shard: None };
        if back.insert(spanner.clone(), rule).is_some() {
            return Err(format!("two tables are renamed to {spanner}"));
        }
    }
    Ok(Rules { renamed: back, ..Rules::default() })
}
