//! What a demonstration tells, and how it ends.

use std::error::Error;
use std::process::ExitCode;

pub(crate) type Done<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// How the process ends, by whether everything was equal.
pub(crate) fn verdict(equal: Done<bool>) -> ExitCode {
    match equal {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("\nthe demonstration failed: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line.
pub(crate) fn say(what: &str, text: String) {
    println!("  {what:<10} {text}");
}

/// `12,345`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
