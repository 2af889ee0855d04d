//! `anabranch reprocess`

use std::path::Path;

use anabranch::Result;

use crate::say::{say, say_json_line};
use crate::{exit, load};

/// Marks shards for a run of the mode `reprocess`.
pub(crate) async fn reprocess(file: &Path, shards: &[String], json: bool) -> Result<u8> {
    let pipeline = load::pipeline(file)?;
    for shard in shards {
        pipeline.reprocess(shard).await.map_err(|e| load::within(file, e))?;
        if json {
            say_json_line(&serde_json::json!({ "shard": shard, "mark": "reprocess" }))?;
        } else {
            let file = file.display();
            say(format_args!("{shard}: marked; `anabranch run {file} --mode reprocess` writes it"));
        }
    }
    Ok(exit::DONE)
}
