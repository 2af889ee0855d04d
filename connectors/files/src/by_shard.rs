//! Each shard of a run by itself, and what is stored of its writer: `_writers/<pipeline>/<shard>.json`.

use std::sync::Arc;

use anabranch_core::{ByShard, Error, Result, ShardList, Source, WriterStatus};
use async_trait::async_trait;

use crate::error::damaged;
use crate::ledger::{Ledger, ShardEntry};
use crate::names;
use crate::source::{Shards, WindowSource};

#[async_trait]
impl ByShard for WindowSource {
    async fn shards(&self) -> Result<ShardList> {
        let ledger = Ledger::load(&self.store()?, &self.settings.run).await?.map(|(ledger, _)| ledger);
        let through = ledger.as_ref().and_then(|l| l.safe_time);
        let names = match &self.settings.shards {
            Shards::All => {
                let entries = ledger.map(|l| l.shards).unwrap_or_default().into_values();
                // Messages are for no database: where there are shards, they alone make none.
                let is_one = |entry: &ShardEntry| entry.name.is_some() || entry.has_rows();
                entries.filter(is_one).map(|entry| entry.name.unwrap_or_default()).collect()
            }
            Shards::These(shards) => shards.clone(),
            Shards::One(shard) => vec![shard.clone()],
        };
        Ok(ShardList { names, through })
    }

    fn shard(&self, name: &str) -> Arc<dyn Source> {
        Arc::new(self.clone().shard(name))
    }

    async fn load(&self, writer: &str, shard: &str) -> Result<Option<WriterStatus>> {
        let store = self.store()?;
        let name = names::status(&self.settings.run, writer, &names::shard(Some(shard)));
        let Some((bytes, _)) = store.get(&name).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| damaged(&store.show(&name), e))
    }

    async fn save(&self, writer: &str, status: &WriterStatus) -> Result<()> {
        let content =
            serde_json::to_vec(status).map_err(|e| Error::fatal("cannot write a status as JSON").because(e))?;
        let name = names::status(&self.settings.run, writer, &names::shard(Some(&status.shard)));
        self.store()?.put(&name, content.into()).await
    }
}
