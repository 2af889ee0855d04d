//! Reads the files of one shard.
//!
//! A look at the ledger tells which files there are; they are read in their order, each in chunks.
//! Nothing is awaited while a batch is built, so that a call may be dropped at any await.

mod file;
mod lines;
mod token;
mod watcher;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{BatchBuilder, ChangeReader, Error, Next, PartitionId, Position, Result, Timestamp};
use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};

use crate::ledger::Ledger;
use crate::names;
use crate::source::{Processed, WindowSource};
use crate::store::Store;
use file::OpenFile;
use lines::Transactions;
pub(crate) use token::Token;
pub(crate) use watcher::Watcher;

/// How much of a file is fetched at a time, in bytes: few requests, and little memory for each shard.
const CHUNK: u64 = 1 << 20;

/// How many names are listed at a time.
const NAMES: usize = 1000;

/// The longest silence: an empty batch comes at least this often.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// The shortest wait between two looks for new files.
const SHORTEST: Duration = Duration::from_millis(20);

/// A reader of one shard.
pub(crate) struct ShardReader {
    source: WindowSource,
    store: Store,
    partition: PartitionId,
    folder: String,
    /// What the run had when it was looked at last.
    ledger: Option<Arc<Ledger>>,
    /// Names of files after the one that is read.
    names: VecDeque<String>,
    file: Option<OpenFile>,
    /// The last file that was read whole.
    last: Option<(u64, String)>,
    /// Where in the next file reading goes on.
    skip: u64,
    transactions: Transactions,
    safe_time: Option<Timestamp>,
    /// When the last batch was given, when to look again, and how long to wait after that.
    given: Instant,
    look: Instant,
    wait: Duration,
    /// Files before this one are dealt with.
    acknowledged: Option<Token>,
}

impl ShardReader {
    pub(crate) fn new(
        source: WindowSource,
        store: Store,
        partition: PartitionId,
        from: Option<&Position>,
    ) -> Result<Self> {
        let token = from.map(Token::of).transpose()?.unwrap_or_default();
        let folder = names::folder(&source.settings.run, partition.as_str());
        let now = Instant::now();
        // Part of a transaction has not as many changes as the whole.
        let totals = source.reads_all();
        let (last, names, skip) = match &token.line {
            _ if token.name.is_empty() => (None, VecDeque::new(), 0),
            None => (Some((token.number, token.name.clone())), VecDeque::new(), 0),
            Some(line) => {
                let before = (token.number - 1, String::new());
                (Some(before), VecDeque::from([token.name.clone()]), *line)
            }
        };
        Ok(Self {
            source,
            store,
            partition,
            folder,
            ledger: None,
            names,
            file: None,
            last,
            skip,
            transactions: Transactions::new(from, token, totals),
            safe_time: None,
            given: now,
            look: now,
            wait: SHORTEST,
            acknowledged: None,
        })
    }

    /// The number of the next file.
    fn next_number(&self) -> u64 {
        self.last.as_ref().map_or(0, |(number, _)| *number) + 1
    }

    /// How many files the shard has, as far as was seen.
    fn files(&self) -> u64 {
        let entry = self.ledger.as_ref().and_then(|l| l.shards.get(self.partition.as_str()));
        entry.map_or(0, |entry| entry.files)
    }

    /// A batch of what was fetched; `None` if it has nothing to give.
    fn take(&mut self) -> Result<Option<Next>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut batch = BatchBuilder::new(self.partition.clone());
        self.transactions.take(file, &mut batch)?;
        if file.is_finished() {
            self.last = Some((file.number, std::mem::take(&mut file.name)));
            self.file = None;
        }
        self.transactions.finish(batch, None)
    }

    /// Opens the next file, which the ledger says is there.
    async fn open_next(&mut self) -> Result<()> {
        let number = self.next_number();
        let mut listed = false;
        while self.file.is_none() {
            if self.names.is_empty() && !listed {
                let after = self.last.as_ref().map(|(_, name)| name.as_str()).filter(|name| !name.is_empty());
                let found = self.store.list(&self.folder, after, NAMES).await?;
                self.names = found.into_iter().filter(|name| name.ends_with(".jsonl")).collect();
                listed = true;
            }
            let Some(name) = self.names.front() else { return Err(self.gap(number)) };
            let full = format!("{}/{name}", self.folder);
            let Some((bytes, size)) = self.store.read(&full, 0, CHUNK).await? else { return Err(self.gap(number)) };
            let Some(name) = self.names.pop_front() else { return Ok(()) };
            let entry = self.ledger.as_ref().and_then(|l| l.shards.get(self.partition.as_str()));
            let expected = file::Expected { run: &self.source.settings.run, partition: &self.partition, number, entry };
            self.file = OpenFile::new(name, self.store.show(&full), bytes, size, self.skip, &expected)?;
        }
        self.skip = 0;
        Ok(())
    }

    async fn fetch(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let name = format!("{}/{}", self.folder, file.name);
        let Some((bytes, _)) = self.store.read(&name, file.fetched, CHUNK).await? else {
            let number = file.number;
            return Err(self.gap(number));
        };
        file.append(bytes)
    }

    fn gap(&self, number: u64) -> Error {
        let entry = self.ledger.as_ref().and_then(|l| l.shards.get(self.partition.as_str()));
        let named = match (entry, &self.last) {
            (Some(entry), _) if entry.files == number => self.store.show(&format!("{}/{}", self.folder, entry.last)),
            (_, Some((_, last))) if !last.is_empty() => {
                format!("the file after {}", self.store.show(&format!("{}/{last}", self.folder)))
            }
            _ => format!("the first file in {}", self.store.show(&self.folder)),
        };
        missing(&named, number)
    }

    /// What there is to say at the end of what is known: that the last transaction has ended, a new
    /// safe time, or that nothing is new for a while.
    fn idle(&mut self) -> Result<Option<Next>> {
        let mut batch = BatchBuilder::new(self.partition.clone());
        if let Some(ledger) = &self.ledger {
            let open = ledger.open.as_ref().map(|open| &open.rank);
            let at = self.last.as_ref().map(|(number, name)| Token::end(*number, name));
            self.transactions.end_unless(open, at, &mut batch);
        }
        let safe_time = self.ledger.as_ref().and_then(|l| l.safe_time);
        let silent = self.given.elapsed() >= HEARTBEAT;
        let moved = safe_time > self.safe_time;
        if !moved && !silent && !self.transactions.has_news() {
            return Ok(None);
        }
        self.safe_time = self.safe_time.max(safe_time);
        self.transactions.heartbeat(batch, self.safe_time).map(Some)
    }
}

pub(crate) fn missing(named: &str, number: u64) -> Error {
    Error::fatal(format!("{named} is missing (number {number} of its shard): what it held is lost"))
        .hint("restore it from a backup, or copy the tables again under another pipeline name")
}

#[async_trait]
impl ChangeReader for ShardReader {
    async fn next(&mut self) -> Result<Next> {
        loop {
            if let Some(next) = self.take()? {
                self.given = Instant::now();
                return Ok(next);
            }
            if self.file.is_some() {
                self.fetch().await?;
                continue;
            }
            if self.next_number() <= self.files() {
                self.open_next().await?;
                self.wait = SHORTEST;
                continue;
            }
            if let Some(next) = self.idle()? {
                self.given = Instant::now();
                return Ok(next);
            }
            sleep_until(self.look).await;
            let ledger = self.source.ledger(&self.store, self.look).await?;
            self.ledger = ledger;
            self.wait = (self.wait * 2).min(self.source.settings.poll);
            self.look = Instant::now() + self.wait;
        }
    }

    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        let Some(token) = through.map(Token::of).transpose()?.filter(|t| !t.name.is_empty()) else { return Ok(()) };
        let same_file = |a: &Token| a.number == token.number && a.line.is_none() == token.line.is_none();
        if self.source.settings.processed == Processed::Keep || self.acknowledged.as_ref().is_some_and(same_file) {
            return Ok(());
        }
        loop {
            let names = self.store.list(&self.folder, None, NAMES).await?;
            let done: Vec<_> = names.iter().filter(|name| token.is_past(name)).collect();
            for name in &done {
                let full = format!("{}/{name}", self.folder);
                match self.source.settings.processed {
                    Processed::Move => {
                        self.store.rename(&full, &format!("{}/_processed/{name}", self.folder)).await?;
                    }
                    _ => self.store.delete(&full).await?,
                }
            }
            if done.len() < NAMES {
                break;
            }
        }
        self.acknowledged = Some(token);
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
