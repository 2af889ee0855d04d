//! `anabranch pause` and `anabranch resume`

use std::path::Path;

use anabranch::Result;

use crate::say::{say, say_json};
use crate::{exit, load};

/// Leaves the mark; whoever runs the pipeline obeys within a few seconds.
pub(crate) async fn pause(file: &Path, json: bool) -> Result<u8> {
    let pipeline = load::pipeline(file)?;
    let changed = pipeline.pause().await?;
    tell(pipeline.name(), true, changed, json)
}

/// Takes it away.
pub(crate) async fn resume(file: &Path, json: bool) -> Result<u8> {
    let pipeline = load::pipeline(file)?;
    let changed = pipeline.resume().await?;
    tell(pipeline.name(), false, changed, json)
}

fn tell(pipeline: &str, paused: bool, changed: bool, json: bool) -> Result<u8> {
    if json {
        say_json(&serde_json::json!({ "pipeline": pipeline, "paused": paused, "changed": changed }))?;
        return Ok(exit::DONE);
    }
    let what = match (paused, changed) {
        (true, true) => "is paused: whoever runs it obeys within a few seconds",
        (true, false) => "was paused already",
        (false, true) => "goes on",
        (false, false) => "was not paused",
    };
    say(format_args!("{pipeline} {what}"));
    Ok(exit::DONE)
}
