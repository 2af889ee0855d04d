//! The tables of the target: for preflight, and to create missing ones.

use std::collections::HashMap;

use anabranch_core::{
    Column, Contract, DataType, Error, ErrorKind, Fidelity, Result, TableName, TableSchema, TargetSchema, TargetTable,
};
use async_trait::async_trait;
use aws_sdk_dynamodb::types::{DeleteRequest, ScalarAttributeType, Select, WriteRequest};
use tokio::time::sleep;

use super::item::can_be_key;
use super::progress::{begin_anew, incomplete};
use super::table::{KeyPart, Table};
use super::{DynamoDbSink, guarded};
use crate::calls::{Stop, call};
use crate::limiter::backoff;
use crate::store;
use crate::types;

#[async_trait]
impl TargetSchema for DynamoDbSink {
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>> {
        super::table::check_name(&name.name)?;
        let Some(table) = self.shared.table(&name.name).await? else { return Ok(None) };
        let mut columns = Vec::new();
        for part in table.parts() {
            columns.extend(part.columns().map(|column| key_column(column, &part.kind)));
        }
        let key = (0..columns.len() as u16).collect();
        Ok(Some(TargetTable {
            schema: TableSchema { name: table.table_name(), columns, key },
            unique: Vec::new(),
            references: Vec::new(),
            required: Vec::new(),
            warnings: self.warnings(&table).await?,
        }))
    }

    fn contract(&self, column: &Column, existing: Option<&Column>) -> Contract {
        match existing {
            Some(key) => key_contract(column, &ScalarAttributeType::from(key.native.as_str())),
            None => contract(column),
        }
    }

    fn planned(&self, table: &TableSchema, index: usize) -> Contract {
        let column = &table.columns[index];
        let planned = Table::planned(table).ok();
        let part = planned.as_ref().and_then(|t| t.parts().find(|p| p.columns().any(|c| c == column.name)));
        match part {
            Some(part) => key_contract(column, &part.kind),
            None => contract(column),
        }
    }

    fn takes_any_column(&self) -> bool {
        true
    }

    fn create_statement(&self, table: &TableSchema) -> Result<String> {
        let table = Table::planned(table)?;
        let part = |p: &KeyPart, role: &str| {
            (
                format!("AttributeName={},AttributeType={}", p.name, p.kind.as_str()),
                format!("AttributeName={},KeyType={role}", p.name),
            )
        };
        let mut parts = vec![part(&table.hash, "HASH")];
        parts.extend(table.range.as_ref().map(|p| part(p, "RANGE")));
        let (definitions, keys): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        Ok(format!(
            "aws dynamodb create-table --table-name {} --billing-mode PAY_PER_REQUEST \
             --attribute-definitions {} --key-schema {}",
            table.name,
            definitions.join(" "),
            keys.join(" ")
        ))
    }

    async fn create(&self, table: &TableSchema) -> Result<()> {
        let table = Table::planned(table)?;
        let client = self.shared.client().await?;
        let key = |p: &'_ KeyPart| (p.name.clone(), p.kind.clone());
        let (hash, range) = (key(&table.hash), table.range.as_ref().map(key));
        let range = range.as_ref().map(|(name, kind)| (name.as_str(), kind.clone()));
        store::create(client, &table.name, (&hash.0, hash.1.clone()), range).await?;
        store::until_active(client, &table.name).await?;
        if self.shared.settings.stamps_versions() {
            store::enable_time_to_live(client, &table.name, &self.shared.settings.expires_attribute).await?;
        }
        Ok(())
    }

    async fn clear(&self, name: &TableName) -> Result<()> {
        // What an older writer may still send, and what the sidecar remembers, is then of an older
        // generation than what is written from here on.
        if let Some(identity) = self.shared.claimed() {
            begin_anew(&self.shared, &identity).await?;
        }
        let Some(table) = self.shared.table(&name.name).await? else {
            return Err(Error::config(&name.name, "this table is not in the target"));
        };
        let limiter = self.shared.limiter(&table.name);
        // No item has this attribute: tombstones go too.
        let mut scan = guarded::Scan::keys(&table, "anabranch:none");
        while let Some(keys) = scan.next(self.shared.client().await?, &limiter).await? {
            for run in keys.chunks(25) {
                self.delete(&table, run).await?;
            }
        }
        Ok(())
    }

    async fn is_empty(&self, name: &TableName) -> Result<bool> {
        let limiter = self.shared.limiter(&name.name);
        let request = self
            .shared
            .client()
            .await?
            .scan()
            .table_name(&name.name)
            .consistent_read(true)
            .select(Select::Count)
            .filter_expression("attribute_not_exists(#deleted)")
            .expression_attribute_names("#deleted", &self.shared.settings.deleted_attribute);
        let mut after = None;
        loop {
            let request = request.clone().set_exclusive_start_key(after.take());
            let page = call(&limiter, &name.name, || request.clone().send()).await.map_err(Stop::into_error)?;
            if page.count() > 0 {
                return Ok(false);
            }
            match page.last_evaluated_key.filter(|key| !key.is_empty()) {
                Some(key) => after = Some(key),
                None => return Ok(true),
            }
        }
    }
}

impl DynamoDbSink {
    async fn warnings(&self, table: &Table) -> Result<Vec<String>> {
        let settings = &self.shared.settings;
        if !settings.stamps_versions() {
            return Ok(Vec::new());
        }
        let active = match store::time_to_live(self.shared.client().await?, &table.name).await {
            Ok(active) => active,
            // It is no reason not to write to the table.
            Err(e) if e.kind() == ErrorKind::Config => {
                return Ok(vec![format!("whether tombstones are removed is not known: {}", e.report())]);
            }
            Err(e) => return Err(e),
        };
        let wanted = &settings.expires_attribute;
        Ok(match active {
            Some(attribute) if attribute == *wanted => Vec::new(),
            Some(attribute) => vec![format!(
                "its time to live goes by {attribute}: tombstones stay unless sink.expires_attribute = \"{attribute}\""
            )],
            None => vec![format!("it has no time to live on {wanted}: tombstones of deleted items stay")],
        })
    }

    async fn delete(&self, table: &Table, keys: &[types::Item]) -> Result<()> {
        let limiter = self.shared.limiter(&table.name);
        let request = |key: &types::Item| -> Result<WriteRequest> {
            let delete = DeleteRequest::builder().set_key(Some(key.clone())).build().map_err(incomplete)?;
            Ok(WriteRequest::builder().delete_request(delete).build())
        };
        let mut left = keys.iter().map(request).collect::<Result<Vec<_>>>()?;
        let mut failures = 0;
        while !left.is_empty() {
            let cuts = limiter.cuts();
            let request = self.shared.client().await?.batch_write_item();
            let request = request.set_request_items(Some(HashMap::from([(table.name.clone(), left)])));
            let answer = call(&limiter, &table.name, || request.clone().send()).await.map_err(Stop::into_error)?;
            left = answer.unprocessed_items.and_then(|mut all| all.remove(&table.name)).unwrap_or_default();
            if !left.is_empty() {
                limiter.cut_since(cuts);
                failures += 1;
                sleep(backoff(failures)).await;
            }
        }
        Ok(())
    }
}

fn key_column(name: &str, kind: &ScalarAttributeType) -> Column {
    let data_type = match kind {
        ScalarAttributeType::N => DataType::Decimal { precision: None, scale: None },
        ScalarAttributeType::B => DataType::Bytes,
        _ => DataType::Text { max_chars: None },
    };
    Column { native: kind.as_str().to_owned(), nullable: false, ..Column::new(name, data_type) }
}

const NUMBERS: &str = "refuses more than 38 digits, magnitudes beyond 1E-130 and 9.99E125, NaN and infinities; \
                       zeros at its end are not kept";

fn key_contract(column: &Column, kind: &ScalarAttributeType) -> Contract {
    let native = kind.as_str();
    let refuses = "refuses NULL and the empty value";
    match kind {
        _ if !can_be_key(&column.data_type) => {
            Contract::new(native, Fidelity::Unsupported).note("a document or a list cannot be a key")
        }
        ScalarAttributeType::N if types::is_numeric(&column.data_type) => {
            Contract::new(native, Fidelity::Exact).note(NUMBERS)
        }
        ScalarAttributeType::B if column.data_type == DataType::Bytes => {
            Contract::new(native, Fidelity::Exact).note(refuses)
        }
        ScalarAttributeType::S if types::is_numeric(&column.data_type) => {
            Contract::new(native, Fidelity::Widening).note("as text; ".to_owned() + NUMBERS)
        }
        ScalarAttributeType::S if column.data_type != DataType::Bytes => {
            Contract::new(native, Fidelity::Exact).note(refuses)
        }
        _ => Contract::new(native, Fidelity::Unsupported).note("the key attribute has another type"),
    }
}

/// What becomes of a column that is no part of a key. DynamoDB's attributes have the type of the
/// value that is written, so nothing has to be there before.
fn contract(column: &Column) -> Contract {
    if types::is_whole_item(column) {
        let whole = if column.native == types::ITEM { Fidelity::Exact } else { Fidelity::Widening };
        return Contract::new("item", whole).note("the item itself");
    }
    match &column.data_type {
        DataType::Bool => Contract::new("BOOL", Fidelity::Exact),
        data_type if types::is_numeric(data_type) => {
            let narrow = matches!(data_type, DataType::Decimal { precision: Some(p), .. } if *p <= 38)
                || matches!(data_type, DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt64);
            let note = if narrow { "zeros at its end are not kept; refuses NaN" } else { NUMBERS };
            Contract::new("N", Fidelity::Exact).note(note)
        }
        DataType::Bytes => Contract::new("B", Fidelity::Exact),
        DataType::Json if column.native == types::ATTRIBUTE => Contract::new("attribute", Fidelity::Exact),
        DataType::Json => Contract::new("M", Fidelity::Widening)
            .note("as a document: spaces and the order of names are not kept; refuses numbers of more than 38 digits"),
        DataType::Array(_) if matches!(column.native.as_str(), "SS" | "NS" | "BS") => {
            Contract::new(column.native.clone(), Fidelity::Exact).note("an empty set is stored as NULL")
        }
        DataType::Array(_) => {
            Contract::new("L", Fidelity::Widening).note("as a list; refuses arrays of several dimensions")
        }
        DataType::Timestamp | DataType::TimestampTz => {
            Contract::new("S", Fidelity::Widening).note("ISO 8601, which sorts")
        }
        DataType::Text { .. } | DataType::Char { .. } | DataType::Enum { .. } => Contract::new("S", Fidelity::Exact),
        _ => Contract::new("S", Fidelity::Widening).note("as text"),
    }
}
