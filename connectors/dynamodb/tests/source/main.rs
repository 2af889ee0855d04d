//! The source, on the fake and on DynamoDB Local.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod conformance;
mod copy;
mod discovery;
mod fidelity;
mod gaps;
mod lineage;
mod reading;
mod setup;
mod spool;
mod support;
mod transactional;
