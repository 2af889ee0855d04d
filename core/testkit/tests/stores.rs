//! The checkpointers and dead-letter stores of core pass their suites.

use std::sync::Arc;

use anabranch_core::checkpointer::{FileCheckpointer, MemoryCheckpointer};
use anabranch_core::dead_letter::{FileDeadLetters, MemoryDeadLetters};
use anabranch_core::leases::CheckpointLeases;
use anabranch_testkit::conformance;

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
