//! The shards file: where each shard is.

use std::collections::BTreeMap;
use std::path::Path;

use anabranch_core::{Error, Result, Secret};
use serde::Deserialize;
use serde_json::Value;

/// The shards file of the Spanner migration tool, in either of its forms: a list of shards, or
/// `{"shardConfigs": [...]}`.
///
/// ```
/// use anabranch_reverse::ShardsFile;
/// let file = ShardsFile::parse(r#"[{
///     "logicalShardId": "shard1", "host": "10.11.12.13", "port": "3306", "user": "root",
///     "secretManagerUri": "projects/123/secrets/shard1/versions/latest", "dbName": "db1"
/// }]"#)?;
/// assert_eq!(file.shards()[0].name, "shard1");
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ShardsFile {
    shards: Vec<ShardEntry>,
}

/// One shard.
#[derive(Debug, Clone)]
pub struct ShardEntry {
    /// `logicalShardId`: the value that names it in the rows.
    pub name: String,
    /// `host`.
    pub host: String,
    /// `port`, if it is given.
    pub port: Option<u16>,
    /// `user`.
    pub user: String,
    /// Where its password is.
    pub password: Password,
    /// `dbName`.
    pub database: String,
    /// `namespace`: the schema of its tables, where it has schemas.
    pub namespace: Option<String>,
    /// `connectionProperties`, `key=value` separated by `&` or `;`: parameters of the driver.
    pub properties: BTreeMap<String, String>,
}

/// Where a password is.
#[derive(Debug, Clone)]
pub enum Password {
    /// In the file: plain, `env:NAME` or `file:PATH`.
    Given(Secret),
    /// In GCP Secret Manager: `projects/P/secrets/S/versions/V`.
    SecretManager(String),
}

/// As it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    logical_shard_id: Option<String>,
    host: Option<String>,
    port: Option<Value>,
    user: Option<String>,
    password: Option<String>,
    db_name: Option<String>,
    namespace: Option<String>,
    secret_manager_uri: Option<String>,
    connection_properties: Option<String>,
    /// Of the forward direction.
    #[serde(rename = "streamId")]
    _stream_id: Option<Value>,
}

impl ShardsFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the file, the shard and what is wrong.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::config("sink.shards_file", format!("{} cannot be read", path.display())).because(e))?;
        Self::parse(&text).map_err(|e| e.context(format!("sink.shards_file {}", path.display())))
    }

    /// Reads its text.
    ///
    /// # Errors
    /// As [`ShardsFile::read`]. No value is shown, for one may be a password.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |problem: String| Error::config("sink.shards_file", problem);
        let value: Value = serde_json::from_str(text).map_err(|e| {
            wrong(format!("line {}, column {} is not JSON", e.line(), e.column())).hint(
                "the form is [{\"logicalShardId\": ..}] or {\"shardConfigs\": [..]}; HOCON's shorthands are not read",
            )
        })?;
        let list = match value {
            Value::Array(list) => list,
            Value::Object(mut object) => match object.remove("shardConfigs") {
                Some(Value::Array(list)) => list,
                Some(_) => return Err(wrong("shardConfigs must be a list".to_owned())),
                None => {
                    return Err(wrong("has no shardConfigs".to_owned())
                        .hint("the form is [{\"logicalShardId\": ..}] or {\"shardConfigs\": [..]}"));
                }
            },
            _ => return Err(wrong("must be a list of shards".to_owned())),
        };
        if list.is_empty() {
            return Err(wrong("names no shard".to_owned()));
        }
        let mut shards: Vec<ShardEntry> = Vec::with_capacity(list.len());
        for (place, entry) in list.into_iter().enumerate() {
            let name = entry.get("logicalShardId").and_then(Value::as_str).unwrap_or_default().to_owned();
            let at = if name.is_empty() { format!("shard number {}", place + 1) } else { format!("shard {name}") };
            let shard = entry_of(entry).map_err(|problem| wrong(format!("{at}: {problem}")))?;
            if shards.iter().any(|s| s.name == shard.name) {
                return Err(wrong(format!("{at} comes twice")));
            }
            shards.push(shard);
        }
        Ok(Self { shards })
    }

    /// The shards, in the order of the file.
    pub fn shards(&self) -> &[ShardEntry] {
        &self.shards
    }
}

fn entry_of(value: Value) -> Result<ShardEntry, String> {
    if !value.is_object() {
        return Err("must be an object".to_owned());
    }
    let written: Written = serde_json::from_value(value).map_err(|e| without_values(&e.to_string()))?;
    let needed = |key: &str, value: Option<String>| {
        value.filter(|v| !v.trim().is_empty()).ok_or_else(|| format!("{key} is missing or empty"))
    };
    let name = needed("logicalShardId", written.logical_shard_id)?;
    if name.contains('/') {
        return Err("logicalShardId must not contain a slash".to_owned());
    }
    let port = match written.port {
        None | Some(Value::Null) => None,
        Some(Value::Number(n)) => Some(n.as_u64().and_then(|n| u16::try_from(n).ok())),
        Some(Value::String(s)) if s.is_empty() => None,
        Some(Value::String(s)) => Some(s.parse::<u16>().ok()),
        Some(_) => Some(None),
    };
    let port = port.map(|p| p.filter(|p| *p > 0).ok_or("port must be from 1 to 65535")).transpose()?;
    let uri = written.secret_manager_uri.filter(|u| !u.trim().is_empty());
    let password = match (uri, written.password) {
        (Some(uri), _) => Password::SecretManager(version_of(&uri)?),
        (None, Some(password)) => Password::Given(Secret::new(password)),
        (None, None) => return Err("has neither a password nor a secretManagerUri".to_owned()),
    };
    Ok(ShardEntry {
        name,
        host: needed("host", written.host)?,
        port,
        user: needed("user", written.user)?,
        password,
        database: needed("dbName", written.db_name)?,
        namespace: written.namespace.filter(|n| !n.is_empty()),
        properties: properties(written.connection_properties.as_deref().unwrap_or_default())?,
    })
}

/// `projects/P/secrets/S`, with or without a slash at the end, or with `/versions/V`: `latest` if none.
fn version_of(uri: &str) -> Result<String, String> {
    let parts: Vec<&str> = uri.trim().trim_end_matches('/').split('/').collect();
    let version = match parts.as_slice() {
        ["projects", _, "secrets", _] => "latest",
        ["projects", _, "secrets", _, "versions", version] => version,
        _ => {
            return Err("secretManagerUri must be projects/P/secrets/S or projects/P/secrets/S/versions/V".to_owned());
        }
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if parts.iter().any(|p| p.is_empty() || !p.chars().all(plain)) {
        return Err("secretManagerUri has an empty part, or a letter that no name has".to_owned());
    }
    Ok(format!("projects/{}/secrets/{}/versions/{version}", parts[1], parts[3]))
}

fn properties(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    for pair in text.split(['&', ';']).map(str::trim).filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or("connectionProperties must be key=value, separated by &")?;
        all.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    Ok(all)
}

/// What serde says without what it quotes of the file: that may be a password.
fn without_values(message: &str) -> String {
    if let Some(rest) = message.strip_prefix("unknown field ") {
        return format!("unknown key {rest}");
    }
    match message.rsplit_once(", expected ") {
        Some((_, expected)) if message.starts_with("invalid") => format!("a value has another type than {expected}"),
        _ => "is malformed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: &str =
        r#"{"logicalShardId":"a","host":"h","port":"3306","user":"u","password":"hunter2","dbName":"d"}"#;

    fn said(text: &str) -> String {
        ShardsFile::parse(text).unwrap_err().report()
    }

    #[test]
    fn both_forms_are_read() {
        for text in [format!("[{SHARD}]"), format!(r#"{{"shardConfigs":[{SHARD}]}}"#)] {
            let file = ShardsFile::parse(&text).unwrap();
            let shard = &file.shards()[0];
            assert_eq!((shard.name.as_str(), shard.port, shard.database.as_str()), ("a", Some(3306), "d"));
            assert!(!format!("{file:?}").contains("hunter2"));
        }
    }

    #[test]
    fn a_secret_wins_over_a_password_and_has_a_version() {
        for (uri, full) in [
            ("projects/1/secrets/s", "projects/1/secrets/s/versions/latest"),
            ("projects/1/secrets/s/", "projects/1/secrets/s/versions/latest"),
            ("projects/p-x/secrets/s/versions/7", "projects/p-x/secrets/s/versions/7"),
        ] {
            let text = SHARD.replace(r#""dbName""#, &format!(r#""secretManagerUri":"{uri}","dbName""#));
            let file = ShardsFile::parse(&format!("[{text}]")).unwrap();
            let Password::SecretManager(found) = &file.shards()[0].password else { panic!("{uri}") };
            assert_eq!(found, full);
        }
    }

    #[test]
    fn every_mistake_is_named_without_a_value() {
        let with = |from: &str, to: &str| format!("[{}]", SHARD.replace(from, to));
        for (text, message) in [
            ("[".to_owned(), "is not JSON"),
            ("7".to_owned(), "must be a list of shards"),
            ("[]".to_owned(), "names no shard"),
            ("{}".to_owned(), "has no shardConfigs"),
            (r#"{"shardConfigs":{}}"#.to_owned(), "shardConfigs must be a list"),
            ("[7]".to_owned(), "shard number 1: must be an object"),
            (format!("[{SHARD},{SHARD}]"), "shard a comes twice"),
            (with(r#""host":"h","#, ""), "shard a: host is missing or empty"),
            (with(r#""logicalShardId":"a","#, ""), "shard number 1: logicalShardId is missing"),
            (with("\"a\"", "\"a/b\""), "must not contain a slash"),
            (with("3306", "x"), "port must be from 1 to 65535"),
            (with("\"hunter2\"", "{\"a\":\"hunter2\"}"), "a value has another type than a string"),
            (with(r#""password":"hunter2","#, ""), "neither a password nor a secretManagerUri"),
            (with("\"user\"", "\"usr\""), "unknown key `usr`"),
            (with(r#""dbName":"d""#, r#""dbName":"d","secretManagerUri":"vault/x""#), "secretManagerUri must be"),
            (with(r#""dbName":"d""#, r#""dbName":"d","secretManagerUri":"projects/../secrets/s?x""#), "no name has"),
            (with(r#""dbName":"d""#, r#""dbName":"d","connectionProperties":"x""#), "connectionProperties must be"),
        ] {
            let said = said(&text);
            assert!(said.contains(message) && !said.contains("hunter2"), "{text}: {said}");
        }
    }
}
