//! Reverse replication: from Spanner, or any other source, back to the sharded databases that its
//! tables once came from.
//!
//! - [`ShardsFile`]: where the shards are, in the form of the Spanner migration tool.
//! - [`SecretManager`]: their passwords, from GCP Secret Manager.
//! - [`Mapping`]: a transform that gives tables and columns the names that they have in the shards,
//!   from a session file of the migration tool, from overrides, or as they are.
//! - [`ForwardMigration`]: a transform that leaves out what the forward migration wrote.
//! - [`ValuePolicy`]: a transform that changes values which the shards cannot hold.
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
mod values;

pub use config::{FiltrationMode, ForwardMigrationConfig, MappingConfig, ShardType, ShardedConfig, with_password};
pub use forward::ForwardMigration;
pub use lazy::LazySink;
pub use mapping::Mapping;
pub use secrets::{SecretManager, Token};
pub use shards::{Password, ShardEntry, ShardsFile};
pub use values::{Arrays, Nul, OrNull, ValuePolicy};
