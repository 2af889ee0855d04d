//! Suites that every implementation of a trait, and every wrapper of one, must pass.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! use std::sync::Arc;
//! use anabranch_core::checkpointer::MemoryCheckpointer;
//! let store = MemoryCheckpointer::new();
//! anabranch_testkit::conformance::checkpointer::run(async || Arc::new(store.clone()) as _).await;
//! # });
//! ```

pub mod checkpointer;
pub mod dead_letter;
pub mod leases;
pub mod orderer;
pub mod sink;
pub mod source;
