//! The source against the Cloud Spanner emulator, whose partitions split and merge every second.

mod scripted;
mod shop;
mod streams;
mod values;
