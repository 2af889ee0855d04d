//! Window files, dead letters and checkpoints on a file system and on object storage.

mod bad_input;
mod conformance;
mod crash;
mod each_shard;
mod letters;
mod object_storage;
mod shards;
mod support;
mod two_jobs;
mod windows;
