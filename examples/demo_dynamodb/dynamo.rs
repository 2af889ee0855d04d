//! A throwaway DynamoDB, and a look at it.

use std::collections::BTreeMap;

use anabranch::Secret;
use anabranch_dynamodb::Access;
use anabranch_dynamodb::types::{Item, item_to_json};
use anabranch_servers::{DynamoOptions, DynamoServer};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, PutRequest, ScalarAttributeType, Select, WriteRequest,
};
use tokio::runtime::Runtime;

use crate::tell::Done;

/// The most that one `BatchWriteItem` takes.
const BATCH: usize = 25;

/// DynamoDB Local, with a client.
pub(crate) struct Dynamo {
    server: DynamoServer,
    client: Client,
    runtime: Runtime,
}

impl Dynamo {
    /// `None`, with a line that says so, if it is not installed.
    pub(crate) fn start() -> Done<Option<Self>> {
        let Some(server) = DynamoOptions::new().in_memory().start()? else { return Ok(None) };
        let runtime = Runtime::new()?;
        let key = || Secret::new("local");
        let access = Access::new().region("local").endpoint(server.endpoint()).credentials(key(), key(), None);
        let client = runtime.block_on(access.dynamodb("demo"))?;
        Ok(Some(Self { server, client, runtime }))
    }

    /// The keys of a configuration by which it is reached.
    pub(crate) fn section(&self) -> String {
        format!(
            "type = \"dynamodb\"\nregion = \"local\"\nendpoint = \"{}\"\n\
             access_key_id = \"local\"\nsecret_access_key = \"local\"\n",
            self.server.endpoint()
        )
    }

    /// A client for another thread.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Makes a table, without a stream: the pipeline enables it.
    pub(crate) fn create(&self, table: &str, key: &[(&str, ScalarAttributeType)]) -> Done {
        let mut create = self.client.create_table().table_name(table).billing_mode(BillingMode::PayPerRequest);
        for ((name, kind), role) in key.iter().zip([KeyType::Hash, KeyType::Range]) {
            let attribute = AttributeDefinition::builder().attribute_name(*name).attribute_type(kind.clone());
            let element = KeySchemaElement::builder().attribute_name(*name).key_type(role);
            create = create.attribute_definitions(attribute.build()?).key_schema(element.build()?);
        }
        self.runtime.block_on(create.send())?;
        Ok(())
    }

    /// Writes many items.
    pub(crate) fn fill(&self, table: &str, items: &[Item]) -> Done {
        for items in items.chunks(BATCH) {
            let put = |item: &Item| -> Done<WriteRequest> {
                let put = PutRequest::builder().set_item(Some(item.clone())).build()?;
                Ok(WriteRequest::builder().put_request(put).build())
            };
            let requests = items.iter().map(put).collect::<Done<Vec<_>>>()?;
            let answer = self.runtime.block_on(self.client.batch_write_item().request_items(table, requests).send())?;
            if answer.unprocessed_items.is_some_and(|left| !left.is_empty()) {
                return Err(format!("{table} was filled in part only").into());
            }
        }
        Ok(())
    }

    /// How many live items it has of the first ones, or of all.
    pub(crate) fn count(&self, table: &str, first_only: bool) -> u64 {
        let mut filter = "attribute_not_exists(#deleted)".to_owned();
        if first_only {
            filter.push_str(" AND attribute_exists(#first)");
        }
        let scan = self.client.scan().table_name(table).select(Select::Count).filter_expression(filter);
        let scan = scan.expression_attribute_names("#deleted", anabranch_dynamodb::bookkeeping::DELETED);
        let scan = if first_only { scan.expression_attribute_names("#first", "first") } else { scan };
        self.runtime.block_on(async {
            let mut pages = scan.into_paginator().send();
            let mut count = 0;
            // A table that is not there yet has no items.
            while let Some(Ok(page)) = pages.next().await {
                count += page.count.max(0) as u64;
            }
            count
        })
    }

    /// Whether there is a live item with this key.
    pub(crate) fn has(&self, table: &str, key: Item) -> bool {
        let get = self.client.get_item().table_name(table).set_key(Some(key)).consistent_read(true);
        let found = self.runtime.block_on(get.send()).ok().and_then(|answer| answer.item);
        found.is_some_and(|item| !item.contains_key(anabranch_dynamodb::bookkeeping::DELETED))
    }

    /// The items of a table as applications see them: without tombstones and without what a pipeline
    /// adds; by the text of these key attributes.
    pub(crate) fn items(&self, table: &str, key: &[&str]) -> Done<BTreeMap<String, Item>> {
        use anabranch_dynamodb::bookkeeping::{DELETED, PREFIX};
        let scan = self.client.scan().table_name(table).consistent_read(true);
        let mut all = BTreeMap::new();
        self.runtime.block_on(async {
            let mut pages = scan.into_paginator().items().send();
            while let Some(item) = pages.next().await {
                let mut item = item?;
                if item.contains_key(DELETED) {
                    continue;
                }
                item.retain(|name, _| !name.starts_with(PREFIX));
                let key: Item = key.iter().filter_map(|n| Some(((*n).to_owned(), item.get(*n)?.clone()))).collect();
                all.insert(item_to_json(&key)?, item);
            }
            Ok(all)
        })
    }
}
