//! The publication and its tables.

use anabranch_core::{Error, Result, TableName};
use anabranch_postgres::layer::{Published, classify, ident, table_ident};
use tokio_postgres::Client;

use crate::config::Plugin;
use crate::marker;
use crate::source::Yugabyte;

/// Whether there is a publication of this name.
pub(crate) async fn exists(client: &Client, name: &str) -> Result<bool> {
    let found = client.query_opt("SELECT FROM pg_publication WHERE pubname = $1", &[&name]).await;
    found.map(|row| row.is_some()).map_err(|e| classify(e, "cannot read pg_publication"))
}

/// The statements that create what is missing of marker table and publication.
pub(crate) async fn plan(source: &Yugabyte, client: &Client) -> Result<Vec<String>> {
    let (name, marker) = (source.publication_name(), source.marker_table_name()?);
    let mut statements = Vec::new();
    if !table_exists(client, &marker).await? {
        statements.push(marker::create(&marker));
    }
    if !exists(client, name).await? {
        check_tables_exist(source, client).await?;
        statements.push(statement(source, &marker)?);
    } else {
        warn_of_missing_operations(client, name).await?;
        let published = source.server()?.published(name).await?;
        if !published.iter().any(|t| t.schema().name == marker) && !is_for_all(client, name).await? {
            statements.push(format!("ALTER PUBLICATION {} ADD TABLE {};", ident(name), table_ident(&marker)));
        }
    }
    if statements.is_empty() || source.may_create() {
        return Ok(statements);
    }
    Err(Error::config(
        "source.publication",
        format!("{name}, or its marker table {marker}, is not there as it must be"),
    )
    .hint(format!("let the tables' owner run, before the slot is created: {}", statements.join(" "))))
}

/// Runs what [`plan`] gave.
pub(crate) async fn create(client: &Client, statements: &[String]) -> Result<()> {
    for statement in statements {
        client.batch_execute(statement).await.map_err(|e| {
            let code = e.code().map(|c| c.code().to_owned());
            let e = classify(e, "cannot create the publication and its marker table");
            match code.as_deref() {
                Some("42501") => e.hint(format!("let the tables' owner run: {statement}")),
                _ => e,
            }
        })?;
        tracing::info!(%statement, "created");
    }
    Ok(())
}

fn statement(source: &Yugabyte, marker: &TableName) -> Result<String> {
    let name = ident(source.publication_name());
    let mut tables = source.table_names()?;
    if tables.is_empty() {
        return Ok(format!("CREATE PUBLICATION {name} FOR ALL TABLES;"));
    }
    if !tables.contains(marker) {
        tables.push(marker.clone());
    }
    let tables: Vec<String> = tables.iter().map(table_ident).collect();
    Ok(format!("CREATE PUBLICATION {name} FOR TABLE {};", tables.join(", ")))
}

async fn table_exists(client: &Client, table: &TableName) -> Result<bool> {
    let row = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table_ident(table)]).await;
    row.map(|row| row.get(0)).map_err(|e| classify(e, "cannot look for the marker table"))
}

async fn is_for_all(client: &Client, name: &str) -> Result<bool> {
    let row = client.query_one("SELECT puballtables FROM pg_publication WHERE pubname = $1", &[&name]).await;
    row.map(|row| row.get(0)).map_err(|e| classify(e, "cannot read pg_publication"))
}

async fn check_tables_exist(source: &Yugabyte, client: &Client) -> Result<()> {
    for table in source.table_names()? {
        if !table_exists(client, &table).await? {
            return Err(Error::config("source.tables", format!("there is no table {table} in the source")));
        }
    }
    Ok(())
}

async fn warn_of_missing_operations(client: &Client, name: &str) -> Result<()> {
    let row = client
        .query_one("SELECT pubinsert, pubupdate, pubdelete FROM pg_publication WHERE pubname = $1", &[&name])
        .await
        .map_err(|e| classify(e, "cannot read pg_publication"))?;
    for (at, operation) in ["insert", "update", "delete"].iter().enumerate() {
        if !row.get::<_, bool>(at) {
            tracing::warn!(publication = %name, operation, "the publication leaves out an operation");
        }
    }
    Ok(())
}

/// Whether the server will send what happens to these tables, as the slot's plugin writes it.
///
/// # Errors
/// `Config`, with the statements that mend it. The identities are those of the time when the slot was
/// created: a later change of them needs another slot.
pub(crate) fn check_tables(tables: &[Published], plugin: Plugin) -> Result<()> {
    if tables.len() < 2 {
        tracing::warn!("the publication has no tables but the marker's");
    }
    let named = |wrong: &dyn Fn(&Published) -> bool| -> Vec<&TableName> {
        tables.iter().filter(|t| wrong(t)).map(|t| &t.schema().name).collect()
    };
    let list = |names: &[&TableName]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mend = |names: &[&TableName], what: &str| {
        names.iter().map(|t| format!("ALTER TABLE {} {what};", table_ident(t))).collect::<Vec<_>>().join(" ")
    };
    let unsent = named(&|t| matches!(t.identity(), b'n' | b'i'));
    if !unsent.is_empty() {
        return Err(Error::config(
            "source.publication",
            format!("{} has a replica identity that YugabyteDB does not stream", list(&unsent)),
        )
        .hint(format!("before the slot is created: {}", mend(&unsent, "REPLICA IDENTITY DEFAULT"))));
    }
    // The server leaves such tables out without a word, unless the slot was told to allow them.
    let keyless = named(&|t| t.schema().key.is_empty());
    if !keyless.is_empty() {
        return Err(Error::config(
            "source.publication",
            format!("{} has no primary key, and YugabyteDB leaves such a table out of the stream", list(&keyless)),
        )
        .hint("give it a primary key, or leave it out of the publication"));
    }
    let change = named(&|t| t.identity() == b'c');
    if plugin == Plugin::Pgoutput && !change.is_empty() {
        return Err(Error::config(
            "source.plugin",
            format!("pgoutput cannot write the replica identity CHANGE of {}", list(&change)),
        )
        .hint(format!(
            "leave source.plugin out, for yboutput; or, before the slot is created: {}",
            mend(&change, "REPLICA IDENTITY DEFAULT")
        )));
    }
    Ok(())
}
