use async_trait::async_trait;

use super::*;
use crate::dead_letter::MemoryDeadLetters;
use crate::memory::MemorySource;
use crate::model::{
    BatchBuilder, Column, DataType, Selection, TableName, TableSchema, Transaction, UnitId, UnitKind, UnitSlice,
    ValueRef,
};
use crate::sink::Written;

/// Refuses every row, and keeps the messages.
#[derive(Default)]
struct Outbox(Vec<String>);

#[async_trait]
impl SinkWriter for Outbox {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        if unit.changes().any(is_row) {
            return Err(Error::rejected("no rows"));
        }
        self.0.extend(unit.changes().filter_map(|c| c.message().map(|(prefix, _)| prefix.to_owned())));
        Ok(Written::durable())
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// A transaction of a row, a message, and the next row.
fn unit() -> Unit {
    let partition = PartitionId::new("p");
    let end = Position::new(Rank::of_end(&[1]), Vec::new());
    let columns = vec![Column::new("id", DataType::Int64)];
    let table = Arc::new(TableSchema { name: TableName::new("public", "t"), columns, key: vec![0] });
    let mut batch = BatchBuilder::new(partition.clone());
    let schema = batch.schema(&table);
    batch.begin(Transaction { rank: vec![1].into(), ..Transaction::default() }, 1);
    for id in [1, 2] {
        batch.change(Op::Insert, schema);
        batch.new_row();
        batch.push(ValueRef::Int(id));
        if id == 1 {
            batch.message("outbox", b"order 1 was placed");
        }
    }
    batch.commit(end.clone());
    let batch = Arc::new(batch.finish(end.clone(), None).unwrap());
    let slices = vec![UnitSlice { batch, changes: Selection::Range(0..3) }];
    let progress = vec![Progress { partition, position: end, safe_time: None }];
    Unit { id: UnitId(1), kind: UnitKind::Stream, part: Part::Whole, slices, transactions: 1, progress }
}

async fn letters(on_rejected: OnRejected, whole_transactions: bool) -> (Letters, MemoryDeadLetters) {
    let store = MemoryDeadLetters::new();
    let policy = LetterPolicy { on_rejected, ..LetterPolicy::default() };
    let source = Arc::new(MemorySource::new("db"));
    let letters =
        Letters::load("p".into(), source, Some(Arc::new(store.clone())), policy, whole_transactions, true, None);
    (letters.await.unwrap(), store)
}

/// A message is no row: it cannot be tried again as a letter, so it goes on.
#[tokio::test]
async fn the_messages_of_what_is_set_aside_go_on() {
    for whole_transactions in [true, false] {
        let (letters, store) = letters(OnRejected::DeadLetter, whole_transactions).await;
        let mut writer = Outbox::default();
        let (durability, _) = letters.apply(&mut writer, &unit(), &LaneName::default()).await.unwrap();
        assert_eq!(durability, Durability::Durable);
        assert_eq!(store.open_count("p").await.unwrap(), 2);
        assert_eq!(writer.0, ["outbox"], "whole transactions: {whole_transactions}");
    }
}

/// As are those of what comes later.
#[tokio::test]
async fn the_messages_of_a_halted_shard_go_on() {
    let (letters, _) = letters(OnRejected::HaltShard, true).await;
    letters.with_held(|held| held.shards.insert("north".to_owned()));
    let lane = LaneName { shard: Some("north".into()), lane: 0 };
    let rest = letters.hold(unit(), &lane).await.unwrap();
    assert_eq!(rest.changes().map(|c| c.op()).collect::<Vec<_>>(), [Op::Message]);
}
