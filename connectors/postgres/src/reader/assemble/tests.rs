use std::collections::HashMap;

use anabranch_core::{Piece, Rank, TableName, ValueRef};
use proptest::prelude::*;

use super::*;
use crate::config::SchemaChange;
use crate::decode::message::frames::{self, Frame};

fn assembler(position: Position, copied: &[(&str, u64)], policy: SchemaChange) -> Assembler {
    let copied: HashMap<_, _> = copied.iter().map(|(t, lsn)| (TableName::new("public", *t), Lsn(*lsn))).collect();
    let relations = Relations::new([], copied, policy);
    Assembler::new(PartitionId::new("slot"), relations, Start { position, drop_origins: true, ranking: Ranking::Log })
        .unwrap()
}

fn apply(a: &mut Assembler, frame: Vec<u8>) -> Result<()> {
    match a.apply(&frame)? {
        Step::Done => Ok(()),
        Step::Describe(described) => a.resolved(Resolved::for_test(described)),
    }
}

fn all(a: &mut Assembler, frames: impl IntoIterator<Item = Vec<u8>>) {
    for frame in frames {
        apply(a, frame).unwrap();
    }
}

fn table(name: &str, oid: u32) -> Vec<u8> {
    frames::relation(oid, name, b'd', &[(true, "id", 23), (false, "v", 25)])
}

fn row(a: &str) -> Vec<Option<&str>> {
    vec![Some(a), None]
}

/// (first sequence, changes, first, ends) of each piece.
fn shape(pieces: &[Piece]) -> Vec<(u64, u32, bool, bool)> {
    pieces.iter().map(|p| (p.first_sequence, p.changes.len() as u32, p.first, p.end.is_some())).collect()
}

fn rows(batch: &ChangeBatch) -> Vec<String> {
    batch
        .changes()
        .map(|c| match c.identity_row().map(|r| r.get(0)) {
            Some(ValueRef::Text(t)) => t.to_owned(),
            _ => format!("{:?}", c.op()),
        })
        .collect()
}

#[test]
fn empty_transactions_are_progress_only() {
    let mut a = assembler(Lsn(10).as_position(), &[], SchemaChange::Stop);
    all(&mut a, [frames::begin(20), frames::commit(20, 30)]);
    assert!(!a.has_changes());
    let batch = a.take(None, None).unwrap();
    assert!(batch.pieces().is_empty());
    assert_eq!(*batch.end(), Lsn(20).after_transaction(Lsn(30)));
}

#[test]
fn a_keepalive_moves_the_end_only_between_transactions_and_only_forward() {
    let mut a = assembler(Lsn(100).as_position(), &[], SchemaChange::Stop);
    a.keepalive(Lsn(50));
    assert_eq!(*a.take(None, None).unwrap().end(), Lsn(100).as_position());
    a.keepalive(Lsn(120));
    assert_eq!(*a.take(None, None).unwrap().end(), Lsn(120).as_position());
    all(&mut a, [frames::begin(120), table("t", 1)]);
    a.keepalive(Lsn(500));
    assert_eq!(*a.take(None, None).unwrap().end(), Lsn(120).as_position());
    all(&mut a, [frames::insert(1, &row("1"))]);
    let part = a.take(None, None).unwrap();
    // The announced schema has the number before the first change's.
    assert_eq!(*part.end(), Lsn(120).within_transaction(1, Lsn(120)));
    assert_eq!(shape(part.pieces()), [(0, 1, true, false), (1, 1, false, false)]);
    a.keepalive(Lsn(500));
    assert_eq!(a.take(None, None).unwrap().end(), part.end());
    all(&mut a, [frames::commit(120, 150)]);
    assert!(!a.has_changes() || a.is_full());
    let last = a.take(None, None).unwrap();
    assert_eq!(shape(last.pieces()), [(2, 0, false, true)]);
    assert_eq!(*last.end(), Lsn(120).after_transaction(Lsn(150)));
}

#[test]
fn what_a_copy_has_is_left_out_and_numbers_stay() {
    let mut a = assembler(Lsn(10).as_position(), &[("t", 100)], SchemaChange::Stop);
    all(
        &mut a,
        [
            frames::begin(50),
            table("t", 1),
            table("u", 2),
            frames::insert(1, &row("copied")),
            frames::insert(2, &row("u1")),
            frames::insert(1, &row("copied")),
            frames::insert(2, &row("u2")),
            frames::commit(50, 60),
            frames::begin(70),
            frames::insert(1, &row("copied")),
            frames::commit(70, 80),
            frames::begin(100),
            frames::insert(1, &row("streamed")),
            frames::commit(100, 110),
        ],
    );
    let batch = a.take(None, None).unwrap();
    let given: Vec<_> =
        batch.changes().filter(|c| c.op() == Op::Insert).map(|c| (c.rank(), c.schema().name.name.clone())).collect();
    assert_eq!(
        given,
        [
            (Rank::of_change(&Lsn(50).prefix(), 2), "u".to_owned()),
            (Rank::of_change(&Lsn(50).prefix(), 4), "u".to_owned()),
            (Rank::of_change(&Lsn(100).prefix(), 1), "t".to_owned()),
        ]
    );
    assert_eq!(batch.pieces().iter().filter(|p| p.end.is_some()).count(), 2);
    // A transaction begins with the first of its changes that is given.
    let firsts: Vec<_> = batch.pieces().iter().filter(|p| p.first).map(|p| p.first_sequence).collect();
    assert_eq!(firsts, [1, 0]);
}

#[test]
fn what_an_earlier_run_gave_is_left_out() {
    let frames = || {
        vec![
            frames::begin(50),
            table("t", 1),
            frames::insert(1, &row("1")),
            frames::insert(1, &row("2")),
            frames::insert(1, &row("3")),
            frames::commit(50, 60),
            frames::begin(70),
            frames::insert(1, &row("4")),
            frames::commit(70, 80),
        ]
    };
    for (position, expected) in [
        (Lsn(10).as_position(), vec!["1", "2", "3", "4"]),
        (Lsn(50).within_transaction(2, Lsn(10)), vec!["3", "4"]),
        (Lsn(50).after_transaction(Lsn(60)), vec!["4"]),
        (Lsn(70).as_position(), vec!["4"]),
        (Lsn(70).after_transaction(Lsn(80)), vec![]),
    ] {
        let mut a = assembler(position.clone(), &[], SchemaChange::Stop);
        all(&mut a, frames());
        let batch = a.take(None, None).unwrap();
        let given: Vec<_> = rows(&batch).into_iter().filter(|r| r != "Schema").collect();
        assert_eq!(given, expected, "{position:?}");
        assert!(batch.end().rank >= position.rank);
    }
}

#[test]
fn transactions_of_other_origins_are_left_out() {
    let mut a = assembler(Lsn(10).as_position(), &[], SchemaChange::Stop);
    all(
        &mut a,
        [
            frames::begin(50),
            Frame::new(b'O').u64(1).text("elsewhere").0,
            table("t", 1),
            frames::insert(1, &row("1")),
            frames::commit(50, 60),
        ],
    );
    assert!(!a.has_changes());
    assert_eq!(*a.take(None, None).unwrap().end(), Lsn(50).after_transaction(Lsn(60)));
}

#[test]
fn a_streamed_transaction_comes_back_without_what_was_rolled_back() {
    let within = |xid: u32, message: Vec<u8>| [&message[..1], &xid.to_be_bytes(), &message[1..]].concat();
    let start = |xid: u32, first: u8| Frame::new(b'S').u32(xid).u8(first).0;
    let mut a = assembler(Lsn(10).as_position(), &[], SchemaChange::Stop);
    all(
        &mut a,
        [
            start(7, 1),
            within(7, table("t", 1)),
            within(7, frames::insert(1, &row("kept"))),
            within(8, frames::insert(1, &row("rolled back"))),
            vec![b'E'],
            start(9, 1),
            within(9, frames::insert(1, &row("aborted"))),
            vec![b'E'],
            Frame::new(b'A').u32(9).u32(9).0,
            frames::begin(20),
            frames::commit(20, 30),
            Frame::new(b'A').u32(7).u32(8).0,
            start(7, 0),
            within(7, frames::insert(1, &row("late"))),
            vec![b'E'],
        ],
    );
    assert!(!a.has_changes() && !a.in_transaction());
    a.keepalive(Lsn(40));
    all(&mut a, [Frame::new(b'c').u32(7).u8(0).u64(50).u64(60).u64(0).0]);
    assert!(a.in_transaction());
    while let Some(step) = a.replay().unwrap() {
        if let Step::Describe(described) = step {
            a.resolved(Resolved::for_test(described)).unwrap();
        }
    }
    let batch = a.take(None, None).unwrap();
    assert_eq!(rows(&batch), ["Schema", "kept", "late"]);
    assert_eq!(*batch.end(), Lsn(50).after_transaction(Lsn(60)));
}

#[test]
fn schema_changes_follow_the_policy() {
    let wider = || frames::relation(1, "t", b'd', &[(true, "id", 23), (false, "v", 25), (false, "w", 25)]);
    for (policy, frame, goes_on) in [
        (SchemaChange::Stop, wider(), false),
        (SchemaChange::AddColumns, wider(), true),
        (SchemaChange::Ignore, wider(), true),
        (SchemaChange::AddColumns, frames::relation(1, "t", b'd', &[(true, "id", 20), (false, "v", 25)]), false),
        (SchemaChange::AddColumns, frames::relation(1, "t", b'd', &[(true, "id", 23)]), false),
        (SchemaChange::AddColumns, frames::relation(1, "t2", b'd', &[(true, "id", 23), (false, "v", 25)]), false),
        (SchemaChange::Ignore, frames::relation(1, "t", b'd', &[(true, "id", 23)]), true),
        // Only old images change.
        (SchemaChange::Stop, frames::relation(1, "t", b'i', &[(true, "id", 23), (false, "v", 25)]), true),
        (SchemaChange::Stop, table("t", 1), true),
    ] {
        let mut a = assembler(Lsn(10).as_position(), &[], policy);
        all(&mut a, [frames::begin(50), table("t", 1), frames::insert(1, &row("1"))]);
        let done = apply(&mut a, frame.clone());
        assert_eq!(done.is_ok(), goes_on, "{policy:?} {done:?}");
        if let Err(e) = done {
            assert_eq!(e.kind(), anabranch_core::ErrorKind::Fatal);
        }
    }
}

#[test]
fn protocol_violations_are_errors() {
    let wide: &[Option<&str>] = &[Some("1"), None, None];
    let sequences: Vec<Vec<Vec<u8>>> = vec![
        vec![frames::insert(1, &row("1"))],
        vec![frames::commit(5, 6)],
        vec![frames::begin(50), frames::begin(60)],
        vec![frames::begin(50), frames::commit(51, 60)],
        vec![frames::begin(50), frames::commit(50, 40)],
        vec![frames::begin(50), frames::insert(9, &row("1"))],
        vec![frames::begin(50), table("t", 1), frames::insert(1, wide)],
        vec![frames::begin(50), table("t", 1), frames::update(1, Some((b'O', wide)), &row("1"))],
        vec![frames::begin(50), table("t", 1), frames::update(1, Some((b'K', &row("1"))), wide)],
        vec![frames::begin(50), table("t", 1), frames::delete(1, b'K', wide)],
        vec![Frame::new(b'S').u32(1).u8(0).0],
        vec![Frame::new(b'S').u32(1).u8(1).0, Frame::new(b'S').u32(2).u8(1).0],
        vec![vec![b'E']],
        vec![Frame::new(b'c').u32(1).u8(0).u64(5).u64(9).u64(0).0],
        vec![frames::begin(50), table("t", 1), Frame::new(b'I').u32(1).u8(b'N').row(wide).0],
    ];
    for frames in sequences {
        let mut a = assembler(Lsn(10).as_position(), &[], SchemaChange::Ignore);
        let failed = frames.iter().any(|f| apply(&mut a, f.clone()).is_err());
        assert!(failed, "{frames:?}");
    }
}

/// A value is text until it is looked at; then its letters must be whole.
#[test]
fn values_that_are_cut_within_a_letter_are_errors() {
    let mut a = assembler(Lsn(10).as_position(), &[], SchemaChange::Stop);
    all(&mut a, [frames::begin(50), table("t", 1)]);
    let mut cut = Frame::new(b'I').u32(1).u8(b'N').u16(2).u8(b'n').u8(b't').u32(1);
    cut.0.push("ü".as_bytes()[0]);
    let e = apply(&mut a, cut.0).unwrap_err();
    assert!(e.to_string().contains("column v of public.t is not valid UTF-8"), "{e}");
}

/// Takes a frame and everything that it leads to, as the reader does. The number of steps is bounded
/// by what was fed: a replay that goes on for ever fails.
fn drive(a: &mut Assembler, frame: &[u8], fed: &mut usize) -> Result<()> {
    *fed += 1;
    let limit = *fed + 1;
    let mut steps = 0;
    if let Step::Describe(described) = a.apply(frame)? {
        a.resolved(Resolved::for_test(described))?;
    }
    while let Some(step) = a.replay()? {
        if let Step::Describe(described) = step {
            a.resolved(Resolved::for_test(described))?;
        }
        steps += 1;
        assert!(steps <= limit, "a replay of more messages than were sent");
    }
    Ok(())
}

/// Every kind of message, inside and outside of streams.
fn vocabulary() -> Vec<Vec<u8>> {
    let within = |xid: u32, message: Vec<u8>| [&message[..1], &xid.to_be_bytes(), &message[1..]].concat();
    let mut all = vec![
        frames::begin(50),
        frames::begin(70),
        frames::commit(50, 60),
        frames::commit(70, 80),
        table("t", 1),
        table("u", 2),
        frames::relation(1, "t", b'f', &[(true, "id", 23)]),
        frames::insert(1, &row("1")),
        frames::insert(9, &row("unknown")),
        frames::insert(1, &[Some("1"), None, Some("one too many")]),
        frames::update(1, Some((b'K', &row("1"))), &[Some("2"), Some("\u{1}")]),
        frames::delete(1, b'O', &row("2")),
        Frame::new(b'T').u32(2).u8(3).u32(1).u32(2).0,
        Frame::new(b'M').u8(1).u64(4).text("p").u32(2).u8(1).u8(2).0,
        Frame::new(b'O').u64(1).text("elsewhere").0,
        vec![b'E'],
    ];
    for xid in [7, 8] {
        all.extend([
            Frame::new(b'S').u32(xid).u8(1).0,
            Frame::new(b'S').u32(xid).u8(0).0,
            within(xid, table("t", 1)),
            within(xid, frames::insert(1, &row("1"))),
            within(9, frames::insert(2, &row("2"))),
            Frame::new(b'A').u32(xid).u32(xid).0,
            Frame::new(b'A').u32(xid).u32(9).0,
            Frame::new(b'c').u32(xid).u8(0).u64(90).u64(99).u64(0).0,
        ]);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Begins, ends, changes and streams in any order, some of them damaged.
    #[test]
    fn messages_in_any_order_never_panic(
        order in prop::collection::vec((any::<prop::sample::Index>(), prop::option::weighted(0.1, any::<(prop::sample::Index, u8)>())), 1..60)
    ) {
        let vocabulary = vocabulary();
        let mut a = assembler(Lsn(10).as_position(), &[("u", 60)], SchemaChange::Ignore);
        let mut fed = 0;
        for (which, damage) in order {
            let mut frame = vocabulary[which.index(vocabulary.len())].clone();
            if let Some((at, byte)) = damage {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            // What is refused ends a reader; going on shows more of what may happen.
            let _ = drive(&mut a, &frame, &mut fed);
        }
        if let Ok(batch) = a.take(None, None) {
            rows(&batch);
            prop_assert!(batch.len() <= 4 * fed);
        }
    }

    #[test]
    fn random_messages_never_panic(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..20)
    ) {
        let mut a = assembler(Lsn(10).as_position(), &[], SchemaChange::Ignore);
        all(&mut a, [frames::begin(50), table("t", 1), frames::insert(1, &row("1"))]);
        let mut fed = 3;
        for frame in frames {
            let _ = drive(&mut a, &frame, &mut fed);
        }
        let _ = a.take(None, None);
    }
}

proptest! {
    #[test]
    fn mutated_streams_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut frames = vec![
            frames::begin(50),
            table("t", 1),
            frames::insert(1, &row("1")),
            frames::update(1, Some((b'K', &row("1"))), &[Some("2"), Some("\u{1}")]),
            frames::delete(1, b'O', &row("2")),
            Frame::new(b'T').u32(1).u8(3).u32(1).0,
            Frame::new(b'M').u8(1).u64(4).text("p").u32(2).u8(1).u8(2).0,
            frames::commit(50, 60),
        ];
        for (frame, at, byte) in edits {
            let n = frames.len();
            let frame = &mut frames[frame.index(n)];
            let length = frame.len();
            frame[at.index(length)] = byte;
        }
        let mut a = assembler(Lsn(10).as_position(), &[], SchemaChange::Ignore);
        for frame in frames {
            if apply(&mut a, frame).is_err() {
                break;
            }
        }
        if let Ok(batch) = a.take(None, None) {
            rows(&batch);
        }
    }
}

/// Prints what one change costs from frame to batch, without a socket: run with
/// `cargo test -p anabranch-postgres --release -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement, not a check"]
fn cost_of_a_change() {
    let columns: Vec<_> = ["id", "a", "b", "c", "d", "e", "f"].map(|n| (n == "id", n, 25)).to_vec();
    let values: Vec<Option<&str>> = vec![
        Some("1234567"),
        Some("some text of a customer"),
        Some("2024-01-01 00:00:00"),
        None,
        Some("12.34"),
        Some("t"),
        Some("{\"k\": \"v\"}"),
    ];
    let wrap = |message: Vec<u8>| [vec![b'w'], vec![0; 24], message].concat();
    let mut a = assembler(Lsn(10).as_position(), &[], SchemaChange::Ignore);
    all(&mut a, [frames::begin(50), frames::relation(1, "t", b'd', &columns), frames::commit(50, 60)]);
    let insert = wrap(frames::insert(1, &values));
    let (mut changes, mut lsn, per_transaction) = (0u64, 100, 10);
    // Time on the processor, not on the wall: the first field of schedstat, in nanoseconds.
    let spent = || -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let begun = spent();
    while changes < 3_000_000 {
        let frames = [wrap(frames::begin(lsn)), wrap(frames::commit(lsn, lsn + 50))];
        let sequence = std::iter::once(&frames[0])
            .chain(std::iter::repeat_n(&insert, per_transaction))
            .chain(std::iter::once(&frames[1]));
        for frame in sequence {
            let Ok(crate::decode::frame::Frame::Data(message)) = crate::decode::frame::Frame::decode(frame) else {
                panic!()
            };
            a.apply(message).unwrap();
        }
        changes += per_transaction as u64;
        lsn += 100;
        if a.is_full() {
            std::hint::black_box(a.take(None, None).unwrap());
        }
    }
    let each = (spent() - begun) as f64 / changes as f64;
    println!("{each:.0} ns a change of {} columns, in transactions of {per_transaction}", columns.len());
}

/// The time of every transaction that `frames` builds.
fn at() -> Timestamp {
    crate::lsn::from_postgres_time(1_000_000)
}

fn by_time(position: Position, copied: &[(&str, u64)]) -> Assembler {
    let copied: HashMap<_, _> = copied.iter().map(|(t, until)| (TableName::new("public", *t), Lsn(*until))).collect();
    let relations = Relations::new([], copied, SchemaChange::Stop);
    let start = Start { position, drop_origins: false, ranking: Ranking::CommitTime };
    Assembler::new(PartitionId::new("slot"), relations, start).unwrap()
}

fn after(commit: u64) -> Position {
    Lsn(commit).after(&Ranking::CommitTime.prefix(Lsn(commit), at()))
}

/// YugabyteDB's frames: identity CHANGE, places without gaps, keepalives that are ahead of what was sent.
fn yugabyte() -> Vec<Vec<u8>> {
    vec![
        frames::begin(20),
        frames::relation(16, "t", b'c', &[(true, "id", 23), (false, "v", 25)]),
        frames::insert(16, &[Some("1"), Some("a")]),
        frames::commit(20, 21),
        frames::begin(21),
        frames::update(16, None, &[Some("1"), Some("\u{1}")]),
        frames::delete(16, b'K', &[Some("1"), None]),
        frames::commit(21, 22),
    ]
}

#[test]
fn a_stream_by_commit_time_confirms_commits_and_nothing_else() {
    let start = crate::lsn::before_time(at(), Lsn(2));
    let mut a = by_time(start.clone(), &[]);
    let mut sent = yugabyte();
    let second = sent.split_off(4);
    all(&mut a, sent);
    let batch = a.take(None, None).unwrap();
    assert_eq!(*batch.end(), after(20));
    assert_eq!((a.boundary(), a.committed()), (Lsn(20), Some(at())), "not 21: that is the next one's commit");
    // It was read by the server and is still to be sent.
    a.keepalive(Lsn(21));
    assert_eq!(*a.take(None, None).unwrap().end(), after(20));
    all(&mut a, second);
    let batch = a.take(None, None).unwrap();
    assert_eq!((rows(&batch), batch.end()), (vec!["1".to_owned(), "1".to_owned()], &after(21)));
    let delete = batch.changes().nth(1).unwrap();
    assert!(delete.old_row().unwrap().get(1).is_unchanged(), "outside the key nothing was sent");
}

#[test]
fn a_stream_by_commit_time_resumes_at_a_commit_and_never_goes_back() {
    // The server gives the transaction at the place again.
    let mut a = by_time(after(20), &[]);
    all(&mut a, yugabyte());
    let batch = a.take(None, None).unwrap();
    assert_eq!(batch.changes().filter(|c| c.op() != Op::Schema).count(), 2);
    for commit in [21, 20] {
        assert!(apply(&mut a, frames::begin(commit)).unwrap_err().to_string().contains("went back"));
    }
    // A copy whose point lies behind the commits, and one whose point is their time.
    for (until, left) in [(at().as_micros() as u64 + 1, 0), (at().as_micros() as u64, 3)] {
        let mut a = by_time(crate::lsn::before_time(at(), Lsn(2)), &[("t", until)]);
        all(&mut a, yugabyte());
        let batch = a.take(None, None).unwrap();
        assert_eq!((batch.changes().filter(|c| c.op() != Op::Schema).count(), batch.end()), (left, &after(21)));
    }
}
