//! The writers of a run: concurrent sessions on the source that survive its crashes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anabranch_servers::PgServer;
use anabranch_testkit::history::{Options, Workload};
use tokio::task::JoinHandle;

use super::Tested;
use super::source::{DB, connect};

/// Writers at work.
pub(super) struct Writers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Starts `count` of them. Each pauses for `pause` after a transaction, so that the machine has
    /// time for the pipeline too.
    pub(super) fn start(server: &PgServer, seed: u64, options: Options, count: u32, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicU64::new(0));
        let task = |writer| {
            let workload = Workload::new(seed, writer, options);
            tokio::spawn(write(server.url(DB), workload, pause, stop.clone(), committed.clone()))
        };
        let tasks = (1..=count).map(task).collect();
        Self { stop, committed, tasks }
    }

    /// How many transactions went through so far, without those whose end nobody heard of.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Stops them; each ends its transaction first. How many went through.
    pub(super) async fn stop(self) -> Tested<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        Ok(self.committed.load(Ordering::Relaxed))
    }
}

async fn write(url: String, mut workload: Workload, pause: Duration, stop: Arc<AtomicBool>, committed: Arc<AtomicU64>) {
    let mut session = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(client) = &session else {
            session = connect(&url, "writer").await.ok();
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let transaction = workload.next_transaction();
        match client.batch_execute(&transaction.sql).await {
            Ok(()) => drop(committed.fetch_add(u64::from(transaction.commits), Ordering::Relaxed)),
            // Refused (a deadlock, a key that another writer took), or the source is gone.
            Err(_) if client.batch_execute("ROLLBACK").await.is_ok() => {}
            Err(_) => session = None,
        }
        tokio::time::sleep(pause).await;
    }
}
