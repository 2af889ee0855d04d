//! What a call is refused with.

use serde_json::{Value, json};

/// A refusal: its code and its message.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) message: String,
    /// What goes beside the message: the item that a condition found, the reasons of a transaction.
    pub(crate) extra: Option<(&'static str, Value)>,
}

impl Failure {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), extra: None }
    }

    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationException", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new("ResourceNotFoundException", message)
    }

    pub(crate) fn body(&self) -> Value {
        let mut body =
            json!({ "__type": format!("com.amazonaws.dynamodb.v20120810#{}", self.code), "message": self.message });
        if let Some((name, value)) = &self.extra {
            body[*name] = value.clone();
        }
        body
    }

    pub(crate) fn status(&self) -> u16 {
        if self.code == "InternalServerError" { 500 } else { 400 }
    }
}
