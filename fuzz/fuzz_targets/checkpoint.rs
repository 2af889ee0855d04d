//! A stored checkpoint; one that is read is written and read again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(checkpoint) = anabranch::Checkpoint::from_json(text)
    {
        let again = checkpoint.to_json().and_then(|json| anabranch::Checkpoint::from_json(&json));
        assert_eq!(again.ok().as_ref(), Some(&checkpoint));
    }
});
