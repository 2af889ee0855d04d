//! Where a server is and how to reach it: one parsed URL for statements and for replication.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{Error, Result, Secret};
use rustls::ClientConfig;
use tokio_postgres::config::{ChannelBinding, Host};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::Instrument;

use crate::error::{chain, classify};
use crate::tls::{SslMode, TlsFiles, client_config};

/// How long a server may take to accept a connection, unless the URL says `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long sent bytes may stay unacknowledged before a connection counts as cut, unless the URL says so.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A PostgreSQL server, database and user, from a URL as libpq writes it
/// (`postgresql://user:password@host:port/database?sslmode=verify-full`) or from `key=value` pairs.
///
/// TLS follows libpq's `sslmode`, `sslrootcert`, `sslcert` and `sslkey`, with one difference: a URL
/// without `sslmode` means `verify-full` for other machines and `prefer` for this one, where libpq
/// would always fall back to an unencrypted connection. `channel_binding` (`disable`, `prefer`, which is the
/// default, or `require`) is libpq's too, on every connection.
///
/// ```
/// use anabranch_postgres::Endpoint;
/// let endpoint = Endpoint::parse("source.url", "postgresql://app:hunter2@localhost/shop")?;
/// assert_eq!(endpoint.to_string(), "postgresql://app@localhost:5432/shop");
/// assert!(!format!("{endpoint:?}").contains("hunter2"));
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Endpoint {
    /// The configuration key that errors name.
    key: String,
    config: Config,
    mode: SslMode,
    tls: Option<Arc<ClientConfig>>,
}

impl Endpoint {
    /// Reads a URL; `key` is the configuration key that errors name.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config) for a URL, a TLS mode or a certificate file that
    /// cannot be used.
    pub fn parse(key: &str, url: &str) -> Result<Self> {
        // Everything up to the first @ is taken for user and password, so what follows it would be
        // taken for the host, and be shown as such.
        if is_url(url) && base_and_options(url).0.matches('@').count() > 1 {
            return Err(Error::config(key, "has more than one @")
                .hint("percent-encode an @ in a user's name or a password as %40, or set the password apart"));
        }
        let (rest, options) = split_ssl_options(key, url)?;
        let mut config: Config = rest.parse().map_err(|e: tokio_postgres::Error| {
            // The parser's message names the option at fault, never its value.
            let reason = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            Error::config(key, format!("is not a PostgreSQL URL: {reason}"))
                .hint("write postgresql://user@host:5432/database; percent-encode special characters of a password")
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(Error::config(key, "names no host").hint("write postgresql://user@host:5432/database"));
        }
        if config.get_user().is_none_or(str::is_empty) {
            return Err(Error::config(key, "names no user").hint("write postgresql://user@host:5432/database"));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(USER_TIMEOUT);
        }
        let mode = match &options.mode {
            Some(text) => SslMode::parse(key, text)?,
            None if config.get_hosts().iter().all(is_this_machine) => SslMode::Prefer,
            None => SslMode::VerifyFull,
        };
        // libpq ignores sslmode on Unix sockets: nothing leaves the machine.
        let mode = if config.get_hosts().iter().all(is_unix) { SslMode::Disable } else { mode };
        if mode == SslMode::Disable && config.get_channel_binding() == ChannelBinding::Require {
            return Err(Error::config(key, "channel_binding=require needs TLS, and this connection has none")
                .hint("use TCP and sslmode=verify-full (or require), or leave channel_binding out"));
        }
        let tls = client_config(key, mode, &options.files)?;
        config.ssl_mode(match mode {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => tokio_postgres::config::SslMode::Require,
        });
        Ok(Self { key: key.to_owned(), config, mode, tls })
    }

    /// The same with this password, for configurations that keep it apart from the URL.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config) if the secret cannot be read.
    pub fn with_password(mut self, key: &str, password: &Secret) -> Result<Self> {
        self.config.password(password.resolve(key)?.expose());
        Ok(self)
    }

    /// Where a source is: `source.url`, and `source.password` if it is kept apart.
    ///
    /// # Errors
    /// As [`Endpoint::parse`] and [`Endpoint::with_password`].
    pub fn of_source(url: &Secret, password: Option<&Secret>) -> Result<Self> {
        let endpoint = Self::parse("source.url", url.resolve("source.url")?.expose())?;
        match password {
            Some(password) => endpoint.with_password("source.password", password),
            None => Ok(endpoint),
        }
    }

    /// Connects for statements. The connection's own work runs in a task that ends with the client.
    pub(crate) async fn connect(&self, application_name: &str) -> Result<Client> {
        let mut config = self.config.clone();
        if config.get_application_name().is_none() {
            config.application_name(application_name);
        }
        let span = tracing::debug_span!("postgres", application = application_name);
        match &self.tls {
            Some(tls) => {
                let connector = MakeRustlsConnect::new(ClientConfig::clone(tls));
                let (client, connection) = config.connect(connector).await.map_err(|e| self.failed(e))?;
                tokio::spawn(log_end(connection).instrument(span));
                Ok(client)
            }
            None => {
                let (client, connection) = config.connect(NoTls).await.map_err(|e| self.failed(e))?;
                tokio::spawn(log_end(connection).instrument(span));
                Ok(client)
            }
        }
    }

    /// What was being done when connecting failed, with the key at fault.
    pub(crate) fn connecting(&self) -> String {
        format!("{}: cannot connect to {self}", self.key)
    }

    fn failed(&self, e: tokio_postgres::Error) -> Error {
        let code = e.code().map(|code| code.code().to_owned());
        let hint = match code.as_deref() {
            Some(code) => match login_hint(code) {
                Some(hint) => hint,
                None => return classify(e, &self.connecting()),
            },
            // The driver's own words for it: it has no code.
            None if chain(&e).contains("did not use channel binding") => UNBOUND,
            None if self.config.get_password().is_none() && e.to_string().contains("invalid configuration") => {
                "the server asks for a password: give one"
            }
            _ => return classify(e, &self.connecting()),
        };
        classify(e, &self.connecting()).hint(hint)
    }

    /// The parsed URL.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// What TLS is demanded.
    pub(crate) fn ssl_mode(&self) -> SslMode {
        self.mode
    }

    /// How TLS is spoken, unless it is disabled.
    pub(crate) fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.tls.as_ref()
    }

    /// The database: the user's name if the URL names none.
    pub(crate) fn database(&self) -> &str {
        self.config.get_dbname().or(self.config.get_user()).unwrap_or_default()
    }

    /// The user.
    pub(crate) fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }
}

async fn log_end(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    match connection.await {
        Ok(()) => tracing::debug!("connection closed"),
        // The statement that was under way gets the error too; this line is for the log only.
        Err(e) => tracing::debug!(error = %classify(e, "connection lost"), "connection ended"),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgresql://{}@", self.user())?;
        let ports = self.config.get_ports();
        for (n, host) in self.config.get_hosts().iter().enumerate() {
            let separator = if n == 0 { "" } else { "," };
            match host {
                Host::Tcp(name) => write!(f, "{separator}{name}")?,
                Host::Unix(path) => write!(f, "{separator}{}", path.display())?,
            }
            write!(f, ":{}", port(ports, n))?;
        }
        write!(f, "/{}", self.database())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self}, {:?})", self.mode)
    }
}

/// The port of host number `at`: one for all, or one for each (libpq's manual, "Specifying Multiple Hosts").
pub(crate) fn port(ports: &[u16], at: usize) -> u16 {
    ports.get(at).or_else(|| ports.first()).copied().unwrap_or(5432)
}

/// What to do where `channel_binding=require` cannot be met.
pub(crate) const UNBOUND: &str = "let pg_hba.conf ask this user for scram-sha-256 over TLS (hostssl), with a password \
    that is stored as SCRAM and a server certificate that is signed with RSA or ECDSA; or set channel_binding=prefer";

/// What to do about a refused login, by its SQLSTATE.
pub(crate) fn login_hint(code: &str) -> Option<&'static str> {
    match code {
        "28P01" => Some("check the user and the password"),
        "28000" => Some("check the user, and the server's pg_hba.conf"),
        "3D000" => Some("create it, or correct its name in the URL"),
        _ => None,
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// A URL's part before its options, and those. A question mark before the @ is of the password.
fn base_and_options(url: &str) -> (&str, Option<&str>) {
    let from =
        url.find('@').filter(|at| !url.get(url.find("://").map_or(0, |p| p + 3)..*at).is_some_and(|u| u.contains('/')));
    match url[from.unwrap_or(0)..].find('?').map(|at| at + from.unwrap_or(0)) {
        Some(at) => (&url[..at], Some(&url[at + 1..])),
        None => (url, None),
    }
}

fn is_unix(host: &Host) -> bool {
    matches!(host, Host::Unix(_))
}

fn is_this_machine(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        Host::Unix(_) => true,
    }
}

#[derive(Default)]
struct SslOptions {
    mode: Option<String>,
    files: TlsFiles,
}

impl SslOptions {
    /// Takes an option that the driver does not know; false if it is not one of these.
    fn take(&mut self, name: &str, value: String) -> bool {
        match name {
            "sslmode" => self.mode = Some(value),
            "sslrootcert" => self.files.root = Some(value),
            "sslcert" => self.files.certificate = Some(value),
            "sslkey" => self.files.key = Some(value),
            _ => return false,
        }
        true
    }
}

/// Takes libpq's TLS options, which the driver does not know, out of a URL or of `key=value` pairs.
fn split_ssl_options(key: &str, url: &str) -> Result<(String, SslOptions)> {
    let mut options = SslOptions::default();
    if is_url(url) {
        let (base, Some(query)) = base_and_options(url) else { return Ok((url.to_owned(), options)) };
        let kept: Vec<&str> = query
            .split('&')
            .filter(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                !options.take(name, percent_decode(value))
            })
            .collect();
        let rest = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
        return Ok((rest, options));
    }
    let mut rest = String::new();
    for (name, raw, value) in pairs(url).ok_or_else(|| {
        Error::config(key, "is not a PostgreSQL URL").hint("write postgresql://user@host:5432/database")
    })? {
        if !options.take(name, value) {
            rest.push_str(&format!("{name}={raw} "));
        }
    }
    Ok((rest, options))
}

/// `key=value` pairs as libpq reads them: name, value as written, value.
fn pairs(text: &str) -> Option<Vec<(&str, &str, String)>> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let mut value = String::new();
        let quoted = after.starts_with('\'');
        let mut chars = after.char_indices().skip(usize::from(quoted));
        let end = loop {
            match chars.next() {
                Some((_, '\\')) => value.push(chars.next()?.1),
                Some((at, '\'')) if quoted => break at + 1,
                Some((at, c)) if !quoted && c.is_whitespace() => break at,
                Some((_, c)) => value.push(c),
                None if quoted => return None,
                None => break after.len(),
            }
        };
        found.push((name.trim(), &after[..end], value));
        rest = after[end..].trim_start();
    }
    Some(found)
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anabranch_core::ErrorKind;

    #[test]
    fn the_default_depends_on_where_the_server_is() {
        for (url, mode) in [
            ("postgresql://u@localhost/d", SslMode::Prefer),
            ("postgresql://u@127.0.0.1/d", SslMode::Prefer),
            ("postgresql://u@%2Ftmp%2Fsock/d", SslMode::Disable),
            ("postgresql://u@localhost/d?sslmode=disable", SslMode::Disable),
            ("postgresql://u@db.example/d?sslmode=require", SslMode::Require),
            ("postgresql://u:a?b@localhost/d?sslmode=disable", SslMode::Disable),
            ("host=db.example user=u sslmode=disable dbname=d", SslMode::Disable),
        ] {
            assert_eq!(Endpoint::parse("k", url).unwrap().ssl_mode(), mode, "{url}");
        }
    }

    #[test]
    fn errors_name_the_key_and_no_secret() {
        for url in [
            "postgresql://u:a@hunter2/b@h/d?sslmode=disable",
            "postgresql://u:hunter2@h/d?sslmode=perhaps",
            "postgresql://u:hunter2@h/d?sslmode=verify-full&sslrootcert=/nowhere",
            "postgresql://u:hunter2@h/d?nonsense=hunter2",
            "postgresql://u:hunter2@h/d?sslmode=require&sslcert=/nowhere",
            "postgresql://:hunter2@h/d?sslmode=disable",
            "password=hunter2 what",
            "hunter2",
        ] {
            let e = Endpoint::parse("source.url", url).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Config, "{url}");
            assert!(e.to_string().starts_with("source.url: "), "{e}");
            assert!(!format!("{e:?}").contains("hunter2"), "{e:?}");
        }
    }

    #[test]
    fn quoted_pairs_are_read() {
        let endpoint =
            Endpoint::parse("k", r"host=localhost user='a b' password='it\'s' sslmode = 'prefer' port=6543").unwrap();
        assert_eq!(endpoint.config().get_password(), Some(&b"it's"[..]));
        assert_eq!(endpoint.to_string(), "postgresql://a b@localhost:6543/a b");
    }
}
