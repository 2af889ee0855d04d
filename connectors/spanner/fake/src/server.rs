//! The server, on a thread and a runtime of its own, so that killing it cuts every connection.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde_json::Value as Json;
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::database::{Answer, Asked, Commit, CommitFailure, Database, State};
use crate::encode::Dialect;
use crate::rows::Row;
use crate::service::SpannerService;
use crate::stream::Stream;
use crate::table::Table;
use crate::time::{Clock, Time};

/// What a [`FakeSpanner`] is started with.
///
/// Defaults: GoogleSQL, this machine's clock, a resume token for each row, values in one piece.
#[derive(Debug, Default)]
#[must_use]
pub struct Script {
    dialect: Dialect,
    clock: Option<Time>,
    constant_tokens: bool,
    chunk: Option<usize>,
    state: State,
}

impl Script {
    /// The defaults, and nothing in the database.
    pub fn new() -> Self {
        Self::default()
    }

    /// The SQL that it speaks.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// A clock that stands at `time` until [`FakeSpanner::set_time`] moves it.
    pub fn clock(mut self, time: Time) -> Self {
        self.clock = Some(time);
        self
    }

    /// All rows have the same resume token, and a query that is resumed begins anew: as the emulator.
    pub fn constant_resume_tokens(mut self) -> Self {
        self.constant_tokens = true;
        self
    }

    /// Values that are texts come in pieces of so many bytes.
    pub fn chunked(mut self, bytes: usize) -> Self {
        self.chunk = Some(bytes.max(1));
        self
    }

    /// A change stream.
    pub fn stream(mut self, stream: Stream) -> Self {
        self.state.streams.insert(stream.name.clone(), stream);
        self
    }

    /// A table: of the information schema, and for mutations and simple queries.
    pub fn table(mut self, table: Table) -> Self {
        self.state.tables.schemas.insert(table.name.clone(), table);
        self
    }

    /// The answer to every query whose text contains `contains`: columns by name and type code.
    pub fn answer(mut self, contains: &str, columns: &[(&str, &str)], rows: Vec<Vec<Json>>) -> Self {
        let columns = columns.iter().map(|(name, code)| ((*name).to_owned(), (*code).to_owned())).collect();
        self.state.answers.push(Answer { contains: contains.to_owned(), columns, rows });
        self
    }

    /// Starts the server on a free port.
    ///
    /// # Panics
    /// If this machine has no free port.
    pub fn start(self) -> FakeSpanner {
        let clock = self.clock.map_or(Clock::Real, Clock::manual);
        let database = Database::new(self.dialect, clock, !self.constant_tokens, self.chunk, self.state);
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let fake = FakeSpanner { database, address, running: Mutex::new(None) };
        fake.serve(listener);
        fake
    }
}

/// A running server. Dropping it cuts its connections.
#[derive(Debug)]
pub struct FakeSpanner {
    database: Arc<Database>,
    address: SocketAddr,
    running: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl FakeSpanner {
    /// The full name of its one database; others are not told from it.
    pub const DATABASE: &'static str = "projects/fake/instances/fake/databases/fake";

    /// `127.0.0.1:PORT`, as `SPANNER_EMULATOR_HOST` is written. The port stays the same.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Moves a manual clock, never back. Records up to `time` are then in their streams.
    pub fn set_time(&self, time: Time) {
        self.database.clock.set(time);
    }

    /// What time the server has.
    pub fn now(&self) -> Time {
        self.database.clock.now()
    }

    /// Changes a stream while it is read. What is added must be later than the server's time.
    ///
    /// # Panics
    /// If it has no stream of that name.
    pub fn update(&self, stream: &str, change: impl FnOnce(&mut Stream)) {
        self.database.update(|state| change(state.streams.get_mut(stream).expect("a stream of that name")));
    }

    /// The next commit fails with this code; `takes_effect` tells whether what it wrote is there.
    pub fn fail_commit(&self, code: Code, takes_effect: bool) {
        self.database.lock().commit_failures.push(CommitFailure { code, takes_effect });
    }

    /// The queries of change streams so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.database.lock().asked.clone()
    }

    /// What clients committed so far.
    pub fn commits(&self) -> Vec<Commit> {
        self.database.lock().commits.clone()
    }

    /// The rows of a table, in the order of their keys' texts.
    pub fn rows(&self, table: &str) -> Vec<Row> {
        self.database.lock().tables.rows(table)
    }

    /// Cuts every connection and stops listening. The data stays.
    pub fn kill(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = running {
            drop(stop);
            let _ = thread.join();
        }
    }

    /// Listens again, on the same port.
    ///
    /// # Panics
    /// If the port was taken in the meantime.
    pub fn restart(&self) {
        self.kill();
        self.serve(std::net::TcpListener::bind(self.address).expect("the port of before"));
    }

    fn serve(&self, listener: std::net::TcpListener) {
        let (stop, stopped) = oneshot::channel::<()>();
        let service = SpannerService(Arc::clone(&self.database));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async move {
                listener.set_nonblocking(true).expect("a socket that does not block");
                let listener = tokio::net::TcpListener::from_std(listener).expect("a socket of the runtime");
                // Small answers must not wait for acknowledgements of those before them.
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                let server = Server::builder().add_service(service);
                tokio::select! {
                    result = server.serve_with_incoming(incoming) => {
                        result.expect("the server ended");
                    }
                    _ = stopped => {}
                }
            });
            // Its tasks are dropped with it, and with them the connections.
            runtime.shutdown_background();
        });
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some((stop, thread));
    }
}

impl Drop for FakeSpanner {
    fn drop(&mut self) {
        self.kill();
    }
}
