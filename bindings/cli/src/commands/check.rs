//! `anabranch check`

use std::path::Path;

use anabranch::Result;

use crate::say::say;
use crate::{exit, load};

/// Prints the type contract; the verdict is the exit code.
pub(crate) async fn check(file: &Path) -> Result<u8> {
    let preflight = load::pipeline(file)?.check().await?;
    say(&preflight);
    for statement in &preflight.source_statements {
        say(format_args!("would run: {statement}"));
    }
    preflight.verdict()?;
    say("ok");
    Ok(exit::DONE)
}
