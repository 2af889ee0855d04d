//! DynamoDB Local as the target.

use std::collections::HashMap;

use anabranch_dynamodb::Access;
use anabranch_servers::DynamoServer;
use anabranch_testkit::history::{Observation, Row, TABLES};
use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use tokio::task::block_in_place;

use super::{Target, Tested, canonical_row};

/// DynamoDB finds items by key only, and is particular about names.
const TRANSFORMS: &str = "\n[[transform]]\ntype = \"filter\"\nexclude = [\"public.log_lines\"]\n\n\
                          [[transform]]\ntype = \"rename\"\ntables = { \"public.Mixed Case\" = \"Mixed_Case\" }\n";

pub(in crate::pipelines) struct DynamoTarget {
    server: DynamoServer,
    client: Client,
    mode: &'static str,
}

impl DynamoTarget {
    /// With a sink of this mode. `None`: skipped.
    pub(in crate::pipelines) async fn start(mode: &'static str) -> Tested<Option<Self>> {
        let Some(server) = block_in_place(anabranch_servers::dynamodb) else { return Ok(None) };
        let key = || anabranch::Secret::new("local");
        let access = Access::new().region("local").endpoint(server.endpoint()).credentials(key(), key(), None);
        let client = access.dynamodb("reader").await?;
        Ok(Some(Self { server, client, mode }))
    }

    async fn read(&self) -> Tested<Observation> {
        let mut seen = Observation::empty();
        for (t, table) in TABLES.iter().enumerate().filter(|(_, table)| !table.key.is_empty()) {
            let name = table.name.replace(' ', "_");
            let pages = self.client.scan().table_name(name).consistent_read(true).into_paginator();
            let mut items = pages.items().send();
            while let Some(item) = items.next().await {
                let item: HashMap<String, AttributeValue> = item?;
                if item.contains_key("anabranch:deleted") {
                    continue;
                }
                let row: Row = table.columns.iter().map(|(name, _)| item.get(*name).and_then(text)).collect();
                seen.tables[t].push(canonical_row(t, row));
            }
        }
        Ok(seen)
    }
}

fn text(value: &AttributeValue) -> Option<String> {
    match value {
        AttributeValue::S(v) | AttributeValue::N(v) => Some(v.clone()),
        AttributeValue::Bool(v) => Some(v.to_string()),
        AttributeValue::B(v) => Some(v.as_ref().iter().fold("\\x".to_owned(), |t, byte| format!("{t}{byte:02x}"))),
        AttributeValue::Null(_) => None,
        other => Some(format!("{other:?}")),
    }
}

#[async_trait]
impl Target for DynamoTarget {
    fn sink(&self) -> String {
        format!(
            "type = \"dynamodb\"\nregion = \"local\"\nendpoint = \"{}\"\naccess_key_id = \"local\"\n\
             secret_access_key = \"local\"\nmode = \"{}\"\ncreate_tables = true\n",
            self.server.endpoint(),
            self.mode
        )
    }

    fn transforms(&self) -> &'static str {
        TRANSFORMS
    }

    fn without(&self) -> &'static [&'static str] {
        &["log_lines"]
    }

    fn is_slow(&self) -> bool {
        true
    }

    async fn observe(&self) -> Option<Observation> {
        self.read().await.ok()
    }

    async fn crash(&self) -> Tested<bool> {
        block_in_place(|| self.server.kill9().and_then(|()| self.server.start()))?;
        Ok(true)
    }

    async fn cut(&self) -> Tested<bool> {
        // It cannot be told to; its crash cuts them too.
        Ok(false)
    }
}
