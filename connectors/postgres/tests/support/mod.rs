//! A throwaway server for one test.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod reading;

use std::ops::Deref;
use std::path::Path;

use anabranch_servers::PgOptions;
pub(crate) use anabranch_servers::PgVersion;
use tokio_postgres::{Client, NoTls};

pub(crate) const BOTH: [PgVersion; 2] = [PgVersion::V15, PgVersion::V18];

/// A running server, with what these tests ask of it besides.
pub(crate) struct PgServer(anabranch_servers::PgServer);

/// `None`, after saying so, where the version is not installed.
pub(crate) fn start(version: PgVersion, settings: &[(&str, &str)]) -> Option<PgServer> {
    let options = settings.iter().fold(PgOptions::new(version), |o, (name, value)| o.setting(*name, *value));
    options.start().unwrap().map(PgServer)
}

pub(crate) fn append(file: &Path, text: &str) {
    let mut old = std::fs::read_to_string(file).unwrap();
    old.push_str(text);
    std::fs::write(file, old).unwrap();
}

impl PgServer {
    pub(crate) fn standby(&self) -> PgServer {
        PgServer(self.0.standby().unwrap())
    }

    /// The database `postgres` as this user, who may carry a password.
    pub(crate) fn url(&self, user: &str) -> String {
        format!("postgresql://{user}@127.0.0.1:{}/postgres", self.port())
    }

    /// This database as `postgres`.
    pub(crate) fn database(&self, name: &str) -> String {
        self.0.url(name)
    }

    /// The same as `postgres` over the Unix socket.
    pub(crate) fn socket_url(&self) -> String {
        let folder = self.socket_dir().display().to_string().replace('/', "%2F");
        format!("postgresql://postgres@{folder}:{}/postgres", self.port())
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_as("postgres").await
    }

    pub(crate) async fn client_as(&self, user: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(user), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Deref for PgServer {
    type Target = anabranch_servers::PgServer;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
