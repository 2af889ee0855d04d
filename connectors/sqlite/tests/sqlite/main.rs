//! The SQLite sink, checkpointer and dead-letter store, against real files.

mod altered;
mod apply;
mod conformance;
mod crash;
mod ignored;
mod parts;
mod progress;
mod restored;
mod speed;
mod stores;
mod support;
mod target;
mod types;
