//! The version of an item: which state of the source it has.
//!
//! Four bytes of the generation, then the rank of the change that the item is as of. DynamoDB
//! compares binary values byte by byte, so a later state has a larger version. A row of a snapshot
//! has the generation alone: it is before every change of the stream.
//!
//! The generation grows when the ranks begin anew: another slot, another stream ARN, a copy that is
//! done again. It begins with the seconds since 1970 at which its source was seen first, so that it
//! grows also after the bookkeeping tables were removed.

use anabranch_core::{ChangeRef, Unit, UnitKind};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_types::Blob;

/// The name that the runtime gives the partition of dead letters that it tries again. Their ranks
/// there are made up; the true one is in the token, which is the letter's id: `partition:rank`.
pub(crate) const RETRIED: &str = "dead-letters";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Version(Vec<u8>);

impl Version {
    /// Of a change with this rank.
    pub(crate) fn new(generation: u32, rank: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(4 + rank.len());
        bytes.extend_from_slice(&generation.to_be_bytes());
        bytes.extend_from_slice(rank);
        Self(bytes)
    }

    /// Of an attribute that holds one.
    pub(crate) fn read(attribute: &AttributeValue) -> Option<Self> {
        attribute.as_b().ok().filter(|b| b.as_ref().len() >= 4).map(|b| Self(b.as_ref().to_vec()))
    }

    pub(crate) fn generation(&self) -> u32 {
        // `read` and `new` see to the length.
        self.0.first_chunk().map_or(0, |four| u32::from_be_bytes(*four))
    }

    pub(crate) fn attribute(&self) -> AttributeValue {
        AttributeValue::B(Blob::new(self.0.clone()))
    }

    /// As text, for the origin marker and for people.
    pub(crate) fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// Gives the changes of one unit their versions.
#[derive(Debug)]
pub(crate) struct Stamps {
    generation: u32,
    /// The rank of the letters in a unit that tries them again.
    retried: Option<Vec<u8>>,
    snapshot: bool,
}

impl Stamps {
    pub(crate) fn of(unit: &Unit, generation: u32) -> Self {
        let letters = unit.progress.iter().find(|p| p.partition.as_str() == RETRIED);
        let retried = letters.and_then(|p| rank_of_letter(&p.position.token));
        Self { generation, retried, snapshot: unit.kind == UnitKind::Snapshot }
    }

    pub(crate) fn get(&self, change: ChangeRef<'_>) -> Version {
        match &self.retried {
            _ if self.snapshot => Version::new(self.generation, &[]),
            Some(rank) => Version::new(self.generation, rank),
            None => Version::new(self.generation, change.rank().as_bytes()),
        }
    }
}

/// The rank in a letter's id. Letters that are tried together belong to one transaction, and the
/// last of them names it.
fn rank_of_letter(token: &[u8]) -> Option<Vec<u8>> {
    let id = std::str::from_utf8(token).ok()?;
    let digits = id.rsplit_once(':')?.1.as_bytes();
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_state_has_a_larger_version() {
        let snapshot = Version::new(7, &[]);
        let first = Version::new(7, &[0, 0, 0, 1]);
        let second = Version::new(7, &[0, 0, 1, 0]);
        let anew = Version::new(8, &[]);
        assert!(snapshot < first && first < second && second < anew);
        assert_eq!(Version::read(&second.attribute()), Some(second.clone()));
        assert_eq!((second.generation(), second.hex().as_str()), (7, "0000000700000100"));
        assert_eq!(Version::read(&AttributeValue::S("x".to_owned())), None);
    }

    #[test]
    fn a_letter_tells_its_rank() {
        assert_eq!(rank_of_letter(b"shard:7:00ff"), Some(vec![0, 255]));
        assert_eq!(rank_of_letter(b"00ff"), None);
        assert_eq!(rank_of_letter(b"slot:0"), None);
    }
}
