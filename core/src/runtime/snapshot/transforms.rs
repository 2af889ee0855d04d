//! Transforms that are others than when a copy was interrupted: the rows of the one kind and of the other
//! would stand beside each other.

use crate::error::Result;
use crate::model::{SnapshotPhase, TableSnapshot};
use crate::runtime::session::Session;

/// Forgets what was copied through other transforms: of tables that are not finished, and, until the stream
/// has begun, of those that are. From then on it is the stream that a table goes on with.
pub(super) fn begin_anew(session: &mut Session) -> Result<()> {
    let now = session.transforms.digest()?;
    let checkpoint = &mut session.keeper.checkpoint;
    let streamed = checkpoint.partitions.values().any(|p| p.position.is_some());
    let copying = checkpoint.snapshot.phase == SnapshotPhase::Copying && !streamed;
    for (name, table) in &mut checkpoint.snapshot.tables {
        let others = table.transforms.as_ref().is_some_and(|then| *then != now);
        if others && (copying || !table.finished) {
            tracing::warn!(table = %name, "its copy begins anew: the transforms are others than when it began");
            *table = TableSnapshot { into: table.into.take(), ..TableSnapshot::default() };
        }
    }
    Ok(())
}
