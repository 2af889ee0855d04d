//! Dead letters as objects, one for each, in folders that people can read.
//!
//! ```text
//! <pipeline>/retry/2026/11/21/08/52/slot=3a00ff.000001.open.jsonl
//!            severe/  skip/  filtered/  applied/
//! ```
//!
//! The folder tells class and state, the time is that of the change's commit (so that a replay finds
//! the same folder), and the name has the letter's id, a revision and the state: all but the content is
//! known from a listing. A put writes the next revision and then deletes the ones before, so the letter
//! is there at every instant, and of two writers none can delete what the other wrote. Where several
//! revisions are left by a crash the highest counts.

mod name;
mod scan;

use std::collections::BTreeMap;
use std::fmt;

use anabranch_core::{DeadLetter, DeadLetterStore, Error, LetterState, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::error::damaged;
use crate::location::Location;
use crate::names;
use crate::store::Store;
use name::{LetterName, folders, minute};

/// How many letters are read or written at a time.
const AT_A_TIME: usize = 16;

/// How often a listing is repeated whose letters others change meanwhile.
const TRIES: usize = 10;

/// Keeps dead letters in a folder of the file system or of object storage.
///
/// Several pipelines, processes and machines may share it. Only the names of letters are held in
/// memory, a bounded number of them. Listing costs a request for each thousand letters; one letter is
/// found by its id through a listing too.
#[derive(Clone)]
pub struct FilesDeadLetters {
    location: Location,
    names_in_memory: usize,
}

/// The version of the form of letters.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct LetterRef<'a> {
    anabranch_dead_letter: u32,
    pipeline: &'a str,
    letter: &'a DeadLetter,
}

#[derive(Deserialize)]
struct Stored {
    anabranch_dead_letter: u32,
    #[serde(default)]
    letter: Option<DeadLetter>,
}

impl FilesDeadLetters {
    /// Letters in this folder.
    pub fn new(location: impl Into<Location>) -> Self {
        Self { location: location.into().section("dead_letters"), names_in_memory: scan::NAMES }
    }

    /// How many names are held in memory at a time; 50,000 unless set.
    #[must_use]
    pub fn names_in_memory(self, names: usize) -> Self {
        Self { names_in_memory: names.max(1), ..self }
    }

    /// Finds what can be found without a connection.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check(&self) -> Result<()> {
        self.location.check()
    }

    /// Writes a letter and removes what it replaces.
    async fn put_one(&self, store: &Store, pipeline: &str, letter: &DeadLetter, before: &[LetterName]) -> Result<()> {
        let folder = names::escape(pipeline);
        let mut content = serde_json::to_vec(&LetterRef { anabranch_dead_letter: FORMAT, pipeline, letter })
            .map_err(|e| Error::fatal(format!("cannot write the dead letter {} as JSON", letter.id)).because(e))?;
        content.push(b'\n');
        let content = Bytes::from(content);
        let mut revision = before.iter().map(|name| name.revision).max().unwrap_or(0) + 1;
        let mut name = LetterName::of(letter, revision);
        // Another writer may have put this very revision of it.
        while !store.create(&format!("{folder}/{}", name.path()), content.clone()).await? {
            revision += 1;
            name = LetterName::of(letter, revision);
        }
        for old in before {
            store.delete(&format!("{folder}/{}", old.path())).await?;
        }
        Ok(())
    }

    /// What is there of these letters, by id. Their folders are known from the letters themselves.
    async fn revisions(
        &self,
        store: &Store,
        pipeline: &str,
        letters: &[&DeadLetter],
    ) -> Result<BTreeMap<String, Vec<LetterName>>> {
        let mut minutes: Vec<String> = letters.iter().map(|letter| minute(letter)).collect();
        minutes.sort_unstable();
        minutes.dedup();
        let mut found: BTreeMap<String, Vec<LetterName>> =
            letters.iter().map(|letter| (letter.id.clone(), Vec::new())).collect();
        for minute in minutes {
            for folder in folders() {
                let within = format!("{folder}/{minute}");
                let mut walk = store.walk(&format!("{}/{within}", names::escape(pipeline)))?;
                while let Some(name) = walk.try_next().await? {
                    let Some(name) = LetterName::parse(&format!("{within}/{name}")) else { continue };
                    if let Some(revisions) = found.get_mut(&name.id) {
                        revisions.push(name);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The content; `None` if it was replaced since it was listed.
    async fn read(store: &Store, pipeline: &str, name: &LetterName) -> Result<Option<DeadLetter>> {
        let path = format!("{}/{}", names::escape(pipeline), name.path());
        let Some((bytes, _)) = store.get(&path).await? else { return Ok(None) };
        let shown = store.show(&path);
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| damaged(&shown, e))?;
        match stored {
            Stored { anabranch_dead_letter: format, .. } if format > FORMAT => {
                let problem = format!("{shown} has format {format}, and this version of anabranch knows {FORMAT}");
                Err(Error::config(store.key(), problem).hint("run the version that wrote it, or a later one"))
            }
            Stored { letter: Some(letter), .. } if letter.id == name.id => Ok(Some(letter)),
            _ => Err(damaged(&shown, "it is not the letter that its name says")),
        }
    }
}

#[async_trait]
impl DeadLetterStore for FilesDeadLetters {
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let store = self.location.store()?;
        // Of several of one id the last counts.
        let last: BTreeMap<&str, &DeadLetter> = letters.iter().map(|letter| (letter.id.as_str(), letter)).collect();
        let last: Vec<&DeadLetter> = last.into_values().collect();
        let before = self.revisions(&store, pipeline, &last).await?;
        let none = Vec::new();
        let mut puts = Vec::with_capacity(last.len());
        for letter in last {
            puts.push(self.put_one(&store, pipeline, letter, before.get(&letter.id).unwrap_or(&none)));
        }
        stream::iter(puts).buffer_unordered(AT_A_TIME).try_collect::<Vec<()>>().await.map(drop)
    }

    /// Of two writers who saw the same revision the one counts that says that the letter is dealt with.
    async fn replace(&self, pipeline: &str, changed: &[(DeadLetter, DeadLetter)]) -> Result<usize> {
        if changed.is_empty() {
            return Ok(0);
        }
        let store = self.location.store()?;
        let letters: Vec<&DeadLetter> = changed.iter().map(|(_, letter)| letter).collect();
        let now = self.revisions(&store, pipeline, &letters).await?;
        let mut puts = Vec::with_capacity(changed.len());
        for (before, letter) in changed {
            let Some(names) = now.get(&letter.id) else { continue };
            let Some(latest) = names.iter().reduce(|a, b| if b.beats(a) { b } else { a }) else { continue };
            if (latest.folder, latest.state) == (LetterName::of(before, 0).folder, before.state) {
                puts.push(self.put_one(&store, pipeline, letter, names));
            }
        }
        let stored = puts.len();
        stream::iter(puts).buffer_unordered(AT_A_TIME).try_collect::<Vec<()>>().await.map(|_| stored)
    }

    async fn list(
        &self,
        pipeline: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        let store = self.location.store()?;
        let mut listed: Vec<DeadLetter> = Vec::new();
        let mut from = after.map(str::to_owned);
        let mut tries = 0;
        while listed.len() < limit {
            let page = scan::page(&store, pipeline, from.as_deref(), self.names_in_memory).await?;
            let wanted: Vec<&LetterName> =
                page.letters.values().filter(|name| states.contains(&name.state)).take(limit - listed.len()).collect();
            let mut reads = Vec::with_capacity(wanted.len());
            for name in &wanted {
                reads.push(Self::read(&store, pipeline, name));
            }
            let read: Vec<Option<DeadLetter>> = stream::iter(reads).buffered(AT_A_TIME).try_collect().await?;
            let whole = read.iter().position(Option::is_none).unwrap_or(read.len());
            let cut = wanted.get(whole.wrapping_sub(1)).map(|name| name.id.clone());
            listed.extend(read.into_iter().take(whole).flatten());
            if whole < wanted.len() {
                // One was replaced between the listing and the reading of it: list again from there.
                tries += 1;
                if tries > TRIES {
                    return Err(Error::transient("the dead letters are changed by others all the while"));
                }
                from = cut.or(from);
                continue;
            }
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        Ok(listed)
    }

    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>> {
        let store = self.location.store()?;
        for _ in 0..TRIES {
            let Some(name) = scan::find(&store, pipeline, id).await? else { return Ok(None) };
            if let Some(letter) = Self::read(&store, pipeline, &name).await? {
                return Ok(Some(letter));
            }
        }
        Err(Error::transient(format!("the dead letter {id} is changed by others all the while")))
    }

    async fn open_count(&self, pipeline: &str) -> Result<u64> {
        let store = self.location.store()?;
        let (mut count, mut from) = (0, None);
        loop {
            let page = scan::page(&store, pipeline, from.as_deref(), self.names_in_memory).await?;
            count += page.letters.values().filter(|name| name.state.is_open()).count() as u64;
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(count),
            }
        }
    }
}

impl fmt::Debug for FilesDeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesDeadLetters").field("location", &self.location).finish()
    }
}
