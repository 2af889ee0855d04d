//! PostgreSQL as a source, a sink, a checkpointer and a dead-letter store.
//!
//! ```text
//! source.rs    Postgres: the publication and slot to read      config.rs  its keys
//! setup/       checks at every start, and what they create
//! reader/      the stream: messages to batches, safe time, schema changes
//! snapshot/    copies of tables under one exported snapshot; how those that were interrupted go on
//! decode/      bytes to messages, without a socket
//! wire/        the replication connection
//! sink/        PostgresSink: net effects in bulk, progress in the same transaction
//! layer.rs     what connectors/yugabyte builds on     dialect.rs  what a server may lack
//! store.rs     what the sink, the checkpointer and the dead letters keep in the target
//! ```

mod catalog;
mod checkpointer;
mod config;
mod connect;
mod dead_letters;
mod decode;
mod dialect;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
#[doc(hidden)]
pub mod layer;
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
mod verify;
mod wire;

pub use checkpointer::PostgresCheckpointer;
pub use config::{OriginFilter, PostgresSourceConfig, SchemaChange};
pub use connect::Endpoint;
pub use dead_letters::PostgresDeadLetters;
pub use lsn::Lsn;
pub use sink::{PostgresSink, PostgresSinkConfig, Privilege};
pub use source::Postgres;
