//! anabranch in a process of its own: runs a configuration until it is drained (or copied), and
//! prints what that took.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::pipeline::PipelineConfig;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::null_sink::NullSink;
use crate::process::{Used, used};

/// The argument that makes this program the child.
pub(crate) const RUN: &str = "run-pipeline";

/// What a child tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    pub(crate) used: Used,
    pub(crate) changes: u64,
    pub(crate) snapshot_rows: u64,
}

/// Runs a pipeline in a child and waits for it.
pub(crate) fn measure(config: &str) -> Result<Outcome> {
    outcome(Command::new(std::env::current_exe()?).args([RUN, config]))
}

/// What a child tells that runs a pipeline, in whatever language.
pub(crate) fn outcome(command: &mut Command) -> Result<Outcome> {
    let out = command.stdout(Stdio::piped()).spawn()?.wait_with_output()?;
    if !out.status.success() {
        return Err(format!("the pipeline failed: {}", out.status).into());
    }
    Ok(serde_json::from_slice(&out.stdout)?)
}

impl Outcome {
    pub(crate) fn took(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Fails unless it counted what the load has.
    pub(crate) fn expect(self, changes: u64, snapshot_rows: u64) -> Result<Self> {
        match (self.changes, self.snapshot_rows) == (changes, snapshot_rows) {
            true => Ok(self),
            false => Err(format!("expected {changes} changes and {snapshot_rows} copied rows: {self:?}").into()),
        }
    }
}

/// The child.
pub(crate) fn run(config: &str) -> Result<()> {
    if let Ok(filter) = std::env::var("ANABRANCH_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(pipeline(config))
}

async fn pipeline(config: &str) -> Result<()> {
    let mut registry = anabranch::registry();
    registry.sink("null", |_keys| Ok(Arc::new(NullSink)));
    let copies_only = config.contains("snapshot = \"only\"");
    let pipeline = registry.pipeline(PipelineConfig::parse(config)?)?;
    let begin = Instant::now();
    let mut running = pipeline.start().await?;
    if copies_only {
        running.wait().await?;
    } else {
        running.drain(None).await?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let counters = running.status().counters;
    let used = used("self").ok_or("no /proc")?;
    running.stop().await?;
    let outcome = Outcome { seconds, used, changes: counters.changes, snapshot_rows: counters.snapshot_rows };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// A configuration: `source` and `sink` are further lines of their sections.
pub(crate) fn config(name: &str, source_url: &str, source: &str, sink: &str) -> String {
    let checkpoint = if sink.contains("\"null\"") { "[checkpoint]\ntype = \"memory\"" } else { "" };
    let memory = std::env::var("BENCH_MEMORY_MIB").map(|mib| format!("memory_mib = {mib}\n")).unwrap_or_default();
    format!(
        "[pipeline]\nname = \"{name}\"\n{memory}\
         [source]\ntype = \"postgres\"\nurl = \"{source_url}\"\npublication = \"bench\"\n{source}\n\
         [sink]\n{sink}\n{checkpoint}\n"
    )
}
