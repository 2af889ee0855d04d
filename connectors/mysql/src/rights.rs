//! Whether the user may do what the sink does, asked before the first row is written.
//!
//! A statement is prepared and never run: the server checks the rights of the user, and of its roles,
//! when it prepares (`insert_precheck` and its like in its `sql_parse.cc`). What `information_schema` shows
//! of rights would have to be put together from four tables and the patterns in them.

use anabranch_core::{Error, Result};
use mysql_async::prelude::Queryable;

use crate::connection::Link;
use crate::error::{Failure, Phase};
use crate::literal::quote;
use crate::target::Target;

/// The server's numbers for a right that is missing, on a table or on a column.
const DENIED: [u16; 2] = [1142, 1143];

/// # Errors
/// `Config`, with the statement that grants what is missing.
pub(crate) async fn check(link: &mut Link, table: &Target) -> Result<(), Failure> {
    let name = quote(&table.name);
    let mut lacking = Vec::new();
    let column = table.columns.iter().find(|c| !c.generated).map(|c| quote(&c.name));
    let update = column.map(|c| format!("UPDATE {name} SET {c} = {c} LIMIT 0"));
    let wanted = [
        ("SELECT", Some(format!("SELECT 1 FROM {name} LIMIT 0"))),
        ("INSERT", Some(format!("INSERT INTO {name} () VALUES ()"))),
        ("UPDATE", update),
        ("DELETE", Some(format!("DELETE FROM {name} LIMIT 0"))),
    ];
    for (right, sql) in wanted {
        let Some(sql) = sql else { continue };
        if is_denied(link, &sql).await? {
            lacking.push(right);
        }
    }
    if lacking.is_empty() { Ok(()) } else { Err(denied(link, &lacking.join(", "), &table.name).await?) }
}

/// A table that the user cannot even see may be there.
///
/// # Errors
/// `Config`, with the statement that grants what is missing.
pub(crate) async fn check_unseen(link: &mut Link, table: &str) -> Result<(), Failure> {
    match is_denied(link, &format!("SELECT 1 FROM {} LIMIT 0", quote(table))).await? {
        true => Err(denied(link, "SELECT, INSERT, UPDATE, DELETE", table).await?),
        false => Ok(()),
    }
}

/// # Errors
/// `Config`, with the statement that grants what is missing.
pub(crate) async fn check_create(link: &mut Link, table: &str) -> Result<(), Failure> {
    match is_denied(link, &format!("CREATE TABLE {} (a int)", quote(table))).await? {
        true => Err(denied(link, "CREATE", table).await?),
        false => Ok(()),
    }
}

/// # Errors
/// `Config` if the server takes no writes of this user.
pub(crate) async fn check_writable(link: &mut Link) -> Result<(), Failure> {
    // A role may have the right too: then the first write tells.
    let sql = "SELECT @@GLOBAL.read_only AND coalesce(CURRENT_ROLE(), 'NONE') = 'NONE' AND NOT EXISTS \
               (SELECT 1 FROM information_schema.USER_PRIVILEGES \
                WHERE PRIVILEGE_TYPE IN ('SUPER', 'READ ONLY ADMIN', 'READ_ONLY ADMIN', 'CONNECTION_ADMIN'))";
    match link.conn.query_first::<bool, _>(sql).await {
        Ok(Some(true)) => Err(read_only().into()),
        Ok(_) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The target is read-only, which only its operator can change.
pub(crate) fn read_only() -> Error {
    Error::config("sink.url", "the server is read-only").hint(READ_ONLY)
}

/// What to do about it.
pub(crate) const READ_ONLY: &str =
    "name the primary, or run on the server: SET GLOBAL read_only = OFF, if it should take writes";

async fn is_denied(link: &mut Link, sql: &str) -> Result<bool, Failure> {
    match link.conn.prep(sql).await {
        Ok(statement) => {
            link.conn.close(statement).await?;
            Ok(false)
        }
        Err(mysql_async::Error::Server(e)) => Ok(DENIED.contains(&e.code)),
        Err(e) => Err(e.into()),
    }
}

async fn denied(link: &mut Link, rights: &str, table: &str) -> Result<Failure, Failure> {
    let who: Option<(String, Option<String>)> = link.conn.query_first("SELECT CURRENT_USER(), DATABASE()").await?;
    let (user, database) = who.unwrap_or_default();
    let (name, host) = user.rsplit_once('@').unwrap_or((&user, "%"));
    let place = format!("{}.{}", quote(database.as_deref().unwrap_or_default()), quote(table));
    let grant = format!("GRANT {rights} ON {place} TO {}@{}", quote(name), quote(host));
    let problem = format!("the user {user} has no right to {rights} on target table {table}");
    Ok(Error::config("sink.url", problem).hint(format!("run on the target: {grant}")).into())
}

/// At the border.
pub(crate) fn told<T>(result: Result<T, Failure>) -> Result<T> {
    result.map_err(|f| f.into_error(Phase::Statement))
}
