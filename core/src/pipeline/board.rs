//! What a run knows of the shards that it writes, each by a pipeline of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::sync::watch;

use super::each_shard::{Told, together};
use super::{Drained, Monitor, Phase, Shared, Status};
use crate::by_shard::WriterStatus;
use crate::error::{Error, Result};
use crate::model::Timestamp;

/// The shards that this process has taken, as its handle sees them. Whoever writes them changes it.
#[derive(Debug)]
pub(crate) struct Board {
    /// The run whose parts they are; the signs of life of each are its own.
    whole: Option<Arc<Shared>>,
    /// Whether all shards are taken: only then is there something that is so of the whole.
    takes_all: bool,
    now: watch::Sender<Now>,
}

#[derive(Debug, Default)]
struct Now {
    /// How often the shards were listed, and how often that was begun.
    looks: u64,
    begun: u64,
    /// No shard that is not here has a change that was committed at or before this.
    through: Option<Timestamp>,
    /// The safe time that was told last: it never goes back.
    safe_time: Option<Timestamp>,
    shards: BTreeMap<String, Writer>,
}

/// A shard that this process has taken.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    /// What is stored of it, as far as this process knows.
    pub(crate) record: WriterStatus,
    /// Of its pipeline, once that was begun.
    monitor: Option<Monitor>,
    pub(crate) fate: Fate,
}

/// What has become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is being written.
    Running,
    /// It ended in an orderly way.
    Done,
    /// It ended by an error.
    Halted,
    /// Another process writes it now.
    TakenOver,
}

impl Board {
    pub(crate) fn new(whole: Option<Arc<Shared>>, takes_all: bool) -> Self {
        Self { whole, takes_all, now: watch::Sender::default() }
    }

    /// What the run of one shard shares with its handle.
    pub(crate) fn part(&self, pipeline: &Arc<str>) -> Arc<Shared> {
        Arc::new(self.whole.as_ref().map_or_else(|| Shared::new(pipeline), |whole| whole.part()))
    }

    pub(crate) fn has(&self, shard: &str) -> bool {
        self.now.borrow().shards.contains_key(shard)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.now.borrow().shards.is_empty()
    }

    /// A shard is taken.
    pub(crate) fn take(&self, record: WriterStatus) {
        let shard = record.shard.clone();
        let writer = Writer { record, monitor: None, fate: Fate::Running };
        self.now.send_modify(|now| drop(now.shards.insert(shard, writer)));
    }

    /// Its pipeline is about to be started.
    pub(crate) fn watch(&self, shard: &str, monitor: Monitor) {
        self.change(shard, |writer| writer.monitor = Some(monitor));
    }

    pub(crate) fn recorded(&self, record: WriterStatus) {
        let shard = record.shard.clone();
        self.change(&shard, |writer| writer.record = record);
    }

    pub(crate) fn ended(&self, shard: &str, fate: Fate) {
        self.change(shard, |writer| writer.fate = fate);
    }

    /// The shards are about to be listed.
    pub(crate) fn looks(&self) {
        self.now.send_modify(|now| now.begun += 1);
    }

    /// All shards that were listed, complete up to this time, are taken or left alone.
    pub(crate) fn chosen(&self, through: Option<Timestamp>) {
        let first = self.now.borrow().looks == 0;
        self.now.send_modify(|now| (now.looks, now.through) = (now.begun, now.through.max(through)));
        if let Some(whole) = self.whole.as_ref().filter(|_| first) {
            whole.phase(Phase::Streaming);
        }
    }

    /// Tells the figures of the whole.
    pub(crate) fn tell(&self) {
        if let Some(whole) = &self.whole {
            whole.told(&self.status(Status::unknown("")));
        }
    }

    /// What is known of each.
    pub(crate) fn writers(&self) -> BTreeMap<String, Writer> {
        self.now.borrow().shards.clone()
    }

    fn change(&self, shard: &str, change: impl FnOnce(&mut Writer)) {
        self.now.send_modify(|now| {
            if let Some(writer) = now.shards.get_mut(shard) {
                change(writer);
            }
        });
    }

    /// The status of the whole: `of_run` is what its own task tells.
    pub(crate) fn status(&self, of_run: Status) -> Status {
        let (through, writers) = {
            let now = self.now.borrow();
            (now.through, now.shards.clone())
        };
        let told = writers.into_iter().map(|(shard, writer)| {
            let runs = writer.fate == Fate::Running;
            let status = writer.monitor.map(|m| m.status());
            (shard, Told { record: Some(writer.record), status, silent: None, runs })
        });
        // What it knows of what waits is the sum that was told to it.
        let of_run = Status { lag_changes: 0, ..of_run };
        let mut status = together(of_run, told.collect(), through);
        if !self.takes_all {
            // Of the shards that are left alone nothing is known here.
            status.safe_time = None;
            status.lag_seconds = None;
            return status;
        }
        self.now.send_if_modified(|now| {
            now.safe_time = now.safe_time.max(status.safe_time);
            false
        });
        status.with_safe_time(self.now.borrow().safe_time)
    }

    /// Drains each shard that was taken. Not drained, as soon as the others are, if one was halted.
    /// Boxed: a drain of the whole is one of its parts, too.
    pub(crate) fn drain<'a>(&'a self, run: &'a Shared, deadline: Option<Duration>) -> BoxFuture<'a, Result<Drained>> {
        Box::pin(async move {
            self.all_begun(run).await?;
            let drains: Vec<_> = self.writers().into_values().map(|writer| drain_one(writer, deadline)).collect();
            let mut all = Drained { drained: true, marker_reached: true, ..Drained::default() };
            for drained in join_all(drains).await {
                match drained? {
                    Some(one) => all.add(one),
                    None => (all.drained, all.marker_reached) = (false, false),
                }
            }
            Ok(all)
        })
    }

    /// Waits until the shards are chosen and each was begun, or could not be; where all are taken, by a look
    /// that began after this call.
    async fn all_begun(&self, run: &Shared) -> Result<()> {
        let (mut now, mut phases) = (self.now.subscribe(), run.phases());
        let look = if self.takes_all { now.borrow().begun + 1 } else { 1 };
        loop {
            let begun = {
                let now = now.borrow_and_update();
                now.looks >= look && now.shards.values().all(|w| w.monitor.is_some() || w.fate != Fate::Running)
            };
            if begun {
                return Ok(());
            }
            if matches!(*phases.borrow_and_update(), Phase::Failed | Phase::Stopped) {
                return Err(Error::fatal("the pipeline ended before it was drained"));
            }
            tokio::select! {
                biased;
                // 1. and 2. Whatever moves first is looked at; senders live as long as `self` and `run`.
                _ = now.changed() => {}
                _ = phases.changed() => {}
            }
        }
    }
}

/// `None`: the shard is halted, or another process has it.
fn drain_one(writer: Writer, deadline: Option<Duration>) -> BoxFuture<'static, Result<Option<Drained>>> {
    Box::pin(async move {
        let is_over = matches!(writer.fate, Fate::Halted | Fate::TakenOver);
        let Some(monitor) = writer.monitor.filter(|_| !is_over) else { return Ok(None) };
        match monitor.drain(deadline).await {
            Ok(drained) => Ok(Some(drained)),
            Err(_) if monitor.status().phase == Phase::Failed => Ok(None),
            Err(e) => Err(e),
        }
    })
}
