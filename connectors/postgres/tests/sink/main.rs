//! The sink on real servers.

mod altered;
mod apply;
mod begin;
mod conformance;
mod left_out;
mod pieces;
mod speed;
mod support;
mod target;
mod transactions;
mod types;
mod versions;
