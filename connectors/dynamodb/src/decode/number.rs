//! DynamoDB's numbers: up to 38 significant digits, of a magnitude from 1E-130 to 9.99..E125.

/// How many significant digits a number may have.
pub(crate) const DIGITS: usize = 38;

/// The canonical decimal text of a number: no exponent, no leading or trailing zeros, no `-0`.
/// `None` if it is not a number.
///
/// Servers differ in how they write large numbers (`1E+125`, or all the zeros); equal numbers have
/// to be equal texts, for keys are compared by them.
pub(crate) fn canonical(text: &str) -> Option<String> {
    let (negative, digits, exponent) = parse(text)?;
    let mut out = String::with_capacity(text.len().max(digits.len() + 2));
    if digits.is_empty() {
        return Some("0".to_owned());
    }
    if negative {
        out.push('-');
    }
    // The value is 0.DIGITS * 10^exponent.
    let point = usize::try_from(exponent).unwrap_or(0);
    if exponent <= 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', usize::try_from(-exponent).ok()?));
        out.push_str(&digits);
    } else if point >= digits.len() {
        out.push_str(&digits);
        out.extend(std::iter::repeat_n('0', point - digits.len()));
    } else {
        out.push_str(&digits[..point]);
        out.push('.');
        out.push_str(&digits[point..]);
    }
    Some(out)
}

/// Whether this text is already as [`canonical`] would write it: nearly all are.
pub(crate) fn is_canonical(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text).as_bytes();
    let whole = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let zero_led = whole > 1 && digits[0] == b'0';
    match digits.get(whole) {
        _ if whole == 0 || zero_led => false,
        None => digits != b"0" || text == "0",
        Some(b'.') => {
            let fraction = &digits[whole + 1..];
            fraction.iter().all(u8::is_ascii_digit) && fraction.last().is_some_and(|&b| b != b'0')
        }
        Some(_) => false,
    }
}

/// Whether DynamoDB can hold this number; `None` if it is none.
pub(crate) fn fits(text: &str) -> Option<bool> {
    let (_, digits, exponent) = parse(text)?;
    Some(digits.is_empty() || digits.len() <= DIGITS && (-129..=126).contains(&exponent))
}

/// Sign, significant digits (none for zero), and e with value = 0.digits * 10^e.
fn parse(text: &str) -> Option<(bool, String, i64)> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], rest[at + 1..].parse::<i32>().ok()?),
        None => (rest, 0),
    };
    // Text of no service is this large; written out it would fill the memory.
    if !(-1000..=1000).contains(&exponent) {
        return None;
    }
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let numeric = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !numeric(whole) || !numeric(fraction) {
        return None;
    }
    let all = format!("{whole}{fraction}");
    let leading = all.len() - all.trim_start_matches('0').len();
    let digits = all.trim_matches('0').to_owned();
    let exponent = whole.len() as i64 + i64::from(exponent) - leading as i64;
    Some((negative, digits, exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_text_for_one_number() {
        for (text, canonical_text) in [
            ("0", "0"),
            ("-0", "0"),
            ("0.00", "0"),
            ("1", "1"),
            ("+1.50", "1.5"),
            ("007", "7"),
            ("1E2", "100"),
            ("1.5e-3", "0.0015"),
            ("-12.30E1", "-123"),
            (".5", "0.5"),
            ("5.", "5"),
            ("0.1E1", "1"),
            ("100", "100"),
            ("12345678901234567890123456789012345678", "12345678901234567890123456789012345678"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(canonical_text), "{text}");
            assert_eq!(is_canonical(text), text == canonical_text, "{text}");
        }
        assert_eq!(canonical("1E125").map(|t| t.len()), Some(126));
        assert_eq!(canonical("1E-130").map(|t| t.len()), Some(132));
        for bad in ["", "-", ".", "1e", "NaN", "1x", "Infinity", "1e99999999", "--1", "1.2.3"] {
            assert_eq!(canonical(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_fits() {
        for good in ["0", "1E125", "9.9999999999999999999999999999999999999E125", "1E-130", "-1E-130"] {
            assert_eq!(fits(good), Some(true), "{good}");
        }
        for bad in ["1E126", "1E-131", "123456789012345678901234567890123456789"] {
            assert_eq!(fits(bad), Some(false), "{bad}");
        }
        assert_eq!(fits("NaN"), None);
    }

    proptest! {
        #[test]
        fn canonical_is_stable(text in "[-+]?[0-9]{0,40}(\\.[0-9]{0,40})?([eE][-+]?[0-9]{1,3})?") {
            if let Some(once) = canonical(&text) {
                prop_assert_eq!(canonical(&once), Some(once.clone()));
                prop_assert!(is_canonical(&once), "{}", once);
                let value: f64 = text.trim_end_matches('.').parse().unwrap_or(f64::NAN);
                let again: f64 = once.parse().unwrap();
                prop_assert!(value.is_nan() || value == again, "{} {}", text, once);
            }
        }

        #[test]
        fn never_a_panic(text in ".{0,20}") {
            let _ = (canonical(&text), is_canonical(&text), fits(&text));
        }
    }
}
