//! `anabranch strip`

use std::path::Path;

use anabranch::dynamodb::{DynamoDbSink, DynamoDbSinkConfig};
use anabranch::pipeline::{Phase, keys};
use anabranch::{Error, Result, Timestamp};

use super::status::SILENCE;
use crate::say::{say, say_json_line};
use crate::{exit, load};

/// Cleans the tables, unless somebody runs the pipeline.
pub(crate) async fn strip(file: &Path, tables: &[String], json: bool) -> Result<u8> {
    let mut config = load::config(file)?;
    let kind = config.sink.remove("type");
    config.sink.remove("create_tables");
    if kind.as_ref().and_then(|k| k.as_str()) != Some("dynamodb") {
        return Err(Error::config("sink.type", "only the items of a DynamoDB target have something to strip"));
    }
    let sink = DynamoDbSink::try_from(keys::<DynamoDbSinkConfig>("sink", config.sink)?)?;
    if let Some(status) = load::pipeline(file)?.stored_status().await?
        && status.phase != Phase::Stopped
        && status.last_seen.is_some_and(|at| (Timestamp::now().micros_since(at) as f64) < SILENCE * 1e6)
    {
        return Err(Error::config("pipeline.name", format!("the pipeline {} runs", status.pipeline))
            .hint("stop it for good first: what is stripped is not protected from late writes"));
    }
    for table in tables {
        let done = sink.strip(table).await?;
        if json {
            say_json_line(&serde_json::json!({ "table": table, "items": done.items, "tombstones": done.tombstones }))?;
        } else {
            say(format_args!("{table}: {} items cleaned, {} tombstones deleted", done.items, done.tombstones));
        }
    }
    Ok(exit::DONE)
}
