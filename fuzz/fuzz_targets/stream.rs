//! A stream of pgoutput messages, assembled into batches.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    anabranch_postgres::fuzzing::stream(bytes);
});
