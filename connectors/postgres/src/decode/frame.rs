//! The frames inside CopyData while replicating.

use anabranch_core::Timestamp;

use super::DecodeError;
use super::cursor::Cursor;
use crate::lsn::{Lsn, to_postgres_time};

/// What the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// `w`: a message of the output plugin.
    Data(&'a [u8]),
    /// `k`: how far the server has read, and whether it wants an answer now.
    Keepalive {
        /// Everything that was committed before this has been sent.
        wal_end: Lsn,
        reply: bool,
    },
}

impl<'a> Frame<'a> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut c = Cursor(bytes);
        match c.u8()? {
            b'w' => {
                // Start, end and clock. For logical replication both places are those of this message.
                c.bytes(24)?;
                Ok(Self::Data(c.rest()))
            }
            b'k' => {
                let wal_end = Lsn(c.u64()?);
                c.i64()?;
                let reply = c.u8()? != 0;
                c.end()?;
                Ok(Self::Keepalive { wal_end, reply })
            }
            tag => Err(DecodeError::Unknown { what: "replication frame", tag: char::from(tag) }),
        }
    }
}

/// `r`: what we have. All three places are the same: what is not durable downstream does not count.
pub(crate) fn standby_status(durable: Lsn, now: Timestamp, reply: bool) -> [u8; 34] {
    let mut bytes = [0; 34];
    bytes[0] = b'r';
    for at in [1, 9, 17] {
        bytes[at..at + 8].copy_from_slice(&durable.0.to_be_bytes());
    }
    bytes[25..33].copy_from_slice(&to_postgres_time(now).to_be_bytes());
    bytes[33] = u8::from(reply);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn random_frames_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60)) {
            let _ = Frame::decode(&bytes);
        }
    }

    #[test]
    fn frames_are_read() {
        let mut data = vec![b'w'];
        data.extend_from_slice(&[0; 24]);
        data.extend_from_slice(b"payload");
        assert_eq!(Frame::decode(&data), Ok(Frame::Data(b"payload")));
        let mut alive = vec![b'k'];
        alive.extend_from_slice(&7u64.to_be_bytes());
        alive.extend_from_slice(&[0; 8]);
        alive.push(1);
        assert_eq!(Frame::decode(&alive), Ok(Frame::Keepalive { wal_end: Lsn(7), reply: true }));
        for cut in 0..alive.len() {
            assert!(Frame::decode(&alive[..cut]).is_err());
        }
        alive.push(0);
        assert_eq!(Frame::decode(&alive), Err(DecodeError::Long(1)));
        assert!(Frame::decode(b"x").is_err());
    }
}
