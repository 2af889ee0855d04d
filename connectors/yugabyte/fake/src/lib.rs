//! A PostgreSQL that behaves as a YugabyteDB does: a proxy on the real wire protocol in front of a real
//! server.
//!
//! - Statements are passed on. What YSQL lacks is refused (advisory locks, LSN functions, logical
//!   messages, `ctid`, ...), what only YSQL has is answered (`yb_read_time`, hybrid times, hash codes, its
//!   columns of `pg_replication_slots`), and its retryable errors are injected at random.
//! - The walsender is its own: only the commands that exist there, with the documented grammar. It reads a
//!   slot of PostgreSQL whose tables send whole old rows, and writes what YugabyteDB's would: LSNs of either
//!   type, columns that did not change omitted (identity CHANGE), key updates as delete and insert, no
//!   TRUNCATE, no messages, no origins, commits at hybrid times, keepalives that name transactions which
//!   were not sent yet, and a confirmation that drops every transaction at or before it.
//! - Connections are cut, slots lapse or are created anew, on demand.
//!
//! Built from YugabyteDB's manual and from the sources of its walsender (`walsender.c`,
//! `yb_virtual_wal_client.c`, `yb_decode.c`, `pgoutput`); no YugabyteDB server was at hand.

mod columns;
mod frames;
mod rewrite;
mod session;
mod slots;
mod upstream;
mod walsender;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use slots::State;

/// What it pretends to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// `version()` says this.
    pub version: String,
    /// The replica identity of every table: `c`, `d` or `f`.
    pub identity: u8,
    /// Of so many statements of the sink, one is refused with an error that asks for another try. 0: none.
    pub refuse_one_of: u32,
    /// Where the random numbers begin.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: "PostgreSQL 15.12-YB-2025.2.2.0-b1 on x86_64-pc-linux-gnu".to_owned(),
            identity: b'c',
            refuse_one_of: 0,
            seed: 1,
        }
    }
}

/// What sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) upstream: u16,
    pub(crate) state: Mutex<State>,
    /// Moves when connections are cut.
    pub(crate) cut: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The proxy. It ends when it is dropped.
#[derive(Debug)]
pub struct Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Fake {
    /// Starts it before the PostgreSQL on this port of 127.0.0.1, which lets `postgres` in without a
    /// password. Prepares these databases of it.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn start(upstream: u16, databases: &[&str], options: Options) -> io::Result<Self> {
        for database in databases {
            upstream::install(upstream, database, options.identity).await?;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Mutex::new(State::new(options.seed));
        let shared = Arc::new(Shared { options, upstream, state, cut: watch::Sender::new(0) });
        let task = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// `postgresql://postgres@127.0.0.1:PORT/DB`.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.address.port())
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|generation| *generation += 1);
    }

    /// The slot was not read for too long.
    pub fn lapse(&self, slot: &str) {
        if let Some(slot) = self.shared.state().slots.get_mut(slot) {
            slot.expired = true;
        }
    }

    /// Moves the slot's restart time back, as if nothing had been confirmed for so long.
    pub fn age(&self, slot: &str, seconds: u64) {
        if let Some(slot) = self.shared.state().slots.get_mut(slot) {
            let by = (seconds * 1_000_000) << 12;
            slot.restart = slot.restart.saturating_sub(by);
            if slot.hybrid {
                slot.confirmed = slot.confirmed.saturating_sub(by);
            }
        }
    }

    /// Confirms what the slot has, as somebody else who reads it would.
    pub fn confirm_all(&self, slot: &str) {
        if let Some(slot) = self.shared.state().slots.get_mut(slot) {
            slot.confirm(slot.last().0);
        }
    }

    /// Drops a slot.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn drop_slot(&self, slot: &str) -> io::Result<()> {
        walsender::drop_slot(&self.shared, slot).await
    }

    /// The LSN through which a slot is confirmed.
    pub fn confirmed(&self, slot: &str) -> Option<u64> {
        self.shared.state().slots.get(slot).map(|s| s.confirmed)
    }

    /// Every statement that was refused because YSQL lacks what it asks for.
    pub fn refused(&self) -> Vec<String> {
        self.shared.state().refused.clone()
    }

    /// From here on no errors are injected: however large a transaction is, it comes through.
    pub fn calm(&self) {
        self.shared.state().calm = true;
    }

    /// How many errors were injected.
    pub fn injected(&self) -> u64 {
        self.shared.state().injected
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        _ = socket.set_nodelay(true);
        let shared = Arc::clone(&shared);
        // Ends with its connection, or when connections are cut.
        tokio::spawn(async move {
            let mut cut = shared.cut.subscribe();
            tokio::select! {
                biased;
                _ = cut.changed() => {}
                _ = session::serve(socket, Arc::clone(&shared)) => {}
            }
        });
    }
}
