//! Reverse replication: from Spanner, or any other source, back to the sharded databases that its
//! tables once came from.
//!
//! - [`ShardsFile`]: where the shards are, in the form of the Spanner migration tool.
//! - [`SecretManager`]: their passwords, from GCP Secret Manager.
//! - [`Mapping`]: a transform that gives tables and columns the names that they have in the shards,
//!   from a session file of the migration tool, from overrides, or as they are.
//! - [`ForwardMigration`]: a transform that leaves out what the forward migration wrote.
//!
//! The shards themselves are a [`Sharded`](anabranch_core::Sharded) sink of core.

mod config;
mod forward;
mod lazy;
mod mapping;
mod overrides;
mod secrets;
mod session;
mod shards;

pub use config::{ForwardMigrationConfig, MappingConfig, ShardedConfig};
pub use forward::ForwardMigration;
pub use lazy::LazySink;
pub use mapping::Mapping;
pub use secrets::{SecretManager, Token};
pub use shards::{Password, ShardEntry, ShardsFile};
