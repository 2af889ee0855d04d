//! One ordinary connection for catalog queries, opened when it is needed and again when it was lost.

use std::sync::Arc;

use anabranch_core::Result;
use tokio::sync::Mutex;
use tokio_postgres::Client;

use crate::connect::Endpoint;
use crate::error::classify;

/// A connection that catalog queries share.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    endpoint: Endpoint,
    client: Arc<Mutex<Option<Arc<Client>>>>,
}

impl Session {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, client: Arc::default() }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The connection. Several statements may be under way on it at a time.
    pub(crate) async fn client(&self) -> Result<Arc<Client>> {
        let mut held = self.client.lock().await;
        if let Some(client) = held.as_ref().filter(|c| !c.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(open(&self.endpoint, "anabranch source").await?);
        *held = Some(Arc::clone(&client));
        Ok(client)
    }
}

/// An ordinary connection whose settings print canonical text, and on which names of types carry
/// their schema and no function of another schema can be picked up by mistake.
pub(crate) async fn open(endpoint: &Endpoint, application_name: &str) -> Result<Client> {
    let client = endpoint.connect(application_name).await?;
    let mut settings = String::new();
    for (name, value) in crate::wire::CANONICAL {
        settings.push_str(&format!("SET {name} = '{value}';"));
    }
    client.batch_execute(&settings).await.map_err(|e| classify(e, "cannot set up the session"))?;
    Ok(client)
}
