//! The sink on real servers.

mod apply;
mod conformance;
mod support;
mod types;
