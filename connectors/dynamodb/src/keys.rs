//! The keys by which a section of the configuration says how DynamoDB is reached.

use anabranch_core::{Error, Result, Secret};

use crate::Access;

/// Access key id, secret and session token, as far as they are set.
pub(crate) type Credentials = (Option<Secret>, Option<Secret>, Option<Secret>);

/// # Errors
/// [`Config`](anabranch_core::ErrorKind::Config), naming the key of `section`, for half an access key.
pub(crate) fn access(
    section: &str,
    region: Option<String>,
    profile: Option<String>,
    endpoint: Option<String>,
    credentials: Credentials,
) -> Result<Access> {
    let mut access = Access::new();
    if let Some(region) = region {
        access = access.region(region);
    }
    if let Some(profile) = profile {
        access = access.profile(profile);
    }
    if let Some(endpoint) = endpoint {
        access = access.endpoint(endpoint);
    }
    let missing = |key: &str, other: &str| {
        Error::config(format!("{section}.{key}"), format!("is missing beside {other}"))
            .hint("set both, or neither for the usual chain")
    };
    match credentials {
        (Some(id), Some(secret), token) => Ok(access.credentials(id, secret, token)),
        (None, None, None) => Ok(access),
        (Some(_), None, _) => Err(missing("secret_access_key", "access_key_id")),
        (None, Some(_), _) => Err(missing("access_key_id", "secret_access_key")),
        (None, None, Some(_)) => Err(missing("access_key_id", "session_token")),
    }
}
