//! Reads the keys of a configuration and says, in an operator's words, which of them is wrong.

use serde::de::DeserializeOwned;
use toml::Table;

use crate::error::{Error, Result};

/// Reads the keys of a connector into its configuration, naming `section` in errors.
///
/// # Errors
/// [`Config`](crate::ErrorKind::Config) for unknown, missing or wrongly typed keys; values are not
/// shown, because one of them may be a password.
pub fn keys<T: DeserializeOwned>(section: &str, keys: Table) -> Result<T> {
    keys.try_into().map_err(|e: toml::de::Error| {
        let (path, message) = (path(&e), e.message().trim());
        let path = [section, &path].into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(".");
        problem(&path, message)
    })
}

/// Refuses what is left over of a table whose keys are all taken.
pub(super) fn no_keys(section: &str, known: &[&str], left: &Table) -> Result<()> {
    match left.keys().next() {
        Some(key) => Err(unknown(section, key, known)),
        None => Ok(()),
    }
}

/// Where in the table it is: the driver tells it only in its longest form, on the last line.
fn path(e: &toml::de::Error) -> String {
    let text = e.to_string();
    let last = text.trim_end().lines().last().unwrap_or_default();
    last.strip_prefix("in `").and_then(|rest| rest.strip_suffix('`')).unwrap_or_default().to_owned()
}

/// What serde says, without the value: its messages are those of `serde::de::Error`.
fn problem(path: &str, message: &str) -> Error {
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let mut names = quoted(rest);
        let key = if names.is_empty() { "" } else { names.remove(0) };
        return unknown(path, key, &names);
    }
    if let Some(rest) = message.strip_prefix("missing field ") {
        let key = quoted(rest).first().copied().unwrap_or_default();
        return Error::config(dotted(path, key), "is missing");
    }
    if message.starts_with("unknown variant ") {
        let known = quoted(message.split_once(", expected ").map_or("", |(_, rest)| rest));
        return Error::config(path, format!("must be {}", either(&known)));
    }
    if message.starts_with("invalid ")
        && let Some((_, expected)) = message.rsplit_once(", expected ")
    {
        return Error::config(path, format!("must be {}", in_words(expected)));
    }
    Error::config(path, message)
}

/// The parts between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn dotted(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

fn either(names: &[&str]) -> String {
    match names {
        [all @ .., last] if !all.is_empty() => format!("{} or {last}", all.join(", ")),
        names => names.concat(),
    }
}

/// What a type of Rust, or serde's word for it, is in a TOML file.
fn in_words(expected: &str) -> &str {
    match expected {
        "a string" => "text",
        "a boolean" => "true or false",
        "a sequence" => "a list, in brackets",
        "a map" => "a table",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, not negative",
        "f64" => "a number",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

fn unknown(section: &str, key: &str, known: &[&str]) -> Error {
    let error = Error::config(dotted(section, key), "is not a key that is known here");
    let near = known.iter().map(|k| (distance(key, k), k)).filter(|(d, k)| *d <= 1 + k.len() / 3).min();
    match near {
        Some((_, near)) => error.hint(format!("did you mean {near}?")),
        None if known.is_empty() => error.hint("it takes none"),
        None => error.hint(format!("known: {}", known.join(", "))),
    }
}

/// How many letters have to be added, taken away or changed to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, c) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, d) in b.iter().enumerate() {
            let change = diagonal + usize::from(c != *d);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::secret::Secret;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Policy {
        Stop,
        GoOn,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only read from text")]
    struct Keys {
        url: Secret,
        password: Option<Secret>,
        policy: Option<Policy>,
        lanes: Option<u32>,
        create: Option<bool>,
        tables: Option<Vec<String>>,
        inner: Option<BTreeMap<String, bool>>,
    }

    fn said(text: &str) -> String {
        let table: Table = text.parse().unwrap();
        keys::<Keys>("source", table).unwrap_err().to_string()
    }

    #[test]
    fn the_key_and_the_fix_are_named_and_no_value() {
        for (text, message) in [
            ("", "source.url: is missing"),
            (
                "url = 'x'\npasword = 'hunter2'",
                "source.pasword: is not a key that is known here (did you mean password?)",
            ),
            ("url = 'x'\npassword = 4711", "source.password: must be text"),
            ("url = 'x'\npassword = ['hunter2']", "source.password: must be text"),
            ("url = 'x'\npolicy = 'hunter2'", "source.policy: must be stop or go_on"),
            ("url = 'x'\nlanes = -1", "source.lanes: must be a whole number, not negative"),
            ("url = 'x'\nlanes = 'hunter2, expected a string'", "source.lanes: must be a whole number, not negative"),
            ("url = 'x'\ncreate = 'yes'", "source.create: must be true or false"),
            ("url = 'x'\ntables = 'orders'", "source.tables: must be a list, in brackets"),
            ("url = 'x'\ninner = { a = 'hunter2' }", "source.inner.a: must be true or false"),
        ] {
            assert_eq!(said(text), message, "{text}");
        }
        let far = said("url = 'x'\nsomething_else = 1");
        assert!(far.contains("(known: url, password, policy, lanes, create, tables, inner)"), "{far}");
    }
}
