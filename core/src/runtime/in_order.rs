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
    /// What the ids of its letters begin with, up to the colon.
    name: String,
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
            // An id is the partition's name, a colon and hexadecimal digits: behind all of those is "g".
            let name = name_of(&first).to_owned();
            after = Some(first.id.clone().max(format!("{name}:g")));
            let start = Some(format!("{name}:"));
            queues.push(Queue { partition: first.partition, name, letters: VecDeque::new(), after: start });
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
            let more = page.len() == PAGE && page.iter().any(|l| name_of(l) == self.name);
            self.after = page.last().filter(|_| more).map(|l| l.id.clone());
            self.letters.extend(page.into_iter().filter(|l| name_of(l) == self.name && is_open_class(l)));
        }
        Ok(())
    }
}

/// What the letter's id begins with, up to the last colon.
fn name_of(letter: &DeadLetter) -> &str {
    letter.id.rsplit_once(':').map_or(letter.partition.as_str(), |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::{LetterClass, MemoryDeadLetters};
    use crate::model::{
        BatchBuilder, Column, DataType, Op, Position, Rank, TableName, TableSchema, Transaction, ValueRef,
    };

    /// The letter of the transaction with this number.
    fn letter(partition: &str, number: u64) -> DeadLetter {
        let columns = vec![Column::new("id", DataType::Int64)];
        let table = Arc::new(TableSchema { name: TableName::new("public", "t"), columns, key: vec![0] });
        let mut batch = BatchBuilder::new(PartitionId::new(partition));
        let schema = batch.schema(&table);
        let rank = number.to_be_bytes();
        batch.begin(Transaction { rank: rank.to_vec().into(), ..Transaction::default() }, 1);
        batch.change(Op::Insert, schema);
        batch.new_row();
        batch.push(ValueRef::Int(1));
        let end = Position::new(Rank::of_end(&rank), Vec::new());
        batch.commit(end.clone());
        let batch = batch.finish(end, None).unwrap();
        DeadLetter::from_change(batch.change(0), LetterClass::Retry, LetterState::Held, "waits")
    }

    /// Their ids lie between each other's, as texts.
    #[tokio::test]
    async fn a_partition_whose_name_begins_with_another_ones_is_read_too() {
        let names = ["t/shard-1", "t/shard-10", "t/shard-1:0", "t/shard-1:a", "t/shard-1:", "t/shard-", "=", ":"];
        let store = MemoryDeadLetters::new();
        for name in names {
            for number in [0, 1, u64::MAX] {
                store.put("p", &[letter(name, number)]).await.unwrap();
            }
        }
        let mut reading = InOrder::begin(Arc::new(store), "p".into()).await.unwrap();
        let mut read = Vec::new();
        while let Some(letter) = reading.next().await.unwrap() {
            read.push((letter.position.rank, letter.partition));
        }
        let mut sorted = read.clone();
        sorted.sort();
        assert_eq!(read.len(), 3 * names.len(), "{read:?}");
        assert!(read.iter().zip(&sorted).all(|(a, b)| a.0 == b.0), "not by rank: {read:?}");
    }

    /// An earlier version wrote the name as it is.
    #[tokio::test]
    async fn letters_are_read_whatever_their_ids_begin_with() {
        let store = MemoryDeadLetters::new();
        let new = letter("a:b", 2);
        let old = DeadLetter { id: format!("a:b:{:?}", letter("a:b", 1).position.rank), ..letter("a:b", 1) };
        store.put("p", &[old, new]).await.unwrap();
        let mut reading = InOrder::begin(Arc::new(store), "p".into()).await.unwrap();
        let mut read = 0;
        while reading.next().await.unwrap().is_some() {
            read += 1;
        }
        assert_eq!(read, 2);
    }
}
