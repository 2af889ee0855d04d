//! Which server this is, and what is known to be wrong with it.

use std::fmt;

use anabranch_core::{Error, Result};
use anabranch_postgres::layer::classify;
use tokio_postgres::Client;

/// `15.12-YB-2025.2.1.0-b12`: PostgreSQL's major version, and YugabyteDB's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    postgres: u32,
    yugabyte: Vec<u32>,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.yugabyte.iter().map(ToString::to_string).collect();
        f.write_str(&parts.join("."))
    }
}

/// Asks the server, and refuses what this connector was not made for.
pub(crate) async fn check(client: &Client, key: &str) -> Result<Version> {
    let row = client.query_one("SELECT version()", &[]).await;
    let text: String = row.map_err(|e| classify(e, "cannot read the server's version"))?.get(0);
    let version = Version::parse(&text).ok_or_else(|| {
        Error::config(key, format!("the server is no YugabyteDB: it says {text:?}"))
            .hint("for PostgreSQL write type = \"postgres\"; YugabyteDB's YSQL listens on port 5433")
    })?;
    if version.postgres < 15 {
        return Err(Error::config(
            key,
            format!("the server runs YugabyteDB {version}, which is built on PostgreSQL {}", version.postgres),
        )
        .hint("YugabyteDB 2025.1 or later is needed, which is built on PostgreSQL 15"));
    }
    Ok(version)
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.split_once("-YB-")?;
        let postgres = before.rsplit(' ').next()?.split('.').next()?.parse().ok()?;
        let numbers = after.split([' ', '-']).next()?;
        let yugabyte: Vec<u32> = numbers.split('.').map(|n| n.parse().ok()).collect::<Option<_>>()?;
        (yugabyte.len() >= 2).then_some(Self { postgres, yugabyte })
    }

    fn is_before(&self, fixed: &[u32]) -> bool {
        // Preview releases (2.x) precede the stable ones that came of them.
        self.yugabyte.as_slice() < fixed
    }

    /// What an operator should know of this version as a source, from YugabyteDB's technical advisories and release notes.
    pub(crate) fn advisories(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        if self.is_before(&[2025, 1, 3]) {
            found
                .push("rows of more than 4 MB may be missing from the stream (TA-29060): upgrade to 2025.1.3 or later");
        }
        if self.is_before(&[2025, 2, 2]) {
            found.push("transactions with savepoints are not supported by its change data capture before 2025.2.2");
        }
        if self.is_before(&[2026, 1]) {
            found.push(
                "a table that is added to the publication is streamed up to 15 minutes later \
                 (cdcsdk_publication_list_refresh_interval_secs) before 2026.1",
            );
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let text = "PostgreSQL 15.12-YB-2025.2.1.0-b12 on x86_64-pc-linux-gnu, compiled by clang";
        let version = Version::parse(text).unwrap();
        assert_eq!((version.postgres, version.to_string().as_str()), (15, "2025.2.1.0"));
        assert_eq!(version.advisories().len(), 2);
        assert_eq!(Version::parse("PostgreSQL 11.2-YB-2024.2.1.0-b0 on x").unwrap().postgres, 11);
        let new = Version::parse("PostgreSQL 15.12-YB-2026.1.0.0-b0 on x").unwrap();
        assert!(new.advisories().is_empty());
        let preview = Version::parse("PostgreSQL 15.2-YB-2.25.1.0-b0 on x").unwrap();
        assert_eq!(preview.advisories().len(), 3);
        for other in ["PostgreSQL 18.0 on x", "", "-YB-", "PostgreSQL x-YB-1.2"] {
            assert_eq!(Version::parse(other), None, "{other}");
        }
    }
}
