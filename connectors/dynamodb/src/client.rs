//! Clients of DynamoDB and of its streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anabranch_core::{Error, Result, Secret, Timestamp};
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_sdk_dynamodb::config::{Credentials, SharedHttpClient};
use aws_sdk_dynamodbstreams::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;

use crate::answer::Bodies;

/// A server that does not take the connection in this time is down, or the address is wrong.
const CONNECT: Duration = Duration::from_secs(5);

/// The largest answers are pages of 1 MB. A call that takes longer than this is lost.
pub(crate) const CALL: Duration = Duration::from_secs(30);

/// How to reach one side: source, target or leases. What is not set comes from the AWS SDK's usual
/// chain: environment, profile files, SSO, credential processes, container and machine roles.
///
/// ```
/// use anabranch_core::Secret;
/// use anabranch_dynamodb::Access;
/// let local = Access::new()
///     .region("local")
///     .endpoint("http://127.0.0.1:8000")
///     .credentials(Secret::new("local"), Secret::new("local"), None);
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Access {
    region: Option<String>,
    profile: Option<String>,
    endpoint: Option<String>,
    credentials: Option<StaticCredentials>,
    clock: Option<ServerClock>,
}

#[derive(Debug, Clone)]
struct StaticCredentials {
    id: Secret,
    secret: Secret,
    session: Option<Secret>,
}

impl Access {
    /// Everything by the usual chain.
    pub fn new() -> Self {
        Self::default()
    }

    /// The region, such as `eu-west-1`.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// A profile of the AWS configuration files.
    pub fn profile(mut self, profile: impl Into<String>) -> Self {
        self.profile = Some(profile.into());
        self
    }

    /// The address, `http://host:port` or `https://host`, in place of the region's own.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// An access key: its id, its secret, and the session token of a temporary one.
    pub fn credentials(mut self, id: Secret, secret: Secret, session: Option<Secret>) -> Self {
        self.credentials = Some(StaticCredentials { id, secret, session });
        self
    }

    /// Listens to the server's clock.
    pub fn clock(mut self, clock: ServerClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The address that was set, for messages.
    pub(crate) fn place(&self) -> String {
        match (&self.endpoint, &self.region) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(region)) => format!("the region {region}"),
            (None, None) => "the default region".to_owned(),
        }
    }

    /// A client of the tables. `section` is that of the configuration, for messages: `source`, `sink`.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config) for a missing region or an address that is none.
    pub async fn dynamodb(&self, section: &str) -> Result<aws_sdk_dynamodb::Client> {
        let config = self.load(section).await?;
        let mut builder = aws_sdk_dynamodb::config::Builder::from(&config).interceptor(Bodies);
        if let Some(clock) = &self.clock {
            builder = builder.interceptor(clock.clone());
        }
        Ok(aws_sdk_dynamodb::Client::from_conf(builder.build()))
    }

    /// A client of the streams.
    ///
    /// # Errors
    /// As [`Access::dynamodb`].
    pub async fn streams(&self, section: &str) -> Result<aws_sdk_dynamodbstreams::Client> {
        let config = self.load(section).await?;
        let mut builder = aws_sdk_dynamodbstreams::config::Builder::from(&config).interceptor(Bodies);
        if let Some(clock) = &self.clock {
            builder = builder.interceptor(clock.clone());
        }
        Ok(aws_sdk_dynamodbstreams::Client::from_conf(builder.build()))
    }

    async fn load(&self, section: &str) -> Result<SdkConfig> {
        if let Some(endpoint) = &self.endpoint {
            check_endpoint(section, endpoint)?;
        }
        let config = self.loader(section)?.load().await;
        match (config.region(), &self.endpoint) {
            (Some(_), _) => Ok(config),
            // A server of one's own has no region, but requests are signed for one.
            (None, Some(_)) => Ok(config.into_builder().region(Region::new("us-east-1")).build()),
            (None, None) => Err(Error::config(format!("{section}.region"), "no region is set anywhere")
                .hint("set it here, in AWS_REGION, or in the profile")),
        }
    }

    fn loader(&self, section: &str) -> Result<ConfigLoader> {
        // Retries are the runtime's, and the sink's: hidden ones would hide throttling from them.
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http_client())
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(CALL).build());
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(keys) = &self.credentials {
            let id = keys.id.resolve(&format!("{section}.access_key_id"))?;
            let secret = keys.secret.resolve(&format!("{section}.secret_access_key"))?;
            let session = keys.session.as_ref().map(|s| s.resolve(&format!("{section}.session_token"))).transpose()?;
            let session = session.map(|s| s.expose().to_owned());
            loader =
                loader.credentials_provider(Credentials::new(id.expose(), secret.expose(), session, None, "anabranch"));
        }
        Ok(loader)
    }
}

fn check_endpoint(section: &str, endpoint: &str) -> Result<()> {
    let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    if host.is_some_and(|h| !h.is_empty() && !h.starts_with(['/', ':'])) {
        return Ok(());
    }
    Err(Error::config(format!("{section}.endpoint"), format!("{endpoint:?} is not an address"))
        .hint("write http://host:port or https://host"))
}

/// HTTP over rustls with an explicit provider: another one may be compiled into the process too.
fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().tls_provider(Provider::rustls(CryptoMode::Ring)).build_https()
}

/// The clock of the servers, as the `Date` of their answers tells it. Clones share it.
///
/// Retention is counted by the servers' clock. `Date` has whole seconds and is old by the time it
/// is read, so what this tells is at most a second or two before the servers' present, never after it.
#[derive(Debug, Clone)]
pub struct ServerClock(Arc<AtomicI64>);

/// No answer was heard yet.
const UNKNOWN: i64 = i64::MIN;

impl Default for ServerClock {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(UNKNOWN)))
    }
}

impl ServerClock {
    /// Now, by the servers' clock; by this machine's until the first answer.
    pub fn now(&self) -> Timestamp {
        let local = Timestamp::now().as_micros();
        match self.0.load(Ordering::Relaxed) {
            UNKNOWN => Timestamp::from_micros(local),
            ahead => Timestamp::from_micros(local + ahead),
        }
    }

    fn heard(&self, date: &str) {
        let Ok(date) = DateTime::from_str(date, Format::HttpDate) else { return };
        let ahead = date.secs() * 1_000_000 - Timestamp::now().as_micros();
        self.0.store(ahead, Ordering::Relaxed);
    }
}

impl Intercept for ServerClock {
    fn name(&self) -> &'static str {
        "ServerClock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = context.response().headers().get("date") {
            self.heard(date);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_none_is_named() {
        for bad in ["localhost:8000", "http://", "ftp://host"] {
            let error = Access::new().region("local").endpoint(bad).dynamodb("sink").await.expect_err("an address");
            assert!(error.to_string().starts_with("sink.endpoint: "), "{error}");
        }
    }

    #[tokio::test]
    async fn secrets_are_resolved_and_not_shown() {
        let missing = Secret::new("env:ANABRANCH_NO_SUCH_VARIABLE");
        let access = Access::new().region("local").credentials(Secret::new("id"), missing, None);
        assert!(!format!("{access:?}").contains("NO_SUCH"));
        let error = access.streams("source").await.expect_err("a secret");
        assert!(error.to_string().starts_with("source.secret_access_key: "), "{error}");
    }

    #[test]
    fn the_servers_clock_is_followed() {
        let clock = ServerClock::default();
        clock.heard("Fri, 14 Nov 2036 22:13:20 GMT");
        let off = clock.now().as_micros() - 2_110_313_600_000_000;
        assert!((0..5_000_000).contains(&off), "{off}");
        clock.heard("not a date");
        assert!(clock.now().as_micros() >= 2_110_313_600_000_000);
    }
}
