//! How a run ends.

use tokio::time::timeout;

use super::{Coordinator, panicked};
use crate::error::{Error, Result};

impl Coordinator {
    /// Ends every task: lanes finish the write they are in, readers say goodbye, the checkpoint is
    /// saved if the run ended well. What is not done by the deadline is dropped.
    pub(super) async fn end(mut self, well: bool) -> Result<()> {
        let deadline = self.stop_deadline;
        let orderly = async {
            self.lanes.clear();
            let mut result = Ok(());
            while let Some(ended) = self.drain_lane().await {
                result = result.and(ended);
            }
            if well && result.is_ok() {
                self.publish();
                self.lineage.advance(self.orderer.low_watermark());
                let wanted = self.wanted();
                let saved = self.saver.finish(wanted).await?;
                self.lineage.saved(&saved);
            }
            self.reader_seed.stop.cancel();
            while let Some(ended) = self.readers.join_next().await {
                let ended = ended.unwrap_or_else(|e| Err(panicked(e)));
                result = result.and(if well { ended } else { Ok(()) });
            }
            result
        };
        match timeout(deadline, orderly).await {
            Ok(result) => result,
            Err(_) => Err(Error::transient(format!("stopping took longer than {} s", deadline.as_secs()))),
        }
    }

    /// The next lane that ended, taking in what lanes report meanwhile.
    pub(super) async fn drain_lane(&mut self) -> Option<Result<()>> {
        loop {
            tokio::select! {
                biased;
                // 1. Reports first: the last ones come just before a lane ends.
                Some(applied) = self.applied.recv() => if let Err(e) = self.on_applied(applied) {
                    return Some(Err(e));
                },
                // 2. A lane ended.
                ended = self.lane_tasks.join_next() => {
                    return ended.map(|e| e.map_or_else(|e| Err(panicked(e)), |(_, result)| result));
                }
            }
        }
    }
}
