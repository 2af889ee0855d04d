//! Reads fields one after another.

use super::DecodeError;

/// What is left of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_be_bytes)
    }

    /// A 16-bit count.
    pub(crate) fn count16(&mut self) -> Result<u16, DecodeError> {
        u16::try_from(i16::from_be_bytes(self.array()?)).map_err(|_| DecodeError::Negative)
    }

    /// A 32-bit length.
    pub(crate) fn length(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.i32()?).map_err(|_| DecodeError::Negative)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(DecodeError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    /// Text up to a zero byte.
    pub(crate) fn text(&mut self) -> Result<&'a str, DecodeError> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(DecodeError::Short)?;
        let text = std::str::from_utf8(&self.0[..end]).map_err(|_| DecodeError::NotUtf8)?;
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Long(self.0.len())) }
    }
}
