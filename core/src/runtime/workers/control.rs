//! The pipeline's own record, beside those of its partitions: what holds for all of them.

use crate::checkpointer::{Checkpointer, Saved};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Sharing, SnapshotProgress, Timestamp};
use crate::pipeline::{SnapshotMode, Spec};

/// How often a change is tried again after somebody else's.
const TRIES: usize = 100;

/// The record.
pub(super) async fn load(spec: &Spec) -> Result<Checkpoint> {
    let stored = spec.checkpointer.load(&spec.name).await?;
    stored.map(|(_, checkpoint)| checkpoint).ok_or_else(|| Error::fatal("the pipeline's checkpoint is gone"))
}

/// Marks the pipeline as one that several workers share, so that none runs it alone.
pub(super) async fn mark(spec: &Spec) -> Result<()> {
    change(spec, |checkpoint| {
        if checkpoint.sharing.is_some() {
            return Ok(false);
        }
        if checkpoint.epoch > 0 {
            return Err(Error::config("workers", format!("the pipeline {} has run without workers", spec.name))
                .hint("leave [workers] out, or give the pipeline another name, which begins anew"));
        }
        checkpoint.sharing = Some(Sharing::default());
        Ok(true)
    })
    .await
}

/// What the set-up has found out.
pub(super) async fn set_up(spec: &Spec, found: &Checkpoint) -> Result<()> {
    change(spec, |checkpoint| {
        checkpoint.identity = found.identity.clone();
        checkpoint.order = found.order.clone();
        checkpoint.lanes = found.lanes;
        checkpoint.snapshot = found.snapshot.clone();
        Ok(true)
    })
    .await
}

/// A table that was published after the copying has rows that no stream will ever bring.
pub(super) async fn no_new_tables(spec: &Spec, copied: &SnapshotProgress) -> Result<()> {
    if spec.snapshot == SnapshotMode::Never || copied.skipped {
        return Ok(());
    }
    match spec.source.tables().await?.into_iter().find(|t| !copied.tables.contains_key(&t.name)) {
        Some(new) => {
            Err(Error::config("workers", format!("the table {} was not there when the tables were copied", new.name))
                .hint("several workers copy at the beginning only: run another pipeline for it"))
        }
        None => Ok(()),
    }
}

/// Changes the record; `edit` tells whether it did, and is called anew after a conflict.
async fn change(spec: &Spec, edit: impl Fn(&mut Checkpoint) -> Result<bool> + Send + Sync) -> Result<()> {
    change_record(spec.checkpointer.as_ref(), &spec.name, true, edit).await.map(drop)
}

/// Changes the record of a pipeline by compare-and-set. False if there is none, unless it is to be created.
pub(crate) async fn change_record(
    checkpointer: &dyn Checkpointer,
    pipeline: &str,
    create: bool,
    edit: impl Fn(&mut Checkpoint) -> Result<bool> + Send + Sync,
) -> Result<bool> {
    for _ in 0..TRIES {
        let (version, mut checkpoint) = match checkpointer.load(pipeline).await? {
            Some((version, checkpoint)) => (Some(version), checkpoint),
            None if create => (None, Checkpoint::default()),
            None => return Ok(false),
        };
        if !edit(&mut checkpoint)? {
            return Ok(true);
        }
        checkpoint.saved_at = Some(Timestamp::now());
        if let Saved::Committed(_) = checkpointer.save(pipeline, version, &checkpoint).await? {
            return Ok(true);
        }
    }
    Err(Error::transient(format!("the checkpoint of {pipeline} is changed by others again and again")))
}
