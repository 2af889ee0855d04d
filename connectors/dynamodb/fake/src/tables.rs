//! The operations on tables.

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::state::State;

/// The value of a key of the input that has to be text.
pub(crate) fn text<'a>(input: &'a Value, key: &str) -> Result<&'a str, Failure> {
    input[key].as_str().ok_or_else(|| Failure::validation(format!("{key} is missing")))
}

impl State {
    pub(crate) fn table_name(&self, input: &Value) -> Result<String, Failure> {
        let name = text(input, "TableName")?;
        if self.tables.contains_key(name) {
            return Ok(name.to_owned());
        }
        Err(Failure::not_found(format!("Requested resource not found: Table: {name} not found")))
    }

    pub(crate) fn create(&mut self, input: &Value) -> Result<Value, Failure> {
        let name = text(input, "TableName")?.to_owned();
        if self.tables.contains_key(&name) {
            return Err(Failure::new("ResourceInUseException", format!("Table already exists: {name}")));
        }
        let mut schema = input["KeySchema"].as_array().cloned().unwrap_or_default();
        schema.sort_by_key(|k| k["KeyType"] != "HASH");
        let definitions = input["AttributeDefinitions"].as_array().cloned().unwrap_or_default();
        let mut key = Vec::new();
        for part in &schema {
            let attribute = text(part, "AttributeName")?;
            let definition = definitions.iter().find(|d| d["AttributeName"] == attribute);
            let kind = definition.ok_or_else(|| Failure::validation("a key attribute is not defined"))?;
            key.push((attribute.to_owned(), text(kind, "AttributeType")?.to_owned()));
        }
        self.create_table(&name, key);
        self.stream_specification(&name, input)?;
        Ok(json!({ "TableDescription": self.description(&name) }))
    }

    pub(crate) fn describe(&mut self, input: &Value) -> Result<Value, Failure> {
        let name = self.table_name(input)?;
        Ok(json!({ "Table": self.description(&name) }))
    }

    pub(crate) fn update_table(&mut self, input: &Value) -> Result<Value, Failure> {
        let name = self.table_name(input)?;
        self.stream_specification(&name, input)?;
        Ok(json!({ "TableDescription": self.description(&name) }))
    }

    pub(crate) fn delete_table(&mut self, input: &Value) -> Result<Value, Failure> {
        let name = self.table_name(input)?;
        let description = self.description(&name);
        self.tables.remove(&name);
        Ok(json!({ "TableDescription": description }))
    }

    fn stream_specification(&mut self, name: &str, input: &Value) -> Result<(), Failure> {
        let specification = &input["StreamSpecification"];
        let enabled = self.tables[name].stream.as_ref().is_some_and(|arn| self.streams[arn].enabled);
        match specification["StreamEnabled"].as_bool() {
            Some(true) if enabled => Err(Failure::validation("Table already has an enabled stream")),
            Some(true) => {
                self.enable_stream(name, specification["StreamViewType"].as_str().unwrap_or("NEW_AND_OLD_IMAGES"));
                Ok(())
            }
            Some(false) if enabled => {
                self.disable_stream(name);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn description(&self, name: &str) -> Value {
        let table = &self.tables[name];
        let kinds = ["HASH", "RANGE"];
        let schema: Vec<Value> = table
            .key
            .iter()
            .zip(kinds)
            .map(|((attribute, _), kind)| json!({ "AttributeName": attribute, "KeyType": kind }))
            .collect();
        let definitions: Vec<Value> = table
            .key
            .iter()
            .map(|(attribute, kind)| json!({ "AttributeName": attribute, "AttributeType": kind }))
            .collect();
        let mut description = json!({
            "TableName": name, "TableStatus": "ACTIVE", "KeySchema": schema, "AttributeDefinitions": definitions,
            "ItemCount": table.items.len(), "TableSizeBytes": table.items.len() * 100,
            "TableArn": format!("arn:aws:dynamodb:local:000000000000:table/{name}"),
        });
        if let Some(arn) = &table.stream {
            let stream = &self.streams[arn];
            description["LatestStreamArn"] = json!(arn);
            description["LatestStreamLabel"] = json!(stream.label);
            if stream.enabled {
                description["StreamSpecification"] = json!({ "StreamEnabled": true, "StreamViewType": stream.view });
            }
        }
        description
    }
}
