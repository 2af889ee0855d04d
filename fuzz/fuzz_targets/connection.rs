//! The bytes of a replication connection, cut into messages and frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    anabranch_postgres::fuzzing::connection(bytes);
});
