//! A configuration file, up to the pipeline that it describes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(config) = anabranch::pipeline::PipelineConfig::parse(text)
    {
        let _ = anabranch::registry().pipeline(config);
    }
});
