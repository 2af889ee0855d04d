//! The keys of rows that changed.

use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, ChangeReader, Next, OldImage, Op, PartitionId, Position, Rank, Result, RowRef, TableSchema,
    Transaction, ValueRef,
};
use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashTable};

/// Keys of one table. A key takes its text, 5 bytes for each column, and about 12 more.
///
/// With these two limits they take up to about 80 MB, of the few tables that were being copied when a copy
/// was interrupted. A million keys are removed and copied one by one in a minute or two; where more changed
/// than that, to copy the whole table is not much longer any more, and its rows come in the order of the disk.
const MAX_KEYS: usize = 1 << 20;

/// Bytes of text of these keys. See [`MAX_KEYS`].
const MAX_BYTES: usize = 64 << 20;

/// Different keys, numbered as they came.
#[derive(Default)]
pub(super) struct Keys {
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// For each value its length, in four bytes, and its text.
    bytes: Vec<u8>,
    /// Where each key ends in `bytes`.
    ends: Vec<u32>,
    scratch: Vec<u8>,
}

/// Why keys cannot be collected any further.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// There are more than [`MAX_KEYS`], or they are longer than [`MAX_BYTES`].
    TooMany,
    /// A row came without its key.
    Unknown,
}

impl Full {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::TooMany => "more rows changed than are kept in memory (a million keys, or 64 MiB of them)",
            Self::Unknown => "a row changed whose key the stream does not tell",
        }
    }
}

impl Keys {
    /// Adds the key of a row.
    pub(super) fn add(&mut self, schema: &TableSchema, row: RowRef<'_>) -> std::result::Result<(), Full> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        for &k in &schema.key {
            let ValueRef::Text(text) = row.get(usize::from(k)) else { return Err(Full::Unknown) };
            scratch.extend_from_slice(&(text.len() as u32).to_le_bytes());
            scratch.extend_from_slice(text.as_bytes());
        }
        let added = self.insert(&scratch);
        self.scratch = scratch;
        added
    }

    fn insert(&mut self, key: &[u8]) -> std::result::Result<(), Full> {
        let Self { numbers, hasher, bytes, ends, .. } = self;
        let of = |n: u32| &bytes[range(ends, n as usize)];
        let hash = hasher.hash_one(key);
        if numbers.find(hash, |&n| of(n) == key).is_some() {
            return Ok(());
        }
        if ends.len() >= MAX_KEYS || bytes.len() + key.len() > MAX_BYTES {
            return Err(Full::TooMany);
        }
        numbers.insert_unique(hash, ends.len() as u32, |&n| hasher.hash_one(of(n)));
        bytes.extend_from_slice(key);
        ends.push(bytes.len() as u32);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The values of a key, in key order.
    pub(super) fn get(&self, number: usize) -> Vec<&str> {
        let mut rest = self.bytes.get(range(&self.ends, number)).unwrap_or_default();
        let mut values = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let Some((text, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize) else { break };
            // They came as text.
            values.push(std::str::from_utf8(text).unwrap_or_default());
            rest = after;
        }
        values
    }
}

fn range(ends: &[u32], number: usize) -> Range<usize> {
    let end = |n: usize| ends.get(n).copied().unwrap_or_default() as usize;
    (if number == 0 { 0 } else { end(number - 1) })..end(number)
}

/// A chunk has no place in the log.
const RANK: [u8; 8] = [0; 8];

/// Gives deletes of some of the keys, in one transaction.
pub(super) struct KeyReader {
    keys: Arc<Keys>,
    left: Option<Range<usize>>,
    schema: Arc<TableSchema>,
    partition: PartitionId,
}

impl KeyReader {
    pub(super) fn new(keys: Arc<Keys>, which: Range<usize>, schema: &Arc<TableSchema>, partition: PartitionId) -> Self {
        Self { keys, left: Some(which), schema: Arc::clone(schema), partition }
    }
}

#[async_trait]
impl ChangeReader for KeyReader {
    async fn next(&mut self) -> Result<Next> {
        let Some(which) = self.left.clone() else { return Ok(Next::Closed { children: Vec::new() }) };
        let mut batch = BatchBuilder::new(self.partition.clone());
        let slot = batch.schema(&self.schema);
        batch.begin(Transaction { rank: Bytes::from_static(&RANK), ..Transaction::default() }, 1);
        for number in which {
            let key = self.keys.get(number);
            batch.change(Op::Delete, slot);
            batch.old_row(OldImage::Key);
            for column in 0..self.schema.columns.len() {
                let place = self.schema.key.iter().position(|&k| usize::from(k) == column);
                let value = place.and_then(|at| key.get(at));
                batch.push(value.map_or(ValueRef::Unchanged, |text| ValueRef::Text(text)));
            }
        }
        let end = Position::new(Rank::of_end(&RANK), Bytes::new());
        batch.commit(end.clone());
        let batch = batch.finish(end, None)?;
        self.left = None;
        Ok(Next::Batch(batch))
    }

    async fn acknowledge(&mut self, _: Option<&Position>) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&str]) -> Vec<u8> {
        values.iter().flat_map(|v| (v.len() as u32).to_le_bytes().into_iter().chain(v.bytes())).collect()
    }

    #[test]
    fn a_key_is_kept_once_and_read_back() {
        let mut keys = Keys::default();
        let all = [vec!["1", "a"], vec!["", "1a"], vec!["1a", ""], vec!["ü'\\", "\n"]];
        for _ in 0..2 {
            for values in &all {
                assert_eq!(keys.insert(&key(values)), Ok(()));
            }
        }
        assert_eq!(keys.len(), 4);
        for (n, values) in all.iter().enumerate() {
            assert_eq!(keys.get(n), *values);
        }
    }

    #[test]
    fn they_are_bounded() {
        let mut keys = Keys::default();
        for n in 0..MAX_KEYS {
            assert_eq!(keys.insert(&n.to_le_bytes()), Ok(()));
        }
        assert_eq!(keys.insert(&key(&["one more"])), Err(Full::TooMany));
        assert_eq!(keys.insert(&7_usize.to_le_bytes()), Ok(()));
        let mut keys = Keys::default();
        let long = "x".repeat(MAX_BYTES / 2);
        assert_eq!(keys.insert(&key(&[&long])), Ok(()));
        assert_eq!(keys.insert(&key(&[&format!("y{long}")])), Err(Full::TooMany));
    }
}
