//! Shards that are halted: asked whether they answer again, and blamed for lanes that fail.

use std::sync::Arc;

use super::super::shards::blame;
use super::{Coordinator, panicked};
use crate::error::{Error, Result};

impl Coordinator {
    /// Asks the halted shards whose time it is.
    pub(super) fn ask_halted(&mut self) {
        if !self.asking.is_empty() {
            return;
        }
        let spec = &self.reader_seed.spec;
        let Some(sharded) = spec.sink.sharded() else { return };
        for &shard in self.halted.keys().filter(|shard| self.shared.may_ask(**shard)) {
            let Some(sink) = sharded.shard(shard).cloned() else { continue };
            let pipeline = Arc::clone(&spec.name);
            self.asking.spawn(async move {
                let answer = match sink.progress() {
                    Some(store) => store.read(&pipeline).await.map(|_| ()),
                    None => Ok(()),
                };
                (shard, answer)
            });
        }
    }

    pub(super) fn on_answer(&mut self, shard: usize, answer: Result<()>) -> Result<()> {
        match answer {
            Ok(()) => {
                self.shared.shard_answers(shard);
                Err(Error::transient("a halted shard answers again: its changes are applied"))
            }
            Err(e) => {
                self.shared.still_halted(shard, &e.report());
                Ok(())
            }
        }
    }

    /// A lane failed: its shard is to blame, where there are shards.
    pub(super) fn lane_failed(&self, ended: Result<(usize, Result<()>), tokio::task::JoinError>) -> Error {
        match ended {
            Ok((_, Ok(()))) => Error::transient("a lane ended"),
            Ok((lane, Err(e))) => blame(&self.reader_seed.spec, &self.shared, lane / self.group, e),
            Err(e) => panicked(e),
        }
    }
}
