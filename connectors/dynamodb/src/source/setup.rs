//! The start: tables are found and checked, streams are enabled, gaps are noticed.

use std::time::Duration;

use anabranch_core::{Checkpoint, Error, ErrorKind, Result, SnapshotPhase, SourceIdentity};
use aws_sdk_dynamodb::types::{StreamSpecification, StreamViewType, TableDescription, TableStatus};

use super::layout::Layout;
use super::{Connected, position};
use crate::error::classify;

/// Enabling a stream takes seconds; a table that is busy longer has another problem.
const ENABLING: Duration = Duration::from_secs(120);

/// How often it is asked whether a stream is enabled by now.
const ASK: Duration = Duration::from_millis(200);

/// The hint of every gap.
pub(super) const COPY_AGAIN: &str = "these changes can no longer be read: copy the table again, with empty tables in the target and a new pipeline name";

/// A table that is replicated.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) layout: Layout,
    /// Its stream; `None` before it is enabled, in a check.
    pub(crate) stream: Option<Stream>,
    /// Bytes, as DynamoDB tells every six hours.
    pub(crate) bytes: u64,
    pub(crate) items: Option<u64>,
    /// The checkpoint knows its stream: if that is disabled by now, it is read to its end.
    resumed: bool,
}

/// The stream of a table.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) arn: String,
    /// When it was enabled, in milliseconds since 1970: a later stream has a larger one.
    pub(crate) epoch: u64,
    pub(crate) enabled: bool,
}

impl Table {
    fn lacks_stream(&self) -> bool {
        !self.resumed && !self.stream.as_ref().is_some_and(|s| s.enabled)
    }

    pub(crate) fn stream(&self) -> Result<&Stream> {
        self.stream.as_ref().ok_or_else(|| Error::fatal(format!("the stream of {} was not prepared", self.name)))
    }
}

/// Looks at every table.
///
/// # Errors
/// `Config` for a missing table, a stream of the wrong view type or one that may not be enabled;
/// `Fatal` for a stream that is not the one of `resume`.
pub(super) async fn inspect(connected: &Connected, resume: Option<&Checkpoint>) -> Result<Vec<Table>> {
    if let Some(resume) = resume {
        check_same_tables(connected, resume)?;
    }
    let mut tables = Vec::new();
    for name in &connected.settings.tables {
        let description = describe(connected, name).await?;
        let mut table = table(connected, name, &description)?;
        let known = resume.and_then(|r| Some((r, r.identity.get(&key(name))?)));
        match (&table.stream, known) {
            (Some(stream), Some((_, arn))) if stream.arn == arn => table.resumed = true,
            (found, Some((resume, arn))) => return Err(another_stream(name, arn, found.as_ref(), resume)),
            (Some(stream), None) if !stream.enabled && !connected.settings.create => return Err(disabled(name)),
            (None, None) if !connected.settings.create => return Err(disabled(name)),
            _ => {}
        }
        tables.push(table);
    }
    Ok(tables)
}

async fn describe(connected: &Connected, name: &str) -> Result<TableDescription> {
    let answer = connected.clients().await?.tables.describe_table().table_name(name).send().await;
    let description = answer.map_err(|e| {
        let missing = crate::error::code(&e) == Some("ResourceNotFoundException");
        let place = connected.settings.access.place();
        match missing {
            true => Error::config("source.tables", format!("there is no table {name} at {place}"))
                .hint("check the name, the region and the endpoint"),
            false => classify("dynamodb:DescribeTable", format!("the table {name} at {place}"), e),
        }
    })?;
    description.table.ok_or_else(|| Error::fatal(format!("the table {name} was described by nothing")))
}

fn table(connected: &Connected, name: &str, description: &TableDescription) -> Result<Table> {
    if matches!(description.table_status(), Some(TableStatus::Deleting)) {
        return Err(Error::config("source.tables", format!("{name} is being deleted")));
    }
    let layout = Layout::new(&connected.settings, name, description.key_schema(), description.attribute_definitions())?;
    let specification = description.stream_specification();
    let enabled = specification.is_some_and(StreamSpecification::stream_enabled);
    if enabled {
        check_view(connected, name, specification.and_then(StreamSpecification::stream_view_type))?;
    }
    let stream = match (description.latest_stream_arn(), description.latest_stream_label()) {
        (Some(arn), Some(label)) => {
            let epoch = position::epoch(label).ok_or_else(|| {
                Error::fatal(format!("the stream of {name} has the label {label:?}, which is not a time"))
            })?;
            Some(Stream { arn: arn.to_owned(), epoch, enabled })
        }
        _ => None,
    };
    let bytes = description.table_size_bytes().and_then(|b| u64::try_from(b).ok()).unwrap_or(0);
    let items = description.item_count().and_then(|n| u64::try_from(n).ok());
    Ok(Table { name: name.to_owned(), layout, stream, bytes, items, resumed: false })
}

fn check_view(connected: &Connected, name: &str, view: Option<&StreamViewType>) -> Result<()> {
    match view {
        Some(StreamViewType::NewAndOldImages) => Ok(()),
        // An application that changes an item leaves its marker there: only the old image tells.
        Some(StreamViewType::NewImage) if !connected.settings.skip_origins.is_empty() => Err(Error::config(
            "source.skip_origins",
            format!("needs old images, and the stream of {name} has NEW_IMAGE"),
        )
        .hint(format!("disable the stream and enable it again: {}", enable_command(name)))),
        Some(StreamViewType::NewImage) => {
            tracing::warn!(table = name, "its stream has NEW_IMAGE: deletes carry only the key");
            Ok(())
        }
        other => {
            let has = other.map_or("no view type", |v| v.as_str());
            Err(Error::config(
                "source.tables",
                format!("the stream of {name} has {has}, which does not hold the items"),
            )
            .hint(format!(
                "disable it and enable it again: aws dynamodb update-table --table-name {name} \
                     --stream-specification StreamEnabled=false, then {}",
                enable_command(name)
            )))
        }
    }
}

fn enable_command(name: &str) -> String {
    format!(
        "aws dynamodb update-table --table-name {name} --stream-specification \
         StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES"
    )
}

fn disabled(name: &str) -> Error {
    Error::config("source.tables", format!("the stream of {name} is disabled"))
        .hint(format!("{}, or set create = true", enable_command(name)))
}

/// The stream that the pipeline has read is not the table's any more.
fn another_stream(name: &str, arn: &str, found: Option<&super::setup::Stream>, resume: &Checkpoint) -> Error {
    let now = match found {
        Some(stream) => format!("its stream is {} now", stream.arn),
        None => "it has no stream now".to_owned(),
    };
    let since = resume.saved_at.map(|t| format!(" since about {t}")).unwrap_or_default();
    let lost = match resume.snapshot.phase {
        SnapshotPhase::Done => format!("the changes{since} may be in neither"),
        _ => "the changes during the copy may be in neither".to_owned(),
    };
    Error::fatal(format!("the table {name} was read from the stream {arn}, and {now}: {lost}")).hint(COPY_AGAIN)
}

/// Everything of a stream that was disabled has been read and applied.
pub(super) fn ended(table: &Table) -> Error {
    Error::fatal(format!(
        "the stream of {} was disabled: all that was in it is applied, and what was written since is in no stream",
        table.name
    ))
    .hint("enable it and copy the table again, with empty tables in the target and a new pipeline name")
}

/// A table that was read before and is not configured any more would stand still unseen.
fn check_same_tables(connected: &Connected, resume: &Checkpoint) -> Result<()> {
    let configured: Vec<String> = connected.settings.tables.iter().map(|t| key(t)).collect();
    if resume.identity.0.keys().any(|k| !k.starts_with(KEY)) {
        return Err(Error::fatal("the checkpoint is of another kind of source").hint("choose another pipeline name"));
    }
    match resume.identity.0.keys().find(|k| !configured.contains(k)) {
        Some(gone) => {
            let table = gone.strip_prefix(KEY).unwrap_or(gone);
            Err(Error::config("source.tables", format!("has no {table}, which this pipeline read before"))
                .hint("put it back; to stop reading it, begin with a new pipeline name"))
        }
        None => Ok(()),
    }
}

const KEY: &str = "stream of ";

fn key(table: &str) -> String {
    format!("{KEY}{table}")
}

/// Which streams these are.
pub(super) fn identity(tables: &[Table]) -> SourceIdentity {
    let streams = tables.iter().filter_map(|t| Some((key(&t.name), t.stream.as_ref()?.arn.clone())));
    streams.fold(SourceIdentity::default(), |identity, (name, arn)| identity.with(name, arn))
}

/// The commands that [`enable_streams`] would stand for.
pub(super) fn statements(connected: &Connected, tables: &[Table]) -> Vec<String> {
    let missing = tables.iter().filter(|t| t.lacks_stream() && connected.settings.create);
    missing.map(|t| enable_command(&t.name)).collect()
}

/// Enables the streams that tables lack. One that was disabled while the pipeline read it is read
/// to its end first: [`inspect`] has let it through because it is the one of the checkpoint.
pub(super) async fn enable_streams(connected: &Connected, tables: &mut [Table]) -> Result<()> {
    for table in tables.iter_mut() {
        if !table.lacks_stream() || !connected.settings.create {
            continue;
        }
        let specification = StreamSpecification::builder()
            .stream_enabled(true)
            .stream_view_type(StreamViewType::NewAndOldImages)
            .build()
            .map_err(|e| Error::fatal("cannot ask for a stream").because(e))?;
        let update = connected.clients().await?.tables.update_table().table_name(&table.name);
        let answer = update.stream_specification(specification).send().await;
        answer.map_err(|e| classify("dynamodb:UpdateTable", format!("the table {}", table.name), e))?;
        tracing::info!(table = table.name, "its stream is enabled");
        *table = until_enabled(connected, &table.name).await?;
    }
    Ok(())
}

async fn until_enabled(connected: &Connected, name: &str) -> Result<Table> {
    let deadline = tokio::time::Instant::now() + ENABLING;
    loop {
        let description = describe(connected, name).await?;
        let found = table(connected, name, &description)?;
        let active = matches!(description.table_status(), None | Some(TableStatus::Active));
        if active && found.stream.as_ref().is_some_and(|s| s.enabled) {
            return Ok(found);
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::new(ErrorKind::Transient, format!("the stream of {name} is still being enabled")));
        }
        tokio::time::sleep(ASK).await;
    }
}
