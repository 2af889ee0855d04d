//! A sink whose password is fetched when it is first needed: building a pipeline connects to nothing.

use std::fmt;
use std::sync::Arc;

use anabranch_core::{
    Checkpointer, Claim, Column, Contract, DeadLetterStore, Lane, LaneProgress, ProgressStore, Result, Secret, Sharded,
    Sink, SinkInfo, SinkWriter, TableName, TableSchema, TargetSchema, TargetTable,
};
use async_trait::async_trait;
use tokio::sync::OnceCell;

use crate::secrets::SecretManager;

type Make = Box<dyn Fn(Secret) -> Result<Arc<dyn Sink>> + Send + Sync>;

/// A sink that is made once its password is known. Until then what needs no connection is asked of
/// one with an empty password. A password that cannot be fetched is asked for again at the next try.
pub struct LazySink {
    secrets: SecretManager,
    name: String,
    make: Make,
    blank: Arc<dyn Sink>,
    made: OnceCell<Arc<dyn Sink>>,
}

impl fmt::Debug for LazySink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazySink").field("secret", &self.name).field("sink", &self.blank).finish_non_exhaustive()
    }
}

impl LazySink {
    /// `make` with the password of this secret, `projects/P/secrets/S/versions/V`.
    ///
    /// # Errors
    /// Those of `make`: it is called once with an empty password.
    pub fn new(
        secrets: SecretManager,
        name: impl Into<String>,
        make: impl Fn(Secret) -> Result<Arc<dyn Sink>> + Send + Sync + 'static,
    ) -> Result<Self> {
        let blank = make(Secret::new(""))?;
        Ok(Self { secrets, name: name.into(), make: Box::new(make), blank, made: OnceCell::new() })
    }

    /// The sink as far as it is known: the one with the password, once it has that.
    fn known(&self) -> &Arc<dyn Sink> {
        self.made.get().unwrap_or(&self.blank)
    }

    async fn sink(&self) -> Result<&Arc<dyn Sink>> {
        self.made.get_or_try_init(async || (self.make)(self.secrets.access(&self.name).await?)).await
    }

    async fn tables(&self) -> Result<&dyn TargetSchema> {
        self.sink()
            .await?
            .target()
            .ok_or_else(|| anabranch_core::Error::fatal("the shard does not describe its tables"))
    }

    async fn store(&self) -> Result<&dyn ProgressStore> {
        self.sink().await?.progress().ok_or_else(|| anabranch_core::Error::fatal("the shard does not store progress"))
    }
}

#[async_trait]
impl Sink for LazySink {
    fn info(&self) -> SinkInfo {
        self.blank.info()
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        self.sink().await?.open(lane).await
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        self.blank.progress().is_some().then_some(self)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        None
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        None
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        self.blank.target().is_some().then_some(self)
    }

    fn sharded(&self) -> Option<&Sharded> {
        None
    }
}

#[async_trait]
impl ProgressStore for LazySink {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        self.store().await?.take_over(claim).await
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        self.store().await?.read(pipeline).await
    }
}

#[async_trait]
impl TargetSchema for LazySink {
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>> {
        self.tables().await?.describe(name).await
    }

    fn contract(&self, column: &Column, existing: Option<&Column>) -> Contract {
        match self.known().target() {
            Some(target) => target.contract(column, existing),
            None => Contract::new("", anabranch_core::Fidelity::Unsupported),
        }
    }

    fn planned(&self, table: &TableSchema, index: usize) -> Contract {
        match self.known().target() {
            Some(target) => target.planned(table, index),
            None => Contract::new("", anabranch_core::Fidelity::Unsupported),
        }
    }

    fn create_statement(&self, table: &TableSchema) -> Result<String> {
        let missing = || anabranch_core::Error::fatal("the shard does not describe its tables");
        self.known().target().ok_or_else(missing)?.create_statement(table)
    }

    async fn create(&self, table: &TableSchema) -> Result<()> {
        self.tables().await?.create(table).await
    }

    async fn clear(&self, name: &TableName) -> Result<()> {
        self.tables().await?.clear(name).await
    }

    async fn is_empty(&self, name: &TableName) -> Result<bool> {
        self.tables().await?.is_empty(name).await
    }
}
