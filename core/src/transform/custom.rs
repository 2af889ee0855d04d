//! A transform of the caller's own.

use std::fmt;

use super::Transform;
use crate::error::Result;
use crate::model::ChangeBatch;

/// A closure as a transform. It must give the same result for the same batch, and keep its place
/// in the stream: see [`rewrite`](super::rewrite).
///
/// ```
/// use anabranch_core::Op;
/// use anabranch_core::transform::{Custom, rewrite};
/// let _no_deletes = Custom::new(|batch| {
///     rewrite(&batch, |change, out| {
///         if change.op() != Op::Delete {
///             out.keep(change);
///         }
///         Ok(())
///     })
/// });
/// ```
pub struct Custom<F>(F);

impl<F: FnMut(ChangeBatch) -> Result<ChangeBatch> + Send> Custom<F> {
    /// A transform that calls `apply` for each batch.
    pub fn new(apply: F) -> Self {
        Self(apply)
    }
}

impl<F: FnMut(ChangeBatch) -> Result<ChangeBatch> + Send> Transform for Custom<F> {
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch> {
        self.0(batch)
    }
}

impl<F> fmt::Debug for Custom<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Custom")
    }
}
