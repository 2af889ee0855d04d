//! Describing, creating and emptying tables.

use anabranch_core::mapping::preflight::{LossyConsent, preflight};
use anabranch_core::memory::MemorySource;
use anabranch_core::{Column, DataType, ErrorKind, Fidelity, Pipeline, TableName, TableSchema, TargetSchema};
use anabranch_sqlite::Sqlite;

use crate::support::*;

#[tokio::test]
async fn describes_what_is_there() {
    let target = Target::new(
        "CREATE TABLE owners (id INTEGER PRIMARY KEY);
         CREATE TABLE Cars (plate TEXT COLLATE NOCASE, country TEXT, owner INTEGER REFERENCES owners (id),
             vin VARCHAR(17) NOT NULL UNIQUE, price DECIMAL(10,2), loud TEXT AS (upper(vin)), any_at_all,
             PRIMARY KEY (country, plate));
         CREATE UNIQUE INDEX cars_lower ON Cars (lower(vin));
         CREATE UNIQUE INDEX cars_some ON Cars (price) WHERE price > 0;
         CREATE INDEX cars_plain ON Cars (price);
         CREATE TRIGGER cars_audit AFTER INSERT ON Cars BEGIN SELECT 1; END;
         CREATE TABLE tight (id INT PRIMARY KEY, x ANY) STRICT;
         CREATE VIEW v AS SELECT 1",
    );
    let cars = target.sqlite.describe(&TableName::new("public", "cars")).await.unwrap().unwrap();
    assert_eq!(cars.schema.name, TableName::new("", "Cars"));
    let natives: Vec<_> = cars.schema.columns.iter().map(|c| c.native.as_str()).collect();
    assert_eq!(natives, ["TEXT COLLATE NOCASE", "TEXT", "INTEGER", "VARCHAR(17)", "DECIMAL(10,2)", "TEXT", ""]);
    assert_eq!(cars.schema.key, [1, 0]);
    assert_eq!(cars.unique, [vec!["vin".to_owned()], vec![], vec![]]);
    assert_eq!(cars.references, [TableName::new("", "owners")]);
    assert!(cars.schema.columns[5].generated && !cars.schema.columns[3].nullable);
    for part in ["foreign keys (to owners)", "trigger cars_audit", "plate by NOCASE"] {
        assert!(cars.warnings.iter().any(|w| w.contains(part)), "{part}: {:?}", cars.warnings);
    }
    let tight = target.sqlite.describe(&TableName::new("", "tight")).await.unwrap().unwrap();
    assert_eq!(tight.schema.columns[1].native, "ANY (strict)");
    assert!(target.sqlite.describe(&TableName::new("", "nowhere")).await.unwrap().is_none());
    let error = target.sqlite.describe(&TableName::new("", "v")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test]
async fn contracts_of_columns_that_are_there() {
    use Fidelity::*;
    let target = Target::new("");
    let decimal = DataType::Decimal { precision: None, scale: None };
    let cases = [
        (text(), "TEXT", Exact),
        (text(), "INTEGER", Lossy),
        (text(), "DATETIME", Lossy),
        (DataType::TimestampTz, "DATETIME", Widening),
        (DataType::Uuid, "NUMERIC", Widening),
        (DataType::Json, "JSON", Lossy),
        (DataType::Bit { length: Some(3), varying: false }, "INT", Lossy),
        (DataType::Enum { labels: vec!["a".into()] }, "NUMERIC", Widening),
        (DataType::Enum { labels: vec!["1".into()] }, "NUMERIC", Lossy),
        (decimal.clone(), "TEXT", Exact),
        (decimal.clone(), "NUMERIC", Lossy),
        (decimal.clone(), "REAL", Lossy),
        (DataType::Int64, "BIGINT", Exact),
        (DataType::Int64, "DOUBLE", Lossy),
        (DataType::UInt64, "BIGINT", Exact),
        (DataType::UInt64, "TEXT", Widening),
        (DataType::Float64, "REAL", Exact),
        (DataType::Float64, "REAL (strict)", Exact),
        (DataType::Float64, "ANY (strict)", Exact),
        (DataType::Bytes, "NUMERIC", Exact),
        (DataType::Bytes, "TEXT (strict)", Unsupported),
        (text(), "INTEGER (strict)", Unsupported),
        (text(), "TEXT COLLATE NOCASE", Lossy),
        (DataType::Int64, "INTEGER COLLATE NOCASE", Exact),
    ];
    for (source, native, fidelity) in cases {
        let existing = Column { native: native.to_owned(), ..Column::new("c", text()) };
        let contract = target.sqlite.contract(&Column::new("c", source.clone()), Some(&existing));
        assert_eq!(contract.fidelity, fidelity, "{source} in {native}: {}", contract.note);
        assert!(fidelity < Lossy || !contract.note.is_empty(), "{source} in {native}");
    }
}

#[tokio::test]
async fn creates_clears_and_tells_whether_it_is_empty() {
    let target = Target::new("");
    let t = items();
    let name = t.name.clone();
    let sql = target.sqlite.create_statement(&t).unwrap();
    assert!(sql.contains("\"id\" INTEGER NOT NULL PRIMARY KEY") && sql.ends_with("STRICT"), "{sql}");
    target.sqlite.create(&t).await.unwrap();
    assert_eq!(target.sqlite.create(&t).await.unwrap_err().kind(), ErrorKind::Config);
    assert!(target.sqlite.is_empty(&name).await.unwrap());
    apply(&target, &[Do::Insert(t.clone(), item(1, "a", "x"))]).await.unwrap();
    assert!(!target.sqlite.is_empty(&name).await.unwrap());
    target.sqlite.clear(&name).await.unwrap();
    assert!(target.sqlite.is_empty(&name).await.unwrap());

    let pair = table("pair", &[("a", text()), ("b", DataType::Uuid), ("c", DataType::Float32)], 2);
    let sql = target.sqlite.create_statement(&pair).unwrap();
    assert!(sql.contains("PRIMARY KEY (\"a\", \"b\")") && sql.contains("\"c\" ANY"), "{sql}");
    let reserved = table("sqlite_things", &[("a", text())], 1);
    assert_eq!(target.sqlite.create_statement(&reserved).unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn preflight_over_real_tables() {
    let target = Target::new(
        "CREATE TABLE customers (id INTEGER PRIMARY KEY, email TEXT UNIQUE);
         CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER REFERENCES customers (id), price NUMERIC)",
    );
    let decimal = DataType::Decimal { precision: Some(10), scale: Some(2) };
    let tables = [
        (*table("customers", &[("id", DataType::Int64), ("email", text())], 1)).clone(),
        (*table("orders", &[("id", DataType::Int64), ("customer", DataType::Int64), ("price", decimal)], 1)).clone(),
        (*items()).clone(),
    ];
    let found = preflight(&tables, &target.sqlite, &LossyConsent::default(), true).await.unwrap();
    let error = found.verdict().unwrap_err().to_string();
    assert!(error.starts_with("public.orders.price: decimal(10,2) loses something in NUMERIC: "), "{error}");
    let consent = LossyConsent::parse(&["orders.price".to_owned()]).unwrap();
    let found = preflight(&tables, &target.sqlite, &consent, true).await.unwrap();
    found.verdict().unwrap();
    println!("{found}");
    let groups = found.pinned_groups();
    assert_eq!(groups.len(), 2);
    assert_eq!(groups[&tables[0].name], groups[&tables[1].name]);
    found.create_missing(&target.sqlite).await.unwrap();
    let again = preflight(&tables, &target.sqlite, &consent, false).await.unwrap();
    again.verdict().unwrap();
    assert!(again.tables.iter().all(|t| t.exists));
}

#[tokio::test]
async fn a_check_makes_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replica.db");
    let source = MemorySource::new("db").table(TableSchema::clone(&items()));
    let pipeline = |path: &std::path::Path| {
        let builder = Pipeline::builder("check").source(source.clone()).sink(Sqlite::open(path));
        builder.create_tables(true).build().unwrap()
    };
    let checked = pipeline(&path).check().await.unwrap();
    assert!(checked.tables[0].create.is_some() && checked.verdict().is_ok(), "{checked}");
    assert!(pipeline(&path).stored_status().await.unwrap().is_none());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let error = pipeline(&folder.path().join("missing/replica.db")).check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");

    // The same handle finds what was made after it had looked.
    let sink = Sqlite::open(&path);
    assert!(sink.describe(&items().name).await.unwrap().is_none());
    sink.create(&items()).await.unwrap();
    assert!(sink.describe(&items().name).await.unwrap().is_some());
}
