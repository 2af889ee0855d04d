//! The checkpointers and dead-letter stores of core pass their suites.

use std::sync::Arc;

use anabranch_core::checkpointer::{FileCheckpointer, MemoryCheckpointer};
use anabranch_core::dead_letter::{FileDeadLetters, MemoryDeadLetters};
use anabranch_core::leases::CheckpointLeases;
use anabranch_core::{DeadLetter, DeadLetterStore, LetterState, Result};
use anabranch_testkit::conformance;
use async_trait::async_trait;

#[tokio::test]
async fn memory_checkpointer() {
    let store = MemoryCheckpointer::new();
    conformance::checkpointer::run(async || Arc::new(store.clone()) as _).await;
}

#[tokio::test]
async fn file_checkpointer() {
    let folder = tempfile::tempdir().unwrap();
    conformance::checkpointer::run(async || Arc::new(FileCheckpointer::new(folder.path())) as _).await;
}

#[tokio::test]
async fn leases_in_memory() {
    let store = MemoryCheckpointer::new();
    conformance::leases::run(async || Arc::new(CheckpointLeases::new(Arc::new(store.clone()))) as _).await;
}

#[tokio::test]
async fn leases_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = || Arc::new(FileCheckpointer::new(folder.path()));
    conformance::leases::run(async || Arc::new(CheckpointLeases::new(store())) as _).await;
}

#[tokio::test]
async fn memory_dead_letters() {
    let store = MemoryDeadLetters::new();
    conformance::dead_letter::run(async || Arc::new(store.clone()) as _).await;
}

#[tokio::test]
async fn file_dead_letters() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letters.jsonl");
    conformance::dead_letter::run(async || Arc::new(FileDeadLetters::new(&path)) as _).await;
}

/// A store that cannot look and put at once.
#[derive(Debug)]
struct Plain(MemoryDeadLetters);

#[async_trait]
impl DeadLetterStore for Plain {
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()> {
        self.0.put(pipeline, letters).await
    }

    async fn list(
        &self,
        pipeline: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.0.list(pipeline, states, after, limit).await
    }

    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>> {
        self.0.get(pipeline, id).await
    }

    async fn open_count(&self, pipeline: &str) -> Result<u64> {
        self.0.open_count(pipeline).await
    }
}

#[tokio::test]
async fn dead_letters_of_a_plain_store() {
    let store = MemoryDeadLetters::new();
    conformance::dead_letter::run(async || Arc::new(Plain(store.clone())) as _).await;
}
