//! A bank in Spanner, and what it is after each of its transactions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, spawn};

use anabranch_servers::{SpannerDialect, SpannerServer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Tested;

const ACCOUNTS: i64 = 20;
const BALANCE: i64 = 1000;

/// All rows: accounts by id, and the journal, of which old entries go away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    pub(crate) accounts: BTreeMap<i64, i64>,
    /// Number, and amount.
    pub(crate) journal: BTreeMap<i64, i64>,
}

impl State {
    /// How many transactions made it: each leaves its number in the journal.
    pub(crate) fn number(&self) -> i64 {
        self.journal.keys().next_back().copied().unwrap_or(0)
    }
}

/// Every state that the bank has had, the latest last. A transaction that is under way is there already.
pub(crate) type States = Arc<Mutex<Vec<State>>>;

/// A database on the emulator, whose change stream's partitions live a second or two.
pub(crate) struct Bank {
    pub(crate) server: Arc<SpannerServer>,
    pub(crate) database: String,
    pub(crate) states: States,
}

impl Bank {
    pub(crate) fn open(server: SpannerServer, dialect: SpannerDialect) -> Tested<Self> {
        let ddl = match dialect {
            SpannerDialect::GoogleSql => [
                "CREATE TABLE accounts (id INT64 NOT NULL, balance INT64) PRIMARY KEY (id)",
                "CREATE TABLE journal (n INT64 NOT NULL, amount INT64) PRIMARY KEY (n)",
            ],
            SpannerDialect::PostgreSql => [
                "CREATE TABLE accounts (id bigint NOT NULL PRIMARY KEY, balance bigint)",
                "CREATE TABLE journal (n bigint NOT NULL PRIMARY KEY, amount bigint)",
            ],
        };
        let database = server.create_db(dialect, &ddl)?;
        let rows: Vec<String> = (0..ACCOUNTS).map(|id| format!("({id}, {BALANCE})")).collect();
        server.exec(&database, &format!("INSERT INTO accounts (id, balance) VALUES {}", rows.join(", ")))?;
        let first = State { accounts: (0..ACCOUNTS).map(|id| (id, BALANCE)).collect(), ..State::default() };
        Ok(Self { server: Arc::new(server), database, states: Arc::new(Mutex::new(vec![first])) })
    }
}

/// Transactions one after another, until it is stopped.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tested>,
}

impl Writer {
    pub(crate) fn start(bank: &Bank, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, server, database) = (Arc::clone(&stop), Arc::clone(&bank.server), bank.database.clone());
        let states = Arc::clone(&bank.states);
        let thread = spawn(move || {
            let mut random = StdRng::seed_from_u64(seed);
            while !stopped.load(Ordering::Relaxed) {
                let statements = {
                    let mut states = states.lock().unwrap_or_else(PoisonError::into_inner);
                    let mut next = states.last().cloned().unwrap_or_default();
                    let statements = transaction(&mut random, &mut next);
                    states.push(next);
                    statements
                };
                let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
                server.transaction(&database, &statements)?;
            }
            Ok(())
        });
        Self { stop, thread }
    }

    pub(crate) fn stop(self) -> Tested {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the writer panicked")?
    }
}

/// Money moves between accounts, in DML; the journal gets an entry and, in time, loses one.
fn transaction(random: &mut StdRng, state: &mut State) -> Vec<String> {
    let n = state.number() + 1;
    let mut statements = vec![format!("INSERT INTO journal (n, amount) VALUES ({n}, {})", n % 7)];
    state.journal.insert(n, n % 7);
    for _ in 0..random.random_range(1..=4) {
        let (from, to) = (random.random_range(0..ACCOUNTS), random.random_range(0..ACCOUNTS));
        for (id, by) in [(from, -1), (to, 1)] {
            statements
                .push(format!("UPDATE accounts SET balance = balance + {by} WHERE id = {id}").replace("+ -", "- "));
            *state.accounts.entry(id).or_default() += by;
        }
    }
    if n > 10 && random.random_ratio(1, 2) {
        let old = n - random.random_range(1..10);
        statements.push(format!("DELETE FROM journal WHERE n = {old}"));
        state.journal.remove(&old);
    }
    statements
}
