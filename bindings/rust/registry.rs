//! The connectors that a configuration file may name.

use std::sync::Arc;

use anabranch_core::pipeline::{Registry, keys};
use anabranch_core::{Checkpointer, DeadLetterStore, Error, Result, Sink, Source};
use serde::de::DeserializeOwned;
use toml::Table;

/// The registry with every connector of the enabled features, and what core has itself.
///
/// | `type` | `[source]` | `[sink]` | `[checkpoint]`, `[dead_letters]` | feature |
/// |---|---|---|---|---|
/// | `postgres` | yes | yes | yes | `postgres` |
/// | `mysql` (MariaDB too) | | yes | yes | `mysql` |
/// | `sqlite` | | yes | yes | `sqlite` |
/// | `spanner` | yes | yes | yes | `spanner` |
/// | `file`, `memory` | | | yes | |
///
/// A database as a store of checkpoints or dead letters takes the keys that it takes as a sink. A
/// connector of your own is registered under a type of its own, and is then known to configuration
/// files too:
///
/// ```
/// use std::sync::Arc;
/// let mut registry = anabranch::registry();
/// registry.source("memory", |_keys| Ok(Arc::new(anabranch::memory::MemorySource::new("shop"))));
/// registry.sink("memory", |_keys| Ok(Arc::new(anabranch::memory::MemorySink::new())));
/// let config = anabranch::pipeline::PipelineConfig::parse(r#"
///     [pipeline]
///     name = "orders"
///     [source]
///     type = "memory"
///     [sink]
///     type = "memory"
/// "#)?;
/// let pipeline = registry.pipeline(config)?;
/// # Ok::<(), anabranch::Error>(())
/// ```
pub fn registry() -> Registry {
    let mut registry = Registry::new();
    #[cfg(feature = "postgres")]
    {
        use anabranch_postgres::{Postgres, PostgresSink, PostgresSinkConfig, PostgresSourceConfig};
        source::<PostgresSourceConfig, Postgres>(&mut registry, "postgres");
        sink_and_stores::<PostgresSinkConfig, PostgresSink>(&mut registry, "postgres");
    }
    #[cfg(feature = "mysql")]
    sink_and_stores::<anabranch_mysql::MySqlConfig, anabranch_mysql::MySql>(&mut registry, "mysql");
    #[cfg(feature = "sqlite")]
    sink_and_stores::<anabranch_sqlite::SqliteConfig, anabranch_sqlite::Sqlite>(&mut registry, "sqlite");
    #[cfg(feature = "spanner")]
    {
        use anabranch_spanner::{Spanner, SpannerSink, SpannerSinkConfig, SpannerSourceConfig};
        source::<SpannerSourceConfig, Spanner>(&mut registry, "spanner");
        sink_and_stores::<SpannerSinkConfig, SpannerSink>(&mut registry, "spanner");
    }
    registry
}

/// Reads the keys of `section` into `C` and makes a `T` of it.
fn connector<C, T>(section: &str, table: Table) -> Result<T>
where
    C: DeserializeOwned,
    T: TryFrom<C, Error = Error>,
{
    T::try_from(keys::<C>(section, table)?)
}

#[allow(dead_code, reason = "without a feature that has a source")]
fn source<C, S>(registry: &mut Registry, kind: &str)
where
    C: DeserializeOwned + 'static,
    S: Source + TryFrom<C, Error = Error>,
{
    registry.source(kind, |table| Ok(Arc::new(connector::<C, S>("source", table)?)));
}

/// Registers a sink that also keeps checkpoints and dead letters, for other sinks too.
#[allow(dead_code, reason = "without a feature that has a sink")]
fn sink_and_stores<C, S>(registry: &mut Registry, kind: &str)
where
    C: DeserializeOwned + 'static,
    S: Sink + TryFrom<C, Error = Error>,
{
    registry.sink(kind, |table| Ok(Arc::new(connector::<C, S>("sink", table)?)));
    registry.checkpointer(kind, |table| {
        let store: Option<Arc<dyn Checkpointer>> = connector::<C, S>("checkpoint", table)?.checkpointer();
        store.ok_or_else(|| Error::config("checkpoint.type", "this database keeps no checkpoints"))
    });
    registry.dead_letter_store(kind, |table| {
        let store: Option<Arc<dyn DeadLetterStore>> = connector::<C, S>("dead_letters", table)?.dead_letters();
        store.ok_or_else(|| Error::config("dead_letters.type", "this database keeps no dead letters"))
    });
}
