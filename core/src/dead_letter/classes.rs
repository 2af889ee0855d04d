//! Which refusals may mend themselves, and which need a person.

use serde::Deserialize;

use super::LetterClass;
use crate::error::{Error, Result};

/// Tells [`Retry`](LetterClass::Retry) from [`Severe`](LetterClass::Severe) by the reason of a refusal.
/// The first rule that matches counts: rules of the configuration before those that are built in.
///
/// Built in as severe is what another try cannot change: a value that the target cannot hold (SQL
/// states of class 22, this library's own refusals of values), a change that names no shard, or one
/// that is not known. All else (foreign keys, unique values, checks) is tried again.
///
/// ```
/// use anabranch_core::{LetterClass, dead_letter::{ClassRule, Classes}};
/// let classes = Classes::new([ClassRule::new("MySQL error 1062", LetterClass::Severe)])?;
/// assert_eq!(classes.of("Duplicate entry '7' for key 'PRIMARY' (MySQL error 1062)"), LetterClass::Severe);
/// assert_eq!(classes.of("Cannot add or update a child row (MySQL error 1452)"), LetterClass::Retry);
/// assert_eq!(classes.of("Data too long for column 'note' (MySQL error 1406)"), LetterClass::Severe);
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Classes {
    rules: Vec<ClassRule>,
}

/// A rule of [`Classes`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassRule {
    /// What the reason contains, in any case of letters; `*` stands for anything. Reasons name the
    /// server's error as it does: `MySQL error 1452`, `SQLSTATE 23503`.
    matches: String,
    class: LetterClass,
}

/// What no other try mends. Error numbers of MySQL's and MariaDB's manuals: values out of range, cut,
/// or not of their type; too large a packet.
const SEVERE: &[&str] = &[
    ": the value ",
    "sqlstate 22",
    "mysql error 1153)",
    "mysql error 1264)",
    "mysql error 1265)",
    "mysql error 1292)",
    "mysql error 1300)",
    "mysql error 1366)",
    "mysql error 1367)",
    "mysql error 1406)",
    "mysql error 1411)",
    "mysql error 1416)",
    "mysql error 1690)",
    "mysql error 3140)",
    "there is no shard ",
    "no transform has set a shard",
    "does not tell its shard",
    "moves from shard ",
];

impl ClassRule {
    /// Reasons that contain `matches` are of this class.
    pub fn new(matches: impl Into<String>, class: LetterClass) -> Self {
        Self { matches: matches.into(), class }
    }
}

impl Classes {
    /// These rules, before those that are built in.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for a rule without text, or of a class other than retry and severe.
    pub fn new(rules: impl IntoIterator<Item = ClassRule>) -> Result<Self> {
        let wrong = |problem| Err(Error::config("dead_letters.classes", problem));
        let mut known: Vec<ClassRule> = Vec::new();
        for rule in rules {
            if rule.matches.trim_matches('*').is_empty() {
                return wrong("a rule matches nothing: name a part of the reason, or an error number");
            }
            if !matches!(rule.class, LetterClass::Retry | LetterClass::Severe) {
                return wrong("the class of a rule must be retry or severe");
            }
            known.push(ClassRule { matches: rule.matches.to_lowercase(), ..rule });
        }
        Ok(Self { rules: known })
    }

    /// The class of a change that was refused for this reason.
    pub fn of(&self, reason: &str) -> LetterClass {
        let reason = reason.to_lowercase();
        match self.rules.iter().find(|rule| contains(&reason, &rule.matches)) {
            Some(rule) => rule.class,
            None if SEVERE.iter().any(|known| reason.contains(known)) => LetterClass::Severe,
            None => LetterClass::Retry,
        }
    }
}

/// Whether the parts of `pattern` between its stars come in `text`, in order.
fn contains(text: &str, pattern: &str) -> bool {
    let mut rest = text;
    pattern.split('*').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_come_before_what_is_built_in() {
        let classes = Classes::new([
            ClassRule::new("Foreign key*Orders", LetterClass::Severe),
            ClassRule::new("MySQL error 1406", LetterClass::Retry),
        ])
        .unwrap();
        for (reason, class) in [
            ("table orders: a FOREIGN KEY constraint fails in orders (MySQL error 1452)", LetterClass::Severe),
            ("orders: a foreign key constraint fails (MySQL error 1452)", LetterClass::Retry),
            ("Data too long (MySQL error 1406)", LetterClass::Retry),
            ("Out of range value (MySQL error 1264)", LetterClass::Severe),
            ("invalid input syntax (SQLSTATE 22P02)", LetterClass::Severe),
            ("table t [id=1] column c: the value 'x' is too long", LetterClass::Severe),
            ("there is no shard nope (known: a, b)", LetterClass::Severe),
            ("duplicate key (SQLSTATE 23505)", LetterClass::Retry),
        ] {
            assert_eq!(classes.of(reason), class, "{reason}");
        }
    }

    #[test]
    fn a_rule_must_say_something() {
        for rule in [ClassRule::new("**", LetterClass::Retry), ClassRule::new("x", LetterClass::Skip)] {
            assert!(Classes::new([rule]).is_err());
        }
    }
}
