//! The walsender: its commands, and the stream.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::Shared;
use crate::columns::Tables;
use crate::frames::{self, Reader};
use crate::session::Start;
use crate::slots::{Slot, Snapshot, now};
use crate::upstream::{self, Raw};
use crate::wire::{Message, broken, row, split_text};

/// Snapshots that are kept at a time.
const SNAPSHOTS: usize = 4;

pub(crate) async fn serve(client: TcpStream, shared: Arc<Shared>, start: Start) -> io::Result<()> {
    let (mut from, mut to) = client.into_split();
    let mut hello = Message::new(b'R', [0; 4]).bytes();
    hello.extend_from_slice(&Message::new(b'S', *b"server_version\x0015.12\0").bytes());
    hello.extend_from_slice(&Message::new(b'K', [0; 8]).bytes());
    hello.extend_from_slice(&Message::ready().bytes());
    to.write_all(&hello).await?;
    loop {
        let message = Message::read(&mut from).await?;
        match message.tag {
            b'X' => return Ok(()),
            b'Q' => {}
            _ => continue,
        }
        let sql = split_text(&message.body).0;
        let words = words(&sql);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = match words.as_slice() {
            ["CREATE_REPLICATION_SLOT", name, "LOGICAL", plugin, options @ ..] => {
                create(&shared, &start.database, name, plugin, options).await
            }
            ["START_REPLICATION", "SLOT", name, "LOGICAL", at, options @ ..] => {
                match check_start(&shared, name, at, options) {
                    Ok((at, publication)) => return stream(&shared, name, at, &publication, from, to).await,
                    Err(refusal) => Err(refusal),
                }
            }
            ["DROP_REPLICATION_SLOT", name] => match drop_slot(&shared, name).await {
                Ok(()) => Ok(vec![Message::complete("DROP_REPLICATION_SLOT")]),
                Err(e) => Err(("XX000".to_owned(), e.to_string())),
            },
            _ => Err(("0A000".to_owned(), format!("{} is not supported", words.first().unwrap_or(&"")))),
        };
        let messages = answer.unwrap_or_else(|(code, message)| {
            shared.state().refused.push(sql.clone());
            vec![Message::error(&code, &message)]
        });
        let mut bytes: Vec<u8> = messages.iter().flat_map(Message::bytes).collect();
        bytes.extend_from_slice(&Message::ready().bytes());
        to.write_all(&bytes).await?;
    }
}

type Refusal = (String, String);

/// Words, quoted names and texts, and the marks between them.
fn words(sql: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = sql.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' => {
                let mut word = String::new();
                while let Some(next) = chars.next() {
                    match next {
                        q if q == c && chars.peek() == Some(&c) => {
                            chars.next();
                            word.push(c);
                        }
                        q if q == c => break,
                        other => word.push(other),
                    }
                }
                words.push(word);
            }
            '(' | ')' | ',' | ';' => words.push(c.to_string()),
            c if c.is_whitespace() => {}
            c => {
                let mut word = c.to_string();
                while let Some(next) = chars.next_if(|n| !n.is_whitespace() && !"(),;\"'".contains(*n)) {
                    word.push(next);
                }
                words.push(word);
            }
        }
    }
    words
}

async fn create(
    shared: &Shared,
    database: &str,
    name: &str,
    plugin: &str,
    options: &[&str],
) -> Result<Vec<Message>, Refusal> {
    let refused = |code: &str, message: String| (code.to_owned(), message);
    if !matches!(plugin, "yboutput" | "pgoutput") {
        return Err(refused("22023", format!("invalid output plugin: {plugin}")));
    }
    let hybrid = match options {
        [] | ["SEQUENCE"] => false,
        ["HYBRID_TIME"] => true,
        other => return Err(refused("42601", format!("syntax error near {other:?}"))),
    };
    if shared.state().slots.contains_key(name) {
        return Err(refused("42710", format!("replication slot \"{name}\" already exists")));
    }
    let failed = |e: io::Error| ("XX000".to_owned(), e.to_string());
    full_identities(shared, database).await.map_err(failed)?;
    let (point, snapshot) = export(shared, database, &format!("\"{name}\" LOGICAL")).await.map_err(failed)?;
    let micros = now();
    let restart = micros << 12;
    let mut state = shared.state();
    state.floor(point, micros);
    state.snapshots.insert(micros, snapshot);
    state.create(name, Slot::new(database, plugin, hybrid, restart));
    let columns = [
        ("slot_name", Some(name)),
        ("consistent_point", Some("0/2")),
        ("snapshot_name", Some(&*restart.to_string())),
        ("output_plugin", Some(plugin)),
    ];
    Ok([row(&columns).as_slice(), &[Message::complete("CREATE_REPLICATION_SLOT")]].concat())
}

/// The old rows tell what YugabyteDB leaves out. One table at a time: beside live writers the locks of
/// several would end in a deadlock.
async fn full_identities(shared: &Shared, database: &str) -> io::Result<()> {
    let sql = "SELECT format('ALTER TABLE %s REPLICA IDENTITY FULL', c.oid::regclass) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'r' AND c.relreplident = 'd' AND n.nspname NOT LIKE 'pg\\_%' \
         AND n.nspname NOT IN ('information_schema', 'history')";
    let client = upstream::client(shared.upstream, database).await?;
    for row in client.query(sql, &[]).await.map_err(io::Error::other)? {
        let alter: String = row.get(0);
        client.batch_execute(&alter).await.map_err(io::Error::other)?;
    }
    Ok(())
}

/// Creates a slot of PostgreSQL: the place where it begins, and a snapshot of what was committed before.
async fn export(shared: &Shared, database: &str, slot: &str) -> io::Result<(u64, Snapshot)> {
    let mut raw = Raw::replication(shared.upstream, database).await?;
    let rows = raw.query(&format!("CREATE_REPLICATION_SLOT {slot} pgoutput (SNAPSHOT 'export')")).await?;
    let row = rows.first().ok_or_else(|| broken("no slot"))?;
    let (point, name) = row.get(1).zip(row.get(2)).ok_or_else(|| broken("no snapshot"))?;
    let point = place(point).ok_or_else(|| broken("no place"))?;
    Ok((point, Snapshot { name: name.clone(), _keeper: raw }))
}

/// The hybrid time of now. What is committed by the end of this microsecond can be read later.
pub(crate) async fn present(shared: &Shared, database: &str) -> io::Result<u64> {
    let (point, snapshot) = export(shared, database, &format!("\"present_{}\" TEMPORARY LOGICAL", now())).await?;
    let micros = now();
    let mut state = shared.state();
    state.floor(point, micros);
    state.snapshots.insert(micros, snapshot);
    let slots = state.slots.len();
    while state.snapshots.len() > SNAPSHOTS + slots {
        // Those of slots are the oldest, and stay.
        let Some(oldest) = state.snapshots.keys().nth(slots).copied() else { break };
        state.snapshots.remove(&oldest);
    }
    Ok(micros << 12)
}

/// `16/B374D848`.
fn place(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}

pub(crate) async fn drop_slot(shared: &Shared, name: &str) -> io::Result<()> {
    let removed = shared.state().slots.remove(name);
    let Some(slot) = removed else { return Err(broken(format!("replication slot \"{name}\" does not exist"))) };
    let mut raw = Raw::replication(shared.upstream, &slot.database).await?;
    // WAIT: a walsender of PostgreSQL may not have noticed yet that its reader has gone.
    raw.query(&format!("DROP_REPLICATION_SLOT \"{name}\" WAIT")).await.map(drop)
}

fn check_start(shared: &Shared, name: &str, at: &str, options: &[&str]) -> Result<(u64, String), Refusal> {
    let state = shared.state();
    let Some(slot) = state.slots.get(name) else {
        return Err(("42704".to_owned(), format!("replication slot \"{name}\" does not exist")));
    };
    if slot.expired {
        return Err(("XX000".to_owned(), format!("Stream ID {} is expired for Tablet ID 04dd056e", slot.stream)));
    }
    if slot.plugin == "pgoutput" && shared.options.identity == b'c' {
        let message = "replica identity CHANGE (for table: 1) is not supported for output plugin pgoutput";
        return Err(("XX000".to_owned(), message.to_owned()));
    }
    let at = place(at).ok_or_else(|| ("42601".to_owned(), "no place".to_owned()))?;
    match options {
        ["(", "proto_version", "1", ",", "publication_names", publication, ")"] => Ok((at, (*publication).to_owned())),
        other => Err(("0A000".to_owned(), format!("unrecognized pgoutput option: {other:?}"))),
    }
}

/// A stream to one client.
struct Sender<'a> {
    shared: &'a Shared,
    slot: &'a str,
    /// Transactions that committed before this are left out: `yb_start_decoding_at`.
    start_at: u64,
    /// Transactions at or before this are not read any more: the restart place.
    behind: u64,
    reader: Reader<'a>,
    transaction: Vec<Vec<u8>>,
    /// The place of the last record that was read, sent or not.
    read: u64,
}

async fn stream(
    shared: &Shared,
    name: &str,
    at: u64,
    publication: &str,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
) -> io::Result<()> {
    let Some((database, confirmed)) = shared.state().slots.get(name).map(|s| (s.database.clone(), s.confirmed)) else {
        return Err(broken("no slot"));
    };
    let raw = Raw::replication(shared.upstream, &database).await?;
    let (mut upstream, mut acknowledge) = raw.0.into_split();
    let names = publication.replace('\'', "''");
    let start =
        format!("START_REPLICATION SLOT \"{name}\" LOGICAL 0/0 (proto_version '1', publication_names '{names}')");
    acknowledge.write_all(&Message::new(b'Q', crate::wire::text(&start)).bytes()).await?;
    let mut tables = Tables::default();
    let reader =
        Reader { identity: shared.options.identity, port: shared.upstream, database: &database, tables: &mut tables };
    let start_at = at.max(confirmed);
    let mut sender =
        Sender { shared, slot: name, start_at, behind: confirmed, reader, transaction: Vec::new(), read: confirmed };
    let down = async {
        loop {
            let message = Message::read(&mut upstream).await?;
            match message.tag {
                b'd' => sender.data(&message.body, &mut to).await?,
                b'Z' | b'S' | b'N' => {}
                // CopyBothResponse, errors, the end.
                _ => to.write_all(&message.bytes()).await?,
            }
        }
    };
    let up = async {
        loop {
            let message = Message::read(&mut from).await?;
            match message.tag {
                b'd' => acknowledge.write_all(&acknowledged(shared, name, &message.body)).await?,
                b'X' | b'c' => return Ok(()),
                _ => {}
            }
        }
    };
    tokio::select! {
        done = down => done,
        done = up => done,
    }
}

/// A status update in PostgreSQL's places.
fn acknowledged(shared: &Shared, slot: &str, body: &[u8]) -> Vec<u8> {
    let flush = body.get(9..17).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
    let end = shared.state().slots.get_mut(slot).and_then(|slot| slot.confirm(flush)).unwrap_or(0);
    let mut body = body.to_vec();
    for at in [1, 9, 17] {
        if let Some(place) = body.get_mut(at..at + 8) {
            place.copy_from_slice(&end.to_be_bytes());
        }
    }
    Message::new(b'd', body).bytes()
}

impl Sender<'_> {
    async fn data(&mut self, body: &[u8], to: &mut OwnedWriteHalf) -> io::Result<()> {
        match body.first() {
            Some(b'k') => {
                let reply = body.last() == Some(&1);
                to.write_all(&self.keepalive(reply)).await
            }
            Some(b'w') => {
                let message = body.get(25..).unwrap_or_default().to_vec();
                let commit = frames::commit(&message);
                self.transaction.push(message);
                match commit {
                    Some(commit) => self.transaction(commit, to).await,
                    None => Ok(()),
                }
            }
            _ => Err(broken("an unknown frame")),
        }
    }

    /// Sends a transaction whole, as YugabyteDB's reorder buffer does.
    async fn transaction(&mut self, commit: frames::Commit, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let messages = std::mem::take(&mut self.transaction);
        let records = frames::records(&messages);
        let assigned = self.shared.state().assign(self.slot, commit.at, commit.end, commit.micros, records);
        let Some(assigned) = assigned else { return Err(broken("the slot is gone")) };
        let mut out = Vec::new();
        if assigned.lsn > self.behind {
            // Its records are read before it is sent, and a keepalive names the last one.
            self.read = assigned.lsn;
            out.extend_from_slice(&self.keepalive(false));
        }
        let left_out = assigned.lsn <= self.behind || assigned.lsn < self.start_at;
        for message in &messages {
            // Descriptions are needed later, too.
            let sent = self.reader.rewrite(message, assigned).await?;
            if left_out && message.first() != Some(&b'R') {
                continue;
            }
            for message in sent {
                let mut frame = vec![b'w'];
                frame.extend_from_slice(&assigned.lsn.to_be_bytes());
                frame.extend_from_slice(&assigned.lsn.to_be_bytes());
                frame.extend_from_slice(&[0; 8]);
                frame.extend_from_slice(&message);
                out.extend_from_slice(&Message::new(b'd', frame).bytes());
            }
        }
        to.write_all(&out).await
    }

    fn keepalive(&self, reply: bool) -> Vec<u8> {
        let mut frame = vec![b'k'];
        frame.extend_from_slice(&self.read.to_be_bytes());
        frame.extend_from_slice(&[0; 8]);
        frame.push(u8::from(reply));
        Message::new(b'd', frame).bytes()
    }
}
