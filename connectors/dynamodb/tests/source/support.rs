//! A pipeline from the fake into rows in memory.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::pipeline::{ByKey, RetryLimits, SnapshotMode};
use anabranch_core::{
    Error, Lane, Op, Pipeline, Result, RunningPipeline, Secret, Sink, SinkInfo, SinkWriter, Unit, UnitKind, ValueRef,
    Written,
};
use anabranch_dynamodb::{Access, DynamoDb};
use anabranch_dynamodb_fake::{Fake, n};
use async_trait::async_trait;
use tokio::sync::watch;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn access(endpoint: &str) -> Access {
    Access::new().region("local").endpoint(endpoint).credentials(Secret::new("local"), Secret::new("local"), None)
}

/// The table `orders` of the fake.
pub(crate) fn orders(fake: &Fake) -> DynamoDb {
    source(&fake.endpoint()).table("orders")
}

pub(crate) fn source(endpoint: &str) -> DynamoDb {
    DynamoDb::new().access(access(endpoint)).poll(Duration::from_millis(5), Duration::from_millis(50))
}

/// A fake with the table `orders`, whose key is the number `id`.
pub(crate) async fn shop() -> Fake {
    let fake = Fake::start().await;
    fake.create_table("orders", &[("id", "N")]);
    fake
}

pub(crate) fn put(fake: &Fake, id: u32, v: u32) {
    fake.put("orders", &[("id", n(id)), ("v", n(v))]);
}

/// What a sink was given: the operation, the key, the document.
pub(crate) type Given = (Op, String, Option<String>);

/// Rows in memory. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    state: Arc<Mutex<State>>,
    /// Whether the stream's units may be written.
    open: watch::Sender<bool>,
    moved: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    rows: BTreeMap<(String, String), String>,
    log: Vec<Given>,
    /// Units with this key are refused, so many times, as if the connection had been lost.
    failing: Option<(String, usize)>,
}

impl Rows {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), open: watch::Sender::new(true), moved: watch::Sender::new(0) }
    }

    /// Holds the stream's units back, or lets them go.
    pub(crate) fn open(&self, open: bool) {
        self.open.send_replace(open);
    }

    pub(crate) fn fail(&self, key: &str, times: usize) {
        self.state.lock().unwrap().failing = Some((key.to_owned(), times));
    }

    pub(crate) fn log(&self) -> Vec<Given> {
        self.state.lock().unwrap().log.clone()
    }

    /// The rows of a table.
    pub(crate) fn of(&self, table: &str) -> BTreeMap<String, String> {
        let state = self.state.lock().unwrap();
        let mine = state.rows.iter().filter(|((t, _), _)| t == table);
        mine.map(|((_, key), row)| (key.clone(), row.clone())).collect()
    }

    /// Waits until these rows are those of the fake.
    pub(crate) async fn equal(&self, fake: &Fake, table: &str) {
        self.until(
            || self.of(table) == items(fake, table),
            || {
                let (rows, items) = (self.of(table), items(fake, table));
                let wrong = items.iter().filter(|(key, item)| rows.get(*key) != Some(*item)).take(5);
                format!("{} rows, {} items, wrong {:?}", rows.len(), items.len(), wrong.collect::<Vec<_>>())
            },
        )
        .await;
    }

    /// Waits until a condition holds, looking whenever a unit was written.
    pub(crate) async fn until<T: Debug>(&self, holds: impl Fn() -> bool, told: impl Fn() -> T) {
        self.within(PATIENCE, holds, told).await;
    }

    pub(crate) async fn within<T: Debug>(&self, patience: Duration, holds: impl Fn() -> bool, told: impl Fn() -> T) {
        let mut moved = self.moved.subscribe();
        let waiting = async {
            while !holds() {
                // Also looked at without a unit: the condition may be about the server.
                let _ = tokio::time::timeout(Duration::from_millis(20), moved.changed()).await;
            }
        };
        if tokio::time::timeout(patience, waiting).await.is_err() {
            panic!("it does not come to pass: {:?}", told());
        }
    }
}

/// The items of a table, by key.
pub(crate) fn items(fake: &Fake, table: &str) -> BTreeMap<String, String> {
    let key = fake.state().tables[table].key[0].clone();
    let all = fake.items(table).into_iter();
    all.map(|item| (item[&key.0][&key.1].as_str().unwrap().to_owned(), serde_json::to_string(&item).unwrap())).collect()
}

#[async_trait]
impl Sink for Rows {
    fn info(&self) -> SinkInfo {
        SinkInfo { name: "rows", transactional: false, max_lanes: 8, schemas: false }
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        let _ = lane;
        Ok(Box::new(self.clone()))
    }
}

fn text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Text(v) => v.to_owned(),
        ValueRef::Int(v) => v.to_string(),
        other => format!("{other:?}"),
    }
}

#[async_trait]
impl SinkWriter for Rows {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        if unit.kind == UnitKind::Stream {
            let mut open = self.open.subscribe();
            open.wait_for(|open| *open).await.map_err(|_| Error::transient("the test is over"))?;
        }
        let mut state = self.state.lock().unwrap();
        for change in unit.changes() {
            let Some(row) = change.identity_row() else { continue };
            let key = text(row.get(0));
            if let Some((failing, times)) = &mut state.failing
                && *failing == key
                && *times > 0
            {
                *times -= 1;
                return Err(Error::transient("the connection was lost"));
            }
            let place = (change.schema().name.name.clone(), key.clone());
            let document = change.new_row().map(|row| text(row.get(row.len() - 1)));
            match &document {
                Some(document) => state.rows.insert(place, document.clone()),
                None => state.rows.remove(&place),
            };
            if unit.kind == UnitKind::Stream {
                state.log.push((change.op(), key, document));
            }
        }
        let count = state.log.len();
        drop(state);
        self.moved.send_replace(count);
        Ok(Written::durable())
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Everything that outlives a run of a pipeline.
pub(crate) struct Bench {
    pub(crate) fake: Fake,
    pub(crate) rows: Rows,
    pub(crate) checkpoints: MemoryCheckpointer,
    pub(crate) snapshot: SnapshotMode,
}

impl Bench {
    /// The shop, streamed from its beginning.
    pub(crate) async fn new() -> Self {
        Self::of(shop().await)
    }

    pub(crate) fn of(fake: Fake) -> Self {
        Self { fake, rows: Rows::new(), checkpoints: MemoryCheckpointer::new(), snapshot: SnapshotMode::Never }
    }

    pub(crate) fn pipeline(&self, name: &str, source: DynamoDb) -> Pipeline {
        Pipeline::builder(name)
            .source(source)
            .sink(self.rows.clone())
            .order(ByKey::new(2))
            .checkpointer(self.checkpoints.clone())
            .snapshot(self.snapshot)
            .retry(RetryLimits {
                first: Duration::from_millis(10),
                longest: Duration::from_millis(20),
                attempts: Some(20),
            })
            .build()
            .expect("a pipeline")
    }

    pub(crate) async fn start(&self) -> RunningPipeline {
        self.pipeline("test", orders(&self.fake)).start().await.expect("start")
    }

    /// Runs until it fails.
    pub(crate) async fn failure(&self) -> Error {
        let ended = async {
            match self.pipeline("test", orders(&self.fake)).start().await {
                Ok(mut running) => running.wait().await,
                Err(e) => Err(e),
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("an end").expect_err("an error")
    }
}
