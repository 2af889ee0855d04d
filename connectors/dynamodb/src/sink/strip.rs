//! Removing what the sink has added to items, at a cut-over.

use std::sync::Arc;

use anabranch_core::{Error, Result};

use super::guarded::each;
use super::table::Table;
use super::{DynamoDbSink, Shared};
use crate::calls::{Stop, call};
use crate::limiter::Limiter;
use crate::types::Item;

/// What was removed from a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stripped {
    /// Items that lost their marks.
    pub items: u64,
    /// Tombstones that were deleted.
    pub tombstones: u64,
}

impl DynamoDbSink {
    /// Removes versions, origin markers and tombstones from a table, once the applications have
    /// moved to it.
    ///
    /// Only when no pipeline writes to the table any more and none will go on: what was stripped is
    /// no longer protected from late writes. An item that changes meanwhile keeps the change. It can
    /// be called again after an error.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config) if there is no such table.
    pub async fn strip(&self, table: &str) -> Result<Stripped> {
        let shared = &self.shared;
        let Some(table) = shared.table(table).await? else {
            return Err(Error::config(table, "this table is not in the target"));
        };
        let limiter = shared.limiter(&table.name);
        let mut stripped = Stripped::default();
        let mut after: Option<Item> = None;
        loop {
            let request = scan(shared, &table).await?.set_exclusive_start_key(after.take());
            let page = call(&limiter, &table.name, || request.clone().send()).await.map_err(Stop::into_error)?;
            let (dead, live): (Vec<Item>, Vec<Item>) = page
                .items
                .unwrap_or_default()
                .into_iter()
                .partition(|item| item.contains_key(&shared.settings.deleted_attribute));
            stripped.items += live.len() as u64;
            stripped.tombstones += dead.len() as u64;
            let most = shared.settings.concurrency;
            each(dead, most, |item| bury(shared, &table, &limiter, item)).await?;
            each(live, most, |item| clean(shared, &table, &limiter, item)).await?;
            match page.last_evaluated_key.filter(|key| !key.is_empty()) {
                Some(key) => after = Some(key),
                None => return Ok(stripped),
            }
        }
    }
}

/// The names under which requests here know the attributes.
fn marks(shared: &Shared) -> Vec<(&'static str, &str)> {
    let s = &shared.settings;
    let mut all = vec![("#v", s.version_attribute.as_str()), ("#deleted", s.deleted_attribute.as_str())];
    all.extend(s.origin_attribute.as_deref().map(|origin| ("#origin", origin)));
    all
}

async fn scan(
    shared: &Shared,
    table: &Table,
) -> Result<aws_sdk_dynamodb::operation::scan::builders::ScanFluentBuilder> {
    let marks = marks(shared);
    let filter: Vec<String> = marks.iter().map(|(name, _)| format!("attribute_exists({name})")).collect();
    let keys: Vec<String> = (0..table.parts().count()).map(|n| format!("#k{n}")).collect();
    let mut request = shared
        .client()
        .await?
        .scan()
        .table_name(&table.name)
        .consistent_read(true)
        .filter_expression(filter.join(" OR "))
        .projection_expression(format!("{}, #deleted", keys.join(", ")));
    for (name, attribute) in marks {
        request = request.expression_attribute_names(name, attribute);
    }
    for (name, part) in keys.iter().zip(table.parts()) {
        request = request.expression_attribute_names(name, &part.name);
    }
    Ok(request)
}

async fn bury(shared: &Shared, table: &Arc<Table>, limiter: &Arc<Limiter>, item: Item) -> Result<()> {
    let request = shared
        .client()
        .await?
        .delete_item()
        .table_name(&table.name)
        .set_key(Some(key_of(table, &item)))
        // Not if an application has written the item since.
        .condition_expression("attribute_exists(#deleted)")
        .expression_attribute_names("#deleted", &shared.settings.deleted_attribute);
    match call(limiter, &table.name, || request.clone().send()).await {
        Ok(_) | Err(Stop::Condition(_)) => Ok(()),
        Err(stop) => Err(stop.into_error()),
    }
}

async fn clean(shared: &Shared, table: &Arc<Table>, limiter: &Arc<Limiter>, item: Item) -> Result<()> {
    let marks = marks(shared);
    let names: Vec<&str> = marks.iter().map(|(name, _)| *name).filter(|name| *name != "#deleted").collect();
    let mut request = shared
        .client()
        .await?
        .update_item()
        .table_name(&table.name)
        .set_key(Some(key_of(table, &item)))
        .update_expression(format!("REMOVE {}", names.join(", ")))
        // Not if it was deleted since: an update would make an empty item of it.
        .condition_expression("attribute_exists(#k) AND attribute_not_exists(#deleted)")
        .expression_attribute_names("#k", &table.hash.name);
    for (name, attribute) in marks {
        request = request.expression_attribute_names(name, attribute);
    }
    match call(limiter, &table.name, || request.clone().send()).await {
        Ok(_) | Err(Stop::Condition(_)) => Ok(()),
        Err(stop) => Err(stop.into_error()),
    }
}

fn key_of(table: &Table, item: &Item) -> Item {
    table.parts().filter_map(|part| Some((part.name.clone(), item.get(&part.name)?.clone()))).collect()
}
