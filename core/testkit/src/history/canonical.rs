//! One text for one value, however a database prints it.

use sha2::{Digest, Sha256};

/// What a column of the workload holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whole numbers.
    Int,
    /// `f64`, NaN and infinities included.
    Float,
    /// Exact decimals.
    Decimal,
    /// Text.
    Text,
    /// Truth values.
    Bool,
    /// Bytes, as `\x` and hexadecimal digits.
    Bytes,
    /// An instant in UTC.
    Instant,
}

/// Longer values are kept as their hash.
const LONG: usize = 256;

/// The canonical form of `text`, which may come from any database.
pub fn canonical(kind: Kind, text: &str) -> String {
    let text = match kind {
        Kind::Int | Kind::Text => text.to_owned(),
        Kind::Float => text.parse::<f64>().map_or_else(|_| text.to_owned(), |v| v.to_string()),
        Kind::Decimal if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        Kind::Decimal => text.to_owned(),
        Kind::Bool => match text {
            "t" | "true" | "1" => "true".to_owned(),
            "f" | "false" | "0" => "false".to_owned(),
            other => other.to_owned(),
        },
        Kind::Bytes => text.to_ascii_lowercase(),
        Kind::Instant => instant(text),
    };
    shortened(text)
}

/// As the function `history.short` does on the source.
fn shortened(text: String) -> String {
    if text.chars().count() <= LONG {
        return text;
    }
    let mut short = String::from("sha256:");
    for byte in Sha256::digest(text.as_bytes()) {
        short.push_str(&format!("{byte:02x}"));
    }
    short
}

/// `2026-01-02 03:04:05.6`, without the zone, a `T` and zeros at the end of the fraction.
fn instant(text: &str) -> String {
    let text = text.trim_end_matches('Z');
    let text = text.strip_suffix("+00:00").or_else(|| text.strip_suffix("+00")).unwrap_or(text);
    let text = text.replacen('T', " ", 1);
    match text.split_once('.') {
        Some((seconds, fraction)) => {
            let fraction = fraction.trim_end_matches('0');
            if fraction.is_empty() { seconds.to_owned() } else { format!("{seconds}.{fraction}") }
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_print_one_value_in_many_ways() {
        let same = |kind, texts: &[&str]| {
            let forms: Vec<String> = texts.iter().map(|t| canonical(kind, t)).collect();
            assert!(forms.windows(2).all(|w| w[0] == w[1]), "{forms:?}");
        };
        same(Kind::Float, &["1e+20", "100000000000000000000", "1e20"]);
        same(Kind::Float, &["Infinity", "inf"]);
        same(Kind::Decimal, &["12.50", "12.5", "12.5000"]);
        same(Kind::Bool, &["t", "1", "true"]);
        same(Kind::Bytes, &["\\x0AFF", "\\x0aff"]);
        same(Kind::Instant, &["2026-01-02 03:04:05+00", "2026-01-02T03:04:05.000Z", "2026-01-02 03:04:05.000000"]);
        assert_eq!(canonical(Kind::Decimal, "100"), "100");
        assert_eq!(canonical(Kind::Float, "NaN"), "NaN");
        assert_eq!(canonical(Kind::Text, &"ü".repeat(256)), "ü".repeat(256));
        assert!(canonical(Kind::Text, &"ü".repeat(257)).starts_with("sha256:"));
    }
}
