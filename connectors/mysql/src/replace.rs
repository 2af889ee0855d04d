//! Applies a net effect by deleting every row it touches and inserting the rows anew.
//!
//! It is exact for any end that is consistent, whatever the unique keys are: two rows that swap
//! unique values meet no row that holds the other's. What the source did not send, and columns that
//! only the target has, are read first and written again.

use std::sync::Arc;

use anabranch_core::Error;
use anabranch_core::net_effect::{NetRow, TableEffect};
use mysql_async::{Row, Value};

use crate::apply::delete;
use crate::error::Failure;
use crate::literal::{Rendered, push_sql, push_text};
use crate::plan::{Plan, Read, Values};
use crate::script::{Expect, Script};

/// Rows that are read together.
const TOGETHER: usize = 500;

/// A row to insert, and the row it replaces.
struct Replaced<'r, 'u> {
    row: &'r NetRow<'u>,
    before: Option<Row>,
}

pub(crate) async fn replace(script: &mut Script<'_>, effects: &[(Arc<Plan>, &TableEffect<'_>)]) -> Result<(), Failure> {
    let mut replaced = Vec::with_capacity(effects.len());
    for (plan, effect) in effects {
        let rows = read(script, plan, effect.updates.iter().chain(&effect.upserts)).await?;
        for r in &rows {
            if r.before.is_none() && !r.row.is_complete() {
                return Err(missing(plan, r.row, script));
            }
        }
        replaced.push(rows);
    }
    for (plan, effect) in effects {
        delete(script, plan, effect.deletes.iter().copied()).await?;
        delete(script, plan, effect.updates.iter().chain(&effect.upserts).cloned()).await?;
    }
    for ((plan, effect), rows) in effects.iter().zip(replaced) {
        for r in rows {
            insert(script, plan, &r).await?;
        }
        script.rows(plan, "", effect.inserts.iter().copied()).await?;
    }
    Ok(())
}

fn missing(plan: &Plan, row: &NetRow<'_>, script: &mut Script<'_>) -> Failure {
    let mut key = Vec::new();
    if let Err(failure) = plan.push_key(row, &mut key, &mut script.scratch) {
        return failure;
    }
    let key: String = String::from_utf8_lossy(&key).chars().take(200).collect();
    let name = &plan.name;
    Error::rejected(format!(
        "table {name}: the target has no row with {key}, and the source did not send all columns of it"
    ))
    .into()
}

/// The rows as they are now, with every column that may be needed: the source's, then the target's own.
async fn read<'r, 'u: 'r>(
    script: &mut Script<'_>,
    plan: &Plan,
    rows: impl Iterator<Item = &'r NetRow<'u>> + Send,
) -> Result<Vec<Replaced<'r, 'u>>, Failure> {
    let columns: Vec<String> = plan
        .written()
        .map(|c| (&c.name, c.read))
        .chain(plan.extra.iter().map(|c| (&c.name, c.read)))
        .map(|(name, read)| match read {
            Read::Float => format!("CAST({name} AS DOUBLE)"),
            Read::Bits => format!("CAST({name} AS UNSIGNED)"),
            _ => name.clone(),
        })
        .collect();
    let select = format!("SELECT {} FROM {} WHERE ", columns.join(","), plan.table);
    let mut replaced: Vec<Replaced<'r, 'u>> = rows.map(|row| Replaced { row, before: None }).collect();
    for some in replaced.chunks_mut(TOGETHER) {
        // A row that is complete is needed only where the target has columns of its own.
        let needed: Vec<_> = some.iter_mut().filter(|r| !plan.extra.is_empty() || !r.row.is_complete()).collect();
        script.settle().await?;
        for r in &needed {
            script.begin(Some(plan), Expect::Any);
            script.sql.extend_from_slice(select.as_bytes());
            plan.push_key(r.row, &mut script.sql, &mut script.scratch)?;
            script.sql.extend_from_slice(b" FOR UPDATE");
        }
        let outcomes = script.outcomes().await?;
        for (r, outcome) in needed.into_iter().zip(outcomes) {
            let mut found = outcome.rows.into_iter();
            r.before = found.next();
            if found.next().is_some() {
                let problem = "the target has several rows with one key of the source";
                return Err(Error::rejected(format!("table {}: {problem}", plan.name)).into());
            }
        }
    }
    Ok(replaced)
}

async fn insert(script: &mut Script<'_>, plan: &Plan, replaced: &Replaced<'_, '_>) -> Result<(), Failure> {
    let Some(before) = &replaced.before else {
        return script.rows(plan, "", std::iter::once(replaced.row.clone())).await;
    };
    let names: Vec<&str> =
        plan.written().map(|c| c.name.as_str()).chain(plan.extra.iter().map(|c| c.name.as_str())).collect();
    script.begin(Some(plan), Expect::Any);
    script.sql.extend_from_slice(format!("INSERT INTO {} ({}) VALUES (", plan.table, names.join(",")).as_bytes());
    for (at, column) in plan.written().enumerate() {
        if at > 0 {
            script.sql.push(b',');
        }
        if replaced.row.value(column.source).is_unchanged() {
            push_read(before.as_ref(at), column.read, &mut script.sql)?;
        } else {
            plan.push_value(column, replaced.row, &mut script.sql, &mut script.scratch)?;
        }
    }
    let own = plan.written().count();
    for (n, column) in plan.extra.iter().enumerate() {
        script.sql.push(b',');
        push_read(before.as_ref(own + n), column.read, &mut script.sql)?;
    }
    script.sql.push(b')');
    script.end().await
}

/// Appends a value as it was read. The text protocol gives bytes for everything.
fn push_read(value: Option<&Value>, read: Read, sql: &mut Vec<u8>) -> Result<(), Failure> {
    match (value, read) {
        (Some(Value::NULL), _) => sql.extend_from_slice(b"NULL"),
        (Some(Value::Bytes(v)), Read::Number | Read::Bits) => sql.extend_from_slice(v),
        (Some(Value::Bytes(v)), Read::Double | Read::Float) => {
            sql.extend_from_slice(v);
            if !v.contains(&b'e') {
                sql.extend_from_slice(b"e0");
            }
        }
        (Some(Value::Bytes(v)), Read::Text) => push_text(v, sql),
        (Some(Value::Bytes(v)), Read::Bytes) => push_sql(Rendered::Bytes(v), sql),
        (other, _) => return Err(Error::fatal(format!("cannot write {other:?} again")).into()),
    }
    Ok(())
}
