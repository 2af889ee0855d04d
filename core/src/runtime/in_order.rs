//! Open letters in the order in which their changes were made, whatever partitions they came from.

use std::collections::VecDeque;
use std::sync::Arc;

use super::letters::{PAGE, is_open_class};
use crate::dead_letter::{DeadLetter, DeadLetterStore, LetterState};
use crate::error::Result;
use crate::model::PartitionId;

/// Reads the letters that are open or held: of one partition by rank, of several by commit time and
/// rank. A store lists them by partition, so one page of each partition is in memory.
pub(super) struct InOrder {
    store: Arc<dyn DeadLetterStore>,
    pipeline: Arc<str>,
    queues: Vec<Queue>,
}

struct Queue {
    partition: PartitionId,
    letters: VecDeque<DeadLetter>,
    /// The last id that was read; `None` once all are.
    after: Option<String>,
}

const STATES: [LetterState; 2] = [LetterState::Open, LetterState::Held];

impl InOrder {
    pub(super) async fn begin(store: Arc<dyn DeadLetterStore>, pipeline: Arc<str>) -> Result<Self> {
        let mut queues = Vec::new();
        let mut after: Option<String> = None;
        while let Some(first) = store.list(&pipeline, &STATES, after.as_deref(), 1).await?.pop() {
            // An id is the partition, a colon and hexadecimal digits: behind all of those is "g".
            after = Some(format!("{}:g", first.partition));
            let start = format!("{}:", first.partition);
            queues.push(Queue { partition: first.partition, letters: VecDeque::new(), after: Some(start) });
        }
        Ok(Self { store, pipeline, queues })
    }

    /// The partitions that have letters.
    pub(super) fn partitions(&self) -> impl Iterator<Item = &PartitionId> {
        self.queues.iter().map(|q| &q.partition)
    }

    pub(super) async fn next(&mut self) -> Result<Option<DeadLetter>> {
        for queue in &mut self.queues {
            if queue.letters.is_empty() {
                queue.fill(self.store.as_ref(), &self.pipeline).await?;
            }
        }
        self.queues.retain(|q| !q.letters.is_empty());
        let several = self.queues.len() > 1;
        let first = self.queues.iter_mut().min_by(|a, b| {
            let key = |q: &Queue| q.letters.front().map(|l| (l.commit_time, l.position.rank.clone()));
            if several { key(a).cmp(&key(b)) } else { std::cmp::Ordering::Equal }
        });
        Ok(first.and_then(|q| q.letters.pop_front()))
    }
}

impl Queue {
    async fn fill(&mut self, store: &dyn DeadLetterStore, pipeline: &str) -> Result<()> {
        while self.letters.is_empty()
            && let Some(after) = self.after.take()
        {
            let page = store.list(pipeline, &STATES, Some(&after), PAGE).await?;
            let more = page.len() == PAGE && page.iter().any(|l| l.partition == self.partition);
            self.after = page.last().filter(|_| more).map(|l| l.id.clone());
            self.letters.extend(page.into_iter().filter(|l| l.partition == self.partition && is_open_class(l)));
        }
        Ok(())
    }
}
