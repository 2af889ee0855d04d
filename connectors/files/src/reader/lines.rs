//! Makes batches of the lines of a shard.

use std::sync::Arc;

use anabranch_core::{BatchBuilder, Next, Op, Piece, Position, Rank, Result, TableSchema, Timestamp, Transaction};
use bytes::Bytes;

use super::file::OpenFile;
use super::token::Token;
use crate::format::{Begin, ChangeLine, End, Line, parse};

/// About how large a batch gets, in bytes.
const BATCH: usize = 1 << 20;

/// Where the transactions of a shard are while its lines are read.
pub(super) struct Transactions {
    /// After what was given.
    at: Position,
    open: Option<Open>,
    /// Schemas that were seen, so that equal ones are one.
    schemas: Vec<Arc<TableSchema>>,
    /// The batch that is built ends a transaction.
    news: bool,
    /// Whether a transaction tells how many changes it has.
    totals: bool,
}

/// The transaction that the last line belongs to.
struct Open {
    transaction: Transaction,
    /// Before it: where a reader resumes that has to see it again.
    before: Token,
    /// The number of its last change that was read; 0 before the first.
    sequence: u64,
    /// It has a piece in the batch that is built.
    in_batch: bool,
    /// A piece of it was given, or is in the batch.
    begun: bool,
}

impl Transactions {
    pub(super) fn new(from: Option<&Position>, token: Token, totals: bool) -> Self {
        let at = from.cloned().unwrap_or_else(|| Position::new(Rank::default(), token.to_bytes()));
        Self { at, open: None, schemas: Vec::new(), news: false, totals }
    }

    /// Takes lines that were fetched, until the batch is full.
    pub(super) fn take(&mut self, file: &mut OpenFile, batch: &mut BatchBuilder) -> Result<()> {
        while batch.size() < BATCH && !file.ended {
            let Some(line) = file.next_line()? else { break };
            let skipped = file.line <= file.skip;
            match parse(&line).map_err(|problem| file.wrong(problem))? {
                Line::Schema(schema) => {
                    if schema.id != file.schemas.len() {
                        return Err(file.wrong(format!("schema {} does not come next", schema.id)));
                    }
                    let known = self.intern(schema.table);
                    file.schemas.push(known);
                }
                Line::End(end) => finish_file(file, end)?,
                Line::Change(_) if skipped => file.records += 1,
                Line::Begin(_) if skipped => {}
                Line::Begin(begin) => self.begin(begin, file, batch)?,
                Line::Change(change) => self.change(&change, file, batch)?,
            }
        }
        Ok(())
    }

    /// The batch, if it has something to give.
    pub(super) fn finish(&mut self, batch: BatchBuilder, safe_time: Option<Timestamp>) -> Result<Option<Next>> {
        if batch.is_empty() && !self.news {
            return Ok(None);
        }
        self.heartbeat(batch, safe_time).map(Some)
    }

    /// The batch, whatever is in it.
    pub(super) fn heartbeat(&mut self, batch: BatchBuilder, safe_time: Option<Timestamp>) -> Result<Next> {
        self.news = false;
        if let Some(open) = &mut self.open {
            open.in_batch = false;
        }
        batch.finish(self.at.clone(), safe_time).map(Next::Batch)
    }

    /// Whether the batch that is built ends a transaction.
    pub(super) fn has_news(&self) -> bool {
        self.news
    }

    /// Nothing follows the last transaction for now: it has ended, unless it is `open`. `at`: after
    /// the last file.
    pub(super) fn end_unless(&mut self, open: Option<&Bytes>, at: Option<Token>, batch: &mut BatchBuilder) {
        let ended = self.open.as_ref().is_some_and(|mine| open != Some(&mine.transaction.rank));
        if let Some(at) = at.filter(|_| ended) {
            self.end(&at, batch);
        }
    }

    fn begin(&mut self, begin: Begin, file: &OpenFile, batch: &mut BatchBuilder) -> Result<()> {
        let rank = begin.order.unwrap_or(begin.rank);
        let before = Token::at(file.number, file.line - 1, &file.name);
        match &self.open {
            // It goes on in another file.
            Some(open) if open.transaction.rank == rank => return Ok(()),
            Some(open) if open.transaction.rank > rank => {
                return Err(file.wrong("the transaction comes before the one before it"));
            }
            Some(_) => self.end(&before, batch),
            None => {}
        }
        let transaction = Transaction {
            rank,
            commit_time: begin.time,
            origin: begin.origin,
            tag: begin.tag,
            total: begin.total.filter(|_| self.totals),
        };
        self.open = Some(Open { transaction, before, sequence: 0, in_batch: false, begun: false });
        Ok(())
    }

    /// Ends the open transaction; `at` is the place after it.
    fn end(&mut self, at: &Token, batch: &mut BatchBuilder) {
        let Some(open) = self.open.take() else { return };
        if !open.begun {
            // It has no change: a file has none like it.
            return;
        }
        if !open.in_batch {
            let sequence = open.sequence + 1;
            batch.begin_like(&open.piece(sequence));
        }
        let rank = Rank::of_end(&open.transaction.rank);
        self.at = Position::new(rank, at.to_bytes());
        batch.commit(self.at.clone());
        self.news = true;
    }

    fn change(&mut self, change: &ChangeLine<'_>, file: &mut OpenFile, batch: &mut BatchBuilder) -> Result<()> {
        let Some(open) = &mut self.open else { return Err(file.wrong("a change outside of a transaction")) };
        if change.number <= open.sequence {
            return Err(file.wrong(format!("change {} comes after {}", change.number, open.sequence)));
        }
        if open.in_batch {
            batch.skip_to(change.number);
        } else {
            let piece = open.piece(change.number);
            batch.begin_like(&piece);
            (open.in_batch, open.begun) = (true, true);
        }
        open.sequence = change.number;
        self.at = Position::new(Rank::of_change(&open.transaction.rank, change.number), open.before.to_bytes());
        file.records += 1;
        if let Some((prefix, content)) = &change.message {
            batch.message(prefix, content);
            return Ok(());
        }
        let schema = change.table.and_then(|id| file.schemas.get(id));
        let Some(schema) = schema else { return Err(file.wrong("a change of a table that was not described")) };
        let width = schema.columns.len();
        if [&change.old, &change.new].into_iter().flatten().any(|row| row.len() != width) {
            return Err(file.wrong(format!("a row of {} has not {width} values", schema.name)));
        }
        let index = batch.schema(schema);
        batch.change(change.op, index);
        if let Some(old) = &change.old {
            batch.old_row(change.image);
            old.iter().for_each(|cell| batch.push(cell.as_ref()));
        }
        if let Some(new) = &change.new {
            batch.new_row();
            new.iter().for_each(|cell| batch.push(cell.as_ref()));
        }
        if let Some(shard) = &file.shard
            && change.op != Op::Schema
        {
            batch.shard(shard);
        }
        Ok(())
    }

    fn intern(&mut self, schema: Arc<TableSchema>) -> Arc<TableSchema> {
        match self.schemas.iter_mut().find(|s| s.name == schema.name) {
            Some(known) if **known == *schema => Arc::clone(known),
            Some(known) => {
                known.clone_from(&schema);
                schema
            }
            None => {
                self.schemas.push(Arc::clone(&schema));
                schema
            }
        }
    }
}

impl Open {
    /// A piece of it that begins with this number.
    fn piece(&self, sequence: u64) -> Piece {
        Piece {
            transaction: self.transaction.clone(),
            changes: 0..0,
            first_sequence: sequence,
            first: !self.begun,
            end: None,
        }
    }
}

fn finish_file(file: &mut OpenFile, end: End) -> Result<()> {
    if (end.records, end.lines) != (file.records, file.line) {
        let problem = format!(
            "the file has {} changes in {} lines, and says that it has {} in {}",
            file.records, file.line, end.records, end.lines
        );
        return Err(file.wrong(problem));
    }
    file.ended = true;
    Ok(())
}
