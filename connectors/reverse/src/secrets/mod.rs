//! Passwords from GCP Secret Manager, by its REST interface: `GET
//! {endpoint}/v1/projects/P/secrets/S/versions/V:access`, with a bearer token. The answer is
//! `{"payload": {"data": "<base64>"}}` (its reference, `projects.secrets.versions.access`).

mod http_call;
mod token;

use anabranch_core::{Error, ErrorKind, Result, Secret};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use http_call::{Answer, get};
pub use token::Token;

/// A client of Secret Manager.
///
/// ```
/// use anabranch_reverse::{SecretManager, Token};
/// let secrets = SecretManager::new().token(Token::given("env:GOOGLE_OAUTH_ACCESS_TOKEN"));
/// ```
#[derive(Debug, Clone)]
pub struct SecretManager {
    endpoint: String,
    token: Token,
}

#[derive(Deserialize)]
struct Access {
    payload: Payload,
}

#[derive(Deserialize)]
struct Payload {
    data: String,
}

impl Default for SecretManager {
    fn default() -> Self {
        Self::new()
    }
}

impl SecretManager {
    /// Google's own, with the token that the surroundings give: see [`Token::of_surroundings`].
    pub fn new() -> Self {
        Self { endpoint: "https://secretmanager.googleapis.com".to_owned(), token: Token::of_surroundings() }
    }

    /// Another address: a regional endpoint, a proxy.
    #[must_use]
    pub fn endpoint(self, endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into().trim_end_matches('/').to_owned(), ..self }
    }

    /// Where the bearer token comes from.
    #[must_use]
    pub fn token(self, token: Token) -> Self {
        Self { token, ..self }
    }

    /// The secret of this name, `projects/P/secrets/S/versions/V`.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config) if there is none, or the right to it is missing;
    /// [`Transient`](ErrorKind::Transient) if it does not answer. The secret is in none of them.
    pub async fn access(&self, name: &str) -> Result<Secret> {
        let about = |e: Error| e.context(format!("the secret {name}"));
        let token = self.token.get().await.map_err(about)?;
        let url = format!("{}/v1/{name}:access", self.endpoint);
        let bearer = format!("Bearer {}", token.expose());
        let answer = get(&url, &[("authorization", &bearer)]).await.map_err(about)?;
        let body = match answer {
            Answer { status: 200, body } => body,
            Answer { status: status @ (429 | 500..=599), .. } => {
                return Err(about(Error::transient(format!("Secret Manager answers with status {status}"))));
            }
            Answer { status, .. } => return Err(about(refused(status))),
        };
        let unreadable = || about(Error::new(ErrorKind::Transient, "Secret Manager's answer is not what it should be"));
        let access: Access = serde_json::from_slice(&body).map_err(|_| unreadable())?;
        let bytes = STANDARD.decode(access.payload.data.as_bytes()).map_err(|_| unreadable())?;
        let text =
            String::from_utf8(bytes).map_err(|_| about(Error::config("secretManagerUri", "the secret is not text")))?;
        Ok(Secret::new(literal(text.trim_end_matches(['\n', '\r']))?))
    }
}

fn refused(status: u16) -> Error {
    let (problem, fix) = match status {
        401 => ("Secret Manager does not know the token", "get a new one, or leave the choice to the surroundings"),
        403 => (
            "the token may not read it",
            "grant roles/secretmanager.secretAccessor on the secret to the account that runs this",
        ),
        404 => ("there is no such secret, or no such version of it", "check secretManagerUri in the shards file"),
        _ => ("Secret Manager refuses it", "check secretManagerUri in the shards file"),
    };
    Error::config("secretManagerUri", format!("{problem} (status {status})")).hint(fix)
}

/// A password that would be taken for a reference cannot be handed on as it is.
fn literal(text: &str) -> Result<String> {
    if text.starts_with("env:") || text.starts_with("file:") {
        let problem = "the secret begins with env: or file:, which a password may not";
        return Err(Error::config("secretManagerUri", problem).hint("change the password"));
    }
    Ok(text.to_owned())
}
