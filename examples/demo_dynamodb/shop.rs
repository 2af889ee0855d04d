//! The shop in DynamoDB: its tables, its first items, and who writes to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anabranch_dynamodb::types::Item;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, ScalarAttributeType};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;

use crate::dynamo::Dynamo;
use crate::tell::Done;

/// A table: its name and the attributes of its key.
pub(crate) type Table = (&'static str, &'static [&'static str]);

pub(crate) const TABLES: [Table; 2] = [("orders", &["id"]), ("customers", &["region", "id"])];

pub(crate) const ORDERS: u64 = 1_500;
const CUSTOMERS: u64 = 400;
const REGIONS: [&str; 3] = ["eu", "us", "São Paulo"];
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(20);

/// Makes and fills it.
pub(crate) fn open(dynamo: &Dynamo) -> Done {
    dynamo.create("orders", &[("id", ScalarAttributeType::N)])?;
    dynamo.create("customers", &[("region", ScalarAttributeType::S), ("id", ScalarAttributeType::N)])?;
    let orders: Vec<Item> = (1..=ORDERS).map(|id| with(order(id), "first", AttributeValue::Bool(true))).collect();
    dynamo.fill("orders", &orders)?;
    dynamo.fill("customers", &(1..=CUSTOMERS).map(customer).collect::<Vec<_>>())
}

/// How many items it was filled with.
pub(crate) fn loaded() -> u64 {
    ORDERS + CUSTOMERS
}

fn n(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn s(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

fn with(mut item: Item, name: &str, value: AttributeValue) -> Item {
    item.insert(name.to_owned(), value);
    item
}

pub(crate) fn order_key(id: u64) -> Item {
    HashMap::from([("id".to_owned(), n(id))])
}

/// An item with every type that there is.
fn order(id: u64) -> Item {
    let line = |no: u64| {
        let product = ("product".to_owned(), s(format!("Thing {}", id % 97 + no)));
        AttributeValue::M(HashMap::from([product, ("price".to_owned(), n(format!("{}.25", no + 1)))]))
    };
    let mut item = order_key(id);
    item.extend([
        ("total".to_owned(), n(format!("{}.75", id % 1000))),
        ("note".to_owned(), s(format!("it's \"number\" {id}\nä 🦀"))),
        ("paid".to_owned(), AttributeValue::Bool(id.is_multiple_of(2))),
        ("coupon".to_owned(), AttributeValue::Null(true)),
        ("exact".to_owned(), n(format!("1234567890123456789012345678901234567.{}", id % 9 + 1))),
        ("lines".to_owned(), AttributeValue::L((0..id % 3 + 1).map(line).collect())),
        ("tags".to_owned(), AttributeValue::Ss(vec!["b".to_owned(), format!("tag {}", id % 7)])),
        ("sizes".to_owned(), AttributeValue::Ns(vec!["1.5".to_owned(), (id % 5 + 2).to_string()])),
        ("picture".to_owned(), AttributeValue::B(Blob::new(id.to_be_bytes()))),
    ]);
    item
}

fn customer_key(id: u64) -> Item {
    let region = REGIONS[id as usize % REGIONS.len()];
    HashMap::from([("region".to_owned(), s(region)), ("id".to_owned(), n(id))])
}

fn customer(id: u64) -> Item {
    let mut item = customer_key(id);
    item.extend([("name".to_owned(), s(format!("O'Brien {id}"))), ("visits".to_owned(), n(0))]);
    item
}

/// Orders that are cancelled sooner or later, so that their absence tells nothing.
fn may_go(id: u64) -> bool {
    id.is_multiple_of(4)
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    newest: AtomicU64,
    written: AtomicU64,
    committed: Mutex<Option<(u64, Instant)>>,
}

/// Writes to both tables until it is stopped: orders come, change and go, and so do customers.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<Done>,
}

impl Writer {
    /// Starts it; its orders begin after `from`.
    pub(crate) fn start(dynamo: &Dynamo, from: u64) -> Self {
        let shared = Arc::new(Shared { newest: AtomicU64::new(from), ..Shared::default() });
        let (client, mine) = (dynamo.client(), Arc::clone(&shared));
        let thread = thread::spawn(move || -> Done { Runtime::new()?.block_on(write(&client, &mine, from)) });
        Self { shared, thread }
    }

    /// The newest order that stays.
    pub(crate) fn newest(&self) -> u64 {
        self.shared.newest.load(Ordering::Acquire)
    }

    /// That order, with the moment after its write; once.
    pub(crate) fn take_newest(&self) -> Option<(u64, Instant)> {
        self.shared.committed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Stops it after its write.
    pub(crate) fn stop(self) -> Done<u64> {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| "the writer panicked")??;
        Ok(self.shared.written.load(Ordering::Acquire))
    }
}

async fn write(client: &Client, shared: &Shared, from: u64) -> Done {
    let mut random = StdRng::seed_from_u64(from);
    let mut pace = tokio::time::interval(PAUSE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for id in from + 1.. {
        if shared.stop.load(Ordering::Acquire) {
            break;
        }
        client.put_item().table_name("orders").set_item(Some(order(id))).send().await?;
        if !may_go(id) {
            shared.newest.store(id, Ordering::Release);
            *shared.committed.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, Instant::now()));
        }
        let older = id.saturating_sub(random.random_range(1..200)).max(1);
        let customer = random.random_range(1..=CUSTOMERS);
        match random.random_range(0..5) {
            // Those of the first ones too: no copy may bring them back.
            0 => drop(client.delete_item().table_name("customers").set_key(Some(customer_key(customer))).send().await?),
            1 => {
                let change = client.update_item().table_name("customers").set_key(Some(customer_key(customer)));
                let change = change.update_expression("ADD visits :one").expression_attribute_values(":one", n(1));
                change.send().await?;
            }
            2 if older > from && may_go(older) => {
                client.delete_item().table_name("orders").set_key(Some(order_key(older))).send().await?;
            }
            3 => {
                let change = client.update_item().table_name("orders").set_key(Some(order_key(older)));
                let change = change.update_expression("SET paid = :yes REMOVE note").condition_expression(
                    // An order that is gone stays gone.
                    "attribute_exists(id)",
                );
                let change = change.expression_attribute_values(":yes", AttributeValue::Bool(true));
                match change.send().await {
                    Ok(_) => {}
                    Err(e) if e.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            _ => {
                let id = random.random_range(1..=ORDERS);
                let item = with(order(id), "first", n(random.random_range(0..1_000_000)));
                client.put_item().table_name("orders").set_item(Some(item)).send().await?;
            }
        }
        shared.written.fetch_add(2, Ordering::AcqRel);
        pace.tick().await;
    }
    Ok(())
}
