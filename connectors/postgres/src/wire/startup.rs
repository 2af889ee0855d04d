//! The start of a session: parameters and authentication.

use anabranch_core::{Error, ErrorKind, Result};
use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::{backend, frontend};
use tokio_postgres::config::{ChannelBinding as Demand, TargetSessionAttrs};

use super::stream::Security;
use super::{Connection, server_error, stream};
use crate::connect::{Endpoint, UNBOUND, login_hint};
use crate::error::protocol;

/// Settings under which every type prints its canonical text (see `anabranch_core::DataType`), and
/// none ends a session that does what it should.
/// `wal_sender_timeout` is the administrator's, and stays.
pub(crate) const CANONICAL: &[(&str, &str)] = &[
    // Names of tables and functions (regclass) carry their schema, wherever they are read.
    ("search_path", "pg_catalog"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("lc_monetary", "C"),
    // A policy that hides rows from us is an error, and not a copy without them.
    ("row_security", "off"),
    // A copy may take hours, and a connection that holds a snapshot is idle in its transaction.
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
];

/// Kinds of AuthenticationRequest (the protocol's manual, "Message Formats").
mod request {
    pub(super) const OK: u32 = 0;
    pub(super) const CLEARTEXT: u32 = 3;
    pub(super) const MD5: u32 = 5;
    pub(super) const SASL: u32 = 10;
    pub(super) const SASL_CONTINUE: u32 = 11;
    pub(super) const SASL_FINAL: u32 = 12;
}

/// Connects to the first of the endpoint's places that lets us in and is as `target_session_attrs` asks, as the
/// connections for statements do: both kinds must come to the same server.
pub(super) async fn open(endpoint: &Endpoint, application_name: &str) -> Result<Connection> {
    let mut failure = None;
    for at in 0..stream::places(endpoint) {
        match open_at(endpoint, application_name, at).await {
            Ok(connection) => return Ok(connection),
            Err(e) => failure = Some(e),
        }
    }
    Err(failure.unwrap_or_else(|| Error::config(endpoint, "names no host")))
}

async fn open_at(endpoint: &Endpoint, application_name: &str, at: usize) -> Result<Connection> {
    let connected = stream::connect(endpoint, at).await?;
    let mut connection = Connection::new(connected.stream);
    let handshake = async {
        handshake(&mut connection, endpoint, application_name, &connected.security).await?;
        check_attributes(&mut connection, endpoint).await
    };
    let limit = endpoint.config().get_connect_timeout().copied().unwrap_or(std::time::Duration::from_secs(15));
    match tokio::time::timeout(limit, handshake).await {
        Ok(done) => done.map(|()| connection),
        Err(_) => Err(Error::transient(format!("{}: no answer in {limit:?}", endpoint.connecting()))),
    }
}

/// Whether the server is one that the URL wants.
async fn check_attributes(connection: &mut Connection, endpoint: &Endpoint) -> Result<()> {
    let read_only = match endpoint.config().get_target_session_attrs() {
        TargetSessionAttrs::ReadWrite => "off",
        TargetSessionAttrs::ReadOnly => "on",
        _ => return Ok(()),
    };
    let what = endpoint.connecting();
    let rows = connection.query("SHOW transaction_read_only", &what).await?;
    match rows.first().map(Vec::as_slice) {
        Some([Some(is)]) if is == read_only => Ok(()),
        _ => Err(Error::transient(format!("{what}: no server is as target_session_attrs asks"))),
    }
}

async fn handshake(
    connection: &mut Connection,
    endpoint: &Endpoint,
    application_name: &str,
    security: &Security,
) -> Result<()> {
    let what = endpoint.connecting();
    let options = options(endpoint.config().get_options());
    let parameters = [
        ("user", endpoint.user()),
        ("database", endpoint.database()),
        ("replication", "database"),
        ("application_name", endpoint.config().get_application_name().unwrap_or(application_name)),
        ("client_encoding", "UTF8"),
        ("options", &options),
    ];
    connection.send(|out| frontend::startup_message(parameters, out))?;
    let mut scram = None;
    let mut accepted = false;
    loop {
        let (tag, body) = connection.read_message().await?;
        match tag {
            backend::AUTHENTICATION_TAG => {
                let body = connection.inbox.body(body);
                let mut answer = BytesMut::new();
                let is_ok = body.first_chunk() == Some(&request::OK.to_be_bytes());
                authenticate(endpoint, body, &mut scram, security, &mut answer).map_err(|e| e.context(what.clone()))?;
                connection.outbox.extend_from_slice(&answer);
                accepted = is_ok;
            }
            backend::ERROR_RESPONSE_TAG => {
                return Err(mend(server_error(connection.inbox.body(body)).into_error(&what), endpoint));
            }
            backend::READY_FOR_QUERY_TAG if accepted => return Ok(()),
            backend::READY_FOR_QUERY_TAG => return Err(protocol(format!("{what}: the server asks for no login"))),
            // Parameters, the cancellation key and notices.
            _ => {}
        }
    }
}

/// The commonest refusals, with what to write where.
fn mend(error: Error, endpoint: &Endpoint) -> Error {
    let text = error.to_string();
    let user = endpoint.user();
    if text.contains("no pg_hba.conf entry") {
        return error.hint(format!(
            "add to pg_hba.conf and reload:  host  {}  {user}  samenet  scram-sha-256",
            endpoint.database()
        ));
    }
    if text.contains("must be superuser or replication role") || text.contains("permission denied to start WAL sender")
    {
        return error.hint(format!("ALTER ROLE {} REPLICATION;", crate::sql::ident(user)));
    }
    match ["28P01", "28000", "3D000"].into_iter().find(|code| text.contains(&format!("(SQLSTATE {code})"))) {
        Some(code) => error.hint(login_hint(code).unwrap_or_default()),
        None => error,
    }
}

fn options(own: Option<&str>) -> String {
    let mut text = own.map(|o| format!("{o} ")).unwrap_or_default();
    for (name, value) in CANONICAL {
        text.push_str(&format!("-c {name}={value} "));
    }
    text
}

fn authenticate(
    endpoint: &Endpoint,
    body: &[u8],
    scram: &mut Option<Scram>,
    security: &Security,
    out: &mut BytesMut,
) -> Result<()> {
    let (kind, rest) = body.split_first_chunk::<4>().ok_or_else(|| protocol("a broken authentication request"))?;
    let password = || {
        endpoint.config().get_password().ok_or_else(|| {
            Error::new(ErrorKind::Config, "the server asks for a password and none is configured")
                .hint("set password, or write it into the URL")
        })
    };
    let io = |e: std::io::Error| Error::new(ErrorKind::Config, "authentication failed").because(e);
    let kind = u32::from_be_bytes(*kind);
    // Before a password is sent in any way.
    let bound = || scram.as_ref().is_some_and(|s| s.bound && s.proven);
    if matches!(kind, request::CLEARTEXT | request::MD5) || kind == request::OK && !bound() {
        check_unbound(endpoint)?;
    }
    match kind {
        request::OK if scram.as_ref().is_some_and(|s| !s.proven) => {
            Err(protocol("the server ended SCRAM without proving that it knows us"))
        }
        request::OK => Ok(()),
        request::CLEARTEXT => {
            if matches!(security, Security::Plain) && endpoint.config().get_hosts().iter().any(|h| !is_local(h)) {
                tracing::warn!(%endpoint, "the password travels unencrypted: use sslmode=verify-full or scram-sha-256");
            }
            frontend::password_message(password()?, out).map_err(io)
        }
        request::MD5 => {
            let salt = rest.first_chunk::<4>().ok_or_else(|| protocol("a broken authentication request"))?;
            let hash = md5_hash(endpoint.user().as_bytes(), password()?, *salt);
            frontend::password_message(hash.as_bytes(), out).map_err(io)
        }
        request::SASL => {
            let (mechanism, binding) = mechanism(endpoint, rest, security)?;
            let state = ScramSha256::new(password()?, binding);
            let state = scram.insert(Scram { state, bound: mechanism == SCRAM_SHA_256_PLUS, proven: false });
            frontend::sasl_initial_response(mechanism, state.state.message(), out).map_err(io)
        }
        request::SASL_CONTINUE => {
            let scram = scram.as_mut().ok_or_else(|| protocol("SASL goes on before it began"))?;
            scram.state.update(rest).map_err(io)?;
            frontend::sasl_response(scram.state.message(), out).map_err(io)
        }
        request::SASL_FINAL => {
            // Also proves that the server knows the password's verifier.
            let scram = scram.as_mut().ok_or_else(|| protocol("SASL ends before it began"))?;
            scram.state.finish(rest).map_err(io)?;
            scram.proven = true;
            Ok(())
        }
        other => Err(Error::new(
            ErrorKind::Config,
            format!("the server asks for authentication method {other}, which is not supported"),
        )
        .hint("use scram-sha-256, md5, password or cert in pg_hba.conf")),
    }
}

/// A SCRAM exchange.
struct Scram {
    state: ScramSha256,
    /// It is bound to the TLS connection.
    bound: bool,
    /// The server has proven that it knows the password's verifier.
    proven: bool,
}

/// Which mechanism of those that are offered to use, as libpq chooses, and what binds it.
fn mechanism(endpoint: &Endpoint, offered: &[u8], security: &Security) -> Result<(&'static str, ChannelBinding)> {
    let offers = |name: &str| offered.split(|b| *b == 0).any(|o| o == name.as_bytes());
    let binding = match security {
        Security::Tls(Some(binding)) if endpoint.config().get_channel_binding() != Demand::Disable => Some(binding),
        _ => None,
    };
    match binding {
        Some(binding) if offers(SCRAM_SHA_256_PLUS) => {
            return Ok((SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(binding.clone())));
        }
        _ => check_unbound(endpoint)?,
    }
    if !offers(SCRAM_SHA_256) {
        return Err(Error::new(ErrorKind::Config, "the server offers no SCRAM-SHA-256"));
    }
    // The server is told that we could have: if it did offer it, somebody in between took that away.
    Ok((SCRAM_SHA_256, if binding.is_some() { ChannelBinding::unrequested() } else { ChannelBinding::unsupported() }))
}

/// Whether a login may do without being bound to its TLS connection.
fn check_unbound(endpoint: &Endpoint) -> Result<()> {
    if endpoint.config().get_channel_binding() != Demand::Require {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Config, "channel_binding=require, and the server did not use channel binding")
        .hint(UNBOUND))
}

fn is_local(host: &tokio_postgres::config::Host) -> bool {
    match host {
        tokio_postgres::config::Host::Unix(_) => true,
        tokio_postgres::config::Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
        }
    }
}
