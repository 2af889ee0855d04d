//! Whole pipelines: copy, stream, stop, go on, in every order and both dialects.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_core::memory::MemorySink;
use anabranch_core::{Arrival, ByKey, ByTransaction, ByWindow, Order, RunningPipeline, Value};
use anabranch_servers::SpannerDialect;

use crate::shop::{ACCOUNTS, BALANCE, Shop, drained, start};

/// Copies while the shop is open, streams, stops and goes on twice, and compares all rows.
async fn follows(dialect: SpannerDialect, order: impl Fn() -> Order) -> Option<MemorySink> {
    let shop = Arc::new(Shop::open(dialect, 1)?);
    let sink = MemorySink::new();
    for run in 0..3 {
        let writing = {
            let shop = Arc::clone(&shop);
            tokio::task::spawn_blocking(move || {
                for n in run * 30..(run + 1) * 30 {
                    shop.pay(n);
                    if n % 10 == 9 {
                        shop.forget(n);
                    }
                }
            })
        };
        let mut running = start(shop.pipeline(&sink, order())).await;
        writing.await.unwrap();
        drained(&mut running).await;
        shop.assert_equal(&sink);
        safe_time(&running).await;
        running.stop().await.unwrap();
    }
    Some(sink)
}

/// Safe time moves on an idle source, also while its partitions split and merge, and never back.
async fn safe_time(running: &RunningPipeline) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut seen = Vec::new();
    while seen.len() < 4 {
        assert!(Instant::now() < deadline, "safe time stands at {seen:?}: {:?}", running.status());
        let now = running.status().safe_time;
        assert!(now.as_ref() >= seen.last(), "safe time went back from {seen:?} to {now:?}");
        if now.as_ref() > seen.last() {
            seen.extend(now);
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_transactions_in_google_sql() {
    let Some(sink) = follows(SpannerDialect::GoogleSql, || ByTransaction::new().into()).await else { return };
    // No reader of the target ever sees money on its way.
    let mut seen = 0;
    sink.replay(|commit, tables| {
        let accounts = anabranch_core::TableName::new("", "accounts");
        let rows = tables.rows(&accounts);
        if commit.transactions > 0 {
            seen += 1;
            let total: i64 = rows.iter().map(|r| if let Value::Int(v) = r[1] { v } else { panic!("{r:?}") }).sum();
            assert_eq!(total, ACCOUNTS * BALANCE, "commit {seen}");
        }
    });
    assert!(seen > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_transactions_in_the_postgresql_dialect() {
    follows(SpannerDialect::PostgreSql, || ByTransaction::new().into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_on_several_lanes() {
    follows(SpannerDialect::GoogleSql, || ByKey::new(4).into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows() {
    follows(SpannerDialect::PostgreSql, || ByWindow::new(Duration::from_secs(1)).lanes(2).into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_it_arrives() {
    follows(SpannerDialect::GoogleSql, || Arrival.into()).await;
}

/// The partitions that the checkpoint names have ended, and their children's children too, when the
/// pipeline goes on; a runner that is dropped instead of stopped leaves nothing behind either.
#[tokio::test(flavor = "multi_thread")]
async fn resumes_where_partitions_are_gone() {
    let Some(shop) = Shop::open(SpannerDialect::GoogleSql, 1) else { return };
    let shop = Arc::new(shop);
    let sink = MemorySink::new();
    let mut next = 0;
    for run in 0..3 {
        let mut running = start(shop.pipeline(&sink, ByTransaction::new())).await;
        drained(&mut running).await;
        shop.assert_equal(&sink);
        if run == 1 {
            drop(running);
        } else {
            running.stop().await.unwrap();
        }
        // Partitions live a second or two.
        let until = Instant::now() + Duration::from_secs(7);
        while Instant::now() < until {
            let shop = Arc::clone(&shop);
            tokio::task::spawn_blocking(move || shop.pay(next)).await.unwrap();
            next += 1;
        }
    }
    let mut running = start(shop.pipeline(&sink, ByTransaction::new())).await;
    drained(&mut running).await;
    shop.assert_equal(&sink);
    running.stop().await.unwrap();
}
