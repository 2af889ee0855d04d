//! A sink of ours that is broken on purpose: it says "durable" before its transaction is committed.
//! The same checker as in the crash runs has to find the loss, or it would prove nothing there.
//!
//! The pipeline with that sink runs in a child process of this very test program ([`the_child`]), so
//! that it can be killed like the command.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::checkpointer::FileCheckpointer;
use anabranch::pipeline::RetryLimits;
use anabranch::{
    ByTransaction, Claim, DeadLetterStore, Lane, Part, Pipeline, Postgres, PostgresSink, ProgressStore, Result, Sink,
    SinkInfo, SinkWriter, SourceIdentity, TargetSchema, Unit, UnitKind, Written,
};
use anabranch_servers::{PgServer, PgVersion};
use anabranch_testkit::history::{Consistency, Options, Report};
use async_trait::async_trait;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::source::{self, DB, History};
use super::targets::{PgTarget, Target};
use super::watcher::Watcher;
use super::writers::Writers;
use super::{Tested, config};

/// What the child is told, in its environment: the folder of its checkpoint, with `how` and two URLs.
const FOLDER: &str = "ANABRANCH_BROKEN_SINK";
const SLOT: &str = "workload";
/// For everything that is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

/// How the child's sink behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// As it should, through the same wrapper: what is found otherwise is the sink's fault.
    Honest,
    /// Says "durable" one unit too early, with the checkpoint outside of the target.
    Early,
    /// The same, with the progress in the target, which therefore tells the truth.
    EarlyWithProgress,
}

/// A sink whose writers say "durable" when they have a unit, and commit it when the next one comes.
#[derive(Debug)]
struct EarlySink {
    inner: PostgresSink,
    how: How,
}

struct EarlyWriter {
    inner: Box<dyn SinkWriter>,
    how: How,
    held: Option<Unit>,
}

#[async_trait]
impl Sink for EarlySink {
    fn info(&self) -> SinkInfo {
        self.inner.info()
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        if let (true, Some(store)) = (self.progress().is_none(), self.inner.progress()) {
            // The inner writer checks an epoch that nobody else claims for it.
            let (pipeline, epoch, lanes) = (lane.pipeline.clone(), lane.epoch, lane.count);
            store.take_over(&Claim { pipeline, epoch, lanes, identity: SourceIdentity::default() }).await?;
        }
        Ok(Box::new(EarlyWriter { inner: self.inner.open(lane).await?, how: self.how, held: None }))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        if self.how == How::EarlyWithProgress { self.inner.progress() } else { None }
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        self.inner.dead_letters()
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        self.inner.target()
    }
}

impl EarlyWriter {
    async fn let_go(&mut self) -> Result<()> {
        match self.held.take() {
            Some(unit) => self.inner.write(&unit).await.map(drop),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl SinkWriter for EarlyWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        if self.how == How::Honest || unit.kind == UnitKind::Snapshot || unit.part != Part::Whole {
            self.let_go().await?;
            return self.inner.write(unit).await;
        }
        if unit.row_changes() > 0 {
            // One unit behind, for as long as the source is quiet.
            self.let_go().await?;
            self.held = Some(unit.clone());
        }
        Ok(Written::durable())
    }

    async fn flush(&mut self) -> Result<()> {
        self.let_go().await?;
        self.inner.flush().await
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.let_go().await?;
        self.inner.close().await
    }
}

/// Not a test: what [`Broken::start`] runs, in a process of its own.
#[tokio::test]
#[ignore = "the child of the other tests of this file"]
async fn the_child() -> Tested {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else { return Ok(()) };
    tracing_subscriber::fmt().with_env_filter("info").with_ansi(false).init();
    let told = fs::read_to_string(folder.join("told"))?;
    let [how, source, target, drain] = told.lines().collect::<Vec<_>>()[..] else { return Err("told nothing".into()) };
    let how = match how {
        "Honest" => How::Honest,
        "Early" => How::Early,
        _ => How::EarlyWithProgress,
    };
    let sink = EarlySink { inner: PostgresSink::new(target), how };
    let mut running = Pipeline::builder("broken")
        .source(Postgres::new(source).publication("workload").slot(SLOT))
        .sink(sink)
        .order(ByTransaction::new())
        .checkpointer(FileCheckpointer::new(folder.join("checkpoint")))
        .retry(RetryLimits { attempts: Some(3), ..RetryLimits::default() })
        .build()?
        .start()
        .await?;
    if drain == "drain" {
        running.drain(Some(DEADLINE)).await?;
        running.stop().await?;
    } else {
        running.wait().await?;
    }
    Ok(())
}

/// A source, a target, and the pipeline with the broken sink between them.
struct Broken {
    how: How,
    seed: u64,
    source: Arc<PgServer>,
    target: Arc<PgTarget>,
    folder: TempDir,
}

impl Broken {
    /// `None`: skipped.
    async fn new(how: How) -> Tested<Option<Self>> {
        let seed = config::seed(&format!("a sink that is {how:?}"));
        let Some(source) = source::start(PgVersion::Any, seed, Options::default()).await? else { return Ok(None) };
        let Some(target) = PgTarget::start(PgVersion::Any)? else { return Ok(None) };
        Ok(Some(Self { how, seed, source, target: Arc::new(target), folder: tempfile::tempdir()? }))
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn start(&self, drain: &str) -> Tested<Child> {
        let (how, source, target) = (self.how, self.source.url(DB), self.target.server.url(DB));
        fs::write(self.path().join("told"), format!("{how:?}\n{source}\n{target}\n{drain}\n"))?;
        let log = File::options().create(true).append(true).open(self.path().join("log"))?;
        let mut command = Command::new(env::current_exe()?);
        command.args(["--exact", "pipelines::broken::the_child", "--ignored", "--nocapture"]).env(FOLDER, self.path());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        Ok(command.spawn()?)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// Where both sides stand, for the message of a failed run.
    fn standing(&self) -> String {
        let slots = "SELECT row_to_json(s)::text FROM pg_replication_slots s";
        let sessions = "SELECT row_to_json(a)::text FROM pg_stat_activity a WHERE backend_type <> 'client backend' \
                        OR state <> 'idle'";
        let source = [slots, sessions, "SELECT pg_current_wal_flush_lsn()"].map(|sql| self.source.exec(DB, sql));
        let target = self.target.server.exec(DB, sessions);
        format!("source: {source:#?}\ntarget: {target:#?}\nstored: {}", self.target.stored())
    }

    fn watch(&self) -> Watcher {
        Watcher::start(History::new(&self.source), self.target.clone(), self.seed, Consistency::Prefix)
    }

    /// One transaction that changes rows, and then a wait until the pipeline has acknowledged it.
    async fn acknowledged(&self) -> Tested {
        let sql = "BEGIN; INSERT INTO journal VALUES (9, 1);
                   UPDATE accounts SET balance = balance - 1000000 WHERE id = 1;
                   UPDATE accounts SET balance = balance + 1000000 WHERE id = 2; COMMIT";
        self.source.exec(DB, sql)?;
        let end = self.source.value(DB, "SELECT pg_current_wal_flush_lsn()")?.unwrap_or_default();
        let sql = format!(
            "SELECT coalesce(confirmed_flush_lsn >= '{end}', false) FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
        );
        self.until("the acknowledgement", || Ok(self.source.value(DB, &sql)?.as_deref() == Some("t"))).await
    }

    async fn until(&self, what: &str, mut met: impl FnMut() -> Tested<bool>) -> Tested {
        let deadline = Instant::now() + DEADLINE;
        while !met()? {
            if Instant::now() > deadline {
                return Err(format!("{what}: not within a minute\n{}\n{}", self.standing(), self.log()).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Runs, is killed right after an acknowledgement, and runs again until it is drained. What the
    /// checker says, and whether the second run ended well.
    async fn killed_and_resumed(&self) -> Tested<(Report, bool)> {
        let options = Options::default();
        let writers = Writers::start(&self.source, self.seed, options, 3, Duration::from_millis(10));
        let watcher = self.watch();
        let mut child = self.start("run")?;
        self.until("the stream", || Ok(watcher.states() >= 3 || watcher.found_something())).await?;
        writers.stop().await?;
        self.acknowledged().await?;
        assert!(!watcher.found_something(), "nothing is lost before the kill\n{}", self.log());
        child.kill().await?;
        let again = self.start("drain")?.wait().await?;
        Ok((watcher.finish().await?, again.success()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sink_that_acknowledges_early_is_caught() -> Tested {
    let Some(broken) = Broken::new(How::Early).await? else { return Ok(()) };
    let (report, ended_well) = broken.killed_and_resumed().await?;
    assert!(ended_well, "nobody but the checker notices\n{}", broken.log());
    assert!(report.lost > 0, "the checker finds no loss: {report}\n{}", broken.log());
    println!("as it should be, {report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_sink_is_right_when_it_is_honest() -> Tested {
    let Some(honest) = Broken::new(How::Honest).await? else { return Ok(()) };
    let (report, ended_well) = honest.killed_and_resumed().await?;
    assert!(ended_well && report.is_clean(), "{report}\n{}", honest.log());
    Ok(())
}

/// Progress in the target cannot run ahead of the rows: the source notices that it was acknowledged too far.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn progress_in_the_target_gives_an_early_acknowledgement_away() -> Tested {
    let Some(broken) = Broken::new(How::EarlyWithProgress).await? else { return Ok(()) };
    let (report, ended_well) = broken.killed_and_resumed().await?;
    let log = broken.log();
    assert!(
        !ended_well && log.contains("cannot be read any more"),
        "the second run refuses to go on over a gap\n{log}"
    );
    assert!(report.lost > 0, "{report}\n{log}");
    Ok(())
}
