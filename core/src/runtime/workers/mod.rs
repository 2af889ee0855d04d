//! Several processes share the partitions of one source: the part of one of them.
//!
//! ```text
//! set up:  one of them takes the lease for it, copies the tables, creates the leases of the partitions
//! share:   every failover / 5: list the leases; take, ask for, give up (leases::Balancer)
//!          each lease that is held: a pipeline of its own (supervise), renewed beside it (Held::keep)
//! ```
//!
//! Leases decide who should work on a partition; its epoch decides who can. A process that lost a
//! lease and does not know it yet is refused by the lease at its next save, and by the sink, which
//! has seen the higher epoch of the successor.

mod control;
mod held;
mod partition;
mod tend;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OnceCell, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::reader::Transforms;
use crate::error::{Error, ErrorKind, Result};
use crate::leases::{Balancer, LETTERS, Lease, Leases, Moves, SETUP, pipeline_of};
use crate::model::{Checkpoint, Partition, PartitionId, SnapshotPhase};
use crate::pipeline::{Phase, Role, Shared, SnapshotMode, Spec, Watermark, stored};
pub(crate) use control::change_record;
use held::Held;
use partition::{PartitionSource, Prepared};

/// How many times the leases are listed within the failover time. A death is noticed that much late.
const LOOKS: u32 = 5;

/// Every how many looks leases that nobody needs any more are forgotten.
const FORGET: u32 = 30;

/// One attempt: set up, or wait for who does; then work on a share of the partitions until `halt`.
pub(super) async fn share(
    spec: &Arc<Spec>,
    transforms: &Transforms,
    shared: &Arc<Shared>,
    halt: &CancellationToken,
    ready: &mut Option<oneshot::Sender<Result<()>>>,
) -> Result<()> {
    shared.phase(Phase::Starting);
    let (Some(workers), Some(leases)) = (&spec.workers, spec.leases()) else {
        return Err(Error::fatal("this pipeline has no workers"));
    };
    control::mark(spec).await?;
    let name = workers.name();
    let prepared = Prepared {
        spec: Arc::clone(spec),
        leases: Arc::clone(&leases),
        control: Checkpoint::default(),
        done: OnceCell::new(),
    };
    let mut worker = Worker {
        prepared: Arc::new(prepared),
        balancer: Balancer::new(name.clone(), workers.failover, workers.most),
        name,
        failover: workers.failover,
        spec: Arc::clone(spec),
        transforms: transforms.clone(),
        shared: Arc::clone(shared),
        leases,
        control: Checkpoint::default(),
        began: Instant::now(),
        looks: 0,
        held: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let Some(prepared) = worker.set_up(halt, ready).await? else { return Ok(()) };
    if spec.snapshot == SnapshotMode::Only {
        return Ok(());
    }
    worker.load(prepared).await?;
    if let Some(ready) = ready.take() {
        let _ = ready.send(Ok(()));
    }
    shared.phase(Phase::Streaming);
    let result = worker.run(halt).await;
    let ended = worker.end().await;
    result.and(ended)
}

struct Worker {
    name: String,
    failover: Duration,
    spec: Arc<Spec>,
    transforms: Transforms,
    shared: Arc<Shared>,
    leases: Arc<dyn Leases>,
    balancer: Balancer,
    /// The pipeline's own record, when the work began.
    control: Checkpoint,
    prepared: Arc<Prepared>,
    began: Instant,
    looks: u32,
    held: HashMap<PartitionId, Work>,
    tasks: JoinSet<(PartitionId, Result<()>)>,
}

/// A lease that is worked on.
struct Work {
    stop: CancellationToken,
    shared: Arc<Shared>,
}

impl Worker {
    /// Returns when the tables are copied, by this process or another: whether it was this one, which
    /// has prepared the source then. `None` if it was stopped before.
    async fn set_up(
        &mut self,
        halt: &CancellationToken,
        ready: &mut Option<oneshot::Sender<Result<()>>>,
    ) -> Result<Option<bool>> {
        let setup = Partition::root(PartitionId::new(SETUP));
        self.leases.create(&self.spec.name, std::slice::from_ref(&setup)).await?;
        let mut tick = interval(self.failover / LOOKS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // 1. Stopping: nothing has begun.
                () = halt.cancelled() => return Ok(None),
                // 2. Look who does it.
                _ = tick.tick() => {}
            }
            let (listed, moves) = self.look().await?;
            let Some(lease) = listed.into_iter().find(|l| *l.id() == setup.id) else {
                return Err(Error::fatal("the lease of the set-up is gone"));
            };
            if lease.finished {
                return Ok(Some(false));
            }
            if !moves.take.contains(&setup.id) {
                self.shared.phase(Phase::Snapshot);
                if let Some(ready) = ready.take() {
                    let _ = ready.send(Ok(()));
                }
                continue;
            }
            let Some(held) = self.take(&lease).await? else { continue };
            match self.set_up_here(&held, halt, ready).await {
                Ok(true) => return Ok(Some(true)),
                Ok(false) => return Ok(None),
                // Another one has it now.
                Err(e) if held.lost().is_cancelled() => {
                    tracing::warn!(error = %e.report(), "another worker has taken over the set-up");
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Copies the tables and creates the leases of the partitions; false if it was stopped before.
    async fn set_up_here(
        &self,
        held: &Arc<Held>,
        halt: &CancellationToken,
        ready: &mut Option<oneshot::Sender<Result<()>>>,
    ) -> Result<bool> {
        let mut keeping = JoinSet::new();
        keeping.spawn(keep(Arc::clone(held), self.failover));
        let stop = held.lost().child_token();
        let passed_on = stop.clone();
        let halted = halt.clone();
        keeping.spawn(async move {
            halted.cancelled().await;
            passed_on.cancel();
        });
        let spec = Arc::new(Spec {
            name: pipeline_of(&self.spec.name, &PartitionId::new(SETUP)).into(),
            role: Role::Setup,
            checkpointer: Arc::clone(held) as _,
            workers: None,
            ..Spec::clone(&self.spec)
        });
        let result = super::attempt(&spec, &self.transforms, &self.shared, &stop, ready).await;
        let checkpoint = held.checkpoint().await;
        let done = result.is_ok() && checkpoint.snapshot.phase == SnapshotPhase::Done;
        if done {
            let mut partitions = self.spec.source.partitions().await?;
            // A parent that the source does not give any more was read long ago, or is lost.
            let known: HashSet<PartitionId> = partitions.iter().map(|p| p.id.clone()).collect();
            partitions.iter_mut().for_each(|p| p.parents.retain(|parent| known.contains(parent)));
            // Before the set-up is finished: whoever sees that finds everything.
            self.leases.create(&self.spec.name, &partitions).await?;
            control::set_up(&self.spec, &checkpoint).await?;
        }
        let released = held.release(done).await;
        result?;
        Ok(released? && done)
    }

    /// What the set-up has found. `prepared`: it was done here.
    async fn load(&mut self, prepared: bool) -> Result<()> {
        let spec = Arc::clone(&self.spec);
        self.control = control::load(&spec).await?;
        let done = OnceCell::new_with(prepared.then_some(()));
        let leases = Arc::clone(&self.leases);
        self.prepared = Arc::new(Prepared { spec, leases, control: self.control.clone(), done });
        if self.spec.dead_letters.is_some() {
            self.leases.create(&self.spec.name, &[Partition::root(PartitionId::new(LETTERS))]).await?;
        }
        let listed = self.leases.list(&self.spec.name).await?;
        self.shared.opened(&self.control, self.control.counters);
        self.publish(&listed).await
    }

    async fn run(&mut self, halt: &CancellationToken) -> Result<()> {
        let mut tick = interval(self.failover / LOOKS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // 1. Stopping.
                () = halt.cancelled() => return Ok(()),
                // 2. A partition was finished, given up or lost, or its pipeline has failed. Its
                // children may be free now.
                Some(ended) = self.tasks.join_next() => {
                    self.ended(ended)?;
                    tick.reset_immediately();
                }
                // 3. Time to look.
                _ = tick.tick() => match self.balance().await {
                    Ok(nothing_left) if nothing_left && self.spec.source.ends() => return Ok(()),
                    Ok(_) => {}
                    Err(e) => {
                        tracing::warn!(pipeline = %self.spec.name, error = %e.report(), "the leases cannot be read now");
                    }
                },
            }
        }
    }

    /// Lists the leases and decides. The clock is read before: a list that took long, or a process
    /// that was paused meanwhile, makes nobody look more silent than he was.
    async fn look(&mut self) -> Result<(Vec<Lease>, Moves)> {
        let now = self.began.elapsed();
        let listed = self.leases.list(&self.spec.name).await?;
        let held: HashSet<PartitionId> = self.held.keys().cloned().collect();
        let moves = self.balancer.decide(now, &listed, &held, &mut rand::random);
        Ok((listed, moves))
    }

    /// Takes, asks for and gives up leases. Whether every partition is finished.
    async fn balance(&mut self) -> Result<bool> {
        let (listed, moves) = self.look().await?;
        for id in &moves.give {
            if let Some(work) = self.held.get(id) {
                tracing::info!(worker = %self.name, partition = %id, "hands the partition over");
                work.stop.cancel();
            }
        }
        for lease in listed.iter().filter(|l| moves.take.contains(l.id())) {
            if let Some(held) = self.take(lease).await? {
                self.begin(lease.partition.clone(), held);
            }
        }
        if let Some(id) = &moves.ask {
            self.leases.ask(&self.spec.name, id, &self.name).await?;
        }
        self.looks += 1;
        if self.looks.is_multiple_of(FORGET) {
            let gone = forgettable(&listed);
            if !gone.is_empty() {
                self.leases.forget(&self.spec.name, &gone).await?;
            }
        }
        self.publish(&listed).await?;
        Ok(listed.iter().all(|l| l.finished || l.id().as_str() == LETTERS))
    }

    async fn take(&self, seen: &Lease) -> Result<Option<Arc<Held>>> {
        let began = Instant::now();
        let Some(mut lease) = self.leases.take(&self.spec.name, seen, &self.name).await? else { return Ok(None) };
        if seen.id().as_str() != SETUP {
            // What the set-up has found holds for every partition.
            lease.checkpoint.identity = self.control.identity.clone();
            lease.checkpoint.snapshot = self.control.snapshot.clone();
        }
        let pipeline = Arc::clone(&self.spec.name);
        Ok(Some(Arc::new(Held::new(Arc::clone(&self.leases), pipeline, lease, began))))
    }

    /// Begins to work on a lease that was taken.
    fn begin(&mut self, partition: Partition, held: Arc<Held>) {
        tracing::info!(worker = %self.name, partition = %partition.id, "takes the partition");
        let id = partition.id.clone();
        let (stop, shared) = (held.lost().child_token(), Arc::new(self.shared.part()));
        self.held.insert(id.clone(), Work { stop: stop.clone(), shared: Arc::clone(&shared) });
        let source = PartitionSource {
            inner: Arc::clone(&self.spec.source),
            partition,
            prepared: Arc::clone(&self.prepared),
            leases: Arc::clone(&self.leases),
            pipeline: Arc::clone(&self.spec.name),
            held: Arc::clone(&held),
        };
        let spec = Arc::new(Spec {
            name: pipeline_of(&self.spec.name, &id).into(),
            role: Role::Partition,
            source: Arc::new(source),
            checkpointer: Arc::clone(&held) as _,
            workers: None,
            snapshot: SnapshotMode::Never,
            ..Spec::clone(&self.spec)
        });
        let (transforms, failover) = (self.transforms.clone(), self.failover);
        let span = tracing::info_span!("partition", partition = %id);
        let work = async move {
            let mut keeping = JoinSet::new();
            keeping.spawn(keep(Arc::clone(&held), failover));
            let result = if id.as_str() == LETTERS {
                tend::tend(&spec, &held, &stop).await
            } else {
                let (ready, _) = oneshot::channel();
                Box::pin(super::supervise(spec, transforms, shared, stop, ready)).await
            };
            let result = conclude(&held, result).await;
            (id, result)
        };
        self.tasks.spawn(work.instrument(span));
    }

    /// A lease is not worked on any more. What fails for good in one partition ends the worker.
    fn ended(&mut self, ended: Result<(PartitionId, Result<()>), JoinError>) -> Result<()> {
        let (id, result) = ended.map_err(|e| Error::fatal("the pipeline of a partition panicked").because(e))?;
        self.held.remove(&id);
        result.map_err(|e| e.context(format!("the partition {id}")))
    }

    /// Shows how far all the workers are.
    async fn publish(&self, listed: &[Lease]) -> Result<()> {
        if self.held.keys().all(|id| id.as_str() == LETTERS) {
            // It reads nothing, and the leases answer.
            self.shared.pulse().heard();
        }
        let counted = self.leases.counted(&self.spec.name).await?;
        let mut now = stored::of_leases(self.control.clone(), listed, counted);
        let mut waiting = 0;
        for (id, work) in &self.held {
            let own = work.shared.watermarks().borrow().clone();
            waiting += work.shared.waiting();
            let Some(entry) = now.checkpoint.partitions.get_mut(id) else { continue };
            // What this process has made durable since it last saved.
            if let Some(Some(position)) = own.durable.open.get(id)
                && entry.position.as_ref().is_none_or(|at| at.rank < position.rank)
            {
                entry.position = Some(position.clone());
            }
            entry.safe_time = entry.safe_time.max(own.safe_times.get(id).copied());
        }
        let open = self.spec.open_letters().await?;
        let (safe_time, counters) = (now.safe_time(), now.checkpoint.counters);
        self.shared.watermark(Watermark::of(&now, open), safe_time, counters, waiting);
        Ok(())
    }

    /// Stops everything and gives the leases back. The first error is told.
    async fn end(&mut self) -> Result<()> {
        self.held.values().for_each(|work| work.stop.cancel());
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            result = result.and(self.ended(ended));
        }
        // The last word on how far everything is: a drain may wait for it.
        if let Ok(listed) = self.leases.list(&self.spec.name).await {
            let _ = self.publish(&listed).await;
        }
        result
    }
}

async fn keep(held: Arc<Held>, failover: Duration) {
    held.keep(failover).await;
}

/// Gives the lease back, and tells what is left of an error then.
async fn conclude(held: &Held, result: Result<()>) -> Result<()> {
    let finished = result.is_ok() && held.is_finished().await;
    let released = held.release(finished).await;
    match (result, released) {
        // It was lost: whatever happened here, it is another worker's now.
        (_, Ok(false)) => Ok(()),
        // The store does not answer: the lease expires, and who takes it finds it as it is.
        (Ok(()), Err(e)) => {
            tracing::warn!(error = %e.report(), "the lease could not be given back");
            Ok(())
        }
        (Err(e), Err(_)) if e.kind() == ErrorKind::Fenced => Ok(()),
        (result, _) => result,
    }
}

/// Finished leases that no unfinished one has as a parent.
fn forgettable(leases: &[Lease]) -> Vec<PartitionId> {
    let needed: HashSet<&PartitionId> =
        leases.iter().filter(|l| !l.finished).flat_map(|l| &l.partition.parents).collect();
    let gone = leases.iter().filter(|l| l.finished && l.id().as_str() != SETUP && !needed.contains(l.id()));
    gone.map(|l| l.id().clone()).collect()
}
