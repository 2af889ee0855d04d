//! Answers of the service as they lie in their bytes (API reference, `GetRecords`, `Scan`): texts are
//! borrowed from them, so that a page costs one pass, and no map for each item.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use anabranch_core::Timestamp;
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::attribute::{self, View};
use super::read::Tagged;

/// A page of a shard.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Records<'a> {
    #[serde(borrow)]
    records: Option<Vec<Record<'a>>>,
    /// `None`: the shard ended.
    pub(crate) next_shard_iterator: Option<String>,
}

impl<'a> Records<'a> {
    /// # Errors
    /// For what is not as the service writes it.
    pub(crate) fn read(answer: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(answer)
    }

    pub(crate) fn records(&self) -> &[Record<'a>] {
        self.records.as_deref().unwrap_or_default()
    }
}

/// A change of an item.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Record<'a> {
    #[serde(borrow, rename = "eventID")]
    pub(crate) id: Option<Text<'a>>,
    /// `INSERT`, `MODIFY` or `REMOVE`.
    #[serde(borrow, rename = "eventName")]
    pub(crate) event: Option<Text<'a>>,
    #[serde(borrow, rename = "dynamodb")]
    pub(crate) data: Option<Data<'a>>,
    #[serde(borrow, rename = "userIdentity")]
    pub(crate) user: Option<User<'a>>,
}

/// Who made a change, if it was not an application.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct User<'a> {
    #[serde(borrow, rename = "PrincipalId")]
    pub(crate) principal: Option<Text<'a>>,
}

/// What a change is of.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Data<'a> {
    approximate_creation_date_time: Option<f64>,
    #[serde(borrow)]
    pub(crate) keys: Option<Item<'a>>,
    #[serde(borrow)]
    pub(crate) new_image: Option<Item<'a>>,
    #[serde(borrow)]
    pub(crate) old_image: Option<Item<'a>>,
    #[serde(borrow)]
    pub(crate) sequence_number: Option<Text<'a>>,
    pub(crate) size_bytes: Option<u64>,
}

impl Data<'_> {
    /// When it was made, by the service's clock.
    pub(crate) fn time(&self) -> Option<Timestamp> {
        let micros = self.approximate_creation_date_time? * 1e6;
        // Seconds since 1970, up to the year 9999.
        (0.0..253_402_300_800e6).contains(&micros).then(|| Timestamp::from_micros(micros.round() as i64))
    }
}

/// A page of a scan.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Scanned<'a> {
    #[serde(borrow)]
    items: Option<Vec<Item<'a>>>,
    last_evaluated_key: Option<HashMap<String, Tagged>>,
    consumed_capacity: Option<Consumed>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Consumed {
    capacity_units: Option<f64>,
}

impl<'a> Scanned<'a> {
    /// # Errors
    /// For what is not as the service writes it.
    pub(crate) fn read(answer: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(answer)
    }

    pub(crate) fn items(&self) -> &[Item<'a>] {
        self.items.as_deref().unwrap_or_default()
    }

    /// Behind which key the next page begins; `None` at the end of the segment.
    pub(crate) fn last_key(&mut self) -> Option<HashMap<String, AttributeValue>> {
        let key = self.last_evaluated_key.take().filter(|key| !key.is_empty())?;
        Some(key.into_iter().map(|(name, v)| (name, v.0)).collect())
    }

    /// In read units.
    pub(crate) fn capacity(&self) -> Option<f64> {
        self.consumed_capacity.as_ref()?.capacity_units
    }
}

/// Text, borrowed unless something in it is escaped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(AnyText(PhantomData))
    }
}

struct AnyText<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for AnyText<'a> {
    type Value = Text<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'a>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'a>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

/// Attributes, sorted by name.
#[derive(Debug, Default)]
pub(crate) struct Item<'a>(Vec<(Text<'a>, Value<'a>)>);

impl<'a> attribute::Item for Item<'a> {
    type Attribute = Value<'a>;

    fn attribute(&self, name: &str) -> Option<&Value<'a>> {
        let at = self.0.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    fn sorted(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Item<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(Attributes(PhantomData))
    }
}

struct Attributes<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for Attributes<'a> {
    type Value = Item<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("attributes by name")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Item<'a>, M::Error> {
        let mut all: Vec<(Text<'a>, Value<'a>)> = Vec::new();
        while let Some(attribute) = map.next_entry()? {
            all.push(attribute);
        }
        all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        match all.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            None => Ok(Item(all)),
            Some(pair) => Err(M::Error::custom(format!("the attribute {:?} comes twice", pair[0].0.as_str()))),
        }
    }
}

/// An attribute's value.
#[derive(Debug)]
pub(crate) enum Value<'a> {
    S(Text<'a>),
    N(Text<'a>),
    B(Vec<u8>),
    Bool(bool),
    Null,
    Ss(Vec<Text<'a>>),
    Ns(Vec<Text<'a>>),
    Bs(Vec<Vec<u8>>),
    L(Vec<Value<'a>>),
    M(Item<'a>),
    /// Of a type that this version does not know.
    Unknown,
}

impl<'a> attribute::Attribute for Value<'a> {
    type Item = Item<'a>;
    type Text = Text<'a>;
    type Bytes = Vec<u8>;

    fn view(&self) -> View<'_, Self> {
        match self {
            Self::S(v) => View::S(v.as_str()),
            Self::N(v) => View::N(v.as_str()),
            Self::B(v) => View::B(v),
            Self::Bool(v) => View::Bool(*v),
            Self::Null => View::Null,
            Self::Ss(v) => View::Ss(v),
            Self::Ns(v) => View::Ns(v),
            Self::Bs(v) => View::Bs(v),
            Self::L(v) => View::L(v),
            Self::M(v) => View::M(v),
            Self::Unknown => View::Unknown,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(OneTag(PhantomData))
    }
}

struct OneTag<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for OneTag<'a> {
    type Value = Value<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an attribute with its type, as {\"S\": \"text\"}")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Value<'a>, M::Error> {
        let tag: Text<'de> = map.next_key()?.ok_or_else(|| M::Error::custom("an attribute has no type"))?;
        let value = match tag.as_str() {
            "S" => Value::S(map.next_value()?),
            "N" => Value::N(map.next_value()?),
            "B" => Value::B(bytes(&map.next_value::<Text<'de>>()?)?),
            "BOOL" => Value::Bool(map.next_value()?),
            "NULL" => map.next_value::<bool>().map(|_| Value::Null)?,
            "SS" => Value::Ss(map.next_value()?),
            "NS" => Value::Ns(map.next_value()?),
            "BS" => Value::Bs(map.next_value::<Vec<Text<'de>>>()?.iter().map(bytes).collect::<Result<_, _>>()?),
            "L" => Value::L(map.next_value()?),
            "M" => Value::M(map.next_value()?),
            _ => map.next_value::<IgnoredAny>().map(|_| Value::Unknown)?,
        };
        match map.next_key::<Text<'de>>()? {
            None => Ok(value),
            Some(second) => Err(M::Error::custom(format!("an attribute has a second type, {:?}", second.as_str()))),
        }
    }
}

fn bytes<E: serde::de::Error>(text: &Text<'_>) -> Result<Vec<u8>, E> {
    STANDARD.decode(text.as_str()).map_err(|e| E::custom(format!("a binary value is not base64: {e}")))
}

#[cfg(test)]
mod tests {
    use super::super::attribute::Item as _;
    use super::super::document::{Form, write_item};
    use super::super::read::{tagged_item, tests::any_attribute};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_of_a_shard() {
        let answer = r#"{
            "NextShardIterator": "arn|2",
            "Records": [{
                "awsRegion": "eu-west-1",
                "dynamodb": {
                    "ApproximateCreationDateTime": 1.795252331E9,
                    "Keys": {"id": {"N": "7"}},
                    "NewImage": {"note": {"S": "a\"b"}, "id": {"N": "7"}, "raw": {"B": "AP8="}, "of 2031": {"F64": [1.5]}},
                    "SequenceNumber": "4300000000006786886573",
                    "SizeBytes": 59,
                    "StreamViewType": "NEW_AND_OLD_IMAGES"
                },
                "eventID": "e1", "eventName": "INSERT", "eventVersion": "1.1",
                "userIdentity": {"Type": "Service", "PrincipalId": "dynamodb.amazonaws.com"}
            }, {"dynamodb": {"ApproximateCreationDateTime": 1795252331.123, "OldImage": null}}]
        }"#;
        let page = Records::read(answer.as_bytes()).unwrap();
        assert_eq!(page.next_shard_iterator.as_deref(), Some("arn|2"));
        let [first, second] = page.records() else { panic!("two records: {page:?}") };
        let data = first.data.as_ref().unwrap();
        assert_eq!(data.time(), Some(Timestamp::from_micros(1_795_252_331_000_000)));
        assert_eq!(data.sequence_number.as_ref().map(Text::as_str), Some("4300000000006786886573"));
        assert_eq!(data.size_bytes, Some(59));
        let image = data.new_image.as_ref().unwrap();
        let names: Vec<&str> = image.sorted().map(|(name, _)| name).collect();
        assert_eq!(names, ["id", "note", "of 2031", "raw"]);
        assert!(matches!(image.attribute("note"), Some(Value::S(v)) if v.as_str() == "a\"b"));
        assert!(matches!(image.attribute("raw"), Some(Value::B(v)) if v[..] == [0, 255]));
        assert!(matches!(image.attribute("of 2031"), Some(Value::Unknown)));
        assert!(image.attribute("i").is_none());
        assert_eq!(first.user.as_ref().unwrap().principal.as_ref().unwrap().as_str(), "dynamodb.amazonaws.com");
        let data = second.data.as_ref().unwrap();
        assert_eq!(data.time(), Some(Timestamp::from_micros(1_795_252_331_123_000)));
        assert!(data.old_image.is_none());
        let ended = Records::read(br#"{"Records":[]}"#).unwrap();
        assert!(ended.records().is_empty() && ended.next_shard_iterator.is_none());
    }

    #[test]
    fn a_page_of_a_scan() {
        let answer = r#"{"Count":1,"ScannedCount":1,"Items":[{"id":{"N":"1"}}],"LastEvaluatedKey":{"id":{"N":"1"}},
            "ConsumedCapacity":{"TableName":"t","CapacityUnits":0.5}}"#;
        let mut page = Scanned::read(answer.as_bytes()).unwrap();
        assert_eq!((page.items().len(), page.capacity()), (1, Some(0.5)));
        let key = HashMap::from([("id".to_owned(), AttributeValue::N("1".to_owned()))]);
        assert_eq!(page.last_key(), Some(key));
        let mut last = Scanned::read(br#"{"Count":0,"LastEvaluatedKey":{}}"#).unwrap();
        assert!(last.items().is_empty() && last.last_key().is_none());
    }

    #[test]
    fn what_no_service_writes_is_refused() {
        for bad in [
            "",
            "<html>",
            "[]",
            r#"{"Records":[{"dynamodb":{"Keys":{"id":{"N":7}}}}]}"#,
            r#"{"Records":[{"dynamodb":{"Keys":{"id":{}}}}]}"#,
            r#"{"Records":[{"dynamodb":{"Keys":{"id":{"N":"7","S":"7"}}}}]}"#,
            r#"{"Records":[{"dynamodb":{"Keys":{"id":{"N":"7"},"id":{"N":"8"}}}}]}"#,
            r#"{"Records":[{"dynamodb":{"Keys":{"id":{"B":"*"}}}}]}"#,
            r#"{"Records":[{"dynamodb":{"SizeBytes":-1}}]}"#,
            r#"{"Records":[{"eventID":"a"#,
        ] {
            assert!(Records::read(bad.as_bytes()).is_err(), "{bad}");
        }
        let torn = [br#"{"Records":[{"eventID":""#, &b"\xff\xfe\"}]}"[..]].concat();
        assert!(Records::read(&torn).is_err(), "not UTF-8");
        let never = Records::read(br#"{"Records":[{"dynamodb":{"ApproximateCreationDateTime":1e300}}]}"#).unwrap();
        assert_eq!(never.records()[0].data.as_ref().unwrap().time(), None);
    }

    proptest! {
        /// What is read from the bytes is what the client's own objects hold.
        #[test]
        fn items_are_as_the_client_has_them(item in proptest::collection::hash_map(".{1,6}", any_attribute(), 0..6)) {
            let mut text = String::new();
            write_item(&item, Form::Tagged, |_| true, &mut text).unwrap();
            let read: Item<'_> = serde_json::from_str(&text).unwrap();
            for form in [Form::Tagged, Form::Plain] {
                let (mut ours, mut theirs) = (String::new(), String::new());
                write_item(&read, form, |_| true, &mut ours).unwrap();
                write_item(&item, form, |_| true, &mut theirs).unwrap();
                prop_assert_eq!(ours, theirs);
            }
            prop_assert_eq!(tagged_item(&text).unwrap(), item);
        }

        #[test]
        fn never_a_panic(text in "[{}\\[\\]\":,SNBLM1eu \\\\]{0,40}") {
            let _ = (serde_json::from_str::<Item<'_>>(&text).is_ok(), Scanned::read(text.as_bytes()).is_ok());
        }
    }
}
