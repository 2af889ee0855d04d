//! What belongs to reverse replication and needs no database.

mod mapping;
mod secrets;
