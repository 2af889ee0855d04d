//! Turns a configuration into connectors. Custom connectors register under a type of their own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use toml::Table;

use super::keys::{keys, no_keys};
use super::{KeepName, Pipeline, PipelineBuilder, PipelineConfig, RetryLimits};
use crate::checkpointer::{Checkpointer, FileCheckpointer, MemoryCheckpointer};
use crate::dead_letter::{Classes, DeadLetterStore, FileDeadLetters, MemoryDeadLetters};
use crate::error::{Error, Result};
use crate::leases::Leases;
use crate::mapping::preflight::LossyConsent;
use crate::sink::Sink;
use crate::source::Source;
use crate::transform::{Transform, TransformConfig};

type Make<T> = Box<dyn Fn(Table) -> Result<T> + Send + Sync>;

/// The connectors that a configuration may name.
///
/// ```
/// use std::sync::Arc;
///
/// use anabranch_core::memory::{MemorySink, MemorySource};
/// use anabranch_core::pipeline::{PipelineConfig, Registry, keys};
///
/// /// What may stand in `[source]` beside `type = "shop"`.
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct ShopKeys {
///     branch: String,
/// }
///
/// let mut registry = Registry::new();
/// registry.source("shop", |table| {
///     let keys: ShopKeys = keys("source", table)?;
///     Ok(Arc::new(MemorySource::new(keys.branch)))
/// });
/// registry.sink("nowhere", |_| Ok(Arc::new(MemorySink::new())));
///
/// let text = "[pipeline]\nname = 'p'\n[source]\ntype = 'shop'\nbranch = 'north'\n[sink]\ntype = 'nowhere'";
/// registry.pipeline(PipelineConfig::parse(text)?)?;
/// let wrong = registry.pipeline(PipelineConfig::parse(&text.replace("branch", "brnach"))?).unwrap_err();
/// assert!(wrong.to_string().contains("did you mean branch?"));
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Default)]
pub struct Registry {
    sources: BTreeMap<String, Make<Arc<dyn Source>>>,
    sinks: BTreeMap<String, Make<Arc<dyn Sink>>>,
    checkpointers: BTreeMap<String, Make<Arc<dyn Checkpointer>>>,
    dead_letters: BTreeMap<String, Make<Arc<dyn DeadLetterStore>>>,
    transforms: BTreeMap<String, Make<Box<dyn Transform>>>,
    leases: BTreeMap<String, Make<Arc<dyn Leases>>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("sources", &self.sources.keys())
            .field("sinks", &self.sinks.keys())
            .field("checkpointers", &self.checkpointers.keys())
            .field("transforms", &self.transforms.keys())
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// A registry with what this crate has itself: checkpointers and dead letters in memory and in
    /// files, and the built-in transforms.
    pub fn new() -> Self {
        let mut registry = Self::default();
        registry.checkpointer("memory", |keys| {
            no_keys("checkpoint", &[], &keys).map(|()| Arc::new(MemoryCheckpointer::new()) as _)
        });
        registry.checkpointer("file", |keys| Ok(Arc::new(FileCheckpointer::new(path("checkpoint", keys)?)) as _));
        registry.dead_letter_store("memory", |keys| {
            no_keys("dead_letters", &[], &keys).map(|()| Arc::new(MemoryDeadLetters::new()) as _)
        });
        registry.dead_letter_store("file", |keys| Ok(Arc::new(FileDeadLetters::new(path("dead_letters", keys)?)) as _));
        for kind in ["filter", "rename", "project", "mask", "shard"] {
            registry.transform(kind, move |mut table| {
                table.insert("type".to_owned(), kind.into());
                keys::<TransformConfig>("transform", table)?.build()
            });
        }
        registry
    }

    /// Registers a source under a `type`; it is given the other keys of `[source]`.
    pub fn source(&mut self, kind: &str, make: impl Fn(Table) -> Result<Arc<dyn Source>> + Send + Sync + 'static) {
        self.sources.insert(kind.to_owned(), Box::new(make));
    }

    /// Registers a sink under a `type`; it is given the other keys of `[sink]`.
    pub fn sink(&mut self, kind: &str, make: impl Fn(Table) -> Result<Arc<dyn Sink>> + Send + Sync + 'static) {
        self.sinks.insert(kind.to_owned(), Box::new(make));
    }

    /// Registers a checkpointer under a `type`; it is given the other keys of `[checkpoint]`.
    pub fn checkpointer(
        &mut self,
        kind: &str,
        make: impl Fn(Table) -> Result<Arc<dyn Checkpointer>> + Send + Sync + 'static,
    ) {
        self.checkpointers.insert(kind.to_owned(), Box::new(make));
    }

    /// Registers a dead-letter store under a `type`; it is given the other keys of `[dead_letters]`.
    pub fn dead_letter_store(
        &mut self,
        kind: &str,
        make: impl Fn(Table) -> Result<Arc<dyn DeadLetterStore>> + Send + Sync + 'static,
    ) {
        self.dead_letters.insert(kind.to_owned(), Box::new(make));
    }

    /// Registers a transform under a `type`; it is given the other keys of its `[[transform]]`.
    pub fn transform(
        &mut self,
        kind: &str,
        make: impl Fn(Table) -> Result<Box<dyn Transform>> + Send + Sync + 'static,
    ) {
        self.transforms.insert(kind.to_owned(), Box::new(make));
    }

    /// Registers leases under a `type`; they are given the other keys of `workers.leases`.
    pub fn leases(&mut self, kind: &str, make: impl Fn(Table) -> Result<Arc<dyn Leases>> + Send + Sync + 'static) {
        self.leases.insert(kind.to_owned(), Box::new(make));
    }

    /// The pipeline of a configuration. No connection is made.
    pub fn pipeline(&self, mut config: PipelineConfig) -> Result<Pipeline> {
        let snapshot = config.take_snapshot()?;
        let create_tables = config.take_create_tables()?;
        let workers = config.take_workers();
        if let Some(metrics) = &config.metrics {
            metrics.address()?;
            metrics.dead_after()?;
        }
        let p = &config.pipeline;
        let mut builder = Pipeline::builder(p.name.clone())
            .order(p.order()?)
            .snapshot(snapshot)
            .create_tables(create_tables)
            .accept_lossy(LossyConsent::parse(&config.mapping.lossy)?)
            .mode(p.mode)
            .each_shard(p.each_shard)
            .on_rejected(config.dead_letters.on_rejected)
            .classes(Classes::new(std::mem::take(&mut config.dead_letters.classes))?)
            .keep_left_out(config.dead_letters.keeps(KeepName::Filtered), config.dead_letters.keeps(KeepName::Skip))
            .retry(RetryLimits { attempts: p.retries, ..RetryLimits::default() });
        if let Some(keys) = workers {
            let mut workers = keys.workers()?;
            if let Some(keys) = keys.leases {
                workers = workers.leases(made("workers.leases", &self.leases, keys)?);
            }
            builder = builder.workers(workers);
        }
        if let Some(mib) = p.memory_mib {
            builder = builder.memory(mib.saturating_mul(1 << 20));
        }
        if let Some(workers) = p.snapshot_workers {
            builder = builder.snapshot_workers(workers);
        }
        if let Some(seconds) = p.stop_seconds {
            builder = builder.stop_deadline(Duration::from_secs(seconds));
        }
        if let Some(attempts) = config.dead_letters.max_attempts {
            builder = builder.max_attempts(attempts);
        }
        if let Some(wait) = config.dead_letters.retry_after()? {
            builder = builder.retry_letters_after(wait);
        }
        builder = builder.source_arc(made("source", &self.sources, config.source)?).sink_arc(made(
            "sink",
            &self.sinks,
            config.sink,
        )?);
        builder = self.stores(builder, &mut config.checkpoint, &mut config.dead_letters)?;
        for keys in config.transform {
            builder = builder.transform_boxed(made("transform", &self.transforms, keys)?);
        }
        builder.build()
    }

    fn stores(
        &self,
        mut builder: PipelineBuilder,
        checkpoint: &mut Option<super::CheckpointConfig>,
        letters: &mut super::DeadLetterConfig,
    ) -> Result<PipelineBuilder> {
        match checkpoint.take() {
            Some(c) if c.kind != "sink" => {
                builder = builder.checkpointer_arc(find("checkpoint", &self.checkpointers, &c.kind)?(c.rest)?);
            }
            Some(c) => no_keys("checkpoint", &["type"], &c.rest)?,
            None => {}
        }
        let keys = std::mem::take(&mut letters.rest);
        match letters.kind.take() {
            Some(kind) if kind != "sink" => {
                builder = builder.dead_letters(find("dead_letters", &self.dead_letters, &kind)?(keys)?);
            }
            // The sink's own store takes no keys of its own.
            _ => no_keys("dead_letters", &super::DeadLetterConfig::KEYS, &keys)?,
        }
        Ok(builder)
    }
}

fn made<T>(section: &str, makers: &BTreeMap<String, Make<T>>, mut keys: Table) -> Result<T> {
    let kind = match keys.remove("type") {
        Some(toml::Value::String(kind)) => kind,
        Some(_) => return Err(Error::config(format!("{section}.type"), "must be text")),
        None => return Err(Error::config(format!("{section}.type"), "is missing").hint(known(makers))),
    };
    find(section, makers, &kind)?(keys)
}

fn find<'a, T>(section: &str, makers: &'a BTreeMap<String, Make<T>>, kind: &str) -> Result<&'a Make<T>> {
    makers
        .get(kind)
        .ok_or_else(|| Error::config(format!("{section}.type"), format!("there is no \"{kind}\"")).hint(known(makers)))
}

fn known<T>(makers: &BTreeMap<String, T>) -> String {
    let names: Vec<&str> = makers.keys().map(String::as_str).collect();
    format!("known: {}", names.join(", "))
}

fn path(section: &str, mut keys: Table) -> Result<String> {
    let path = keys.remove("path");
    no_keys(section, &["path"], &keys)?;
    match path {
        Some(toml::Value::String(path)) => Ok(path),
        Some(_) => Err(Error::config(format!("{section}.path"), "must be text")),
        None => Err(Error::config(format!("{section}.path"), "is missing").hint("name a file")),
    }
}
