//! What may be done to changes between the source and the sink.

mod config;
mod custom;
mod filter;
mod mask;
mod pattern;
mod project;
mod rename;
mod rewrite;
mod schemas;
mod shard;

use std::fmt::Debug;
use std::sync::Arc;

pub use config::{MaskConfig, ShardConfig, TransformConfig};
pub use custom::Custom;
pub use filter::{Comparison, Condition, Filter, Literal};
pub use mask::{Mask, MaskRule};
pub use pattern::TablePattern;
pub use project::Project;
pub use rename::Rename;
pub use rewrite::{Rewriter, rewrite};
pub(crate) use rewrite::{after, part};
pub use shard::Shard;

use crate::error::Result;
use crate::model::{BatchBuilder, ChangeBatch, Op, PartitionId, Position, TableSchema, Transaction};

/// Changes batches on their way. Batch in, batch out; pure and fast: it runs on the reading side.
///
/// Called for every batch of a partition in order, heartbeats included, from one task. It must keep
/// the pieces' ranks and ends, and the batch's end and safe time: build with
/// [`BatchBuilder`], or with [`rewrite`], which does. The same batch must give
/// the same result: after a crash it is asked again.
pub trait Transform: Debug + Send {
    /// The batch as it goes on.
    ///
    /// # Errors
    /// [`Rejected`](crate::ErrorKind::Rejected) for data it cannot treat; [`Config`](crate::ErrorKind::Config)
    /// for a table or column that its settings name and the batch's schema does not have.
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch>;

    /// Whether a row can be found in the target by its key: the table that it is in, and its key there,
    /// depend on its table and key alone, and two keys stay two. A delete that has nothing but the key then
    /// takes the row away, whatever else was in it; or it is left out, and no row with this key goes to
    /// the target.
    ///
    /// An interrupted copy goes on in the middle of a table only if all transforms say so. The default
    /// does not.
    fn keeps_keys(&self) -> bool {
        false
    }

    /// Tells these settings from others, the same text at every start; no secret can be read from it. The
    /// checkpoint keeps a hash of it while tables are copied.
    ///
    /// A copy that was interrupted begins anew if its transforms are others then, for its rows would be half of the
    /// one kind and half of the other. Once a table is copied and the stream has begun, other transforms hold from
    /// there on: rows change with their next change, and nothing is copied again. The default tells nothing, and
    /// such a copy goes on.
    fn digest(&self) -> Option<String> {
        None
    }
}

/// What a table looks like after these transforms, one after another; `None` if they leave it out.
/// For the tables of the target, and to find a wrong setting before the first row.
///
/// # Errors
/// As [`Transform::apply`].
pub fn schema_after(
    transforms: &mut [Box<dyn Transform>],
    schema: &Arc<TableSchema>,
) -> Result<Option<Arc<TableSchema>>> {
    let mut batch = BatchBuilder::new(PartitionId::new("schema"));
    let at = batch.schema(schema);
    batch.begin(Transaction::default(), 1);
    batch.change(Op::Schema, at);
    let mut batch = batch.finish(Position::default(), None)?;
    for transform in transforms {
        batch = transform.apply(batch)?;
    }
    Ok(batch.changes().find(|c| c.op() == Op::Schema).map(|c| Arc::clone(c.schema())))
}

#[cfg(test)]
mod testing;
