//! One message of pgoutput.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    anabranch_postgres::fuzzing::pgoutput(bytes);
});
