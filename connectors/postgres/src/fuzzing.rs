//! What the fuzz targets of `fuzz/` call: decoders that have no public name. Only with `--cfg fuzzing`.
//! Each takes any bytes, and must not panic.

use std::collections::HashMap;

use anabranch_core::PartitionId;

use crate::config::SchemaChange;
use crate::decode::frame::Frame;
use crate::decode::{DecodeError, copy_text, message};
use crate::lsn::{Lsn, Ranking};
use crate::reader::assemble::{Assembler, Start, Step};
use crate::reader::relation::{Relations, Resolved};
use crate::wire::inbox::Inbox;

/// One message of pgoutput, outside of and within a streamed block.
pub fn pgoutput(bytes: &[u8]) {
    for streaming in [false, true] {
        if let Ok((message, _)) = message::decode(bytes, streaming) {
            // Its rows and columns are only walked when they are looked at.
            let _ = format!("{message:?}");
        }
    }
}

/// The messages of a connection, however its bytes are cut, and what replication sends within them.
pub fn connection(bytes: &[u8]) {
    let mut inbox = Inbox::new();
    for piece in bytes.chunks(7) {
        let space = inbox.space();
        let count = piece.len().min(space.len());
        space[..count].copy_from_slice(&piece[..count]);
        inbox.filled(count);
        while let Ok(Some((_, body))) = inbox.message() {
            let _ = Frame::decode(inbox.body(body));
        }
    }
}

/// A stream of messages, each behind its length in two bytes: transactions, streamed ones, relations that
/// change, rows that do not fit them.
pub fn stream(bytes: &[u8]) {
    let relations = Relations::new([], HashMap::new(), SchemaChange::Ignore);
    let start = Start { position: Lsn(0).as_position(), drop_origins: false, ranking: Ranking::Log };
    let Ok(mut assembler) = Assembler::new(PartitionId::new("fuzz"), relations, start) else { return };
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (message, after) = after.split_at(length);
        rest = after;
        match assembler.apply(message) {
            Ok(Step::Done) => {}
            Ok(Step::Describe(described)) => {
                if assembler.resolved(Resolved::for_test(described)).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
        while let Ok(Some(_)) = assembler.replay() {}
    }
    let _ = assembler.take(None, None);
}

/// A row of COPY.
pub fn copy_row(bytes: &[u8]) {
    let _ = copy_text::fields::<DecodeError>(bytes, &mut Vec::new(), |_| Ok(()));
}
