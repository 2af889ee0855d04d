//! Statements in flight: sent one after another without waiting for answers.
//!
//! The driver passes answers on in pieces, and stops reading when the pieces of one statement are not
//! taken. So nobody may wait for a statement while older ones are in flight and nobody takes their
//! answers: [`Flight::meanwhile`] is for that.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use futures_util::poll;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

use super::params::Text;

/// Bytes of parameters that may be on their way before the oldest answer is awaited: the driver
/// queues without limit.
const MAX_IN_FLIGHT: usize = 16 << 20;

type Answer = Result<u64, tokio_postgres::Error>;

/// Statements in flight on one connection. Dropping it abandons the answers, not the statements.
pub(crate) struct Flight<'w, T> {
    client: &'w Arc<Client>,
    running: VecDeque<Running<T>>,
    bytes: usize,
    answers: Vec<(T, Answer)>,
}

struct Running<T> {
    tag: T,
    bytes: usize,
    answer: Result<Answer, Pin<Box<dyn Future<Output = Answer> + Send>>>,
}

impl<'w, T> Flight<'w, T> {
    pub(crate) fn new(client: &'w Arc<Client>) -> Self {
        Self { client, running: VecDeque::new(), bytes: 0, answers: Vec::new() }
    }

    /// Sends a prepared statement.
    pub(crate) async fn execute(&mut self, tag: T, statement: &Statement, parameters: Vec<Text>) {
        let bytes = parameters.iter().map(|p| p.0.as_ref().map_or(0, String::len)).sum();
        let (client, statement) = (Arc::clone(self.client), statement.clone());
        self.launch(tag, bytes, async move { client.execute_raw(&statement, parameters).await }).await;
    }

    /// Sends a statement without parameters.
    pub(crate) async fn simple(&mut self, tag: T, sql: String) {
        let client = Arc::clone(self.client);
        self.launch(tag, 0, async move { client.batch_execute(&sql).await.map(|()| 0) }).await;
    }

    async fn launch(&mut self, tag: T, bytes: usize, statement: impl Future<Output = Answer> + Send + 'static) {
        while self.bytes > 0 && self.bytes + bytes > MAX_IN_FLIGHT {
            self.land_one().await;
        }
        let mut statement: Pin<Box<dyn Future<Output = Answer> + Send>> = Box::pin(statement);
        // The first poll sends: statements leave in the order of these calls.
        let answer = match poll!(statement.as_mut()) {
            Poll::Ready(answer) => Ok(answer),
            Poll::Pending => Err(statement),
        };
        self.bytes += bytes;
        self.running.push_back(Running { tag, bytes, answer });
    }

    /// Waits for something else on the same connection, taking the answers that come before.
    pub(crate) async fn meanwhile<O>(&mut self, other: impl Future<Output = O>) -> O {
        let mut other = pin!(other);
        poll_fn(|cx| {
            for running in &mut self.running {
                if let Err(statement) = &mut running.answer
                    && let Poll::Ready(answer) = statement.as_mut().poll(cx)
                {
                    running.answer = Ok(answer);
                }
            }
            other.as_mut().poll(cx)
        })
        .await
    }

    async fn land_one(&mut self) {
        let Some(running) = self.running.pop_front() else { return };
        let answer = match running.answer {
            Ok(answer) => answer,
            Err(pending) => pending.await,
        };
        self.bytes -= running.bytes;
        self.answers.push((running.tag, answer));
    }

    /// Adds the answer to a statement that could not be sent.
    pub(crate) fn fail(&mut self, tag: T, error: tokio_postgres::Error) {
        self.running.push_back(Running { tag, bytes: 0, answer: Ok(Err(error)) });
    }

    /// Waits for every answer. They come in the order of the statements.
    pub(crate) async fn land(&mut self) -> Vec<(T, Answer)> {
        while !self.running.is_empty() {
            self.land_one().await;
        }
        std::mem::take(&mut self.answers)
    }
}

/// Whether a statement was only refused because one before it was.
pub(crate) fn is_aftermath(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION)
}
