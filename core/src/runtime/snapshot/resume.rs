//! Whether and how copies that were interrupted go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::model::{TableName, TableSchema, TableSnapshot};
use crate::runtime::saver::BEAT;
use crate::runtime::session::Session;
use crate::source::{ChangedRows, GoesOn, Snapshot, Snapshotter};

/// The copies that go on.
#[derive(Default)]
pub(super) struct Resumed {
    /// `None`: there is none.
    pub(super) snapshot: Option<Arc<dyn Snapshot>>,
    /// Tables that go on as they are.
    as_they_were: BTreeSet<TableName>,
    /// Tables that go on but for the rows that changed.
    pub(super) changed: BTreeMap<TableName, ChangedRows>,
}

impl Resumed {
    /// Whether what was copied of this table stays.
    pub(super) fn goes_on(&self, table: &TableName) -> bool {
        self.as_they_were.contains(table) || self.changed.contains_key(table)
    }
}

/// Asks the source to go on with what was interrupted, and decides about each table. `None`: stopped
/// meanwhile.
pub(super) async fn resume(
    session: &mut Session,
    snapshotter: &dyn Snapshotter,
    left: &[TableSchema],
    stop: &CancellationToken,
) -> Result<Option<Resumed>> {
    let before = session.keeper.checkpoint.snapshot.tables.clone();
    let is_planned = |t: &&TableSchema| before.get(&t.name).is_some_and(|b| b.chunks > 0);
    if !left.iter().any(|t| is_planned(&t)) {
        return Ok(Some(Resumed::default()));
    }
    let mut asked = snapshotter.resume(left, &before);
    let mut beat = interval(BEAT);
    let snapshot = loop {
        tokio::select! {
            biased;
            // 1. The answer.
            found = &mut asked => break found?,
            // 2. It may be long in coming. Nothing is lost if it does not.
            () = stop.cancelled() => return Ok(None),
            // 3. A sign of life.
            _ = beat.tick() => session.keeper.save().await?,
        }
    };
    drop(asked);
    let Some(snapshot) = snapshot else { return Ok(Some(Resumed::default())) };
    let snapshot: Arc<dyn Snapshot> = Arc::from(snapshot);
    let mut resumed = Resumed::default();
    for table in left.iter().filter(is_planned) {
        match snapshot.goes_on(&table.name) {
            GoesOn::AsItWas if lost(session, &table.name, &before[&table.name]).await? => {
                tracing::warn!(table = %table.name, "its interrupted copy begins anew: {LOST}");
            }
            GoesOn::AsItWas => drop(resumed.as_they_were.insert(table.name.clone())),
            GoesOn::Anew => {}
            GoesOn::But(changed) => match obstacle(session, &table.name, &before[&table.name]).await? {
                None => drop(resumed.changed.insert(table.name.clone(), changed)),
                Some(why) => tracing::warn!(table = %table.name, "its interrupted copy begins anew: {why}"),
            },
        }
    }
    for (table, changed) in &resumed.changed {
        let (done, chunks) = before.get(table).map_or((0, 0), |t| (t.done, t.chunks));
        tracing::info!(%table, done, chunks, changed = changed.rows.len(), "its interrupted copy goes on");
    }
    Ok(Some(Resumed { snapshot: Some(snapshot), ..resumed }))
}

/// What keeps rows from being taken out of what was copied.
async fn obstacle(session: &Session, table: &TableName, before: &TableSnapshot) -> Result<Option<&'static str>> {
    let Some((_, goal)) = session.tables.iter().find(|(source, _)| source.name == *table) else {
        return Ok(Some("it is not in the target"));
    };
    let Some(target) = session.spec.sink.target() else { return Ok(Some("the target does not describe its tables")) };
    if before.target.as_ref() != Some(&goal.digest()) {
        return Ok(Some("its table in the target is another one than when it began"));
    }
    if goal.key.is_empty() {
        return Ok(Some("it has no key"));
    }
    if !session.transforms.keep_keys() {
        return Ok(Some("a transform may give a row another key or another place by more than its key"));
    }
    if !target.resumes_copies(&goal.name).await? {
        return Ok(Some("the target cannot take rows out of a copy"));
    }
    Ok(lost(session, table, before).await?.then_some(LOST))
}

const LOST: &str = "what was copied is not in the target";

/// Whether the target has none of the rows that were copied: somebody removed them, or it is another one.
async fn lost(session: &Session, table: &TableName, before: &TableSnapshot) -> Result<bool> {
    let goal = session.tables.iter().find(|(source, _)| source.name == *table).map(|(_, goal)| &goal.name);
    match (goal, session.spec.sink.target()) {
        (Some(goal), Some(target)) if before.rows > 0 => target.is_empty(goal).await,
        _ => Ok(false),
    }
}
