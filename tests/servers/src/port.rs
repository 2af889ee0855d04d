//! Free ports.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Below the range that Linux takes for outgoing connections (32768 and up): otherwise any
/// connection could take a server's port while the server is down, and it could not start again.
const PORTS: Range<u16> = 16_000..32_000;

/// Ports given out by this process.
static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A port that nobody listens on and that this process has not given out. Another process may take
/// it before the server does; the caller then asks for another.
pub(crate) fn free() -> u16 {
    loop {
        let port = rand::random_range(PORTS);
        if take(port) {
            return port;
        }
    }
}

/// Whether `port` is as [`free`] promises; then it is given out.
pub(crate) fn take(port: u16) -> bool {
    let bindable = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    bindable && GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port)
}
