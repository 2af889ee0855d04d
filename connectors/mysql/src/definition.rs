//! A table's definition, as the server tells it: to notice that somebody altered the table.

use mysql_async::Row;
use mysql_async::prelude::Queryable;

use crate::connection::Link;
use crate::error::Failure;
use crate::literal::quote;

/// The statement that asks for it. It waits for no lock of an `ALTER TABLE` that waits itself.
pub(crate) fn question(table: &str) -> String {
    format!("SHOW CREATE TABLE {table}")
}

/// What it is now; `None` if there is no such table, or the user may not see it.
pub(crate) async fn read(link: &mut Link, name: &str) -> Result<Option<String>, Failure> {
    match link.conn.query_first::<Row, _>(question(&quote(name))).await {
        Ok(row) => Ok(row.as_ref().and_then(of)),
        Err(mysql_async::Error::Server(_)) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// What matters of an answer: the columns, the primary key, and the options of the table without its counter. An upsert
/// guards itself against other unique keys that come later.
pub(crate) fn of(row: &Row) -> Option<String> {
    let told: String = row.get_opt(1)?.ok()?;
    let matters = |line: &&str| ["  `", "  PRIMARY KEY", ") "].iter().any(|start| line.starts_with(start));
    let lines: Vec<&str> = told.lines().filter(matters).map(|line| line.trim_end_matches(',')).collect();
    Some(without_counter(&lines.join("\n")))
}

fn without_counter(definition: &str) -> String {
    const COUNTER: &str = " AUTO_INCREMENT=";
    match definition.rsplit_once(COUNTER) {
        Some((before, after)) if after.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("{before}{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        _ => definition.to_owned(),
    }
}
