//! Just enough of PostgreSQL's protocol to send statements over a Unix socket without a driver:
//! the start-up message and the simple query (its manual, chapter 55, "Frontend/Backend Protocol").

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::error::{Error, Result};

/// A row: the text of each column, `None` for NULL.
pub type Row = Vec<Option<String>>;

/// Runs `sql` (one or more statements) as `postgres` and gives the rows of all of them.
pub(crate) fn run(socket: &Path, database: &str, sql: &str) -> Result<Vec<Row>> {
    let doing = || Error::io(format!("asking the server on {}", socket.display()));
    let mut stream = UnixStream::connect(socket).map_err(doing())?;
    let mut start = 196_608_u32.to_be_bytes().to_vec(); // protocol 3.0
    for text in ["user", "postgres", "database", database, "application_name", "anabranch-servers", ""] {
        start.extend_from_slice(text.as_bytes());
        start.push(0);
    }
    send(&mut stream, None, &start).map_err(doing())?;
    answers(&mut stream, sql).map_err(doing())??;
    let mut query = sql.as_bytes().to_vec();
    query.push(0);
    send(&mut stream, Some(b'Q'), &query).map_err(doing())?;
    let rows = answers(&mut stream, sql).map_err(doing())??;
    let _ = send(&mut stream, Some(b'X'), &[]);
    Ok(rows)
}

/// Reads up to ReadyForQuery.
fn answers(stream: &mut UnixStream, sql: &str) -> io::Result<Result<Vec<Row>>> {
    let refused = |message: String| Error::Refused { message, sql: sql.chars().take(200).collect() };
    let mut rows = Vec::new();
    let mut failed = None;
    loop {
        let mut head = [0; 5];
        if let Err(e) = stream.read_exact(&mut head) {
            // A refused start-up ends the connection without ReadyForQuery.
            return failed.map_or(Err(e), |message| Ok(Err(refused(message))));
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length.saturating_sub(4)];
        stream.read_exact(&mut body)?;
        match head[0] {
            b'D' => rows.push(row(&body).ok_or_else(|| io::Error::other("a malformed row"))?),
            b'E' => failed = Some(message(&body)),
            b'R' if body != [0; 4] => return Err(io::Error::other("the server wants a password on its socket")),
            b'Z' => return Ok(failed.map_or(Ok(rows), |message| Err(refused(message)))),
            _ => {}
        }
    }
}

fn row(body: &[u8]) -> Option<Row> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length < 0 {
            row.push(None);
            rest = after;
            continue;
        }
        let (value, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = after;
    }
    Some(row)
}

/// The fields of an ErrorResponse that a person wants: severity, code, message, detail.
fn message(body: &[u8]) -> String {
    let fields = body.split(|b| *b == 0).filter_map(|f| f.split_first());
    let wanted = fields.filter(|(kind, _)| matches!(kind, b'S' | b'C' | b'M' | b'D'));
    wanted.map(|(_, text)| String::from_utf8_lossy(text).into_owned()).collect::<Vec<_>>().join(" ")
}

fn send(stream: &mut UnixStream, kind: Option<u8>, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len() + 4).map_err(io::Error::other)?;
    let mut message: Vec<u8> = kind.into_iter().collect();
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(body);
    stream.write_all(&message)
}
