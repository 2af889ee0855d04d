//! JSON as attribute values: the other direction of `document`.

use std::collections::HashMap;
use std::fmt;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_types::Blob;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An item of tagged JSON.
pub(crate) fn tagged_item(text: &str) -> Result<HashMap<String, AttributeValue>, serde_json::Error> {
    let item: HashMap<String, Tagged> = serde_json::from_str(text)?;
    Ok(item.into_iter().map(|(name, v)| (name, v.0)).collect())
}

/// An attribute of tagged JSON.
pub(crate) fn tagged(text: &str) -> Result<AttributeValue, serde_json::Error> {
    serde_json::from_str::<Tagged>(text).map(|v| v.0)
}

/// An attribute of plain JSON: objects are maps, arrays are lists, numbers keep all their digits.
/// Nothing is a set or binary.
pub(crate) fn plain(text: &str) -> Result<AttributeValue, serde_json::Error> {
    let raw: &RawValue = serde_json::from_str(text)?;
    let text = raw.get();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let all: HashMap<String, &RawValue> = serde_json::from_str(text)?;
            let all: Result<_, _> = all.into_iter().map(|(name, v)| Ok((name, plain(v.get())?))).collect();
            AttributeValue::M(all?)
        }
        Some(b'[') => {
            let all: Vec<&RawValue> = serde_json::from_str(text)?;
            AttributeValue::L(all.into_iter().map(|v| plain(v.get())).collect::<Result<_, _>>()?)
        }
        Some(b'"') => AttributeValue::S(serde_json::from_str(text)?),
        Some(b't' | b'f') => AttributeValue::Bool(text == "true"),
        Some(b'n') | None => AttributeValue::Null(true),
        Some(_) => AttributeValue::N(text.to_owned()),
    })
}

/// An attribute of tagged JSON.
#[derive(Debug)]
pub(super) struct Tagged(pub(super) AttributeValue);

impl<'de> Deserialize<'de> for Tagged {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(OneTag).map(Tagged)
    }
}

struct OneTag;

impl<'de> Visitor<'de> for OneTag {
    type Value = AttributeValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an attribute with its type, as {\"S\": \"text\"}")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<AttributeValue, M::Error> {
        let tag: String = map.next_key()?.ok_or_else(|| M::Error::custom("an attribute has no type"))?;
        let value = match tag.as_str() {
            "S" => AttributeValue::S(map.next_value()?),
            "N" => AttributeValue::N(map.next_value()?),
            "B" => AttributeValue::B(blob::<M::Error>(&map.next_value::<String>()?)?),
            "BOOL" => AttributeValue::Bool(map.next_value()?),
            "NULL" => AttributeValue::Null(map.next_value()?),
            "SS" => AttributeValue::Ss(map.next_value()?),
            "NS" => AttributeValue::Ns(map.next_value()?),
            "BS" => {
                let all: Vec<String> = map.next_value()?;
                AttributeValue::Bs(all.iter().map(|v| blob::<M::Error>(v)).collect::<Result<_, _>>()?)
            }
            "L" => AttributeValue::L(map.next_value::<Vec<Tagged>>()?.into_iter().map(|v| v.0).collect()),
            "M" => {
                let all: HashMap<String, Tagged> = map.next_value()?;
                AttributeValue::M(all.into_iter().map(|(name, v)| (name, v.0)).collect())
            }
            other => return Err(M::Error::custom(format!("{other:?} is not a type of attribute"))),
        };
        match map.next_key::<String>()? {
            None => Ok(value),
            Some(second) => Err(M::Error::custom(format!("an attribute has a second type, {second:?}"))),
        }
    }
}

fn blob<E: serde::de::Error>(text: &str) -> Result<Blob, E> {
    STANDARD.decode(text).map(Blob::new).map_err(|e| E::custom(format!("a binary value is not base64: {e}")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::document::{Form, write, write_item};
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) fn any_attribute() -> impl Strategy<Value = AttributeValue> {
        let number = "-?[1-9][0-9]{0,37}";
        let bytes = proptest::collection::vec(any::<u8>(), 0..8).prop_map(Blob::new);
        let leaf = prop_oneof![
            ".{0,8}".prop_map(AttributeValue::S),
            number.prop_map(AttributeValue::N),
            bytes.clone().prop_map(AttributeValue::B),
            any::<bool>().prop_map(AttributeValue::Bool),
            Just(AttributeValue::Null(true)),
            proptest::collection::btree_set(".{1,5}", 1..4).prop_map(|s| AttributeValue::Ss(s.into_iter().collect())),
            proptest::collection::btree_set(number, 1..4).prop_map(|s| AttributeValue::Ns(s.into_iter().collect())),
            proptest::collection::btree_set(proptest::collection::vec(any::<u8>(), 1..4), 1..4)
                .prop_map(|s| AttributeValue::Bs(s.into_iter().map(Blob::new).collect())),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(AttributeValue::L),
                proptest::collection::hash_map(".{0,5}", inner, 0..4).prop_map(AttributeValue::M),
            ]
        })
    }

    proptest! {
        #[test]
        fn tagged_json_loses_nothing(item in proptest::collection::hash_map(".{1,6}", any_attribute(), 0..5)) {
            let mut text = String::new();
            write_item(&item, Form::Tagged, |_| true, &mut text).unwrap();
            prop_assert_eq!(tagged_item(&text).unwrap(), item);
        }

        #[test]
        fn plain_json_is_json(value in any_attribute()) {
            let mut text = String::new();
            write(&value, Form::Plain, &mut text).unwrap();
            let _: serde_json::Value = serde_json::from_str(&text).unwrap();
            let mut again = String::new();
            write(&plain(&text).unwrap(), Form::Plain, &mut again).unwrap();
            prop_assert_eq!(text, again);
        }

        #[test]
        fn never_a_panic(text in "[{}\\[\\]\":SNBL,tru01 ]{0,30}") {
            let _ = (tagged_item(&text).is_ok(), tagged(&text).is_ok(), plain(&text).is_ok());
        }
    }

    #[test]
    fn what_is_not_tagged_json_is_refused() {
        for bad in [
            "",
            "[]",
            "{\"a\":1}",
            "{\"a\":{}}",
            "{\"a\":{\"X\":1}}",
            "{\"a\":{\"B\":\"*\"}}",
            "{\"a\":{\"S\":\"x\",\"N\":\"1\"}}",
        ] {
            assert!(tagged_item(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_deepest_item_that_the_service_takes_is_read() {
        let mut value = AttributeValue::S("x".to_owned());
        for _ in 0..32 {
            value = AttributeValue::L(vec![value]);
        }
        let mut text = String::new();
        write(&value, Form::Tagged, &mut text).unwrap();
        assert_eq!(tagged(&text).unwrap(), value);
    }
}
