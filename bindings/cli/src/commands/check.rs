//! `anabranch check`

use std::path::Path;

use anabranch::Result;

use crate::{exit, load};

/// Prints the type contract; the verdict is the exit code.
pub(crate) async fn check(file: &Path) -> Result<u8> {
    let preflight = load::pipeline(file)?.check().await?;
    println!("{preflight}");
    for statement in &preflight.source_statements {
        println!("would run: {statement}");
    }
    preflight.verdict()?;
    println!("ok");
    Ok(exit::DONE)
}
