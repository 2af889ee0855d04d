//! The dead letters of a pipeline that writes each shard by a pipeline of its own, as those of one.

use std::sync::Arc;

use async_trait::async_trait;

use crate::dead_letter::{DeadLetter, DeadLetterStore, LetterState};
use crate::error::{Error, Result};

/// The letters of all shards. Each shard's are in its own store, or under its own name in one that they share.
#[derive(Debug)]
pub(super) struct EachLetters {
    /// The shard, the name of its pipeline, and its store.
    pub(super) shards: Vec<(String, Arc<str>, Arc<dyn DeadLetterStore>)>,
}

impl EachLetters {
    fn of(&self, letter: &DeadLetter) -> Result<(&str, &Arc<dyn DeadLetterStore>)> {
        let of = letter.shard.as_deref();
        let found = self.shards.iter().find(|(shard, _, _)| Some(shard.as_str()) == of);
        let (_, name, store) =
            found.ok_or_else(|| Error::rejected(format!("the letter {} is of no shard that is known", letter.id)))?;
        Ok((name, store))
    }
}

#[async_trait]
impl DeadLetterStore for EachLetters {
    async fn put(&self, _: &str, letters: &[DeadLetter]) -> Result<()> {
        for letter in letters {
            let (name, store) = self.of(letter)?;
            store.put(name, std::slice::from_ref(letter)).await?;
        }
        Ok(())
    }

    async fn replace(&self, _: &str, changed: &[(DeadLetter, DeadLetter)]) -> Result<usize> {
        let mut stored = 0;
        for change in changed {
            let (name, store) = self.of(&change.0)?;
            stored += store.replace(name, std::slice::from_ref(change)).await?;
        }
        Ok(stored)
    }

    async fn list(
        &self,
        _: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        let mut all = Vec::new();
        for (_, name, store) in &self.shards {
            all.extend(store.list(name, states, after, limit).await?);
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all.truncate(limit);
        Ok(all)
    }

    async fn get(&self, _: &str, id: &str) -> Result<Option<DeadLetter>> {
        for (_, name, store) in &self.shards {
            if let Some(letter) = store.get(name, id).await? {
                return Ok(Some(letter));
            }
        }
        Ok(None)
    }

    async fn open_count(&self, _: &str) -> Result<u64> {
        let mut open = 0;
        for (_, name, store) in &self.shards {
            open += store.open_count(name).await?;
        }
        Ok(open)
    }
}
