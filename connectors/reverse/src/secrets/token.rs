//! The bearer token of a call to Google.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anabranch_core::{Error, Exposed, Result, Secret};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::SignatureScheme;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use super::http_call::{Answer, get, post_form};

/// Where a bearer token comes from.
#[derive(Debug, Clone)]
pub struct Token(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Given(Secret),
    ServiceAccount(PathBuf),
    Metadata(String),
    Surroundings,
}

/// A service account's key file, as Google Cloud gives it out.
#[derive(Deserialize)]
struct AccountKey {
    client_email: String,
    private_key: String,
    #[serde(default = "token_uri")]
    token_uri: String,
}

fn token_uri() -> String {
    "https://oauth2.googleapis.com/token".to_owned()
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
}

/// What the token is good for.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// Google's metadata server, as its documentation names it.
const METADATA: &str = "metadata.google.internal";

impl Token {
    /// This token: plain, `env:NAME` or `file:PATH`.
    pub fn given(token: impl Into<Secret>) -> Self {
        Self(Kind::Given(token.into()))
    }

    /// The token of a service account, by its key file.
    pub fn service_account(path: impl Into<PathBuf>) -> Self {
        Self(Kind::ServiceAccount(path.into()))
    }

    /// The token that the metadata server of a machine in Google Cloud gives; `host` may name another.
    pub fn metadata(host: Option<String>) -> Self {
        Self(Kind::Metadata(host.unwrap_or_else(|| METADATA.to_owned())))
    }

    /// The first of: `GOOGLE_OAUTH_ACCESS_TOKEN`, the key file that `GOOGLE_APPLICATION_CREDENTIALS`
    /// names, the metadata server (`GCE_METADATA_HOST`).
    pub fn of_surroundings() -> Self {
        Self(Kind::Surroundings)
    }

    pub(super) async fn get(&self) -> Result<Exposed> {
        let set = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        match &self.0 {
            Kind::Given(secret) => secret.resolve("sink.secret_manager_token"),
            Kind::ServiceAccount(path) => of_account(path).await,
            Kind::Metadata(host) => of_metadata(host).await,
            Kind::Surroundings => {
                if set("GOOGLE_OAUTH_ACCESS_TOKEN").is_some() {
                    return Secret::new("env:GOOGLE_OAUTH_ACCESS_TOKEN").resolve("GOOGLE_OAUTH_ACCESS_TOKEN");
                }
                match set("GOOGLE_APPLICATION_CREDENTIALS") {
                    Some(path) => of_account(&PathBuf::from(path)).await,
                    None => of_metadata(set("GCE_METADATA_HOST").as_deref().unwrap_or(METADATA)).await,
                }
            }
        }
    }
}

async fn of_metadata(host: &str) -> Result<Exposed> {
    let url = format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
    let answer = get(&url, &[("metadata-flavor", "Google")]).await.map_err(|e| {
        e.context("no token for Google Cloud: the metadata server does not answer")
            .hint("outside of Google Cloud set sink.secret_manager_token, or GOOGLE_APPLICATION_CREDENTIALS")
    })?;
    granted(&answer, "the metadata server")
}

/// A token for a signed claim (RFC 7523), as Google's guide to service accounts has it.
async fn of_account(path: &PathBuf) -> Result<Exposed> {
    let wrong = |problem: &str| {
        Error::config("GOOGLE_APPLICATION_CREDENTIALS", format!("{}: {problem}", path.display()))
            .hint("it must be the key file of a service account, in JSON")
    };
    let text = std::fs::read_to_string(path).map_err(|e| wrong("cannot be read").because(e))?;
    let account: AccountKey = serde_json::from_str(&text).map_err(|_| wrong("is no such file"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let claim = serde_json::json!({
        "iss": account.client_email, "scope": SCOPE, "aud": account.token_uri, "iat": now, "exp": now + 3600,
    });
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!("{}.{}", encode(br#"{"alg":"RS256","typ":"JWT"}"#), encode(claim.to_string().as_bytes()));
    let key = PrivateKeyDer::from_pem_slice(account.private_key.as_bytes()).map_err(|_| wrong("its key is damaged"))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|_| wrong("its key is of no known kind"))?;
    let signer =
        key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).ok_or_else(|| wrong("its key is no RSA key"))?;
    let signature = signer.sign(signed.as_bytes()).map_err(|_| wrong("its key does not sign"))?;
    let assertion = format!("{signed}.{}", encode(&signature));
    let form = [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", &assertion)];
    granted(&post_form(&account.token_uri, &form).await?, "the token server")
}

fn granted(answer: &Answer, who: &str) -> Result<Exposed> {
    if answer.status != 200 {
        let error = format!("{who} gives no token (status {})", answer.status);
        return Err(if answer.status >= 500 { Error::transient(error) } else { Error::config("Google Cloud", error) });
    }
    let granted: Granted = serde_json::from_slice(&answer.body)
        .map_err(|_| Error::transient(format!("the answer of {who} is not what it should be")))?;
    // A token never begins like a reference; resolved at once, it stays a secret.
    Secret::new(granted.access_token).resolve("Google Cloud")
}
