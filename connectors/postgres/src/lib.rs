//! PostgreSQL as a source and as a sink.
//!
//! ```text
//! source.rs    Postgres: the publication and slot to read      config.rs  its keys
//! setup/       checks at every start, and what they create
//! reader/      the stream: messages to batches, safe time, schema changes
//! snapshot/    copies of tables under one exported snapshot
//! decode/      bytes to messages, without a socket
//! wire/        the replication connection
//!
//! sink/        PostgresSink: target transactions in bulk       sink/config.rs  its keys
//! store.rs     the schema that keeps progress, checkpoints and dead letters
//! ```

mod catalog;
mod checkpointer;
mod config;
mod connect;
mod dead_letters;
mod decode;
mod error;
mod lsn;
mod reader;
mod session;
mod setup;
mod sink;
mod snapshot;
mod source;
mod sql;
mod store;
mod tls;
mod types;
mod wire;

pub use checkpointer::PostgresCheckpointer;
pub use config::{OriginFilter, PostgresSourceConfig, SchemaChange};
pub use connect::Endpoint;
pub use dead_letters::PostgresDeadLetters;
pub use lsn::Lsn;
pub use sink::{PostgresSink, PostgresSinkConfig, Privilege};
pub use source::Postgres;
