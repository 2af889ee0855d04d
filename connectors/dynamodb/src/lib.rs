//! DynamoDB for anabranch: a source, a sink, leases and a checkpointer.
//!
//! - [`DynamoDb`]: the source. Tables by scan, changes by DynamoDB Streams.
//! - [`Access`]: regions, profiles, credentials and endpoints, for each side by itself.
//! - [`types`]: attributes as columns, and columns as attributes.
//! - [`bookkeeping`]: the attributes that this library may add to items.

mod answer;
pub mod bookkeeping;
mod calls;
mod checkpointer;
mod client;
mod config;
mod dead_letters;
mod decode;
mod error;
mod keys;
mod leases;
mod limiter;
mod sink;
mod source;
mod store;
pub mod types;
mod verifier;

pub use checkpointer::DynamoDbCheckpointer;
pub use client::{Access, ServerClock};
pub use config::{DeclaredColumn, Document, DynamoDbSourceConfig, OnMismatch, TtlDeletes};
pub use dead_letters::DynamoDbDeadLetters;
pub use leases::{DynamoDbLeases, DynamoDbLeasesConfig, task_name};
pub use sink::{DynamoDbSink, DynamoDbSinkConfig, Mode, Nulls, Oversized, Stripped, Versions};
pub use source::DynamoDb;
