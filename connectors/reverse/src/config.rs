//! The keys of a configuration file.

use std::path::PathBuf;

use anabranch_core::transform::Transform;
use anabranch_core::{Error, Result, Secret};
use serde::Deserialize;
use toml::Table;
use url::Url;

use crate::shards::{Password, ShardEntry, ShardsFile};
use crate::{ForwardMigration, Mapping, SecretManager, Token};

/// A sink of several databases.
///
/// ```toml
/// [sink]
/// type = "sharded"
/// shards_file = "shards.json"          # of the Spanner migration tool, in either form
/// shard_type = "mysql"                 # mysql (default) | postgres
/// max_connections_per_shard = 4
/// [sink.shard]                         # keys of every shard's own sink
/// versions = true
/// time_zone = "+10:00"
/// ```
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardedConfig {
    /// Where the shards are.
    pub shards_file: PathBuf,
    /// What they are.
    #[serde(default)]
    pub shard_type: ShardType,
    /// How many connections write to one shard at a time at most. Default 16. `pipeline.lanes` tells
    /// how many do.
    pub max_connections_per_shard: Option<u32>,
    /// Another address of Secret Manager.
    pub secret_manager_endpoint: Option<String>,
    /// The bearer token for it: plain, `env:NAME` or `file:PATH`. Default: what the surroundings give.
    pub secret_manager_token: Option<Secret>,
    /// The key file of a service account to get the token with.
    pub secret_manager_credentials: Option<PathBuf>,
    /// Keys of each shard's sink, beside its address and password.
    #[serde(default)]
    pub shard: Table,
}

/// What the shards are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardType {
    /// MySQL or MariaDB.
    #[default]
    Mysql,
    /// PostgreSQL.
    Postgres,
}

impl ShardType {
    /// The `type` of the sink.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mysql => "mysql",
            Self::Postgres => "postgres",
        }
    }
}

impl ShardedConfig {
    /// The shards.
    pub fn shards(&self) -> Result<ShardsFile> {
        ShardsFile::read(&self.shards_file)
    }

    /// The way to their passwords.
    pub fn secrets(&self) -> SecretManager {
        let token = match (&self.secret_manager_token, &self.secret_manager_credentials) {
            (Some(token), _) => Token::given(token.clone()),
            (None, Some(path)) => Token::service_account(path),
            (None, None) => Token::of_surroundings(),
        };
        let secrets = SecretManager::new().token(token);
        match &self.secret_manager_endpoint {
            Some(endpoint) => secrets.endpoint(endpoint.clone()),
            None => secrets,
        }
    }

    /// The keys of one shard's sink, without its password.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the shard, for what no address can hold.
    pub fn keys(&self, shard: &ShardEntry) -> Result<Table> {
        for key in ["url", "password"] {
            if self.shard.contains_key(key) {
                return Err(Error::config(format!("sink.shard.{key}"), "is what the shards file tells"));
            }
        }
        let mut keys = self.shard.clone();
        keys.insert("url".to_owned(), url(self.shard_type, shard)?.into());
        Ok(keys)
    }
}

/// Where the password of a shard comes from: itself, or the name of a secret.
pub(crate) type Source<'a> = Result<&'a Secret, &'a str>;

impl ShardEntry {
    /// The password, or the name of the secret that holds it.
    pub fn secret(&self) -> Source<'_> {
        match &self.password {
            Password::Given(secret) => Ok(secret),
            Password::SecretManager(name) => Err(name),
        }
    }
}

/// The address with the password in it, for a driver that takes it nowhere else.
///
/// # Errors
/// [`Config`](anabranch_core::ErrorKind::Config) if either cannot be read.
pub fn with_password(url: &Secret, password: &Secret) -> Result<Secret> {
    let (url, password) = (url.resolve("sink.shard.url")?, password.resolve("password")?);
    let wrong = || Error::config("sink.shards_file", "the address of a shard takes no password");
    let mut parsed = Url::parse(url.expose()).map_err(|_| wrong())?;
    if !password.expose().is_empty() {
        let encoded: String = password.expose().bytes().map(percent).collect();
        parsed.set_password(Some(&encoded)).map_err(|()| wrong())?;
    }
    Ok(Secret::new(parsed.to_string()))
}

fn url(kind: ShardType, shard: &ShardEntry) -> Result<String> {
    let wrong = |problem: &str| Error::config(format!("sink.shards_file: shard {}", shard.name), problem);
    let (scheme, port) = match kind {
        ShardType::Mysql => ("mysql", 3306),
        ShardType::Postgres => ("postgresql", 5432),
    };
    // An address of IPv6 stands in brackets.
    let host = match shard.host.contains(':') && !shard.host.starts_with('[') {
        true => format!("[{}]", shard.host),
        false => shard.host.clone(),
    };
    let mut url = Url::parse(&format!("{scheme}://{host}:{}/", shard.port.unwrap_or(port)))
        .map_err(|_| wrong("host is no name of a machine"))?;
    url.set_username(&shard.user).map_err(|()| wrong("user cannot stand in an address"))?;
    url.path_segments_mut().map_err(|()| wrong("host is no name of a machine"))?.push(&shard.database);
    if let Some(key) = shard.properties.keys().find(|k| k.to_lowercase().contains("ssl")) {
        let fix = "encryption is set for all shards: [sink.shard] tls = \"verify\"";
        return Err(wrong(&format!("connectionProperties: {key} is of another driver")).hint(fix));
    }
    let mut parameters: Vec<(&str, String)> =
        shard.properties.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    if kind == ShardType::Postgres
        && let Some(namespace) = &shard.namespace
    {
        // A name in double quotes; the parameter's own form escapes blanks and backslashes.
        let quoted = format!("\"{}\"", namespace.replace('"', "\"\""));
        let escaped = quoted.replace('\\', "\\\\").replace(' ', "\\ ");
        parameters.push(("options", format!("-c search_path={escaped}")));
    }
    if !parameters.is_empty() {
        // The drivers read %20, and not +, as a blank.
        let encode = |text: &str| text.bytes().map(percent).collect::<String>();
        let query: Vec<String> = parameters.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
        url.set_query(Some(&query.join("&")));
    }
    Ok(url.to_string())
}

fn percent(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    }
}

/// `[[transform]] type = "session"`: names of tables and columns, and the shard.
///
/// ```toml
/// [[transform]]
/// type = "session"
/// file = "shop.session.json"           # or overrides_file, or table_overrides and column_overrides,
///                                      # or none of them: every name stays
/// shard_column = "migration_shard_id"  # where the session file names none
/// drop = ["Orders.synthetic"]          # columns that the shards do not have
/// ```
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MappingConfig {
    /// A session file.
    pub file: Option<PathBuf>,
    /// `{"renamedTables": {}, "renamedColumns": {}}`
    pub overrides_file: Option<PathBuf>,
    /// `[{Source, Spanner}, ...]`
    pub table_overrides: Option<String>,
    /// `[{Source.a, Source.b}, ...]`
    pub column_overrides: Option<String>,
    /// See [`Mapping::shard_column`].
    pub shard_column: Option<String>,
    /// See [`Mapping::shard`].
    pub shard: Option<String>,
    /// See [`Mapping::keep_shard_column`].
    pub keep_shard_column: bool,
    /// See [`Mapping::drop`].
    pub drop: Vec<String>,
    /// See [`Mapping::target_schema`].
    pub target_schema: Option<String>,
}

impl MappingConfig {
    /// The transform.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key, or the file and what in it is wrong.
    pub fn build(self) -> Result<Box<dyn Transform>> {
        let strings = self.table_overrides.is_some() || self.column_overrides.is_some();
        let given =
            usize::from(self.file.is_some()) + usize::from(self.overrides_file.is_some()) + usize::from(strings);
        if given > 1 {
            let problem = "give one of file, overrides_file, and table_overrides with column_overrides";
            return Err(Error::config("transform.file", problem));
        }
        let mut mapping = match (&self.file, &self.overrides_file) {
            (Some(file), _) => Mapping::session(file)?,
            (None, Some(file)) => Mapping::overrides_file(file)?,
            (None, None) if strings => Mapping::overrides(
                self.table_overrides.as_deref().unwrap_or_default(),
                self.column_overrides.as_deref().unwrap_or_default(),
            )?,
            (None, None) => Mapping::identity(),
        };
        if let Some(column) = self.shard_column {
            mapping = mapping.shard_column(column);
        }
        if let Some(shard) = self.shard {
            mapping = mapping.shard(shard);
        }
        if let Some(schema) = self.target_schema {
            mapping = mapping.target_schema(schema);
        }
        Ok(Box::new(mapping.keep_shard_column(self.keep_shard_column).drop(self.drop)))
    }
}

/// `[[transform]] type = "forward_migration"`: leaves out what the forward migration wrote.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForwardMigrationConfig {
    /// The prefix of its transactions' tags. Default `txBy=`.
    pub prefix: Option<String>,
    /// `forward_migration` (default), or `none`: nothing is left out.
    pub mode: FiltrationMode,
}

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FiltrationMode {
    /// What the forward migration wrote.
    #[default]
    ForwardMigration,
    /// Nothing.
    None,
}

impl ForwardMigrationConfig {
    /// The transform.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config) for an empty prefix, which every tag begins with.
    pub fn build(self) -> Result<Box<dyn Transform>> {
        match (self.mode, self.prefix) {
            (FiltrationMode::None, _) => Ok(Box::new(anabranch_core::transform::Custom::new(Ok))),
            (_, Some(prefix)) if prefix.is_empty() => {
                Err(Error::config("transform.prefix", "is empty: every tag begins with it")
                    .hint("name the tag's start"))
            }
            (_, Some(prefix)) => Ok(Box::new(ForwardMigration::new(prefix))),
            (_, None) => Ok(Box::new(ForwardMigration::default())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(kind: &str, shard: &str) -> Result<Table> {
        let file = ShardsFile::parse(shard).unwrap();
        let config: ShardedConfig =
            toml::from_str(&format!("shards_file = 'x'\nshard_type = '{kind}'\n[shard]\nversions = true")).unwrap();
        config.keys(&file.shards()[0])
    }

    #[test]
    fn addresses_hold_every_letter() {
        let shard = r#"[{"logicalShardId":"a","host":"::1","user":"a@b","password":"p","dbName":"d/e",
            "namespace":"my \"s\"","connectionProperties":"connect_timeout=3"}]"#;
        let mysql = keys("mysql", shard).unwrap();
        assert_eq!(mysql["url"].as_str().unwrap(), "mysql://a%40b@[::1]:3306/d%2Fe?connect_timeout=3");
        assert_eq!(mysql["versions"].as_bool(), Some(true));
        let postgres = keys("postgres", shard).unwrap();
        let url = postgres["url"].as_str().unwrap();
        assert!(
            url.starts_with("postgresql://a%40b@[::1]:5432/d%2Fe?connect_timeout=3&options=-c%20search_path"),
            "{url}"
        );
    }

    #[test]
    fn what_another_driver_means_is_refused() {
        let shard = r#"[{"logicalShardId":"a","host":"h","user":"u","password":"p","dbName":"d",
            "connectionProperties":"useSSL=true"}]"#;
        let error = keys("mysql", shard).unwrap_err();
        assert!(error.report().contains("[sink.shard] tls"), "{}", error.report());
    }

    #[test]
    fn a_mapping_has_one_form() {
        let both = MappingConfig { file: Some("a".into()), table_overrides: Some("[]".into()), ..Default::default() };
        assert!(both.build().is_err());
        assert!(MappingConfig::default().build().is_ok());
        let empty = ForwardMigrationConfig { prefix: Some(String::new()), ..Default::default() };
        assert!(empty.build().is_err());
    }
}
