//! DynamoDB for anabranch: a source, a sink, leases and a checkpointer.
//!
//! - [`Access`]: regions, profiles, credentials and endpoints, for each side by itself.
//! - [`types`]: attributes as columns, and columns as attributes.
//! - [`bookkeeping`]: the attributes that this library may add to items.

pub mod bookkeeping;
mod client;
mod decode;
mod error;
pub mod types;

pub use client::{Access, ServerClock};
