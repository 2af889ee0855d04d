//! The sink on real servers.

mod conformance;
mod support;
mod types;
