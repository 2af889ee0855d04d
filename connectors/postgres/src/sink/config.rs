//! The keys of `[sink]` with `type = "postgres"`.

use anabranch_core::{Error, Result, Secret};
use serde::Deserialize;

use super::PostgresSink;
use crate::connect::Endpoint;

/// The keys of `[sink]` in a configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresSinkConfig {
    /// `postgresql://user@host/database`, plain, `env:NAME` or `file:PATH`.
    pub url: Secret,
    /// The schema that keeps progress, checkpoints and dead letters.
    #[serde(default = "default_schema")]
    pub schema: String,
    /// Whether to write with `session_replication_role = replica`, so that triggers and foreign
    /// keys of the target do not act on replicated rows.
    #[serde(default)]
    pub replica_role: Privilege,
    /// Whether to mark what is written with a replication origin, so that a pipeline in the other
    /// direction can leave it out.
    #[serde(default)]
    pub origin: Privilege,
    /// Whether the version of every row is kept in a table beside its own, so that a change that is
    /// older than the row, or as old, does nothing. Default: no.
    #[serde(default)]
    pub versions: bool,
    /// What the names of those tables begin with. Default: `shadow_`.
    #[serde(default = "shadow")]
    pub versions_prefix: String,
}

fn shadow() -> String {
    "shadow_".to_owned()
}

fn default_schema() -> String {
    "anabranch".to_owned()
}

/// Whether to use something that needs a right which not every user has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Privilege {
    /// If the server allows it.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always: without the right, opening fails.
    Required,
}

impl TryFrom<PostgresSinkConfig> for PostgresSink {
    type Error = Error;

    fn try_from(config: PostgresSinkConfig) -> Result<Self> {
        Endpoint::parse("sink.url", config.url.resolve("sink.url")?.expose())?;
        if config.schema.is_empty() {
            return Err(Error::config("sink.schema", "is empty").hint("name a schema, or leave the key out"));
        }
        if config.versions && config.versions_prefix.is_empty() {
            let problem = "is empty: the tables of versions need names of their own";
            return Err(Error::config("sink.versions_prefix", problem));
        }
        let sink = Self::new(config.url).schema(config.schema).replica_role(config.replica_role).origin(config.origin);
        Ok(if config.versions { sink.versions(config.versions_prefix) } else { sink })
    }
}
