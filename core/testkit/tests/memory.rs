//! The database in memory passes the suites, in wrappers too.

mod support;

use std::sync::Arc;

use anabranch_core::memory::MemorySink;
use anabranch_testkit::conformance;
use anabranch_testkit::faults::{FaultySink, FaultySource, Schedule};

use support::{SinkOf, SourceOf};

#[tokio::test]
async fn sink() {
    conformance::sink::run(&SinkOf::new(MemorySink::new(), |sink| Arc::new(sink))).await;
}

#[tokio::test]
async fn sink_with_one_lane() {
    conformance::sink::run(&SinkOf::new(MemorySink::new().max_lanes(1), |sink| Arc::new(sink))).await;
}

#[tokio::test]
async fn sink_in_a_wrapper() {
    let wrap = |sink| Arc::new(FaultySink::new(Arc::new(sink), Schedule::new())) as _;
    conformance::sink::run(&SinkOf::new(MemorySink::new(), wrap)).await;
}

#[tokio::test]
async fn source() {
    conformance::source::run(&SourceOf::new(1000, |source| Arc::new(source))).await;
}

#[tokio::test]
async fn source_that_splits_every_transaction() {
    conformance::source::run(&SourceOf::new(2, |source| Arc::new(source))).await;
}

#[tokio::test]
async fn source_in_a_wrapper() {
    let wrap = |source| Arc::new(FaultySource::new(Arc::new(source), Schedule::new())) as _;
    conformance::source::run(&SourceOf::new(3, wrap)).await;
}
