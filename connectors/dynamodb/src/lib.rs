//! DynamoDB for anabranch: a source, a sink, leases and a checkpointer.
//!
//! - [`DynamoDb`]: the source. Tables by scan, changes by DynamoDB Streams.
//! - [`Access`]: regions, profiles, credentials and endpoints, for each side by itself.
//! - [`types`]: attributes as columns, and columns as attributes.
//! - [`bookkeeping`]: the attributes that this library may add to items.

pub mod bookkeeping;
mod client;
mod config;
mod decode;
mod error;
mod source;
pub mod types;

pub use client::{Access, ServerClock};
pub use config::{DeclaredColumn, Document, DynamoDbSourceConfig, OnMismatch, TtlDeletes};
pub use source::DynamoDb;
