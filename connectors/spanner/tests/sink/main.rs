//! Spanner as a target, on the emulator. Skipped where that is not installed.

mod conformance;
mod support;
mod tables;
mod transactions;
