//! Requests to a server on this machine: HTTP/1.0, one a connection, JSON both ways.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Result};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Sends `body`, unless it is null, to `path` of `host` (`127.0.0.1:PORT`): status and answer.
pub(crate) fn request(host: &str, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
    let doing = || format!("{method} http://{host}{path}");
    let mut stream = TcpStream::connect(host).map_err(Error::io(doing()))?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(Error::io(doing()))?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).map_err(Error::io(doing()))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(Error::io(doing()))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()))))
}
