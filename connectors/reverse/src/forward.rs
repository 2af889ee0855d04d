//! Leaves out what the forward migration wrote, so that it is not sent back to where it came from.

use std::sync::Arc;

use anabranch_core::transform::{Transform, rewrite};
use anabranch_core::{ChangeBatch, LetterClass, Result};

/// Leaves out every transaction whose tag begins with a prefix: `txBy=` is what the forward
/// migration's job, and anabranch's own Spanner sink, put there. It is counted as filtered.
#[derive(Debug, Clone)]
pub struct ForwardMigration {
    prefix: String,
}

impl Default for ForwardMigration {
    fn default() -> Self {
        Self { prefix: "txBy=".to_owned() }
    }
}

impl ForwardMigration {
    /// Leaves out transactions with this prefix of their tags.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }
}

impl Transform for ForwardMigration {
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch> {
        let tagged = |tag: &Option<Arc<str>>| tag.as_ref().is_some_and(|tag| tag.starts_with(&self.prefix));
        if !batch.pieces().iter().any(|p| tagged(&p.transaction.tag)) {
            return Ok(batch);
        }
        rewrite(&batch, |change, out| {
            match &change.piece().transaction.tag {
                tag @ Some(name) if tagged(tag) => {
                    let reason = format!("written by the forward migration: the transaction's tag is {name}");
                    out.leave_out(change, LetterClass::Filtered, reason);
                }
                _ => out.keep(change),
            }
            Ok(())
        })
    }
}
