//! What an author of a connector tests it with.

pub mod generators;
