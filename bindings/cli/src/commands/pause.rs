//! `anabranch pause` and `anabranch resume`

use std::path::Path;

use anabranch::Result;

use crate::say::say;
use crate::{exit, load};

/// Leaves the mark; whoever runs the pipeline obeys within a few seconds.
pub(crate) async fn pause(file: &Path) -> Result<u8> {
    let pipeline = load::pipeline(file)?;
    let changed = pipeline.pause().await?;
    say(format_args!("{} {}", pipeline.name(), if changed { "is paused" } else { "was paused already" }));
    Ok(exit::DONE)
}

/// Takes it away.
pub(crate) async fn resume(file: &Path) -> Result<u8> {
    let pipeline = load::pipeline(file)?;
    let changed = pipeline.resume().await?;
    say(format_args!("{} {}", pipeline.name(), if changed { "goes on" } else { "was not paused" }));
    Ok(exit::DONE)
}
