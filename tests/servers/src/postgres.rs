//! PostgreSQL.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account;
use crate::error::{Error, Result};
use crate::find::{self, PgVersion};
use crate::folder::{Folder, reachable};
use crate::port;
use crate::process::{Process, Signal};
use crate::query::{self, Row};
use crate::tls::TlsFiles;

/// What a PostgreSQL is started with.
///
/// Defaults: `wal_level=logical`, room for 20 slots and senders, prepared transactions allowed,
/// `fsync=off`, trust for every user on 127.0.0.1 and the socket, no TLS.
#[derive(Debug, Clone)]
#[must_use]
pub struct PgOptions {
    version: PgVersion,
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    fsync: bool,
    tls: bool,
}

impl PgOptions {
    /// The defaults.
    pub fn new(version: PgVersion) -> Self {
        Self { version, settings: Vec::new(), hba: Vec::new(), fsync: false, tls: false }
    }

    /// A setting of `postgresql.conf`; the value without quotes.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Whether commits are forced to disk.
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// Switches TLS on, with an authority of its own: see [`PgServer::tls`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// A line of `pg_hba.conf` for TCP, such as `host all app 127.0.0.1/32 scram-sha-256`. Lines
    /// come in the given order, before the one that trusts everybody on 127.0.0.1. The Unix socket
    /// always trusts.
    pub fn hba(mut self, line: impl Into<String>) -> Self {
        self.hba.push(line.into());
        self
    }

    /// Starts it. `None`, with a line that says so, if this version is not installed.
    ///
    /// # Errors
    /// If it is installed and does not start.
    pub fn start(self) -> Result<Option<PgServer>> {
        let Some(bin) = find::postgres(self.version) else {
            eprintln!("skipped: PostgreSQL ({:?}) is not installed; `make setup` fetches it", self.version);
            return Ok(None);
        };
        let server = PgServer::create(reachable(bin)?, &self)?;
        server.start()?;
        Ok(Some(server))
    }

    fn conf(&self, port: u16, sockets: &Path, tls: Option<&TlsFiles>) -> String {
        let mut conf = String::new();
        let mut set = |name: &str, value: &str| {
            let _ = writeln!(conf, "{name} = '{}'", value.replace('\'', "''"));
        };
        set("listen_addresses", "127.0.0.1");
        set("port", &port.to_string());
        set("unix_socket_directories", &sockets.display().to_string());
        // Shared memory in the data folder, so that a killed server leaves nothing behind.
        set("dynamic_shared_memory_type", "mmap");
        for (name, value) in DEFAULTS {
            set(name, value);
        }
        if !self.fsync {
            set("fsync", "off");
            set("full_page_writes", "off");
        }
        if let Some(tls) = tls {
            set("ssl", "on");
            set("ssl_ca_file", &tls.ca.display().to_string());
            set("ssl_cert_file", &tls.server_cert.display().to_string());
            set("ssl_key_file", &tls.server_key.display().to_string());
        }
        for (name, value) in &self.settings {
            set(name, value);
        }
        conf
    }
}

/// Later lines of `postgresql.conf` win, so a test's own settings come after these.
const DEFAULTS: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("max_logical_replication_workers", "8"),
    ("max_prepared_transactions", "10"),
    ("shared_buffers", "32MB"),
    ("log_line_prefix", "%m [%p] "),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
];

/// A running PostgreSQL. Dropping it stops it and removes its data.
#[derive(Debug)]
pub struct PgServer {
    process: Process,
    bin: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    port: u16,
    tls: Option<TlsFiles>,
    // Last: removed after the process has ended.
    _folder: Folder,
}

impl PgServer {
    /// Makes the data folder.
    fn create(bin: PathBuf, options: &PgOptions) -> Result<Self> {
        let folder = Folder::new("pg")?;
        let data = folder.join("data");
        let sockets = folder.make("s")?;
        let tls = options.tls.then(|| TlsFiles::make(folder.path())).transpose()?;
        let initdb = bin.join("initdb");
        let out = account::command(&initdb)
            .args(["--username=postgres", "--auth=trust", "--no-locale", "--encoding=UTF8", "--no-sync", "-D"])
            .arg(&data)
            .current_dir(folder.path())
            .output()
            .map_err(Error::io("running initdb"))?;
        if !out.status.success() {
            let output = String::from_utf8_lossy(&out.stderr).into_owned();
            return Err(Error::Program { program: initdb, output });
        }
        let port = port::free();
        let conf = options.conf(port, &sockets, tls.as_ref());
        fs::write(data.join("postgresql.conf"), conf).map_err(Error::io("writing postgresql.conf"))?;
        fs::write(data.join("pg_hba.conf"), hba(options)).map_err(Error::io("writing pg_hba.conf"))?;
        let process = Process::new(folder.join("log"), data.join("postmaster.pid"));
        Ok(Self { process, bin, data, sockets, port, tls, _folder: folder })
    }

    /// A streaming standby of this server, running, on a port of its own.
    ///
    /// # Errors
    /// If the installation has no `pg_basebackup`, or the standby does not start.
    pub fn standby(&self) -> Result<Self> {
        let folder = Folder::new("pg")?;
        let data = folder.join("data");
        let sockets = folder.make("s")?;
        let program = self.bin.join("pg_basebackup");
        let out = account::command(&program)
            .args(["--username=postgres", "--checkpoint=fast", "--write-recovery-conf", "--no-sync", "--host"])
            .arg(&self.sockets)
            .args(["--port", &self.port.to_string(), "--pgdata"])
            .arg(&data)
            .current_dir(folder.path())
            .output()
            .map_err(Error::io("running pg_basebackup"))?;
        if !out.status.success() {
            let output = String::from_utf8_lossy(&out.stderr).into_owned();
            return Err(Error::Program { program, output });
        }
        let port = port::free();
        let path = data.join("postgresql.conf");
        let mut conf = fs::read_to_string(&path).map_err(Error::io("reading postgresql.conf"))?;
        let _ = writeln!(conf, "port = {port}\nunix_socket_directories = '{}'", sockets.display());
        fs::write(&path, conf).map_err(Error::io("writing postgresql.conf"))?;
        let process = Process::new(folder.join("log"), data.join("postmaster.pid"));
        let bin = self.bin.clone();
        let standby = Self { process, bin, data, sockets, port, tls: self.tls.clone(), _folder: folder };
        standby.start()?;
        Ok(standby)
    }

    /// `postgresql://postgres@127.0.0.1:PORT/DB`.
    pub fn url(&self, db: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{db}", self.port)
    }

    /// The TCP port, on 127.0.0.1. It stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.sockets
    }

    /// The data folder.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The folder of its programs: `postgres`, `initdb`, and what else the installation has.
    pub fn bin_dir(&self) -> &Path {
        &self.bin
    }

    /// The certificates, if TLS is on.
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The postmaster's process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Starts it, on the same port and data, and waits until it accepts connections. Does nothing
    /// if it runs.
    ///
    /// # Errors
    /// If it ends or does not accept connections within a minute; with the end of its log.
    pub fn start(&self) -> Result<()> {
        let mut command: Command = account::command(self.bin.join("postgres"));
        command.arg("-D").arg(&self.data).current_dir(&self.data).env("LC_ALL", "C");
        let pid_file = self.data.join("postmaster.pid");
        // What `pg_ctl --wait` looks at: the eighth line becomes `ready`.
        let ready = || {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            text.lines().nth(7).is_some_and(|line| line.trim_end() == "ready")
        };
        self.process.start(command, ready)
    }

    /// Stops it as an administrator does: sessions end, a checkpoint is written ("fast").
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn stop(&self) -> Result<()> {
        self.process.stop(Signal::Int)
    }

    /// Kills every process of it with SIGKILL, as a crash does.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn kill9(&self) -> Result<()> {
        self.process.stop(Signal::Kill)
    }

    /// Runs statements as `postgres` and gives the rows of all of them as text. Several statements
    /// in one call are one transaction, unless they say otherwise.
    ///
    /// # Errors
    /// If the server refuses a statement, or is not there.
    pub fn exec(&self, db: &str, sql: &str) -> Result<Vec<Row>> {
        query::run(&self.sockets.join(format!(".s.PGSQL.{}", self.port)), db, sql)
    }

    /// The first column of the first row, as text; `None` if there is no row or it is NULL.
    ///
    /// # Errors
    /// As [`PgServer::exec`].
    pub fn value(&self, db: &str, sql: &str) -> Result<Option<String>> {
        Ok(self.exec(db, sql)?.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    /// Makes a database.
    ///
    /// # Errors
    /// As [`PgServer::exec`].
    pub fn create_db(&self, name: &str) -> Result<()> {
        self.exec("postgres", &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""))).map(drop)
    }

    /// Changes a setting of the running server; one that needs a restart takes effect at the next
    /// [`start`](Self::start).
    ///
    /// # Errors
    /// As [`PgServer::exec`].
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        self.exec("postgres", &format!("ALTER SYSTEM SET {setting} = '{}'", value.replace('\'', "''")))?;
        self.exec("postgres", "SELECT pg_reload_conf()").map(drop)
    }
}

impl Drop for PgServer {
    fn drop(&mut self) {
        // "Immediate": without a checkpoint, but shared memory is given back.
        if self.process.running() {
            let _ = self.process.stop(Signal::Quit);
        }
    }
}

fn hba(options: &PgOptions) -> String {
    let mut text = String::from("local all all trust\nlocal replication all trust\n");
    for line in &options.hba {
        let _ = writeln!(text, "{line}");
    }
    text.push_str("host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n");
    text
}
