//! The operations on streams.

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::state::{Shard, State};
use crate::tables::text;

/// How long an iterator is good for.
const ITERATOR_MS: u64 = 15 * 60 * 1000;

impl State {
    fn arn(&self, input: &Value) -> Result<String, Failure> {
        let arn = text(input, "StreamArn")?;
        if self.streams.contains_key(arn) {
            return Ok(arn.to_owned());
        }
        Err(Failure::not_found(format!("Requested resource not found: Stream: {arn} not found")))
    }

    pub(crate) fn describe_stream(&mut self, input: &Value) -> Result<Value, Failure> {
        let arn = self.arn(input)?;
        let hide = self.hide_children > 0;
        self.hide_children = self.hide_children.saturating_sub(1);
        let hide_second = self.hide_second_child > 0;
        self.hide_second_child = self.hide_second_child.saturating_sub(1);
        let stream = &self.streams[&arn];
        let elder = |id: &String, parent: &String| {
            stream.shards.range(..id.clone()).any(|(_, other)| other.parent.as_ref() == Some(parent))
        };
        let after = input["ExclusiveStartShardId"].as_str().unwrap_or_default();
        let parent = input["ShardFilter"]["ShardId"].as_str().filter(|_| self.knows_filter);
        let is_closed = |id: &String| stream.shards.get(id).is_none_or(|s| s.ended.is_some());
        let shown = stream.shards.iter().filter(|(id, shard)| {
            id.as_str() > after
                && parent.is_none_or(|p| shard.parent.as_deref() == Some(p))
                && !(hide && shard.parent.as_ref().is_some_and(is_closed))
                && !(hide_second && shard.parent.as_ref().is_some_and(|p| elder(id, p)))
        });
        let mut shards: Vec<(&String, &Shard)> = shown.collect();
        let more = shards.len() > self.shards_a_page;
        shards.truncate(self.shards_a_page);
        let described: Vec<Value> = shards
            .iter()
            .map(|(id, shard)| {
                let mut range = json!({ "StartingSequenceNumber": shard.first.to_string() });
                if let Some((ended, _)) = shard.ended {
                    range["EndingSequenceNumber"] = json!(ended.to_string());
                }
                let mut described = json!({ "ShardId": id, "SequenceNumberRange": range });
                if let Some(parent) = &shard.parent {
                    described["ParentShardId"] = json!(parent);
                }
                described
            })
            .collect();
        let mut description = json!({
            "StreamArn": arn, "StreamLabel": stream.label, "StreamViewType": stream.view, "Shards": described,
            "StreamStatus": if stream.enabled { "ENABLED" } else { "DISABLED" },
        });
        if let Some((last, _)) = shards.last().filter(|_| more) {
            description["LastEvaluatedShardId"] = json!(last);
        }
        Ok(json!({ "StreamDescription": description }))
    }

    pub(crate) fn get_iterator(&mut self, input: &Value) -> Result<Value, Failure> {
        let arn = self.arn(input)?;
        let id = text(input, "ShardId")?;
        self.asked.insert(id.to_owned());
        let stream = &self.streams[&arn];
        let shard = stream.shards.get(id).ok_or_else(|| missing(id))?;
        let number = || -> Result<u128, Failure> {
            text(input, "SequenceNumber")?.parse().map_err(|_| Failure::validation("Invalid SequenceNumber"))
        };
        let next = match text(input, "ShardIteratorType")? {
            "TRIM_HORIZON" => shard.trimmed + 1,
            "LATEST" => shard.records.back().map_or(shard.first, |r| r.sequence + 1),
            "AT_SEQUENCE_NUMBER" => number()?,
            "AFTER_SEQUENCE_NUMBER" => number()? + 1,
            other => return Err(Failure::validation(format!("{other} is not a type of iterator"))),
        };
        check_trimmed(shard, next)?;
        Ok(json!({ "ShardIterator": self.iterator(&arn, id, next) }))
    }

    fn iterator(&mut self, arn: &str, shard: &str, next: u128) -> String {
        self.iterators += 1;
        format!("{arn}|{shard}|{next}|{}|{}", self.now(), self.iterators)
    }

    pub(crate) fn get_records(&mut self, input: &Value) -> Result<Vec<u8>, Failure> {
        let iterator = text(input, "ShardIterator")?.to_owned();
        let parts: Vec<&str> = iterator.split('|').collect();
        let [arn, id, next, made, number] = parts[..] else { return Err(Failure::validation("Invalid ShardIterator")) };
        let bad = |_| Failure::validation("Invalid ShardIterator");
        let next: u128 = next.parse().map_err(bad)?;
        let made: u64 = made.parse().map_err(bad)?;
        let number: u64 = number.parse().map_err(bad)?;
        if number <= self.iterators_from || self.now() - made > ITERATOR_MS {
            return Err(Failure::new("ExpiredIteratorException", "The shard iterator has expired"));
        }
        let stream = self.streams.get(arn).ok_or_else(|| missing(id))?;
        let shard = stream.shards.get(id).ok_or_else(|| missing(id))?;
        check_trimmed(shard, next)?;
        let empty = self.empty_pages > 0;
        let limit = if empty { 0 } else { self.records_a_page };
        let rest = shard.records.range(shard.records.partition_point(|r| r.sequence < next)..);
        let left = rest.len();
        let page: Vec<_> = rest.take(limit).collect();
        let following = page.last().map_or(next, |r| r.sequence + 1);
        let drained = shard.ended.is_some() && left == page.len();
        let records = page.iter().map(|r| &r.json).collect();
        // The number of the iterator that the page ends with.
        let made = self.iterators + 1;
        let iterator = |now| format!("{arn}|{id}|{following}|{now}|{made}");
        let page = Records { records, next_shard_iterator: (!drained).then(|| iterator(self.now())) };
        let answer = serde_json::to_vec(&page).unwrap_or_default();
        self.iterators = made;
        self.empty_pages = self.empty_pages.saturating_sub(1);
        Ok(answer)
    }
}

/// A page, written as it lies there: a load run is to measure the one who asks.
#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Records<'a> {
    records: Vec<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_shard_iterator: Option<String>,
}

fn missing(shard: &str) -> Failure {
    Failure::not_found(format!("Requested resource not found: Shard: {shard} not found"))
}

fn check_trimmed(shard: &Shard, next: u128) -> Result<(), Failure> {
    match next <= shard.trimmed {
        true => Err(Failure::new("TrimmedDataAccessException", "The requested records are beyond the trim horizon")),
        false => Ok(()),
    }
}
