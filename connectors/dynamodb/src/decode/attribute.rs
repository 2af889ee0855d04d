//! One view of items: as the SDK has them, and as they lie in an answer's bytes ([`wire`](super::wire)).

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_types::Blob;

/// What an attribute is.
#[derive(Debug)]
pub(crate) enum View<'a, A: Attribute> {
    S(&'a str),
    N(&'a str),
    B(&'a [u8]),
    Bool(bool),
    Null,
    Ss(&'a [A::Text]),
    Ns(&'a [A::Text]),
    Bs(&'a [A::Bytes]),
    L(&'a [A]),
    M(&'a A::Item),
    /// A type that this version does not know.
    Unknown,
}

impl<A: Attribute> View<'_, A> {
    /// The tag that it has on the wire.
    pub(crate) fn tag(&self) -> &'static str {
        match self {
            Self::S(_) => "S",
            Self::N(_) => "N",
            Self::B(_) => "B",
            Self::Bool(_) => "BOOL",
            Self::Null => "NULL",
            Self::Ss(_) => "SS",
            Self::Ns(_) => "NS",
            Self::Bs(_) => "BS",
            Self::L(_) => "L",
            Self::M(_) => "M",
            Self::Unknown => "an unknown type",
        }
    }
}

/// An attribute value.
pub(crate) trait Attribute: Sized {
    type Item: Item<Attribute = Self>;
    type Text: AsRef<str>;
    type Bytes: AsRef<[u8]>;

    fn view(&self) -> View<'_, Self>;
}

/// Attributes by name: an item, a key, or a map within one.
pub(crate) trait Item {
    type Attribute: Attribute<Item = Self>;

    fn attribute(&self, name: &str) -> Option<&Self::Attribute>;

    /// All of them, sorted by name.
    fn sorted(&self) -> impl Iterator<Item = (&str, &Self::Attribute)>;
}

impl Item for HashMap<String, AttributeValue> {
    type Attribute = AttributeValue;

    fn attribute(&self, name: &str) -> Option<&AttributeValue> {
        self.get(name)
    }

    fn sorted(&self) -> impl Iterator<Item = (&str, &AttributeValue)> {
        let mut all: Vec<(&str, &AttributeValue)> = self.iter().map(|(name, v)| (name.as_str(), v)).collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all.into_iter()
    }
}

impl Attribute for AttributeValue {
    type Item = HashMap<String, Self>;
    type Text = String;
    type Bytes = Blob;

    fn view(&self) -> View<'_, Self> {
        match self {
            Self::S(v) => View::S(v),
            Self::N(v) => View::N(v),
            Self::B(v) => View::B(v.as_ref()),
            Self::Bool(v) => View::Bool(*v),
            Self::Null(_) => View::Null,
            Self::Ss(v) => View::Ss(v),
            Self::Ns(v) => View::Ns(v),
            Self::Bs(v) => View::Bs(v),
            Self::L(v) => View::L(v),
            Self::M(v) => View::M(v),
            _ => View::Unknown,
        }
    }
}
