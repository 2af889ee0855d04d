//! The suites that every sink, checkpointer and dead-letter store must pass.

use std::sync::Arc;

use anabranch_testkit::conformance;
use anabranch_testkit::conformance::sink::Abilities;

use crate::support::{DIALECTS, Target};

/// It has one read-write transaction at a time, and may give up the other.
const EMULATOR: Abilities = Abilities { atomic: true, keyless: true, wide_floats: true, concurrent: false };

#[tokio::test(flavor = "multi_thread")]
async fn sink_googlesql() {
    let Some(target) = Target::new(DIALECTS[0], &[]) else { return };
    conformance::sink::run_with(&target, EMULATOR).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_postgresql() {
    let Some(target) = Target::new(DIALECTS[1], &[]) else { return };
    conformance::sink::run_with(&target, EMULATOR).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpointer() {
    for dialect in DIALECTS {
        let Some(target) = Target::new(dialect, &[]) else { return };
        conformance::checkpointer::run(async || Arc::new(target.sink().checkpointer()) as _).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters() {
    for dialect in DIALECTS {
        let Some(target) = Target::new(dialect, &[]) else { return };
        conformance::dead_letter::run(async || Arc::new(target.sink().dead_letters()) as _).await;
    }
}
