//! Whether the user may do what the sink does, asked before the first row is written.

use anabranch_core::{Error, Result, TableSchema};
use tokio_postgres::Client;

use super::table::Table;
use crate::error::classify;
use crate::sql::ident;

/// Rights on one column are enough for a right on the table, but for DELETE, which has no columns.
const LACKING: &str = "SELECT current_user::text, n.nspname::text, has_schema_privilege(n.oid, 'USAGE'), \
      ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) WITH ORDINALITY AS w(p, at) \
            WHERE NOT (has_table_privilege(c.oid, p) OR p <> 'DELETE' AND has_any_column_privilege(c.oid, p)) \
            ORDER BY at) \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::int8::oid";

/// # Errors
/// `Config`, with the statements that grant what is missing.
pub(crate) async fn check(client: &Client, key: &str, table: &Table) -> Result<()> {
    let what = format!("cannot check the rights on target table {}", table.name);
    let row = client.query_opt(LACKING, &[&i64::from(table.oid)]).await.map_err(|e| classify(e, &what))?;
    let Some(row) = row else { return Ok(()) };
    let (user, schema, usage, lacking): (String, String, bool, Vec<String>) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    if usage && lacking.is_empty() {
        return Ok(());
    }
    let user = ident(&user);
    let mut mend = Vec::new();
    if !usage {
        mend.push(format!("GRANT USAGE ON SCHEMA {} TO {user};", ident(&schema)));
    }
    if !lacking.is_empty() {
        mend.push(format!("GRANT {} ON {} TO {user};", lacking.join(", "), table.sql()));
    }
    Err(Error::config(key, format!("the role {user} may not read and write target table {}", table.name))
        .hint(mend.join(" ")))
}

/// In the table's schema, or, where that is missing, in the database; and what the table would be in if
/// its name has no schema.
const MAY_CREATE: &str = "SELECT current_user::text, current_database()::text, s.name, n.oid IS NOT NULL, \
      coalesce(has_schema_privilege(n.oid, 'CREATE') AND has_schema_privilege(n.oid, 'USAGE'), \
               has_database_privilege(current_database(), 'CREATE')) \
    FROM (SELECT coalesce(nullif($1::text, ''), current_schema()::text, 'public')) AS s(name) \
    LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = s.name";

/// # Errors
/// `Config`, with the statement that grants what is missing.
pub(crate) async fn check_create(client: &Client, key: &str, table: &TableSchema) -> Result<()> {
    let what = format!("cannot check the right to create target table {}", table.name);
    let row = client.query_one(MAY_CREATE, &[&table.name.schema]).await.map_err(|e| classify(e, &what))?;
    let (user, database, schema): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let (exists, may): (bool, bool) = (row.get(3), row.get(4));
    if may {
        return Ok(());
    }
    let user_name = ident(&user);
    let mend = match exists {
        true => format!("GRANT USAGE, CREATE ON SCHEMA {} TO {user_name};", ident(&schema)),
        false => format!("CREATE SCHEMA {} AUTHORIZATION {user_name};", ident(&schema)),
    };
    let place = if exists { format!("schema {schema}") } else { format!("database {database}") };
    Err(Error::config(key, format!("the role {user} may not create target table {} in {place}", table.name)).hint(mend))
}
