//! What happens once at every start: a plan, made by looking only, and its execution, which creates
//! what is missing and allowed. There is no `IDENTIFY_SYSTEM` here: the slot's stream is the identity.

use anabranch_core::{Checkpoint, Error, Position, Result, SourceIdentity, Timestamp};
use anabranch_postgres::Lsn;
use anabranch_postgres::layer::{classify, ident, resume_at, time_of};
use tokio_postgres::Client;

use crate::config::LsnType;
use crate::slot::{self, Slot, Wanted};
use crate::source::Yugabyte;
use crate::{publication, version};

/// How far the pipeline is: before this time everything is applied, and the stream goes on at this place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reached {
    time: Timestamp,
    /// `None`: nothing was streamed yet.
    place: Option<Lsn>,
}

struct Plan {
    statements: Vec<String>,
    /// Creates the slot: a command of the replication protocol.
    create_slot: Option<String>,
    slot: Option<Slot>,
}

/// See [`anabranch_core::Source::prepare`].
pub(crate) async fn prepare(source: &Yugabyte, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
    let plan = plan(source, resume).await?;
    let client = source.server()?.client().await?;
    // The publication first: the server reads it as it was when the slot was created.
    publication::create(&client, &plan.statements).await?;
    if let Some(command) = &plan.create_slot {
        tracing::info!(slot = %source.slot_name(), "creating the slot");
        source.server()?.command("anabranch setup", command, "cannot create the slot").await?;
    }
    let slot = match plan.slot {
        Some(slot) => slot,
        None => slot::read(&client, source.slot_name())
            .await?
            .ok_or_else(|| slot::missing(source.slot_name(), source.plugin_of_slot(), None))?,
    };
    identity(source, &slot)
}

/// See [`anabranch_core::Source::check`].
pub(crate) async fn check(source: &Yugabyte, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
    let plan = plan(source, resume).await?;
    Ok(plan.statements.into_iter().chain(plan.create_slot).collect())
}

/// Checks everything and changes nothing.
async fn plan(source: &Yugabyte, resume: Option<&Checkpoint>) -> Result<Plan> {
    let client = source.server()?.client().await?;
    let version = version::check(&client, "source.url").await?;
    for advisory in version.advisories() {
        tracing::warn!(%version, "{advisory}");
    }
    check_role(&client).await?;
    let reached = resume.map(reached).transpose()?.flatten();
    source.note_resumed(reached.is_some());
    let slot = slot::read(&client, source.slot_name()).await?;
    if let Some(resume) = resume {
        check_names(&resume.identity, &names(source)?)?;
        if let Some(slot) = &slot {
            check_stream(&resume.identity, slot, reached)?;
        }
    }
    let statements = publication::plan(source, &client).await?;
    publication::check_tables(&source.published().await?, source.plugin_of_slot())?;
    let create_slot = match &slot {
        Some(slot) => {
            slot.check(&wanted(source)?, reached.map(|r| r.time))?;
            slot.check_reaches(reached.and_then(|r| r.place))?;
            None
        }
        // A slot that is created now begins now: what was committed since would be skipped silently.
        None if reached.is_some() || !source.may_create() => {
            return Err(slot::missing(source.slot_name(), source.plugin_of_slot(), reached.map(|r| r.time)));
        }
        None => Some(create_slot(source)),
    };
    Ok(Plan { statements, create_slot, slot })
}

/// Without a clause for snapshots the server keeps the rows as they are at the slot's hybrid time for a copy.
fn create_slot(source: &Yugabyte) -> String {
    let (name, plugin) = (ident(source.slot_name()), source.plugin_of_slot().name());
    match source.lsn_type_wanted() {
        Some(lsn_type) => format!("CREATE_REPLICATION_SLOT {name} LOGICAL {plugin} {lsn_type}"),
        None => format!("CREATE_REPLICATION_SLOT {name} LOGICAL {plugin}"),
    }
}

pub(crate) fn wanted(source: &Yugabyte) -> Result<Wanted<'_>> {
    Ok(Wanted {
        database: source.server()?.database(),
        plugin: source.plugin_of_slot(),
        lsn_type: source.lsn_type_wanted(),
        retention: source.retention_of_server(),
    })
}

/// The place that the pipeline has applied everything through; `None` before it has applied anything.
fn reached(resume: &Checkpoint) -> Result<Option<Reached>> {
    let streamed = resume.partitions.values().filter_map(|p| p.position.as_ref());
    if let Some(position) = streamed.min_by(|a, b| a.rank.cmp(&b.rank)) {
        return Ok(Some(Reached { time: time_of(position)?, place: Some(resume_at(position)?) }));
    }
    // Copied, and nothing streamed yet: changes since the earliest copy must still come. A table whose
    // copy was about to be planned has no point yet.
    let planned = resume.snapshot.tables.values().map(|t| &t.point).filter(|p| **p != Position::default());
    let first = planned.min_by(|a, b| a.rank.cmp(&b.rank));
    first.map(|point| Ok(Reached { time: time_of(point)?, place: None })).transpose()
}

/// A user without the right sees it refused only when the stream begins.
async fn check_role(client: &Client) -> Result<()> {
    let row = client
        .query_one(
            "SELECT current_user::text, rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .map_err(|e| classify(e, "cannot read pg_roles"))?;
    let (user, may): (String, bool) = (row.get(0), row.get(1));
    if may {
        return Ok(());
    }
    Err(Error::config("source.url", format!("the role {user} may not replicate"))
        .hint(format!("ALTER ROLE {} REPLICATION;", ident(&user))))
}

fn names(source: &Yugabyte) -> Result<SourceIdentity> {
    Ok(SourceIdentity::default()
        .with("system", "yugabytedb")
        .with("database", source.server()?.database())
        .with("slot", source.slot_name())
        .with("publication", source.publication_name())
        .with("plugin", source.plugin_of_slot().name()))
}

fn identity(source: &Yugabyte, slot: &Slot) -> Result<SourceIdentity> {
    Ok(names(source)?.with("lsn_type", slot.lsn_type.to_string()).with("stream", &slot.stream))
}

fn check_names(stored: &SourceIdentity, now: &SourceIdentity) -> Result<()> {
    for (key, what) in [
        ("system", "another kind of database: it"),
        ("database", "another database: its name"),
        ("slot", "another slot: its name"),
        ("publication", "another publication: its name"),
        ("plugin", "a slot with another plugin: it"),
    ] {
        if let (Some(was), Some(is)) = (stored.get(key), now.get(key))
            && was != is
        {
            return Err(Error::fatal(format!("the checkpoint belongs to {what} was {was} and is {is}")).hint(ANEW));
        }
    }
    // A PostgreSQL source has no such fact.
    match stored.get("system") {
        None if stored.get("system_identifier").is_some() => {
            Err(Error::fatal("the checkpoint belongs to another kind of database: PostgreSQL").hint(ANEW))
        }
        _ => Ok(()),
    }
}

const ANEW: &str = "point source to what it was, or start the pipeline anew with a fresh checkpoint and a fresh copy";

/// Whether the checkpoint's places mean anything to this slot.
fn check_stream(stored: &SourceIdentity, slot: &Slot, reached: Option<Reached>) -> Result<()> {
    let now = slot.lsn_type.to_string();
    if let Some(was) = stored.get("lsn_type").filter(|was| *was != now) {
        return Err(Error::fatal(format!(
            "the checkpoint has LSNs of type {was}, and the slot now has {now}: a {was} LSN says nothing about a {now} one"
        ))
        .hint(ANEW));
    }
    if stored.get("stream").is_none_or(|was| *was == slot.stream) {
        return Ok(());
    }
    let begins = slot::time_of(slot.restart);
    match (slot.lsn_type, reached) {
        // Its places are commit times: what this slot still has can be told.
        (LsnType::HybridTime, Some(reached)) if begins < reached.time => Ok(()),
        (LsnType::HybridTime, reached) => {
            let from = reached.map_or_else(|| "the copy".to_owned(), |r| r.time.to_string());
            Err(Error::fatal(format!(
                "the slot was created anew and has the changes committed after {begins}; this pipeline has applied those \
                 through {from}, and what lies between is lost to both"
            ))
            .hint(LOST))
        }
        (LsnType::Sequence, _) => Err(Error::fatal(
            "the slot was created anew, and the SEQUENCE LSNs of one slot mean nothing to another: what was committed \
             between the last applied change and the new slot's beginning is lost",
        )
        .hint(LOST)),
    }
}

const LOST: &str = "start the pipeline anew with a fresh checkpoint and a fresh copy; or with snapshot = \"never\" and then \
                    compare and repair: anabranch verify --repair";

#[cfg(test)]
mod tests {
    use super::*;
    use anabranch_core::ErrorKind;

    fn stored(lsn_type: &str, stream: &str) -> SourceIdentity {
        SourceIdentity::default().with("system", "yugabytedb").with("lsn_type", lsn_type).with("stream", stream)
    }

    #[test]
    fn another_kind_of_source_is_refused() {
        let now = SourceIdentity::default().with("system", "yugabytedb").with("slot", "s");
        assert!(check_names(&now, &now).is_ok());
        let postgres = SourceIdentity::default().with("system_identifier", "7").with("slot", "s");
        assert_eq!(check_names(&postgres, &now).unwrap_err().kind(), ErrorKind::Fatal);
        assert!(check_names(&now.clone().with("slot", "t"), &now).is_err());
        assert_eq!(stored("SEQUENCE", "1").get("stream"), Some("1"));
    }
}
