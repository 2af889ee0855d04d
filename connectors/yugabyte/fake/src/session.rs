//! A session for statements: its messages go both ways, some of them changed.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::wire::{self, Message, split_text, text};
use crate::{Shared, rewrite, walsender};

const PROTOCOL: u32 = 196_608;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// What a client says of itself at the start.
#[derive(Debug, Default)]
pub(crate) struct Start {
    pub(crate) database: String,
    application: String,
    replication: bool,
}

pub(crate) async fn serve(mut client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let body = loop {
        let body = wire::body(&mut client).await?;
        match body.first_chunk::<4>().map(|code| u32::from_be_bytes(*code)) {
            Some(SSL | GSS) => client.write_all(b"N").await?,
            Some(PROTOCOL) => break body,
            _ => return Ok(()),
        }
    };
    let start = read_start(&body[4..]);
    if start.replication {
        return walsender::serve(client, shared, start).await;
    }
    let mut server = TcpStream::connect(("127.0.0.1", shared.upstream)).await?;
    server.set_nodelay(true)?;
    server.write_u32(body.len() as u32 + 4).await?;
    server.write_all(&body).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let forward = async {
        loop {
            let message = Message::read(&mut from_client).await?;
            to_server.write_all(&changed(&shared, &start, message).await).await?;
        }
    };
    let back = async {
        loop {
            let message = Message::read(&mut from_server).await?;
            to_client.write_all(&shown(&shared, message).bytes()).await?;
        }
    };
    tokio::select! {
        done = forward => done,
        done = back => done,
    }
}

fn read_start(mut rest: &[u8]) -> Start {
    let mut start = Start::default();
    while !rest.is_empty() && rest[0] != 0 {
        let (name, after) = split_text(rest);
        let (value, after) = split_text(after);
        rest = after;
        match name.as_str() {
            "database" => start.database = value,
            "application_name" => start.application = value,
            "replication" => start.replication = true,
            _ => {}
        }
    }
    start
}

async fn changed(shared: &Shared, start: &Start, message: Message) -> Vec<u8> {
    let rewrite = async |sql: &str| rewrite::rewrite(shared, &start.database, &start.application, sql).await;
    match message.tag {
        b'Q' => {
            let sql = rewrite(&split_text(&message.body).0).await;
            Message::new(b'Q', text(&sql)).bytes()
        }
        b'P' => {
            let (name, rest) = split_text(&message.body);
            let (sql, rest) = split_text(rest);
            let mut body = text(&name);
            body.extend_from_slice(&text(&rewrite(&sql).await));
            body.extend_from_slice(rest);
            Message::new(b'P', body).bytes()
        }
        // A prepared statement: a refused one before it has it left out, up to the next Sync.
        b'B' if start.application.starts_with("anabranch-sink/stream") => {
            let refusal = shared.state().inject(shared.options.refuse_one_of);
            let mut bytes = Vec::new();
            if let Some(sql) = refusal {
                let mut body = text("");
                body.extend_from_slice(&text(&sql));
                body.extend_from_slice(&[0; 2]);
                bytes = Message::new(b'P', body).bytes();
            }
            bytes.extend_from_slice(&message.bytes());
            bytes
        }
        _ => message.bytes(),
    }
}

fn shown(shared: &Shared, message: Message) -> Message {
    if message.tag != b'E' {
        return message;
    }
    let text = message.field(b'M').unwrap_or_default();
    match shared.state().shown(&text) {
        Some((code, text)) => Message::error(code, text),
        None => message,
    }
}
