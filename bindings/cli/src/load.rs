//! Reads a configuration file.

use std::path::Path;

use anabranch::pipeline::{PipelineConfig, RunMode};
use anabranch::{Error, Pipeline, Result, registry};

/// The pipeline of this file. No connection is made.
pub(crate) fn pipeline(file: &Path) -> Result<Pipeline> {
    pipeline_in(file, None)
}

/// As [`pipeline`], in another mode than the file's.
pub(crate) fn pipeline_in(file: &Path, mode: Option<RunMode>) -> Result<Pipeline> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::config(file.display(), "cannot be read").because(e))?;
    PipelineConfig::parse(&text)
        .and_then(|mut config| {
            config.pipeline.mode = mode.unwrap_or(config.pipeline.mode);
            registry().pipeline(config)
        })
        .map_err(|e| e.context(file.display().to_string()))
}
