//! One view of attribute values: the two SDKs have a type each for the same thing.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue as Stored;
use aws_sdk_dynamodbstreams::types::AttributeValue as Streamed;
use aws_smithy_types::Blob;

/// What an attribute is.
#[derive(Debug)]
pub(crate) enum View<'a, A> {
    S(&'a str),
    N(&'a str),
    B(&'a [u8]),
    Bool(bool),
    Null,
    Ss(&'a [String]),
    Ns(&'a [String]),
    Bs(&'a [Blob]),
    L(&'a [A]),
    M(&'a HashMap<String, A>),
    /// A type that this version of the SDK does not know.
    Unknown,
}

impl<A> View<'_, A> {
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

/// An attribute value of either SDK.
pub(crate) trait Attribute: Sized {
    fn view(&self) -> View<'_, Self>;
}

macro_rules! attribute {
    ($type:ty) => {
        impl Attribute for $type {
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
    };
}

attribute!(Stored);
attribute!(Streamed);
