//! What `yb-admin` writes (YugabyteDB's manual: "yb-admin", "xCluster replication commands", and
//! "Transactional xCluster deployment").

use anabranch_core::{Error, Result, Timestamp};
use chrono::NaiveDateTime;
use serde::{Deserialize, Serialize};

/// The safe time of one database.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SafeTime {
    pub(super) namespace_id: String,
    pub(super) namespace: String,
    /// `None`: not initialised yet.
    pub(super) safe_time: Option<Timestamp>,
    pub(super) lag_seconds: Option<f64>,
    pub(super) skew_seconds: Option<f64>,
}

/// A stream that has not replicated everything yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undrained {
    /// The stream.
    pub stream: String,
    /// Its tablets that are behind.
    pub tablets: Vec<String>,
}

/// An element of the JSON of `get_xcluster_safe_time`. Numbers are texts there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Element {
    namespace_id: String,
    namespace_name: String,
    safe_time: String,
    safe_time_epoch: String,
    #[serde(default)]
    safe_time_lag_sec: Option<String>,
    #[serde(default)]
    safe_time_skew_sec: Option<String>,
}

/// A time that is not initialised is the largest one: it lies in the year 2112. 2100-01-01.
const NOT_INITIALISED: i64 = 4_102_444_800_000_000;

/// Zones differ by quarters of an hour. Microseconds.
const ZONE_STEP: i64 = 900_000_000;

pub(super) fn safe_times(text: &str) -> Result<Vec<SafeTime>> {
    let not_understood = || not_understood("get_xcluster_safe_time", text);
    let elements: Vec<Element> = serde_json::from_str(text.trim()).map_err(|e| not_understood().because(e))?;
    elements.into_iter().map(|element| element.read().ok_or_else(not_understood)).collect()
}

impl Element {
    fn read(self) -> Option<SafeTime> {
        let micros: i64 = self.safe_time_epoch.parse().ok().filter(|m| *m >= 0)?;
        if micros < NOT_INITIALISED && micros > 0 {
            // Both are of one instant, the text perhaps in a zone of its own.
            let shown = NaiveDateTime::parse_from_str(&self.safe_time, "%Y-%m-%d %H:%M:%S%.f").ok()?;
            if (shown.and_utc().timestamp_micros() - micros) % ZONE_STEP != 0 {
                return None;
            }
        }
        Some(SafeTime {
            namespace_id: self.namespace_id,
            namespace: self.namespace_name,
            safe_time: (1..NOT_INITIALISED).contains(&micros).then(|| Timestamp::from_micros(micros)),
            lag_seconds: seconds(self.safe_time_lag_sec)?,
            skew_seconds: seconds(self.safe_time_skew_sec)?,
        })
    }
}

/// `None`: it is no number of seconds.
fn seconds(text: Option<String>) -> Option<Option<f64>> {
    let Some(text) = text else { return Some(None) };
    let value: f64 = text.parse().ok()?;
    // A clock may be a moment ahead of another.
    (value.is_finite() && value > -60.0).then_some(Some(value.max(0.0)))
}

/// The streams of xCluster that are active.
pub(super) fn streams(text: &str) -> Result<Vec<String>> {
    let not_understood = || not_understood("list_cdc_streams", text);
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    if lines.next() != Some("CDC Streams:") {
        return Err(not_understood());
    }
    let mut found = Vec::new();
    let mut stream: Option<Stream> = None;
    let mut option: Option<(Option<String>, Option<String>)> = None;
    for line in lines {
        match (line, &mut stream, &mut option) {
            ("streams {", None, None) => stream = Some(Stream::default()),
            ("options {", Some(_), None) => option = Some((None, None)),
            ("}", Some(stream), Some(_)) => match option.take() {
                Some((Some(key), Some(value))) => stream.options.push((key, value)),
                _ => return Err(not_understood()),
            },
            ("}", Some(_), None) => found.extend(stream.take()),
            (line, Some(stream), option) => {
                let (name, value) = line.split_once(": ").ok_or_else(not_understood)?;
                let value = value.trim_matches('"').to_owned();
                match (name, option) {
                    ("key", Some((key @ None, _))) => *key = Some(value),
                    ("value", Some((_, place @ None))) => *place = Some(value),
                    (_, Some(_)) => return Err(not_understood()),
                    ("stream_id", None) => stream.id = Some(value),
                    (_, None) => {}
                }
            }
            _ => return Err(not_understood()),
        }
    }
    if stream.is_some() {
        return Err(not_understood());
    }
    let mut ids = Vec::new();
    for stream in found {
        let id = stream.id.clone().ok_or_else(not_understood)?;
        if stream.is_active_xcluster() {
            ids.push(id);
        }
    }
    Ok(ids)
}

#[derive(Debug, Default)]
struct Stream {
    id: Option<String>,
    options: Vec<(String, String)>,
}

impl Stream {
    fn is_active_xcluster(&self) -> bool {
        let has = |key: &str, value: &str| self.options.iter().any(|(k, v)| k == key && v == value);
        has("source_type", "XCLUSTER") && has("state", "ACTIVE")
    }
}

pub(super) fn undrained(text: &str) -> Result<Vec<Undrained>> {
    let not_understood = || not_understood("wait_for_replication_drain", text);
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    match lines.next() {
        Some("All replications are caught-up.") => {
            return lines.next().map_or(Ok(Vec::new()), |_| Err(not_understood()));
        }
        Some("Found undrained replications:") => {}
        _ => return Err(not_understood()),
    }
    let mut found: Vec<Undrained> = Vec::new();
    for line in lines {
        let stream = line.strip_prefix("- Under Stream ").and_then(|rest| rest.strip_suffix(':'));
        match (stream, line.strip_prefix("- Tablet: "), found.last_mut()) {
            (Some(stream), _, _) => found.push(Undrained { stream: stream.to_owned(), tablets: Vec::new() }),
            (None, Some(tablet), Some(last)) => last.tablets.push(tablet.to_owned()),
            _ => return Err(not_understood()),
        }
    }
    if found.is_empty() || found.iter().any(|u| u.tablets.is_empty()) {
        return Err(not_understood());
    }
    Ok(found)
}

fn not_understood(command: &str, text: &str) -> Error {
    Error::fatal(format!("the output of yb-admin {command} is not understood: {text:?}"))
        .hint("this connector knows the outputs of YugabyteDB 2024.1 to 2026.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the manual shows it.
    const SAFE_TIME: &str = r#"[
        {
            "namespace_id": "00004000000030008000000000000000",
            "namespace_name": "dr_db3",
            "safe_time": "2023-06-08 23:12:51.651318",
            "safe_time_epoch": "1686265971651318",
            "safe_time_lag_sec": "24.87",
            "safe_time_skew_sec": "1.16"
        }
    ]"#;

    #[test]
    fn safe_times_are_read() {
        let found = safe_times(SAFE_TIME).unwrap();
        assert_eq!((found.len(), found[0].namespace.as_str()), (1, "dr_db3"));
        assert_eq!(found[0].safe_time.unwrap().to_string(), "2023-06-08T23:12:51.651318Z");
        assert_eq!((found[0].lag_seconds, found[0].skew_seconds), (Some(24.87), Some(1.16)));
        let plain = SAFE_TIME.replace(
            ",\n            \"safe_time_lag_sec\": \"24.87\",\n            \"safe_time_skew_sec\": \"1.16\"",
            "",
        );
        assert_eq!(safe_times(&plain).unwrap()[0].lag_seconds, None);
        // What the masters write before the first safe time.
        let early = SAFE_TIME
            .replace("2023-06-08 23:12:51.651318", "2112-09-17 23:53:47.370495")
            .replace("1686265971651318", "4503599627370495");
        assert_eq!(safe_times(&early).unwrap()[0].safe_time, None);
        assert_eq!(safe_times("[]").unwrap(), []);
    }

    #[test]
    fn what_is_not_understood_is_shown() {
        for broken in [
            String::new(),
            "Error: Timed out".to_owned(),
            SAFE_TIME.replace("24.87", "soon"),
            SAFE_TIME.replace("1686265971651318", "1686265971651319"),
            SAFE_TIME.replace("1686265971651318", "-1"),
            SAFE_TIME.replace("safe_time_skew_sec", "safe_time_skew_us"),
            SAFE_TIME.replace("\"1.16\"", "1.16"),
        ] {
            let e = safe_times(&broken).unwrap_err();
            assert!(e.to_string().contains(&format!("{broken:?}")), "{e}");
        }
    }

    const UNDRAINED: &str = "Found undrained replications:\n- Under Stream b7306a8068484634801fd925a41f17f6:\n  - Tablet: 04dd\n  - Tablet: ebc0\n- Under Stream c:\n  - Tablet: d\n";

    #[test]
    fn drains_are_read() {
        assert_eq!(undrained("All replications are caught-up.\n").unwrap(), []);
        let found = undrained(UNDRAINED).unwrap();
        assert_eq!(found[0].stream, "b7306a8068484634801fd925a41f17f6");
        assert_eq!((found[0].tablets.len(), found[1].tablets.len()), (2, 1));
        for broken in [
            "",
            "Found undrained replications:\n",
            "Found undrained replications:\n  - Tablet: d\n",
            "Found undrained replications:\n- Under Stream c:\n",
            "All replications are caught-up.\nbut one",
            "drained",
        ] {
            assert!(undrained(broken).unwrap_err().to_string().contains(&format!("{broken:?}")), "{broken}");
        }
    }

    const STREAMS: &str = "CDC Streams:\nstreams {\n  stream_id: \"56bf\"\n  table_id: \"0000\"\n  options {\n    key: \"source_type\"\n    value: \"XCLUSTER\"\n  }\n  options {\n    key: \"state\"\n    value: \"ACTIVE\"\n  }\n}\nstreams {\n  stream_id: \"77\"\n  options {\n    key: \"source_type\"\n    value: \"CDCSDK\"\n  }\n  stream_creation_time: 1730105458824341\n}\n";

    #[test]
    fn streams_are_read() {
        assert_eq!(streams(STREAMS).unwrap(), ["56bf"]);
        assert_eq!(streams("CDC Streams:\n").unwrap(), Vec::<String>::new());
        for broken in [
            "",
            "streams {",
            "CDC Streams:\nstreams {",
            "CDC Streams:\nstreams {\n  what\n}",
            "CDC Streams:\nstreams {\n}",
        ] {
            assert!(streams(broken).is_err(), "{broken}");
        }
    }
}
