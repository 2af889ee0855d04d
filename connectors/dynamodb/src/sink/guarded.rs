//! Writes that are conditional on the item's version: the order in which they arrive does not matter.
//!
//! A write says "this is the item as of version v" and takes effect only over an older version. So
//! the newest version of a key wins whatever is repeated, delayed or interleaved, and a worker that
//! lost its lease can only write what is known already, or what the next worker is about to write.
//! A delete leaves its version behind, in a tombstone or in the version table: without it a late
//! write would bring the item back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_core::{Error, Result};
use aws_sdk_dynamodb::types::{
    AttributeValue, ConditionCheck, Delete, Put, ReturnValuesOnConditionCheckFailure, ScalarAttributeType,
    TransactWriteItem, Update,
};
use aws_smithy_types::Blob;
use futures_util::StreamExt;
use futures_util::stream;

use super::Versions;
use super::fold::{Action, Move, Step, Write, missing, moved_item};
use super::item::key_bytes;
use super::progress::{incomplete, transact_by};
use super::table::Table;
use super::version::Version;
use super::writer::Owned;
use crate::calls::{Stop, call};
use crate::store::n;
use crate::types::Item;

/// The sidecar of [`Versions::Table`].
const SIDECAR: &str = "anabranch_version";

/// Applies steps, for one lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guarded<'a>(pub(crate) &'a Owned);

/// What an attempt to write found.
enum Found {
    Applied,
    /// The item, or its entry in the sidecar, has this version already or a newer one.
    Newer(Option<Version>),
    /// An item is to be changed that is not there.
    Missing,
}

/// What an item's version is, and whether the item stands for a deleted one.
struct Seen {
    version: Option<Version>,
    deleted: bool,
}

impl Guarded<'_> {
    pub(crate) async fn apply(self, steps: Vec<Step>) -> Result<()> {
        for step in steps {
            match step {
                Step::Writes(writes) => self.writes(writes).await?,
                Step::Truncate(table, version) => self.truncate(&table, &version).await?,
                Step::Move(moved) => self.moved(&moved).await?,
            }
        }
        Ok(())
    }

    /// Writes of different keys, at the same time.
    async fn writes(self, writes: Vec<Write>) -> Result<()> {
        self.prepare().await?;
        let most = self.0.shared.settings.concurrency;
        each(writes, most, |write| self.write(write)).await
    }

    async fn prepare(self) -> Result<()> {
        let shared = &self.0.shared;
        if shared.settings.versions != Versions::Table {
            return Ok(());
        }
        shared.store.ensure(SIDECAR, ("item", ScalarAttributeType::B), None).await?;
        if self.0.sidecar_ready.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let client = shared.client().await?;
        match crate::store::time_to_live(client, SIDECAR).await? {
            None => crate::store::enable_time_to_live(client, SIDECAR, "expires").await,
            Some(_) => Ok(()),
        }
    }

    async fn write(self, write: Write) -> Result<()> {
        self.0.fresh().await?;
        let found = match self.0.shared.settings.versions {
            Versions::Attribute => self.by_attribute(&write).await?,
            Versions::Table => self.by_sidecar(&write).await?,
        };
        match found {
            Found::Applied => Ok(()),
            Found::Missing => Err(missing(&write.table, &write.key)),
            Found::Newer(version) => self.stale(&write, version),
        }
    }

    /// Somebody has written this, or something later: that is what was wanted. But a later
    /// generation is that of a source which has replaced this one.
    fn stale(self, write: &Write, found: Option<Version>) -> Result<()> {
        self.0.stale.fetch_add(1, Ordering::Relaxed);
        match found {
            Some(found) if found.generation() > self.0.generation => Err(Error::fenced(format!(
                "an item of {} was written by a later generation ({}, this run has {})",
                write.table.name,
                found.generation(),
                self.0.generation
            ))
            .hint("another pipeline, or a later copy, has taken this table over")),
            _ => Ok(()),
        }
    }

    async fn by_attribute(self, write: &Write) -> Result<Found> {
        let Owned { shared, lane, .. } = self.0;
        let (settings, client) = (&shared.settings, shared.client().await?);
        let limiter = shared.limiter(&write.table.name);
        let all = ReturnValuesOnConditionCheckFailure::AllOld;
        let stopped = match &write.action {
            Action::Put(_) | Action::Delete => {
                let item = match &write.action {
                    Action::Put(item) => {
                        let mut item = item.clone();
                        settings.stamp(&mut item, &lane.pipeline, &write.version);
                        item
                    }
                    _ => settings.tombstone(&write.key, &lane.pipeline, &write.version),
                };
                let request = client
                    .put_item()
                    .table_name(&write.table.name)
                    .set_item(Some(item))
                    .condition_expression("attribute_not_exists(#v) OR #v < :v")
                    .expression_attribute_names("#v", &settings.version_attribute)
                    .expression_attribute_values(":v", write.version.attribute())
                    .return_values_on_condition_check_failure(all);
                call(&limiter, &write.table.name, || request.clone().send()).await.map(drop)
            }
            Action::Update { set, remove } => {
                let mut set = set.clone();
                settings.stamp(&mut set, &lane.pipeline, &write.version);
                let change = Expression::new(&set, remove);
                let request = client
                    .update_item()
                    .table_name(&write.table.name)
                    .set_key(Some(write.key.clone()))
                    .update_expression(change.text)
                    .condition_expression(
                        "attribute_exists(#key) AND attribute_not_exists(#deleted) \
                         AND (attribute_not_exists(#v) OR #v < :v)",
                    )
                    .set_expression_attribute_names(Some(change.names))
                    .expression_attribute_names("#key", &write.table.hash.name)
                    .expression_attribute_names("#deleted", &settings.deleted_attribute)
                    .expression_attribute_names("#v", &settings.version_attribute)
                    .set_expression_attribute_values(Some(change.values))
                    .expression_attribute_values(":v", write.version.attribute())
                    .return_values_on_condition_check_failure(all);
                call(&limiter, &write.table.name, || request.clone().send()).await.map(drop)
            }
        };
        match stopped {
            Ok(()) => Ok(Found::Applied),
            Err(Stop::Condition(found)) => {
                let version = found.as_ref().and_then(|item| self.seen(item).version);
                match (version, &write.action) {
                    (Some(version), _) if version >= write.version => Ok(Found::Newer(Some(version))),
                    // It also needs an item that lives.
                    (_, Action::Update { .. }) => Ok(Found::Missing),
                    (_, _) => Err(Error::rejected(format!(
                        "an item of {} has an attribute {} that is not a version",
                        write.table.name, settings.version_attribute
                    ))
                    .hint("name another one with sink.version_attribute")),
                }
            }
            Err(stop) => Err(stop.into_error()),
        }
    }

    async fn by_sidecar(self, write: &Write) -> Result<Found> {
        let Owned { shared, lane, .. } = self.0;
        let (settings, table) = (&shared.settings, &write.table.name);
        let action = TransactWriteItem::builder();
        let action = match &write.action {
            Action::Put(item) => {
                let mut item = item.clone();
                settings.stamp(&mut item, &lane.pipeline, &write.version);
                action.put(Put::builder().table_name(table).set_item(Some(item)).build().map_err(incomplete)?)
            }
            Action::Delete => {
                let delete = Delete::builder().table_name(table).set_key(Some(write.key.clone()));
                action.delete(delete.build().map_err(incomplete)?)
            }
            Action::Update { set, remove } => {
                let mut set = set.clone();
                settings.stamp(&mut set, &lane.pipeline, &write.version);
                return self
                    .change_by_sidecar(write, update_of_existing(&write.table, &write.key, &set, remove, None)?)
                    .await;
            }
        };
        self.change_by_sidecar(write, action.build()).await
    }

    /// Makes a change together with its entry in the sidecar.
    async fn change_by_sidecar(self, write: &Write, change: TransactWriteItem) -> Result<Found> {
        let (shared, table) = (&self.0.shared, &write.table.name);
        let limiter = shared.limiter(table);
        let actions = vec![self.sidecar_entry(write)?, change];
        match transact_by(shared, &limiter, table, actions).await {
            Ok(()) => Ok(Found::Applied),
            Err(Stop::Cancelled(reasons)) => {
                let failed = |at: usize| reasons.get(at).and_then(|r| r.code()) == Some("ConditionalCheckFailed");
                if failed(0) {
                    let entry = reasons[0].item().and_then(|item| item.get("v")).and_then(Version::read);
                    return Ok(Found::Newer(entry));
                }
                if failed(1) { Ok(Found::Missing) } else { Err(Stop::Cancelled(reasons).into_error()) }
            }
            Err(stop) => Err(stop.into_error()),
        }
    }

    /// Moves the version of a key on, or fails.
    fn sidecar_entry(self, write: &Write) -> Result<TransactWriteItem> {
        let mut put = Put::builder()
            .table_name(SIDECAR)
            .item("item", sidecar_key(&write.table, &write.key))
            .item("v", write.version.attribute())
            .condition_expression("attribute_not_exists(v) OR v < :v")
            .expression_attribute_values(":v", write.version.attribute())
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        if matches!(write.action, Action::Delete) {
            put = put.item("expires", n(self.0.shared.settings.expiry()));
        }
        Ok(TransactWriteItem::builder().put(put.build().map_err(incomplete)?).build())
    }

    /// Deletes what was there before `version`; what was written later stays.
    async fn truncate(self, table: &Arc<Table>, version: &Version) -> Result<()> {
        self.prepare().await?;
        let limiter = self.0.shared.limiter(&table.name);
        let mut scan = Scan::keys(table, &self.0.shared.settings.deleted_attribute);
        while let Some(keys) = scan.next(self.0.shared.client().await?, &limiter).await? {
            let delete = |key| Write {
                table: Arc::clone(table),
                key,
                action: Action::Delete,
                version: version.clone(),
                size: 0,
            };
            self.writes(keys.into_iter().map(delete).collect()).await?;
        }
        Ok(())
    }

    /// The new key first: should this be interrupted, the old item is still there to begin again from.
    async fn moved(self, moved: &Move) -> Result<()> {
        self.prepare().await?;
        let found = get(self.0, &moved.table, &moved.from).await?;
        let seen = match self.0.shared.settings.versions {
            Versions::Attribute => found.as_ref().map(|item| self.seen(item)),
            Versions::Table => {
                let version = self.sidecar_version(&moved.table, &moved.from).await?;
                Some(Seen { version, deleted: found.is_none() })
            }
        };
        if let Some(Seen { version: Some(version), .. }) = &seen
            && *version >= moved.version
        {
            // Done before: only then does the old key have a version like that.
            return Ok(());
        }
        let live = found.filter(|_| seen.is_none_or(|s| !s.deleted));
        let Some(item) = live else { return Err(missing(&moved.table, &moved.from)) };
        let write = |key: &Item, action| Write {
            table: Arc::clone(&moved.table),
            key: key.clone(),
            action,
            version: moved.version.clone(),
            size: 0,
        };
        let item = self.0.without_marks(moved_item(item, moved));
        self.write(write(&moved.to, Action::Put(item))).await?;
        self.write(write(&moved.from, Action::Delete)).await
    }

    fn seen(self, item: &Item) -> Seen {
        let settings = &self.0.shared.settings;
        let version = item.get(&settings.version_attribute).and_then(Version::read);
        Seen { version, deleted: item.contains_key(&settings.deleted_attribute) }
    }

    async fn sidecar_version(self, table: &Table, key: &Item) -> Result<Option<Version>> {
        let shared = &self.0.shared;
        let request = shared
            .client()
            .await?
            .get_item()
            .table_name(SIDECAR)
            .key("item", sidecar_key(table, key))
            .consistent_read(true);
        let answer = call(&shared.store.limiter, SIDECAR, || request.clone().send()).await;
        Ok(answer.map_err(Stop::into_error)?.item.and_then(|item| item.get("v").and_then(Version::read)))
    }
}

/// Runs `work` for each of `all`, up to `most` at a time. After the first error no further one is
/// begun, but those under way are waited for: a write is never dropped.
pub(crate) async fn each<T, F>(all: Vec<T>, most: usize, work: impl Fn(T) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send,
{
    let failed = AtomicBool::new(false);
    let (failed, work) = (&failed, &work);
    let mut running = stream::iter(all.into_iter().map(|one| {
        let run = Box::pin(work(one));
        async move {
            if failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            run.await.inspect_err(|_| failed.store(true, Ordering::Relaxed))
        }
    }))
    .buffer_unordered(most.max(1));
    let mut first: Option<Error> = None;
    while let Some(result) = running.next().await {
        if let Err(error) = result {
            // That another has taken over matters more than what else went wrong.
            let fenced = error.kind() == anabranch_core::ErrorKind::Fenced;
            if first.is_none() || fenced {
                first = Some(error);
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// An item as it is now.
pub(crate) async fn get(owned: &Owned, table: &Table, key: &Item) -> Result<Option<Item>> {
    let shared = &owned.shared;
    let request =
        shared.client().await?.get_item().table_name(&table.name).set_key(Some(key.clone())).consistent_read(true);
    let answer = call(&shared.limiter(&table.name), &table.name, || request.clone().send()).await;
    Ok(answer.map_err(Stop::into_error)?.item)
}

/// An action that changes an item, if it is there. `deleted`: the attribute of tombstones, where there are any.
pub(crate) fn update_of_existing(
    table: &Table,
    key: &Item,
    set: &Item,
    remove: &[String],
    deleted: Option<&str>,
) -> Result<TransactWriteItem> {
    let action = TransactWriteItem::builder();
    let condition = match deleted {
        Some(_) => "attribute_exists(#key) AND attribute_not_exists(#deleted)",
        None => "attribute_exists(#key)",
    };
    let mut names = HashMap::from([("#key".to_owned(), table.hash.name.clone())]);
    names.extend(deleted.map(|name| ("#deleted".to_owned(), name.to_owned())));
    if set.is_empty() && remove.is_empty() {
        let check = ConditionCheck::builder()
            .table_name(&table.name)
            .set_key(Some(key.clone()))
            .condition_expression(condition)
            .set_expression_attribute_names(Some(names));
        return Ok(action.condition_check(check.build().map_err(incomplete)?).build());
    }
    let change = Expression::new(set, remove);
    names.extend(change.names);
    let update = Update::builder()
        .table_name(&table.name)
        .set_key(Some(key.clone()))
        .update_expression(change.text)
        .condition_expression(condition)
        .set_expression_attribute_names(Some(names))
        .set_expression_attribute_values((!change.values.is_empty()).then_some(change.values));
    Ok(action.update(update.build().map_err(incomplete)?).build())
}

/// `SET #a0 = :a0, .. REMOVE #r0, ..`
pub(crate) struct Expression {
    pub(crate) text: String,
    pub(crate) names: HashMap<String, String>,
    pub(crate) values: HashMap<String, AttributeValue>,
}

impl Expression {
    pub(crate) fn new(set: &Item, remove: &[String]) -> Self {
        let (mut names, mut values) = (HashMap::new(), HashMap::new());
        let (mut sets, mut removes) = (Vec::new(), Vec::new());
        for (n, (name, value)) in set.iter().enumerate() {
            names.insert(format!("#a{n}"), name.clone());
            values.insert(format!(":a{n}"), value.clone());
            sets.push(format!("#a{n} = :a{n}"));
        }
        for (n, name) in remove.iter().enumerate() {
            names.insert(format!("#r{n}"), name.clone());
            removes.push(format!("#r{n}"));
        }
        let part = |verb: &str, all: &[String]| match all {
            [] => String::new(),
            all => format!("{verb} {} ", all.join(", ")),
        };
        let text = part("SET", &sets) + &part("REMOVE", &removes);
        Self { text: text.trim_end().to_owned(), names, values }
    }
}

/// Reads the keys of a table page by page.
pub(crate) struct Scan {
    table: Arc<Table>,
    deleted: String,
    after: Option<Item>,
    ended: bool,
}

impl Scan {
    /// Without those of tombstones, by this attribute.
    pub(crate) fn keys(table: &Arc<Table>, deleted: &str) -> Self {
        Self { table: Arc::clone(table), deleted: deleted.to_owned(), after: None, ended: false }
    }

    /// The next page; `None` after the last.
    pub(crate) async fn next(
        &mut self,
        client: &aws_sdk_dynamodb::Client,
        limiter: &Arc<crate::limiter::Limiter>,
    ) -> Result<Option<Vec<Item>>> {
        if self.ended {
            return Ok(None);
        }
        let names: Vec<String> = (0..self.table.parts().count()).map(|n| format!("#k{n}")).collect();
        let mut request = client
            .scan()
            .table_name(&self.table.name)
            .consistent_read(true)
            .projection_expression(names.join(", "))
            .filter_expression("attribute_not_exists(#deleted)")
            .expression_attribute_names("#deleted", &self.deleted)
            .set_exclusive_start_key(self.after.take());
        for (name, part) in names.iter().zip(self.table.parts()) {
            request = request.expression_attribute_names(name, &part.name);
        }
        let page = call(limiter, &self.table.name, || request.clone().send()).await.map_err(Stop::into_error)?;
        self.after = page.last_evaluated_key.filter(|key| !key.is_empty());
        self.ended = self.after.is_none();
        Ok(Some(page.items.unwrap_or_default()))
    }
}

/// Table and key, as one binary value.
fn sidecar_key(table: &Table, key: &Item) -> AttributeValue {
    let mut bytes = table.name.clone().into_bytes();
    bytes.push(0);
    bytes.extend_from_slice(&key_bytes(table, key));
    AttributeValue::B(Blob::new(bytes))
}
