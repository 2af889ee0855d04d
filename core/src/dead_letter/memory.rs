//! Dead letters that live as long as the process.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{DeadLetter, DeadLetterStore, LetterState};
use crate::error::Result;

/// Keeps dead letters in memory: for tests. Clones share what is stored.
#[derive(Debug, Clone, Default)]
pub struct MemoryDeadLetters {
    shelf: Arc<Mutex<Shelf>>,
}

impl MemoryDeadLetters {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl DeadLetterStore for MemoryDeadLetters {
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()> {
        let mut shelf = self.shelf();
        for letter in letters {
            shelf.put(pipeline, letter.clone());
        }
        Ok(())
    }

    async fn list(
        &self,
        pipeline: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        Ok(self.shelf().list(pipeline, states, after, limit))
    }

    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>> {
        Ok(self.shelf().get(pipeline, id))
    }

    async fn open_count(&self, pipeline: &str) -> Result<u64> {
        Ok(self.shelf().open_count(pipeline))
    }

    async fn replace(&self, pipeline: &str, changed: &[(DeadLetter, DeadLetter)]) -> Result<usize> {
        let mut shelf = self.shelf();
        let unmoved = shelf.unmoved(pipeline, changed);
        let stored = unmoved.len();
        for letter in unmoved {
            shelf.put(pipeline, letter);
        }
        Ok(stored)
    }
}

/// The latest form of every letter, by pipeline and id.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    pipelines: BTreeMap<String, BTreeMap<String, DeadLetter>>,
}

impl Shelf {
    /// Stores a letter; true if it replaced one.
    pub(super) fn put(&mut self, pipeline: &str, letter: DeadLetter) -> bool {
        if !self.pipelines.contains_key(pipeline) {
            self.pipelines.insert(pipeline.to_owned(), BTreeMap::new());
        }
        self.pipelines.get_mut(pipeline).is_some_and(|letters| letters.insert(letter.id.clone(), letter).is_some())
    }

    pub(super) fn list(
        &self,
        pipeline: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Vec<DeadLetter> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.pipelines
            .get(pipeline)
            .into_iter()
            .flat_map(|letters| letters.range::<str, _>((from, Bound::Unbounded)))
            .map(|(_, letter)| letter)
            .filter(|letter| states.contains(&letter.state))
            .take(limit)
            .cloned()
            .collect()
    }

    pub(super) fn get(&self, pipeline: &str, id: &str) -> Option<DeadLetter> {
        self.pipelines.get(pipeline)?.get(id).cloned()
    }

    /// What the letters are to be that nobody moved since they were read.
    pub(super) fn unmoved(&self, pipeline: &str, changed: &[(DeadLetter, DeadLetter)]) -> Vec<DeadLetter> {
        let letters = self.pipelines.get(pipeline);
        let is_unmoved =
            |before: &DeadLetter| letters.and_then(|l| l.get(&before.id)).is_some_and(|l| !l.is_moved(before));
        changed.iter().filter(|(before, _)| is_unmoved(before)).map(|(_, after)| after.clone()).collect()
    }

    pub(super) fn open_count(&self, pipeline: &str) -> u64 {
        let letters = self.pipelines.get(pipeline).into_iter().flat_map(BTreeMap::values);
        letters.filter(|letter| letter.state.is_open()).count() as u64
    }

    /// Every letter with its pipeline.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &DeadLetter)> {
        self.pipelines.iter().flat_map(|(pipeline, letters)| letters.values().map(move |l| (pipeline.as_str(), l)))
    }
}
