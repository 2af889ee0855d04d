//! One side of a pipeline, as its URL tells it.

use std::fmt;

use anabranch::{Error, Result, Secret};
use url::Url;

/// Which side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Source,
    Target,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }

    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Source => "--source",
            Self::Target => "--target",
        }
    }

    /// The variable with its URL.
    pub(super) fn variable(self) -> &'static str {
        match self {
            Self::Source => "SOURCE_URL",
            Self::Target => "TARGET_URL",
        }
    }

    pub(super) fn example(self) -> &'static str {
        match self {
            Self::Source => "postgresql://user@host/database",
            Self::Target => "mysql://user@host/database, or sqlite:orders.db",
        }
    }
}

/// A side: its connector's `type`, and what the URL says.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    role: Role,
    /// `env:NAME`, as it was given; else the URL as the connector takes it.
    given: Hidden,
    /// The same without a password.
    shown: String,
    has_password: bool,
    pub(super) details: Details,
}

/// A URL that may hold a password: never printed by accident.
#[derive(Clone)]
struct Hidden(String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a connector is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Details {
    /// A `url`: `postgres`, `mysql`, `yugabyte`.
    Server {
        kind: &'static str,
    },
    Sqlite {
        path: String,
    },
    Spanner {
        database: String,
    },
    DynamoDb {
        region: String,
        tables: Vec<String>,
    },
    Files {
        path: String,
    },
}

impl Endpoint {
    /// What this URL names.
    ///
    /// # Errors
    /// [`Config`](anabranch::ErrorKind::Config), naming the flag; a password in the URL is not shown.
    pub(super) fn parse(role: Role, given: &str) -> Result<Self> {
        let given = given.trim();
        let resolved = match given.starts_with("env:") {
            true => Secret::new(given).resolve(role.flag())?.expose().to_owned(),
            false => given.to_owned(),
        };
        let is_reference = given.starts_with("env:");
        let wrong = |problem: &str| {
            let hint = format!("such as {}; see `anabranch init --help`", role.example());
            Err(Error::config(role.flag(), problem).hint(hint))
        };
        let scheme = resolved.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
        let rest = resolved.get(scheme.len() + 1..).unwrap_or_default();
        let path = rest.trim_start_matches("//");
        let details = match scheme.as_str() {
            "postgresql" | "postgres" => Details::Server { kind: "postgres" },
            "mysql" | "mariadb" if role == Role::Source => {
                return wrong("MySQL and MariaDB can be a target, and not yet a source");
            }
            "mysql" | "mariadb" => Details::Server { kind: "mysql" },
            "yugabyte" | "yugabytedb" => Details::Server { kind: "yugabyte" },
            "sqlite" if role == Role::Source => return wrong("SQLite can be a target, and no source"),
            "sqlite" if path.is_empty() => return wrong("names no file"),
            "sqlite" => Details::Sqlite { path: path.to_owned() },
            "spanner" => Details::Spanner { database: path.to_owned() },
            "dynamodb" => dynamodb(path),
            "gs" | "s3" | "file" => Details::Files { path: resolved.clone() },
            _ if resolved.starts_with("projects/") => Details::Spanner { database: resolved.clone() },
            _ if role == Role::Target && is_sqlite_file(&resolved) => Details::Sqlite { path: resolved.clone() },
            "" => return wrong("is no URL"),
            // Not what was given: it may be a password that stands in the wrong place.
            _ => return wrong("is of no database that is known here"),
        };
        let Details::Server { kind } = details else {
            return Ok(Self {
                role,
                given: Hidden(given.to_owned()),
                shown: given.to_owned(),
                has_password: false,
                details,
            });
        };
        let Ok(mut url) = Url::parse(&resolved) else { return wrong("is no URL") };
        let has_password = url.password().is_some_and(|p| !p.is_empty())
            || url.query_pairs().any(|(key, _)| key.eq_ignore_ascii_case("password"));
        let resolved = match scheme.as_str() {
            "mariadb" => format!("mysql:{rest}"),
            "yugabyte" | "yugabytedb" => format!("postgresql:{rest}"),
            _ => resolved,
        };
        if has_password {
            // Cannot fail: there is a host, or there would be no password.
            let _ = url.set_password(None);
            let kept: Vec<(String, String)> =
                url.query_pairs().filter(|(k, _)| !k.eq_ignore_ascii_case("password")).map(own).collect();
            url.set_query(None);
            if !kept.is_empty() {
                url.query_pairs_mut().extend_pairs(kept);
            }
        }
        let shown = match is_reference {
            true => given.to_owned(),
            false if has_password => url.to_string(),
            false => resolved.clone(),
        };
        let given = if is_reference { given.to_owned() } else { resolved };
        let details = Details::Server { kind };
        Ok(Self { role, given: Hidden(given), shown, has_password: has_password && !is_reference, details })
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// The connector's `type`.
    pub(super) fn kind(&self) -> &'static str {
        match &self.details {
            Details::Server { kind } => kind,
            Details::Sqlite { .. } => "sqlite",
            Details::Spanner { .. } => "spanner",
            Details::DynamoDb { .. } => "dynamodb",
            Details::Files { .. } => "files",
        }
    }

    /// Whether the URL holds a password that should not stand in a configuration file.
    pub(super) fn has_password(&self) -> bool {
        self.has_password
    }

    /// The URL as it was given, with its password.
    pub(super) fn url(&self) -> &str {
        &self.given.0
    }

    /// The URL without its password.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether tables can be created there.
    pub(super) fn has_tables(&self) -> bool {
        !matches!(self.details, Details::Files { .. })
    }
}

fn own((key, value): (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)) -> (String, String) {
    (key.into_owned(), value.into_owned())
}

/// `REGION/TABLE,TABLE`
fn dynamodb(path: &str) -> Details {
    let (region, tables) = path.split_once('/').unwrap_or((path, ""));
    let tables = tables.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect();
    Details::DynamoDb { region: region.to_owned(), tables }
}

fn is_sqlite_file(path: &str) -> bool {
    [".db", ".sqlite", ".sqlite3"].iter().any(|ending| path.ends_with(ending)) && !path.contains("://")
}
