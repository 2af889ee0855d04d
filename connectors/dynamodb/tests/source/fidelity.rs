//! The fake does what DynamoDB Local does, where both can do it.

use anabranch_dynamodb_fake::Fake;
use aws_sdk_dynamodb::Client as Tables;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeValue, Delete, Put, PutRequest, ReturnValuesOnConditionCheckFailure, StreamSpecification, StreamViewType,
    TransactWriteItem, WriteRequest,
};
use aws_sdk_dynamodbstreams::Client as Streams;
use aws_sdk_dynamodbstreams::types::{ShardFilter, ShardFilterType, ShardIteratorType};

use super::conformance::create;
use super::support::access;

const TABLE: &str = "conformance";

fn n(id: i64) -> AttributeValue {
    AttributeValue::N(id.to_string())
}

fn s(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

/// The outcome of a call: `ok`, or the code of the error.
fn outcome<T, E: ProvideErrorMetadata>(result: Result<T, E>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(e) => e.code().unwrap_or("no code").to_owned(),
    }
}

/// What a server answers to the same calls, one line each.
async fn answers(endpoint: &str) -> Vec<String> {
    let tables = access(endpoint).dynamodb("test").await.expect("a client");
    let streams = access(endpoint).streams("test").await.expect("a client");
    create(&tables).await;
    let mut lines = Vec::new();
    items(&tables, &mut lines).await;
    stream(&tables, &streams, &mut lines).await;
    lines
}

async fn items(tables: &Tables, lines: &mut Vec<String>) {
    let mut say = |what: &str, said: String| lines.push(format!("{what}: {said}"));
    let put = |id: i64, v: &str| tables.put_item().table_name(TABLE).item("id", n(id)).item("v", s(v));
    say("a missing table", outcome(tables.describe_table().table_name("nobody").send().await));
    say("a table twice", {
        let again = tables.create_table().table_name(TABLE);
        let key = aws_sdk_dynamodb::types::KeySchemaElement::builder()
            .attribute_name("id")
            .key_type(aws_sdk_dynamodb::types::KeyType::Hash)
            .build()
            .unwrap();
        let id = aws_sdk_dynamodb::types::AttributeDefinition::builder()
            .attribute_name("id")
            .attribute_type(aws_sdk_dynamodb::types::ScalarAttributeType::N)
            .build()
            .unwrap();
        let billing = aws_sdk_dynamodb::types::BillingMode::PayPerRequest;
        outcome(again.key_schema(key).attribute_definitions(id).billing_mode(billing).send().await)
    });
    say("a put without its key", outcome(tables.put_item().table_name(TABLE).item("v", s("x")).send().await));
    say("a key of another type", outcome(tables.put_item().table_name(TABLE).item("id", s("x")).send().await));
    let guarded = |id: i64, v: &str| {
        put(id, v)
            .condition_expression("attribute_not_exists(#v) OR #v < :v")
            .expression_attribute_names("#v", "v")
            .expression_attribute_values(":v", s(v))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
    };
    say("a new version", outcome(guarded(1, "b").send().await));
    say("a later version", outcome(guarded(1, "c").send().await));
    let refused = guarded(1, "a").send().await;
    let winner = refused.as_ref().err().and_then(|e| e.as_service_error()).and_then(|e| match e {
        aws_sdk_dynamodb::operation::put_item::PutItemError::ConditionalCheckFailedException(e) => e.item().cloned(),
        _ => None,
    });
    say("an earlier version", outcome(refused));
    say("the winner", format!("{:?}", winner.map(|w| w["v"].clone())));

    let write = |id: i64| {
        let put = PutRequest::builder().item("id", n(id)).build().unwrap();
        WriteRequest::builder().put_request(put).build()
    };
    let batch = |ids: Vec<i64>| {
        tables.batch_write_item().request_items(TABLE, ids.into_iter().map(write).collect::<Vec<_>>()).send()
    };
    say("25 writes", outcome(batch((10..35).collect()).await));
    say("26 writes", outcome(batch((10..36).collect()).await));
    say("a key twice", outcome(batch(vec![1, 1]).await));

    let action = |id: i64, condition: Option<&str>| {
        let put = Put::builder().table_name(TABLE).item("id", n(id)).item("v", s("t"));
        let put = put.set_condition_expression(condition.map(str::to_owned)).build().unwrap();
        TransactWriteItem::builder().put(put).build()
    };
    let transact =
        |actions: Vec<TransactWriteItem>| tables.transact_write_items().set_transact_items(Some(actions)).send();
    say("100 actions", outcome(transact((100..200).map(|id| action(id, None)).collect()).await));
    say("101 actions", outcome(transact((100..201).map(|id| action(id, None)).collect()).await));
    let refused = vec![action(300, None), action(100, Some("attribute_not_exists(id)"))];
    say("a refused transaction", outcome(transact(refused).await));
    let there = tables.get_item().table_name(TABLE).key("id", n(300)).send().await.expect("get").item.is_some();
    say("what it left", there.to_string());
    let delete = Delete::builder().table_name(TABLE).key("id", n(100)).build().unwrap();
    say(
        "a delete in a transaction",
        outcome(transact(vec![TransactWriteItem::builder().delete(delete).build()]).await),
    );

    let mut seen = 0;
    for segment in 0..3 {
        let mut after = None;
        loop {
            let scan = tables.scan().table_name(TABLE).segment(segment).total_segments(3).limit(40);
            let page = scan.set_exclusive_start_key(after).send().await.expect("scan");
            seen += page.items().len();
            after = page.last_evaluated_key;
            if after.is_none() {
                break;
            }
        }
    }
    say("items in all segments", seen.to_string());
}

async fn stream(tables: &Tables, streams: &Streams, lines: &mut Vec<String>) {
    let mut say = |what: &str, said: String| lines.push(format!("{what}: {said}"));
    let switch = |on: bool| {
        let specification = StreamSpecification::builder().stream_enabled(on);
        let specification = specification.set_stream_view_type(on.then_some(StreamViewType::NewAndOldImages));
        tables.update_table().table_name(TABLE).stream_specification(specification.build().unwrap()).send()
    };
    say("enable", outcome(switch(true).await));
    say("enable twice", outcome(switch(true).await));
    let table = tables.describe_table().table_name(TABLE).send().await.expect("describe").table.expect("a table");
    let arn = table.latest_stream_arn().expect("an ARN").to_owned();
    say("the label ends the ARN", arn.ends_with(table.latest_stream_label().expect("a label")).to_string());
    for (id, v) in [(1, Some("x")), (1, Some("x")), (1, Some("y")), (1, None), (1, None), (2, Some("z"))] {
        match v {
            Some(v) => {
                tables.put_item().table_name(TABLE).item("id", n(id)).item("v", s(v)).send().await.expect("put");
            }
            None => {
                tables.delete_item().table_name(TABLE).key("id", n(id)).send().await.expect("delete");
            }
        }
    }
    let described = streams.describe_stream().stream_arn(&arn).send().await.expect("describe");
    let description = described.stream_description.expect("a description");
    let shard = description.shards().first().expect("a shard").clone();
    let id = shard.shard_id().expect("an id").to_owned();
    let range = shard.sequence_number_range().expect("a range");
    let first = range.starting_sequence_number().expect("a first number").to_owned();
    say("an open shard", range.ending_sequence_number().is_none().to_string());
    say("shards", description.shards().len().to_string());
    let filter = ShardFilter::builder().r#type(ShardFilterType::ChildShards).shard_id(&id).build();
    let children = streams.describe_stream().stream_arn(&arn).shard_filter(filter).send().await;
    say(
        "children of an open shard",
        format!("{:?}", children.map(|c| c.stream_description.map(|d| d.shards().len())).ok()),
    );

    let iterator = |kind: ShardIteratorType, number: Option<String>| {
        let call = streams.get_shard_iterator().stream_arn(&arn).shard_id(&id).shard_iterator_type(kind);
        call.set_sequence_number(number).send()
    };
    let records = async |iterator: String| {
        let page = streams.get_records().shard_iterator(iterator).send().await.expect("records");
        (page.records.unwrap_or_default(), page.next_shard_iterator)
    };
    let horizon = iterator(ShardIteratorType::TrimHorizon, None).await.expect("an iterator").shard_iterator.unwrap();
    let (all, next) = records(horizon).await;
    let events: Vec<String> = all
        .iter()
        .map(|r| {
            let data = r.dynamodb().unwrap();
            let image = |i: Option<
                &std::collections::HashMap<String, aws_sdk_dynamodbstreams::types::AttributeValue>,
            >| { i.and_then(|i| i.get("v").cloned()) };
            let (old, new) = (image(data.old_image()), image(data.new_image()));
            format!("{:?} {old:?} {new:?} {:?}", r.event_name().unwrap(), data.keys().unwrap())
        })
        .collect();
    say("records", format!("{events:#?}"));
    say(
        "whole seconds",
        all.iter()
            .all(|r| r.dynamodb().unwrap().approximate_creation_date_time().unwrap().subsec_nanos() == 0)
            .to_string(),
    );
    say("an iterator on an open shard goes on", next.is_some().to_string());
    let numbers: Vec<String> =
        all.iter().map(|r| r.dynamodb().unwrap().sequence_number().unwrap().to_owned()).collect();
    say("digits", numbers.iter().all(|n| (21..=40).contains(&n.len())).to_string());
    let count = async |kind, number| match iterator(kind, number).await {
        Ok(i) => records(i.shard_iterator.unwrap()).await.0.len().to_string(),
        Err(e) => e.code().unwrap_or("no code").to_owned(),
    };
    say("after the second", count(ShardIteratorType::AfterSequenceNumber, Some(numbers[1].clone())).await);
    say("at the second", count(ShardIteratorType::AtSequenceNumber, Some(numbers[1].clone())).await);
    say("at the shard's first number", count(ShardIteratorType::AtSequenceNumber, Some(first)).await);
    say("latest", count(ShardIteratorType::Latest, None).await);
    let nobody = streams.get_shard_iterator().stream_arn(&arn).shard_id("shardId-00000000000000000000-00000000");
    say("an unknown shard", outcome(nobody.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await));

    say("disable", outcome(switch(false).await));
    let horizon = iterator(ShardIteratorType::TrimHorizon, None).await.expect("an iterator").shard_iterator.unwrap();
    let mut next = Some(horizon);
    let mut left = 0;
    for _ in 0..5 {
        let Some(iterator) = next.take() else { break };
        let page = records(iterator).await;
        left += page.0.len();
        next = page.1;
    }
    say("what a disabled stream still gives", left.to_string());
    say("and then its shard ends", next.is_none().to_string());
    let described = streams.describe_stream().stream_arn(&arn).send().await.expect("describe");
    say("its status", format!("{:?}", described.stream_description.expect("a description").stream_status));
    say("enable again", outcome(switch(true).await));
    let table = tables.describe_table().table_name(TABLE).send().await.expect("describe").table.expect("a table");
    say("another ARN", (table.latest_stream_arn() != Some(arn.as_str())).to_string());
}

#[tokio::test]
async fn the_fake_answers_as_dynamodb_local_does() {
    let Some(local) = anabranch_servers::dynamodb() else { return };
    let fake = Fake::start().await;
    let expected = answers(&local.endpoint()).await;
    let found = answers(&fake.endpoint()).await;
    assert_eq!(found, expected, "the fake (left)");
}
