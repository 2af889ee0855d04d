//! The tables in which this library keeps its own things.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{Error, Result};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableDescription,
    TableStatus, TimeToLiveSpecification,
};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::{Instant, sleep};

use crate::Access;
use crate::error::{classify, code};
use crate::limiter::Limiter;
use crate::types::Item;

/// How long a table may take to be created. Some seconds are usual.
const CREATION: Duration = Duration::from_secs(120);

/// Between two looks at a table that is being created, which announces nothing.
const POLL: Duration = Duration::from_millis(100);

/// A name of an attribute, and its type.
pub(crate) type Key<'a> = (&'a str, ScalarAttributeType);

/// A client that is made when it is first needed, and the tables that are known to be there.
#[derive(Debug)]
pub(crate) struct Store {
    access: Access,
    section: &'static str,
    client: OnceCell<Client>,
    there: Mutex<HashSet<String>>,
    /// Of calls to the bookkeeping tables: they are few.
    pub(crate) limiter: Arc<Limiter>,
}

impl Store {
    pub(crate) fn new(access: Access, section: &'static str) -> Self {
        let limiter = Arc::new(Limiter::new(64));
        Self { access, section, client: OnceCell::new(), there: Mutex::default(), limiter }
    }

    pub(crate) async fn client(&self) -> Result<&Client> {
        self.client.get_or_try_init(|| self.access.dynamodb(self.section)).await
    }

    /// Creates the table if it is missing, and waits until it is there.
    pub(crate) async fn ensure(&self, name: &str, hash: Key<'_>, range: Option<Key<'_>>) -> Result<()> {
        // Held while it is created: the others of this process wait for it.
        let mut there = self.there.lock().await;
        if there.contains(name) {
            return Ok(());
        }
        let client = self.client().await?;
        if describe(client, name).await?.is_none() {
            create(client, name, hash, range).await?;
        }
        until_active(client, name).await?;
        there.insert(name.to_owned());
        Ok(())
    }
}

/// The description of a table; `None` if there is no such table.
pub(crate) async fn describe(client: &Client, name: &str) -> Result<Option<TableDescription>> {
    match client.describe_table().table_name(name).send().await {
        Ok(found) => Ok(found.table),
        Err(e) if code(&e) == Some("ResourceNotFoundException") => Ok(None),
        Err(e) => Err(classify("dynamodb:DescribeTable", format_args!("the table {name}"), e)),
    }
}

/// Creates a table that is paid for by request. Somebody else may create it at the same time.
pub(crate) async fn create(client: &Client, name: &str, hash: Key<'_>, range: Option<Key<'_>>) -> Result<()> {
    let mut request = client.create_table().table_name(name).billing_mode(BillingMode::PayPerRequest);
    let parts = [Some((hash, KeyType::Hash)), range.map(|range| (range, KeyType::Range))];
    for ((attribute, kind), role) in parts.into_iter().flatten() {
        let wrong = |e| Error::fatal("a key of a table is incomplete").because(e);
        let element = KeySchemaElement::builder().attribute_name(attribute).key_type(role).build().map_err(wrong)?;
        let definition = AttributeDefinition::builder().attribute_name(attribute).attribute_type(kind);
        request = request.key_schema(element).attribute_definitions(definition.build().map_err(wrong)?);
    }
    match request.send().await {
        Ok(_) => Ok(()),
        Err(e) if code(&e) == Some("ResourceInUseException") => Ok(()),
        Err(e) => Err(classify("dynamodb:CreateTable", format_args!("the table {name}"), e)),
    }
}

/// Waits until the table can be written to.
pub(crate) async fn until_active(client: &Client, name: &str) -> Result<()> {
    let deadline = Instant::now() + CREATION;
    loop {
        let found = describe(client, name).await?;
        let status = found.as_ref().and_then(|t| t.table_status());
        if matches!(status, Some(TableStatus::Active | TableStatus::Updating)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::transient(format!("the table {name} is not there yet, two minutes after its creation")));
        }
        sleep(POLL).await;
    }
}

/// The attribute by which DynamoDB removes old items of a table, if that is switched on.
pub(crate) async fn time_to_live(client: &Client, name: &str) -> Result<Option<String>> {
    match client.describe_time_to_live().table_name(name).send().await {
        Ok(found) => Ok(found
            .time_to_live_description()
            .filter(|d| d.time_to_live_status().is_some_and(|s| matches!(s.as_str(), "ENABLED" | "ENABLING")))
            .and_then(|d| d.attribute_name())
            .map(str::to_owned)),
        // A server of one's own may not know it.
        Err(e) if code(&e) == Some("UnknownOperationException") => Ok(None),
        Err(e) => Err(classify("dynamodb:DescribeTimeToLive", format_args!("the table {name}"), e)),
    }
}

/// Lets DynamoDB remove items by this attribute.
pub(crate) async fn enable_time_to_live(client: &Client, name: &str, attribute: &str) -> Result<()> {
    let specification = TimeToLiveSpecification::builder().enabled(true).attribute_name(attribute).build();
    let specification = specification.map_err(|e| Error::fatal("a time to live is incomplete").because(e))?;
    let request = client.update_time_to_live().table_name(name).time_to_live_specification(specification);
    match request.send().await {
        Ok(_) => Ok(()),
        Err(e) if code(&e) == Some("UnknownOperationException") => Ok(()),
        // Another lane, or another process, was first. By another attribute is told in other words.
        Err(e)
            if code(&e) == Some("ValidationException")
                && e.message().is_some_and(|m| m.contains("TimeToLive is already enabled")) =>
        {
            Ok(())
        }
        Err(e) => Err(classify("dynamodb:UpdateTimeToLive", format_args!("the table {name}"), e)),
    }
}

/// Text as an attribute.
pub(crate) fn s(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

/// A number as an attribute.
pub(crate) fn n(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

/// A number of an item of this library's own; 0 if it has none.
pub(crate) fn number(item: &Item, name: &str) -> u64 {
    item.get(name).and_then(|v| v.as_n().ok()).and_then(|v| v.parse().ok()).unwrap_or_default()
}

/// A text of an item of this library's own.
pub(crate) fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name).and_then(|v| v.as_s().ok()).map(String::as_str)
}
