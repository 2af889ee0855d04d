//! The configuration file, as serde sees it. The command line and the wheel read it too.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use toml::Table;

use super::keys::keys;
use super::{OnRejected, Order, RunMode, SnapshotMode, WorkersConfig};
use crate::dead_letter::ClassRule;
use crate::error::{Error, Result};

/// A whole configuration file.
///
/// ```
/// use anabranch_core::pipeline::PipelineConfig;
/// let config = PipelineConfig::parse(r#"
///     [pipeline]
///     name = "orders-dr"
///     [source]
///     type = "postgres"
///     url = "env:SOURCE_URL"
///     [sink]
///     type = "sqlite"
///     path = "orders.db"
///     create_tables = true
/// "#)?;
/// assert_eq!(config.pipeline.name, "orders-dr");
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineConfig {
    /// `[pipeline]`
    pub pipeline: PipelineSection,
    /// `[source]`: `type`, `snapshot`, and the connector's own keys.
    pub source: Table,
    /// `[sink]`: `type`, `create_tables`, and the connector's own keys.
    pub sink: Table,
    /// `[checkpoint]`: `type` and its keys. Default: in the sink, where it can.
    #[serde(default)]
    pub checkpoint: Option<CheckpointConfig>,
    /// `[dead_letters]`
    #[serde(default)]
    pub dead_letters: DeadLetterConfig,
    /// `[mapping]`
    #[serde(default)]
    pub mapping: MappingConfig,
    /// `[[transform]]`, in order.
    #[serde(default)]
    pub transform: Vec<Table>,
    /// `[workers]`: several processes share the partitions.
    #[serde(default)]
    pub workers: Option<WorkersConfig>,
    /// `[metrics]`: where the process that runs it is asked how it is. The library does not listen by
    /// itself: the command and the wheel do, and a service of your own may.
    #[serde(default)]
    pub metrics: Option<MetricsConfig>,
}

/// `[metrics]`
///
/// ```
/// use anabranch_core::pipeline::MetricsConfig;
/// let config = MetricsConfig { listen: "9187".to_owned(), dead_after_seconds: None };
/// assert_eq!(config.address()?.to_string(), "127.0.0.1:9187");
/// assert_eq!(config.dead_after()?.as_secs(), 60);
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// The address and port to listen on, as in `127.0.0.1:9187`. A port alone is one of this machine
    /// alone: nobody has to give a password here.
    pub listen: String,
    /// Silence of the source or the target after which the data path counts as dead. Default 60.
    pub dead_after_seconds: Option<f64>,
}

impl MetricsConfig {
    /// The address to listen on.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is none.
    pub fn address(&self) -> Result<SocketAddr> {
        let port = self.listen.parse::<u16>().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let address = port.or_else(|_| self.listen.replace("localhost:", "127.0.0.1:").parse());
        address.map_err(|_| {
            Error::config("metrics.listen", "must be an address and a port, or a port alone, as in 127.0.0.1:9187")
        })
    }

    /// Silence after which the data path counts as dead.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is no length of time.
    pub fn dead_after(&self) -> Result<Duration> {
        let seconds = self.dead_after_seconds.unwrap_or(60.0);
        let problem = "must be at least 1: idle sources say every few seconds that they are there";
        Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|d| *d >= Duration::from_secs(1))
            .ok_or_else(|| Error::config("metrics.dead_after_seconds", problem))
    }
}

/// `[pipeline]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineSection {
    /// The pipeline's name: the key of its progress.
    pub name: String,
    /// `transaction` (default), `key`, `window` or `arrival`.
    #[serde(default)]
    order: OrderName,
    /// Lanes of the orders `key` (default 4) and `window` (default 1).
    lanes: Option<u32>,
    /// Length of the windows of the order `window`. Default 10.
    window_seconds: Option<f64>,
    /// Byte budget of changes in memory, in MiB. Default 32.
    #[serde(default)]
    pub memory_mib: Option<usize>,
    /// How many chunks are copied at a time. Default 4.
    #[serde(default)]
    pub snapshot_workers: Option<u32>,
    /// How long stopping may take. Default 30.
    #[serde(default)]
    pub stop_seconds: Option<u64>,
    /// How many retries in a row without progress are made before giving up. Default: no limit.
    #[serde(default)]
    pub retries: Option<u32>,
    /// `regular` (default), `retry_dlq` (the severe letters) or `retry_all_dlq` (every letter); with
    /// `each_shard` also which shards are written: `resume_success`, `resume_failed`, `reprocess`, `resume_all`.
    #[serde(default)]
    pub mode: RunMode,
    /// Writes each shard of a run of window files by a pipeline of its own. Default: no.
    #[serde(default)]
    pub each_shard: bool,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OrderName {
    #[default]
    Transaction,
    Key,
    Window,
    Arrival,
}

/// `[checkpoint]`
#[derive(Deserialize)]
pub struct CheckpointConfig {
    /// `sink` (the default where the sink can), `memory`, `file`, `sqlite`, `postgres`, `mysql`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The keys of that type.
    #[serde(flatten)]
    pub rest: Table,
}

/// `[dead_letters]`
#[derive(Default, Deserialize)]
pub struct DeadLetterConfig {
    /// `stop` (default), `halt_shard` or `dead_letter`.
    #[serde(default)]
    pub on_rejected: OnRejected,
    /// How often a letter is tried again by itself; then it is severe. Default 500.
    pub max_attempts: Option<u32>,
    /// How many minutes a letter waits between two tries. Default, and least: a sixth, which is 10 s.
    pub retry_minutes: Option<f64>,
    /// Which refusals may mend themselves (`retry`) and which need a person (`severe`), before the
    /// built-in rules: `[[dead_letters.classes]]` with `matches`, a part of the reason, and `class`.
    #[serde(default)]
    pub classes: Vec<ClassRule>,
    /// What of the changes that transforms left out is kept as closed letters: `filtered`, `skip`.
    /// Default: both. They are always counted.
    pub keep: Option<Vec<KeepName>>,
    /// `sink` (the default where the sink can), `memory`, `file`, `sqlite`, `postgres`, `mysql`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The keys of that type.
    #[serde(flatten)]
    pub rest: Table,
}

/// Changes that a transform left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepName {
    /// By a filter.
    Filtered,
    /// By a mapping that does not have their table.
    Skip,
}

/// `[mapping]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MappingConfig {
    /// Accepted lossy columns: `"table.column"`, `"schema.table.column"`, or `"type:numeric"`.
    #[serde(default)]
    pub lossy: Vec<String>,
}

/// The keys of a table without their values: one of them may hold a password.
struct Names<'a>(&'a Table);

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl fmt::Debug for PipelineConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineConfig")
            .field("pipeline", &self.pipeline)
            .field("source", &Names(&self.source))
            .field("sink", &Names(&self.sink))
            .field("checkpoint", &self.checkpoint)
            .field("dead_letters", &self.dead_letters)
            .field("mapping", &self.mapping)
            .field("metrics", &self.metrics)
            .field("workers", &self.workers.as_ref().map(|w| &w.id))
            .field("transform", &self.transform.iter().map(Names).collect::<Vec<_>>())
            .finish()
    }
}

impl fmt::Debug for CheckpointConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointConfig").field("kind", &self.kind).field("rest", &Names(&self.rest)).finish()
    }
}

impl fmt::Debug for DeadLetterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetterConfig")
            .field("on_rejected", &self.on_rejected)
            .field("max_attempts", &self.max_attempts)
            .field("kind", &self.kind)
            .field("rest", &Names(&self.rest))
            .finish()
    }
}

impl PipelineConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), with the line, or the key, at fault; values are not shown.
    pub fn parse(text: &str) -> Result<Self> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map_or_else(|| "configuration".to_owned(), |n| format!("line {n}"));
            Error::config(place, e.message()).hint("it is not TOML: texts stand in quotes, sections in [brackets]")
        })?;
        keys("", table)
    }

    /// One lane for each partition is enough where the partitions are spread over processes.
    pub(super) fn take_workers(&mut self) -> Option<WorkersConfig> {
        let workers = self.workers.take()?;
        if matches!(self.pipeline.order, OrderName::Key) {
            self.pipeline.lanes.get_or_insert(1);
        }
        Some(workers)
    }

    /// Takes `source.snapshot`, which belongs to the pipeline, out of the source's table.
    pub(super) fn take_snapshot(&mut self) -> Result<SnapshotMode> {
        match self.source.remove("snapshot") {
            None => Ok(SnapshotMode::default()),
            Some(value) => {
                value.try_into().map_err(|_| Error::config("source.snapshot", "must be initial, never or only"))
            }
        }
    }

    /// Takes `sink.create_tables`, which belongs to the pipeline, out of the sink's table.
    pub(super) fn take_create_tables(&mut self) -> Result<bool> {
        match self.sink.remove("create_tables") {
            None => Ok(false),
            Some(toml::Value::Boolean(create)) => Ok(create),
            Some(_) => Err(Error::config("sink.create_tables", "must be true or false")),
        }
    }
}

impl DeadLetterConfig {
    /// The keys of every store.
    pub(super) const KEYS: [&str; 6] = ["on_rejected", "max_attempts", "retry_minutes", "classes", "keep", "type"];

    /// How long a letter waits between two tries.
    pub(super) fn retry_after(&self) -> Result<Option<Duration>> {
        let seconds = |minutes: f64| Duration::try_from_secs_f64(minutes * 60.0).ok();
        match self.retry_minutes.map(seconds) {
            None => Ok(None),
            Some(Some(wait)) => Ok(Some(wait)),
            Some(None) => Err(Error::config("dead_letters.retry_minutes", "must be a number of minutes, not negative")),
        }
    }

    pub(super) fn keeps(&self, name: KeepName) -> bool {
        self.keep.as_ref().is_none_or(|names| names.contains(&name))
    }
}

impl PipelineSection {
    /// The order, with its lanes and window.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for a key that the order does not have.
    pub fn order(&self) -> Result<Order> {
        let not_with = |key: &str, which: &str| Err(Error::config(key, which));
        match self.order {
            OrderName::Transaction | OrderName::Arrival if self.lanes.is_some_and(|n| n != 1) => not_with(
                "pipeline.lanes",
                "the orders transaction and arrival have one lane (leave it out, or set order = \"key\")",
            ),
            OrderName::Transaction | OrderName::Arrival | OrderName::Key if self.window_seconds.is_some() => not_with(
                "pipeline.window_seconds",
                "only the order window has it (leave it out, or set order = \"window\")",
            ),
            OrderName::Transaction => Ok(Order::Transaction),
            OrderName::Arrival => Ok(Order::Arrival),
            OrderName::Key => Ok(Order::Key { lanes: self.lanes.unwrap_or(4) }),
            OrderName::Window => {
                let seconds = self.window_seconds.unwrap_or(10.0);
                let length = Duration::try_from_secs_f64(seconds)
                    .ok()
                    .filter(|d| *d >= Duration::from_millis(1))
                    .ok_or_else(|| Error::config("pipeline.window_seconds", "must be at least 0.001"))?;
                Ok(Order::Window { length, lanes: self.lanes.unwrap_or(1) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_shows_no_value_of_a_connector() {
        let config = PipelineConfig::parse(
            "[pipeline]\nname = 'x'\n[source]\nurl = 'postgresql://a:hunter2@h/d'\n[sink]\npassword = 'hunter2'\n\
             [checkpoint]\ntype = 'postgres'\nurl = 'hunter2'\n[dead_letters]\nurl = 'hunter2'\n\
             [[transform]]\nkey = 'hunter2'\n",
        )
        .unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("password") && shown.contains("url"), "{shown}");
    }
}
