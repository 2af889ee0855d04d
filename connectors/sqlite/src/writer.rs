//! A lane's writer: one transaction per unit, fenced, with its progress.

use std::sync::Arc;

use anabranch_core::{Error, Lane, LanePurpose, Result, SinkWriter, Unit, Written};
use async_trait::async_trait;

use crate::apply::{Applying, Stop};
use crate::connection::Database;
use crate::plan::Plans;
use crate::progress;
use crate::shadow::Shadows;
use crate::sink::Shared;
use crate::staged::Staged;
use crate::worker::Worker;

/// Writes the units of one lane.
pub(crate) struct SqliteWriter {
    shared: Arc<Shared>,
    worker: Worker<Session>,
}

/// What lives on the writer's thread.
struct Session {
    db: Database,
    lane: Lane,
    plans: Plans,
    staged: Staged,
}

impl SqliteWriter {
    pub(crate) async fn open(shared: Arc<Shared>, lane: Lane) -> Result<Self> {
        let settings = shared.settings.clone();
        let worker = {
            // Two connections must not switch a new file to WAL at the same time.
            let _turn = shared.turn().await;
            Worker::start(move || {
                Ok(Session { db: settings.connect()?, lane, plans: Plans::default(), staged: Staged::default() })
            })
            .await?
        };
        Ok(Self { shared, worker })
    }
}

#[async_trait]
impl SinkWriter for SqliteWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        // Units share their batches, so this copies no rows.
        let unit = unit.clone();
        if !unit.part.ends() {
            self.worker.call(move |session| session.staged.add(&session.db, &unit)).await?;
            return Ok(Written::accepted());
        }
        let _turn = self.shared.turn().await;
        self.worker.call(move |session| session.apply(&unit)).await?;
        Ok(Written::durable())
    }

    async fn flush(&mut self) -> Result<()> {
        // Every unit is durable when its write returns; parts take effect with the last.
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        // Closing the last connection writes the log back into the file, which blocks.
        let ended = tokio::task::spawn_blocking(move || drop(self)).await;
        ended.map_err(|e| Error::transient("closing the SQLite connection was interrupted").because(e))
    }
}

impl Session {
    /// Applies a unit, with the parts before it, in one transaction.
    fn apply(&mut self, unit: &Unit) -> Result<()> {
        if unit.part == anabranch_core::Part::Last && self.staged.is_empty() {
            return Err(Error::fatal("a unit ends a transaction that was not begun"));
        }
        let applied = match self.attempt(unit, None) {
            Err(Stop::Conflict(error)) => {
                tracing::debug!(reason = %error, "applying the unit by way of shadow tables");
                self.attempt(unit, Some(Shadows::default()))
            }
            other => other,
        };
        self.staged.clear(&self.db);
        applied.map_err(|stop| {
            // What went wrong may be that someone changed a table: describe them anew.
            self.plans.clear();
            match stop {
                Stop::Conflict(error) | Stop::Failed(error) => error,
            }
        })
    }

    fn attempt(&mut self, unit: &Unit, mut shadows: Option<Shadows>) -> Result<(), Stop> {
        let Self { db, lane, plans, staged } = self;
        let transaction = db.begin()?;
        plans.confirm(db)?;
        let changes = staged.row_changes + unit.row_changes();
        let transactions = staged.transactions + unit.transactions;
        progress::fence(db, lane, changes, transactions)?;
        if let Some(shadows) = &mut shadows {
            staged.each(db, |part| shadows.move_out(db, plans, part))?;
            shadows.move_out(db, plans, unit)?;
        }
        let mut applying = Applying { db, plans, shadows };
        staged.each(db, |part| applying.unit(part))?;
        applying.unit(unit)?;
        if let Some(shadows) = applying.shadows {
            shadows.move_back(db)?;
        }
        if lane.purpose == LanePurpose::Stream {
            progress::store(db, lane, &unit.progress)?;
        }
        Ok(db.commit(transaction)?)
    }
}
