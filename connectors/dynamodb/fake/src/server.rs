//! HTTP: one operation a request, named by a header.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::spoiled;
use crate::state::State;

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        // A small answer must not wait for the acknowledgement of the one before.
        let _ = socket.set_nodelay(true);
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&state)));
            // A client that hangs up is no failure of the server.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<BoxBody<Bytes, std::io::Error>>, Infallible> {
    let target = request.headers().get("x-amz-target").and_then(|t| t.to_str().ok()).unwrap_or_default().to_owned();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let input: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, output, date, spoiled) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = state.call(&operation, &input);
        let date = state.http_date();
        let (status, output) = match outcome {
            Ok(output) => (200, output),
            Err(failure) => (failure.status(), bytes(&failure.body())),
        };
        let spoiled = state.spoiled.get_mut(&operation).filter(|_| status == 200).and_then(|s| s.pop_front());
        (status, output, date, spoiled)
    };
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/x-amz-json-1.0")
        .header("date", date)
        .body(spoiled::body(output, spoiled));
    Ok(response.unwrap_or_else(|_| Response::new(spoiled::body(Vec::new(), None))))
}

impl State {
    fn call(&mut self, operation: &str, input: &Value) -> Result<Vec<u8>, Failure> {
        let calls = self.calls.entry(operation.to_owned()).or_default();
        *calls += 1;
        let calls = *calls;
        if let Some(code) = self.failures.get_mut(operation).and_then(|f| f.pop_front()) {
            return Err(Failure::new(&code, "as it was told to"));
        }
        let outcome = self.dispatch(operation, input);
        let due = |(o, at, _): &mut (String, usize, _)| *o == operation && *at == calls;
        let hooks: Vec<_> = self.hooks.extract_if(.., |h| due(h)).collect();
        for (_, _, hook) in hooks {
            hook(self);
        }
        outcome
    }

    fn dispatch(&mut self, operation: &str, input: &Value) -> Result<Vec<u8>, Failure> {
        let answer = match operation {
            "Scan" => return self.scan(input),
            "GetRecords" => return self.get_records(input),
            "CreateTable" => self.create(input),
            "DescribeTable" => self.describe(input),
            "UpdateTable" => self.update_table(input),
            "DeleteTable" => self.delete_table(input),
            "UpdateTimeToLive" => Ok(input.clone()),
            "PutItem" => self.put_item(input),
            "GetItem" => self.get_item(input),
            "DeleteItem" => self.delete_item(input),
            "BatchWriteItem" => self.batch_write(input),
            "TransactWriteItems" => self.transact_write(input),
            "DescribeStream" => self.describe_stream(input),
            "GetShardIterator" => self.get_iterator(input),
            other => Err(Failure::new("UnknownOperationException", format!("{other} is not made up here"))),
        };
        answer.map(|answer| bytes(&answer))
    }
}

fn bytes(answer: &Value) -> Vec<u8> {
    serde_json::to_vec(answer).unwrap_or_default()
}
