//! Configuration values that must not be printed.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};

/// A password, or a URL that may hold one: written plainly, or as `env:NAME` (an environment
/// variable) or `file:PATH` (a file's content without the line end). It never prints its value.
///
/// ```
/// use anabranch_core::Secret;
/// let secret = Secret::new("hunter2");
/// assert_eq!(format!("{secret:?}"), "Secret(***)");
/// assert_eq!(secret.resolve("sink.password")?.expose(), "hunter2");
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Secret(SecretString);

/// The value of a [`Secret`].
#[derive(Clone)]
pub struct Exposed(SecretString);

impl Secret {
    /// From a plain value, `env:NAME` or `file:PATH`.
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// Reads the value.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming `key`, if the variable is not set or the file cannot be read.
    pub fn resolve(&self, key: &str) -> Result<Exposed> {
        let written = self.0.expose_secret();
        let value = if let Some(name) = written.strip_prefix("env:") {
            std::env::var(name).map_err(|_| {
                Error::config(key, format!("the environment variable {name} is not set"))
                    .hint("set it, or write the value")
            })?
        } else if let Some(path) = written.strip_prefix("file:").filter(|p| !p.starts_with("//") && !p.contains('?')) {
            std::fs::read_to_string(path)
                .map_err(|e| Error::config(key, format!("cannot read the file {path}")).because(e))?
                .trim_end_matches(['\n', '\r'])
                .to_owned()
        } else {
            written.to_owned()
        };
        Ok(Exposed(SecretString::from(value)))
    }
}

impl Exposed {
    /// The value itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl fmt::Debug for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exposed(***)")
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(Self::new)
    }
}
