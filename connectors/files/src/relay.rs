//! What readers of a run have to know and no unit tells: its tables, and the time that it has reached.

use anabranch_core::{Error, Relay, Result, TableSchema, Timestamp};
use async_trait::async_trait;
use serde::Serialize;

use crate::ledger::{Ledger, ShardEntry};
use crate::names::{self, Window};
use crate::sink::{Taken, WindowFiles};
use crate::store::Store;

#[async_trait]
impl Relay for WindowFiles {
    async fn tables(&self, epoch: u64, tables: &[TableSchema]) -> Result<()> {
        let mut taken = self.shared.taken().await;
        let taken = mine(taken.as_mut(), epoch)?;
        if taken.tables.merge(tables) | !taken.tables.are_stored() {
            taken.tables.save(&taken.store, &taken.ledger.run).await?;
        }
        Ok(())
    }

    async fn safe_time(&self, epoch: u64, time: Timestamp) -> Result<()> {
        let mut taken = self.shared.taken().await;
        let taken = mine(taken.as_mut(), epoch)?;
        if taken.ledger.safe_time >= Some(time) {
            return Ok(());
        }
        let before = upto(&taken.ledger, taken.ledger.safe_time);
        let after = upto(&taken.ledger, Some(time));
        if before != after {
            // Of windows that are complete now. The others have theirs since a later one began.
            let closed = |s: &&ShardEntry| after.is_some_and(|upto| entry_window(&taken.ledger, s).end() <= upto);
            for entry in taken.ledger.shards.values().filter(closed) {
                write_manifest(&taken.store, &taken.ledger, entry).await?;
            }
        }
        taken
            .commit(epoch, |ledger| {
                ledger.safe_time = Some(time);
                ledger.created_upto = after.map(|micros| Timestamp::from_micros(micros).to_string());
                ledger.open.take_if(|open| open.time.is_some_and(|t| t <= time));
            })
            .await
    }
}

/// The end of the last window of which everything was committed by `time`.
fn upto(ledger: &Ledger, time: Option<Timestamp>) -> Option<i64> {
    let next = Timestamp::from_micros(time?.as_micros().saturating_add(1));
    Some(Window::of(next, ledger.window_micros).start)
}

pub(crate) fn entry_window(ledger: &Ledger, entry: &ShardEntry) -> Window {
    Window { start: entry.window, length: ledger.window_micros }
}

#[derive(Serialize)]
struct Manifest<'a> {
    anabranch_manifest: u32,
    run: &'a str,
    shard: Option<&'a str>,
    files: Vec<String>,
}

/// Lists the parts of a shard's last window, if there are several: for people and their tools.
pub(crate) async fn write_manifest(store: &Store, ledger: &Ledger, entry: &ShardEntry) -> Result<()> {
    if entry.parts < 2 {
        return Ok(());
    }
    let window = entry_window(ledger, entry);
    let files = (0..entry.parts).map(|part| window.file(part)).collect::<Result<_>>()?;
    let shard = entry.name.as_deref();
    let manifest = Manifest { anabranch_manifest: 1, run: &ledger.run, shard, files };
    let content =
        serde_json::to_vec(&manifest).map_err(|e| Error::fatal("cannot write a manifest as JSON").because(e))?;
    let folder = names::folder(&ledger.run, &names::shard(shard));
    store.put(&format!("{folder}/{}", window.manifest()?), content.into()).await
}

fn mine(taken: Option<&mut Taken>, epoch: u64) -> Result<&mut Taken> {
    match taken {
        Some(taken) if taken.ledger.epoch == epoch => Ok(taken),
        _ => Err(Error::fenced(format!("epoch {epoch} does not own the run any more"))),
    }
}
