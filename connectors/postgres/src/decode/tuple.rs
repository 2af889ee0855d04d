//! A row as pgoutput writes it.

use super::DecodeError;
use super::cursor::Cursor;

/// A column's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TupleValue<'a> {
    /// `n`
    Null,
    /// `u`: an unchanged TOAST value, not sent.
    Unchanged,
    /// `t`
    Text(&'a [u8]),
    /// `b`: only when asked for, which we do not.
    Binary(&'a [u8]),
}

/// A row that was checked to be whole; iterating it cannot fail and allocates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple<'a> {
    columns: u16,
    bytes: &'a [u8],
}

impl<'a> Tuple<'a> {
    pub(crate) fn decode(c: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let columns = c.count16()?;
        let begin = c.0;
        for _ in 0..columns {
            value(c)?;
        }
        Ok(Self { columns, bytes: &begin[..begin.len() - c.0.len()] })
    }

    /// How many columns it has.
    pub(crate) fn len(self) -> usize {
        usize::from(self.columns)
    }

    pub(crate) fn values(self) -> Values<'a> {
        Values { left: self.columns, cursor: Cursor(self.bytes) }
    }
}

/// The values of a [`Tuple`], in order.
#[derive(Debug, Clone)]
pub(crate) struct Values<'a> {
    left: u16,
    cursor: Cursor<'a>,
}

impl<'a> Iterator for Values<'a> {
    type Item = TupleValue<'a>;

    fn next(&mut self) -> Option<TupleValue<'a>> {
        self.left = self.left.checked_sub(1)?;
        // Checked when the tuple was decoded.
        value(&mut self.cursor).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

fn value<'a>(c: &mut Cursor<'a>) -> Result<TupleValue<'a>, DecodeError> {
    match c.u8()? {
        b't' => {
            let length = c.length()?;
            Ok(TupleValue::Text(c.bytes(length)?))
        }
        b'n' => Ok(TupleValue::Null),
        b'u' => Ok(TupleValue::Unchanged),
        b'b' => {
            let length = c.length()?;
            Ok(TupleValue::Binary(c.bytes(length)?))
        }
        tag => Err(DecodeError::Unknown { what: "kind of value", tag: char::from(tag) }),
    }
}
