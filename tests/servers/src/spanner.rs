//! The Cloud Spanner emulator.
//!
//! Two processes, as Google ships them: `emulator_main` speaks gRPC, `gateway_main` starts it and
//! speaks REST on a port that is higher by ten, where the official clients look for the
//! administration (instances, databases, DDL).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::account;
use crate::error::{Error, Result};
use crate::find;
use crate::folder::Folder;
use crate::http;
use crate::port;
use crate::process::{Process, Signal};
use crate::query::Row;

/// The project and instance of every database.
const INSTANCE: &str = "projects/test/instances/test";

/// Which SQL a database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpannerDialect {
    /// Spanner's own.
    GoogleSql,
    /// PostgreSQL's.
    PostgreSql,
}

/// What an emulator is started with.
///
/// Defaults: partitions of change streams live 20 to 40 s, no faults.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct SpannerOptions {
    arguments: Vec<String>,
}

impl SpannerOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Partitions of change streams live `seconds` to twice that, then split or merge.
    pub fn partition_seconds(mut self, seconds: u32) -> Self {
        self.arguments.push(format!("--override_change_stream_partition_token_alive_seconds={seconds}"));
        self
    }

    /// The emulator aborts transactions at random, as the real one may.
    pub fn faults(mut self) -> Self {
        self.arguments.push("--enable_fault_injection".to_owned());
        self
    }

    /// Starts it. `None`, with a line that says so, if the emulator is not installed.
    ///
    /// # Errors
    /// If it is installed and does not start.
    pub fn start(self) -> Result<Option<SpannerServer>> {
        let Some(bin) = find::spanner() else {
            eprintln!("skipped: the Cloud Spanner emulator is not installed; `make setup` says where it is looked for");
            return Ok(None);
        };
        let server = SpannerServer::create(bin, self)?;
        server.start()?;
        Ok(Some(server))
    }
}

/// A running emulator. Its databases live in memory: they are gone once it is stopped or killed.
///
/// Errors that carry details (a row that exists already) reach this struct's REST calls as `failed to
/// marshal error message`: a defect of the gateway. Over gRPC they are whole.
#[derive(Debug)]
pub struct SpannerServer {
    process: Process,
    bin: PathBuf,
    options: SpannerOptions,
    port: u16,
    /// How many databases were made since the start; names are not used twice.
    databases: Mutex<u32>,
    folder: Folder,
}

impl SpannerServer {
    fn create(bin: PathBuf, options: SpannerOptions) -> Result<Self> {
        let folder = Folder::new("sp")?;
        // Killed in whatever way, the gateway takes the emulator along.
        let setpriv = find::program("setpriv").map(|p| format!("{} --pdeathsig KILL ", p.display()));
        let script =
            format!("#!/bin/sh\nexec {}{} \"$@\"\n", setpriv.unwrap_or_default(), bin.join("emulator_main").display());
        let path = folder.join("emulator");
        fs::write(&path, script).map_err(Error::io("writing the emulator's script"))?;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&path, mode).map_err(Error::io("making the emulator's script executable"))?;
        let process = Process::new(folder.join("log"), folder.join("pid"));
        Ok(Self { process, bin, options, port: free_pair(), databases: Mutex::new(0), folder })
    }

    /// `127.0.0.1:PORT`, for gRPC: what `SPANNER_EMULATOR_HOST` is set to.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `127.0.0.1:PORT`, for REST: ten above that of [`SpannerServer::host`].
    pub fn rest_host(&self) -> String {
        format!("127.0.0.1:{}", self.port + 10)
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Starts it on the same ports, **without any of the databases it had**, and waits until it
    /// answers. Does nothing if it runs.
    ///
    /// # Errors
    /// If it ends or does not answer within a minute; with the end of its log.
    pub fn start(&self) -> Result<()> {
        let (grpc, rest) = (self.port, self.port + 10);
        let ready = || accepts(grpc) && accepts(rest) && self.instances().is_ok();
        self.process.start(self.command(), ready)?;
        if self.instances()?["instances"].is_null() {
            let instance = json!({"instanceId": "test", "instance": {
                "config": "projects/test/instanceConfigs/emulator-config", "displayName": "test", "nodeCount": 1}});
            self.post("projects/test/instances", &instance)?;
        }
        Ok(())
    }

    /// Kills it with SIGKILL, both processes. **What it held is gone.**
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn kill9(&self) -> Result<()> {
        self.process.stop(Signal::Kill)
    }

    /// Makes a database with these statements of DDL, and gives its full name,
    /// `projects/test/instances/test/databases/db1`.
    ///
    /// # Errors
    /// [`Error::Refused`] with the emulator's message.
    pub fn create_db(&self, dialect: SpannerDialect, ddl: &[&str]) -> Result<String> {
        let name = {
            let mut count = self.databases.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *count += 1;
            format!("db{count}")
        };
        let (statement, dialect) = match dialect {
            SpannerDialect::GoogleSql => (format!("CREATE DATABASE `{name}`"), "GOOGLE_STANDARD_SQL"),
            SpannerDialect::PostgreSql => (format!("CREATE DATABASE \"{name}\""), "POSTGRESQL"),
        };
        self.post(
            &format!("{INSTANCE}/databases"),
            &json!({"createStatement": statement, "databaseDialect": dialect}),
        )?;
        let database = format!("{INSTANCE}/databases/{name}");
        self.ddl(&database, ddl)?;
        Ok(database)
    }

    /// Runs statements of DDL, in order, on a database by its full name.
    ///
    /// # Errors
    /// [`Error::Refused`] with the emulator's message.
    pub fn ddl(&self, database: &str, statements: &[&str]) -> Result<()> {
        if statements.is_empty() {
            return Ok(());
        }
        self.call("PATCH", &format!("{database}/ddl"), &json!({"statements": statements})).map(drop)
    }

    /// Runs one statement of DML, or a query, in a transaction of its own, and gives the rows as
    /// text: whole numbers in digits, timestamps in RFC 3339, bytes in base64, arrays as JSON.
    ///
    /// # Errors
    /// [`Error::Refused`] with the emulator's message.
    pub fn exec(&self, database: &str, sql: &str) -> Result<Vec<Row>> {
        let mut rows = self.transaction(database, &[sql])?;
        Ok(rows.pop().unwrap_or_default())
    }

    /// Runs statements in one read-write transaction, again if the emulator aborts it.
    ///
    /// # Errors
    /// [`Error::Refused`] with the emulator's message; then none of them has an effect.
    pub fn transaction(&self, database: &str, statements: &[&str]) -> Result<Vec<Vec<Row>>> {
        let session = self.post(&format!("{database}/sessions"), &json!({}))?;
        let session = session["name"].as_str().unwrap_or_default().to_owned();
        let done = loop {
            match self.attempt(&session, statements) {
                // One read-write transaction at a time: it aborts all others.
                Err(Error::Refused { message, .. }) if message.contains("ABORTED") || message.contains("aborted") => {}
                other => break other,
            }
        };
        self.call("DELETE", &session, &Value::Null)?;
        done
    }

    /// Runs queries at one point in time.
    ///
    /// # Errors
    /// [`Error::Refused`] with the emulator's message.
    pub fn snapshot(&self, database: &str, queries: &[&str]) -> Result<Vec<Vec<Row>>> {
        let session = self.post(&format!("{database}/sessions"), &json!({}))?;
        let session = session["name"].as_str().unwrap_or_default().to_owned();
        let options = json!({"options": {"readOnly": {"strong": true}}});
        let id = self.post(&format!("{session}:beginTransaction"), &options)?["id"].clone();
        let read = |sql: &&str| {
            let request = json!({"sql": sql, "transaction": {"id": id}});
            Ok(rows(&self.post(&format!("{session}:executeSql"), &request)?))
        };
        let found = queries.iter().map(read).collect();
        self.call("DELETE", &session, &Value::Null)?;
        found
    }

    fn attempt(&self, session: &str, statements: &[&str]) -> Result<Vec<Vec<Row>>> {
        let begun = self.post(&format!("{session}:beginTransaction"), &json!({"options": {"readWrite": {}}}))?;
        let id = &begun["id"];
        let mut results = Vec::new();
        for (number, sql) in statements.iter().enumerate() {
            let request = json!({"sql": sql, "transaction": {"id": id}, "seqno": (number + 1).to_string()});
            match self.post(&format!("{session}:executeSql"), &request) {
                Ok(answer) => results.push(rows(&answer)),
                Err(error) => {
                    // Or it blocks every other transaction.
                    self.post(&format!("{session}:rollback"), &json!({"transactionId": id}))?;
                    return Err(error);
                }
            }
        }
        self.post(&format!("{session}:commit"), &json!({"transactionId": id}))?;
        Ok(results)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call("POST", path, body)
    }

    fn instances(&self) -> Result<Value> {
        self.call("GET", "projects/test/instances", &Value::Null)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let (status, answer) = http::request(&self.rest_host(), method, &format!("/v1/{path}"), body)?;
        let error = if status >= 300 { &answer } else { &answer["error"] };
        if status >= 300 || !error.is_null() {
            let message = error["message"].as_str().or(error["error"]["message"].as_str());
            let message = message.map_or_else(|| error.to_string(), str::to_owned);
            return Err(Error::Refused { message, sql: body.to_string().chars().take(200).collect() });
        }
        Ok(answer)
    }

    fn command(&self) -> Command {
        let mut command = account::command(self.bin.join("gateway_main"));
        command.args(["--hostname", "127.0.0.1"]).arg("--grpc_binary").arg(self.folder.join("emulator"));
        command.arg(format!("--grpc_port={}", self.port)).arg(format!("--http_port={}", self.port + 10));
        command.args(["--override_max_databases_per_instance", "1000"]);
        command.args(&self.options.arguments);
        command.current_dir(self.folder.path());
        command
    }
}

impl Drop for SpannerServer {
    fn drop(&mut self) {
        if self.process.running() {
            let _ = self.process.stop(Signal::Kill);
        }
    }
}

/// A port that is free, with the one ten above it.
fn free_pair() -> u16 {
    loop {
        let port = port::free();
        if port::take(port + 10) {
            return port;
        }
    }
}

fn accepts(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

fn rows(answer: &Value) -> Vec<Row> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let rows = answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().map(|row| row.as_array().map(|r| r.iter().map(text).collect()).unwrap_or_default()).collect()
}
