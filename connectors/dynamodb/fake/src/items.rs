//! The operations on items.

use std::collections::HashSet;
use std::ops::Bound;

use serde_json::{Value, json};

use crate::expression;
use crate::failure::Failure;
use crate::state::{Item, State, object, place};

/// The largest item.
const ITEM_BYTES: usize = 400 * 1024;

/// An object of the input, as an item.
fn item(value: &Value) -> Result<Item, Failure> {
    let object = value.as_object().ok_or_else(|| Failure::validation("an item is missing"))?;
    Ok(object.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// A write: the table, the key or the item, and its condition.
struct Write {
    table: String,
    change: Result<Item, Item>,
}

impl State {
    fn current(&self, table: &str, key: &Item) -> Option<&Item> {
        let table = &self.tables[table];
        table.items.get(&place(&table.key, key))
    }

    fn check_key(&self, table: &str, given: &Item) -> Result<(), Failure> {
        for (name, kind) in &self.tables[table].key {
            let value = given.get(name).and_then(|v| v.get(kind));
            let empty = value.and_then(Value::as_str).is_none_or(str::is_empty);
            if empty {
                let problem = format!("One or more parameter values were invalid: the key {name} is missing or empty");
                return Err(Failure::validation(problem));
            }
        }
        let bytes = object(given).to_string().len();
        match bytes > ITEM_BYTES {
            true => Err(Failure::validation("Item size has exceeded the maximum allowed size")),
            false => Ok(()),
        }
    }

    /// Checks a write and its condition.
    fn admit(&self, input: &Value, put: bool) -> Result<Write, Failure> {
        let table = self.table_name(input)?;
        let given = item(&input[if put { "Item" } else { "Key" }])?;
        self.check_key(&table, &given)?;
        let current = self.current(&table, &given);
        if let Some(condition) = input["ConditionExpression"].as_str()
            && !expression::holds(condition, input, current)?
        {
            let mut failure = Failure::new("ConditionalCheckFailedException", "The conditional request failed");
            if input["ReturnValuesOnConditionCheckFailure"] == "ALL_OLD" {
                failure.extra = current.map(|c| ("Item", object(c)));
            }
            return Err(failure);
        }
        Ok(Write { table, change: if put { Err(given) } else { Ok(given) } })
    }

    fn perform(&mut self, input: &Value, put: bool) -> Result<Value, Failure> {
        let write = self.admit(input, put)?;
        let old = self.write(&write.table, write.change, None);
        Ok(match old.filter(|_| input["ReturnValues"] == "ALL_OLD") {
            Some(old) => json!({ "Attributes": object(&old) }),
            None => json!({}),
        })
    }

    pub(crate) fn put_item(&mut self, input: &Value) -> Result<Value, Failure> {
        self.perform(input, true)
    }

    pub(crate) fn delete_item(&mut self, input: &Value) -> Result<Value, Failure> {
        self.perform(input, false)
    }

    pub(crate) fn get_item(&mut self, input: &Value) -> Result<Value, Failure> {
        let table = self.table_name(input)?;
        let key = item(&input["Key"])?;
        Ok(self.current(&table, &key).map_or_else(|| json!({}), |found| json!({ "Item": object(found) })))
    }

    pub(crate) fn batch_write(&mut self, input: &Value) -> Result<Value, Failure> {
        let tables = input["RequestItems"].as_object().cloned().unwrap_or_default();
        let mut writes = Vec::new();
        let mut seen = HashSet::new();
        for (table, requests) in tables {
            self.table_name(&json!({ "TableName": table }))?;
            for request in requests.as_array().cloned().unwrap_or_default() {
                let put = request.get("PutRequest");
                let given = item(put.map_or(&request["DeleteRequest"]["Key"], |p| &p["Item"]))?;
                self.check_key(&table, &given)?;
                if !seen.insert((table.clone(), place(&self.tables[&table].key, &given))) {
                    return Err(Failure::validation("Provided list of item keys contains duplicates"));
                }
                let change = if put.is_some() { Err(given) } else { Ok(given) };
                writes.push((table.clone(), change, request));
            }
        }
        if writes.len() > 25 {
            return Err(Failure::validation("Too many items requested for the BatchWriteItem call"));
        }
        let mut unprocessed = serde_json::Map::new();
        for (n, (table, change, request)) in writes.into_iter().enumerate() {
            if n < self.batch_takes {
                self.write(&table, change, None);
            } else if let Some(left) = unprocessed.entry(table).or_insert_with(|| json!([])).as_array_mut() {
                left.push(request);
            }
        }
        Ok(json!({ "UnprocessedItems": unprocessed }))
    }

    pub(crate) fn transact_write(&mut self, input: &Value) -> Result<Value, Failure> {
        let actions = input["TransactItems"].as_array().cloned().unwrap_or_default();
        if actions.len() > 100 {
            return Err(Failure::validation("Member must have length less than or equal to 100"));
        }
        let mut writes = Vec::new();
        let mut reasons = Vec::new();
        let mut refused = false;
        for action in &actions {
            let checked = match (action.get("Put"), action.get("Delete"), action.get("ConditionCheck")) {
                (Some(put), ..) => self.admit(put, true).map(Some),
                (_, Some(delete), _) => self.admit(delete, false).map(Some),
                (.., Some(check)) => self.admit(check, false).map(|_| None),
                _ => return Err(Failure::validation("an action is not made up here")),
            };
            match checked {
                Ok(write) => {
                    writes.extend(write);
                    reasons.push(json!({ "Code": "None" }));
                }
                Err(failure) if failure.code == "ConditionalCheckFailedException" => {
                    refused = true;
                    reasons.push(json!({ "Code": "ConditionalCheckFailed", "Message": failure.message }));
                }
                Err(failure) => return Err(failure),
            }
        }
        if refused {
            let mut failure = Failure::new("TransactionCanceledException", "Transaction cancelled, see the reasons");
            failure.extra = Some(("CancellationReasons", Value::Array(reasons)));
            return Err(failure);
        }
        for write in writes {
            self.write(&write.table, write.change, None);
        }
        Ok(json!({}))
    }

    pub(crate) fn scan(&mut self, input: &Value) -> Result<Vec<u8>, Failure> {
        let name = self.table_name(input)?;
        let table = &self.tables[&name];
        let segments = input["TotalSegments"].as_u64().unwrap_or(1);
        let segment = input["Segment"].as_u64().unwrap_or(0);
        let after = item(&input["ExclusiveStartKey"]).ok().map(|key| place(&table.key, &key));
        // By the partition key, which the place begins with.
        let part = |at: &str| {
            at.split('\0')
                .next()
                .unwrap_or_default()
                .bytes()
                .fold(7, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(b)))
        };
        let mine = |at: &str| segments == 1 || part(at) % segments == segment;
        let limit = input["Limit"].as_u64().map_or(self.items_a_page, |l| l as usize);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = table.items.range((from, Bound::Unbounded)).filter(|(at, _)| mine(at));
        let items: Vec<&Item> = rest.map(|(_, found)| found).take(limit).collect();
        let full = items.len() == limit;
        let key = |last: &Item| table.key.iter().filter_map(|(n, _)| Some((n.clone(), last.get(n)?.clone()))).collect();
        let units = json!({ "TableName": name, "CapacityUnits": self.scan_units });
        let page = Scanned {
            count: items.len(),
            last_evaluated_key: items.last().filter(|_| full).map(|last| key(last)),
            consumed_capacity: (input["ReturnConsumedCapacity"] == "TOTAL").then_some(units),
            items,
        };
        Ok(serde_json::to_vec(&page).unwrap_or_default())
    }
}

/// A page, written as it lies there: a load run is to measure the one who asks.
#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Scanned<'a> {
    items: Vec<&'a Item>,
    count: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_evaluated_key: Option<Item>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumed_capacity: Option<Value>,
}
