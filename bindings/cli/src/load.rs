//! Reads a configuration file.

use std::path::Path;

use anabranch::pipeline::PipelineConfig;
use anabranch::{Error, Pipeline, Result, registry};

/// What this file says.
pub(crate) fn config(file: &Path) -> Result<PipelineConfig> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        let missing = e.kind() == std::io::ErrorKind::NotFound;
        let error = Error::config(file.display(), "cannot be read").because(e);
        if missing { error.hint("`anabranch init` writes a configuration file") } else { error }
    })?;
    PipelineConfig::parse(&text).map_err(|e| within(file, e))
}

/// The pipeline of this file. No connection is made.
pub(crate) fn pipeline(file: &Path) -> Result<Pipeline> {
    pipeline_of(file, config(file)?)
}

/// The pipeline of a configuration that was read from this file.
pub(crate) fn pipeline_of(file: &Path, config: PipelineConfig) -> Result<Pipeline> {
    registry().pipeline(config).map_err(|e| within(file, e))
}

/// The error, with the file it is about.
pub(crate) fn within(file: &Path, error: Error) -> Error {
    error.context(file.display().to_string())
}
