//! anabranch inside a service: several pipelines in one process, a status log, an orderly shutdown.
//!
//! ```sh
//! cargo run --example embed_in_a_service
//! ```
//!
//! The library installs no signal handler, no logger and no runtime, and never ends the process:
//! the service has one token for its shutdown, and its pipelines obey it. A pipeline retries by
//! itself what may mend itself; what it gives up on is handed to the service, which decides.
//!
//! Sources and sinks are in memory, and a clock stands in for the operator, so that it runs anywhere.

use std::time::Duration;

use anabranch::memory::{MemorySink, MemorySource};
use anabranch::pipeline::Monitor;
use anabranch::{Column, DataType, Pipeline, Result, RunningPipeline, TableName, TableSchema};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often the status is logged.
const STATUS_EVERY: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> Result<()> {
    // The service's own token. In production its signal handler cancels it.
    let shutdown = CancellationToken::new();
    let operator = shutdown.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        println!("shutdown requested");
        operator.cancel();
    });

    let mut service = JoinSet::new();
    let mut monitors = Vec::new();
    for region in ["east", "west"] {
        let shop = MemorySource::new(region).table(orders());
        service.spawn(customers(shop.clone(), shutdown.clone()));

        // Configuration errors, and everything that waiting cannot mend, show here. A database that
        // is only down does not fail the start: it is waited for in the background.
        let pipeline = Pipeline::builder(format!("orders-{region}"))
            .source(shop)
            .sink(MemorySink::new())
            .create_tables(true)
            // One byte budget for each pipeline: the service's memory is their sum.
            .memory(16 << 20)
            .stop_deadline(Duration::from_secs(10));
        let running = pipeline.build()?.start().await?;
        monitors.push(running.monitor());
        service.spawn(keep(running, shutdown.clone()));
    }
    service.spawn(log_status(monitors.clone(), shutdown.clone()));

    // The first that fails takes the others along; a service could also start that pipeline anew.
    let mut result = Ok(());
    while let Some(ended) = service.join_next().await {
        let ended = ended.expect("a task of the service panicked");
        if ended.is_err() {
            shutdown.cancel();
        }
        result = result.and(ended);
    }
    for monitor in monitors {
        println!("{}", line(&monitor));
    }
    result
}

/// Runs a pipeline until it ends by itself or the service shuts down.
async fn keep(mut running: RunningPipeline, shutdown: CancellationToken) -> Result<()> {
    tokio::select! {
        // Only an error ends a streaming pipeline; its kind says what it asks for.
        ended = running.wait() => return ended,
        () = shutdown.cancelled() => {}
    }
    // Finishes what is under way, flushes, saves the checkpoint and closes.
    running.stop().await
}

async fn log_status(pipelines: Vec<Monitor>, shutdown: CancellationToken) -> Result<()> {
    let mut tick = tokio::time::interval(STATUS_EVERY);
    while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
        for pipeline in &pipelines {
            println!("{}", line(pipeline));
        }
    }
    Ok(())
}

/// What a dashboard wants to know. The whole [`anabranch::Status`] is `Serialize`, for a `/status` page.
fn line(pipeline: &Monitor) -> String {
    let s = pipeline.status();
    format!(
        "{}: {:?}, {} changes in {} transactions, lag {:.1} s and {} changes, {} dead letters{}",
        s.pipeline,
        s.phase,
        s.counters.changes,
        s.counters.transactions,
        s.lag_seconds.unwrap_or(f64::NAN),
        s.lag_changes,
        s.dead_letters_open,
        s.last_error.map(|e| format!(", last error: {e}")).unwrap_or_default(),
    )
}

fn orders() -> TableSchema {
    TableSchema {
        name: TableName::new("public", "orders"),
        columns: vec![Column::new("id", DataType::Int64), Column::new("state", DataType::Text { max_chars: None })],
        key: vec![0],
    }
}

/// Orders come in until the service shuts down.
async fn customers(shop: MemorySource, shutdown: CancellationToken) -> Result<()> {
    let table = orders().name;
    for id in 0_i64.. {
        let order = shop.transaction().insert(&table, [id.into(), "new".into()]);
        order.update(&table, [id.into()], [id.into(), "paid".into()]).commit()?;
        let pause = tokio::time::sleep(Duration::from_millis(5));
        if shutdown.run_until_cancelled(pause).await.is_none() {
            break;
        }
    }
    Ok(())
}
