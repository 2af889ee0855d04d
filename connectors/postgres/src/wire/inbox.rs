//! The receive buffer: whole messages are cut out of it without copying.

use std::ops::Range;

use anabranch_core::{Error, Result};

use crate::error::protocol;

/// One read fetches up to this much, so that one system call yields many messages. Bytes.
const CAPACITY: usize = 256 * 1024;

/// PostgreSQL's own limit for one allocation is 1 GiB, and a message is built in one. Bytes.
const LONGEST: usize = (1 << 30) + 64 * 1024;

/// Bytes received and not yet consumed.
#[derive(Debug)]
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// How much the message at `start` needs, once its header is here.
    wanted: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; CAPACITY], start: 0, end: 0, wanted: 0 }
    }

    /// Where the next read goes. Never empty. Messages cut out before are overwritten.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > CAPACITY && self.wanted <= CAPACITY {
                // A message of a large row made it grow; do not keep that for good.
                self.buffer = vec![0; CAPACITY];
            }
        }
        let short = self.buffer.len() - self.end < CAPACITY / 4;
        if self.start > 0 && (short || self.start + self.wanted > self.buffer.len()) {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            // By doubling, so that a length that is only claimed costs nothing.
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
        &mut self.buffer[self.end..]
    }

    /// `count` bytes of [`Inbox::space`] were filled.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Cuts out the next message if it is whole: its tag and where its body is, valid until
    /// [`Inbox::space`] is called.
    pub(crate) fn message(&mut self) -> Result<Option<(u8, Range<usize>)>> {
        let Some(header) = self.buffer[self.start..self.end].first_chunk::<5>() else { return Ok(None) };
        let [tag, length @ ..] = *header;
        let length = u32::from_be_bytes(length) as usize;
        if length < 4 {
            return Err(protocol("the server sent a message shorter than its own header"));
        }
        if length > LONGEST {
            return Err(Error::fatal(format!("the server sent a message of {length} bytes; the limit is {LONGEST}")));
        }
        self.wanted = length + 1;
        let begin = self.start;
        if self.end - begin < self.wanted {
            return Ok(None);
        }
        self.start = begin + self.wanted;
        self.wanted = 0;
        Ok(Some((tag, begin + 5..self.start)))
    }

    /// The bytes of a message that was cut out.
    pub(crate) fn body(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(inbox: &mut Inbox, mut bytes: &[u8], step: usize) -> Vec<(u8, Vec<u8>)> {
        let mut got = Vec::new();
        while !bytes.is_empty() {
            let space = inbox.space();
            let n = bytes.len().min(step).min(space.len());
            space[..n].copy_from_slice(&bytes[..n]);
            inbox.filled(n);
            bytes = &bytes[n..];
            while let Some((tag, body)) = inbox.message().unwrap() {
                got.push((tag, inbox.body(body).to_vec()));
            }
        }
        got
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut m = vec![tag];
        m.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        m.extend_from_slice(body);
        m
    }

    #[test]
    fn messages_are_whole_however_they_arrive() {
        let bodies = [vec![], vec![1; 10], vec![2; 3 * CAPACITY], vec![3; 100_000], vec![4; CAPACITY], vec![5]];
        let wire: Vec<u8> = bodies.iter().flat_map(|b| message(b'd', b)).collect();
        for step in [1000, 4096, 70_000, usize::MAX] {
            let got = feed(&mut Inbox::new(), &wire, step);
            assert_eq!(got.len(), bodies.len(), "step {step}");
            assert!(got.iter().zip(&bodies).all(|((tag, got), want)| *tag == b'd' && got == want), "step {step}");
        }
    }

    /// A length that is only claimed is no reason to reserve memory for it.
    #[test]
    fn claimed_lengths_reserve_nothing() {
        let mut inbox = Inbox::new();
        let mut wire = vec![b'd'];
        wire.extend_from_slice(&(1_u32 << 30).to_be_bytes());
        wire.resize(3 * CAPACITY, 0);
        assert!(feed(&mut inbox, &wire, usize::MAX).is_empty());
        assert!(inbox.buffer.len() <= 4 * CAPACITY, "{} bytes", inbox.buffer.len());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_nor_grow(
            wire in prop::collection::vec(any::<u8>(), 0..600),
            lengths in prop::collection::vec(0_u32..200, 0..6),
            step in 1_usize..100,
        ) {
            let mut inbox = Inbox::new();
            // Some whole messages first; behind them whatever it is.
            let mut all: Vec<u8> = lengths.iter().flat_map(|n| message(b'd', &vec![7; *n as usize])).collect();
            all.extend_from_slice(&wire);
            let mut bytes = &all[..];
            let mut messages = 0;
            'fed: while !bytes.is_empty() {
                let space = inbox.space();
                prop_assert!(!space.is_empty());
                let n = bytes.len().min(step).min(space.len());
                space[..n].copy_from_slice(&bytes[..n]);
                inbox.filled(n);
                bytes = &bytes[n..];
                loop {
                    match inbox.message() {
                        Ok(Some((_, body))) => prop_assert!(inbox.body(body).len() <= all.len()),
                        Ok(None) => break,
                        Err(_) => break 'fed,
                    }
                    messages += 1;
                }
            }
            // A message has at least five bytes: it is never found in nothing.
            prop_assert!(messages >= lengths.len() && messages * 5 <= all.len());
            prop_assert!(inbox.buffer.len() == CAPACITY);
        }
    }

    #[test]
    fn broken_lengths_are_errors() {
        for length in [0u32, 3, u32::MAX, 1 << 31] {
            let mut inbox = Inbox::new();
            inbox.space()[0] = b'd';
            inbox.space()[1..5].copy_from_slice(&length.to_be_bytes());
            inbox.filled(5);
            assert!(inbox.message().is_err(), "{length}");
        }
    }
}
