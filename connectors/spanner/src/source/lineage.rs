//! How the partitions of a change stream are named, and which follow which.
//!
//! The root stands for the query without a token, which gives the initial partitions. With immutable
//! key ranges a partition is named by its token, and its parents are those that Spanner tells.
//!
//! With mutable key ranges a partition lives long, and rows move into and out of it. There each is cut
//! into parts at such events, so that the rule for all partitions (a child is read when its parents are
//! durable) makes a move-in wait for the move-out:
//!
//! ```text
//!   P2  ──part──┬─ gate P2 ──────┐
//!               └─ next P2 ...   │      rows move at T from P2 to P1
//!   P1  ──part──── gate P1 ──────┴── next P1 ...
//! ```
//!
//! A gate has no changes; it tells that everything of its partition up to T is durable. Both sides
//! name the part after the event in the same way, whichever comes first.

use anabranch_core::{Partition, PartitionId, Position};

use super::place;
use crate::client::Instant;
use crate::decode::Children;

/// The query without a token.
const ROOT: &str = "root";

/// What a partition stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The query without a token.
    Root,
    /// This token's.
    Token(String),
    /// Nothing to read.
    Gate,
}

/// The partition that gives the initial ones.
pub(crate) fn root(start: Instant) -> Partition {
    Partition { id: PartitionId::new(ROOT), parents: Vec::new(), start: Some(place::before(start)) }
}

pub(crate) fn root_id() -> PartitionId {
    PartitionId::new(ROOT)
}

/// What is meant by a name. `mutable`: the stream has mutable key ranges.
pub(crate) fn kind(id: &PartitionId, mutable: bool) -> Kind {
    match id.as_str() {
        ROOT => Kind::Root,
        token if !mutable => Kind::Token(token.to_owned()),
        name => match name.splitn(3, '/').collect::<Vec<_>>()[..] {
            ["gate", ..] => Kind::Gate,
            [_, _, token] => Kind::Token(token.to_owned()),
            _ => Kind::Token(name.to_owned()),
        },
    }
}

/// The partitions of a child record, read by `reader`.
pub(crate) fn children(reader: &PartitionId, record: Children) -> impl Iterator<Item = Partition> {
    let start = place::before(record.start);
    record.children.into_iter().map(move |child| {
        let mut parents: Vec<PartitionId> = child.parents.into_iter().map(PartitionId::new).collect();
        if parents.is_empty() {
            // An initial one, told by the query without a token.
            parents.push(reader.clone());
        }
        Partition { id: PartitionId::new(child.token), parents, start: Some(start.clone()) }
    })
}

/// Mutable key ranges: partitions that begin, told by `reader`.
pub(crate) fn begun(reader: &PartitionId, at: Instant, tokens: Vec<String>) -> impl Iterator<Item = Partition> {
    let parents = vec![reader.clone()];
    tokens.into_iter().map(move |token| Partition {
        id: named("part", at, &token),
        parents: parents.clone(),
        start: Some(place::before(at)),
    })
}

/// Mutable key ranges: the reader's own partition goes on after its record `sequence` of this time.
pub(crate) fn goes_on(reader: &PartitionId, token: &str, at: Instant, sequence: u32) -> Partition {
    // Rows may move at the same time too: what follows that has another name.
    let moved = if has_moved(reader, at) { "moved-" } else { "" };
    let id = named(&format!("{moved}past-{sequence}"), at, token);
    Partition { id, parents: vec![reader.clone()], start: Some(place::amid(at, sequence)) }
}

/// Mutable key ranges: whether the partition is what follows a move of rows at this very time.
pub(crate) fn has_moved(id: &PartitionId, at: Instant) -> bool {
    match id.as_str().splitn(3, '/').collect::<Vec<_>>()[..] {
        [what, time, _] => (what == "next" || what.starts_with("moved-")) && time == at.to_string(),
        _ => false,
    }
}

/// Mutable key ranges: what follows a move of rows at `at`, record `sequence` of the reader's partition.
pub(crate) fn moved(
    reader: &PartitionId,
    token: &str,
    (at, sequence): (Instant, u32),
    from: &[String],
    to: &[String],
) -> Vec<Partition> {
    let gate = |token: &str| named("gate", at, token);
    let own = Partition { id: gate(token), parents: vec![reader.clone()], start: None };
    let waits_for = |tokens: &mut dyn Iterator<Item = &str>| tokens.map(gate).collect::<Vec<_>>();
    let mut parts = vec![own];
    let parents = waits_for(&mut std::iter::once(token).chain(from.iter().map(String::as_str)));
    parts.push(Partition { id: named("next", at, token), parents, start: Some(place::amid(at, sequence)) });
    for target in to.iter().filter(|t| *t != token) {
        // It learns of its own gate, and from which record it goes on, when it comes to the move itself.
        let parents = waits_for(&mut [target.as_str(), token].into_iter());
        parts.push(Partition { id: named("next", at, target), parents, start: Some(place::before(at)) });
    }
    parts
}

fn named(what: &str, at: Instant, token: &str) -> PartitionId {
    PartitionId::new(format!("{what}/{at}/{token}"))
}

/// Where a reader of `partition` begins that resumes at `from`.
pub(crate) fn start<'a>(partition: &'a Partition, from: Option<&'a Position>) -> Option<&'a Position> {
    from.filter(|p| !p.token.is_empty()).or(partition.start.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Instant {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn names_tell_what_is_read() {
        let id = |name: &str| PartitionId::new(name);
        assert_eq!(kind(&root_id(), false), Kind::Root);
        assert_eq!(kind(&id("a/b/c"), false), Kind::Token("a/b/c".to_owned()));
        assert_eq!(kind(&named("part", at(), "x/y/z"), true), Kind::Token("x/y/z".to_owned()));
        assert_eq!(kind(&named("gate", at(), "x"), true), Kind::Gate);
    }

    #[test]
    fn both_sides_of_a_move_name_the_part_after_it_alike() {
        let (p1, p2) = (PartitionId::new("part/t/P1"), PartitionId::new("part/t/P2"));
        let into = moved(&p1, "P1", (at(), 3), &["P2".to_owned()], &[]);
        let out = moved(&p2, "P2", (at(), 1), &[], &["P1".to_owned()]);
        let next = |parts: &[Partition], token: &str| {
            parts.iter().find(|p| p.id == named("next", at(), token)).cloned().unwrap()
        };
        let (told_by_target, told_by_source) = (next(&into, "P1"), next(&out, "P1"));
        let gates = vec![named("gate", at(), "P1"), named("gate", at(), "P2")];
        assert_eq!(told_by_target.parents, gates);
        assert_eq!(told_by_source.parents, gates);
        assert!(told_by_target.start.unwrap().rank > told_by_source.start.unwrap().rank);
        assert_eq!(next(&out, "P2").parents, [named("gate", at(), "P2")]);
        assert!(into.iter().any(|p| p.id == gates[0] && p.parents == [p1.clone()]));
    }
}
