//! Dead letters in a DynamoDB table.

use std::sync::Arc;

use anabranch_core::{DeadLetter, DeadLetterStore, Error, LetterClass, LetterState, Result};
use async_trait::async_trait;
use aws_sdk_dynamodb::operation::query::QueryOutput;
use aws_sdk_dynamodb::types::{AttributeValue, ScalarAttributeType, Select};

use crate::Access;
use crate::calls::{Stop, call};
use crate::checkpointer::split;
use crate::error::code;
use crate::store::{Store, n, number, s, text};
use crate::types::Item;

const TABLE: &str = "anabranch_dead_letter";

/// What stands before a pipeline's name in the key of the parts of its letters. No pipeline's name
/// begins so.
const PARTS: &str = "anabranch:parts:";

/// Keeps dead letters in the table `anabranch_dead_letter`: `pipeline` and `id` are its key, state and
/// class stand beside the letter as JSON.
///
/// A letter is often one because it is too large for an item: what does not fit into one is in
/// further items, which are written before it.
#[derive(Debug, Clone)]
pub struct DynamoDbDeadLetters {
    store: Arc<Store>,
}

impl DynamoDbDeadLetters {
    /// In the tables that are reached by `access`.
    pub fn new(access: Access) -> Self {
        Self::with(Arc::new(Store::new(access, "dead_letters")))
    }

    pub(crate) fn with(store: Arc<Store>) -> Self {
        Self { store }
    }

    async fn put_one(&self, pipeline: &str, letter: &DeadLetter) -> Result<()> {
        let body = serde_json::to_string(letter)
            .map_err(|e| Error::fatal(format!("cannot encode the dead letter {}", letter.id)).because(e))?;
        let pieces = split(&body);
        // New names for the parts: should this be interrupted, the letter that was there is whole.
        let token = format!("{:016x}", rand::random::<u64>());
        for (at, piece) in pieces.iter().enumerate().skip(1) {
            let part = Item::from([
                ("pipeline".to_owned(), s(format!("{PARTS}{pipeline}"))),
                ("id".to_owned(), s(part_id(&letter.id, &token, at))),
                ("body".to_owned(), s(*piece)),
            ]);
            self.put_item(part).await?;
        }
        let item = Item::from([
            ("pipeline".to_owned(), s(pipeline)),
            ("id".to_owned(), s(&letter.id)),
            ("state".to_owned(), s(state_name(letter.state))),
            ("class".to_owned(), s(class_name(letter.class))),
            ("parts".to_owned(), n(pieces.len())),
            ("token".to_owned(), s(&token)),
            ("body".to_owned(), s(pieces[0])),
        ]);
        let replaced = self.put_item(item).await?;
        // A put whose answer was lost is made again, and replaces itself.
        let another = |old: &Item| text(old, "token") != Some(token.as_str());
        if let Some(old) = replaced.filter(|old| number(old, "parts") > 1 && another(old)) {
            self.remove_parts(pipeline, &letter.id, &old).await?;
        }
        Ok(())
    }

    /// Gives what was there.
    async fn put_item(&self, item: Item) -> Result<Option<Item>> {
        let request = self
            .store
            .client()
            .await?
            .put_item()
            .table_name(TABLE)
            .set_item(Some(item))
            .return_values(aws_sdk_dynamodb::types::ReturnValue::AllOld);
        let answer = call(&self.store.limiter, TABLE, || request.clone().send()).await;
        Ok(answer.map_err(Stop::into_error)?.attributes)
    }

    async fn remove_parts(&self, pipeline: &str, id: &str, old: &Item) -> Result<()> {
        let token = text(old, "token").unwrap_or_default();
        for at in 1..number(old, "parts") as usize {
            let request = self
                .store
                .client()
                .await?
                .delete_item()
                .table_name(TABLE)
                .key("pipeline", s(format!("{PARTS}{pipeline}")))
                .key("id", s(part_id(id, token, at)));
            call(&self.store.limiter, TABLE, || request.clone().send()).await.map_err(Stop::into_error)?;
        }
        Ok(())
    }

    async fn get_item(&self, pipeline: String, id: String) -> Result<Option<Item>> {
        let client = self.store.client().await?;
        let request =
            client.get_item().table_name(TABLE).key("pipeline", s(pipeline)).key("id", s(id)).consistent_read(true);
        let answer = call(&self.store.limiter, TABLE, || {
            let request = request.clone();
            async move {
                match request.send().await {
                    Err(e) if code(&e) == Some("ResourceNotFoundException") => Ok(None),
                    other => other.map(|answer| answer.item),
                }
            }
        });
        answer.await.map_err(Stop::into_error)
    }

    /// The letter of an item, with its parts; `None` if it was replaced while they were read.
    async fn whole(&self, pipeline: &str, item: &Item) -> Result<Option<DeadLetter>> {
        let id = text(item, "id").unwrap_or_default();
        let token = text(item, "token").unwrap_or_default();
        let mut body = text(item, "body").unwrap_or_default().to_owned();
        for at in 1..number(item, "parts") as usize {
            let part = self.get_item(format!("{PARTS}{pipeline}"), part_id(id, token, at)).await?;
            let Some(part) = part else { return Ok(None) };
            body.push_str(text(&part, "body").unwrap_or_default());
        }
        serde_json::from_str(&body)
            .map(Some)
            .map_err(|e| Error::fatal(format!("the dead letter {id} in the table {TABLE} is damaged")).because(e))
    }

    /// The next page of the letters in these states; `None` if there is no table.
    async fn page(
        &self,
        pipeline: &str,
        states: &[LetterState],
        select: Select,
        after: Option<&str>,
        from: Option<Item>,
    ) -> Result<Option<QueryOutput>> {
        let names: Vec<String> = (0..states.len()).map(|n| format!(":s{n}")).collect();
        let condition = if after.is_some() { "pipeline = :pipeline AND id > :after" } else { "pipeline = :pipeline" };
        let mut request = self
            .store
            .client()
            .await?
            .query()
            .table_name(TABLE)
            .consistent_read(true)
            .select(select)
            .key_condition_expression(condition)
            .expression_attribute_values(":pipeline", s(pipeline))
            .filter_expression(format!("#state IN ({})", names.join(", ")))
            .expression_attribute_names("#state", "state")
            .set_exclusive_start_key(from);
        if let Some(after) = after {
            request = request.expression_attribute_values(":after", s(after));
        }
        for (name, state) in names.iter().zip(states) {
            request = request.expression_attribute_values(name, s(state_name(*state)));
        }
        let page = call(&self.store.limiter, TABLE, || {
            let request = request.clone();
            async move {
                match request.send().await {
                    Err(e) if code(&e) == Some("ResourceNotFoundException") => Ok(None),
                    other => other.map(Some),
                }
            }
        });
        page.await.map_err(Stop::into_error)
    }
}

#[async_trait]
impl DeadLetterStore for DynamoDbDeadLetters {
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let text = ScalarAttributeType::S;
        self.store.ensure(TABLE, ("pipeline", text.clone()), Some(("id", text))).await?;
        for letter in letters {
            self.put_one(pipeline, letter).await?;
        }
        Ok(())
    }

    async fn list(
        &self,
        pipeline: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        let mut letters = Vec::new();
        let mut from: Option<Item> = None;
        while !states.is_empty() && letters.len() < limit {
            let page = self.page(pipeline, states, Select::AllAttributes, after, from.take()).await?;
            let Some(page) = page else { break };
            for item in page.items.unwrap_or_default() {
                if letters.len() == limit {
                    break;
                }
                match self.whole(pipeline, &item).await? {
                    Some(letter) => letters.push(letter),
                    // Replaced meanwhile: as it is now.
                    None => {
                        let id = text(&item, "id").unwrap_or_default();
                        letters.extend(self.get(pipeline, id).await?.filter(|l| states.contains(&l.state)));
                    }
                }
            }
            match page
                .last_evaluated_key
                .filter(|key: &std::collections::HashMap<String, AttributeValue>| !key.is_empty())
            {
                Some(key) => from = Some(key),
                None => break,
            }
        }
        Ok(letters)
    }

    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>> {
        for _ in 0..100 {
            let Some(item) = self.get_item(pipeline.to_owned(), id.to_owned()).await? else { return Ok(None) };
            if let Some(letter) = self.whole(pipeline, &item).await? {
                return Ok(Some(letter));
            }
        }
        Err(Error::transient(format!("the dead letter {id} changes while it is read, again and again")))
    }

    async fn open_count(&self, pipeline: &str) -> Result<u64> {
        let states = [LetterState::Open, LetterState::Held];
        let mut count = 0;
        let mut from: Option<Item> = None;
        loop {
            let page = self.page(pipeline, &states, Select::Count, None, from.take()).await?;
            let Some(page) = page else { return Ok(count) };
            count += page.count() as u64;
            match page.last_evaluated_key.filter(|key| !key.is_empty()) {
                Some(key) => from = Some(key),
                None => return Ok(count),
            }
        }
    }
}

fn part_id(id: &str, token: &str, at: usize) -> String {
    format!("{id}/{token}/{at:05}")
}

/// As serde writes it in the body.
fn state_name(state: LetterState) -> &'static str {
    match state {
        LetterState::Open => "open",
        LetterState::Held => "held",
        LetterState::Applied => "applied",
        LetterState::Skipped => "skipped",
    }
}

/// As serde writes it in the body.
fn class_name(class: LetterClass) -> &'static str {
    match class {
        LetterClass::Retry => "retry",
        LetterClass::Severe => "severe",
        LetterClass::Skip => "skip",
        LetterClass::Filtered => "filtered",
    }
}
