//! Pipelines from the fake to memory, and a clock that is driven on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anabranch_core::memory::MemorySink;
use anabranch_core::pipeline::{PipelineBuilder, RetryLimits, SnapshotMode};
use anabranch_core::{Pipeline, RunningPipeline, TableName, Value};
use anabranch_spanner::Spanner;
use anabranch_spanner::client::Instant;
use anabranch_spanner_fake::{Dialect, FakeSpanner, Script, Stream, Table, Time};

pub(crate) const STREAM: &str = "orders";

/// `kv(id, v)`: each value is written once, so that a value tells which change it is from.
pub(crate) fn kv() -> Arc<Table> {
    Arc::new(Table::new("kv").key("id", "INT64").column("v", "INT64"))
}

/// What the source calls it.
pub(crate) fn kv_name(dialect: Dialect) -> TableName {
    TableName::new(if dialect == Dialect::GoogleSql { "" } else { "public" }, "kv")
}

pub(crate) fn script(dialect: Dialect, stream: Stream, now: Time) -> Script {
    Script::new().dialect(dialect).table((*kv()).clone()).stream(stream).clock(now)
}

pub(crate) fn instant(time: Time) -> Instant {
    time.to_string().parse().expect("a time of the script is one of Spanner's")
}

pub(crate) fn source(fake: &FakeSpanner, start: Time) -> Spanner {
    let source = Spanner::new(FakeSpanner::DATABASE).change_stream(STREAM).endpoint(fake.endpoint());
    source.start(instant(start)).create(false)
}

pub(crate) fn pipeline(fake: &FakeSpanner, start: Time, sink: &MemorySink) -> PipelineBuilder {
    let builder = Pipeline::builder("fake").source(source(fake, start)).sink(sink.clone());
    let retry = RetryLimits { first: Duration::from_millis(10), ..RetryLimits::default() };
    builder.create_tables(true).snapshot(SnapshotMode::Never).retry(retry)
}

pub(crate) async fn start(builder: PipelineBuilder) -> RunningPipeline {
    builder.build().unwrap().start().await.unwrap()
}

/// Moves the server's clock on as long as it lives, in steps of `step`, so that heartbeats come.
pub(crate) struct Ticking {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Ticking {
    pub(crate) fn start(fake: &Arc<FakeSpanner>, step: Duration) -> Self {
        Self::every(Duration::from_millis(10), fake, step)
    }

    /// With this pause: each step gives a heartbeat to every partition that is being read.
    pub(crate) fn every(pause: Duration, fake: &Arc<FakeSpanner>, step: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (fake, stopped) = (Arc::clone(fake), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                fake.set_time(fake.now().plus(step));
                tokio::time::sleep(pause).await;
            }
        });
        Self { stop, task }
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

pub(crate) async fn drained(running: &mut RunningPipeline) {
    let drained = running.drain(Some(Duration::from_secs(180))).await;
    let drained = drained.unwrap_or_else(|e| panic!("{}", e.report()));
    assert!(drained.drained, "{drained:?} {:?}", running.status());
}

/// The rows of `kv`, by key.
pub(crate) fn rows(rows: &[Vec<Value>]) -> std::collections::BTreeMap<i64, i64> {
    let int = |value: &Value| match value {
        Value::Int(v) => *v,
        Value::Text(v) => v.parse().expect("a whole number"),
        other => panic!("{other:?} is no whole number"),
    };
    rows.iter().map(|row| (int(&row[0]), int(&row[1]))).collect()
}
