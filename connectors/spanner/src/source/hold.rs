//! Records that wait until their time is over, or to be given: in memory, and beyond a limit in a
//! temporary file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use anabranch_core::{Error, Result};
use bytes::Bytes;

use super::assemble::Records;
use crate::decode::DataRecord;

/// Bytes of records that one partition keeps in memory, about. With a thousand partitions most have none.
const IN_MEMORY: usize = 4 << 20;

/// Transactions by rank, each with its records.
#[derive(Debug, Default)]
pub(crate) struct Held {
    transactions: BTreeMap<Bytes, BTreeMap<u32, Place>>,
    released: BTreeMap<Bytes, BTreeMap<u32, Place>>,
    in_memory: usize,
    spill: Option<(File, u64)>,
    /// Records in the file.
    on_disk: usize,
}

#[derive(Debug)]
enum Place {
    Memory(Box<DataRecord>, usize),
    Disk(u64, usize),
}

impl Held {
    /// Keeps a record; one that is there already is the same sent again.
    pub(crate) fn add(&mut self, prefix: Bytes, record: DataRecord) -> Result<()> {
        let records = self.transactions.entry(prefix).or_default();
        let std::collections::btree_map::Entry::Vacant(vacant) = records.entry(record.sequence) else { return Ok(()) };
        let size = record.memory_size();
        let place = if self.in_memory + size > IN_MEMORY {
            let place = spilled(&mut self.spill, &record)?;
            self.on_disk += 1;
            place
        } else {
            self.in_memory += size;
            Place::Memory(Box::new(record), size)
        };
        vacant.insert(place);
        Ok(())
    }

    /// The time is over: the transactions, in order, to be taken one after another.
    pub(crate) fn release(&mut self) -> Vec<Bytes> {
        let over = std::mem::take(&mut self.transactions);
        let order = over.keys().cloned().collect();
        self.released.extend(over);
        order
    }

    /// The records of a released transaction.
    pub(crate) fn take(&mut self, prefix: &Bytes) -> Result<Records> {
        let mut records = Records::new();
        for (sequence, place) in self.released.remove(prefix).unwrap_or_default() {
            let record = match (place, &mut self.spill) {
                (Place::Memory(record, size), _) => {
                    self.in_memory -= size;
                    *record
                }
                (Place::Disk(at, len), Some((file, _))) => {
                    self.on_disk -= 1;
                    read(file, at, len)?
                }
                (Place::Disk(..), None) => return Err(Error::fatal("a spilled change record has no file")),
            };
            records.insert(sequence, record);
        }
        // A partition that is always busy always holds something: the file goes with its last record.
        if self.on_disk == 0 {
            self.spill = None;
        }
        Ok(records)
    }
}

fn spilled(spill: &mut Option<(File, u64)>, record: &DataRecord) -> Result<Place> {
    let full = |e| Error::transient("cannot write to a spill file").because(e).hint("is the temporary folder full?");
    let (file, end) = match spill {
        Some(spill) => spill,
        none => none.insert((tempfile::tempfile().map_err(full)?, 0)),
    };
    let bytes = serde_json::to_vec(record)
        .map_err(|e| Error::fatal("cannot encode a change record for spilling").because(e))?;
    let at = *end;
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&bytes)).map_err(full)?;
    *end += bytes.len() as u64;
    Ok(Place::Disk(at, bytes.len()))
}

fn read(file: &mut File, at: u64, len: usize) -> Result<DataRecord> {
    let mut bytes = vec![0; len];
    file.seek(SeekFrom::Start(at))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(|e| Error::transient("cannot read a spill file").because(e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::fatal("a spilled change record is damaged").because(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::SpannerValue;
    use crate::decode::{Capture, Mod, ModType};
    use crate::source::place;

    fn record(second: u8, bytes: usize) -> DataRecord {
        DataRecord {
            commit: format!("2026-01-01T00:00:{second:02}Z").parse().unwrap(),
            sequence: 0,
            transaction: "a".to_owned(),
            table: "t".to_owned(),
            columns: Vec::new(),
            mods: vec![Mod { new: vec![(0, SpannerValue::Text("x".repeat(bytes)))], ..Mod::default() }],
            mod_type: ModType::Insert,
            capture: Capture::NewRowAndOldValues,
            records_in_transaction: 1,
            partitions_in_transaction: 1,
            tag: String::new(),
            system: false,
        }
    }

    /// A partition without a pause: the next record is there before the last one is given.
    #[test]
    fn a_busy_partition_does_not_fill_the_disk() {
        let mut held = Held::default();
        for second in 0..10 {
            for (at, bytes) in [(2 * second, IN_MEMORY + 1), (2 * second + 1, 10)] {
                let record = record(at, bytes);
                let before = held.release();
                held.add(place::prefix(record.commit, &record.transaction), record).unwrap();
                before.iter().for_each(|prefix| assert_eq!(held.take(prefix).unwrap().len(), 1));
            }
            assert!(held.spill.is_none(), "what was given is off the disk");
        }
    }
}
