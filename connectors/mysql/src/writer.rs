//! Writes the units of one lane, each in one target transaction.

use std::sync::Arc;

use anabranch_core::{Error, Lane, LanePurpose, Op, Part, Result, SinkWriter, Unit, UnitKind, Written};
use async_trait::async_trait;
use mysql_async::prelude::Queryable;

use crate::apply::{Mode, Plans, apply};
use crate::connection::{Connector, Link};
use crate::error::{Failure, Phase};
use crate::ledger::Ledgers;
use crate::load::{self, Loaded};
use crate::progress;
use crate::script::{Expect, Script};

/// The writer of a lane.
#[derive(Debug)]
pub(crate) struct MySqlWriter {
    connector: Arc<Connector>,
    lane: Lane,
    link: Option<Link>,
    plans: Plans,
    ledgers: Option<Ledgers>,
    /// Changes that were stale since the last unit that ended.
    stale: u64,
    /// A target transaction is open: a unit came in parts, and its last is still to come.
    open: bool,
}

impl MySqlWriter {
    pub(crate) fn new(connector: Arc<Connector>, lane: Lane, link: Link) -> Self {
        let config = connector.config();
        let ledgers = config.versions.then(|| Ledgers::new(config.versions_prefix.clone()));
        let plans = Plans::new(config.time_zone);
        Self { connector, lane, link: Some(link), plans, ledgers, stale: 0, open: false }
    }

    /// The connection to write this part with: an open transaction has only its own.
    async fn link(&mut self, part: Part) -> Result<Link> {
        let open = std::mem::take(&mut self.open);
        let link = self.link.take();
        if matches!(part, Part::Middle | Part::Last) {
            return link
                .filter(|_| open)
                .ok_or_else(|| Error::transient("the transaction that this unit is a part of is no longer open"));
        }
        if let Some(mut link) = link
            && (!open || link.conn.query_drop("ROLLBACK").await.is_ok())
            && link.is_alive().await
        {
            return Ok(link);
        }
        self.connector.connect().await
    }

    /// Applies the unit; commits if it ends its transaction.
    async fn apply(&mut self, link: &mut Link, unit: &Unit) -> Result<(), (Failure, Phase)> {
        self.changes(link, unit).await.map_err(|f| (f, Phase::Statement))?;
        if !unit.part.ends() {
            return Ok(());
        }
        let mut script = Script::new(link);
        progress::store(&mut script, &self.lane, unit).map_err(|e| (e.into(), Phase::Statement))?;
        script.add("COMMIT", Expect::Any);
        script.settle().await.map_err(|f| (f, Phase::Commit))
    }

    async fn changes(&mut self, link: &mut Link, unit: &Unit) -> Result<(), Failure> {
        if unit.changes().any(|c| c.op() == Op::Schema) {
            self.plans.clear();
        }
        self.plans.prepare(link, unit).await?;
        if let (Some(ledgers), UnitKind::Stream) = (&mut self.ledgers, unit.kind) {
            ledgers.prepare(&self.connector, unit).await?;
        }
        let may_load = link.server.local_infile;
        let mut script = Script::new(link);
        if matches!(unit.part, Part::Whole | Part::First) {
            script.add("START TRANSACTION", Expect::Any);
        }
        match self.lane.purpose {
            LanePurpose::Stream => progress::count(&mut script, &self.lane, unit),
            LanePurpose::Snapshot => progress::check_epoch(&mut script, &self.lane).await?,
        }
        let fresh;
        let unit = match (&self.ledgers, unit.kind) {
            (Some(ledgers), UnitKind::Stream) => {
                fresh = ledgers.fresh(&mut script, &self.plans, &self.lane, unit).await?;
                self.stale += fresh.stale;
                &fresh.unit
            }
            _ => unit,
        };
        script.add("SAVEPOINT anabranch_unit", Expect::Any);
        if may_load && self.load(&mut script, unit).await? {
            return Ok(());
        }
        // From the fastest way to the most careful one: the next is for a unit whose unique values
        // move between rows, the last for one whose end the target refuses, to name the row.
        for mode in [Mode::Net, Mode::Replace] {
            match apply(&mut script, &self.plans, unit, mode).await {
                Err(failure) if failure.is_conflict() => back_to_savepoint(&mut script).await?,
                done => return done,
            }
        }
        apply(&mut script, &self.plans, unit, Mode::InOrder).await
    }

    /// Whether the unit was loaded in bulk.
    async fn load(&mut self, script: &mut Script<'_>, unit: &Unit) -> Result<bool, Failure> {
        let Some(schema) = load::table_of(unit) else { return Ok(false) };
        script.settle().await?;
        let plan = self.plans.learn(script.link(), schema).await?;
        match load::load(script.link(), &plan, unit).await? {
            Loaded::All => self.plans.confirm(script).await.map(|()| true),
            Loaded::Forbidden => Ok(false),
            Loaded::Not => back_to_savepoint(script).await.map(|()| false),
        }
    }
}

async fn back_to_savepoint(script: &mut Script<'_>) -> Result<(), Failure> {
    script.discard();
    script.add("ROLLBACK TO SAVEPOINT anabranch_unit", Expect::Any);
    script.settle().await
}

#[async_trait]
impl SinkWriter for MySqlWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        let mut link = self.link(unit.part).await?;
        match self.apply(&mut link, unit).await {
            Ok(()) => {
                self.open = !unit.part.ends();
                self.link = Some(link);
                if self.open {
                    return Ok(Written::accepted());
                }
                Ok(Written { stale: std::mem::take(&mut self.stale), ..Written::durable() })
            }
            Err((failure, phase)) => {
                // The table may have been changed: describe it anew.
                self.plans.clear();
                self.stale = 0;
                if !link.conn.is_disconnected() && link.conn.query_drop("ROLLBACK").await.is_ok() {
                    self.link = Some(link);
                }
                Err(failure.into_error(phase))
            }
        }
    }

    async fn flush(&mut self) -> Result<()> {
        // Every unit that ends a transaction is durable when it is written.
        Ok(())
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        if let Some(link) = self.link.take() {
            // The server rolls an open transaction back; a connection that is lost is closed as well.
            let _ = link.conn.disconnect().await;
        }
        Ok(())
    }
}
