//! The target's column types, read from their DDL.

/// A column type of MySQL or MariaDB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Family {
    /// Whole numbers of this many bytes.
    Int {
        bytes: u8,
        unsigned: bool,
    },
    Decimal {
        precision: u32,
        scale: u32,
        unsigned: bool,
    },
    /// 32 bits.
    Float,
    /// 64 bits.
    Double,
    Bit(u32),
    /// Blank-padded; blanks at the end are lost.
    Char(u32),
    VarChar(u32),
    /// A text type, by its limit in bytes.
    Text(u64),
    /// Zero-padded.
    Binary(u32),
    VarBinary(u32),
    /// A blob type, by its limit in bytes.
    Blob(u64),
    Date,
    /// With its digits after the second.
    Time(u32),
    DateTime(u32),
    Timestamp(u32),
    /// MySQL's own JSON; MariaDB's is a text with a check.
    Json,
    Enum(Vec<String>),
    /// MariaDB's UUID.
    Uuid,
    /// A type of its own that reads and writes text: SET, YEAR, INET6.
    Words,
    Other,
}

/// A column type with what tells which strings it can hold and tell apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Native {
    pub(crate) family: Family,
    /// Named only where it is not utf8mb4.
    pub(crate) charset: Option<String>,
    /// Named only for keys whose collation does not tell all strings apart.
    pub(crate) collate: Option<String>,
}

const TINY: u64 = 255;
const SMALL: u64 = 65_535;
const MEDIUM: u64 = 16_777_215;
pub(crate) const LONG: u64 = 4_294_967_295;

impl Native {
    /// Reads a type as `information_schema.COLUMNS.COLUMN_TYPE` writes it, with the charset and the
    /// collation after it where `target.rs` adds them.
    pub(crate) fn parse(native: &str) -> Self {
        let lower = native.to_ascii_lowercase();
        let word = |name: &str| {
            let rest = &native[lower.find(&format!(" {name} "))? + name.len() + 2..];
            Some(rest.split_whitespace().next()?.to_ascii_lowercase())
        };
        let charset = word("character set").filter(|c| c != "utf8mb4");
        Self { family: family(native, &lower), charset, collate: word("collate") }
    }

    /// Whether it holds text.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self.family, Family::Char(_) | Family::VarChar(_) | Family::Text(_) | Family::Enum(_))
    }
}

fn family(native: &str, lower: &str) -> Family {
    let base: &str = lower.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let unsigned = lower.contains(" unsigned");
    let numbers = numbers(lower, base);
    let number = |at: usize, default: u32| numbers.get(at).copied().unwrap_or(default);
    let int = |bytes| Family::Int { bytes, unsigned };
    match base {
        "tinyint" | "bool" | "boolean" => int(1),
        "smallint" => int(2),
        "mediumint" => int(3),
        "int" | "integer" => int(4),
        "bigint" => int(8),
        "decimal" | "numeric" | "dec" => Family::Decimal { precision: number(0, 10), scale: number(1, 0), unsigned },
        "float" => Family::Float,
        "double" | "real" => Family::Double,
        "bit" => Family::Bit(number(0, 1)),
        "char" => Family::Char(number(0, 1)),
        "varchar" => Family::VarChar(number(0, 0)),
        "tinytext" => Family::Text(TINY),
        "text" => Family::Text(SMALL),
        "mediumtext" => Family::Text(MEDIUM),
        "longtext" => Family::Text(LONG),
        "binary" => Family::Binary(number(0, 1)),
        "varbinary" => Family::VarBinary(number(0, 0)),
        "tinyblob" => Family::Blob(TINY),
        "blob" => Family::Blob(SMALL),
        "mediumblob" => Family::Blob(MEDIUM),
        "longblob" => Family::Blob(LONG),
        "date" => Family::Date,
        "time" => Family::Time(number(0, 0)),
        "datetime" => Family::DateTime(number(0, 0)),
        "timestamp" => Family::Timestamp(number(0, 0)),
        "json" => Family::Json,
        "enum" => Family::Enum(labels(native)),
        "uuid" => Family::Uuid,
        "set" | "year" | "inet4" | "inet6" => Family::Words,
        _ => Family::Other,
    }
}

/// The numbers in the brackets right after the type's name.
fn numbers(lower: &str, base: &str) -> Vec<u32> {
    let inside = lower[base.len()..].strip_prefix('(').and_then(|rest| rest.split(')').next());
    inside.map(|list| list.split(',').filter_map(|n| n.trim().parse().ok()).collect()).unwrap_or_default()
}

/// The labels of `enum('a','it''s')`.
fn labels(native: &str) -> Vec<String> {
    let mut labels = Vec::new();
    let mut current: Option<String> = None;
    let mut chars = native.chars().peekable();
    while let Some(c) = chars.next() {
        match (&mut current, c) {
            (None, '\'') => current = Some(String::new()),
            (None, ')') => break,
            (None, _) => {}
            (Some(label), '\'') if chars.peek() == Some(&'\'') => {
                chars.next();
                label.push('\'');
            }
            (Some(_), '\'') => labels.extend(current.take()),
            (Some(label), c) => label.push(c),
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_from_their_ddl() {
        let cases = [
            ("int(10) unsigned", Family::Int { bytes: 4, unsigned: true }),
            ("tinyint(1)", Family::Int { bytes: 1, unsigned: false }),
            ("decimal(65,30)", Family::Decimal { precision: 65, scale: 30, unsigned: false }),
            ("datetime(6)", Family::DateTime(6)),
            ("timestamp", Family::Timestamp(0)),
            ("varchar(768) CHARACTER SET latin1 COLLATE latin1_bin", Family::VarChar(768)),
            ("longblob", Family::Blob(LONG)),
            ("enum('a','it''s','(x)')", Family::Enum(vec!["a".into(), "it's".into(), "(x)".into()])),
            ("point", Family::Other),
        ];
        for (native, expected) in cases {
            assert_eq!(Native::parse(native).family, expected, "{native}");
        }
        let latin = Native::parse("varchar(768) CHARACTER SET latin1 COLLATE latin1_bin");
        assert_eq!((latin.charset.as_deref(), latin.collate.as_deref()), (Some("latin1"), Some("latin1_bin")));
        assert_eq!(Native::parse("text CHARACTER SET utf8mb4").charset, None);
    }
}
