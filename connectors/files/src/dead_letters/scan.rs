//! Finds letters by listing names: in the order of ids, with a bounded number of names in memory.

use std::collections::BTreeMap;

use anabranch_core::Result;
use futures_util::TryStreamExt;

use super::name::LetterName;
use crate::names;
use crate::store::Store;

/// How many names are in memory at a time: about 20 MB of them.
pub(super) const NAMES: usize = 50_000;

/// Letters of consecutive ids.
pub(super) struct Page {
    pub(super) letters: BTreeMap<String, LetterName>,
    /// More may come above this id.
    pub(super) next: Option<String>,
}

/// The letters with the lowest ids above `after`, in whatever state, at most `most` of them.
///
/// Names are listed by folder and time, not by id, so all of them are looked at.
pub(super) async fn page(store: &Store, pipeline: &str, after: Option<&str>, most: usize) -> Result<Page> {
    let mut letters: BTreeMap<String, LetterName> = BTreeMap::new();
    let mut cut = false;
    let mut walk = store.walk(&names::escape(pipeline))?;
    while let Some(name) = walk.try_next().await? {
        let Some(name) = LetterName::parse(&name) else { continue };
        if after.is_some_and(|after| name.id.as_str() <= after) {
            continue;
        }
        match letters.get_mut(&name.id) {
            Some(known) => {
                if name.beats(known) {
                    *known = name;
                }
            }
            None => {
                letters.insert(name.id.clone(), name);
            }
        }
        if letters.len() > most {
            letters.pop_last();
            cut = true;
        }
    }
    let next = letters.last_key_value().map(|(id, _)| id.clone()).filter(|_| cut);
    Ok(Page { letters, next })
}

/// The letter of this id.
pub(super) async fn find(store: &Store, pipeline: &str, id: &str) -> Result<Option<LetterName>> {
    let mut found: Option<LetterName> = None;
    let mut walk = store.walk(&names::escape(pipeline))?;
    while let Some(name) = walk.try_next().await? {
        let name = LetterName::parse(&name).filter(|name| name.id == id);
        if let Some(name) = name.filter(|name| found.as_ref().is_none_or(|f| name.beats(f))) {
            found = Some(name);
        }
    }
    Ok(found)
}
