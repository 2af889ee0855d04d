//! Queries of change streams: which stream, and with what arguments.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::Status;

use crate::encode::Dialect;
use crate::stream::Mode;
use crate::time::Time;

/// A call of a stream's table function.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StreamQuery {
    pub(crate) stream: String,
    pub(crate) mode: Mode,
    pub(crate) start: Option<Time>,
    pub(crate) end: Option<Time>,
    pub(crate) token: Option<String>,
    pub(crate) heartbeat_ms: i64,
}

/// The functions, and what they read.
const FUNCTIONS: [(&str, Dialect, Option<Mode>); 3] = [
    // Its name does not tell the mode.
    ("READ_", Dialect::GoogleSql, None),
    ("read_json_", Dialect::PostgreSql, Some(Mode::Immutable)),
    ("read_proto_bytes_", Dialect::PostgreSql, Some(Mode::MutableKeyRange)),
];

impl StreamQuery {
    /// The call in `sql`, if it is one; `modes` tells the mode of each stream.
    pub(crate) fn parse(
        sql: &str,
        params: Option<&Struct>,
        dialect: Dialect,
        modes: &BTreeMap<String, Mode>,
    ) -> Result<Option<Self>, Status> {
        let plain = sql.replace(['`', '"'], "");
        for (function, _, mode) in FUNCTIONS.iter().filter(|f| f.1 == dialect) {
            let Some(start) = plain.find(function) else { continue };
            let call = &plain[start + function.len()..];
            let Some((stream, rest)) = call.split_once('(') else { continue };
            let Some(&known) = modes.get(stream.trim()) else {
                return Err(Status::invalid_argument(format!("Table-valued function not found: {function}{stream}")));
            };
            if mode.is_some_and(|mode| mode != known) {
                let problem = format!("{function}{stream} does not fit the stream's partition mode");
                return Err(Status::invalid_argument(problem));
            }
            let inside = rest.rsplit_once(')').map_or(rest, |(inside, _)| inside);
            return Self::arguments(stream.trim(), known, inside, params).map(Some);
        }
        Ok(None)
    }

    fn arguments(stream: &str, mode: Mode, inside: &str, params: Option<&Struct>) -> Result<Self, Status> {
        let names = ["start_timestamp", "end_timestamp", "partition_token", "heartbeat_milliseconds", "read_options"];
        let mut given: BTreeMap<&str, Option<String>> = BTreeMap::new();
        for (place, argument) in inside.split(',').enumerate() {
            let (name, value) = match argument.split_once("=>") {
                Some((name, value)) => (name.trim(), value.trim()),
                None => (names.get(place).copied().unwrap_or_default(), argument.trim()),
            };
            given.insert(name, resolve(value, params)?);
        }
        let mut take = |name: &str| given.remove(name).flatten();
        let time = |text: Option<String>| match text {
            None => Ok(None),
            Some(text) => {
                let bad = || Status::invalid_argument(format!("Could not cast {text:?} to type TIMESTAMP"));
                Time::parse(&text.replace(' ', "T")).ok_or_else(bad).map(Some)
            }
        };
        let heartbeat = take("heartbeat_milliseconds");
        let heartbeat_ms = heartbeat.and_then(|ms| ms.parse().ok()).unwrap_or(0);
        if !(1_000..=300_000).contains(&heartbeat_ms) {
            return Err(Status::invalid_argument("heartbeat_milliseconds must be between 1000 and 300000"));
        }
        let (start, end) = (time(take("start_timestamp"))?, time(take("end_timestamp"))?);
        Ok(Self { stream: stream.to_owned(), mode, start, end, token: take("partition_token"), heartbeat_ms })
    }
}

/// The text of an argument: a parameter, a literal or NULL.
fn resolve(argument: &str, params: Option<&Struct>) -> Result<Option<String>, Status> {
    let named = argument.strip_prefix('@').map(str::to_owned);
    let numbered = argument.strip_prefix('$').map(|number| format!("p{}", number.split("::").next().unwrap_or(number)));
    if let Some(name) = named.or(numbered) {
        let value = params.and_then(|p| p.fields.get(name.trim()));
        let value = value.ok_or_else(|| Status::invalid_argument(format!("No parameter found for binding: {name}")))?;
        return Ok(plain(value));
    }
    if argument.eq_ignore_ascii_case("null") || argument.is_empty() {
        return Ok(None);
    }
    let literal = argument.trim_start_matches("TIMESTAMP").trim().trim_matches('\'');
    Ok(Some(literal.split("'::").next().unwrap_or(literal).to_owned()))
}

/// A scalar as text.
pub(crate) fn plain(value: &Value) -> Option<String> {
    match value.kind.as_ref()? {
        Kind::NullValue(_) => None,
        Kind::StringValue(text) => Some(text.clone()),
        Kind::NumberValue(number) => Some(number.to_string()),
        Kind::BoolValue(value) => Some(value.to_string()),
        Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}
