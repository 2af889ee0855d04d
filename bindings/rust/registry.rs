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
/// | `dynamodb` | yes | yes | yes | `dynamodb` |
/// | `sharded`: several of `mysql` or `postgres` | | yes | | `reverse` |
/// | `files` (a folder, `gs://`, `s3://`) | yes | yes | yes | `files` |
/// | `spanner` | yes | yes | yes | `spanner` |
/// | `yugabyte` | yes | yes | yes | `yugabyte` |
/// | `file`, `memory` | | | yes | |
///
/// `dynamodb` keeps leases (`[workers.leases]`) too.
///
/// With the feature `reverse` there are the transforms `session`, `forward_migration` and `values` too.
///
/// A database as a store of checkpoints or dead letters takes the keys that it takes as a sink. A
/// connector of your own is registered under a type of its own, and is then known to configuration
/// files too, beside all the others:
///
/// ```
/// use std::sync::Arc;
///
/// use anabranch::memory::{MemorySink, MemorySource};
/// use anabranch::pipeline::PipelineConfig;
/// use anabranch::{Column, DataType, TableName, TableSchema};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anabranch::Result<()> {
/// let orders = TableSchema {
///     name: TableName::new("public", "orders"),
///     columns: vec![Column::new("id", DataType::Int64)],
///     key: vec![0],
/// };
/// let (shop, copy) = (MemorySource::new("shop").table(orders.clone()), MemorySink::new());
///
/// let mut registry = anabranch::registry();
/// let (source, sink) = (shop.clone(), copy.clone());
/// registry.source("shop", move |_keys| Ok(Arc::new(source.clone())));
/// registry.sink("copy", move |_keys| Ok(Arc::new(sink.clone())));
/// let config = PipelineConfig::parse(r#"
///     [pipeline]
///     name = "orders"
///     [source]
///     type = "shop"
///     [sink]
///     type = "copy"
///     create_tables = true
/// "#)?;
/// let mut running = registry.pipeline(config)?.start().await?;
/// shop.transaction().insert(&orders.name, ["7".into()]).commit()?;
/// assert!(running.drain(None).await?.drained);
/// assert_eq!(copy.rows(&orders.name), [["7".into()]]);
/// # running.stop().await }
/// ```
pub fn registry() -> Registry {
    #[allow(unused_mut, reason = "without any feature")]
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
    {
        use anabranch_sqlite::SqliteConfig;
        // Errors of a file name the section that it was given in.
        registry.sink("sqlite", |table| Ok(Arc::new(keys::<SqliteConfig>("sink", table)?.open("sink.path")?)));
        registry.checkpointer("sqlite", |table| {
            Ok(Arc::new(keys::<SqliteConfig>("checkpoint", table)?.open("checkpoint.path")?.checkpointer()))
        });
        registry.dead_letter_store("sqlite", |table| {
            Ok(Arc::new(keys::<SqliteConfig>("dead_letters", table)?.open("dead_letters.path")?.dead_letters()))
        });
    }
    #[cfg(feature = "dynamodb")]
    {
        use anabranch_dynamodb::{DynamoDb, DynamoDbSink, DynamoDbSinkConfig, DynamoDbSourceConfig};
        use anabranch_dynamodb::{DynamoDbLeases, DynamoDbLeasesConfig};
        source::<DynamoDbSourceConfig, DynamoDb>(&mut registry, "dynamodb");
        sink_and_stores::<DynamoDbSinkConfig, DynamoDbSink>(&mut registry, "dynamodb");
        registry.leases("dynamodb", |table| {
            Ok(Arc::new(connector::<DynamoDbLeasesConfig, DynamoDbLeases>("workers.leases", table)?))
        });
    }
    #[cfg(feature = "reverse")]
    {
        use anabranch_reverse::{ForwardMigrationConfig, MappingConfig};
        registry.sink("sharded", sharded);
        registry.transform("session", |table| keys::<MappingConfig>("transform", table)?.build());
        registry.transform("values", |table| Ok(Box::new(keys::<anabranch_reverse::ValuePolicy>("transform", table)?)));
        registry.transform("forward_migration", |table| keys::<ForwardMigrationConfig>("transform", table)?.build());
    }
    #[cfg(feature = "files")]
    {
        use anabranch_files::{FilesCheckpointer, FilesConfig, FilesDeadLetters, FilesSinkConfig, FilesSourceConfig};
        source::<FilesSourceConfig, anabranch_files::WindowSource>(&mut registry, "files");
        registry.sink("files", |table| {
            Ok(Arc::new(connector::<FilesSinkConfig, anabranch_files::WindowFiles>("sink", table)?))
        });
        registry.checkpointer("files", |table| {
            Ok(Arc::new(connector::<FilesConfig, FilesCheckpointer>("checkpoint", table)?))
        });
        registry.dead_letter_store("files", |table| {
            Ok(Arc::new(connector::<FilesConfig, FilesDeadLetters>("dead_letters", table)?))
        });
    }
    #[cfg(feature = "spanner")]
    {
        use anabranch_spanner::{Spanner, SpannerSink, SpannerSinkConfig, SpannerSourceConfig};
        source::<SpannerSourceConfig, Spanner>(&mut registry, "spanner");
        sink_and_stores::<SpannerSinkConfig, SpannerSink>(&mut registry, "spanner");
    }
    #[cfg(feature = "yugabyte")]
    {
        use anabranch_yugabyte::{Yugabyte, YugabyteSink, YugabyteSinkConfig, YugabyteSourceConfig};
        source::<YugabyteSourceConfig, Yugabyte>(&mut registry, "yugabyte");
        sink_and_stores::<YugabyteSinkConfig, YugabyteSink>(&mut registry, "yugabyte");
    }
    registry
}

/// The shards of a shards file, each a sink of its own.
#[cfg(feature = "reverse")]
fn sharded(table: Table) -> Result<Arc<dyn Sink>> {
    use anabranch_core::Sharded;
    use anabranch_reverse::{LazySink, ShardedConfig};

    let config = keys::<ShardedConfig>("sink", table)?;
    let (file, secrets) = (config.shards()?, config.secrets());
    let mut shards: Vec<(String, Arc<dyn Sink>)> = Vec::new();
    for shard in file.shards() {
        let (kind, keys) = (config.shard_type, config.keys(shard)?);
        let name = shard.name.clone();
        let make = move |password| {
            shard_sink(kind, &name, keys.clone(), password).map_err(|e| e.context(format!("sink.shard: shard {name}")))
        };
        let sink: Arc<dyn Sink> = match shard.secret() {
            Ok(password) => make(password.clone())?,
            Err(secret) => Arc::new(LazySink::new(secrets.clone(), secret, make)?),
        };
        shards.push((shard.name.clone(), sink));
    }
    let mut sharded = Sharded::new(shards)?;
    if let Some(most) = config.max_connections_per_shard {
        if most == 0 {
            return Err(Error::config("sink.max_connections_per_shard", "must be at least 1"));
        }
        sharded = sharded.max_connections(most);
    }
    Ok(Arc::new(sharded))
}

/// One shard's sink. The password is no text of the configuration: it goes past its keys.
#[cfg(feature = "reverse")]
#[cfg_attr(
    not(any(feature = "mysql", feature = "postgres")),
    allow(unused_imports, unused_variables, reason = "no kind of shard is built in")
)]
fn shard_sink(
    kind: anabranch_reverse::ShardType,
    name: &str,
    table: Table,
    password: anabranch_core::Secret,
) -> Result<Arc<dyn Sink>> {
    use anabranch_reverse::ShardType;

    match kind {
        #[cfg(feature = "mysql")]
        ShardType::Mysql => {
            let mut config = keys::<anabranch_mysql::MySqlConfig>("sink.shard", table)?;
            config.password = Some(password);
            Ok(Arc::new(anabranch_mysql::MySql::try_from(config)?))
        }
        #[cfg(feature = "postgres")]
        ShardType::Postgres => {
            let mut config = keys::<anabranch_postgres::PostgresSinkConfig>("sink.shard", table)?;
            config.url = anabranch_reverse::with_password(&config.url, &password)?;
            Ok(Arc::new(anabranch_postgres::PostgresSink::try_from(config)?.origin_of(name)))
        }
        #[allow(unreachable_patterns, reason = "with both features on nothing is left")]
        other => Err(Error::config("sink.shard_type", format!("{} is not built in", other.name()))),
    }
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
