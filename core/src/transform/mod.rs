//! What may be done to changes between the source and the sink.

use std::fmt::Debug;

use crate::error::Result;
use crate::model::ChangeBatch;

/// Changes batches on their way. Batch in, batch out; pure and fast: it runs on the reading side.
///
/// Called for every batch of a partition in order, heartbeats included, from one task. It must keep
/// the pieces' ranks and ends, and the batch's end and safe time: build with
/// [`BatchBuilder`](crate::BatchBuilder), or with `rewrite`, which does. The same batch must give
/// the same result: after a crash it is asked again.
pub trait Transform: Debug + Send {
    /// The batch as it goes on.
    ///
    /// # Errors
    /// [`Rejected`](crate::ErrorKind::Rejected) for data it cannot treat; [`Config`](crate::ErrorKind::Config)
    /// for a table or column that its settings name and the batch's schema does not have.
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch>;
}
