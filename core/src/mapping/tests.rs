//! Preflight against a target made up for it.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::preflight::{LossyConsent, Preflight, preflight};
use super::{Contract, Fidelity, TargetSchema, TargetTable};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Column, DataType, TableName, TableSchema};
use crate::sink::{Lane, Sink, SinkInfo, SinkWriter};

/// A target without schemas: decimals are lossy in it, JSON cannot be stored, text is exact.
#[derive(Debug, Default)]
struct Fake {
    tables: BTreeMap<String, TargetTable>,
    created: std::sync::Mutex<Vec<String>>,
}

#[async_trait]
impl Sink for Fake {
    fn info(&self) -> SinkInfo {
        SinkInfo { name: "fake", transactional: true, max_lanes: 4, schemas: false }
    }

    async fn open(&self, _lane: Lane) -> Result<Box<dyn SinkWriter>> {
        Err(Error::fatal("nothing is written here"))
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        Some(self)
    }
}

#[async_trait]
impl TargetSchema for Fake {
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>> {
        match name.name.as_str() {
            "a_view" => Err(Error::config("a_view", "is a view").hint("send it elsewhere")),
            "unreachable" => Err(Error::transient("no connection")),
            name => Ok(self.tables.get(name).cloned()),
        }
    }

    fn contract(&self, column: &Column, existing: Option<&Column>) -> Contract {
        let native = existing.map_or("made".to_owned(), |c| c.native.clone());
        match column.data_type {
            DataType::Decimal { .. } => Contract::new(native, Fidelity::Lossy).note("15 digits"),
            DataType::Json => Contract::new(native, Fidelity::Unsupported),
            _ => Contract::new(native, Fidelity::Exact),
        }
    }

    fn create_statement(&self, table: &TableSchema) -> Result<String> {
        Ok(format!("CREATE TABLE {}", table.name.name))
    }

    async fn create(&self, table: &TableSchema) -> Result<()> {
        self.created.lock().unwrap().push(table.name.name.clone());
        Ok(())
    }

    async fn clear(&self, _name: &TableName) -> Result<()> {
        Ok(())
    }

    async fn is_empty(&self, _name: &TableName) -> Result<bool> {
        Ok(true)
    }
}

impl Fake {
    fn with(tables: impl IntoIterator<Item = TargetTable>) -> Self {
        let tables = tables.into_iter().map(|t| (t.schema.name.name.clone(), t)).collect();
        Self { tables, ..Self::default() }
    }
}

fn decimal() -> DataType {
    DataType::Decimal { precision: Some(10), scale: Some(2) }
}

fn source(name: &str, columns: &[(&str, DataType)]) -> TableSchema {
    let columns = columns.iter().map(|(n, t)| Column::new(*n, t.clone())).collect();
    TableSchema { name: TableName::new("public", name), columns, key: vec![0] }
}

fn id(name: &str) -> TableSchema {
    source(name, &[("id", DataType::Int64)])
}

/// The table that fits this one.
fn fitting(table: &TableSchema) -> TargetTable {
    let schema = TableSchema { name: TableName::new("", &table.name.name), ..table.clone() };
    TargetTable { schema, unique: Vec::new(), references: Vec::new(), required: Vec::new(), warnings: Vec::new() }
}

async fn check(tables: &[TableSchema], fake: &Fake, lossy: &[&str], create: bool) -> Preflight {
    let lossy: Vec<String> = lossy.iter().map(|e| (*e).to_owned()).collect();
    preflight(tables, fake, &LossyConsent::parse(&lossy).unwrap(), create).await.unwrap()
}

fn problems(found: &Preflight) -> Vec<String> {
    found.tables.iter().flat_map(|t| &t.problems).map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_column_that_nobody_would_fill() {
    let table = source("orders", &[("id", DataType::Int64)]);
    let mut there = fitting(&table);
    there.schema.columns.push(Column { nullable: false, ..Column::new("stamp", DataType::Int64) });
    there.required.push("stamp".to_owned());
    let found = check(&[table], &Fake::with([there]), &[], false).await;
    assert_eq!(problems(&found).len(), 1);
    assert!(problems(&found)[0].contains("orders.stamp"), "{:?}", problems(&found));
}

#[tokio::test]
async fn a_target_that_fits() {
    let table = source("orders", &[("id", DataType::Int64), ("note", DataType::Json)]);
    let mut there = fitting(&table);
    there.schema.columns.push(Column { nullable: false, ..Column::new("stamp", DataType::Int64) });
    there.warnings.push("a trigger will fire".to_owned());
    let table = source("orders", &[("id", DataType::Int64)]);
    let found = check(&[table], &Fake::with([there]), &[], false).await;
    // The column stamp is not sent, and has a default: nothing to say of it.
    found.verdict().unwrap();
    assert_eq!(found.tables[0].notes, ["a trigger will fire"]);
    assert!(found.pinned_groups().is_empty());
}

#[tokio::test]
async fn what_is_lost_needs_consent_by_name() {
    let table = source("orders", &[("id", DataType::Int64), ("price", decimal())]);
    let fake = Fake::with([fitting(&table)]);
    let tables = [table];
    let error = check(&tables, &fake, &[], false).await.verdict().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert!(
        text.starts_with("public.orders.price: decimal(10,2) loses something in decimal(10,2): 15 digits"),
        "{text}"
    );
    assert!(
        text.contains("[mapping] lossy = [\"public.orders.price\"]") && text.contains("\"type:decimal\""),
        "{text}"
    );
    for consent in ["orders.price", "public.orders.price", "type:decimal"] {
        let found = check(&tables, &fake, &[consent], false).await;
        found.verdict().unwrap();
        assert!(found.to_string().contains("lossy (accepted)"), "{found}");
    }
}

#[tokio::test]
async fn every_problem_is_listed_with_its_fix() {
    let table = source(
        "orders",
        &[
            ("id", DataType::Int64),
            ("Note", DataType::Date),
            ("gone", DataType::Date),
            ("doc", DataType::Json),
            ("sum", DataType::Int64),
        ],
    );
    let mut there = fitting(&table);
    there.schema.key = vec![];
    there.schema.columns[1].name = "note".to_owned();
    there.schema.columns[2].name = "other".to_owned();
    there.schema.columns[4].generated = true;
    let tables = [table, id("nowhere"), id("a_view")];
    let found = check(&tables, &Fake::with([there]), &[], false).await;
    let error = found.verdict().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    for part in [
        "in 7 places",
        "public.orders.Note: orders has no such column (the target has note, which differs in case",
        "public.orders.gone: orders has no such column (add the column",
        "public.orders.doc: json cannot be stored in json",
        "public.orders.sum: the target computes this column itself",
        "public.orders: the source's key is (id), the primary key of orders is (none) (make a primary key",
        "public.nowhere: the target has no table nowhere (create it, or set create_tables = true in [sink])",
        "a_view: is a view (send it elsewhere)",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[tokio::test]
async fn generated_in_source_and_target() {
    let mut table = source("sums", &[("id", DataType::Int64), ("twice", DataType::Int64)]);
    table.columns[1].generated = true;
    let found = check(std::slice::from_ref(&table), &Fake::with([fitting(&table)]), &[], false).await;
    found.verdict().unwrap();
    assert_eq!(found.tables[0].columns[1].fidelity, None);
}

#[tokio::test]
async fn missing_tables_are_planned_and_created() {
    let fake = Fake::with([fitting(&id("there"))]);
    let tables = [id("there"), id("new"), source("lossy", &[("id", DataType::Int64), ("price", decimal())])];
    let found = check(&tables, &fake, &["type:decimal"], true).await;
    found.verdict().unwrap();
    assert!(found.to_string().contains("new will be created:\nCREATE TABLE new"), "{found}");
    found.create_missing(&fake).await.unwrap();
    assert_eq!(*fake.created.lock().unwrap(), ["new", "lossy"]);
    assert_eq!(problems(&check(&tables, &fake, &[], true).await).len(), 1, "the lossy column");
}

#[tokio::test]
async fn two_tables_for_one_name() {
    let other = TableSchema { name: TableName::new("sales", "orders"), ..id("orders") };
    let fake = Fake::with([fitting(&id("orders"))]);
    let found = check(&[id("orders"), other, id("Orders")], &fake, &[], true).await;
    let problems = problems(&found);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("public.orders and sales.orders all map to the table orders"), "{problems:?}");
    assert!(found.tables[2].notes.iter().any(|n| n.contains("only in case")), "{:?}", found.tables[2].notes);
}

#[tokio::test]
async fn keys() {
    let table = source("t", &[("a", DataType::Int64), ("b", DataType::Int64)]);
    let pair = TableSchema { key: vec![1, 0], ..table.clone() };
    // The order of columns in a key does not matter.
    let both = TargetTable { schema: TableSchema { key: vec![0, 1], ..fitting(&table).schema }, ..fitting(&table) };
    check(std::slice::from_ref(&pair), &Fake::with([both.clone()]), &[], false).await.verdict().unwrap();
    // A subset of it does.
    assert_eq!(problems(&check(std::slice::from_ref(&table), &Fake::with([both]), &[], false).await).len(), 1);
    // A unique key will do, and the primary key then counts as a further one.
    let unique = TargetTable { unique: vec![vec!["b".to_owned(), "a".to_owned()]], ..fitting(&table) };
    let found = check(&[pair], &Fake::with([unique]), &[], false).await;
    found.verdict().unwrap();
    assert_eq!(found.tables[0].unique, [["a"]]);
    assert!(found.pinned_groups().contains_key(&table.name));
    // Without a key there is nothing to match, but something to say.
    let keyless = TableSchema { key: vec![], ..table.clone() };
    let found = check(&[keyless], &Fake::with([fitting(&table)]), &[], false).await;
    found.verdict().unwrap();
    assert_eq!(found.tables[0].notes.len(), 2, "{:?}", found.tables[0].notes);
}

#[tokio::test]
async fn groups_of_tables_that_belong_together() {
    let refers = |name: &str, to: &[&str]| TargetTable {
        references: to.iter().map(|t| TableName::new("", *t)).collect(),
        ..fitting(&id(name))
    };
    let unique = TargetTable { unique: vec![vec![]], ..fitting(&id("unique")) };
    let fake = Fake::with([
        refers("lines", &["orders"]),
        refers("orders", &["customers", "not_replicated"]),
        refers("customers", &[]),
        refers("tree", &["tree"]),
        refers("lonely", &["not_replicated"]),
        unique,
    ]);
    let names = ["lines", "orders", "customers", "tree", "lonely", "unique"];
    let groups = check(&names.map(id), &fake, &[], false).await.pinned_groups();
    let group = |name: &str| groups.get(&TableName::new("public", name)).copied();
    assert!(group("lines").is_some());
    assert_eq!(group("lines"), group("orders"));
    assert_eq!(group("lines"), group("customers"));
    assert_eq!(group("lonely"), None);
    assert!(group("tree").is_some() && group("tree") != group("lines"));
    assert!(group("unique").is_some() && group("unique") != group("tree"));
    // Other tables, in another order, do not change the groups of these.
    let again = check(&["unique", "lonely"].map(id), &fake, &[], false).await.pinned_groups();
    assert_eq!(again[&TableName::new("public", "unique")], group("unique").unwrap());
}

#[tokio::test]
async fn the_report_is_aligned() {
    let table = source("orders", &[("id", DataType::Int64), ("price", decimal())]);
    let found = check(&[table.clone(), id("é")], &Fake::with([fitting(&table)]), &[], true).await;
    let text = found.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "table          column  source type    target type    fidelity  note");
    assert_eq!(lines[1], "public.orders  id      int64          int64          exact");
    assert_eq!(lines[2], "               price   decimal(10,2)  decimal(10,2)  lossy     15 digits");
    assert_eq!(lines[3], "public.é       id      int64          made           exact");
    assert!(text.contains("\nproblems:\n  public.orders.price: "), "{text}");
}

#[tokio::test]
async fn a_target_that_cannot_be_asked_is_an_error() {
    let error = preflight(&[id("unreachable")], &Fake::default(), &LossyConsent::default(), true).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
}
