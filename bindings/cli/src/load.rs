//! Reads a configuration file.

use std::path::Path;

use anabranch::pipeline::PipelineConfig;
use anabranch::yugabyte::xcluster::{XClusterConfig, YbAdmin};
use anabranch::{Error, Pipeline, Result, registry};
use serde::Deserialize;

/// What this file says.
pub(crate) fn config(file: &Path) -> Result<PipelineConfig> {
    let text = read(file)?;
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

/// A file whose one section is `[xcluster]`: YugabyteDB's own replication, of which only the status is told.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct XClusterFile {
    xcluster: XClusterConfig,
}

/// The target of the xCluster replication that this file names; `None` if it is a pipeline's.
pub(crate) fn xcluster(file: &Path) -> Result<Option<YbAdmin>> {
    let text = read(file)?;
    let is_xcluster = text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("xcluster"));
    if !is_xcluster {
        return Ok(None);
    }
    let parsed: XClusterFile =
        toml::from_str(&text).map_err(|e| Error::config(file.display(), e.message().to_owned()))?;
    parsed.xcluster.target().map(Some).map_err(|e| within(file, e))
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|e| {
        let missing = e.kind() == std::io::ErrorKind::NotFound;
        let error = Error::config(file.display(), "cannot be read").because(e);
        if missing { error.hint("`anabranch init` writes a configuration file") } else { error }
    })
}
