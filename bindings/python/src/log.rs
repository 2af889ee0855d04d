//! What the pipelines log, as records of Python's `logging`.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Once, OnceLock};

use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::border::attached;

/// Records that wait for the interpreter. Beyond it they are counted and left out: logging never
/// holds a pipeline up.
const WAITING: usize = 4096;

static INSTALLED: Once = Once::new();
static RECORDS: OnceLock<SyncSender<Record>> = OnceLock::new();
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// The least Python level that is wanted: of the logger `anabranch`, as it was looked at last.
static WANTED: AtomicU8 = AtomicU8::new(30);

struct Record {
    level: u8,
    logger: String,
    message: String,
}

/// Begins to hand records on. Not done on import: the command in the wheel writes its own log.
pub(crate) fn install(py: Python<'_>) {
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Bridge);
        // Somebody else's subscriber stays.
        if tracing::subscriber::set_global_default(subscriber).is_ok() {
            let (send, receive) = sync_channel(WAITING);
            if std::thread::Builder::new().name("anabranch-log".to_owned()).spawn(|| hand_on(receive)).is_ok() {
                let _ = RECORDS.set(send);
            }
        }
    });
    refresh(py);
}

/// Looks at the logger's level.
pub(crate) fn refresh(py: Python<'_>) {
    let level = py
        .import("logging")
        .and_then(|m| m.call_method1("getLogger", ("anabranch",)))
        .and_then(|logger| logger.call_method0("getEffectiveLevel"))
        .and_then(|level| level.extract::<i64>());
    if let Ok(level) = level {
        WANTED.store(level.clamp(0, 255) as u8, Ordering::Relaxed);
    }
}

/// Of this process's one thread for it; it ends with the process.
fn hand_on(records: Receiver<Record>) {
    while let Ok(record) = records.recv() {
        let left_out = LEFT_OUT.swap(0, Ordering::Relaxed);
        let told = attached(|py| {
            // A handler that raises is its own affair: `logging` reports that itself.
            let _ = emit(py, &record, left_out);
        });
        if told.is_none() {
            return;
        }
    }
}

fn emit(py: Python<'_>, record: &Record, left_out: u64) -> PyResult<()> {
    let logger = py.import("logging")?.call_method1("getLogger", (record.logger.as_str(),))?;
    if left_out > 0 {
        logger.call_method1("warning", ("%d records were left out: the handlers are slow", left_out))?;
    }
    logger.call_method1("log", (record.level, "%s", record.message.as_str())).map(drop)
}

/// `DEBUG` of Python is 10, `ERROR` 40; it has no level for traces.
fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

struct Bridge;

impl<S: Subscriber> Layer<S> for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("anabranch") && number(*metadata.level()) >= WANTED.load(Ordering::Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(records) = RECORDS.get() else { return };
        let mut message = Text::default();
        event.record(&mut message);
        // `anabranch_postgres::source`: the logger `anabranch.postgres.source`, under `anabranch`.
        let logger = event.metadata().target().replacen("anabranch_", "anabranch.", 1).replace("::", ".");
        let record = Record { level: number(*event.metadata().level()), logger, message: message.finish() };
        if records.try_send(record).is_err() {
            LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The message, and `key=value` behind it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        self.message
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
    }
}
