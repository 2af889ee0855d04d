//! The keys of `[sink]`, `[checkpoint]` and `[dead_letters]` with `type = "dynamodb"`.

use std::time::Duration;

use anabranch_core::{Error, Result, Secret};
use serde::Deserialize;

use super::{DynamoDbSink, Mode, Nulls, Oversized, Versions};
use crate::keys;

/// The keys of a configuration table for DynamoDB as a target.
///
/// ```toml
/// [sink]
/// type = "dynamodb"
/// region = "eu-west-1"          # all of these are optional: the AWS SDK's usual chain is the default
/// mode = "guarded"              # guarded | batch | transactional
/// tombstone_hours = 168
/// ```
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DynamoDbSinkConfig {
    /// The region.
    pub region: Option<String>,
    /// A profile of the AWS configuration files.
    pub profile: Option<String>,
    /// The address, in place of the region's own.
    pub endpoint: Option<String>,
    /// An access key's id: plain, `env:NAME` or `file:PATH`.
    pub access_key_id: Option<Secret>,
    /// An access key's secret.
    pub secret_access_key: Option<Secret>,
    /// The session token of a temporary access key.
    pub session_token: Option<Secret>,
    /// How units are applied.
    pub mode: Mode,
    /// Where the guarded mode keeps versions: `attribute` or `table`.
    pub versions: Versions,
    /// What the transactional mode does with transactions that are too large: `reject` or `guarded`.
    pub oversized: Oversized,
    /// What becomes of NULL: `keep` or `omit`.
    pub nulls: Nulls,
    /// The attribute with an item's version.
    pub version_attribute: Option<String>,
    /// The attribute that marks what is written; empty for none.
    pub origin_attribute: Option<String>,
    /// The attribute by which tombstones are removed.
    pub expires_attribute: Option<String>,
    /// How long tombstones are kept, in hours.
    pub tombstone_hours: Option<u64>,
    /// How many calls to one table may be under way at most.
    pub concurrency: Option<usize>,
}

impl TryFrom<DynamoDbSinkConfig> for DynamoDbSink {
    type Error = Error;

    fn try_from(config: DynamoDbSinkConfig) -> Result<Self> {
        let credentials = (config.access_key_id, config.secret_access_key, config.session_token);
        let access = keys::access("sink", config.region, config.profile, config.endpoint, credentials)?;
        let mut sink = Self::new(access)
            .mode(config.mode)
            .versions(config.versions)
            .oversized(config.oversized)
            .nulls(config.nulls);
        if let Some(name) = config.version_attribute {
            sink = sink.version_attribute(name);
        }
        if let Some(name) = config.origin_attribute {
            sink = sink.origin_attribute(name);
        }
        if let Some(name) = config.expires_attribute {
            sink = sink.expires_attribute(name);
        }
        if let Some(hours) = config.tombstone_hours {
            sink = sink.tombstones(Duration::from_secs(hours.saturating_mul(3600)));
        }
        if let Some(calls) = config.concurrency {
            sink = sink.concurrency(calls);
        }
        sink.check()?;
        Ok(sink)
    }
}
