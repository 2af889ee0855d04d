//! Metrics for Prometheus, the status and the health of a pipeline, over HTTP.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | every figure of every pipeline in this process, in Prometheus's text format |
//! | `/status.json` | the [`Status`](crate::Status) of this exporter's pipeline |
//! | `/healthz` | 200 while its data path moves, or is idle and heard from; else 503, with the reason |
//!
//! Nobody has to give a password here: listen on a loopback address, or where only friends are.
//!
//! ```
//! use std::time::Duration;
//!
//! use anabranch::Pipeline;
//! use anabranch::memory::{MemorySink, MemorySource};
//! use anabranch::prometheus::{Exporter, Recorder};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> anabranch::Result<()> {
//! let recorder = Recorder::install()?;
//! let exporter = Exporter::listen(([127, 0, 0, 1], 0).into(), recorder, Duration::from_secs(60)).await?;
//! let running = Pipeline::builder("orders-dr")
//!     .source(MemorySource::new("shop"))
//!     .sink(MemorySink::new())
//!     .build()?
//!     .start()
//!     .await?;
//! exporter.watch(running.monitor());
//! println!("http://{}/metrics", exporter.address());
//! # running.stop().await }
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anabranch_core::metrics::{WRITE_BUCKETS, WRITE_SECONDS};
use anabranch_core::pipeline::Monitor;
use anabranch_core::{Error, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

/// How many are served at a time: a scraper and a few probes are a handful.
const CONNECTIONS: usize = 64;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often figures that nobody has asked for are summed up, so that they take no memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// The recorder of this process's figures.
#[derive(Clone, Debug)]
pub struct Recorder(PrometheusHandle);

impl Recorder {
    /// Installs it as the recorder of the process, for programs that have none; the same one when called
    /// again. Call it before a pipeline is built: what was given out before is not recorded.
    ///
    /// # Errors
    /// If the program has installed another recorder: that one has the figures.
    pub fn install() -> Result<Self> {
        static INSTALLED: OnceLock<Recorder> = OnceLock::new();
        if let Some(recorder) = INSTALLED.get() {
            return Ok(recorder.clone());
        }
        let builder = PrometheusBuilder::new();
        let builder = builder.set_buckets_for_metric(Matcher::Full(WRITE_SECONDS.to_owned()), &WRITE_BUCKETS);
        let recorder = builder.map_err(|e| Error::fatal("no buckets").because(e))?.build_recorder();
        let handle = Self(recorder.handle());
        metrics::set_global_recorder(recorder)
            .map_err(|_| Error::config("metrics", "this program has a recorder of its own already"))?;
        anabranch_core::metrics::describe();
        Ok(INSTALLED.get_or_init(|| handle).clone())
    }

    /// Every figure, in Prometheus's text format.
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// Answers HTTP requests about one pipeline until it is dropped.
#[derive(Debug)]
pub struct Exporter {
    address: SocketAddr,
    told: Arc<Told>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Told {
    recorder: Recorder,
    dead_after: Duration,
    monitor: OnceLock<Monitor>,
}

impl Exporter {
    /// Listens on this address; port 0 is any free one. The data path counts as dead when the source or
    /// the target was silent for `dead_after`. Until [`Exporter::watch`] is called, `/healthz` answers
    /// that the pipeline is starting, with 503.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if the address cannot be had.
    pub async fn listen(address: SocketAddr, recorder: Recorder, dead_after: Duration) -> Result<Self> {
        let cannot = |e| {
            let hint = "choose another port, or end what listens there";
            Error::config("metrics.listen", format!("cannot listen on {address}")).because(e).hint(hint)
        };
        let listener = TcpListener::bind(address).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let told = Arc::new(Told { recorder, dead_after, monitor: OnceLock::new() });
        let task = tokio::spawn(serve(listener, Arc::clone(&told)));
        Ok(Self { address, told, task })
    }

    /// The pipeline to tell about. The first one stays.
    pub fn watch(&self, monitor: Monitor) {
        let _ = self.told.monitor.set(monitor);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // Its connections are tasks of this one, and end with it.
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, told: Arc<Told>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut upkeep = interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            // 1. Those that have ended.
            Some(_) = connections.join_next() => {}
            // 2. Housekeeping.
            _ = upkeep.tick() => told.recorder.0.run_upkeep(),
            // 3. Somebody asks.
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // Too few file descriptors, as a rule: no reason to stop listening, nor to ask without pause.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
                let told = Arc::clone(&told);
                connections.spawn(async move {
                    let service = service_fn(|request| std::future::ready(answer(&told, &request)));
                    let mut server = http1::Builder::new();
                    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                    // A client that hangs up: there is nobody to tell.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                    drop(permit);
                });
            }
        }
    }
}

fn answer(told: &Told, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let known = matches!(request.uri().path(), "/metrics" | "/status.json" | "/healthz");
    let (status, kind, text) = match request.uri().path() {
        _ if known && request.method() != Method::GET && request.method() != Method::HEAD => {
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".to_owned())
        }
        "/metrics" => (StatusCode::OK, PROMETHEUS, told.recorder.render()),
        "/status.json" => status(told),
        "/healthz" => health(told),
        _ => (StatusCode::NOT_FOUND, TEXT, "there are /metrics, /status.json and /healthz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
    }
    Ok(response)
}

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

type Answer = (StatusCode, &'static str, String);

fn status(told: &Told) -> Answer {
    match told.monitor.get().map(|monitor| serde_json::to_string_pretty(&monitor.status())) {
        Some(Ok(json)) => (StatusCode::OK, JSON, json + "\n"),
        Some(Err(e)) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{e}\n")),
        None => (StatusCode::SERVICE_UNAVAILABLE, TEXT, "the pipeline is starting\n".to_owned()),
    }
}

fn health(told: &Told) -> Answer {
    let Some(monitor) = told.monitor.get() else {
        let starting = "{\n  \"life\": \"dead\",\n  \"reason\": \"the pipeline is starting\"\n}\n";
        return (StatusCode::SERVICE_UNAVAILABLE, JSON, starting.to_owned());
    };
    let health = monitor.health(told.dead_after);
    let code = if health.is_good() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string_pretty(&health) {
        Ok(json) => (code, JSON, json + "\n"),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{e}\n")),
    }
}
