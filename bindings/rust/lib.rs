//! anabranch carries the committed changes of one database to another, of the same or of another
//! engine, in the right order, each taking effect exactly once: so that the other one can take
//! over, and nothing is lost.
//!
//! It is a library. It runs inside your tokio runtime, installs nothing global, and never ends the
//! process. The `anabranch` command runs the same pipelines from a configuration file.
//!
//! # Quickstart
//!
#![cfg_attr(all(feature = "postgres", feature = "sqlite"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "postgres", feature = "sqlite")), doc = "```ignore")]
//! use anabranch::{ByTransaction, Pipeline, Postgres, Sqlite};
//!
//! # async fn example() -> anabranch::Result<()> {
//! let mut running = Pipeline::builder("orders-dr")
//!     .source(Postgres::new("postgresql://replicator@db1/shop").publication("orders").slot("orders_dr"))
//!     .sink(Sqlite::open("orders.db"))
//!     .order(ByTransaction::new())
//!     .create_tables(true)
//!     .build()?          // every error of configuration is found here; nothing was connected yet
//!     .start().await?;   // both databases were checked; tables are being copied, then changes streamed
//!
//! let drained = running.drain(None).await?; // what was committed before this call is in the file
//! println!("{} {:?}", drained.drained, running.status().safe_time);
//! running.stop().await?;
//! # Ok(()) }
//! ```
//!
//! The source needs `wal_level = logical` and a role with `REPLICATION`; a missing publication and
//! slot are created. Starting again goes on where the last run stopped, however it ended.
//!
//! The same from a file, as the command line reads it:
//!
#![cfg_attr(all(feature = "postgres", feature = "sqlite"), doc = "```")]
#![cfg_attr(not(all(feature = "postgres", feature = "sqlite")), doc = "```ignore")]
//! let config = anabranch::pipeline::PipelineConfig::parse(r#"
//!     [pipeline]
//!     name = "orders-dr"
//!     order = "transaction"                # transaction | key | window | arrival
//!
//!     [source]
//!     type = "postgres"
//!     url = "postgresql://replicator@db1/shop"  # or "env:SOURCE_URL", or "file:/run/secrets/source"
//!     publication = "orders"
//!     slot = "orders_dr"
//!     snapshot = "initial"                 # initial | never | only
//!
//!     [sink]
//!     type = "sqlite"
//!     path = "orders.db"
//!     create_tables = true
//! "#)?;
//! let pipeline = anabranch::registry().pipeline(config)?;
//! # Ok::<(), anabranch::Error>(())
//! ```
//!
//! # Choose an order
//!
//! | order | the target sees | lanes | choose it |
//! |---|---|---|---|
//! | [`ByTransaction`] | whole source transactions, in commit order: never a part of one | 1 | unless it is too slow: this is what a failover needs |
//! | [`ByKey`] | the changes of each row in their order; rows of one transaction at different times | many | for a target whose latency, not its work, is the limit |
//! | [`ByWindow`] | per shard, sorted by commit time in fixed windows | 1 or more | for sources that give changes of one shard on several partitions |
//! | [`Arrival`] | what the source gives, as it gives it | 1 | for a log or an archive |
//!
//! Small transactions are merged into one target transaction at commit boundaries, so `transaction`
//! is much faster than one target commit for each source commit. `key` keeps tables that refer to
//! each other, or have further unique keys, on one lane.
//!
//! # Size the budget
//!
//! [`PipelineBuilder::memory`] is the one bound of what was read and is not yet applied: 32 MiB
//! unless set. A transaction larger than an eighth of it passes through in parts, within one target
//! transaction; an orderer that waits for another partition spills to a temporary file. A full
//! budget holds the reading up, and the source keeps its log: look at `retention` in the status. The
//! process takes the budget, one batch for each reader (1 MiB), what the target's driver buffers, and
//! what the allocator keeps: less than 128 MiB with the default (`make bench` measures it with a
//! transaction of ten million rows). More memory makes larger target transactions (8 MiB at most),
//! not more speed.
//!
//! # Run it in a service
//!
//! `examples/embed_in_a_service.rs` is a whole one. In short:
//!
//! - [`Pipeline::start`] fails for what waiting cannot mend. A database that is down is waited for.
//! - [`RunningPipeline::wait`] ends with the error that the pipeline gave up on; its
//!   [`ErrorKind`] says what to do. `Fenced` means that another runner has taken over.
//! - [`RunningPipeline::stop`] finishes what is under way. So does cancelling the token of
//!   [`RunningPipeline::stopper`], for signal handlers. Dropping the handle stops it without waiting;
//!   nothing is lost by that, or by a crash: the next run reads from the target how far it was.
//! - [`RunningPipeline::monitor`] tells the [`Status`], also while the handle waits: safe time, lag,
//!   counters, retention, dead letters. It is `Serialize`.
//! - [`Monitor::health`](pipeline::Monitor::health) tells a data path that moves, or is idle and heard
//!   from, from a dead one: for a liveness probe. Figures go through the `metrics` facade
//!   ([`metrics`] has every name), spans and logs through `tracing`; with the feature `prometheus` an
//!   exporter answers `/metrics`, `/status.json` and `/healthz`.
//! - With [`PipelineBuilder::workers`] several processes share the partitions of a source.
//! - Starting a second runner of the same name is a way to fail over: the first one is fenced.
//!
//! # What each guarantee means
//!
//! | | on a transactional target | on any other |
//! |---|---|---|
//! | no loss | the source may forget a change only when it is durable in the target, or in the dead-letter store, and a restart will find it | the same |
//! | exactly once in effect | progress and rows are one target transaction: after a crash at any instruction nothing is applied twice, and no row moves backwards | at least once: the last unit may be applied again |
//! | order | as the table above says | the same |
//! | atomic | in `transaction` order no reader of the target ever sees a part of a source transaction | no |
//! | one writer | every target transaction checks the fencing epoch | checked where the checkpoint is saved |
//! | no silent gap | another server, a recreated slot, lapsed retention: each stops with what was lost and how to repair it | the same |
//! | lossless types | every column is judged before the first row: [`Fidelity`]; a lossy one needs consent by name | the same, if the sink describes its target |
//! | bounded memory | the budget above | the same |
//!
//! [`Status::safe_time`] is a commit time such that everything the source committed at or before it
//! is in the target. It moves on a quiet source too, and is `None` while no time can be said. *Drained*
//! is a fact and not an impression: [`RunningPipeline::drain`] marks the source's present, and waits
//! until the target has everything before the mark.
//!
//! A row that the target refuses stops the pipeline ([`OnRejected::Stop`](pipeline::OnRejected)), or
//! goes with its transaction to the dead-letter store, where what comes later on the same keys waits
//! behind it.
//!
//! # Write a connector
//!
//! Implement [`Source`] and [`ChangeReader`], or [`Sink`] and [`SinkWriter`]; `examples/custom_source.rs`
//! and `examples/custom_sink.rs` do, in a hundred lines each. What each method promises stands at the
//! method. [`Checkpointer`] and [`DeadLetterStore`] can be your own too. Optional abilities are
//! accessors: [`Source::snapshotter`], [`Source::marker`], [`Source::retention`], [`Sink::progress`],
//! [`Sink::target`]. `anabranch-testkit` has a conformance suite for each trait. [`registry`] makes
//! your connector known to configuration files.
//!
//! # Features
//!
//! `postgres`, `mysql`, `sqlite` and `yugabyte`, all by default, and `dynamodb`: each adds the connectors to that database.
//! `files` adds window files, checkpoints and dead letters on a file system, Google Cloud Storage or Amazon S3.
//! `spanner` adds Spanner change streams and Spanner as a target.
//! `prometheus` adds an exporter of metrics, status and health over HTTP.
//! `reverse` adds shards behind one sink, and what reverse replication needs of the Spanner migration tool.
//! Without any of them this is [the contract and the runtime](anabranch_core), with [`memory`] for tests.

pub use anabranch_core::*;

#[cfg(feature = "prometheus")]
pub mod prometheus;
mod registry;

#[cfg(feature = "dynamodb")]
pub use anabranch_dynamodb::{DynamoDb, DynamoDbSink};
#[cfg(feature = "files")]
pub use anabranch_files::{WindowFiles, WindowSource};
#[cfg(feature = "mysql")]
pub use anabranch_mysql::MySql;
#[cfg(feature = "postgres")]
pub use anabranch_postgres::{Postgres, PostgresSink};
#[cfg(feature = "spanner")]
pub use anabranch_spanner::{Spanner, SpannerSink};
#[cfg(feature = "sqlite")]
pub use anabranch_sqlite::Sqlite;
#[cfg(feature = "yugabyte")]
pub use anabranch_yugabyte::{Yugabyte, YugabyteSink};
/// The attribute that implementations of the traits carry.
pub use async_trait::async_trait;
pub use registry::registry;

/// Everything of the DynamoDB connectors.
#[cfg(feature = "dynamodb")]
pub mod dynamodb {
    pub use anabranch_dynamodb::*;
}

/// Everything of window files, dead letters and checkpoints on a file system or object storage.
#[cfg(feature = "files")]
pub mod files {
    pub use anabranch_files::*;
}

/// Everything of the MySQL and MariaDB connector.
#[cfg(feature = "mysql")]
pub mod mysql {
    pub use anabranch_mysql::*;
}

/// Everything of the PostgreSQL connectors.
#[cfg(feature = "postgres")]
pub mod postgres {
    pub use anabranch_postgres::*;
}

/// Spanner: source, sink, checkpoints and dead letters.
#[cfg(feature = "spanner")]
pub mod spanner {
    pub use anabranch_spanner::*;
}

/// Everything of the SQLite connector.
#[cfg(feature = "sqlite")]
pub mod sqlite {
    pub use anabranch_sqlite::*;
}

/// Everything of the YugabyteDB connectors, and what `yb-admin` says of xCluster.
#[cfg(feature = "yugabyte")]
pub mod yugabyte {
    pub use anabranch_yugabyte::*;
}
