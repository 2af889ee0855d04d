//! Where a server is, and connections to it.

use anabranch_core::{Error, Result};
use tokio_postgres::NoTls;

use crate::error::classify;

/// Where a server is.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    config: tokio_postgres::Config,
}

impl Endpoint {
    pub(crate) fn parse(key: &str, url: &str) -> Result<Self> {
        let config = url
            .parse::<tokio_postgres::Config>()
            .map_err(|e| Error::config(key, "is not a PostgreSQL connection URL").because(e))?;
        Ok(Self { config })
    }

    pub(crate) async fn connect(&self, application_name: &str) -> Result<tokio_postgres::Client> {
        let mut config = self.config.clone();
        config.application_name(application_name);
        let (client, connection) = config.connect(NoTls).await.map_err(|e| classify(e, "cannot connect"))?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "connection ended");
            }
        });
        Ok(client)
    }
}
