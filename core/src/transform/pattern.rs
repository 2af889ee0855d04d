//! Names of tables with `*`.

use std::fmt;

use serde::Deserialize;

use crate::model::TableName;

/// `public.orders`, `public.*`, `*.audit_*`: `*` stands for any characters, also none. A pattern
/// without a dot means the table's own name in any schema.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct TablePattern(String);

impl TablePattern {
    /// A pattern.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// Whether it means this table.
    pub fn matches(&self, table: &TableName) -> bool {
        let own_name = !self.0.contains('.') && glob(self.0.as_bytes(), table.name.as_bytes());
        own_name || glob(self.0.as_bytes(), table.to_string().as_bytes())
    }

    /// Whether it names one table, so that what it does not find is a mistake.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }
}

impl From<&str> for TablePattern {
    fn from(pattern: &str) -> Self {
        Self::new(pattern)
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether any of the patterns means this table.
pub(super) fn any(patterns: &[TablePattern], table: &TableName) -> bool {
    patterns.iter().any(|p| p.matches(table))
}

/// In linear time and space: on a mismatch only the last `*` takes one character more.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match (pattern.get(p), star) {
            (Some(b'*'), _) => {
                star = Some((p, t));
                p += 1;
            }
            (Some(c), _) if *c == text[t] => (p, t) = (p + 1, t + 1),
            (_, Some((at, taken))) => {
                star = Some((at, taken + 1));
                (p, t) = (at + 1, taken + 1);
            }
            (_, None) => return false,
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_dots() {
        let orders = TableName::new("public", "orders");
        for yes in ["public.orders", "orders", "*", "*.*", "public.*", "*orders", "pub*.or*s", "**", "o*r*s"] {
            assert!(TablePattern::new(yes).matches(&orders), "{yes}");
        }
        for no in ["order", "public", "public.order", "x.*", "*.x*", "Orders", ""] {
            assert!(!TablePattern::new(no).matches(&orders), "{no}");
        }
        assert!(TablePattern::new("a*b*c").matches(&TableName::new("", "aXbbYc")));
    }
}
