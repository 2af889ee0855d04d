//! The writer of one lane: target transactions, their fencing, and their progress.

use std::sync::Arc;

use anabranch_core::net_effect::{steps, steps_in_order};
use anabranch_core::{Error, ErrorKind, Lane, LanePurpose, Op, Part, Result, SinkWriter, Unit, UnitKind, Written};
use async_trait::async_trait;

use super::apply::{Applier, Tag};
use super::cache::{Operation, Plans, Statements};
use super::failure::{Failure, Next};
use super::ledger::Ledgers;
use super::params::Text;
use super::session::Session;
use super::{Privilege, Shared, origin};
use crate::error::classify;

/// The writer of one lane.
pub(crate) struct PostgresWriter {
    shared: Arc<Shared>,
    lane: Lane,
    session: Option<Session>,
    plans: Plans,
    statements: Statements,
    ledgers: Option<Ledgers>,
    /// Changes that were stale since the last unit that ended.
    stale: u64,
    /// A target transaction is open: between `First` and `Last`.
    open: bool,
    /// A commit's outcome is unknown: only a new writer may go on.
    lost: bool,
}

/// What a unit's statements are sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The net effect, new rows inserted as such.
    Trusting,
    Net,
    Replace,
    InOrder,
}

impl PostgresWriter {
    pub(crate) async fn open(shared: Arc<Shared>, lane: Lane) -> Result<Self> {
        let mut writer = Self {
            ledgers: shared.versions.clone().map(Ledgers::new),
            stale: 0,
            shared,
            lane,
            session: None,
            plans: Plans::default(),
            statements: Statements::default(),
            open: false,
            lost: false,
        };
        writer.connect().await?;
        Ok(writer)
    }

    /// Connects, unless there is a connection that works.
    async fn connect(&mut self) -> Result<()> {
        if self.session.as_ref().is_some_and(|s| !s.client.is_closed()) {
            return Ok(());
        }
        self.plans.forget();
        self.statements.forget();
        let (pipeline, lane) = (&self.lane.pipeline, self.lane.index);
        let kind = match self.lane.purpose {
            LanePurpose::Stream => "stream",
            LanePurpose::Snapshot => "snapshot",
        };
        let origin = self.origin();
        let name = format!("anabranch-sink/{kind}/{lane}/{pipeline}");
        let store = &self.shared.store;
        let session =
            Session::open(&store.endpoint()?, store.key(), &self.shared.options, &name, Some(&origin)).await?;
        // A unit is sent without a wait: were its BEGIN refused, or cancelled by someone at that moment,
        // what follows it would be committed statement by statement. Outside of BEGIN READ WRITE the
        // server refuses every write.
        let guard = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY";
        session.client.batch_execute(guard).await.map_err(|e| classify(e, "cannot set up the session"))?;
        self.session = Some(session);
        Ok(())
    }

    fn origin(&self) -> String {
        let lane = self.lane.index;
        let pipeline = match &self.shared.origin_of {
            Some(shard) => format!("{}_{shard}", self.lane.pipeline),
            None => self.lane.pipeline.to_string(),
        };
        match self.lane.purpose {
            LanePurpose::Stream => origin::name(&pipeline, lane),
            LanePurpose::Snapshot => origin::name(&format!("{pipeline}_snapshot"), lane),
        }
    }

    async fn apply(&mut self, unit: &Unit) -> Result<()> {
        let Some(session) = &self.session else { return Err(Error::transient("the connection is gone")) };
        let begins = matches!(unit.part, Part::Whole | Part::First);
        if begins == self.open {
            return Err(Error::fatal("the parts of a unit are out of order"));
        }
        self.plans.prepare(&session.client, unit).await?;
        let dialect = *self.shared.store.lacks();
        let mut applier =
            Applier::new(&session.client, &mut self.plans, &mut self.statements, session.replica, dialect);
        if begins {
            // Foreign keys that may wait do so: within a transaction rows come in any order.
            let deferred = if session.replica { "" } else { "; SET CONSTRAINTS ALL DEFERRED" };
            applier.flight.simple(Tag::Control, format!("BEGIN READ WRITE{deferred}")).await;
            self.open = true;
        }
        let result = match unit.kind {
            UnitKind::Stream => {
                let applied = stream(&mut applier, &self.shared, &self.lane, unit, self.ledgers.as_mut()).await;
                applied.map(|stale| self.stale += stale)
            }
            UnitKind::Snapshot => snapshot(&mut applier, &self.shared, &self.lane, unit).await,
        };
        if let Err(failure) = result {
            return Err(self.failed(failure));
        }
        if unit.part.ends() { self.commit().await } else { Ok(()) }
    }

    fn failed(&mut self, failure: Failure) -> Error {
        let stale = failure.is_stale();
        let remembered = self.plans.remembered;
        if stale {
            self.plans.forget();
            self.statements.forget();
        }
        let error = failure.into_error();
        if stale && remembered {
            return error.with_kind(ErrorKind::Transient).context("the target's tables are not as they were");
        }
        error
    }

    async fn commit(&mut self) -> Result<()> {
        let Some(session) = &self.session else { return Err(Error::transient("the connection is gone")) };
        let Err(error) = session.client.batch_execute("COMMIT").await else {
            self.open = false;
            return Ok(());
        };
        // An ordinary error at commit is a rollback. A server that goes away, or ends this session,
        // may have committed before it did so (a wait for a standby comes after the commit).
        let code = error.code().map(|c| c.code().to_owned());
        match code.as_deref().map(|c| &c[..2]) {
            None | Some("08" | "57" | "58" | "XX") => {
                self.lost = true;
                Err(Error::indeterminate("the connection was lost while committing").because(error))
            }
            Some("23") => {
                self.open = false;
                Err(classify(error, "the target refused the transaction at its end").with_kind(ErrorKind::Rejected))
            }
            Some(_) => {
                self.open = false;
                Err(classify(error, "cannot commit"))
            }
        }
    }

    /// Makes sure that nothing of a failed transaction is left.
    async fn roll_back(&mut self) {
        if std::mem::take(&mut self.open) && !self.lost {
            let done = match &self.session {
                Some(session) => session.client.batch_execute("ROLLBACK").await.is_ok(),
                None => false,
            };
            if !done {
                self.session = None;
            }
        }
    }
}

/// Applies a unit of the stream: fence, steps, progress. Everything is sent before anything is awaited.
/// Gives how many changes were stale.
async fn stream(
    applier: &mut Applier<'_>,
    shared: &Shared,
    lane: &Lane,
    unit: &Unit,
    ledgers: Option<&mut Ledgers>,
) -> Result<u64, Failure> {
    fence_stream(applier, shared, lane, unit).await;
    let (fresh, stale);
    let unit = match ledgers {
        Some(ledgers) => {
            let found = ledgers.fresh(applier, shared, lane, unit).await?;
            (fresh, stale) = (found.unit, found.stale);
            &fresh
        }
        None => {
            stale = 0;
            unit
        }
    };
    let net = steps(unit);
    let mut mode = Mode::Trusting;
    savepoint(applier, unit).await;
    loop {
        let failure = match attempt(applier, shared, lane, unit, &net, mode).await {
            Ok(()) => return Ok(stale),
            Err(failure) => failure,
        };
        let trusted = mode == Mode::Trusting && applier.trusted;
        mode = match (mode, failure.next()) {
            (_, Next::GiveUp) | (Mode::InOrder, _) => return Err(failure),
            _ if trusted => {
                failure.distrust();
                Mode::Net
            }
            (Mode::Trusting | Mode::Net, Next::Replace) if applier.may_replace(&net) => Mode::Replace,
            _ => Mode::InOrder,
        };
        back_to_savepoint(applier).await?;
    }
}

/// The place to go back to when another mode has to be tried. It is kept until the unit's answers are
/// all judged, which is when the next part comes, or at the commit.
async fn savepoint(applier: &mut Applier<'_>, unit: &Unit) {
    let release = if matches!(unit.part, Part::Whole | Part::First) { "" } else { "RELEASE SAVEPOINT unit; " };
    applier.flight.simple(Tag::Control, format!("{release}SAVEPOINT unit")).await;
}

/// If this fails the connection is lost, and that is the error: the refusal before it was not the last word.
async fn back_to_savepoint(applier: &mut Applier<'_>) -> Result<(), Failure> {
    let back = applier.client.batch_execute("ROLLBACK TO SAVEPOINT unit").await;
    back.map_err(|error| Failure::Refused { error, plan: None })
}

async fn attempt(
    applier: &mut Applier<'_>,
    shared: &Shared,
    lane: &Lane,
    unit: &Unit,
    net: &[anabranch_core::net_effect::Step<'_>],
    mode: Mode,
) -> Result<(), Failure> {
    applier.trusting = mode == Mode::Trusting;
    applier.one_by_one = mode == Mode::InOrder;
    let sent = match mode {
        Mode::Trusting | Mode::Net => applier.steps(net).await,
        Mode::Replace => applier.replace_steps(net).await,
        Mode::InOrder => applier.steps(&steps_in_order(unit)).await,
    };
    if let Err(failure) = sent {
        // Answers still on their way belong to this attempt; an earlier refusal is the cause.
        return Err(applier.settle().await.err().unwrap_or(failure));
    }
    applier.confirm().await;
    progress(applier, shared, lane, unit).await?;
    applier.settle().await
}

async fn fence_stream(applier: &mut Applier<'_>, shared: &Shared, lane: &Lane, unit: &Unit) {
    let table = shared.store.table("lane");
    let sql = || {
        format!(
            "UPDATE {table} SET changes = changes + $4::bigint, transactions = transactions + $5::bigint, \
             lanes = $6::int4, identity = coalesce($7::text, identity), updated_at = now() \
             WHERE pipeline = $1::text AND lane = $2::int4 AND epoch = $3::bigint"
        )
    };
    let parameters = vec![
        Text::of(&lane.pipeline),
        Text::of(lane.index),
        Text::of(lane.epoch),
        Text::of(unit.row_changes()),
        Text::of(unit.transactions),
        Text::of(lane.count),
        Text(shared.identity(&lane.pipeline)),
    ];
    match applier.statement((0, Operation::Fence, Box::default(), 0), sql).await {
        Ok(statement) => applier.flight.execute(Tag::Fence, &statement, parameters).await,
        Err(error) => applier.flight.fail(Tag::Fence, error),
    }
}

async fn progress(applier: &mut Applier<'_>, shared: &Shared, lane: &Lane, unit: &Unit) -> Result<(), Failure> {
    let table = shared.store.table("position");
    for progress in &unit.progress {
        let position = serde_json::to_string(&progress.position)
            .map_err(|e| Failure::Broken(Error::fatal("cannot write a position as JSON").because(e)))?;
        let sql = || {
            format!(
                "INSERT INTO {table} (pipeline, lane, partition_id, position, safe_time) \
                 VALUES ($1::text, $2::int4, $3::text, $4::text, $5::bigint) \
                 ON CONFLICT (pipeline, lane, partition_id) \
                 DO UPDATE SET position = EXCLUDED.position, safe_time = EXCLUDED.safe_time"
            )
        };
        let parameters = vec![
            Text::of(&lane.pipeline),
            Text::of(lane.index),
            Text::of(&progress.partition),
            Text(Some(position)),
            Text(progress.safe_time.map(|t| t.as_micros().to_string())),
        ];
        match applier.statement((0, Operation::Progress, Box::default(), 0), sql).await {
            Ok(statement) => applier.flight.execute(Tag::Control, &statement, parameters).await,
            Err(error) => applier.flight.fail(Tag::Control, error),
        }
    }
    Ok(())
}

/// Copies a unit of a snapshot. A row that is there already (the last try did commit, though its
/// answer was lost, or a row that changed is in two chunks of a copy that goes on) makes `COPY` fail:
/// then the rows are upserted.
async fn snapshot(applier: &mut Applier<'_>, shared: &Shared, lane: &Lane, unit: &Unit) -> Result<(), Failure> {
    fence_snapshot(applier, shared, lane).await;
    savepoint(applier, unit).await;
    applier.settle().await?;
    if unit.changes().any(|change| change.op() != Op::Insert) {
        // A copy goes on, and rows that changed are taken out of what was copied.
        applier.steps(&steps(unit)).await?;
        return applier.finish().await;
    }
    match applier.copy(unit).await {
        Ok(()) => {}
        Err(failure) if failure.next() == Next::GiveUp && !failure.is_copy_unsupported() => return Err(failure),
        Err(_) => {
            back_to_savepoint(applier).await?;
            applier.steps(&steps(unit)).await?;
        }
    }
    match applier.finish().await {
        Err(Failure::LeftOut { .. }) => {
            back_to_savepoint(applier).await?;
            applier.one_by_one = true;
            applier.steps(&steps_in_order(unit)).await?;
            applier.finish().await
        }
        settled => settled,
    }
}

async fn fence_snapshot(applier: &mut Applier<'_>, shared: &Shared, lane: &Lane) {
    let table = shared.store.table("lane");
    // KEY SHARE lets the stream of lane 0 count on, and holds off a take-over, which locks FOR UPDATE.
    let sql =
        || format!("SELECT 1 FROM {table} WHERE pipeline = $1::text AND lane = 0 AND epoch = $2::bigint FOR KEY SHARE");
    let parameters = vec![Text::of(&lane.pipeline), Text::of(lane.epoch)];
    match applier.statement((0, Operation::Fence, Box::default(), 1), sql).await {
        Ok(statement) => applier.flight.execute(Tag::Fence, &statement, parameters).await,
        Err(error) => applier.flight.fail(Tag::Fence, error),
    }
}

#[async_trait]
impl SinkWriter for PostgresWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        if self.lost {
            return Err(Error::indeterminate("the outcome of an earlier commit is unknown"));
        }
        if !self.open {
            self.connect().await?;
        }
        match self.apply(unit).await {
            Ok(()) if unit.part.ends() => Ok(Written { stale: std::mem::take(&mut self.stale), ..Written::durable() }),
            Ok(()) => Ok(Written::accepted()),
            Err(error) => {
                self.stale = 0;
                if let Some(ledgers) = &mut self.ledgers {
                    ledgers.forget();
                }
                self.roll_back().await;
                Err(error)
            }
        }
    }

    async fn flush(&mut self) -> Result<()> {
        // Every unit is durable when its commit returns.
        Ok(())
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.roll_back().await;
        if let Some(session) = self.session.as_ref().filter(|_| self.shared.options.origin != Privilege::Off) {
            origin::release(&session.client).await;
            if self.lane.purpose == LanePurpose::Snapshot {
                // Needed no more, and a server has few places for origins.
                origin::drop(&session.client, &self.origin()).await;
            }
        }
        Ok(())
    }
}
