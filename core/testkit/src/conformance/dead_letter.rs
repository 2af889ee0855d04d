//! What every [`DeadLetterStore`] must do.

use std::sync::Arc;

use anabranch_core::{
    Column, DataType, DeadLetter, DeadLetterStore, LetterClass, LetterState, Op, PartitionId, Position, Rank,
    TableName, TableSchema, Timestamp, TruncateOptions, Value,
};

const ALL: &[LetterState] = &[LetterState::Open, LetterState::Held, LetterState::Applied, LetterState::Skipped];

/// Runs every check. `open` gives a new handle to one store, which is empty at first.
///
/// # Panics
/// With what the store did wrong.
pub async fn run(open: impl AsyncFn() -> Arc<dyn DeadLetterStore>) {
    an_unknown_pipeline_has_no_letters(&open).await;
    what_is_put_comes_back(&open).await;
    an_id_put_again_replaces(&open).await;
    letters_are_listed_by_id_in_pages(&open).await;
    states_are_told_apart(&open).await;
    pipelines_are_apart(&open).await;
    what_was_moved_is_not_replaced(&open).await;
}

async fn an_unknown_pipeline_has_no_letters(open: &impl AsyncFn() -> Arc<dyn DeadLetterStore>) {
    let store = open().await;
    assert_eq!(list(&store, "conformance-none", ALL).await, []);
    assert_eq!(store.get("conformance-none", "slot:00").await.expect("get"), None);
    assert_eq!(store.open_count("conformance-none").await.expect("open_count"), 0);
    store.put("conformance-none", &[]).await.expect("put of no letters");
}

/// Every field, every kind of value, through another handle.
async fn what_is_put_comes_back(open: &impl AsyncFn() -> Arc<dyn DeadLetterStore>) {
    let pipeline = "conformance-full";
    let ops = [
        Op::Insert,
        Op::Update,
        Op::Delete,
        Op::Truncate(TruncateOptions { cascade: true, restart_identity: false }),
        Op::Message,
    ];
    let letters: Vec<_> =
        ops.iter().zip(1..).map(|(&op, n)| DeadLetter { op, ..letter(n, LetterState::Open) }).collect();
    open().await.put(pipeline, &letters).await.expect("put");

    let store = open().await;
    assert_eq!(list(&store, pipeline, ALL).await, letters);
    for letter in &letters {
        assert_eq!(store.get(pipeline, &letter.id).await.expect("get").as_ref(), Some(letter));
    }
}

/// As after a crash between the put and the checkpoint: the same letters come again.
async fn an_id_put_again_replaces(open: &impl AsyncFn() -> Arc<dyn DeadLetterStore>) {
    let (store, pipeline) = (open().await, "conformance-again");
    let first = [letter(1, LetterState::Open), letter(2, LetterState::Open)];
    store.put(pipeline, &first).await.expect("put");
    store.put(pipeline, &first).await.expect("put of the same letters");
    assert_eq!(list(&store, pipeline, ALL).await, first, "the same letters twice");

    let tried = DeadLetter { attempts: 3, reason: "still".to_owned(), ..first[0].clone() };
    open().await.put(pipeline, std::slice::from_ref(&tried)).await.expect("put of a changed letter");
    assert_eq!(list(&store, pipeline, ALL).await, [tried, first[1].clone()]);

    let twice = [letter(3, LetterState::Open), letter(3, LetterState::Held)];
    store.put(pipeline, &twice).await.expect("put of one id twice");
    assert_eq!(list(&store, pipeline, ALL).await.last(), Some(&twice[1]), "the later of two letters of one id counts");
}

async fn letters_are_listed_by_id_in_pages(open: &impl AsyncFn() -> Arc<dyn DeadLetterStore>) {
    let (store, pipeline) = (open().await, "conformance-pages");
    let mut letters: Vec<_> = (1..=10).map(|n| letter(n, LetterState::Open)).collect();
    for letter in letters.iter().rev() {
        store.put(pipeline, std::slice::from_ref(letter)).await.expect("put");
    }
    letters.sort_by(|a, b| a.id.cmp(&b.id));
    let mut pages = Vec::new();
    loop {
        let after = pages.last().map(|l: &DeadLetter| l.id.clone());
        let page = store.list(pipeline, ALL, after.as_deref(), 3).await.expect("list");
        assert!(page.len() <= 3, "a page of 3 has {}", page.len());
        if page.is_empty() {
            break;
        }
        pages.extend(page);
    }
    assert_eq!(pages, letters, "pages in the order of ids (compared as bytes)");
}

async fn states_are_told_apart(open: &impl AsyncFn() -> Arc<dyn DeadLetterStore>) {
    let (store, pipeline) = (open().await, "conformance-states");
    let letters: Vec<_> = ALL.iter().zip(1..).map(|(&state, n)| letter(n, state)).collect();
    store.put(pipeline, &letters).await.expect("put");
    for (&state, letter) in ALL.iter().zip(&letters) {
        assert_eq!(list(&store, pipeline, &[state]).await, std::slice::from_ref(letter));
    }
    assert_eq!(list(&store, pipeline, &[LetterState::Open, LetterState::Held]).await, letters[..2]);
    assert_eq!(list(&store, pipeline, &[]).await, []);
    assert_eq!(store.open_count(pipeline).await.expect("open_count"), 2, "open and held letters are open");

    let done: Vec<_> = letters.iter().map(|l| DeadLetter { state: LetterState::Skipped, ..l.clone() }).collect();
    store.put(pipeline, &done).await.expect("put");
    assert_eq!(store.open_count(pipeline).await.expect("open_count"), 0);
    assert_eq!(list(&store, pipeline, &[LetterState::Skipped]).await, done);
}

async fn pipelines_are_apart(open: &impl AsyncFn() -> Arc<dyn DeadLetterStore>) {
    let store = open().await;
    let (mine, yours) = (letter(1, LetterState::Open), letter(1, LetterState::Skipped));
    store.put("conformance-mine", std::slice::from_ref(&mine)).await.expect("put");
    store.put("conformance-yours", std::slice::from_ref(&yours)).await.expect("put");
    assert_eq!(list(&store, "conformance-mine", ALL).await, [mine]);
    assert_eq!(list(&store, "conformance-yours", ALL).await, [yours]);
}

/// An operator, or another process, decides between the reading of a letter and its replacing.
async fn what_was_moved_is_not_replaced(open: &impl AsyncFn() -> Arc<dyn DeadLetterStore>) {
    let (store, pipeline) = (open().await, "conformance-moved");
    let letters: Vec<_> = (1..=3).map(|n| letter(n, LetterState::Open)).collect();
    store.put(pipeline, &letters).await.expect("put");
    let skipped = DeadLetter { state: LetterState::Skipped, class: LetterClass::Skip, ..letters[0].clone() };
    open().await.put(pipeline, std::slice::from_ref(&skipped)).await.expect("put");

    let again = |l: &DeadLetter| DeadLetter { class: LetterClass::Retry, attempts: 2, ..l.clone() };
    let tried: Vec<_> = [&letters[0], &letters[1]].map(|l| (l.clone(), again(l))).into();
    assert_eq!(store.replace(pipeline, &tried).await.expect("replace"), 1, "one of two was moved meanwhile");
    assert_eq!(list(&store, pipeline, ALL).await, [skipped, again(&letters[1]), letters[2].clone()]);

    let same = [(letters[2].clone(), letters[2].clone())];
    assert_eq!(store.replace(pipeline, &same).await.expect("replace"), 1, "by what it is already");
    let unknown = letter(9, LetterState::Open);
    assert_eq!(store.replace(pipeline, &[(unknown.clone(), unknown)]).await.expect("replace"), 0, "of no letter");
    assert_eq!(store.replace(pipeline, &[]).await.expect("replace"), 0);
    assert_eq!(store.replace("conformance-nowhere", &tried).await.expect("replace"), 0);
}

async fn list(store: &Arc<dyn DeadLetterStore>, pipeline: &str, states: &[LetterState]) -> Vec<DeadLetter> {
    store.list(pipeline, states, None, 1000).await.expect("list")
}

fn letter(n: u8, state: LetterState) -> DeadLetter {
    let columns = [("id", DataType::Int64), ("price", DataType::Decimal { precision: Some(10), scale: Some(2) })];
    DeadLetter {
        // 9 before 10 as numbers, and as bytes: hexadecimal digits of one length.
        id: format!("slot:{n:04x}"),
        class: LetterClass::Severe,
        state,
        reason: "duplicate key: \"orders_pkey\"\n(it's taken) ä".to_owned(),
        op: Op::Insert,
        schema: TableSchema {
            name: TableName::new("public", "Orders 2"),
            columns: columns.map(|(name, data_type)| Column::new(name, data_type)).into(),
            key: vec![0],
        },
        old: None,
        new: Some(vec![
            Value::Int(i64::MIN),
            Value::Float(-0.1),
            Value::Float(f64::INFINITY),
            Value::Bool(true),
            Value::Text("1.50 \u{1f980} \\ ' \"".to_owned()),
            Value::Bytes(vec![0, 255].into()),
            Value::Null,
            Value::Unchanged,
        ]),
        shard: Some("eu".to_owned()),
        partition: PartitionId::new("slot"),
        position: Position::new(Rank::of_change(&[n], 1), &b"\x00\xff"[..]),
        commit_time: Some(Timestamp::from_micros(1_700_000_000_000_001)),
        attempts: 1,
        last_attempt: Some(Timestamp::from_micros(1)),
        parked: None,
        lane: None,
    }
}
