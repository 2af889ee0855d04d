//! Bad input: each error names what is wrong and the fix.

use anabranch_core::{ErrorKind, Source};
use anabranch_dynamodb::{DeclaredColumn, DynamoDb, DynamoDbSourceConfig, OnMismatch};
use anabranch_dynamodb_fake::{n, s};

use super::support::{Bench, orders, put, shop, source};

async fn refused(source: &DynamoDb) -> (ErrorKind, String) {
    let error = source.check(None).await.expect_err("an error");
    let again = source.prepare(None).await.expect_err("an error");
    assert_eq!(error.kind(), again.kind());
    (error.kind(), error.report())
}

#[tokio::test]
async fn a_missing_table_is_named() {
    let fake = shop().await;
    let (kind, said) = refused(&source(&fake.endpoint()).table("oders")).await;
    assert_eq!(kind, ErrorKind::Config);
    assert!(said.starts_with("source.tables: there is no table oders") && said.contains(&fake.endpoint()), "{said}");
}

#[tokio::test]
async fn a_disabled_stream_is_enabled_if_that_is_allowed() {
    let fake = shop().await;
    fake.state().disable_stream("orders");
    let forbidden = orders(&fake).create(false);
    let (kind, said) = refused(&forbidden).await;
    assert_eq!(kind, ErrorKind::Config);
    assert!(said.contains("update-table --table-name orders") && said.contains("create = true"), "{said}");

    let statements = orders(&fake).check(None).await.expect("check");
    assert_eq!(statements.len(), 1);
    assert!(statements[0].contains("StreamViewType=NEW_AND_OLD_IMAGES"), "{statements:?}");
    assert!(!fake.state().stream("orders").enabled, "a check changes nothing");
    let source = orders(&fake);
    source.prepare(None).await.expect("prepare");
    assert!(fake.state().stream("orders").enabled);
    assert_eq!(source.check(None).await.expect("check"), Vec::<String>::new());
}

#[tokio::test]
async fn a_stream_without_items_is_refused() {
    let fake = shop().await;
    for (view, ok) in [("KEYS_ONLY", false), ("OLD_IMAGE", false), ("NEW_IMAGE", true), ("NEW_AND_OLD_IMAGES", true)] {
        {
            let mut state = fake.state();
            state.disable_stream("orders");
            state.enable_stream("orders", view);
        }
        match orders(&fake).check(None).await {
            Ok(_) => assert!(ok, "{view}"),
            Err(error) => {
                assert!(!ok, "{view}: {error}");
                assert_eq!(error.kind(), ErrorKind::Config);
                assert!(error.report().contains(view) && error.report().contains("NEW_AND_OLD_IMAGES"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn echoes_cannot_be_told_without_old_images() {
    let fake = shop().await;
    {
        let mut state = fake.state();
        state.disable_stream("orders");
        state.enable_stream("orders", "NEW_IMAGE");
    }
    let (kind, said) = refused(&orders(&fake).skip_origins(vec!["back".to_owned()])).await;
    assert_eq!(kind, ErrorKind::Config);
    assert!(said.starts_with("source.skip_origins: "), "{said}");
}

#[tokio::test]
async fn a_stream_of_new_images_replicates() {
    let bench = Bench::new().await;
    {
        let mut state = bench.fake.state();
        state.disable_stream("orders");
        state.enable_stream("orders", "NEW_IMAGE");
    }
    (0..9).for_each(|id| put(&bench.fake, id, 1));
    bench.fake.delete("orders", &[("id", n(4))]);
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn a_missing_right_is_named() {
    let bench = Bench::new().await;
    for (operation, action) in [
        ("DescribeTable", "dynamodb:DescribeTable"),
        ("DescribeStream", "dynamodb:DescribeStream"),
        ("GetShardIterator", "dynamodb:GetShardIterator"),
        ("GetRecords", "dynamodb:GetRecords"),
    ] {
        // More than once: a call may be dropped before its answer is seen.
        bench.fake.fail(operation, "AccessDeniedException", 9);
        let error = bench.failure().await;
        assert_eq!(error.kind(), ErrorKind::Config, "{operation}: {error}");
        assert!(error.report().contains(&format!("allow the action {action}")), "{}", error.report());
        bench.fake.heal();
    }
    bench.fake.fail("DescribeTable", "UnrecognizedClientException", 1);
    let error = bench.failure().await;
    assert!(error.report().contains("access key"), "{}", error.report());
}

#[tokio::test]
async fn an_unknown_endpoint_is_named() {
    for endpoint in ["http://127.0.0.1:1", "http://no-such-host.invalid:8000"] {
        let (kind, said) = refused(&source(endpoint).table("orders")).await;
        assert_eq!(kind, ErrorKind::Transient, "a server that is down is waited for");
        assert!(said.contains(endpoint) && said.contains("endpoint"), "{said}");
    }
    let error = source("localhost:8000").table("orders").check(None).await.expect_err("no address");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().starts_with("source.endpoint: "), "{error}");
}

fn configured(toml: &str) -> anabranch_core::Result<DynamoDb> {
    let config: DynamoDbSourceConfig = toml::from_str(toml).expect("TOML");
    DynamoDb::try_from(config)
}

#[test]
fn bad_keys_are_named() {
    for (toml, key) in [
        ("tables = []", "source.tables"),
        ("tables = ['a', 'a']", "source.tables"),
        ("tables = ['a']\naccess_key_id = 'x'", "source.secret_access_key"),
        ("tables = ['a']\npoll_min_ms = 0", "source.poll_min_ms"),
        ("tables = ['a']\npoll_max_ms = 60000", "source.poll_min_ms"),
        ("tables = ['a']\nmax_concurrent_reads = 0", "source.max_concurrent_reads"),
        ("tables = ['a']\nscan_segments = 0", "source.scan_segments"),
        ("tables = ['a']\nscan_capacity = -1.0", "source.scan_capacity"),
        ("tables = ['a']\nspool = ''", "source.spool"),
        ("tables = ['a']\nspool_max_gb = 1.0", "source.spool_max_gb"),
        ("tables = ['a']\nspool = 'x'\nspool_max_gb = 0.0", "source.spool_max_gb"),
        ("tables = ['a']\ncolumns = [{ name = 'x', type = 'decimal(2,3)' }]", "source.columns"),
        ("tables = ['a']\ncolumns = [{ table = 'b', name = 'x', type = 'text' }]", "source.columns"),
        ("tables = ['a']\ndocument_column = ''", "source.document_column"),
    ] {
        let error = configured(toml).expect_err(toml);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(&format!("{key}: ")), "{toml}: {error}");
    }
    let _ = configured("tables = ['a']\nregion = 'eu-west-1'\ncolumns = [{ name = 'x', type = 'decimal(12,2)' }]")
        .expect("good");
    assert!(toml::from_str::<DynamoDbSourceConfig>("tables = ['a']\ntable = 'b'").is_err(), "an unknown key");
}

#[tokio::test]
async fn columns_have_to_go_with_the_key() {
    let fake = shop().await;
    let error = orders(&fake).document_column("id").check(None).await.expect_err("taken");
    assert!(error.to_string().starts_with("source.document_column: id"), "{error}");
}

#[tokio::test]
async fn an_attribute_that_does_not_fit_is_named() {
    let bench = Bench::new().await;
    let total = DeclaredColumn { table: None, name: "total".to_owned(), data_type: "int32".to_owned() };
    bench.fake.put("orders", &[("id", n(7)), ("total", s("many"))]);
    let mut running = bench.pipeline("test", orders(&bench.fake).column(total.clone())).start().await.expect("start");
    let error = running.wait().await.expect_err("a mismatch");
    let said = error.report();
    assert_eq!(error.kind(), ErrorKind::Config, "{said}");
    assert!(said.contains("total") && said.contains(r#"{"id":7}"#) && said.contains("on_mismatch"), "{said}");
    let lenient = orders(&bench.fake).column(total).on_mismatch(OnMismatch::Null);
    let running = bench.pipeline("test", lenient).start().await.expect("start");
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}
