//! Checkpoints in a DynamoDB table.

use std::sync::Arc;

use anabranch_core::{Checkpoint, Checkpointer, Error, Result, Saved, Version};
use async_trait::async_trait;
use aws_sdk_dynamodb::types::{Put, ReturnValuesOnConditionCheckFailure, ScalarAttributeType, TransactWriteItem};

use crate::Access;
use crate::calls::{Stop, call};
use crate::error::code;
use crate::store::{Store, n, number, s, text};
use crate::types::Item;

const TABLE: &str = "anabranch_checkpoint";

/// How much of a checkpoint is in one item, in bytes: an item has at most 400 KB.
const PART: usize = 350_000;

/// Keeps checkpoints in the table `anabranch_checkpoint`: `pipeline` and `part` are its key, `version`
/// and `body` what it holds. A checkpoint that is too large for one item is in several, which are
/// written in one transaction (up to 4 MB); part 0 says how many there are.
///
/// Compare-and-set is a conditional put, so it is exact between processes and machines.
#[derive(Debug, Clone)]
pub struct DynamoDbCheckpointer {
    store: Arc<Store>,
}

impl DynamoDbCheckpointer {
    /// In the tables that are reached by `access`.
    pub fn new(access: Access) -> Self {
        Self::with(Arc::new(Store::new(access, "checkpoint")))
    }

    pub(crate) fn with(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// All parts, of one version; `None` if they were changed while they were read.
    async fn read(&self, pipeline: &str) -> Result<Option<Option<(Version, String)>>> {
        let request = self
            .store
            .client()
            .await?
            .query()
            .table_name(TABLE)
            .consistent_read(true)
            .key_condition_expression("pipeline = :pipeline")
            .expression_attribute_values(":pipeline", s(pipeline));
        let mut parts: Vec<Item> = Vec::new();
        let mut after: Option<Item> = None;
        loop {
            let request = request.clone().set_exclusive_start_key(after.take());
            let page = call(&self.store.limiter, TABLE, || {
                let request = request.clone();
                async move {
                    match request.send().await {
                        Err(e) if code(&e) == Some("ResourceNotFoundException") => Ok(None),
                        other => other.map(Some),
                    }
                }
            });
            let Some(page) = page.await.map_err(Stop::into_error)? else { return Ok(Some(None)) };
            parts.extend(page.items.unwrap_or_default());
            match page.last_evaluated_key.filter(|key| !key.is_empty()) {
                Some(key) => after = Some(key),
                None => break,
            }
        }
        let Some(first) = parts.first() else { return Ok(Some(None)) };
        let (version, count) = (number(first, "version"), number(first, "parts") as usize);
        // Parts beyond are left over from a longer checkpoint.
        if parts.len() < count || parts[..count].iter().any(|p| number(p, "version") != version) {
            return Ok(None);
        }
        let body = parts[..count].iter().filter_map(|p| text(p, "body")).collect();
        Ok(Some(Some((Version(version), body))))
    }
}

#[async_trait]
impl Checkpointer for DynamoDbCheckpointer {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        for _ in 0..100 {
            let Some(found) = self.read(pipeline).await? else { continue };
            let Some((version, body)) = found else { return Ok(None) };
            let checkpoint = Checkpoint::from_json(&body)
                .map_err(|e| e.context(format!("the checkpoint of {pipeline} in the table {TABLE}")))?;
            return Ok(Some((version, checkpoint)));
        }
        Err(Error::transient(format!("the checkpoint of {pipeline} changes while it is read, again and again")))
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        let text_type = ScalarAttributeType::S;
        let range = Some(("part", ScalarAttributeType::N));
        self.store.ensure(TABLE, ("pipeline", text_type), range).await?;
        let version = expected.map_or(0, |v| v.0) + 1;
        let body = next.to_json()?;
        let parts = split(&body);
        // Tells a save of ours that was answered too late from that of another.
        let token = format!("{:032x}", rand::random::<u128>());
        let item = |at: usize, part: &str| {
            Item::from([
                ("pipeline".to_owned(), s(pipeline)),
                ("part".to_owned(), n(at)),
                ("parts".to_owned(), n(parts.len())),
                ("version".to_owned(), n(version)),
                ("token".to_owned(), s(&token)),
                ("body".to_owned(), s(part)),
            ])
        };
        let items: Vec<Item> = parts.iter().enumerate().map(|(at, part)| item(at, part)).collect();
        let committed = match items.as_slice() {
            [one] => self.put(one, expected, &token).await?,
            several => self.put_all(pipeline, several, expected, &token).await?,
        };
        Ok(if committed { Saved::Committed(Version(version)) } else { Saved::Conflict })
    }
}

impl DynamoDbCheckpointer {
    async fn put(&self, item: &Item, expected: Option<Version>, token: &str) -> Result<bool> {
        let mut request = self
            .store
            .client()
            .await?
            .put_item()
            .table_name(TABLE)
            .set_item(Some(item.clone()))
            .condition_expression(condition(expected))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        if let Some(version) = expected {
            request = request
                .expression_attribute_names("#version", "version")
                .expression_attribute_values(":version", n(version.0));
        }
        match call(&self.store.limiter, TABLE, || request.clone().send()).await {
            Ok(_) => Ok(true),
            Err(Stop::Condition(found)) => Ok(found.is_some_and(|item| text(&item, "token") == Some(token))),
            Err(stop) => Err(stop.into_error()),
        }
    }

    async fn put_all(&self, pipeline: &str, items: &[Item], expected: Option<Version>, token: &str) -> Result<bool> {
        let size: usize = items.len() * PART;
        if size > 4_000_000 {
            return Err(Error::fatal(format!(
                "the checkpoint of {pipeline} has more than {size} bytes; DynamoDB stores 4 MB at a time"
            ))
            .hint("keep it in another place, with [checkpoint]"));
        }
        let mut actions = Vec::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            let mut put = Put::builder().table_name(TABLE).set_item(Some(item.clone()));
            if at == 0 {
                put = put.condition_expression(condition(expected));
                if let Some(version) = expected {
                    put = put
                        .expression_attribute_names("#version", "version")
                        .expression_attribute_values(":version", n(version.0));
                }
            }
            let put = put.build().map_err(|e| Error::fatal("a request is incomplete").because(e))?;
            actions.push(TransactWriteItem::builder().put(put).build());
        }
        let client = self.store.client().await?;
        // The service takes a transaction with a known token for the same one.
        let request = client.transact_write_items().set_transact_items(Some(actions)).client_request_token(token);
        match call(&self.store.limiter, TABLE, || request.clone().send()).await {
            Ok(_) => Ok(true),
            Err(Stop::Cancelled(_)) => Ok(false),
            Err(stop) => Err(stop.into_error()),
        }
    }
}

fn condition(expected: Option<Version>) -> &'static str {
    match expected {
        None => "attribute_not_exists(pipeline)",
        Some(_) => "#version = :version",
    }
}

/// Pieces of at most [`PART`] bytes, at the borders of characters; at least one.
pub(crate) fn split(body: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = body;
    while rest.len() > PART {
        let (part, after) = rest.split_at(rest.floor_char_boundary(PART));
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}
