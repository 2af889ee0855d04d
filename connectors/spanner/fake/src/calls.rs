//! What each method does.

use std::sync::Arc;

use googleapis_tonic_google_spanner_v1::google::spanner::v1 as wire;
use prost_types::{ListValue, Value};
use tokio::sync::mpsc;
use tonic::Status;
use wire::struct_type::Field;
use wire::transaction_options::Mode as TransactionMode;
use wire::transaction_selector::Selector;
use wire::{PartialResultSet, ResultSetMetadata, StructType, TypeCode};

use crate::database::{Database, Open};
use crate::encode::{of_json, scalar, text};
use crate::reading::Reading;
use crate::schema;

type Called<T> = Result<T, Status>;
type Out = mpsc::Sender<Result<PartialResultSet, Status>>;

pub(crate) fn create_session(database: &Database, request: wire::CreateSessionRequest) -> Called<wire::Session> {
    let wanted = request.session.unwrap_or_default();
    let number = database.lock().next_number();
    let name = format!("{}/sessions/s{number}", request.database);
    Ok(wire::Session { name, multiplexed: wanted.multiplexed, ..wire::Session::default() })
}

pub(crate) fn batch_create_sessions(
    database: &Database,
    request: wire::BatchCreateSessionsRequest,
) -> Called<wire::BatchCreateSessionsResponse> {
    let one = |_| {
        let session = request.session_template.clone();
        create_session(database, wire::CreateSessionRequest { database: request.database.clone(), session })
    };
    let session = (0..request.session_count.max(1)).map(one).collect::<Called<_>>()?;
    Ok(wire::BatchCreateSessionsResponse { session })
}

pub(crate) fn get_session(_: &Database, request: wire::GetSessionRequest) -> Called<wire::Session> {
    Ok(wire::Session { name: request.name, ..wire::Session::default() })
}

pub(crate) fn delete_session(_: &Database, _: wire::DeleteSessionRequest) -> Called<()> {
    Ok(())
}

pub(crate) fn begin_transaction(
    database: &Database,
    request: wire::BeginTransactionRequest,
) -> Called<wire::Transaction> {
    let tag = request.request_options.unwrap_or_default().transaction_tag;
    Ok(begin(database, &request.options.unwrap_or_default(), &tag))
}

fn begin(database: &Database, options: &wire::TransactionOptions, tag: &str) -> wire::Transaction {
    let now = database.clock.now();
    let mut state = database.lock();
    let id = format!("transaction-{}", state.next_number()).into_bytes();
    let read_only = matches!(options.mode, Some(TransactionMode::ReadOnly(_)));
    if !read_only {
        let excluded = options.exclude_txn_from_change_streams;
        state.open.insert(id.clone(), Open { tag: tag.to_owned(), excluded, ..Open::default() });
    }
    let read_timestamp = read_only.then(|| now.proto());
    wire::Transaction { id, read_timestamp, ..wire::Transaction::default() }
}

/// The transaction of a statement: begun with it, or there; none for a single use.
fn transaction(
    database: &Database,
    selector: Option<&wire::TransactionSelector>,
    tag: &str,
) -> (Option<Vec<u8>>, Option<wire::Transaction>) {
    match selector.and_then(|s| s.selector.as_ref()) {
        Some(Selector::Begin(options)) => {
            let begun = begin(database, options, tag);
            (Some(begun.id.clone()), Some(begun))
        }
        Some(Selector::Id(id)) => (Some(id.clone()), None),
        Some(Selector::SingleUse(_)) | None => (None, None),
    }
}

pub(crate) fn commit(database: &Database, request: wire::CommitRequest) -> Called<wire::CommitResponse> {
    let tag = request.request_options.unwrap_or_default().transaction_tag;
    let id = match request.transaction {
        Some(wire::commit_request::Transaction::TransactionId(id)) => id,
        Some(wire::commit_request::Transaction::SingleUseTransaction(options)) => begin(database, &options, &tag).id,
        None => return Err(Status::invalid_argument("a commit without a transaction")),
    };
    if !tag.is_empty()
        && let Some(open) = database.lock().open.get_mut(&id)
    {
        open.tag = tag;
    }
    let at = database.commit(&id, request.mutations)?;
    Ok(wire::CommitResponse { commit_timestamp: Some(at.proto()), ..wire::CommitResponse::default() })
}

pub(crate) fn rollback(database: &Database, request: wire::RollbackRequest) -> Called<()> {
    database.lock().open.remove(&request.transaction_id);
    Ok(())
}

pub(crate) fn execute_sql(database: &Database, request: wire::ExecuteSqlRequest) -> Called<wire::ResultSet> {
    let (metadata, rows, stats) = statement(database, &request)?;
    Ok(wire::ResultSet {
        metadata: Some(metadata),
        rows: rows.into_iter().map(|values| ListValue { values }).collect(),
        stats,
        ..wire::ResultSet::default()
    })
}

pub(crate) fn execute_batch_dml(
    database: &Database,
    request: wire::ExecuteBatchDmlRequest,
) -> Called<wire::ExecuteBatchDmlResponse> {
    let tag = request.request_options.unwrap_or_default().transaction_tag;
    let (id, mut begun) = transaction(database, request.transaction.as_ref(), &tag);
    let mut state = database.lock();
    let open = id.as_ref().and_then(|id| state.open.get_mut(id));
    let Some(open) = open else { return Err(Status::failed_precondition("DML without a transaction")) };
    open.statements.extend(request.statements.iter().map(|s| s.sql.clone()));
    let result_sets = request.statements.iter().map(|_| wire::ResultSet {
        metadata: Some(ResultSetMetadata { transaction: begun.take(), ..ResultSetMetadata::default() }),
        stats: Some(counted(1)),
        ..wire::ResultSet::default()
    });
    Ok(wire::ExecuteBatchDmlResponse { result_sets: result_sets.collect(), ..Default::default() })
}

fn counted(rows: i64) -> wire::ResultSetStats {
    let row_count = Some(wire::result_set_stats::RowCount::RowCountExact(rows));
    wire::ResultSetStats { row_count, ..wire::ResultSetStats::default() }
}

pub(crate) fn partition_query(
    database: &Database,
    request: wire::PartitionQueryRequest,
) -> Called<wire::PartitionResponse> {
    let (_, transaction) = transaction(database, request.transaction.as_ref(), "");
    let count = match request.partition_options.unwrap_or_default().max_partitions {
        0 => 3,
        n => n.clamp(1, 16),
    };
    let part = |n| wire::Partition { partition_token: format!("part-{n}-of-{count}").into_bytes() };
    Ok(wire::PartitionResponse { partitions: (0..count).map(part).collect(), transaction })
}

/// Answers with a stream of rows: of a change stream as long as the query goes on.
pub(crate) fn stream(database: &Arc<Database>, request: wire::ExecuteSqlRequest, out: Out) -> Called<()> {
    if let Some(query) = database.stream_query(&request.sql, request.params.as_ref())? {
        let reading = Reading::begin(database, query, &request.resume_token, out)?;
        tokio::spawn(reading.run());
        return Ok(());
    }
    let (metadata, rows, stats) = statement(database, &request)?;
    let resume = |place: usize| format!("after-{place}").into_bytes();
    let done = std::str::from_utf8(&request.resume_token).ok().and_then(|t| t.strip_prefix("after-")?.parse().ok());
    let mut sets: Vec<PartialResultSet> = rows
        .into_iter()
        .enumerate()
        .skip(done.unwrap_or(0))
        .map(|(at, values)| PartialResultSet { values, resume_token: resume(at + 1), ..PartialResultSet::default() })
        .collect();
    if sets.is_empty() {
        sets.push(PartialResultSet::default());
    }
    sets[0].metadata = Some(metadata);
    if let Some(last) = sets.last_mut() {
        last.stats = stats;
    }
    tokio::spawn(async move {
        for set in sets {
            if out.send(Ok(set)).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

type Answered = (ResultSetMetadata, Vec<Vec<Value>>, Option<wire::ResultSetStats>);

/// Runs a query, or notes a statement of DML.
fn statement(database: &Database, request: &wire::ExecuteSqlRequest) -> Called<Answered> {
    let tag = request.request_options.clone().unwrap_or_default().transaction_tag;
    let (id, begun) = transaction(database, request.transaction.as_ref(), &tag);
    let mut state = database.lock();
    let commits = state.commits.len();
    let sql = request.sql.trim();
    let verb = sql.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if let Some(open) = id.as_ref().and_then(|id| state.open.get_mut(id)) {
        open.read_at.get_or_insert(commits);
        if matches!(verb.as_str(), "INSERT" | "UPDATE" | "DELETE") {
            open.statements.push(sql.to_owned());
            let metadata = ResultSetMetadata { transaction: begun, ..ResultSetMetadata::default() };
            return Ok((metadata, Vec::new(), Some(counted(1))));
        }
    }
    let answer = state.answers.iter().find(|a| sql.contains(&a.contains));
    let scripted = answer.map(|a| {
        let rows = a.rows.iter().map(|row| row.iter().map(of_json).collect()).collect();
        (a.columns.clone(), rows)
    });
    let clock = || {
        let now = database.clock.now().to_string();
        let one = |code: &str, value: String| (vec![(String::new(), code.to_owned())], vec![vec![text(value)]]);
        match sql.to_ascii_uppercase().as_str() {
            "SELECT CURRENT_TIMESTAMP" => Some(one("TIMESTAMP", now)),
            // With which the official client tries a new connection.
            "SELECT 1" => Some(one("INT64", "1".to_owned())),
            _ => None,
        }
    };
    let params = request.params.as_ref();
    let known = scripted.or_else(clock).or_else(|| schema::answer(&state, database.dialect, sql, params));
    let known = known.or_else(|| {
        let (names, rows) = state.tables.select(sql, params, database.dialect)?;
        Some((schema::typed(&state, sql, names), rows))
    });
    let Some((columns, mut rows)) = known else {
        return Err(Status::invalid_argument(format!("the fake has no answer to: {sql}")));
    };
    if !request.partition_token.is_empty() {
        rows = part(rows, &request.partition_token)?;
    }
    let fields = columns.into_iter().map(|(name, code)| Field { name, r#type: Some(kind(&code)) }).collect();
    let row_type = Some(StructType { fields });
    Ok((ResultSetMetadata { row_type, transaction: begun, ..ResultSetMetadata::default() }, rows, None))
}

fn kind(code: &str) -> wire::Type {
    match code.strip_prefix("ARRAY<").and_then(|c| c.strip_suffix('>')) {
        Some(of) => wire::Type { array_element_type: Some(Box::new(kind(of))), ..scalar(TypeCode::Array) },
        None => scalar(TypeCode::from_str_name(code).unwrap_or(TypeCode::String)),
    }
}

/// The rows of one of the parts that `partition_query` made.
fn part(rows: Vec<Vec<Value>>, token: &[u8]) -> Called<Vec<Vec<Value>>> {
    let parsed = std::str::from_utf8(token).ok().and_then(|t| {
        let (number, count) = t.strip_prefix("part-")?.split_once("-of-")?;
        Some((number.parse::<usize>().ok()?, count.parse::<usize>().ok().filter(|c| *c > 0)?))
    });
    let Some((number, count)) = parsed else { return Err(Status::invalid_argument("no such partition token")) };
    Ok(rows.into_iter().enumerate().filter(|(at, _)| at % count == number).map(|(_, row)| row).collect())
}
