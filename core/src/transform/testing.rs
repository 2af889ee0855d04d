//! Batches for the tests of transforms.

use std::sync::Arc;

use crate::model::{
    BatchBuilder, ChangeBatch, Column, DataType, OldImage, Op, PartitionId, Position, Rank, TableName, TableSchema,
    Timestamp, Transaction, Value,
};

/// `public.orders (id, region, price, note)`.
pub(super) fn orders() -> TableSchema {
    let text = || DataType::Text { max_chars: None };
    let price = DataType::Decimal { precision: None, scale: None };
    let columns = [("id", DataType::Int64), ("region", text()), ("price", price), ("note", text())];
    TableSchema {
        name: TableName::new("public", "orders"),
        columns: columns.map(|(name, data_type)| Column::new(name, data_type)).to_vec(),
        key: vec![0],
    }
}

/// Transactions of `changes` inserts each; the first is half over, the last goes on.
pub(super) fn batch(schema: &Arc<TableSchema>, transactions: u8, changes: u32) -> ChangeBatch {
    let mut b = BatchBuilder::new(PartitionId::new("p"));
    let at = b.schema(schema);
    for n in 1..=transactions {
        let rank = vec![n];
        b.begin(Transaction { rank: rank.clone().into(), ..Transaction::default() }, if n == 1 { 11 } else { 1 });
        for change in 0..changes {
            b.change(Op::Insert, at);
            b.new_row();
            for _ in &schema.columns {
                b.push(Value::from(i64::from(change)).as_ref());
            }
        }
        if n < transactions {
            b.commit(Position::new(Rank::of_end(&rank), rank));
        }
    }
    b.lag_bytes(7);
    b.finish(Position::new(Rank::of_change(&[transactions], 4), vec![9]), Some(Timestamp::from_micros(1))).unwrap()
}

/// A row of `orders`; `?` is a column that was not sent, `-` is NULL.
pub(super) fn row(values: [&str; 4]) -> Vec<Value> {
    values
        .map(|v| {
            if v == "?" {
                Value::Unchanged
            } else if v == "-" {
                Value::Null
            } else {
                v.into()
            }
        })
        .to_vec()
}

/// A change as a tuple: the operation, the old row, the new row.
pub(super) type Plain = (Op, Option<(OldImage, Vec<Value>)>, Option<Vec<Value>>);

/// One transaction of these changes.
pub(super) fn batch_of(schema: &Arc<TableSchema>, changes: &[Plain]) -> ChangeBatch {
    let mut b = BatchBuilder::new(PartitionId::new("p"));
    let at = b.schema(schema);
    b.begin(Transaction { rank: vec![1].into(), ..Transaction::default() }, 1);
    for (op, old, new) in changes {
        b.change(*op, at);
        if let Some((image, row)) = old {
            b.old_row(*image);
            row.iter().for_each(|v| b.push(v.as_ref()));
        }
        if let Some(row) = new {
            b.new_row();
            row.iter().for_each(|v| b.push(v.as_ref()));
        }
    }
    let end = Position::new(Rank::of_end(&[1]), vec![1]);
    b.commit(end.clone());
    b.finish(end, None).unwrap()
}

/// The changes of a batch.
pub(super) fn plain(batch: &ChangeBatch) -> Vec<Plain> {
    let row = |row: crate::model::RowRef<'_>| row.values().map(|v| v.to_owned()).collect::<Vec<_>>();
    batch.changes().map(|c| (c.op(), c.old_row().map(|r| (c.old_image(), row(r))), c.new_row().map(row))).collect()
}
