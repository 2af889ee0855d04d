//! A pipeline that writes each shard by a pipeline of its own: what it is built of, and what the stores
//! tell of all of them together.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};

use super::{
    OnRejected, Phase, Pipeline, Role, RunMode, ShardPhase, ShardState, ShardWriters, Spec, Status, stored,
    stored_status,
};
use crate::by_shard::{ByShard, WriterState, WriterStatus};
use crate::checkpointer::{Checkpointer, MemoryCheckpointer};
use crate::control::drain::Durable;
use crate::dead_letter::DeadLetterStore;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{PartitionId, Position, Timestamp};
use crate::runtime::{Budget, LetterPolicy, Transforms};
use crate::sharded::Sharded;
use crate::sink::Sink;
use crate::source::Source;

/// How many shards are asked at a time.
const AT_A_TIME: usize = 16;

/// The byte budget of a shard's pipeline at least.
const LEAST_MEMORY: usize = 1 << 20;

/// Checkpoints and letters are in these, or else in each shard.
pub(super) struct Stores {
    pub(super) checkpointer: Option<Arc<dyn Checkpointer>>,
    pub(super) dead_letters: Option<Arc<dyn DeadLetterStore>>,
}

/// Refuses what does not go with a pipeline for each shard.
pub(super) fn check(source: &dyn Source, sink: &dyn Sink, workers: bool) -> Result<()> {
    if source.by_shard().is_none() {
        let problem = format!("the source {} does not keep shards apart", source.info().name);
        return Err(
            Error::config("pipeline.each_shard", problem).hint("it goes with [source] type = \"files\"; leave it out")
        );
    }
    if sink.sharded().is_none() {
        let problem = format!("the sink {} is one database for all shards", sink.info().name);
        return Err(Error::config("pipeline.each_shard", problem).hint("set sink.type = \"sharded\", or leave it out"));
    }
    if workers {
        let problem = "several processes do not share the shards of a pipeline with each_shard";
        return Err(Error::config("workers", problem)
            .hint("leave it out, and name some of the shards in source.shards of each process"));
    }
    Ok(())
}

/// The mode, where no shard has a pipeline of its own.
pub(super) fn check_mode(mode: RunMode) -> Result<()> {
    if !mode.chooses_shards() {
        return Ok(());
    }
    let problem = format!("{} chooses shards of window files, each with a pipeline of its own", mode.name());
    Err(Error::config("pipeline.mode", problem).hint(
        "set pipeline.each_shard = true, with [source] type = \"files\" and [sink] type = \"sharded\"; every other \
         pipeline resumes whenever it is started: leave the mode out",
    ))
}

/// In the place of a checkpointer of the whole, which has no checkpoint.
pub(super) fn no_checkpoint() -> Arc<dyn Checkpointer> {
    Arc::new(MemoryCheckpointer::new())
}

/// The writers of a pipeline whose source and sink [`check`] has let through.
pub(super) fn writers(whole: &Spec, transforms: &Transforms, stores: &Stores) -> Result<ShardWriters> {
    let Some(sharded) = whole.sink.sharded() else { return Err(Error::fatal("the sink has no shards")) };
    let mut specs = BTreeMap::new();
    for (at, name) in sharded.names().iter().enumerate() {
        let Some(sink) = sharded.shard(at) else { continue };
        specs.insert(name.to_string(), Arc::new(spec_of(whole, stores, sharded, name, sink)?));
    }
    let known: Vec<String> = specs.keys().cloned().collect();
    let transforms = transforms.clone();
    let make = move |shard: &str| match specs.get(shard) {
        Some(spec) => Ok(Pipeline { spec: Arc::clone(spec), transforms: transforms.clone(), each_shard: None }),
        None => Err(unknown(shard, &known)),
    };
    Ok(ShardWriters::of(Arc::clone(&whole.source), Arc::clone(&whole.name), whole.mode, make))
}

fn unknown(shard: &str, known: &[String]) -> Error {
    let known = known.join(", ");
    match shard {
        "" => Error::config("pipeline.each_shard", "the run has changes without a shard, which belong to no database")
            .hint(format!(
                "set the shard in the job that writes the files, by a [[transform]] of type \"shard\" or \"session\"; \
                 known: {known}"
            )),
        _ => Error::config("sink", format!("has no shard {shard}"))
            .hint(format!("add it to sink.shards_file, or leave it out with source.shards; known: {known}")),
    }
}

/// The pipeline of one shard.
fn spec_of(whole: &Spec, stores: &Stores, sharded: &Sharded, shard: &Arc<str>, sink: &Arc<dyn Sink>) -> Result<Spec> {
    let missing = |key: &str, fix: &'static str| Error::config(key, "is missing").hint(fix);
    let name: Arc<str> = format!("{}/{shard}", whole.name).into();
    if name.len() > 100 {
        return Err(Error::config("pipeline.name", format!("with a shard's name it is longer than 100: {name}")));
    }
    let source = whole.source.by_shard().ok_or_else(|| Error::fatal("the source has no shards"))?.shard(shard);
    let checkpointer = stores.checkpointer.clone().or_else(|| sink.checkpointer()).ok_or_else(|| {
        missing("checkpoint", "the shards keep no checkpoints: set one, of type \"sqlite\" or \"file\" for instance")
    })?;
    let dead_letters = stores.dead_letters.clone().or_else(|| sink.dead_letters());
    let sets_aside = whole.letters.on_rejected == OnRejected::DeadLetter;
    if dead_letters.is_none() && (sets_aside || whole.mode.replays()) {
        return Err(missing("dead_letters.type", "the shards keep no dead letters: set a store"));
    }
    // A pipeline of one shard that stops is a shard that is halted: its changes are still in the files.
    let on_rejected = if sets_aside { OnRejected::DeadLetter } else { OnRejected::Stop };
    let memory = (whole.memory / sharded.count() as usize).max(LEAST_MEMORY);
    // A sink of one shard, and not that shard itself: a transform that sets another one is found out.
    let sink = Sharded::new([(Arc::clone(shard), Arc::clone(sink))])?.max_connections(sharded.max_lanes_per_shard());
    Ok(Spec {
        letters_of: Arc::clone(&name),
        name,
        role: Role::Whole,
        source,
        sink: Arc::new(sink),
        checkpointer,
        dead_letters,
        letters: LetterPolicy { on_rejected, ..whole.letters.clone() },
        mode: if whole.mode.replays() { whole.mode } else { RunMode::Regular },
        memory,
        budget: Budget::new(memory),
        ..whole.clone()
    })
}

/// Refuses to run as one pipeline what has been written by a pipeline for each shard: its progress is theirs.
pub(crate) async fn refuse_each_shard(spec: &Spec) -> Result<()> {
    let Some(by) = spec.source.by_shard() else { return Ok(()) };
    for shard in by.shards().await?.names {
        if by.load(&spec.name, &shard).await?.is_some() {
            let problem = format!("{} has been run with a pipeline for each shard", spec.name);
            return Err(Error::config("pipeline.name", problem)
                .hint("set pipeline.each_shard = true, or give this pipeline another name, which begins anew"));
        }
    }
    Ok(())
}

/// What is told of one shard.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) record: Option<WriterStatus>,
    pub(super) status: Option<Status>,
    /// Why its stores do not answer.
    pub(super) silent: Option<String>,
    /// Whether this process writes it now.
    pub(super) runs: bool,
}

impl Told {
    /// Whether an error has halted it, and nobody has taken it up since.
    fn is_halted(&self) -> bool {
        let is_under_way = |s: &Status| !matches!(s.phase, Phase::Stopped | Phase::Failed | Phase::Paused);
        let taken_up = |at: Timestamp| {
            self.status.as_ref().is_some_and(|s| is_under_way(s) && s.last_seen.is_some_and(|seen| seen > at))
        };
        let halted = |r: &WriterStatus| r.state == WriterState::Error && !taken_up(r.at);
        !self.runs && self.record.as_ref().is_some_and(halted)
    }

    fn state(&self, shard: &str) -> ShardState {
        let told = self.status.as_ref().and_then(|s| s.shards.get(shard)).cloned();
        let mut state = told.unwrap_or_else(ShardState::unknown);
        let recorded = self.record.as_ref().map(|r| r.state);
        let phase = self.status.as_ref().map(|s| s.phase);
        (state.phase, state.reason) = match (recorded, phase) {
            _ if self.is_halted() => {
                (ShardPhase::Halted, self.record.as_ref().and_then(|r| r.error.clone()).or(state.reason))
            }
            (Some(WriterState::Reprocess), _) if !self.runs => (ShardPhase::Reprocess, None),
            (_, Some(Phase::Stopped | Phase::Failed) | None) if !self.runs => (ShardPhase::Stopped, state.reason),
            (_, Some(Phase::Retrying)) => (state.phase, self.status.as_ref().and_then(|s| s.last_error.clone())),
            _ => (state.phase, state.reason),
        };
        if let Some(silent) = &self.silent
            && state.phase != ShardPhase::Halted
        {
            state.reason = Some(format!("its stores do not answer: {silent}"));
        }
        state
    }
}

/// The shards as one status; `whole` has what is known of the run itself. No other shard has a change
/// that was committed at or before `through`.
pub(super) fn together(whole: Status, told: BTreeMap<String, Told>, through: Option<Timestamp>) -> Status {
    let mut all = whole;
    let mut safe_time = through;
    for (shard, told) in told {
        let state = told.state(&shard);
        if state.phase == ShardPhase::Halted && all.last_error.is_none() {
            all.last_error = Some(format!("shard {shard}: {}", state.reason.as_deref().unwrap_or("it was halted")));
            all.last_error_kind = Some(ErrorKind::Fatal);
        }
        let of_shard = told.status.as_ref().and_then(|s| s.safe_time);
        safe_time = safe_time.zip(of_shard).map(|(a, b)| a.min(b));
        all.shards.insert(shard, state);
        let Some(one) = told.status else { continue };
        all.epoch = all.epoch.max(one.epoch);
        all.lag_changes += one.lag_changes;
        all.counters += one.counters;
        all.dead_letters_open += one.dead_letters_open;
        all.failures = all.failures.max(one.failures);
        all.partitions.extend(one.partitions);
        all.last_seen = all.last_seen.max(one.last_seen);
        all.snapshot = all.snapshot.or(one.snapshot);
        if all.identity.0.is_empty() {
            all.identity = one.identity;
        }
    }
    all.with_safe_time(safe_time)
}

impl ShardWriters {
    /// What the stores tell of all shards. `None` if none was ever written.
    pub(super) async fn stored_status(&self) -> Result<Option<Status>> {
        let by = self.by_shard()?;
        let list = by.shards().await?;
        let told = each(&list.names, |shard| Box::pin(self.told(by, shard))).await?;
        if told.iter().all(|(_, t)| t.record.is_none() && t.status.is_none()) {
            return Ok(None);
        }
        let mut whole = Status::unknown(self.name());
        whole.phase = phase(told.iter().map(|(_, t)| t));
        Ok(Some(together(whole, told.into_iter().collect(), list.through)))
    }

    async fn told(&self, by: &dyn ByShard, shard: &str) -> Result<Told> {
        let record = by.load(self.name(), shard).await?;
        let (status, silent) = match self.pipeline(shard) {
            Ok(pipeline) => match stored_status::from_stores(&pipeline.spec).await {
                Ok(status) => (status, None),
                // A database that is down must not hide the others.
                Err(e) => (None, Some(e.report())),
            },
            Err(_) => (None, None),
        };
        Ok(Told { record, status, silent, runs: false })
    }

    /// What is durable in all shards, and the first that is halted, with the reason.
    pub(super) async fn durable(&self) -> Result<(Option<Durable>, Option<Error>)> {
        let by = self.by_shard()?;
        let names = by.shards().await?.names;
        let looked = each(&names, |shard| Box::pin(self.look(by, shard, names.len())));
        let (mut all, mut error): (Option<Durable>, Option<Error>) = (None, None);
        for (_, (durable, halted)) in looked.await? {
            error = error.or(halted);
            if let Some(durable) = durable {
                all.get_or_insert_default().add(durable);
            }
        }
        Ok((all, error))
    }

    async fn look(&self, by: &dyn ByShard, shard: &str, of: usize) -> Result<(Option<Durable>, Option<Error>)> {
        let told = self.told(by, shard).await?;
        if told.is_halted() {
            let reason = told.record.and_then(|r| r.error).unwrap_or_default();
            return Ok((None, Some(halted(&[(shard.to_owned(), reason)], of))));
        }
        let spec = self.pipeline(shard)?.spec;
        Ok((stored::durable(&spec).await?, None))
    }

    /// Marks the present of each shard that there is.
    pub(super) async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        let by = self.by_shard()?;
        let names = by.shards().await?.names;
        let marked = each(&names, |shard| {
            Box::pin(async move {
                match by.shard(shard).marker() {
                    Some(marker) => marker.mark().await,
                    None => Err(Error::config("source.type", "its shards cannot mark their present")),
                }
            })
        });
        Ok(marked.await?.into_iter().flat_map(|(_, marks)| marks).collect())
    }

    /// Pauses every shard that was written, or lets it go on. Whether that changed any; `None`: none was.
    pub(super) async fn set_paused(&self, paused: bool) -> Result<Option<bool>> {
        let by = self.by_shard()?;
        let names = by.shards().await?.names;
        let set = each(&names, |shard| {
            Box::pin(async move {
                match self.pipeline(shard) {
                    // Nobody writes a shard that is halted.
                    Ok(_) if paused && self.told(by, shard).await?.is_halted() => Ok(None),
                    Ok(pipeline) => pipeline.mark_paused(paused).await,
                    Err(_) => Ok(None),
                }
            })
        });
        let changed: Vec<bool> = set.await?.into_iter().filter_map(|(_, changed)| changed).collect();
        Ok((!changed.is_empty()).then(|| changed.contains(&true)))
    }
}

/// Asks of each shard, some at a time; the first error of all.
async fn each<'a, T: Send>(
    names: &'a [String],
    ask: impl Fn(&'a str) -> BoxFuture<'a, Result<T>> + Send,
) -> Result<Vec<(String, T)>> {
    let mut all = Vec::with_capacity(names.len());
    for some in names.chunks(AT_A_TIME) {
        let asked: Vec<BoxFuture<'a, Result<T>>> = some.iter().map(|name| ask(name)).collect();
        for (name, answer) in some.iter().zip(join_all(asked).await) {
            all.push((name.clone(), answer.map_err(|e| e.context(format!("shard {name}")))?));
        }
    }
    Ok(all)
}

/// What the run does, by what its parts do.
fn phase<'a>(told: impl Iterator<Item = &'a Told>) -> Phase {
    let (mut phase, mut halted) = (None, false);
    for one in told {
        if one.is_halted() {
            halted = true;
            continue;
        }
        let Some(now) = one.status.as_ref().map(|s| s.phase) else { continue };
        let rank = |p: Phase| match p {
            Phase::Streaming => 5,
            Phase::Snapshot => 4,
            Phase::Retrying => 3,
            Phase::Starting => 2,
            Phase::Paused => 1,
            Phase::Stopped | Phase::Failed => 0,
        };
        phase = Some(phase.map_or(now, |before| if rank(now) > rank(before) { now } else { before }));
    }
    phase.unwrap_or(if halted { Phase::Failed } else { Phase::Stopped })
}

/// Shards that are halted, of so many.
pub(crate) fn halted(shards: &[(String, String)], of: usize) -> Error {
    let named = |shard: &str| if shard.is_empty() { "changes without one".to_owned() } else { shard.to_owned() };
    let each: Vec<String> = shards.iter().map(|(shard, reason)| format!("{}: {reason}", named(shard))).collect();
    let are = if shards.len() == 1 { "is" } else { "are" };
    let shards_of = if of == 1 { "shard" } else { "shards" };
    let told = format!("{} of {of} {shards_of} {are} halted: {}", shards.len(), each.join("; "));
    Error::fatal(told).hint("mend it, then run with the mode resume_failed: they go on where they are")
}
