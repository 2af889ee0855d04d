//! Copies a snapshot chunk with `LOAD DATA LOCAL`, from memory.
//!
//! The server treats it as if IGNORE were given (MySQL 8.0 reference manual, 15.2.9): a duplicate is
//! skipped and a bad value adjusted, each with a warning. So a load counts only if every row was
//! stored without a warning; otherwise it is undone, and INSERT tells what is wrong.

use anabranch_core::{Op, TableSchema, Unit, UnitKind};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use mysql_async::prelude::Queryable;
use std::sync::Arc;

use crate::connection::Link;
use crate::error::Failure;
use crate::literal::{Scratch, push_field, render};
use crate::plan::{Plan, Values};

/// Bytes of a packet of the stream; a row may lie in several.
const PACKET: usize = 256 << 10;

/// What became of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// Every row is stored as it was.
    All,
    /// Something was skipped or adjusted: it must be undone.
    Not,
    /// The server does not allow it; nothing happened.
    Forbidden,
}

/// The table of a unit that can be loaded: a snapshot chunk, inserts of one table.
pub(crate) fn table_of(unit: &Unit) -> Option<&Arc<TableSchema>> {
    if unit.kind != UnitKind::Snapshot {
        return None;
    }
    let schema = unit.changes().next()?.table()?;
    let all = unit.changes().all(|c| {
        c.op() == Op::Insert
            && c.table().is_some_and(|s| Arc::ptr_eq(s, schema))
            && c.new_row().is_some_and(|r| r.is_complete())
    });
    all.then_some(schema)
}

/// Loads the unit's rows within the open transaction.
pub(crate) async fn load(link: &mut Link, plan: &Plan, unit: &Unit) -> Result<Loaded, Failure> {
    if plan.columns.iter().any(|c| c.shift != 0) {
        return Ok(Loaded::Forbidden);
    }
    let Some((data, rows)) = fields(plan, unit) else { return Ok(Loaded::Not) };
    let packets: Vec<std::io::Result<Bytes>> =
        (0..data.len()).step_by(PACKET).map(|at| Ok(data.slice(at..data.len().min(at + PACKET)))).collect();
    link.conn.set_infile_handler(async move { Ok(stream::iter(packets).boxed()) });
    match link.conn.query_drop(statement(plan)).await {
        Ok(()) => {}
        // Not allowed by the server (1148, 3948, 4166), or for this user.
        Err(mysql_async::Error::Server(e)) if matches!(e.code, 1148 | 3948 | 4166 | 1227 | 1045) => {
            link.server.local_infile = false;
            return Ok(Loaded::Forbidden);
        }
        // Some conversions fail instead of warning. INSERT tells more.
        Err(mysql_async::Error::Server(e)) if e.state.starts_with("22") || e.state.starts_with("23") => {
            return Ok(Loaded::Not);
        }
        Err(error) => return Err(Failure::Driver { error, table: Some(plan.name.to_string().into()) }),
    }
    let clean = link.conn.get_warnings() == 0 && stored(&link.conn.info()) == Some(rows);
    Ok(if clean { Loaded::All } else { Loaded::Not })
}

/// The rows in the format of `LOAD DATA`; `None` if one cannot be stored: INSERT tells which.
fn fields(plan: &Plan, unit: &Unit) -> Option<(Bytes, u64)> {
    let mut out = Vec::with_capacity(unit.slices.iter().map(|s| s.batch.memory_size()).sum::<usize>() / 2);
    let mut scratch = Scratch::default();
    let mut rows = 0;
    for change in unit.changes() {
        let row = change.new_row()?;
        for (n, column) in plan.written().enumerate() {
            if n > 0 {
                out.push(b'\t');
            }
            let value = render(row.value(column.source), &column.encoding, &mut scratch).ok()?;
            push_field(value, &mut out);
        }
        out.push(b'\n');
        rows += 1;
    }
    Some((out.into(), rows))
}

fn statement(plan: &Plan) -> String {
    let (mut names, mut set) = (Vec::new(), Vec::new());
    for (n, column) in plan.written().enumerate() {
        match column.load {
            None => names.push(column.name.clone()),
            Some(convert) => {
                names.push(format!("@c{n}"));
                set.push(format!("{}={}", column.name, convert.replace("{}", &format!("c{n}"))));
            }
        }
    }
    let set = if set.is_empty() { String::new() } else { format!(" SET {}", set.join(",")) };
    format!(
        "LOAD DATA LOCAL INFILE 'anabranch' INTO TABLE {} CHARACTER SET utf8mb4 FIELDS TERMINATED BY '\\t' \
         ESCAPED BY '\\\\' LINES TERMINATED BY '\\n' ({}){set}",
        plan.table,
        names.join(",")
    )
}

/// The number of rows stored, from `Records: 3  Deleted: 0  Skipped: 0  Warnings: 0`; `None` if
/// anything was deleted, skipped or warned of.
fn stored(info: &str) -> Option<u64> {
    let mut numbers = info.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()).map(str::parse::<u64>);
    let records = numbers.next()?.ok()?;
    numbers.all(|n| n == Ok(0)).then_some(records)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_a_clean_load_counts() {
        use super::stored;
        assert_eq!(stored("Records: 3  Deleted: 0  Skipped: 0  Warnings: 0"), Some(3));
        assert_eq!(stored("Records: 3  Deleted: 0  Skipped: 1  Warnings: 1"), None);
        assert_eq!(stored(""), None);
    }
}
