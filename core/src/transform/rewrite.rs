//! Builds a batch again, change by change, without touching its place in the stream.

use std::ops::Range;
use std::sync::Arc;

use crate::dead_letter::LetterClass;
use crate::error::Result;
use crate::model::{BatchBuilder, ChangeBatch, ChangeRef, LeftOut, OldImage, Op, Piece, Rank, TableSchema, ValueRef};

/// The batch in which each change is what `each` writes for it: at most one change, none to leave it out.
///
/// Transactions, ends and safe time stay what they are, and every change that stays keeps its
/// number and its rank: around one that is left out the transaction falls into two pieces.
///
/// ```
/// # use anabranch_core::*;
/// use anabranch_core::transform::rewrite;
/// fn without_deletes(batch: ChangeBatch) -> Result<ChangeBatch> {
///     rewrite(&batch, |change, out| {
///         if change.op() != Op::Delete {
///             out.keep(change);
///         }
///         Ok(())
///     })
/// }
/// ```
///
/// # Errors
/// Those of `each`; [`Fatal`](crate::ErrorKind::Fatal) if it writes rows that do not fit their schema.
pub fn rewrite(
    batch: &ChangeBatch,
    mut each: impl FnMut(ChangeRef<'_>, &mut Rewriter) -> Result<()>,
) -> Result<ChangeBatch> {
    let mut out = Rewriter { batch: BatchBuilder::new(batch.partition().clone()), sequence: 0 };
    for piece in batch.pieces() {
        out.batch.begin_like(piece);
        let before = out.batch.len();
        for (index, sequence) in piece.changes.clone().zip(piece.first_sequence..) {
            out.sequence = sequence;
            each(batch.change(index as usize), &mut out)?;
        }
        if out.batch.len() - before < piece.changes.len() {
            // What its source told of it is not what arrives.
            out.batch.forget_total();
        }
        if let Some(end) = &piece.end {
            out.batch.commit(end.clone());
        }
    }
    if let Some(bytes) = batch.lag_bytes() {
        out.batch.lag_bytes(bytes);
    }
    out.batch.finish(batch.end().clone(), batch.safe_time())
}

/// The changes in `range`, as a batch of their own: transactions, their ends and ranks stay what they are.
pub(crate) fn part(batch: &ChangeBatch, range: Range<u32>) -> Result<ChangeBatch> {
    let mut out = Rewriter { batch: BatchBuilder::new(batch.partition().clone()), sequence: 0 };
    for piece in batch.pieces() {
        let Range { start, end } = piece.changes;
        let of_piece = start.max(range.start)..end.min(range.end);
        // One without changes tells where its transaction ended: for what resumes a reader behind it.
        let bare = start == end && range.start < start && start < range.end;
        if of_piece.is_empty() && !bare {
            continue;
        }
        let left = of_piece.start - start;
        out.batch.begin_like(&Piece {
            transaction: piece.transaction.clone(),
            changes: 0..0,
            first_sequence: piece.first_sequence + u64::from(left),
            first: piece.first && left == 0,
            end: None,
        });
        let sequences = piece.first_sequence + u64::from(left)..;
        for (index, sequence) in of_piece.clone().zip(sequences) {
            out.sequence = sequence;
            out.keep(batch.change(index as usize));
        }
        if let Some(at) = piece.end.as_ref().filter(|_| of_piece.end == end) {
            out.batch.commit(at.clone());
        }
    }
    let made = out.batch.finish(batch.end().clone(), batch.safe_time())?;
    Ok(made.shrunk().resumed_from(batch.token_before(range.start).clone()))
}

/// What lies after `rank`: the rest of a batch of which a reader gives the beginning again.
pub(crate) fn after(batch: &ChangeBatch, rank: &Rank) -> Result<ChangeBatch> {
    let mut out = Rewriter { batch: BatchBuilder::new(batch.partition().clone()), sequence: 0 };
    for piece in batch.pieces() {
        let known = piece.changes.clone().take_while(|&i| batch.change(i as usize).rank() <= *rank).count();
        let first = piece.first_sequence + known as u64;
        let rest = piece.changes.start + known as u32..piece.changes.end;
        if rest.is_empty() && piece.end.as_ref().is_none_or(|end| end.rank <= *rank) {
            continue;
        }
        out.batch.begin(piece.transaction.clone(), first);
        for (index, sequence) in rest.zip(first..) {
            out.sequence = sequence;
            out.keep(batch.change(index as usize));
        }
        if let Some(end) = &piece.end {
            out.batch.commit(end.clone());
        }
    }
    if let Some(bytes) = batch.lag_bytes() {
        out.batch.lag_bytes(bytes);
    }
    out.batch.finish(batch.end().clone(), batch.safe_time())
}

/// Writes what becomes of one change.
#[derive(Debug)]
pub struct Rewriter {
    batch: BatchBuilder,
    sequence: u64,
}

impl Rewriter {
    /// The change as it is.
    pub fn keep(&mut self, change: ChangeRef<'_>) {
        match change.message() {
            Some((prefix, content)) => {
                self.batch.skip_to(self.sequence);
                self.batch.message(prefix, content);
                self.keep_left_out(change);
            }
            None => self.keep_as(change, change.op(), change.schema()),
        }
    }

    /// The rows of the change, under another operation or a schema of the same columns.
    pub fn keep_as(&mut self, change: ChangeRef<'_>, op: Op, schema: &Arc<TableSchema>) {
        self.change(change, op, schema);
        if let Some(old) = change.old_row() {
            self.old_row(change.old_image());
            self.batch.push_row(old);
        }
        if let Some(new) = change.new_row() {
            self.new_row();
            self.batch.push_row(new);
        }
    }

    /// Starts the change that `from` becomes, of the same shard. Rows follow.
    pub fn change(&mut self, from: ChangeRef<'_>, op: Op, schema: &Arc<TableSchema>) {
        self.batch.skip_to(self.sequence);
        let schema = self.batch.schema(schema);
        self.batch.change(op, schema);
        if let Some(shard) = from.shard() {
            self.batch.shard(shard);
        }
        self.keep_left_out(from);
    }

    /// The change as it is, left out: no sink gets it; it is counted, and kept as a letter.
    pub fn leave_out(&mut self, change: ChangeRef<'_>, class: LetterClass, reason: impl Into<Arc<str>>) {
        self.keep(change);
        if change.left_out().is_none() {
            self.batch.leave_out(LeftOut { class, reason: reason.into() });
        }
    }

    /// Leaves out the change that was written last, as it was written.
    pub fn leave_out_current(&mut self, class: LetterClass, reason: impl Into<Arc<str>>) {
        self.batch.leave_out(LeftOut { class, reason: reason.into() });
    }

    fn keep_left_out(&mut self, from: ChangeRef<'_>) {
        if let Some(why) = from.left_out() {
            self.batch.leave_out(why.clone());
        }
    }

    /// Sets the shard of the current change.
    pub fn shard(&mut self, shard: &str) {
        self.batch.shard(shard);
    }

    /// The old row follows: one [`Rewriter::push`] for each column.
    pub fn old_row(&mut self, image: OldImage) {
        self.batch.old_row(image);
    }

    /// The new row follows: one [`Rewriter::push`] for each column.
    pub fn new_row(&mut self) {
        self.batch.new_row();
    }

    /// The next value of the current row.
    pub fn push(&mut self, value: ValueRef<'_>) {
        self.batch.push(value);
    }

    /// The rows of a change, each made by `row` of the one that was sent.
    pub fn map_rows(
        &mut self,
        change: ChangeRef<'_>,
        schema: &Arc<TableSchema>,
        mut row: impl FnMut(crate::model::RowRef<'_>, &mut Self) -> Result<()>,
    ) -> Result<()> {
        self.change(change, change.op(), schema);
        if let Some(old) = change.old_row() {
            self.old_row(change.old_image());
            row(old, self)?;
        }
        if let Some(new) = change.new_row() {
            self.new_row();
            row(new, self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::transform::testing::{batch, orders};

    #[test]
    fn changes_that_stay_keep_their_ranks() {
        // Three transactions of 4 changes; the batch begins within the first and ends within the last.
        let schema = Arc::new(orders());
        let whole = batch(&schema, 3, 4);
        for mask in 0u32..4096 {
            let stays = |index: u32| mask & 1 << index != 0;
            let out = rewrite(&whole, |change, out| {
                if stays(change.index()) {
                    out.keep(change);
                }
                Ok(())
            })
            .unwrap();

            let expected: Vec<_> = whole.changes().filter(|c| stays(c.index())).map(|c| c.rank()).collect();
            assert_eq!(out.changes().map(|c| c.rank()).collect::<Vec<_>>(), expected, "{mask:b}");
            let ends = |b: &ChangeBatch| -> Vec<_> { b.pieces().iter().filter_map(|p| p.end.clone()).collect() };
            assert_eq!(ends(&out), ends(&whole), "{mask:b}");
            let firsts = |b: &ChangeBatch| -> Vec<_> {
                b.pieces().iter().filter(|p| p.first).map(|p| p.transaction.rank.clone()).collect()
            };
            assert_eq!(firsts(&out), firsts(&whole), "{mask:b}");
            // An end stands on the last change that is left of its transaction.
            for pair in out.pieces().windows(2).filter(|p| p[0].transaction.rank == p[1].transaction.rank) {
                assert!(pair[0].end.is_none() && !pair[1].changes.is_empty(), "{mask:b}");
            }
            assert_eq!((out.end(), out.safe_time(), out.lag_bytes()), (whole.end(), whole.safe_time(), Some(7)));
        }
    }

    #[test]
    fn parts_of_a_batch_are_the_batch() {
        let schema = Arc::new(orders());
        let whole = batch(&schema, 3, 4).resumed_from(Bytes::from_static(b"before"));
        let told = |change: ChangeRef<'_>| {
            let row: Vec<_> = change.new_row().into_iter().flat_map(|r| r.values().map(|v| v.to_owned())).collect();
            let piece = change.piece();
            let end = piece.end.clone().filter(|_| change.index() + 1 == piece.changes.end);
            let token = change.batch().token_before(change.index()).clone();
            (change.rank(), change.op(), row, end, token, piece.first && change.index() == piece.changes.start)
        };
        let all: Vec<_> = whole.changes().map(told).collect();
        for start in 0..12 {
            for end in start + 1..=12 {
                let part = part(&whole, start..end).unwrap();
                let range = start as usize..end as usize;
                assert_eq!(part.changes().map(told).collect::<Vec<_>>(), all[range], "{start}..{end}");
            }
        }
    }
}
