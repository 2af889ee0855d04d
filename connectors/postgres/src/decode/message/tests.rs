use proptest::prelude::*;

use super::super::tuple::TupleValue;
use super::frames::{self, Frame};
use super::*;

fn samples() -> Vec<(Vec<u8>, bool)> {
    let row: &[Option<&str>] = &[Some("7"), None, Some("\u{1}"), Some("text")];
    vec![
        (frames::begin(5), false),
        (frames::commit(5, 9), false),
        (Frame::new(b'O').u64(3).text("other").0, false),
        (frames::relation(16, "Orders ü", b'd', &[(true, "id", 23), (false, "note", 25)]), false),
        (Frame::new(b'Y').u32(9).text("public").text("mood").0, false),
        (frames::insert(16, row), false),
        (frames::update(16, None, row), false),
        (frames::update(16, Some((b'K', row)), row), false),
        (frames::update(16, Some((b'O', row)), row), false),
        (frames::delete(16, b'K', row), false),
        (frames::delete(16, b'O', row), false),
        (Frame::new(b'T').u32(2).u8(3).u32(16).u32(17).0, false),
        (Frame::new(b'M').u8(1).u64(4).text("p").u32(2).u8(1).u8(2).0, false),
        (Frame::new(b'S').u32(700).u8(1).0, false),
        (vec![b'E'], true),
        (Frame::new(b'c').u32(700).u8(0).u64(5).u64(9).u64(0).0, false),
        (Frame::new(b'A').u32(700).u32(701).0, false),
        (Frame::new(b'I').u32(701).u32(16).u8(b'N').row(row).0, true),
        (Frame::new(b'T').u32(701).u32(1).u8(0).u32(16).0, true),
    ]
}

/// Walks everything that a message borrows.
fn walk(message: Message<'_>) -> usize {
    match message {
        Message::Relation(r) => r.columns().map(|c| c.name.len()).sum(),
        Message::Insert { new, .. } => new.values().count(),
        Message::Update { old, new, .. } => old.map_or(0, |o| o.row.values().count()) + new.values().count(),
        Message::Delete { old, .. } => old.row.values().count(),
        Message::Truncate { relations, .. } => relations.iter().count(),
        _ => 0,
    }
}

#[test]
fn every_message_is_read_and_no_cut_one() {
    for (bytes, streaming) in samples() {
        decode(&bytes, streaming).unwrap_or_else(|e| panic!("{:?}: {e}", bytes[0] as char));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], streaming).is_err(), "{:?} cut at {cut}", bytes[0] as char);
        }
        let mut long = bytes;
        long.push(0);
        assert!(decode(&long, streaming).is_err());
    }
}

#[test]
fn fields_are_where_the_manual_says() {
    let b = frames::begin(0x16_B374_D848);
    let Message::Begin { commit_lsn, commit_time } = decode(&b, false).unwrap().0 else { panic!() };
    assert_eq!((commit_lsn, commit_time.to_string().as_str()), (Lsn(0x16_B374_D848), "2000-01-01T00:00:01.000000Z"));

    let r = frames::relation(16, "Orders ü", b'f', &[(true, "id", 23), (false, "note", 25)]);
    let Message::Relation(r) = decode(&r, false).unwrap().0 else { panic!() };
    assert_eq!((r.oid, r.schema, r.name, r.identity), (16, "public", "Orders ü", b'f'));
    let columns: Vec<_> = r.columns().map(|c| (c.key, c.name, c.type_oid, c.type_modifier)).collect();
    assert_eq!(columns, [(true, "id", 23, -1), (false, "note", 25, -1)]);

    let u = frames::update(16, Some((b'K', &[Some("1"), None])), &[Some("2"), Some("\u{1}")]);
    let Message::Update { relation: 16, old: Some(old), new } = decode(&u, false).unwrap().0 else { panic!() };
    assert!(!old.full);
    assert_eq!(old.row.values().collect::<Vec<_>>(), [TupleValue::Text(b"1"), TupleValue::Null]);
    assert_eq!(new.values().collect::<Vec<_>>(), [TupleValue::Text(b"2"), TupleValue::Unchanged]);

    let t = Frame::new(b'T').u32(2).u8(3).u32(16).u32(17).0;
    let Message::Truncate { relations, cascade: true, restart_identity: true } = decode(&t, false).unwrap().0 else {
        panic!()
    };
    assert_eq!(relations.iter().collect::<Vec<_>>(), [16, 17]);

    let i = Frame::new(b'I').u32(701).u32(16).u8(b'N').row(&[]).0;
    assert!(matches!(decode(&i, true), Ok((Message::Insert { relation: 16, .. }, Some(701)))));
}

/// Lengths and counts that claim more than there is, or less than nothing.
#[test]
fn claimed_lengths_are_not_believed() {
    const TWO_GIB: u32 = i32::MAX as u32;
    const NEGATIVE: u32 = -1_i32 as u32;
    let insert = || Frame::new(b'I').u32(16).u8(b'N');
    for (bytes, error) in [
        (insert().u16(1).u8(b't').u32(TWO_GIB), DecodeError::Short),
        (insert().u16(1).u8(b't').u32(NEGATIVE), DecodeError::Negative),
        (insert().u16(1).u8(b'b').u32(i32::MIN as u32), DecodeError::Negative),
        (insert().u16(i16::MAX as u16), DecodeError::Short),
        (insert().u16(u16::MAX), DecodeError::Negative),
        (Frame::new(b'T').u32(TWO_GIB).u8(0).u32(16), DecodeError::Short),
        (Frame::new(b'T').u32(NEGATIVE).u8(0).u32(16), DecodeError::Negative),
        (Frame::new(b'M').u8(1).u64(4).text("p").u32(TWO_GIB).u8(1), DecodeError::Short),
        (Frame::new(b'M').u8(1).u64(4).text("p").u32(NEGATIVE), DecodeError::Negative),
        (Frame::new(b'R').u32(16).text("s").text("t").u8(b'd').u16(u16::MAX), DecodeError::Negative),
        (Frame::new(b'R').u32(16).text("s").text("t").u8(b'd').u16(i16::MAX as u16), DecodeError::Short),
    ] {
        assert_eq!(decode(&bytes.0, false), Err(error), "{:?}", bytes.0);
    }
}

#[test]
fn names_that_are_cut_within_a_letter_are_errors() {
    let mut bytes = Frame::new(b'O').u64(3).0;
    bytes.extend_from_slice(&"ü".as_bytes()[..1]);
    assert_eq!(decode(&bytes, false), Err(DecodeError::Short));
    bytes.push(0);
    assert_eq!(decode(&bytes, false), Err(DecodeError::NotUtf8));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), streaming: bool) {
        if let Ok((message, _)) = decode(&bytes, streaming) {
            walk(message);
        }
    }

    #[test]
    fn mutated_messages_never_panic(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte: u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let samples = samples();
        let (mut bytes, streaming) = samples[which.index(samples.len())].clone();
        let place = at.index(bytes.len());
        bytes[place] = byte;
        bytes.truncate(cut.index(bytes.len()) + 1);
        for streaming in [streaming, !streaming] {
            if let Ok((message, _)) = decode(&bytes, streaming) {
                walk(message);
            }
        }
    }
}
