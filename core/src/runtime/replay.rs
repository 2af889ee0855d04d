//! Tries dead letters again and ends: the run modes that read nothing from the source.

use std::sync::Arc;

use super::session::Session;
use super::shards::lane_name;
use crate::error::Result;
use crate::pipeline::{Phase, RunMode, Shared};
use crate::sink::LanePurpose;

/// Tries the letters of the run's mode once, in source order; a letter that is refused again blocks
/// what waits behind it.
pub(crate) async fn replay(session: Session, shared: &Arc<Shared>) -> Result<()> {
    let spec = Arc::clone(&session.spec);
    shared.phase(Phase::Streaming);
    let wanted = session.letters.try_again(spec.mode == RunMode::RetryAllDlq).await?;
    tracing::info!(pipeline = %spec.name, letters = wanted, "dead letters are tried again");
    let mut counters = session.counters();
    let lanes = spec.order.lanes() as usize;
    for shard in 0..spec.sink.sharded().map_or(1, |s| s.count() as usize) {
        if session.halted.contains_key(&shard) {
            continue;
        }
        let index = (shard * lanes) as u32;
        let mut writer = spec.sink.open(session.lane(index, LanePurpose::Stream)).await?;
        counters += match lane_name(&spec, index).shard {
            Some(name) => session.letters.resume_shard(writer.as_mut(), &name).await?,
            None => session.letters.retry(writer.as_mut()).await?,
        };
        writer.close().await?;
    }
    session.letters.reload().await?;
    shared.replayed(counters, session.letters.open());
    Ok(())
}
