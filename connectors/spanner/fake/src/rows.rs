//! The rows of ordinary tables: what mutations write, and simple queries read.

use std::collections::BTreeMap;

use googleapis_tonic_google_spanner_v1::google::spanner::v1::mutation::{Operation, Write};
use googleapis_tonic_google_spanner_v1::google::spanner::v1::{KeySet, Mutation};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tonic::Status;

use crate::encode::{Dialect, of_kind};
use crate::query::plain;
use crate::table::Table;

/// A row, by the names of its columns.
pub type Row = BTreeMap<String, Value>;

/// The rows of one table, by the text of their keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows(BTreeMap<Vec<String>, Row>);

/// What a mutation did to a row: before and after.
#[derive(Debug, Clone)]
pub(crate) struct Effect {
    pub(crate) table: String,
    pub(crate) before: Option<Row>,
    pub(crate) after: Option<Row>,
}

/// All tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    pub(crate) schemas: BTreeMap<String, Table>,
    rows: BTreeMap<String, Rows>,
}

impl Tables {
    /// The rows of a table, in the order of their keys.
    pub(crate) fn rows(&self, table: &str) -> Vec<Row> {
        self.rows.get(table).map(|rows| rows.0.values().cloned().collect()).unwrap_or_default()
    }

    /// Applies mutations in order; on an error none of them.
    pub(crate) fn apply(&mut self, mutations: &[Mutation]) -> Result<Vec<Effect>, Status> {
        let mut next = self.clone();
        let mut effects = Vec::new();
        for mutation in mutations {
            match &mutation.operation {
                Some(Operation::Insert(write)) => next.write(write, How::Insert, &mut effects)?,
                Some(Operation::Update(write)) => next.write(write, How::Update, &mut effects)?,
                Some(Operation::InsertOrUpdate(write)) => next.write(write, How::Upsert, &mut effects)?,
                Some(Operation::Replace(write)) => next.write(write, How::Replace, &mut effects)?,
                Some(Operation::Delete(delete)) => {
                    next.delete(&delete.table, delete.key_set.as_ref(), &mut effects)?;
                }
                _ => return Err(Status::unimplemented("this kind of mutation")),
            }
        }
        *self = next;
        Ok(effects)
    }

    fn write(&mut self, write: &Write, how: How, effects: &mut Vec<Effect>) -> Result<(), Status> {
        let schema = self.schema(&write.table)?;
        for column in &write.columns {
            if schema.find(column).is_none() {
                return Err(Status::not_found(format!("Column not found in table {}: {column}", write.table)));
            }
        }
        for values in &write.values {
            let given: Row = write.columns.iter().cloned().zip(values.values.iter().cloned()).collect();
            let key = key_of(&schema, &given)?;
            let rows = &mut self.rows.entry(write.table.clone()).or_default().0;
            let before = rows.get(&key).cloned();
            match (how, &before) {
                (How::Insert, Some(_)) => {
                    let problem = format!("Row {key:?} in table {} already exists", write.table);
                    return Err(Status::already_exists(problem));
                }
                (How::Update, None) => {
                    return Err(Status::not_found(format!("Table {}: Row {key:?} not found.", write.table)));
                }
                _ => {}
            }
            let mut after = before.clone().filter(|_| how != How::Replace).unwrap_or_else(|| empty(&schema));
            after.extend(given);
            rows.insert(key, after.clone());
            effects.push(Effect { table: write.table.clone(), before, after: Some(after) });
        }
        Ok(())
    }

    fn delete(&mut self, table: &str, keys: Option<&KeySet>, effects: &mut Vec<Effect>) -> Result<(), Status> {
        let _known = self.schema(table)?;
        let rows = &mut self.rows.entry(table.to_owned()).or_default().0;
        let keys = keys.cloned().unwrap_or_default();
        let texts = |list: &ListValue| list.values.iter().map(|v| plain(v).unwrap_or_default()).collect();
        let listed =
            if keys.all { rows.keys().cloned().collect() } else { keys.keys.iter().map(texts).collect::<Vec<_>>() };
        for key in listed {
            if let Some(before) = rows.remove(&key) {
                effects.push(Effect { table: table.to_owned(), before: Some(before), after: None });
            }
        }
        Ok(())
    }

    fn schema(&self, table: &str) -> Result<Table, Status> {
        self.schemas.get(table).cloned().ok_or_else(|| Status::not_found(format!("Table not found: {table}")))
    }

    /// Answers a [`select`] of one of the tables.
    pub(crate) fn select(&self, sql: &str, params: Option<&Struct>, dialect: Dialect) -> Option<Selected> {
        let rows = |table: &str, names: &[String]| {
            let schema = self.schemas.get(table)?;
            names.iter().all(|name| schema.find(name).is_some()).then(|| self.rows(table))
        };
        select(&sql.replace(['`', '"'], " "), params, dialect, rows)
    }
}

/// Columns and rows.
pub(crate) type Selected = (Vec<String>, Vec<Vec<Value>>);

/// Answers `SELECT a, b FROM t WHERE c = @p AND d = 'x' ORDER BY .. LIMIT 1`, with the rows in the
/// order in which `rows` gives them; `None` for anything else. In lower case too.
pub(crate) fn select(
    sql: &str,
    params: Option<&Struct>,
    dialect: Dialect,
    rows: impl FnOnce(&str, &[String]) -> Option<Vec<Row>>,
) -> Option<Selected> {
    let words: Vec<&str> = sql.split_whitespace().collect();
    let place = |word: &str| words.iter().position(|w| w.eq_ignore_ascii_case(word));
    let from = place("FROM").filter(|_| words.first().is_some_and(|w| w.eq_ignore_ascii_case("SELECT")))?;
    let columns = words[1..from].join(" ");
    let limit = place("LIMIT").map_or(words.len(), |at| at);
    let order = place("ORDER").map_or(limit, |at| at.min(limit));
    let names: Vec<String> = columns.split(',').map(|c| c.trim().to_owned()).collect();
    let mut wanted: Vec<(String, String)> = Vec::new();
    if let Some(at) = place("WHERE") {
        let all = words[at + 1..order].join(" ");
        for condition in all.replace(" and ", " AND ").split(" AND ") {
            // Schemas that a script does not have.
            if condition.to_ascii_uppercase().contains(" NOT IN ") {
                continue;
            }
            let (column, value) = condition.split_once('=')?;
            let value = value.trim();
            let text = match value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')) {
                Some(literal) => Some(literal.to_owned()),
                None => {
                    let name = match dialect {
                        Dialect::GoogleSql => value.strip_prefix('@').map(str::to_owned),
                        Dialect::PostgreSql => value.strip_prefix('$').map(|n| format!("p{n}")),
                    };
                    plain(params?.fields.get(&name?)?)
                }
            };
            wanted.push((column.trim().to_owned(), text?));
        }
    }
    let rows = rows(words.get(from + 1)?, &names)?;
    let fits = |row: &Row| wanted.iter().all(|(c, v)| row.get(c).and_then(plain).as_ref() == Some(v));
    let cells = |row: Row| names.iter().map(|n| row.get(n).cloned().unwrap_or_else(null)).collect();
    let count = words.get(limit + 1).and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    Some((names.clone(), rows.into_iter().filter(fits).take(count).map(cells).collect()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Insert,
    Update,
    Upsert,
    Replace,
}

fn null() -> Value {
    of_kind(Kind::NullValue(0))
}

fn empty(table: &Table) -> Row {
    table.columns.iter().map(|c| (c.name.clone(), null())).collect()
}

fn key_of(table: &Table, row: &Row) -> Result<Vec<String>, Status> {
    let keys = table.columns.iter().filter(|c| c.key);
    let text = |c: &crate::table::Column| {
        let missing = || Status::failed_precondition(format!("key column {} has no value", c.name));
        row.get(&c.name).and_then(plain).ok_or_else(missing)
    };
    keys.map(text).collect()
}
