//! Pipelines from a scripted source, by the paused clock.

use std::time::Duration;

use anabranch_core::memory::MemorySink;
use anabranch_core::pipeline::{PipelineBuilder, SnapshotMode};
use anabranch_core::{Pipeline, RunningPipeline, Sink, Value};
use anabranch_testkit::scripted::{Scripted, items};

/// By the paused clock.
pub(crate) const LONG: Option<Duration> = Some(Duration::from_secs(600));

pub(crate) fn scripted(source: &Scripted, sink: impl Sink + 'static) -> PipelineBuilder {
    Pipeline::builder("p").source(source.clone()).sink(sink).snapshot(SnapshotMode::Never).create_tables(true)
}

pub(crate) async fn start(builder: PipelineBuilder) -> RunningPipeline {
    builder.build().unwrap().start().await.unwrap()
}

/// The keys of the items in the target, sorted.
pub(crate) fn ids(sink: &MemorySink) -> Vec<i64> {
    let int = |v: &Value| if let Value::Int(n) = v { *n } else { panic!("{v:?}") };
    let mut ids: Vec<i64> = sink.rows(&items().name).iter().map(|row| int(&row[0])).collect();
    ids.sort_unstable();
    ids
}
