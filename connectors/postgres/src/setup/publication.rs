//! The publication and its tables.

use anabranch_core::{Error, ErrorKind, Result, TableName};
use tokio_postgres::Client;

use crate::catalog::CatalogTable;
use crate::error::classify;
use crate::source::Postgres;
use crate::sql;

/// Whether there is a publication of this name.
pub(crate) async fn exists(client: &Client, name: &str) -> Result<bool> {
    let found = client.query_opt("SELECT FROM pg_publication WHERE pubname = $1", &[&name]).await;
    found.map(|row| row.is_some()).map_err(|e| classify(e, "cannot read pg_publication"))
}

/// The statement that creates the publication, if it is missing and may be created.
pub(crate) async fn plan(source: &Postgres, client: &Client) -> Result<Option<String>> {
    let name = &source.publication;
    let row = client
        .query_opt(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication WHERE pubname = $1",
            &[name],
        )
        .await
        .map_err(|e| classify(e, "cannot read pg_publication"))?;
    if let Some(row) = row {
        for (at, operation) in ["insert", "update", "delete", "truncate"].iter().enumerate() {
            if !row.get::<_, bool>(at) {
                tracing::warn!(publication = %name, operation, "the publication leaves out an operation");
            }
        }
        return Ok(None);
    }
    let statement = statement(source)?;
    if !source.create {
        return Err(Error::config("source.publication", format!("there is no publication {name}")).hint(statement));
    }
    check_rights(source, client, &statement).await?;
    check_identities(source, client).await?;
    Ok(Some(statement))
}

/// Whether this role may create the publication, here, of these tables.
async fn check_rights(source: &Postgres, client: &Client, statement: &str) -> Result<()> {
    let row = client
        .query_one(
            "SELECT rolsuper, rolname::text, has_database_privilege(current_database(), 'CREATE'), \
                    pg_is_in_recovery() FROM pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .map_err(|e| classify(e, "cannot read pg_roles"))?;
    let (superuser, user, may): (bool, String, bool) = (row.get(0), row.get(1), row.get(2));
    let none = format!("there is no publication {}", source.publication);
    if row.get(3) {
        return Err(Error::config("source.publication", format!("{none}, and a standby cannot create one"))
            .hint(format!("run on the primary: {statement}")));
    }
    if source.tables.is_empty() {
        return match superuser {
            true => Ok(()),
            false => Err(Error::config(
                "source.publication",
                format!("{none}, and only a superuser can create one for all tables"),
            )
            .hint(format!("list the tables in source.tables, or let a superuser run: {statement}"))),
        };
    }
    let tables = table_names(&source.tables)?;
    let (schemas, names) = split(&tables);
    let rows = client.query(OWNED, &[&schemas, &names]).await.map_err(|e| classify(e, "cannot read pg_class"))?;
    let named = |mine: Option<bool>| {
        let of = rows.iter().filter(|r| r.get::<_, Option<bool>>(2) == mine);
        of.map(|r| TableName::new(r.get::<_, &str>(0), r.get::<_, &str>(1)).to_string()).collect::<Vec<_>>().join(", ")
    };
    let (missing, foreign) = (named(None), named(Some(false)));
    if !missing.is_empty() {
        return Err(Error::config("source.tables", format!("there is no table {missing} in the source")));
    }
    if may && foreign.is_empty() {
        return Ok(());
    }
    let lacks = if may { format!("does not own {foreign}") } else { "has no CREATE on the database".to_owned() };
    Err(Error::config("source.publication", format!("{none}, and {user} cannot create one: it {lacks}"))
        .hint(format!("let the tables' owner, with CREATE on the database, run: {statement}")))
}

/// Each table, and whether it is this role's; NULL if there is none.
const OWNED: &str = "
SELECT w.schema, w.name, c.mine
FROM unnest($1::text[], $2::text[]) AS w(schema, name)
LEFT JOIN (SELECT n.nspname::text, c.relname::text, pg_has_role(c.relowner, 'USAGE') AS mine
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')) c
       ON (c.nspname, c.relname) = (w.schema, w.name)";

/// Creates it.
pub(crate) async fn create(source: &Postgres, client: &Client, statement: &str) -> Result<()> {
    let name = &source.publication;
    client.batch_execute(statement).await.map_err(|e| {
        let e = classify(e, &format!("cannot create the publication {name}"));
        let e = if e.kind() == ErrorKind::Fatal { e.with_kind(ErrorKind::Config) } else { e };
        e.hint(format!("let the tables' owner, with CREATE on the database, run: {statement}"))
    })?;
    tracing::info!(publication = %name, "created the publication");
    Ok(())
}

/// The tables of `source.tables`.
pub(crate) fn table_names(tables: &[String]) -> Result<Vec<TableName>> {
    tables.iter().map(|t| table_name(t)).collect()
}

/// Schemas and names, as two parameters of a query.
pub(crate) fn split(tables: &[TableName]) -> (Vec<&str>, Vec<&str>) {
    tables.iter().map(|t| (t.schema.as_str(), t.name.as_str())).unzip()
}

/// `schema.table`, or a table of `public`; double quotes around a part keep its dots.
pub(crate) fn table_name(text: &str) -> Result<TableName> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        let last = parts.len() - 1;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                parts[last].push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            c => parts[last].push(c),
        }
    }
    match &parts[..] {
        [name] if !name.is_empty() && !quoted => Ok(TableName::new("public", name)),
        [schema, name] if !schema.is_empty() && !name.is_empty() && !quoted => Ok(TableName::new(schema, name)),
        _ => Err(Error::config("source.tables", format!("{text:?} is not the name of a table"))
            .hint("write schema.table, with double quotes around a part that has a dot")),
    }
}

/// Whether each of these is the name of a table.
pub(crate) fn check_names(tables: &[String]) -> Result<()> {
    tables.iter().try_for_each(|t| table_name(t).map(drop))
}

fn statement(source: &Postgres) -> Result<String> {
    let name = sql::ident(&source.publication);
    if source.tables.is_empty() {
        return Ok(format!("CREATE PUBLICATION {name} FOR ALL TABLES WITH (publish_via_partition_root = true);"));
    }
    let tables: Vec<_> = table_names(&source.tables)?.iter().map(sql::table).collect();
    Ok(format!("CREATE PUBLICATION {name} FOR TABLE {} WITH (publish_via_partition_root = true);", tables.join(", ")))
}

/// A publication makes UPDATE and DELETE fail on tables that have no identity. The application would notice.
async fn check_identities(source: &Postgres, client: &Client) -> Result<()> {
    let tables = table_names(&source.tables)?;
    let (schemas, names) = split(&tables);
    let rows = client
        .query(LACKING_IDENTITY, &[&schemas, &names])
        .await
        .map_err(|e| classify(e, "cannot read the tables' identities"))?;
    let lacking: Vec<_> = rows.iter().map(|r| TableName::new(r.get::<_, String>(0), r.get::<_, String>(1))).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let mend: Vec<_> =
        lacking.iter().map(|t| format!("ALTER TABLE {} REPLICA IDENTITY FULL;", sql::table(t))).collect();
    Err(Error::config(
        "source.publication",
        format!(
            "publishing {} would make UPDATE and DELETE on it fail: without a primary key the server cannot tell rows apart",
            lacking.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
    )
    .hint(format!("give it a primary key, or run: {}", mend.join(" "))))
}

const LACKING_IDENTITY: &str = "
SELECT n.nspname::text, c.relname::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.relreplident <> 'f'
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
  AND (cardinality($1::text[]) = 0
       OR (n.nspname::text, c.relname::text) IN (SELECT * FROM unnest($1::text[], $2::text[])))
  AND NOT EXISTS (
    SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid
      AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
ORDER BY 1, 2";

/// Whether the tables can be read, and what an operator should know about them.
pub(crate) async fn check_tables(source: &Postgres, client: &Client, rights: bool) -> Result<()> {
    let tables = source.catalog().await?;
    if tables.is_empty() {
        tracing::warn!(publication = %source.publication, "the publication has no tables");
    }
    for table in tables.iter().filter(|t| t.lacks_identity()) {
        tracing::warn!(
            table = %table.schema.name,
            "no identity: UPDATE and DELETE of it fail on the source. Give it a primary key, or run: ALTER TABLE {} REPLICA IDENTITY FULL;",
            sql::table(&table.schema.name)
        );
    }
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    check_partitions(source, client, &tables).await?;
    if !rights {
        return Ok(());
    }
    check_policies(client, &oids).await?;
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text, current_user::text FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1) AND NOT ( \
               has_schema_privilege(n.oid, 'USAGE') AND (has_table_privilege(c.oid, 'SELECT') \
                 OR has_any_column_privilege(c.oid, 'SELECT'))) ORDER BY 1, 2",
            &[&oids],
        )
        .await
        .map_err(|e| classify(e, "cannot check the rights on the tables"))?;
    let Some(first) = rows.first() else { return Ok(()) };
    let user = sql::ident(first.get(2));
    let mut mend = Vec::new();
    for row in &rows {
        let (schema, name): (&str, &str) = (row.get(0), row.get(1));
        let usage = format!("GRANT USAGE ON SCHEMA {} TO {user};", sql::ident(schema));
        if !mend.contains(&usage) {
            mend.push(usage);
        }
        mend.push(format!("GRANT SELECT ON {} TO {user};", sql::table(&TableName::new(schema, name))));
    }
    Err(Error::config("source.publication", format!("the role {user} may not read {} published tables", rows.len()))
        .hint(mend.join(" ")))
}

/// Whether the partitions of tables that are published as such log what tells rows apart: their replica
/// identities are their own (see `reader/leaf.rs`).
async fn check_partitions(source: &Postgres, client: &Client, tables: &[CatalogTable]) -> Result<()> {
    let what = |e| classify(e, "cannot read the identities of partitions");
    for table in tables.iter().filter(|t| t.partitioned && t.identity != b'n') {
        let key: Vec<&str> = table.schema.key_columns().map(|c| c.name.as_str()).collect();
        let whole = table.identity == b'f' && key.is_empty();
        let rows = client.query(UNLIKE, &[&table.oid, &key, &whole, &source.publication]).await.map_err(what)?;
        let leaves: Vec<_> =
            rows.iter().map(|r| TableName::new(r.get::<_, String>(0), r.get::<_, String>(1))).collect();
        if leaves.is_empty() {
            continue;
        }
        // The primary key of a table is one of its partitions too.
        let identity = if table.identity == b'd' { "DEFAULT" } else { "FULL" };
        let mend: Vec<_> =
            leaves.iter().map(|l| format!("ALTER TABLE {} REPLICA IDENTITY {identity};", sql::table(l))).collect();
        let leaves: Vec<_> = leaves.iter().map(ToString::to_string).collect();
        return Err(Error::config(
            "source.publication",
            format!(
                "{} is published through its partitioned table {} and does not log what tells its rows apart ({}): \
                 rows that are updated or deleted there could not be found",
                leaves.join(", "),
                table.schema.name,
                if whole { "all columns".to_owned() } else { key.join(", ") },
            ),
        )
        .hint(mend.join(" ")));
    }
    Ok(())
}

/// Partitions whose identities lack a column of the key, if updates or deletes are published at all.
const UNLIKE: &str = "
SELECT n.nspname::text, c.relname::text
FROM pg_partition_tree($1::oid::regclass) t
JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisvalid
     AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
WHERE t.isleaf AND c.relkind = 'r' AND c.relreplident IN ('d', 'i')
  AND ($3 OR EXISTS (SELECT FROM unnest($2::text[]) AS k(name) WHERE NOT EXISTS (
         SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = k.name AND a.attnum = ANY (i.indkey))))
  AND NOT EXISTS (SELECT FROM pg_publication p WHERE p.pubname = $4 AND NOT (p.pubupdate OR p.pubdelete))
ORDER BY 1, 2";

/// Whether this role sees every row: of a table, and of the partitions that are copied by themselves.
async fn check_policies(client: &Client, oids: &[u32]) -> Result<()> {
    let rows = client
        .query(POLICED, &[&oids])
        .await
        .map_err(|e| classify(e, "cannot read the row-level security of the tables"))?;
    let Some(first) = rows.first() else { return Ok(()) };
    let user: &str = first.get(2);
    let tables: Vec<_> =
        rows.iter().map(|r| TableName::new(r.get::<_, &str>(0), r.get::<_, &str>(1)).to_string()).collect();
    Err(Error::config(
        "source.url",
        format!(
            "row-level security may hide rows of {} from the role {user}: a copy would lack them",
            tables.join(", ")
        ),
    )
    .hint(format!("ALTER ROLE {} BYPASSRLS;", sql::ident(user))))
}

const POLICED: &str = "
SELECT n.nspname::text, c.relname::text, current_user::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relrowsecurity AND row_security_active(c.oid)
  AND (c.oid = ANY ($1) OR EXISTS (SELECT FROM pg_partition_ancestors(c.oid) AS a WHERE a.relid = ANY ($1)))
ORDER BY 1, 2";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_keep_their_case_and_dots() {
        for (text, schema, name) in
            [("orders", "public", "orders"), ("shop.Orders", "shop", "Orders"), (r#""a.b"."c""d""#, "a.b", "c\"d")]
        {
            assert_eq!(table_name(text).unwrap(), TableName::new(schema, name));
        }
        for broken in ["", "a.", ".b", "a.b.c", "\"a"] {
            assert!(table_name(broken).is_err(), "{broken}");
        }
    }
}
