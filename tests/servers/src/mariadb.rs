//! MariaDB.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::account;
use crate::error::{Error, Result};
use crate::find;
use crate::folder::Folder;
use crate::port;
use crate::process::{Process, Signal};
use crate::query::Row;
use crate::tls::TlsFiles;

/// What a MariaDB is started with.
///
/// Defaults: InnoDB without forced writes, UTC, user `root` without a password, no TLS.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct MariaOptions {
    arguments: Vec<String>,
    fsync: bool,
    tls: bool,
}

impl MariaOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// An option of `mariadbd`, without the dashes: `.setting("sql-mode", "ANSI")`.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.arguments.push(format!("--{name}={value}"));
        self
    }

    /// Whether commits are forced to disk.
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// Switches TLS on, with an authority of its own: see [`MariaServer::tls`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Starts it. `None`, with a line that says so, if MariaDB is not installed.
    ///
    /// # Errors
    /// If it is installed and does not start.
    pub fn start(self) -> Result<Option<MariaServer>> {
        let Some((program, install)) = find::mariadb() else {
            eprintln!("skipped: MariaDB is not installed; `make setup` fetches it");
            return Ok(None);
        };
        let server = MariaServer::create(program, &install, self)?;
        server.start()?;
        Ok(Some(server))
    }
}

/// A running MariaDB. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct MariaServer {
    process: Process,
    program: PathBuf,
    options: MariaOptions,
    port: u16,
    tls: Option<TlsFiles>,
    folder: Folder,
}

impl MariaServer {
    fn create(program: PathBuf, install: &Path, options: MariaOptions) -> Result<Self> {
        let folder = Folder::new("my")?;
        let data = folder.make("data")?;
        let tls = options.tls.then(|| TlsFiles::make(folder.path())).transpose()?;
        let out = account::command(install)
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .args(["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0"])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--tmpdir={}", folder.path().display()))
            .current_dir(folder.path())
            .output()
            .map_err(Error::io("running mariadb-install-db"))?;
        if !out.status.success() {
            let output = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
            return Err(Error::Program { program: install.to_owned(), output });
        }
        let process = Process::new(folder.join("log"), folder.join("pid"));
        Ok(Self { process, program, options, port: port::free(), tls, folder })
    }

    /// `mysql://root@127.0.0.1:PORT/DB`.
    pub fn url(&self, db: &str) -> String {
        format!("mysql://root@127.0.0.1:{}/{db}", self.port)
    }

    /// The TCP port, on 127.0.0.1. It stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("sock")
    }

    /// The certificates, if TLS is on.
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The server's process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Starts it, on the same port and data, and waits until it accepts connections. Does nothing
    /// if it runs.
    ///
    /// # Errors
    /// If it ends or does not accept connections within a minute; with the end of its log.
    pub fn start(&self) -> Result<()> {
        self.process.start(self.command(), || greets(self.port))
    }

    /// Stops it as an administrator does.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn stop(&self) -> Result<()> {
        self.process.stop(Signal::Term)
    }

    /// Kills it with SIGKILL, as a crash does.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn kill9(&self) -> Result<()> {
        self.process.stop(Signal::Kill)
    }

    /// Runs statements as `root` with the `mariadb` program, in no database if `db` is empty, and
    /// gives the rows as text. Tabs and line ends in values come escaped, as that program does it.
    ///
    /// # Errors
    /// If the server refuses a statement, or is not there.
    pub fn exec(&self, db: &str, sql: &str) -> Result<Vec<Row>> {
        let mut client = Command::new("mariadb");
        client.arg("--no-defaults").arg(format!("--socket={}", self.socket().display()));
        client.args(["--user=root", "--batch", "--skip-column-names", "--default-character-set=utf8mb4"]);
        if !db.is_empty() {
            client.arg(format!("--database={db}"));
        }
        let out = client.args(["--execute", sql]).output().map_err(Error::io("running mariadb"))?;
        if !out.status.success() {
            let message = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            return Err(Error::Refused { message, sql: sql.chars().take(200).collect() });
        }
        let text = String::from_utf8_lossy(&out.stdout);
        let value = |v: &str| (v != "NULL").then(|| v.to_owned());
        Ok(text.lines().map(|line| line.split('\t').map(value).collect()).collect())
    }

    /// Makes a database, with `utf8mb4` text compared byte by byte.
    ///
    /// # Errors
    /// As [`MariaServer::exec`].
    pub fn create_db(&self, name: &str) -> Result<()> {
        let name = name.replace('`', "``");
        let sql = format!("CREATE DATABASE `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin");
        self.exec("", &sql).map(drop)
    }

    fn command(&self) -> Command {
        let mut command = account::command(&self.program);
        let path = |name: &str| self.folder.join(name).display().to_string();
        command.arg("--no-defaults");
        command.arg(format!("--datadir={}", path("data"))).arg(format!("--tmpdir={}", self.folder.path().display()));
        command.arg(format!("--socket={}", path("sock"))).arg(format!("--pid-file={}", path("pid")));
        command.arg(format!("--port={}", self.port));
        command.args(DEFAULTS);
        if !self.options.fsync {
            // Every commit is written, as a sink demands, but not forced to disk.
            command.arg("--innodb-flush-method=nosync");
        }
        if let Some(tls) = &self.tls {
            command.arg(format!("--ssl-ca={}", tls.ca.display()));
            command.arg(format!("--ssl-cert={}", tls.server_cert.display()));
            command.arg(format!("--ssl-key={}", tls.server_key.display()));
        }
        command.args(&self.options.arguments);
        command.current_dir(self.folder.path());
        command
    }
}

/// Later options win, so a test's own come after these.
const DEFAULTS: &[&str] = &[
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--default-time-zone=+00:00",
    "--character-set-server=utf8mb4",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=32M",
    // The look whether it is up yet counts as a failed connection.
    "--max-connect-errors=1000000",
    "--performance-schema=OFF",
];

impl Drop for MariaServer {
    fn drop(&mut self) {
        if self.process.running() {
            let _ = self.process.stop(Signal::Kill);
        }
        let _ = fs::remove_file(self.socket());
    }
}

/// Whether a server sends its greeting: a listening port alone may still be starting.
fn greets(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut greeting = [0; 5];
    // Packet head (length, number), then protocol version 10; 255 is an error.
    stream.read_exact(&mut greeting).is_ok() && greeting[4] == 10
}
