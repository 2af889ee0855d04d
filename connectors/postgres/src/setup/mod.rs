//! What happens once at every start: a plan, made by looking only, and its execution, which creates
//! what is missing and allowed.

pub(crate) mod publication;
pub(crate) mod slot;

use anabranch_core::{Checkpoint, Error, ErrorKind, Position, Result, SourceIdentity};
use tokio_postgres::Client;

use crate::error::classify;
use crate::lsn::Lsn;
use crate::source::Postgres;
use crate::sql;
use crate::wire::Connection;

/// Which server this is, as IDENTIFY_SYSTEM tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct System {
    identifier: String,
    timeline: u32,
}

/// What a start has found, and what is left for it to create.
struct Plan {
    identity: SourceIdentity,
    /// Creates the publication: a statement.
    publication: Option<String>,
    /// Creates the slot: a command of the replication protocol.
    slot: Option<String>,
    /// The server's process that reads the slot now.
    read_by: Option<i32>,
}

/// Checks `source.publication` and `source.slot` as far as it can be without a connection.
pub fn check_names(publication: &str, slot: &str) -> Result<()> {
    if publication.is_empty() {
        return Err(Error::config("source.publication", "is empty").hint("name the publication"));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if slot.is_empty() || slot.len() > 63 || !slot.chars().all(allowed) {
        return Err(Error::config("source.slot", format!("{slot:?} is not the name of a slot"))
            .hint("1 to 63 lower-case letters, digits and underscores"));
    }
    Ok(())
}

/// Checks `source.tables` as far as it can be without a connection.
pub(crate) fn check_table_names(tables: &[String]) -> Result<()> {
    publication::check_names(tables)
}

/// See [`anabranch_core::Source::prepare`].
pub(crate) async fn prepare(source: &Postgres, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
    let mut connection = Connection::open(source.session()?.endpoint(), "anabranch setup").await?;
    let plan = plan(source, &mut connection, resume).await?;
    if let Some(pid) = plan.read_by {
        return Err(Error::transient(format!("the slot {} is read by the server's process {pid}", source.slot))
            .hint("another runner has it, or one that died has not been noticed yet"));
    }
    // The publication first: the server reads it as it was when a change was made, and a slot that
    // is older than its publication cannot be read.
    if let Some(statement) = &plan.publication {
        publication::create(source, &*source.session()?.client().await?, statement).await?;
    }
    if let Some(command) = &plan.slot {
        create_slot(&source.slot, &mut connection, command).await?;
    }
    connection.close().await;
    Ok(plan.identity)
}

/// See [`anabranch_core::Source::check`].
pub(crate) async fn check(source: &Postgres, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
    let mut connection = Connection::open(source.session()?.endpoint(), "anabranch check").await?;
    let plan = plan(source, &mut connection, resume).await?;
    connection.close().await;
    Ok(plan.publication.into_iter().chain(plan.slot).collect())
}

/// Checks everything and changes nothing.
async fn plan(source: &Postgres, connection: &mut Connection, resume: Option<&Checkpoint>) -> Result<Plan> {
    let session = source.session()?;
    let client = session.client().await?;
    check_version(source.version().await?)?;
    check_wal_level(&client).await?;
    check_role(&client).await?;
    let system = identify(connection).await?;
    let identity = SourceIdentity::default()
        .with("system_identifier", &system.identifier)
        .with("database", session.endpoint().database())
        .with("slot", &source.slot)
        .with("publication", &source.publication)
        .with("timeline", system.timeline.to_string());
    let reached = resume.map(reached).transpose()?.flatten();
    if let Some(resume) = resume {
        check_identity(&resume.identity, &identity)?;
        check_timeline(connection, &resume.identity, &system, reached).await?;
    }
    let publication = publication::plan(source, &client).await?;
    publication::check_tables(source, &client, reached.is_none()).await?;
    let (slot, read_by) = plan_slot(source, &client, reached).await?;
    source.note_checked(system);
    Ok(Plan { identity, publication, slot, read_by })
}

/// The place that the pipeline has applied everything through; `None` before it has applied anything.
fn reached(resume: &Checkpoint) -> Result<Option<Lsn>> {
    let streamed = resume.partitions.values().filter_map(|p| p.position.as_ref()).map(Lsn::of_token);
    let streamed = streamed.collect::<Result<Vec<_>>>()?.into_iter().min();
    if streamed.is_some() {
        return Ok(streamed);
    }
    // Copied, and nothing streamed yet: changes since the earliest copy must still come. A table
    // whose copy was about to be planned has no point yet.
    let planned = resume.snapshot.tables.values().filter(|t| t.point != Position::default());
    let copied = planned.map(|t| Lsn::of_rank(&t.point).map(|(lsn, _)| lsn));
    Ok(copied.collect::<Result<Vec<_>>>()?.into_iter().min())
}

pub(crate) async fn version(client: &Client) -> Result<u32> {
    let row = client
        .query_one("SELECT current_setting('server_version_num')::int4", &[])
        .await
        .map_err(|e| classify(e, "cannot read the server's version"))?;
    Ok(u32::try_from(row.get::<_, i32>(0)).unwrap_or(0))
}

fn check_version(version: u32) -> Result<()> {
    match version / 10_000 {
        15..=18 => Ok(()),
        newer @ 19.. => {
            tracing::warn!(version = newer, "this library was tested with PostgreSQL 15 to 18");
            Ok(())
        }
        older => Err(Error::config("source.url", format!("the server runs PostgreSQL {older}"))
            .hint("PostgreSQL 15 or later is needed")),
    }
}

async fn check_wal_level(client: &Client) -> Result<()> {
    let row = client
        .query_one("SELECT current_setting('wal_level')", &[])
        .await
        .map_err(|e| classify(e, "cannot read wal_level"))?;
    match row.get(0) {
        "logical" => Ok(()),
        other => Err(Error::config("source.url", format!("the server's wal_level is {other}, not logical"))
            .hint("ALTER SYSTEM SET wal_level = logical; then restart the server")),
    }
}

/// On Amazon RDS a role replicates by membership in `rds_replication`.
async fn check_role(client: &Client) -> Result<()> {
    let row = client
        .query_one(
            "SELECT current_user::text, rolsuper OR rolreplication OR EXISTS ( \
               SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' \
                 AND pg_has_role(current_user, g.oid, 'member')) \
             FROM pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .map_err(|e| classify(e, "cannot read pg_roles"))?;
    let (user, may): (String, bool) = (row.get(0), row.get(1));
    if may {
        return Ok(());
    }
    Err(Error::config("source.url", format!("the role {user} may not replicate"))
        .hint(format!("ALTER ROLE {} REPLICATION;", sql::ident(&user))))
}

/// Whether this is the server that was checked. A standby that was promoted since, or another one behind the same
/// name, may lack what was applied: the stream would begin there without a word, at a place of another history.
pub(crate) async fn check_same(connection: &mut Connection, checked: &System) -> Result<()> {
    let now = identify(connection).await?;
    if now == *checked {
        return Ok(());
    }
    Err(Error::transient(format!(
        "this is another server than the one that was checked (system {} on timeline {}, then {} on {}): a failover, which \
         has to be looked at first",
        now.identifier, now.timeline, checked.identifier, checked.timeline
    )))
}

async fn identify(connection: &mut Connection) -> Result<System> {
    let rows = connection.query("IDENTIFY_SYSTEM", "cannot identify the server").await?;
    match rows.into_iter().next().as_deref() {
        Some([Some(identifier), Some(timeline), ..]) => Ok(System {
            identifier: identifier.clone(),
            timeline: timeline.parse().map_err(|_| Error::fatal("the server's timeline is not a number"))?,
        }),
        _ => Err(Error::fatal("the server does not identify itself")),
    }
}

fn check_identity(stored: &SourceIdentity, now: &SourceIdentity) -> Result<()> {
    for (key, what) in [
        ("system_identifier", "another server: its system identifier"),
        ("database", "another database: its name"),
        ("slot", "another slot: its name"),
        ("publication", "another publication: its name"),
    ] {
        if let (Some(was), Some(is)) = (stored.get(key), now.get(key))
            && was != is
        {
            return Err(Error::fatal(format!("the checkpoint belongs to {what} was {was} and is {is}")).hint(
                "point source to what it was, or start the pipeline anew with a fresh checkpoint and a fresh copy",
            ));
        }
    }
    Ok(())
}

/// After a failover: whether what was applied is part of the new primary's history.
async fn check_timeline(
    connection: &mut Connection,
    stored: &SourceIdentity,
    system: &System,
    reached: Option<Lsn>,
) -> Result<()> {
    let Some(was) = stored.get("timeline").and_then(|t| t.parse::<u32>().ok()) else { return Ok(()) };
    let Some(reached) = reached.filter(|_| was != system.timeline) else { return Ok(()) };
    let fork = if was > system.timeline {
        None
    } else {
        let history = connection
            .query(&format!("TIMELINE_HISTORY {}", system.timeline), "cannot read the timeline's history")
            .await?;
        let text = history.into_iter().next().and_then(|row| row.into_iter().nth(1).flatten()).unwrap_or_default();
        fork_of(&text, was)
    };
    match fork {
        Some(fork) if reached <= fork => {
            tracing::warn!(from = was, to = system.timeline, %fork, "the source failed over; going on");
            Ok(())
        }
        Some(fork) => Err(Error::fatal(format!(
            "the source failed over from timeline {was} to {} at {fork}, and this pipeline has applied the changes \
             through {reached}: those between are in the target and not in the source",
            system.timeline
        ))
        .hint("compare source and target and repair, or copy the tables again with a fresh checkpoint")),
        None => Err(Error::fatal(format!(
            "the source is on timeline {}, which does not descend from {was}, where this pipeline was",
            system.timeline
        ))
        .hint("it was restored from a backup; copy the tables again with a fresh checkpoint")),
    }
}

/// Where a timeline was left, by a history file: lines of timeline, place and reason.
fn fork_of(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        (fields.next()?.parse::<u32>().ok()? == timeline).then(|| fields.next()?.parse().ok())?
    })
}

/// The command that creates the slot, if it is missing; else who reads it.
async fn plan_slot(source: &Postgres, client: &Client, reached: Option<Lsn>) -> Result<(Option<String>, Option<i32>)> {
    let name = &source.slot;
    if let Some(slot) = slot::read(client, name).await? {
        slot.check(source.session()?.endpoint().database(), reached)?;
        if slot.active_pid.is_none() {
            // While it is read it moves, and what was reached is known too late to be compared.
            slot.check_reaches(reached)?;
        }
        return Ok((None, slot.active_pid));
    }
    // A slot that is created now begins now: what was committed since would be skipped silently.
    if reached.is_some() || !source.create {
        return Err(slot::missing(name, reached));
    }
    let failover = match (source.failover, source.version().await?) {
        (true, 170_000..) => ", FAILOVER true",
        (true, _) => {
            return Err(Error::config("source.failover", "failover slots need PostgreSQL 17 or later"));
        }
        (false, _) => "",
    };
    slot::check_free(client).await?;
    let create =
        format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'nothing'{failover})", sql::ident(name));
    Ok((Some(create), None))
}

async fn create_slot(name: &str, connection: &mut Connection, command: &str) -> Result<()> {
    tracing::info!(slot = %name, "creating the slot; this waits for the transactions that are open now");
    connection.query(command, &format!("cannot create the slot {name}")).await.map(drop).map_err(no_slots_left)
}

/// Every slot is in use: it does not become free by waiting.
pub(crate) fn no_slots_left(e: Error) -> Error {
    if !e.to_string().contains("53400") {
        return e;
    }
    e.with_kind(ErrorKind::Config).hint(slot::FREE_A_SLOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_where_a_timeline_was_left_is_found() {
        let history = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000060\tx\n";
        assert_eq!(fork_of(history, 1), Some(Lsn(0x300_0148)));
        assert_eq!(fork_of(history, 2), Some(Lsn(0x500_0060)));
        assert_eq!(fork_of(history, 3), None);
        assert_eq!(fork_of("", 1), None);
    }

    #[test]
    fn another_server_is_refused() {
        let a = SourceIdentity::default().with("system_identifier", "1").with("slot", "s");
        assert!(check_identity(&a, &a).is_ok());
        assert!(check_identity(&SourceIdentity::default(), &a).is_ok());
        let b = SourceIdentity::default().with("system_identifier", "2").with("slot", "s");
        assert_eq!(check_identity(&a, &b).unwrap_err().kind(), ErrorKind::Fatal);
    }
}
