//! Letters are tried again, each once in effect, whenever the process dies.

use std::sync::Arc;

use bytes::Bytes;

use super::held::{Held, keys_of};
use super::{LetterPolicy, Letters, PASS, RETRIED};
use crate::dead_letter::{DeadLetter, DeadLetterStore, LetterClass, LetterState};
use crate::error::{ErrorKind, Result};
use crate::model::{
    BatchBuilder, Counters, Part, PartitionId, Position, Progress, Rank, Selection, TableSchema, Timestamp,
    Transaction, Unit, UnitId, UnitKind, UnitSlice,
};
use crate::runtime::in_order::InOrder;
use crate::sink::SinkWriter;

impl Letters {
    /// Tries the open letters again, in source order. A letter that is refused again blocks those
    /// behind it. Called while every lane is idle, so that no change of a held key is under way.
    pub(crate) async fn retry(&self, writer: &mut dyn SinkWriter) -> Result<Counters> {
        self.retry_those(writer, |_| true).await
    }

    /// As [`Letters::retry`], of letters that stand; the others block those behind them too.
    pub(crate) async fn retry_those(
        &self,
        writer: &mut dyn SinkWriter,
        stands: impl Fn(&DeadLetter) -> bool + Send,
    ) -> Result<Counters> {
        let mut applied = Counters::default();
        let mut blocked = Held::default();
        let mut tried = 0;
        let mut reading = match (&self.store, self.retries) {
            (Some(store), true) => Some(Waiting::begin(store, &self.pipeline).await?),
            _ => None,
        };
        // What is not tried, however much of it there is, keeps nothing from being tried but what is behind it.
        while let Some(reading) = reading.as_mut().filter(|_| tried < PASS) {
            let some = reading.next(PASS, |a, b| self.together(a, b)).await?;
            if some.is_empty() {
                break;
            }
            for group in self.groups(&some) {
                let unit = unit_of(group)?;
                let is_blocked = unit.changes().any(|c| blocked.touches(c));
                let wanted = group.iter().all(|l| self.is_due(l) && stands(l));
                tried += if is_blocked || !wanted { 0 } else { group.len() };
                if is_blocked || !wanted || !self.try_group(writer, &unit, group).await? {
                    blocked.keys.extend(unit.changes().flat_map(|c| keys_of(c, false)));
                } else {
                    applied.changes += unit.row_changes();
                }
            }
        }
        self.reload().await.map(|()| applied)
    }

    /// Whether it may be tried again by itself, and it is time to. An operator who asks for another
    /// try sets its attempts to 0.
    pub(in crate::runtime) fn is_due(&self, letter: &DeadLetter) -> bool {
        // The ticks that ask are this far apart.
        let always = self.policy.retry_after <= LetterPolicy::default().retry_after;
        let wait = i64::try_from(self.policy.retry_after.as_micros()).unwrap_or(i64::MAX);
        let waited = |at: Timestamp| always || Timestamp::now().micros_since(at) >= wait;
        letter.class != LetterClass::Severe && (letter.attempts == 0 || letter.last_attempt.is_none_or(waited))
    }

    /// Marks a letter that an earlier run had applied when it died before it could mark it.
    pub(crate) async fn finish_interrupted_retry(&self, last_applied: &[u8]) -> Result<()> {
        let (Some(store), Ok(id)) = (&self.store, std::str::from_utf8(last_applied)) else { return Ok(()) };
        let Some(letter) = store.get(&self.pipeline, id).await? else { return Ok(()) };
        if letter.state.is_open() {
            // In `transaction` order its transaction was applied with it; of a sharded target each
            // shard applies its own part, and of the others nothing is known.
            let together = |l: &DeadLetter| self.shards.is_none() || l.shard == letter.shard;
            let waiting = match self.whole_transactions {
                true => Waiting::begin(store, &self.pipeline).await?.next(usize::MAX, |_, _| true).await?,
                false => vec![letter.clone()],
            };
            let done = self.groups(&waiting).into_iter().find(|g| g.iter().any(|l| l.id == id)).unwrap_or_default();
            let done = done.iter().filter(|l| together(l));
            let applied: Vec<_> = done.map(|l| marked(l, LetterState::Applied)).collect();
            store.put(&self.pipeline, &applied).await?;
        }
        Ok(())
    }

    pub(in crate::runtime) async fn try_group(
        &self,
        writer: &mut dyn SinkWriter,
        unit: &Unit,
        group: &[DeadLetter],
    ) -> Result<bool> {
        let Some(store) = &self.store else { return Ok(false) };
        let outcome = match writer.write(unit).await {
            Ok(written) if written.rejected.is_empty() => writer.flush().await.map(|()| None)?,
            Ok(mut written) => Some(written.rejected.swap_remove(0).error),
            Err(e) if e.kind() == ErrorKind::Rejected => Some(e),
            Err(e) => return Err(e),
        };
        let Some(error) = outcome else {
            let applied: Vec<_> = group.iter().map(|letter| marked(letter, LetterState::Applied)).collect();
            store.put(&self.pipeline, &applied).await?;
            return Ok(true);
        };
        let failed = |letter: &DeadLetter| {
            let mut after = marked(letter, LetterState::Open);
            after.reason = error.report();
            if after.attempts >= self.policy.max_attempts {
                after.class = LetterClass::Severe;
            }
            (letter.clone(), after)
        };
        // An operator may have decided meanwhile, or, if this run was frozen, its successor have applied them.
        let failed: Vec<_> = group.iter().map(failed).collect();
        store.replace(&self.pipeline, &failed).await?;
        Ok(false)
    }

    /// The letters that are tried together: a transaction's in `transaction` order, else one.
    pub(in crate::runtime) fn groups<'a>(&self, letters: &'a [DeadLetter]) -> Vec<&'a [DeadLetter]> {
        letters.chunk_by(|a, b| self.together(a, b)).collect()
    }

    fn together(&self, a: &DeadLetter, b: &DeadLetter) -> bool {
        // Of a transaction that is spread over partitions the prefix is the same in each.
        self.whole_transactions && a.commit_time == b.commit_time && transaction_of(a) == transaction_of(b)
    }
}

/// The letters that wait, read some at a time.
struct Waiting {
    reading: InOrder,
    /// The first of those that come next.
    ahead: Option<DeadLetter>,
}

impl Waiting {
    async fn begin(store: &Arc<dyn DeadLetterStore>, pipeline: &Arc<str>) -> Result<Self> {
        let mut reading = InOrder::begin(Arc::clone(store), Arc::clone(pipeline)).await?;
        let ahead = reading.next().await?;
        Ok(Self { reading, ahead })
    }

    /// About `limit` letters, the next ones: a transaction whole, whatever the limit is. None: all were read.
    async fn next(
        &mut self,
        limit: usize,
        together: impl Fn(&DeadLetter, &DeadLetter) -> bool + Send,
    ) -> Result<Vec<DeadLetter>> {
        let mut some: Vec<DeadLetter> = Vec::new();
        while let Some(letter) = self.ahead.take() {
            if some.len() >= limit && !some.last().is_some_and(|last| together(last, &letter)) {
                self.ahead = Some(letter);
                break;
            }
            some.push(letter);
            self.ahead = self.reading.next().await?;
        }
        // Ids begin with the partition, but a key that moved to a child partition goes on with higher
        // ranks there. Letters of one transaction and partition stay together.
        some.sort_by(|a, b| transaction_of(a).cmp(transaction_of(b)).then_with(|| a.id.cmp(&b.id)));
        Ok(some)
    }
}

/// The rank prefix that is the transaction's.
fn transaction_of(letter: &DeadLetter) -> &[u8] {
    let rank = letter.position.rank.as_bytes();
    &rank[..rank.len().saturating_sub(8)]
}

fn marked(letter: &DeadLetter, state: LetterState) -> DeadLetter {
    let mut letter = letter.clone();
    letter.state = state;
    letter.attempts += 1;
    letter.last_attempt = Some(Timestamp::now());
    letter
}

/// A unit that applies these letters, in one target transaction, and stores that it did.
pub(in crate::runtime) fn unit_of(letters: &[DeadLetter]) -> Result<Unit> {
    let mut builder = BatchBuilder::new(PartitionId::new(RETRIED));
    let mut schemas: Vec<Arc<TableSchema>> = Vec::new();
    for letter in letters {
        // Under its own rank: a sink may keep versions of rows.
        let rank = letter.position.rank.as_bytes();
        let (prefix, number) = rank.split_at(rank.len().saturating_sub(8));
        let sequence = number.try_into().map_or(1, u64::from_be_bytes);
        let rank = Bytes::copy_from_slice(prefix);
        builder.begin(Transaction { rank, commit_time: letter.commit_time, ..Transaction::default() }, sequence);
        let schema = match schemas.iter().find(|s| ***s == letter.schema) {
            Some(schema) => Arc::clone(schema),
            None => {
                schemas.push(Arc::new(letter.schema.clone()));
                Arc::clone(&schemas[schemas.len() - 1])
            }
        };
        let index = builder.schema(&schema);
        builder.change(letter.op, index);
        if let Some(old) = &letter.old {
            let full = old.iter().all(|v| !v.as_ref().is_unchanged());
            builder.old_row(if full { crate::OldImage::Full } else { crate::OldImage::Key });
            old.iter().for_each(|v| builder.push(v.as_ref()));
        }
        if let Some(new) = &letter.new {
            builder.new_row();
            new.iter().for_each(|v| builder.push(v.as_ref()));
        }
        if let Some(shard) = &letter.shard {
            builder.shard(shard);
        }
    }
    let last = letters.last().map_or_else(String::new, |l| l.id.clone());
    let end = Position::new(Rank::of_end(&[0; 8]), last);
    builder.commit(end.clone());
    let batch = Arc::new(builder.finish(end.clone(), None)?);
    let changes = Selection::Range(0..batch.len() as u32);
    Ok(Unit {
        id: UnitId(u64::MAX),
        kind: UnitKind::Stream,
        part: Part::Whole,
        slices: vec![UnitSlice { batch, changes }],
        transactions: 0,
        progress: vec![Progress { partition: PartitionId::new(RETRIED), position: end, safe_time: None }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::MemoryDeadLetters;
    use crate::memory::MemorySource;
    use crate::model::{Column, DataType, Op, TableName, Value};

    fn letter(sequence: i64, shard: &str) -> DeadLetter {
        let schema = TableSchema {
            name: TableName::new("public", "orders"),
            columns: vec![Column::new("id", DataType::Int64)],
            key: vec![0],
        };
        DeadLetter {
            id: format!("memory:9-{sequence}"),
            class: LetterClass::Retry,
            state: LetterState::Held,
            reason: "parked".to_owned(),
            op: Op::Insert,
            schema,
            old: None,
            new: Some(vec![Value::Int(sequence)]),
            shard: Some(shard.to_owned()),
            partition: PartitionId::new("memory"),
            position: Position::new(Rank::of_change(&[9; 8], sequence as u64), Bytes::new()),
            commit_time: Some(Timestamp::from_micros(9)),
            attempts: 0,
            last_attempt: None,
            parked: None,
            lane: None,
        }
    }

    /// A transaction over two shards is tried in each by itself: when the process dies after one of
    /// them, the letters of the other have not been applied.
    #[tokio::test]
    async fn what_one_shard_had_applied_is_not_marked_for_the_others() {
        for (sharded, of_the_other) in [(true, LetterState::Held), (false, LetterState::Applied)] {
            let (store, source) = (MemoryDeadLetters::new(), MemorySource::new("db"));
            let shards = sharded.then(|| ["north", "south"].map(Arc::from).to_vec().into());
            store.put("p", &[letter(1, "north"), letter(2, "south"), letter(3, "north")]).await.unwrap();
            let (policy, store) = (LetterPolicy::default(), Arc::new(store));
            let letters = Letters::load("p".into(), Arc::new(source), Some(store.clone()), policy, true, true, shards);
            letters.await.unwrap().finish_interrupted_retry(b"memory:9-3").await.unwrap();
            let mut states = Vec::new();
            for sequence in 1..=3 {
                states.push(store.get("p", &format!("memory:9-{sequence}")).await.unwrap().unwrap().state);
            }
            assert_eq!(states, [LetterState::Applied, of_the_other, LetterState::Applied], "sharded: {sharded}");
        }
    }
}
