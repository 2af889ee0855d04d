//! A sink of one's own: it prints every change.
//!
//! ```sh
//! cargo run --example custom_sink
//! ```
//!
//! The source is a database in memory; a real one is put in its place by one line. The checkpoint
//! is kept in a folder, so that the second run goes on where the first one stopped.
//!
//! A sink like this one, without transactions, is told everything at least once: after a crash
//! between printing and saving the checkpoint, the last changes are printed again. A sink that
//! stores progress in the same transaction as the rows ([`anabranch::Sink::progress`]) is told
//! everything exactly once in effect; `anabranch::memory::MemorySink` is the shortest such.

use anabranch::checkpointer::FileCheckpointer;
use anabranch::memory::MemorySource;
use anabranch::{
    ByTransaction, ChangeRef, Column, DataType, Lane, Pipeline, Result, RowRef, Sink, SinkInfo, SinkWriter, TableName,
    TableSchema, Unit, Written,
};

/// Prints. It has no settings.
#[derive(Debug)]
struct PrintSink;

#[anabranch::async_trait]
impl Sink for PrintSink {
    fn info(&self) -> SinkInfo {
        SinkInfo { name: "print", transactional: false, max_lanes: 1, schemas: true }
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        println!("lane {} of {}, epoch {}", lane.index, lane.count, lane.epoch);
        Ok(Box::new(PrintWriter))
    }
}

/// The writer of one lane.
struct PrintWriter;

#[anabranch::async_trait]
impl SinkWriter for PrintWriter {
    /// A unit is what is applied as one transaction: here whole source transactions, one or more.
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        println!("-- {} transaction(s), {} change(s)", unit.transactions, unit.len());
        for change in unit.changes() {
            println!("   {}", line(change));
        }
        // `durable` lets the source forget it: say so only once it would survive a crash.
        Ok(Written::durable())
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// `Update public.orders old [1, unchanged] new [1, "paid"]`
fn line(change: ChangeRef<'_>) -> String {
    let table = change.table().map(|schema| schema.name.to_string()).unwrap_or_default();
    let row = |name: &str, row: Option<RowRef<'_>>| match row {
        Some(row) => format!(" {name} {:?}", row.values().collect::<Vec<_>>()),
        None => String::new(),
    };
    format!("{:?} {table}{}{}", change.op(), row("old", change.old_row()), row("new", change.new_row()))
}

#[tokio::main]
async fn main() -> Result<()> {
    let orders = TableSchema {
        name: TableName::new("public", "orders"),
        columns: vec![Column::new("id", DataType::Int64), Column::new("state", DataType::Text { max_chars: None })],
        key: vec![0],
    };
    let shop = MemorySource::new("shop").table(orders.clone());
    let state = tempfile::tempdir().expect("a folder for the checkpoint");
    let pipeline = || {
        Pipeline::builder("print-orders")
            .source(shop.clone())
            .sink(PrintSink)
            .order(ByTransaction::new())
            .checkpointer(FileCheckpointer::new(state.path()))
            .build()
    };

    println!("== the first run copies what is there, then streams");
    shop.transaction().insert(&orders.name, [1.into(), "new".into()]).commit()?;
    let mut running = pipeline()?.start().await?;
    running.drain(None).await?;
    shop.transaction()
        .insert(&orders.name, [2.into(), "new".into()])
        .update(&orders.name, [1.into()], [1.into(), "paid".into()])
        .commit()?;
    running.drain(None).await?;
    running.stop().await?;

    println!("== the second run goes on behind it");
    shop.transaction().delete(&orders.name, [2.into()]).commit()?;
    let mut running = pipeline()?.start().await?;
    running.drain(None).await?;
    running.stop().await
}
