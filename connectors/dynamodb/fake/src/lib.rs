//! A DynamoDB, with its streams, that does on demand what no local server does: shards split and
//! roll, pages of their listing race with splits, records are trimmed, iterators expire, shards and
//! streams vanish, calls are throttled, batches are taken in part, and the clock is moved by hand.
//!
//! It speaks the real protocol (JSON 1.0 over HTTP), so that the official client is tested with it.
//!
//! ```no_run
//! # async fn f() {
//! use anabranch_dynamodb_fake::{Fake, n, s};
//! let fake = Fake::start().await;
//! fake.create_table("orders", &[("id", "N")]);
//! fake.put("orders", &[("id", n("1")), ("note", s("hello"))]);
//! let shard = fake.open_shards("orders").remove(0);
//! let children = fake.split("orders", &shard);
//! # }
//! ```

mod expression;
mod failure;
mod items;
mod server;
mod spoiled;
mod state;
mod streams;
mod tables;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

pub use spoiled::Spoiled;
pub use state::{Item, State};

/// An attribute `S`.
pub fn s(text: &str) -> Value {
    json!({ "S": text })
}

/// An attribute `N`.
pub fn n(number: impl std::fmt::Display) -> Value {
    json!({ "N": number.to_string() })
}

/// The server. It ends when it is dropped.
#[derive(Debug)]
pub struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Fake {
    /// Starts it on a free port.
    ///
    /// # Panics
    /// If there is no port.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let task = tokio::spawn(server::serve(listener, Arc::clone(&state)));
        Self { address, state, task }
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that it knows, to look at and to change.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A table with this key (name and type; first the partition key) and a stream of
    /// `NEW_AND_OLD_IMAGES` with one shard.
    pub fn create_table(&self, name: &str, key: &[(&str, &str)]) {
        let mut state = self.state();
        state.create_table(name, key.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect());
        state.enable_stream(name, "NEW_AND_OLD_IMAGES");
    }

    /// Writes an item, as `PutItem` does.
    pub fn put(&self, table: &str, item: &[(&str, Value)]) {
        let item = item.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.state().write(table, Err(item), None);
    }

    /// Deletes an item by its key, as `DeleteItem` does.
    pub fn delete(&self, table: &str, key: &[(&str, Value)]) {
        let key = key.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.state().write(table, Ok(key), None);
    }

    /// Deletes an item as time to live does.
    pub fn expire(&self, table: &str, key: &[(&str, Value)]) {
        let key = key.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let by = json!({ "Type": "Service", "PrincipalId": "dynamodb.amazonaws.com" });
        self.state().write(table, Ok(key), Some(by));
    }

    /// All items of a table, in the order of their keys.
    pub fn items(&self, table: &str) -> Vec<Item> {
        self.state().tables[table].items.values().cloned().collect()
    }

    /// The open shards of a table, in the order of their names.
    pub fn open_shards(&self, table: &str) -> Vec<String> {
        self.state().stream(table).open_shards()
    }

    /// Closes a shard and opens two children. Gives their names.
    pub fn split(&self, table: &str, shard: &str) -> [String; 2] {
        self.state().split(table, shard)
    }

    /// Closes a shard and opens one child. Gives its name.
    pub fn roll(&self, table: &str, shard: &str) -> String {
        self.state().roll(table, shard)
    }

    /// Moves the clock: what is older than a day is trimmed, iterators older than 15 minutes expire.
    pub fn advance(&self, by: Duration) {
        self.state().advance(by);
    }

    /// Expires every iterator that was given so far.
    pub fn expire_iterators(&self) {
        let mut state = self.state();
        state.iterators_from = state.iterators;
    }

    /// Removes a shard from the stream, read or not.
    pub fn delete_shard(&self, table: &str, shard: &str) {
        self.state().stream_mut(table).shards.remove(shard);
    }

    /// Makes the next `times` calls of an operation fail with this code, such as `ThrottlingException`.
    pub fn fail(&self, operation: &str, code: &str, times: usize) {
        self.state().fail(operation, code, times);
    }

    /// Spoils the next good answers of an operation.
    pub fn spoil(&self, operation: &str, how: impl IntoIterator<Item = Spoiled>) {
        self.state().spoiled.entry(operation.to_owned()).or_default().extend(how);
    }

    /// How many answers are still to be spoiled.
    pub fn to_spoil(&self) -> usize {
        self.state().spoiled.values().map(|all| all.len()).sum()
    }

    /// No call fails any more.
    pub fn heal(&self) {
        self.state().failures.clear();
    }

    /// How often an operation was called.
    pub fn calls(&self, operation: &str) -> usize {
        self.state().calls.get(operation).copied().unwrap_or_default()
    }

    /// Runs `then` once, after the call number `call` (from 1, counted from now) of an operation was
    /// answered: for what happens between two pages.
    pub fn after_call(&self, operation: &str, call: usize, then: impl FnOnce(&mut State) + Send + 'static) {
        let mut state = self.state();
        let at = state.calls.get(operation).copied().unwrap_or_default() + call;
        state.hooks.push((operation.to_owned(), at, Box::new(then)));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}
