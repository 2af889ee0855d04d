//! The socket under a replication connection: TCP, Unix, with or without TLS.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{Error, Result};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::{Host, SslNegotiation};
use tokio_rustls::TlsConnector;

use super::binding;
use crate::connect::{Endpoint, port};
use crate::error::socket;
use crate::tls::SslMode;

/// Bytes both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// A connected socket, and what secures it.
pub(crate) struct Connected {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) security: Security,
}

/// What secures a socket.
#[derive(Debug)]
pub(crate) enum Security {
    /// Nothing.
    Plain,
    /// TLS, and what binds a login to it, if the server's certificate has such a thing.
    Tls(Option<Vec<u8>>),
}

impl Connected {
    fn plain(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), security: Security::Plain }
    }
}

/// How many places the endpoint names.
pub(crate) fn places(endpoint: &Endpoint) -> usize {
    endpoint.config().get_hosts().len().max(endpoint.config().get_hostaddrs().len())
}

/// Connects to one of them.
pub(crate) async fn connect(endpoint: &Endpoint, at: usize) -> Result<Connected> {
    let config = endpoint.config();
    let limit = config.get_connect_timeout().copied().unwrap_or(Duration::from_secs(15));
    let address = config.get_hostaddrs().get(at).map(ToString::to_string);
    let attempt = one(endpoint, config.get_hosts().get(at), address, at);
    tokio::time::timeout(limit, attempt)
        .await
        .unwrap_or_else(|_| Err(Error::transient(format!("{}: no answer in {limit:?}", endpoint.connecting()))))
}

async fn one(endpoint: &Endpoint, host: Option<&Host>, address: Option<String>, at: usize) -> Result<Connected> {
    let port = port(endpoint.config().get_ports(), at);
    let what = endpoint.connecting();
    let name = match host {
        Some(Host::Unix(folder)) => {
            let path = folder.join(format!(".s.PGSQL.{port}"));
            let stream = UnixStream::connect(&path)
                .await
                .map_err(|e| socket(e, &format!("{} ({})", endpoint.connecting(), path.display())))?;
            return Ok(Connected::plain(stream));
        }
        Some(Host::Tcp(name)) => name.clone(),
        None => address.clone().unwrap_or_default(),
    };
    let stream = TcpStream::connect((address.as_deref().unwrap_or(&name), port)).await.map_err(|e| socket(e, &what))?;
    stream.set_nodelay(true).map_err(|e| socket(e, &what))?;
    match endpoint.tls() {
        None => Ok(Connected::plain(stream)),
        Some(tls) => negotiate(endpoint, stream, &name, tls, &what).await,
    }
}

/// Asks for TLS (the protocol's manual, "SSL Session Encryption").
async fn negotiate(
    endpoint: &Endpoint,
    mut stream: TcpStream,
    name: &str,
    tls: &Arc<ClientConfig>,
    what: &str,
) -> Result<Connected> {
    let direct = endpoint.config().get_ssl_negotiation() == SslNegotiation::Direct;
    if !direct {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await.map_err(|e| socket(e, what))?;
        // Exactly one byte: anything after it would be plain text that the server could not have meant.
        let answer = stream.read_u8().await.map_err(|e| socket(e, what))?;
        if answer != b'S' {
            if endpoint.ssl_mode() == SslMode::Prefer {
                return Ok(Connected::plain(stream));
            }
            return Err(Error::config(what, "the server does not speak TLS")
                .hint("set ssl=on on the server, or add sslmode=disable to the URL if the network is trusted"));
        }
    }
    let server = ServerName::try_from(name.to_owned())
        .map_err(|e| Error::config(what, format!("{name} is not a host name that TLS can check")).because(e))?;
    let mut config = ClientConfig::clone(tls);
    if direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    let stream = TlsConnector::from(Arc::new(config)).connect(server, stream).await.map_err(|e| socket(e, what))?;
    let binding = stream.get_ref().1.peer_certificates().and_then(|all| binding::of_certificate(all.first()?));
    Ok(Connected { stream: Box::new(stream), security: Security::Tls(binding) })
}
