//! A region: its database, and the pipeline that feeds it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anabranch::control::verify::{Verified, VerifyOptions};
use anabranch::pipeline::Status;
use anabranch::{ByTransaction, Pipeline, PipelineBuilder, Postgres, PostgresSink, RunningPipeline, Sqlite};
use anabranch_servers::{PgServer, PgVersion};

use super::story::{DB, Told};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Region {
    pub(crate) name: &'static str,
    pub(crate) database: PgServer,
    primary: String,
    publication: &'static str,
    slot: &'static str,
    /// Beside the process that runs the pipeline: how far it is can be asked also while its database is down.
    checkpoint: PathBuf,
}

impl Region {
    /// `None`: PostgreSQL is not installed.
    pub(crate) fn open(
        name: &'static str,
        primary: &PgServer,
        (publication, slot): (&'static str, &'static str),
        folder: &Path,
    ) -> Told<Option<Self>> {
        let Some(database) = anabranch_servers::postgres(PgVersion::Any) else { return Ok(None) };
        database.create_db(DB)?;
        let checkpoint = folder.join(format!("{name}.db"));
        Ok(Some(Self { name, database, primary: primary.url(DB), publication, slot, checkpoint }))
    }

    fn pipeline(&self) -> PipelineBuilder {
        Pipeline::builder(self.name)
            .source(Postgres::new(self.primary.as_str()).publication(self.publication).slot(self.slot))
            .sink(PostgresSink::new(self.database.url(DB)))
            .order(ByTransaction::new())
            .checkpointer(Sqlite::open(&self.checkpoint))
            .create_tables(true)
    }

    pub(crate) async fn start(&self) -> Told<RunningPipeline> {
        Ok(self.pipeline().build()?.start().await.map_err(|e| e.report())?)
    }

    /// As another process sees it.
    pub(crate) async fn status(&self) -> Told<Status> {
        let status = self.pipeline().build()?.stored_status().await.map_err(|e| e.report())?;
        Ok(status.ok_or("the pipeline never ran")?)
    }

    /// Compares every row with the primary, while the pipeline runs.
    pub(crate) async fn verified(&self) -> Told<Verified> {
        let options = VerifyOptions { wait: Some(PATIENCE), ..VerifyOptions::default() };
        Ok(self.pipeline().build()?.verify(&options, &mut |_| {}).await.map_err(|e| e.report())?)
    }
}

/// Everything that was committed on the primary before the call is in the region's database now.
pub(crate) async fn drained(running: &mut RunningPipeline) -> Told {
    let drained = running.drain(Some(PATIENCE)).await.map_err(|e| e.report())?;
    if drained.drained { Ok(()) } else { Err(format!("not drained: {drained:?}").into()) }
}
