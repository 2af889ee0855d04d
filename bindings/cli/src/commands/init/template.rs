//! The text of a configuration file, with what a reader should know.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::endpoint::{Details, Endpoint, Role};
use super::{Options, OrderName};

/// Everything that the file says.
#[derive(Debug)]
pub(super) struct Plan {
    name: String,
    source: Endpoint,
    target: Endpoint,
    order: OrderName,
    create_tables: bool,
    tables: Vec<String>,
    publication: String,
    slot: String,
}

/// Where URLs with a password stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Secrets {
    /// In `SOURCE_URL` and `TARGET_URL`.
    Env,
    /// In files beside this configuration file.
    Files(PathBuf),
    /// In the file.
    Shown,
}

/// The file that holds a side's URL.
pub(super) fn secret_file(config: &Path, role: Role) -> PathBuf {
    config.with_extension(format!("{}-url", role.name()))
}

impl Plan {
    pub(super) fn new(
        name: String,
        source: Endpoint,
        target: Endpoint,
        options: &Options,
        create_tables: bool,
    ) -> Self {
        // Slots take lower-case letters, digits and underscores, and 63 bytes.
        let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let mut made = format!("anabranch_{}", plain.to_lowercase());
        made.truncate(63);
        let order = options.order.unwrap_or_else(|| usual_order(&source, &target));
        Self {
            publication: options.publication.clone().unwrap_or_else(|| made.clone()),
            slot: options.slot.clone().unwrap_or(made),
            tables: options.tables.clone(),
            name,
            source,
            target,
            order,
            create_tables,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn source(&self) -> &Endpoint {
        &self.source
    }

    pub(super) fn target(&self) -> &Endpoint {
        &self.target
    }

    pub(super) fn sides(&self) -> [&Endpoint; 2] {
        [&self.source, &self.target]
    }
}

/// Whole transactions where the source tells them and the target has them.
fn usual_order(source: &Endpoint, target: &Endpoint) -> OrderName {
    match (&source.details, &target.details) {
        (_, Details::DynamoDb { .. }) | (Details::DynamoDb { .. }, _) => OrderName::Key,
        (Details::Files { .. }, _) | (_, Details::Files { .. }) => OrderName::Window,
        _ => OrderName::Transaction,
    }
}

/// The file's text.
pub(super) fn render(plan: &Plan, secrets: &Secrets) -> String {
    let mut out = String::new();
    let order = match plan.order {
        OrderName::Transaction => "transaction",
        OrderName::Key => "key",
        OrderName::Window => "window",
        OrderName::Arrival => "arrival",
    };
    push(&mut out, "# Written by `anabranch init`. Next: `anabranch check`, then `anabranch run`.");
    push(&mut out, "\n[pipeline]");
    key(&mut out, "name", &plan.name, "its progress is kept under this name: do not change it later");
    key(&mut out, "order", order, "transaction | key | window | arrival");
    if plan.order == OrderName::Key && matches!(plan.target.details, Details::Sqlite { .. } | Details::Files { .. }) {
        push(&mut out, "lanes = 1                           # this target has one writer");
    }
    push(&mut out, "# memory_mib = 32                   # bound of changes that were read and are not yet applied");
    push(&mut out, "# retries = 20                      # in a row without progress; default: without end");
    push(&mut out, "\n[source]");
    source(&mut out, plan, secrets);
    push(&mut out, "\n[sink]");
    sink(&mut out, plan, secrets);
    push(&mut out, AFTER);
    out
}

const AFTER: &str = r#"
# What becomes of a row that the target refuses: stop (the default) at the exact row, or put it aside with
# its reason and go on; `anabranch dead-letters` shows those.
# [dead_letters]
# on_rejected = "dead_letter"

# Columns that the target cannot hold exactly need consent, by name or by type; `check` tells which.
# [mapping]
# lossy = ["orders.note", "type:numeric"]

# /metrics for Prometheus, /status.json and /healthz over HTTP.
# [metrics]
# listen = "127.0.0.1:9187""#;

fn source(out: &mut String, plan: &Plan, secrets: &Secrets) {
    let side = &plan.source;
    key(out, "type", side.kind(), "");
    match &side.details {
        Details::Server { .. } => {
            url(out, side, secrets);
            key(out, "publication", &plan.publication, "created, with the slot, if it is missing");
            key(out, "slot", &plan.slot, "lower-case letters, digits and underscores");
            match plan.tables.as_slice() {
                [] => {
                    push(out, "# tables = [\"public.orders\"]        # of a publication that is created; default: all")
                }
                tables => list(out, "tables", tables),
            }
            push(out, "# create = false                    # if both are made by somebody with more rights");
        }
        Details::Spanner { database } => {
            key(out, "database", database, "");
            key(out, "change_stream", &plan.publication, "created if it is missing");
            if !plan.tables.is_empty() {
                list(out, "tables", &plan.tables);
            }
        }
        Details::DynamoDb { region, tables } => {
            if !region.is_empty() {
                key(out, "region", region, "");
            }
            let all: Vec<String> = tables.iter().chain(&plan.tables).cloned().collect();
            list(out, "tables", &all);
            push(out, "# credentials come by the AWS SDK's usual chain");
        }
        Details::Files { path } => key(out, "path", path, "where the window files are"),
        // No source: refused where the URL was read.
        Details::Sqlite { path } => key(out, "path", path, ""),
    }
    if !matches!(side.details, Details::Files { .. }) {
        key(out, "snapshot", "initial", "initial: copy the tables first | never | only");
    } else {
        key(out, "snapshot", "never", "files hold changes, and no tables to copy");
    }
}

fn sink(out: &mut String, plan: &Plan, secrets: &Secrets) {
    let side = &plan.target;
    key(out, "type", side.kind(), "");
    match &side.details {
        Details::Server { .. } => url(out, side, secrets),
        Details::Sqlite { path } => key(out, "path", path, "created if it is missing"),
        Details::Spanner { database } => key(out, "database", database, ""),
        Details::DynamoDb { region, .. } => {
            if !region.is_empty() {
                key(out, "region", region, "");
            }
            push(out, "# credentials come by the AWS SDK's usual chain");
        }
        Details::Files { path } => key(out, "path", path, ""),
    }
    if side.has_tables() {
        let line = format!("create_tables = {}", plan.create_tables);
        push(out, &format!("{line:<36}# missing tables, from the source's schema; never altered silently"));
    }
}

fn url(out: &mut String, side: &Endpoint, secrets: &Secrets) {
    if !side.has_password() || *secrets == Secrets::Shown {
        return key(out, "url", side.url(), "");
    }
    let reference = match secrets {
        Secrets::Files(config) => format!("file:{}", secret_file(config, side.role()).display()),
        _ => format!("env:{}", side.role().variable()),
    };
    push(out, &format!("# {}, with the password:", side.shown()));
    key(out, "url", &reference, "");
}

fn key(out: &mut String, name: &str, value: &str, remark: &str) {
    let line = format!("{name} = {}", quoted(value));
    match remark {
        "" => push(out, &line),
        _ => push(out, &format!("{line:<36}# {remark}")),
    }
}

fn list(out: &mut String, name: &str, values: &[String]) {
    let values: Vec<String> = values.iter().map(|v| quoted(v)).collect();
    push(out, &format!("{name} = [{}]", values.join(", ")));
}

/// As a TOML string.
fn quoted(value: &str) -> String {
    toml::Value::String(value.to_owned()).to_string()
}

fn push(out: &mut String, line: &str) {
    // Writing into a string does not fail.
    let _ = writeln!(out, "{line}");
}
