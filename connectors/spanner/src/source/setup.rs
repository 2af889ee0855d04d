//! The start: find or create the change stream, and check that it still has what is needed.

use std::sync::Arc;

use anabranch_core::{Checkpoint, Error, PartitionStatus, Result, SourceIdentity, TableName};

use super::catalog::{Catalog, Dialect, Stream, seconds};
use super::{Prepared, Spanner, place};
use crate::client::{Client, Instant};
use crate::decode::Capture;

/// Where the reading began, in the source's identity: it must outlast a copy that is interrupted.
const START: &str = "start";

/// Spanner's limits of `retention_period`, in seconds: one day to 30.
const RETENTION: std::ops::RangeInclusive<i64> = 86_400..=30 * 86_400;

/// What a start found, and what it would run.
pub(crate) struct Plan {
    pub(crate) identity: SourceIdentity,
    pub(crate) prepared: Prepared,
    pub(crate) create: Option<String>,
    /// What the set-up loses, for people to read.
    pub(crate) remarks: Vec<String>,
}

/// Checks everything and changes nothing.
pub(crate) async fn plan(source: &Spanner, client: Arc<dyn Client>, resume: Option<&Checkpoint>) -> Result<Plan> {
    let catalog = Catalog::open(&*client).await?;
    let dialect = catalog.dialect;
    let (stream, create) = match catalog.stream(&source.change_stream).await? {
        Some(stream) => (stream, None),
        None => missing(source, &catalog, resume).await?,
    };
    let now = catalog.now().await?;
    check_tables(source, &catalog, &stream).await?;
    let start = match resume {
        Some(resume) => resumed(source, &stream, resume, now)?,
        None => first(source, &stream, now)?,
    };
    let identity = SourceIdentity::default()
        .with("database", &source.database)
        .with("change_stream", &source.change_stream)
        .with(START, start.to_string());
    let tables = catalog.tables(&stream).await?;
    let prepared = Prepared {
        client: Arc::clone(&client),
        dialect,
        form: stream.form(dialect),
        stream_name: source.change_stream.clone(),
        tables,
        start,
        end: source.end,
        heartbeat_ms: source.heartbeat_ms,
        chunks: source.chunks,
        stream,
    };
    let remarks = remarks(source, &prepared.stream);
    Ok(Plan { identity, prepared, create, remarks })
}

async fn missing(
    source: &Spanner,
    catalog: &Catalog<'_>,
    resume: Option<&Checkpoint>,
) -> Result<(Stream, Option<String>)> {
    let name = &source.change_stream;
    if resume.is_some_and(|r| !r.partitions.is_empty()) {
        return Err(Error::fatal(format!(
            "the change stream {name} is gone: what was committed since this pipeline ran last is lost to it"
        ))
        .hint("begin again with a new pipeline and a snapshot"));
    }
    let retention = seconds(&source.retention).unwrap_or(*RETENTION.start());
    let tables: Vec<TableName> = source.tables.iter().map(|t| catalog.dialect.table_name(t)).collect();
    let statement = create(catalog.dialect, name, &tables, &source.retention);
    if !source.create {
        return Err(Error::config("source.change_stream", format!("there is no change stream {name}"))
            .hint(format!("create it: {statement}; or set create = true")));
    }
    Ok((Stream::planned(tables, retention), Some(statement)))
}

/// The DDL of a change stream that captures whole rows and old values.
fn create(dialect: Dialect, name: &str, tables: &[TableName], retention: &str) -> String {
    let watched = match tables {
        [] => "ALL".to_owned(),
        tables => tables.iter().map(|t| dialect.table(t)).collect::<Vec<_>>().join(", "),
    };
    let options = match dialect {
        Dialect::GoogleSql => "OPTIONS",
        Dialect::PostgreSql => "WITH",
    };
    let capture = Capture::NewRowAndOldValues.name();
    format!(
        "CREATE CHANGE STREAM {} FOR {watched} {options} (value_capture_type = '{capture}', retention_period = '{retention}')",
        dialect.quoted(name)
    )
}

async fn check_tables(source: &Spanner, catalog: &Catalog<'_>, stream: &Stream) -> Result<()> {
    let tables = catalog.tables(stream).await?;
    for written in &source.tables {
        let table = catalog.dialect.table_name(written);
        if !tables.contains_key(&table) {
            return Err(Error::config("source.tables", format!("the change stream does not watch a table {written}"))
                .hint("write the name as it is stored, or add the table to the change stream"));
        }
    }
    if tables.is_empty() {
        return Err(Error::config("source.change_stream", "the change stream watches no table")
            .hint("ALTER CHANGE STREAM ... SET FOR ALL, or name tables"));
    }
    Ok(())
}

/// Where a new pipeline begins.
fn first(source: &Spanner, stream: &Stream, now: Instant) -> Result<Instant> {
    let Some(start) = source.start else { return Ok(now) };
    if start > now {
        return Err(Error::config("source.start", format!("{start} lies in the future; it is {now} now"))
            .hint("leave it out to begin now"));
    }
    if now.seconds_since(start) > stream.retention as f64 {
        return Err(Error::config("source.start", format!("the change stream no longer has the changes of {start}"))
            .hint("begin later, with a snapshot"));
    }
    Ok(start)
}

/// Where the pipeline began, after a check that the change stream reaches back to where it stands.
fn resumed(source: &Spanner, stream: &Stream, resume: &Checkpoint, now: Instant) -> Result<Instant> {
    let identity = &resume.identity;
    for (key, mine) in [("database", &source.database), ("change_stream", &source.change_stream)] {
        if let Some(theirs) = identity.get(key).filter(|theirs| theirs != mine) {
            return Err(Error::config(
                format!("source.{key}"),
                format!("is {mine}, and the checkpoint is of {theirs}"),
            )
            .hint("give the pipeline another name, or the source back what it had"));
        }
    }
    let start = identity.get(START).and_then(|t| t.parse::<Instant>().ok());
    let start = start.ok_or_else(|| Error::fatal("the checkpoint does not tell where the pipeline began"))?;
    let Some(reached) = reached(resume)?.or(Some(start)) else { return Ok(start) };
    if now.seconds_since(reached) > stream.retention as f64 {
        let kept = now.plus_seconds(-stream.retention);
        return Err(Error::fatal(format!(
            "the change stream {} keeps changes since {kept}, and the pipeline has applied them through {reached}: \
             those between are lost to it",
            source.change_stream
        ))
        .hint("begin again with a new pipeline and a snapshot; a longer retention_period prevents it"));
    }
    Ok(start)
}

/// The oldest place that is still needed.
fn reached(resume: &Checkpoint) -> Result<Option<Instant>> {
    let mut oldest = None;
    for partition in resume.partitions.values().filter(|p| p.status != PartitionStatus::Finished) {
        let position = partition.position.as_ref().filter(|p| !p.token.is_empty()).or(partition.start.as_ref());
        if let Some(position) = position {
            let at = place::time(position)?;
            oldest = Some(oldest.map_or(at, |o: Instant| o.min(at)));
        }
    }
    Ok(oldest)
}

fn remarks(source: &Spanner, stream: &Stream) -> Vec<String> {
    let name = &source.change_stream;
    let mut remarks = Vec::new();
    if let Some(loses) = stream.capture.loses() {
        remarks.push(format!(
            "-- the change stream {name} captures {}: {loses}; {} is better",
            stream.capture.name(),
            Capture::NewRowAndOldValues.name()
        ));
    }
    for option in &stream.excludes {
        let what = match option.as_str() {
            "exclude_insert" => "inserts",
            "exclude_update" => "updates",
            "exclude_delete" => "deletes",
            "exclude_ttl_deletes" => "deletes by a row deletion policy",
            _ => "changes",
        };
        remarks.push(format!("-- the change stream {name} leaves out {what} ({option}): the target never has them"));
    }
    remarks
}

/// Checks what can be checked without a connection.
pub(crate) fn check_keys(source: &Spanner) -> Result<()> {
    crate::client::check_database(&source.database).map_err(|e| e.context("source.database"))?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = &source.change_stream;
    if name.is_empty() || !name.chars().all(allowed) {
        return Err(Error::config("source.change_stream", format!("{name:?} is not the name of a change stream"))
            .hint("name it with letters, digits and underscores"));
    }
    if !seconds(&source.retention).is_some_and(|s| RETENTION.contains(&s)) {
        return Err(Error::config("source.retention", format!("{:?} is not a retention period", source.retention))
            .hint("write 1d to 30d, or 24h to 720h"));
    }
    if !(1000..=300_000).contains(&source.heartbeat_ms) {
        return Err(Error::config("source.heartbeat", format!("{} ms is not possible", source.heartbeat_ms))
            .hint("write 1s to 300s"));
    }
    if let (Some(start), Some(end)) = (source.start, source.end)
        && end <= start
    {
        return Err(Error::config("source.end", format!("{end} does not come after start, {start}")));
    }
    Ok(())
}
