//! A row of COPY, as the copy of a table reads it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    anabranch_postgres::fuzzing::copy_row(bytes);
});
